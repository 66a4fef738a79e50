//! Which switchover was ordered by which command: paired by time, since random runs are full of other changes of primary.
//!
//! A change was decided between the moments at which its predecessor and it were first seen in office. Where a datacenter could not be
//! looked into, that is a long time, and the doubt is in the program's favour.

use crate::cluster::SIGTERM;
use crate::record::{At, Reign};
use crate::workload::final_state::PrimaryChange;
use crate::workload::history::Command;
use std::time::Duration;

/// Commands take effect up to this long after they ended: a switchover has its own deadline of 20 s.
pub const EFFECT_LIMIT: Duration = Duration::from_secs(25);
/// A primary is seen in office this much later than its clients are told, at most, where it can be seen at all.
const SEEN_LIMIT: Duration = Duration::from_secs(5);

/// No newer epoch than before the command was seen, nor is there one in the history that nobody saw.
pub fn is_without_effect(command: &Command, reigns: &[Reign], changes: &[&PrimaryChange]) -> bool {
    let end = command.to.after(SEEN_LIMIT);
    let epochs = |wanted: &dyn Fn(&Reign) -> bool| reigns.iter().filter(|r| wanted(r)).map(|r| r.epoch).collect::<Vec<_>>();
    let before = epochs(&|r| r.from < command.from).into_iter().max().unwrap_or(0);
    let during = epochs(&|r| command.from <= r.from && r.from <= end).into_iter().any(|epoch| epoch > before);
    let next = epochs(&|r| r.from > end).into_iter().filter(|epoch| *epoch > before).min().unwrap_or(u64::MAX);
    !during && !changes.iter().any(|change| before < change.epoch && change.epoch < next)
}

/// Changes for which no command is left, when each command may account for one.
pub fn without_order<'a>(effects: &[&'a PrimaryChange], commands: &[&Command], reigns: &[Reign]) -> Vec<&'a PrimaryChange> {
    let possible: Vec<Vec<usize>> = effects.iter().map(|effect| causes(effect, commands, reigns)).collect();
    let mut taken: Vec<Option<usize>> = vec![None; commands.len()];
    let unpaired = (0..effects.len()).filter(|effect| !pair(*effect, &possible, &mut taken, &mut vec![false; commands.len()]));
    unpaired.map(|index| effects[index]).collect()
}

/// The commands that can have caused a change.
fn causes(effect: &PrimaryChange, commands: &[&Command], reigns: &[Reign]) -> Vec<usize> {
    let first_seen = |wanted: &dyn Fn(u64) -> bool| reigns.iter().filter(|r| wanted(r.epoch)).map(|r| r.from).min();
    let previous = reigns.iter().map(|r| r.epoch).filter(|epoch| *epoch < effect.epoch).max();
    let earliest = previous.and_then(|previous| first_seen(&|epoch| epoch == previous)).unwrap_or(At(0));
    // Whoever is in office later was elected later.
    let latest = first_seen(&|epoch| epoch >= effect.epoch).unwrap_or(At(u64::MAX));
    // The history knows a member that was replaced since by its number only.
    let in_office = reigns.iter().find(|r| Some(r.epoch) == previous).map(|r| &r.node);
    let fits = |command: &Command| {
        let asked_to_end = command.words.get(1).filter(|_| command.words.first().is_some_and(|word| word == SIGTERM));
        let of_this_node = asked_to_end.is_none_or(|node| Some(node) == effect.from.as_ref() || Some(node) == in_office);
        of_this_node && command.from <= latest && earliest <= command.to.after(EFFECT_LIMIT)
    };
    (0..commands.len()).filter(|index| fits(commands[*index])).collect()
}

