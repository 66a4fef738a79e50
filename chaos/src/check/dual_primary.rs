//! Two primaries: acknowledgements by two nodes whose reigns overlap.
//!
//! Every add, register write and beat returns the timeline it was written on, and each promotion takes a new timeline that no other
//! takes. So two things never happen: an older timeline acknowledges a write that was *begun* after a newer one had acknowledged
//! one, and two nodes write on the same timeline. (An old acknowledgement that is only late proves nothing.)
//!
//! Beats that ask nobody (`synchronous_commit = local`) opted out of the rule; those of a deposed primary are counted, not failed.

use super::Least;
use super::case::{Case, line};
use crate::record::{At, Verdict};
use crate::workload::history::{Attempt, Beat, Confirm, Fate, Histories};
use std::collections::{BTreeMap, BTreeSet};

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

/// By the rule: a standby that a superuser promotes by hand takes a number of its own choice, which the next election may have claimed. What
/// it writes with nobody's confirmation opted out.
fn one_writer_each(histories: &Histories, case: &mut Case) {
    let mut writers: BTreeMap<u32, &Beat> = BTreeMap::new();
    for beat in histories.beats.iter().filter(|beat| beat.attempt.fate == Fate::Done && beat.confirm == Confirm::Rule) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, add, assert_failed, assert_passed, attempt};

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
        let beats = vec![beat("dc1", 2, 0, Confirm::Rule), beat("dc2", 2, 10, Confirm::Rule)];
        assert_failed(&check(&Histories { beats, ..Histories::default() }, LEAST), "was written by dc1 and by dc2");
    }

    #[test]
    fn a_timeline_that_was_taken_by_hand_too_has_one_writer_by_the_rule() {
        let one = |second| vec![beat("dc1", 2, 0, Confirm::Alone), beat("dc2", 2, 10, Confirm::Rule), beat("dc1", 2, 11, second)];
        assert_passed(&check(&Histories { beats: one(Confirm::Alone), ..Histories::default() }, LEAST));
        assert_failed(&check(&Histories { beats: one(Confirm::Rule), ..Histories::default() }, LEAST), "timeline 2 was written");
    }

    #[test]
    fn writes_that_asked_nobody_are_counted() {
        let beats = vec![beat("dc1", 1, 0, Confirm::Alone), beat("dc2", 2, 10, Confirm::Rule), beat("dc1", 1, 20, Confirm::Alone)];
        let verdict = check(&Histories { beats, ..Histories::default() }, LEAST);
        assert_passed(&verdict);
        assert_eq!(verdict.counts["local_writes_of_a_deposed_primary"], 1);
    }
}
