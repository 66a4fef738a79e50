//! Set: exact comparison of what was told with what every node holds at the end.

use super::Least;
use super::case::{Case, line};
use crate::record::Verdict;
use crate::workload::final_state::{Final, NodeFinal};
use crate::workload::history::{Add, Fate, Histories};
use std::collections::HashMap;

/// No acknowledged row is missing on any node, none is there twice, none that was refused or never sent is there.
#[must_use]
pub fn check(histories: &Histories, end: &Final, least: Least) -> Verdict {
    let mut case = Case::new("set");
    let sent: HashMap<i64, &Add> = histories.adds.iter().map(|add| (add.id, add)).collect();
    let told = |fate: Fate| histories.adds.iter().filter(|add| add.attempt.fate == fate).count();
    let (acknowledged, refused, unknown) = (told(Fate::Done), told(Fate::Refused), told(Fate::Unknown));
    case.need("acknowledged", acknowledged, least.acknowledged);
    case.count("refused", refused);
    case.count("unknown", unknown);
    let read: Vec<&NodeFinal> = end.nodes.iter().filter(|node| node.trouble.is_none() && node.is_caught_up).collect();
    if read.is_empty() || read.len() < end.nodes.len() {
        case.lack(format!("only {} of {} nodes could be read at the end", read.len(), end.nodes.len()));
    }
    let mut totals = Found::default();
    for node in read {
        compare(histories, &sent, node, &mut case, &mut totals);
    }
    case.count("lost", totals.lost);
    case.count("duplicated", totals.duplicated);
    case.count("refused_but_applied", totals.phantom);
    case.count("unknown_and_applied", totals.unknown_applied);
    case.close(format!(
        "{acknowledged} rows acknowledged, {refused} refused, {unknown} unknown; lost {}, twice {}",
        totals.lost, totals.duplicated
    ))
}

/// Of the worst node.
#[derive(Default)]
struct Found {
    lost: usize,
    duplicated: usize,
    phantom: usize,
    unknown_applied: usize,
}

fn compare(histories: &Histories, sent: &HashMap<i64, &Add>, node: &NodeFinal, case: &mut Case, totals: &mut Found) {
    let mut times: HashMap<i64, usize> = HashMap::new();
    for id in &node.set {
        *times.entry(*id).or_default() += 1;
    }
    let mut found = Found::default();
    for add in &histories.adds {
        let count = times.get(&add.id).copied().unwrap_or(0);
        let shown = || line(histories, &add.attempt, &format!("add {} ({:?})", add.id, add.protocol));
        match add.attempt.fate {
            Fate::Done if count == 0 => {
                found.lost += 1;
                case.violate(vec![format!("row {} was acknowledged and is not on {}", add.id, node.name), shown()]);
            }
            Fate::Refused if count > 0 => {
                found.phantom += 1;
                case.violate(vec![format!("row {} was refused and is on {}", add.id, node.name), shown()]);
            }
            Fate::Unknown if count > 0 => found.unknown_applied += 1,
            _ => {}
        }
        if count > 1 {
            found.duplicated += 1;
            case.violate(vec![format!("row {} is on {} {count} times", add.id, node.name), shown()]);
        }
    }
    for id in times.keys().filter(|id| !sent.contains_key(id)) {
        found.phantom += 1;
        case.violate(vec![format!("row {id} is on {} and nobody sent it", node.name)]);
    }
    totals.lost = totals.lost.max(found.lost);
    totals.duplicated = totals.duplicated.max(found.duplicated);
    totals.phantom = totals.phantom.max(found.phantom);
    totals.unknown_applied = totals.unknown_applied.max(found.unknown_applied);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, add, assert_failed, assert_passed, nodes_with_set};
    use crate::record::Outcome;

    fn judged(adds: Vec<Add>, set: &[i64]) -> Verdict {
        check(&Histories { adds, ..Histories::default() }, &nodes_with_set(&[set, set, set]), LEAST)
    }

    #[test]
    fn all_there_once_passes() {
        let adds = vec![add(1, Fate::Done), add(2, Fate::Done), add(3, Fate::Refused), add(4, Fate::Unknown), add(5, Fate::Unknown)];
        assert_passed(&judged(adds, &[1, 2, 4]));
    }

    #[test]
    fn a_lost_row_fails_even_on_one_node() {
        let histories = Histories { adds: vec![add(1, Fate::Done), add(2, Fate::Done)], ..Histories::default() };
        let verdict = check(&histories, &nodes_with_set(&[&[1, 2], &[1, 2], &[1]]), LEAST);
        assert_failed(&verdict, "row 2 was acknowledged and is not on dc3");
        assert_eq!(verdict.counts["lost"], 1);
    }

    #[test]
    fn a_row_twice_fails_also_when_its_outcome_was_unknown() {
        assert_failed(&judged(vec![add(1, Fate::Done), add(2, Fate::Done)], &[1, 2, 2]), "row 2 is on dc1 2 times");
        assert_failed(&judged(vec![add(1, Fate::Done), add(2, Fate::Unknown)], &[1, 2, 2]), "2 times");
    }

    #[test]
    fn a_refused_row_and_a_row_from_nowhere_fail() {
        assert_failed(&judged(vec![add(1, Fate::Done), add(2, Fate::Refused)], &[1, 2]), "row 2 was refused and is on");
        assert_failed(&judged(vec![add(1, Fate::Done)], &[1, 9]), "nobody sent it");
    }

    #[test]
    fn too_little_or_a_node_unread_is_inconclusive() {
        assert_eq!(judged(vec![], &[]).outcome, Outcome::Inconclusive);
        let mut end = nodes_with_set(&[&[1, 2], &[1, 2], &[]]);
        end.nodes[2].trouble = Some("down".into());
        let histories = Histories { adds: vec![add(1, Fate::Done), add(2, Fate::Done)], ..Histories::default() };
        assert_eq!(check(&histories, &end, LEAST).outcome, Outcome::Inconclusive);
    }
}
