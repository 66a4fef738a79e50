//! Replica reads: whatever anybody saw of the set, on whatever node, is there on every node at the end.
//!
//! A client of PostgreSQL itself, on a standby, is promised nothing: one that was the primary shows what it had written and nobody
//! had confirmed. Such rows are counted; proxies do not let anybody read there.
//!
//! Standbys show commits in WAL order and the primary in commit order, so two readers may disagree about which of two rows came first
//! (the long fork); that is documented and not looked for here.

use super::Least;
use super::case::{Case, line, seconds};
use crate::record::Verdict;
use crate::workload::final_state::Final;
use crate::workload::history::{Add, Door, Fate, Glimpse, Histories};
use std::collections::{HashMap, HashSet};

/// Nothing that was read is lost, and nothing that was read had been refused.
#[must_use]
pub fn check(histories: &Histories, end: &Final, least: Least) -> Verdict {
    let mut case = Case::new("replica-reads");
    let sent: HashMap<i64, &Add> = histories.adds.iter().map(|add| (add.id, add)).collect();
    let nodes: Vec<(&str, HashSet<i64>)> = end
        .nodes
        .iter()
        .filter(|node| node.trouble.is_none() && node.is_caught_up)
        .map(|node| (node.name.as_str(), node.set.iter().copied().collect()))
        .collect();
    if nodes.is_empty() || nodes.len() < end.nodes.len() {
        case.lack(format!("only {} of {} nodes could be read at the end", nodes.len(), end.nodes.len()));
    }
    let seen = |door: Door| histories.glimpses.iter().filter(|g| g.origin.door == door).map(|g| g.ids.len()).sum::<usize>();
    let total: usize = histories.glimpses.iter().map(|glimpse| glimpse.ids.len()).sum();
    case.need("seen", total, least.reads);
    let of_standbys = histories.glimpses.iter().filter(|glimpse| glimpse.standby && glimpse.origin.door != Door::Direct).count();
    case.need("looks_at_standbys", of_standbys, least.reads_of_standbys());
    for (name, door) in
        [("seen_auto", Door::Auto), ("seen_primary", Door::Primary), ("seen_standby", Door::Standby), ("seen_direct", Door::Direct)]
    {
        case.count(name, seen(door));
    }
    let (mut lost, mut unpromised) = (0, 0);
    // What a proxy served is the worse: of witnesses of equal length the first is shown.
    let (direct, proxied): (Vec<&Glimpse>, Vec<&Glimpse>) = histories.glimpses.iter().partition(|g| g.origin.door == Door::Direct);
    for glimpse in proxied.into_iter().chain(direct) {
        for id in &glimpse.ids {
            let missing = nodes.iter().find(|(_, set)| !set.contains(id));
            let was_refused = sent.get(id).is_some_and(|add| add.attempt.fate == Fate::Refused);
            if let Some((node, _)) = missing {
                if glimpse.origin.door == Door::Direct && glimpse.standby {
                    unpromised += 1;
                    continue;
                }
                lost += 1;
                case.violate(story(histories, glimpse, sent.get(id).copied(), format!("row {id} was seen and is not on {node}")));
            } else if was_refused {
                case.violate(story(histories, glimpse, sent.get(id).copied(), format!("row {id} was seen although it was refused")));
            }
        }
    }
    case.count("seen_and_lost", lost);
    case.count("seen_and_lost_on_bare_standbys", unpromised);
    case.close(format!("{total} rows seen, {lost} lost; {unpromised} more were seen on a standby without a proxy, and lost"))
}

fn story(histories: &Histories, glimpse: &Glimpse, add: Option<&Add>, first: String) -> Vec<String> {
    let site = histories.site(glimpse.origin.site);
    let place = glimpse.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let mut lines = vec![first];
    lines.extend(add.map(|add| line(histories, &add.attempt, &format!("add {} ({:?})", add.id, add.protocol))));
    lines.push(format!("{} s  {site} {:?} session {}: seen{place}", seconds(glimpse.at), glimpse.origin.door, glimpse.origin.session));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, add, assert_failed, assert_inconclusive, assert_passed, nodes_with_set, origin};
    use crate::record::At;

    fn judged(adds: Vec<Add>, seen: &[i64], sets: &[&[i64]]) -> Verdict {
        judged_at(Door::Standby, true, adds, seen, sets)
    }

    fn judged_at(door: Door, standby: bool, adds: Vec<Add>, seen: &[i64], sets: &[&[i64]]) -> Verdict {
        let glimpse = |door, standby, ids: &[i64]| Glimpse { origin: origin(5, door), at: At(500), node: None, standby, ids: ids.to_vec() };
        // Besides, somebody looked at a standby through a proxy, and saw nothing new.
        let glimpses = vec![glimpse(door, standby, seen), glimpse(Door::Standby, true, &[])];
        check(&Histories { adds, glimpses, ..Histories::default() }, &nodes_with_set(sets), LEAST)
    }

    #[test]
    fn what_stays_passes() {
        assert_passed(&judged(vec![add(1, Fate::Done), add(2, Fate::Unknown)], &[1, 2], &[&[1, 2], &[1, 2]]));
    }

    #[test]
    fn what_was_seen_and_is_gone_fails_also_when_never_acknowledged() {
        assert_failed(
            &judged(vec![add(1, Fate::Done), add(2, Fate::Unknown)], &[1, 2], &[&[1, 2], &[1]]),
            "row 2 was seen and is not on dc2",
        );
    }

    #[test]
    fn without_a_look_at_a_standby_through_a_proxy_nothing_is_known_of_them() {
        for (door, standby) in [(Door::Direct, true), (Door::Standby, false), (Door::Auto, false)] {
            let glimpses = vec![Glimpse { origin: origin(5, door), at: At(500), node: None, standby, ids: vec![1] }];
            let histories = Histories { adds: vec![add(1, Fate::Done)], glimpses, ..Histories::default() };
            assert_inconclusive(&check(&histories, &nodes_with_set(&[&[1]]), LEAST), "0 looks_at_standbys, needs 1");
        }
    }

    #[test]
    fn of_direct_sessions_only_those_on_a_primary_are_promised_anything() {
        let adds = || vec![add(1, Fate::Done), add(2, Fate::Unknown)];
        assert_passed(&judged_at(Door::Direct, true, adds(), &[1, 2], &[&[1]]));
        assert_failed(&judged_at(Door::Direct, false, adds(), &[1, 2], &[&[1]]), "row 2 was seen and is not on dc1");
    }

    #[test]
    fn a_dirty_read_fails() {
        assert_failed(&judged(vec![add(1, Fate::Done), add(2, Fate::Refused)], &[2], &[&[1, 2]]), "although it was refused");
        assert_failed(&judged(vec![add(1, Fate::Done), add(2, Fate::Refused)], &[2], &[&[1]]), "is not on dc1");
    }
}
