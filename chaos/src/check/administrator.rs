//! Administrator: a command takes effect at most once, and one that said "done" did.
//!
//! Of changes of primary only switchovers leave a countable trace: `history` names each with its cause. To which node is no criterion for
//! "at most once": preference breaks ties only, so that a switchover to one node may rightly end at another. Nor is the cause one for
//! "done": where the old primary fell silent in mid-drain, the election that the command waits for is put down to the lost lease.

use super::case::{Case, seconds};
use super::orders;
use crate::cluster::SIGTERM;
use crate::record::{Reign, Verdict};
use crate::workload::final_state::{Final, PrimaryChange};
use crate::workload::history::{Command, Histories};

pub(super) const DONE: i32 = 0;
/// As a cause in the history.
const SWITCHOVER: &str = "switchover";
/// A primary that is asked to end hands over as if it had been ordered.
const HANDS_OVER: [&str; 2] = ["switchover", SIGTERM];
/// Wrong usage; refused: certainly without effect.
pub(super) const WITHOUT_EFFECT: [i32; 2] = [2, 3];

/// The cluster remembers so many changes of primary.
const HISTORY_MAX: usize = 200;

/// No switchover without a command that may have had that effect, and no command that said it had and had none.
#[must_use]
pub fn check(histories: &Histories, reigns: &[Reign], end: &Final) -> Verdict {
    let mut case = Case::new("administrator");
    let orders = histories.commands.iter().filter(|c| c.words.first().is_some_and(|word| HANDS_OVER.contains(&word.as_str())));
    let possible: Vec<&Command> = orders.filter(|c| c.exit.is_none_or(|exit| !WITHOUT_EFFECT.contains(&exit))).collect();
    let done = possible.iter().filter(|command| command.exit == Some(DONE)).count();
    case.need("commands", histories.commands.len(), 1);
    case.count("switchovers_done", done);
    case.count("switchovers_open", possible.len() - done);
    let mut effects = 0;
    match &end.changes {
        None => case.lack("the cluster's history was not asked for"),
        Some(changes) => {
            let recent: Vec<&PrimaryChange> = changes.iter().filter(|change| change.epoch > end.since_epoch).collect();
            effects = recent.iter().filter(|change| change.cause == SWITCHOVER).count();
            compare(&possible, reigns, &recent, &mut case);
        }
    }
    case.count("switchovers_in_history", effects);
    super::settings::compare(histories, end, &mut case);
    let last =
        histories.commands.iter().filter(|c| c.words.first().is_some_and(|word| word == "pause" || word == "resume")).max_by_key(|c| c.to);
    if let (Some(command), Some(is_paused)) = (last, end.is_paused)
        && command.exit == Some(DONE)
        && is_paused != (command.words.first().is_some_and(|word| word == "pause"))
    {
        case.violate(vec![format!("{} was done last, and paused is {is_paused}", command.words.join(" ")), show(command)]);
    }
    case.close(format!("{} commands; {done} switchovers done, {effects} in the history", histories.commands.len()))
}

fn compare(possible: &[&Command], reigns: &[Reign], recent: &[&PrimaryChange], case: &mut Case) {
    let told = || {
        let commands = possible.iter().map(|command| show(command));
        let changes = recent.iter().map(|change| format!("history: epoch {} to {}, {}", change.epoch, change.to, change.cause));
        commands.chain(changes).collect::<Vec<_>>()
    };
    let effects: Vec<&PrimaryChange> = recent.iter().copied().filter(|change| change.cause == SWITCHOVER).collect();
    let unordered = orders::without_order(&effects, possible, reigns);
    if let Some(first) = unordered.first() {
        let first =
            format!("{} switchovers in the history that no command can have caused, for one epoch {}", unordered.len(), first.epoch);
        case.violate([vec![first], told()].concat());
    }
    let done: Vec<&&Command> = possible.iter().filter(|command| command.exit == Some(DONE)).collect();
    for command in done.iter().filter(|command| orders::is_without_effect(command, reigns, recent)) {
        case.violate(
            [vec!["a switchover was said to be done, and no change of primary began then".to_owned(), show(command)], told()].concat(),
        );
    }
    let changed = recent.iter().filter(|change| change.from.as_ref().is_some_and(|from| *from != change.to)).count();
    if changed < done.len() && recent.len() < HISTORY_MAX {
        let first = format!("{} switchovers were said to be done, the history has {changed} changes of primary", done.len());
        case.violate([vec![first], told()].concat());
    }
}

