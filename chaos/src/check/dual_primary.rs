//! Two primaries: acknowledgements by two nodes whose reigns overlap.
//!
//! Every add, register write and beat returns the timeline it was written on, and each promotion takes a new timeline that no other
//! takes. So two things never happen: an older timeline acknowledges a write that was *begun* after a newer one had acknowledged
//! one, and two nodes write on the same timeline. (An old acknowledgement that is only late proves nothing.)
//!
//! Beats that ask nobody (`synchronous_commit = local`) opted out of the rule; those of a deposed primary are counted, not failed.

use super::Least;
use super::case::{Case, line};
use crate::record::{At, Reign, Verdict};
use crate::workload::final_state::Final;
use crate::workload::history::{Attempt, Beat, Confirm, Fate, Histories, RoleSeen};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node that was not heard of for so long does not reign in between.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Nobody acknowledges for an older reign after a newer one has, and each timeline has one writer.
#[must_use]
pub fn check(histories: &Histories, least: Least) -> Verdict {
    let mut case = Case::new("dual-primary");
    let by_rule = histories.beats.iter().filter(|beat| beat.confirm == Confirm::Rule).map(|beat| &beat.attempt);
    let written = histories.writes().chain(by_rule).filter(|attempt| attempt.fate == Fate::Done);
    let mut acknowledged: Vec<(&Attempt, u32)> = written.filter_map(|attempt| Some((attempt, attempt.timeline?))).collect();
    let timelines: BTreeSet<u32> = acknowledged.iter().map(|(_, timeline)| *timeline).collect();
    case.need("acknowledged", acknowledged.len(), least.acknowledged);
    case.count("timelines", timelines.len());
    let newest = newest_by_time(&acknowledged);
    acknowledged.sort_by_key(|(attempt, _)| attempt.from);
    for (attempt, timeline) in &acknowledged {
        if let Some((newer, newer_timeline)) = before(&newest, attempt.from)
            && newer_timeline > *timeline
        {
            case.violate(vec![
                format!("timeline {timeline} acknowledged a write begun after timeline {newer_timeline} had acknowledged one"),
                line(histories, newer, "write"),
                line(histories, attempt, "write"),
            ]);
        }
    }
    let mut alone_late = 0;
    for beat in histories.beats.iter().filter(|beat| beat.confirm == Confirm::Alone && beat.attempt.fate == Fate::Done) {
        let newer = before(&newest, beat.attempt.from);
        alone_late += usize::from(newer.zip(beat.attempt.timeline).is_some_and(|((_, newer), timeline)| newer > timeline));
    }
    case.count("local_writes_of_a_deposed_primary", alone_late);
    one_writer_each(histories, &mut case);
    case.close(format!("{} acknowledged writes on {} timelines", acknowledged.len(), timelines.len()))
}

/// The acknowledgements that raised the newest timeline known, in the order of their ends.
fn newest_by_time<'h>(acknowledged: &[(&'h Attempt, u32)]) -> Vec<(&'h Attempt, u32)> {
    let mut by_end = acknowledged.to_vec();
    by_end.sort_by_key(|(attempt, _)| attempt.to);
    let mut newest: Vec<(&Attempt, u32)> = Vec::new();
    for (attempt, timeline) in by_end {
        if newest.last().is_none_or(|(_, last)| timeline > *last) {
            newest.push((attempt, timeline));
        }
    }
    newest
}

fn before<'h>(newest: &[(&'h Attempt, u32)], at: At) -> Option<(&'h Attempt, u32)> {
    let count = newest.partition_point(|(attempt, _)| attempt.to < at);
    count.checked_sub(1).map(|last| newest[last])
}

fn one_writer_each(histories: &Histories, case: &mut Case) {
    let mut writers: BTreeMap<u32, &Beat> = BTreeMap::new();
    for beat in histories.beats.iter().filter(|beat| beat.attempt.fate == Fate::Done) {
        let Some(timeline) = beat.attempt.timeline else { continue };
        let first = *writers.entry(timeline).or_insert(beat);
        if first.node != beat.node {
            case.violate(vec![
                format!("timeline {timeline} was written by {} and by {}", first.node, beat.node),
                line(histories, &first.attempt, &format!("beat on {}", first.node)),
                line(histories, &beat.attempt, &format!("beat on {}", beat.node)),
            ]);
        }
    }
}

