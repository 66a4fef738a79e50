//! Settings: a change that said "done" is there at the end, unless a later one of the same setting undid it.
//!
//! Part of the administrator's verdict. Only `config set postgres.parameters.NAME VALUE` is looked at: other settings come back in
//! another spelling than they were given in ("90s", "1m30s").

use super::administrator::{DONE, WITHOUT_EFFECT, show};
use super::case::Case;
use crate::workload::final_state::Final;
use crate::workload::history::{Command, Histories};
use std::collections::BTreeMap;

/// Every setting that was changed has at the end a value that one of its last changes gave it.
pub(super) fn compare(histories: &Histories, end: &Final, case: &mut Case) {
    let mut changes: BTreeMap<&str, Vec<(&Command, Option<&str>)>> = BTreeMap::new();
    for command in &histories.commands {
        if let Some((name, value)) = change(command) {
            changes.entry(name).or_default().push((command, value));
        }
    }
    case.count("settings_changed", changes.len());
    let Some(settings) = &end.settings else {
        if !changes.is_empty() {
            case.lack("the cluster's settings were not asked for");
        }
        return;
    };
    for (name, changes) in changes {
        let last = last(&changes);
        // Where the default may have been put back, or nothing was ever done, nothing is known of the value.
        let was_done = last.iter().any(|(command, _)| command.exit == Some(DONE));
        let values: Option<Vec<&str>> = last.iter().map(|(_, value)| *value).collect();
        let Some(values) = values.filter(|_| was_done) else { continue };
        let found = settings.get(name).map_or("the default", String::as_str);
        if !values.contains(&found) {
            let first = format!("{name} is {found} at the end and was set to {}", values.join(" or "));
            case.violate([vec![first], last.iter().map(|(command, _)| show(command)).collect()].concat());
        }
    }
}

/// The setting and its new value; `None` as a value: its default.
fn change(command: &Command) -> Option<(&str, Option<&str>)> {
    let words: Vec<&str> = command.words.iter().map(String::as_str).collect();
    let (["config", "set", name], value) = words.split_first_chunk::<3>().map(|(first, rest)| (*first, rest.first().copied()))? else {
        return None;
    };
    let may_have_effect = command.exit.is_none_or(|exit| !WITHOUT_EFFECT.contains(&exit));
    (may_have_effect && name.starts_with("postgres.parameters.")).then_some((name, value))
}

/// Those whose value may be the one at the end: no other began after they were done. One of unknown outcome may take effect at any time.
fn last<'a>(changes: &[(&'a Command, Option<&'a str>)]) -> Vec<(&'a Command, Option<&'a str>)> {
    let is_undone = |command: &Command| {
        command.exit == Some(DONE) && changes.iter().any(|(other, _)| other.exit == Some(DONE) && other.from > command.to)
    };
    changes.iter().copied().filter(|(command, _)| !is_undone(command)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{assert_failed, assert_passed};
    use crate::record::{At, Outcome, Verdict};

    const COST: &str = "postgres.parameters.random_page_cost";

    fn set(value: &str, from: u64, to: u64, exit: i32) -> Command {
        let words = ["config", "set", COST, value].into_iter().filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Command { words, from: At(from), to: At(to), exit: Some(exit), said: String::new() }
    }

    fn judged(commands: Vec<Command>, found: Option<&str>) -> Verdict {
        let settings = found.into_iter().map(|value| (COST.to_owned(), value.to_owned())).collect();
        let mut case = Case::new("administrator");
        let end = Final { settings: Some(settings), ..Final::default() };
        compare(&Histories { commands, ..Histories::default() }, &end, &mut case);
        case.close(String::new())
    }

    #[test]
    fn the_last_change_counts() {
        let commands = || vec![set("3", 1, 2, 0), set("4", 3, 4, 0)];
        assert_passed(&judged(commands(), Some("4")));
        assert_failed(&judged(commands(), Some("3")), "random_page_cost is 3 at the end and was set to 4");
        assert_failed(&judged(commands(), None), "the default");
    }

    #[test]
    fn of_two_at_once_either_may_be_the_last() {
        let commands = || vec![set("3", 1, 5, 0), set("4", 3, 4, 0)];
        assert_passed(&judged(commands(), Some("3")));
        assert_passed(&judged(commands(), Some("4")));
        assert_failed(&judged(commands(), Some("5")), "3 or 4");
    }

    #[test]
    fn what_may_have_taken_effect_is_allowed_and_what_was_refused_is_not() {
        let commands = |exit| vec![set("3", 1, 2, exit), set("4", 3, 4, 0)];
        assert_passed(&judged(commands(5), Some("3")));
        assert_failed(&judged(commands(3), Some("3")), "was set to 4");
        assert_passed(&judged(vec![set("4", 3, 4, 5)], None));
    }

    #[test]
    fn nothing_is_known_of_a_default() {
        assert_passed(&judged(vec![set("3", 1, 2, 0), set("", 3, 4, 0)], None));
    }

    #[test]
    fn without_the_settings_nothing_is_concluded() {
        let mut case = Case::new("administrator");
        compare(&Histories { commands: vec![set("3", 1, 2, 0)], ..Histories::default() }, &Final::default(), &mut case);
        assert_eq!(case.close(String::new()).outcome, Outcome::Inconclusive);
    }
}