pub(super) fn show(command: &Command) -> String {
    let exit = command.exit.map_or_else(|| "did not end".to_owned(), |exit| format!("exit {exit}"));
    format!("{}–{} s  trilithon {}: {exit}", seconds(command.from), seconds(command.to), command.words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{assert_failed, assert_passed};
    use crate::record::{At, Outcome};

    fn command(words: &[&str], exit: Option<i32>) -> Command {
        Command { words: words.iter().map(|w| (*w).to_owned()).collect(), from: At(1), to: At(2), exit, said: String::new() }
    }

    fn change(epoch: u64, cause: &str) -> PrimaryChange {
        let from = (cause != "bootstrap").then(|| "dc1".to_owned());
        PrimaryChange { epoch, cause: cause.into(), from, to: "dc2".into(), ..PrimaryChange::default() }
    }

    fn judged(commands: Vec<Command>, causes: &[&str], is_paused: Option<bool>) -> Verdict {
        let changes = causes.iter().zip(1..).map(|(cause, epoch)| change(epoch, cause)).collect();
        check(&Histories { commands, ..Histories::default() }, &[], &Final { changes: Some(changes), is_paused, ..Final::default() })
    }

    #[test]
    fn once_each_passes_and_unknown_ones_may_count_or_not() {
        let commands = || vec![command(&["switchover"], Some(0)), command(&["switchover"], Some(5)), command(&["switchover"], Some(3))];
        assert_passed(&judged(commands(), &["bootstrap", "switchover", "lease_expired"], None));
        assert_passed(&judged(commands(), &["bootstrap", "switchover", "switchover"], None));
        assert_passed(&judged(commands(), &["bootstrap", "lease_expired"], None));
    }

    #[test]
    fn what_was_before_the_run_is_left_out() {
        let changes = Some(vec![change(2, "switchover"), change(3, "switchover"), change(4, "switchover")]);
        let commands = vec![command(&["switchover"], Some(0))];
        let histories = Histories { commands, ..Histories::default() };
        let end = |since_epoch| Final { changes: changes.clone(), since_epoch, ..Final::default() };
        assert_passed(&check(&histories, &[], &end(3)));
        assert_failed(&check(&histories, &[], &end(0)), "2 switchovers in the history that no command can have caused");
    }

    #[test]
    fn twice_fails() {
        let commands = vec![command(&["switchover", "--to", "dc2"], Some(0)), command(&["switchover"], Some(3))];
        assert_failed(
            &judged(commands, &["switchover", "switchover"], None),
            "1 switchovers in the history that no command can have caused, for one epoch 2",
        );
    }

    #[test]
    fn a_primary_that_was_asked_to_end_may_have_handed_over() {
        let commands = || vec![command(&["switchover"], Some(0)), command(&["SIGTERM", "dc1"], None)];
        assert_passed(&judged(commands(), &["switchover", "switchover"], None));
        assert_passed(&judged(commands(), &["switchover"], None));
        assert_failed(&judged(commands(), &["switchover", "switchover", "switchover"], None), "for one epoch 3");
    }

    #[test]
    fn a_failover_of_another_time_hides_no_command_without_effect() {
        let reign = |epoch, from| Reign { node: "dc2".into(), epoch, timeline: 1, from: At(from), to: At(from) };
        let histories = Histories { commands: vec![command(&["switchover"], Some(0))], ..Histories::default() };
        let end = Final { changes: Some(vec![change(1, "bootstrap"), change(2, "lease_expired")]), ..Final::default() };
        let judged = |second| check(&histories, &[reign(1, 0), reign(2, second)], &end);
        assert_passed(&judged(2));
        assert_failed(&judged(90_000_000), "no change of primary began then");
    }

    #[test]
    fn done_without_effect_fails() {
        assert_failed(&judged(vec![command(&["switchover"], Some(0))], &["bootstrap"], None), "said to be done");
        assert_failed(&judged(vec![command(&["resume"], Some(0))], &[], Some(true)), "resume was done last");
    }

    #[test]
    fn without_the_history_nothing_is_concluded() {
        let histories = Histories { commands: vec![command(&["switchover"], Some(0))], ..Histories::default() };
        assert_eq!(check(&histories, &[], &Final::default()).outcome, Outcome::Inconclusive);
    }
}