/// Who was writable when, in the order of time. Epoch 0: `history` did not name the timeline.
#[must_use]
pub fn reigns(histories: &Histories, end: &Final) -> Vec<Reign> {
    let changes = end.changes.iter().flatten();
    let epochs: BTreeMap<u32, u64> = changes.filter_map(|change| Some((change.timeline?, change.epoch))).collect();
    let mut by_node: BTreeMap<&str, Vec<&RoleSeen>> = BTreeMap::new();
    for seen in &histories.roles {
        by_node.entry(&seen.node).or_default().push(seen);
    }
    let mut reigns: Vec<Reign> = Vec::new();
    for (node, mut seen) in by_node {
        seen.sort_by_key(|role| role.at);
        let mut open: Option<Reign> = None;
        for role in seen {
            let goes_on = open.as_ref().is_some_and(|r| Some(r.timeline) == role.writable_timeline && role.at.since(r.to) <= SILENCE_MAX);
            if goes_on {
                open.iter_mut().for_each(|reign| reign.to = role.at);
                continue;
            }
            reigns.extend(open.take());
            open = role.writable_timeline.map(|timeline| {
                let epoch = epochs.get(&timeline).copied().unwrap_or(0);
                Reign { node: node.to_owned(), epoch, timeline, from: role.at, to: role.at }
            });
        }
        reigns.extend(open);
    }
    reigns.sort_by_key(|reign| (reign.from, reign.timeline));
    reigns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, add, assert_failed, assert_passed, attempt};
    use crate::workload::final_state::PrimaryChange;
    use crate::workload::history::Add;

    fn on(timeline: u32, id: i64, from: u64, to: u64) -> Add {
        let mut add = add(id, Fate::Done);
        add.attempt = Attempt { timeline: Some(timeline), ..attempt(1, from, to, Fate::Done) };
        add
    }

    fn beat(node: &str, timeline: u32, from: u64, confirm: Confirm) -> Beat {
        Beat { attempt: Attempt { timeline: Some(timeline), ..attempt(2, from, from + 1, Fate::Done) }, node: node.into(), confirm }
    }

    #[test]
    fn one_after_the_other_passes_even_when_an_answer_is_late() {
        let adds = vec![on(1, 1, 0, 10), on(1, 2, 5, 90), on(2, 3, 20, 30), on(2, 4, 40, 50)];
        assert_passed(&check(&Histories { adds, ..Histories::default() }, LEAST));
    }

    #[test]
    fn an_old_reign_that_goes_on_acknowledging_fails() {
        let adds = vec![on(1, 1, 0, 10), on(2, 3, 20, 30), on(1, 2, 31, 40)];
        assert_failed(&check(&Histories { adds, ..Histories::default() }, LEAST), "timeline 1 acknowledged a write begun after timeline 2");
        let beats = vec![beat("dc1", 1, 0, Confirm::Rule), beat("dc2", 2, 10, Confirm::Rule), beat("dc1", 1, 20, Confirm::Rule)];
        assert_failed(&check(&Histories { beats, ..Histories::default() }, LEAST), "timeline 1 acknowledged");
    }

    #[test]
    fn two_nodes_on_one_timeline_fail() {
        let beats = vec![beat("dc1", 2, 0, Confirm::Rule), beat("dc2", 2, 10, Confirm::Alone)];
        assert_failed(&check(&Histories { beats, ..Histories::default() }, LEAST), "was written by dc1 and by dc2");
    }

    #[test]
    fn writes_that_asked_nobody_are_counted() {
        let beats = vec![beat("dc1", 1, 0, Confirm::Alone), beat("dc2", 2, 10, Confirm::Rule), beat("dc1", 1, 20, Confirm::Alone)];
        let verdict = check(&Histories { beats, ..Histories::default() }, LEAST);
        assert_passed(&verdict);
        assert_eq!(verdict.counts["local_writes_of_a_deposed_primary"], 1);
    }

    #[test]
    fn reigns_begin_and_end_with_what_was_seen() {
        let seen = |node: &str, at: u64, writable_timeline| RoleSeen { node: node.into(), at: At(at * 1_000_000), writable_timeline };
        let roles = vec![
            seen("dc1", 0, Some(1)),
            seen("dc2", 0, None),
            seen("dc1", 1, Some(1)),
            seen("dc1", 2, None),
            seen("dc2", 2, Some(2)),
            seen("dc2", 3, Some(2)),
        ];
        let change = PrimaryChange { epoch: 5, timeline: Some(2), ..PrimaryChange::default() };
        let end = Final { changes: Some(vec![change]), ..Final::default() };
        let reigns = reigns(&Histories { roles, ..Histories::default() }, &end);
        let short: Vec<_> = reigns.iter().map(|r| (r.node.as_str(), r.epoch, r.timeline, r.from.0, r.to.0)).collect();
        assert_eq!(short, vec![("dc1", 0, 1, 0, 1_000_000), ("dc2", 5, 2, 2_000_000, 3_000_000)]);
    }
}