/// An augmenting path: others are moved to commands that they can have too.
fn pair(effect: usize, possible: &[Vec<usize>], taken: &mut [Option<usize>], tried: &mut [bool]) -> bool {
    for &command in &possible[effect] {
        if std::mem::replace(&mut tried[command], true) {
            continue;
        }
        let is_free = match taken[command] {
            None => true,
            Some(other) => pair(other, possible, taken, tried),
        };
        if is_free {
            taken[command] = Some(effect);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str], from: u64, to: u64) -> Command {
        let second = |s: u64| At(s * 1_000_000);
        Command {
            words: words.iter().map(|w| (*w).to_owned()).collect(),
            from: second(from),
            to: second(to),
            exit: Some(0),
            said: String::new(),
        }
    }

    fn change(epoch: u64) -> PrimaryChange {
        PrimaryChange { epoch, cause: "switchover".into(), from: Some("dc1".into()), to: "dc2".into(), ..PrimaryChange::default() }
    }

    fn reign(epoch: u64, from: u64) -> Reign {
        Reign { node: "dc2".into(), epoch, timeline: 1, from: At(from * 1_000_000), to: At(from * 1_000_000 + 1) }
    }

    #[test]
    fn a_change_of_another_time_is_no_effect_of_a_command() {
        let order = command(&["switchover"], 100, 102);
        let effect = |reigns: &[Reign], changes: &[PrimaryChange]| !is_without_effect(&order, reigns, &changes.iter().collect::<Vec<_>>());
        assert!(effect(&[reign(1, 0), reign(2, 101)], &[]));
        assert!(effect(&[reign(1, 0), reign(2, 106)], &[]), "seen a little later");
        assert!(
            !effect(&[reign(1, 0), reign(2, 50), reign(3, 200)], &[change(2), change(3)]),
            "a failover long before, and one long after"
        );
        assert!(effect(&[reign(1, 0), reign(3, 200)], &[change(2), change(3)]), "one that nobody could see");
    }

    #[test]
    fn each_command_accounts_for_one_change_of_its_time() {
        let (one, other) = (command(&["switchover"], 100, 102), command(&["switchover"], 300, 302));
        let reigns = [reign(1, 0), reign(2, 101), reign(3, 110), reign(4, 301)];
        let left = |epochs: &[u64]| {
            let changes: Vec<PrimaryChange> = epochs.iter().map(|epoch| change(*epoch)).collect();
            let without = without_order(&changes.iter().collect::<Vec<_>>(), &[&one, &other], &reigns);
            without.iter().map(|c| c.epoch).collect::<Vec<_>>()
        };
        assert_eq!(left(&[2, 4]), [0u64; 0]);
        assert_eq!(left(&[2, 3]), [3], "the second order comes three minutes later");
        assert_eq!(left(&[2, 3, 4]), [3]);
    }

    #[test]
    fn others_move_to_commands_that_they_can_have_too() {
        let (early, late) = (command(&["switchover"], 100, 102), command(&["switchover"], 105, 106));
        // The first can be of either, the second of the later alone.
        let reigns = [reign(1, 0), reign(2, 110), reign(3, 130)];
        let changes = [change(2), change(3)];
        let effects: Vec<&PrimaryChange> = changes.iter().collect();
        assert!(without_order(&effects, &[&late, &early], &reigns).is_empty());
    }

    #[test]
    fn a_node_that_was_asked_to_end_hands_over_only_what_it_had() {
        let reigns = [reign(1, 0), reign(2, 101)];
        let changes = [change(2)];
        let effects: Vec<&PrimaryChange> = changes.iter().collect();
        assert!(without_order(&effects, &[&command(&[SIGTERM, "dc1"], 100, 102)], &reigns).is_empty());
        assert_eq!(without_order(&effects, &[&command(&[SIGTERM, "dc3"], 100, 102)], &reigns).len(), 1);
        // It was replaced later on: its name belongs to another member now.
        let replaced = PrimaryChange { from: Some("n1".into()), ..change(2) };
        let was = Reign { node: "dc3".into(), ..reign(1, 0) };
        assert!(without_order(&[&replaced], &[&command(&[SIGTERM, "dc3"], 100, 102)], &[was.clone(), reign(2, 101)]).is_empty());
        assert_eq!(without_order(&[&replaced], &[&command(&[SIGTERM, "dc2"], 100, 102)], &[was, reign(2, 101)]).len(), 1);
    }
}
