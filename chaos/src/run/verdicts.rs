//! What the run itself can judge: did the cluster come back by itself, and did nothing happen without a cause. PURE.
//!
//! Also fills in, from the acknowledgements that all clients got, how long each fault kept everybody from writing.

use super::step::{Done, WRITABLE_LIMIT, millis};
use super::watch::Turn;
use crate::fault::{Expected, Fault};
use crate::record::{At, FaultRecord, Outcome, Reign, Steps, Verdict, changes};
use crate::report::Spread;
use std::collections::BTreeMap;
use std::time::Duration;

/// Targets for the 99th percentile; missed ones are told, and only what did not come back within its limit fails.
const WRITABLE_TARGET_MS: u64 = 5_000;
const REDUNDANT_TARGET_MS: u64 = 60_000;
/// Without any fault a gap this long is an outage: longer than the longest lease in use (8 s where the lines are far).
const CALM_GAP_MAX_MS: u64 = 10_000;
/// A change of primary is seen this much later than its cause, at most, once the cluster is whole again.
const SLACK: Duration = Duration::from_secs(3);
/// With fewer acknowledged writes than this per fault nothing is learned about losing them.
const WRITES_PER_FAULT_MIN: u64 = 20;

/// A time in which changes of primary have a cause.
#[derive(Clone, Copy, Debug)]
pub struct Cause {
    pub from: At,
    pub to: At,
}

/// What was seen from outside while the run went. All are sorted.
pub struct Seen<'a> {
    /// Instants at which a write was acknowledged to somebody.
    pub acknowledged: &'a [At],
    pub reigns: &'a [Reign],
    pub turns: &'a [Turn],
    /// The end of the run.
    pub end: At,
}

/// Fill in outage and return of every fault of a step, and the first failover in its wake.
pub fn measure(done: &mut Done, seen: &Seen<'_>) {
    let (acknowledged, now) = (seen.acknowledged, seen.end);
    let first = acknowledged.partition_point(|at| *at <= done.healed);
    let writable = acknowledged.get(first).map(|at| millis(at.since(done.healed)));
    let end = done.over().unwrap_or(now);
    for record in &mut done.records {
        record.writable_after_heal_ms = writable;
        record.outage_ms = longest_gap(acknowledged, record.from, end).map(millis);
        record.steps = steps(record.from, end, seen);
    }
}

/// The first failover between `from` and `to`; `None`: there was none.
fn steps(from: At, to: At, seen: &Seen<'_>) -> Option<Steps> {
    let within = |at: At| from <= at && at <= to;
    let noticed = seen.turns.iter().find(|t| within(t.at) && t.phase == "electing")?;
    let elected = seen.turns.iter().find(|t| t.at >= noticed.at && t.epoch >= noticed.epoch && t.phase == "promoting");
    let promoted = seen.reigns.iter().filter(|r| r.epoch >= noticed.epoch && within(r.from)).map(|r| r.from).min();
    let first_write = promoted.and_then(|at| seen.acknowledged.get(seen.acknowledged.partition_point(|a| *a < at)).copied());
    Some(Steps { noticed: Some(noticed.at), elected: elected.map(|t| t.at), promoted, first_write })
}

/// Longest time between two acknowledgements that overlaps `from`..`to`; one that has not ended counts up to `to`.
fn longest_gap(acknowledged: &[At], from: At, to: At) -> Option<Duration> {
    let begin = acknowledged.partition_point(|at| *at <= from);
    let mut before = begin.checked_sub(1).and_then(|i| acknowledged.get(i).copied()).unwrap_or(from);
    let mut longest = None;
    for at in acknowledged.iter().skip(begin).copied() {
        longest = longest.max(Some(at.since(before)));
        before = at;
        if at > to {
            return longest;
        }
    }
    longest.max(Some(to.since(before)))
}

/// Liveness: after each fault the cluster became writable and whole, without hands, and it did with the fault what it should.
pub fn availability(steps: &[Done], catalogue: &[Fault]) -> Verdict {
    let mut verdict = Verdict { checker: "availability".to_owned(), outcome: Outcome::Inconclusive, ..Verdict::default() };
    let handled = |record: &FaultRecord| {
        let known = catalogue.iter().find(|f| f.name == record.name);
        known.is_none_or(|f| f.expected == Expected::Handled)
    };
    let held = |d: &&Done| d.records.iter().any(|r| r.took_hold.is_some());
    let (mut writable, mut redundant, mut broken) = (Vec::new(), Vec::new(), 0);
    for done in steps {
        let is_handled = done.records.iter().all(handled);
        if is_handled {
            broken += done.broken.len() as u64;
            verdict.witness.extend(done.broken.iter().cloned());
        }
        if !held(&done) {
            continue;
        }
        let first = done.records.first();
        writable.extend(first.and_then(|r| r.writable_after_heal_ms));
        redundant.extend(first.and_then(|r| r.redundant_after_heal_ms));
        if is_handled {
            verdict.witness.extend(stayed_away(done));
        }
    }
    let came_back = redundant.len();
    let (writable, redundant) = (Spread::of(writable), Spread::of(redundant));
    let p50 = |spread: Option<Spread>| spread.map_or(0, |spread| spread.p50);
    let p99 = |spread: Option<Spread>| spread.map_or(0, |spread| spread.p99);
    let (writable_p99, redundant_p99) = (p99(writable), p99(redundant));
    verdict.counts = BTreeMap::from([
        ("steps".to_owned(), steps.len() as u64),
        ("broken".to_owned(), broken),
        ("writable_p50_ms".to_owned(), p50(writable)),
        ("writable_p99_ms".to_owned(), writable_p99),
        ("redundant_p50_ms".to_owned(), p50(redundant)),
        ("redundant_p99_ms".to_owned(), redundant_p99),
    ]);
    verdict.outcome = match (verdict.witness.is_empty(), came_back) {
        (false, _) => Outcome::Failed,
        (true, 0) => Outcome::Inconclusive,
        (true, _) => Outcome::Passed,
    };
    let within = writable_p99 <= WRITABLE_TARGET_MS && redundant_p99 <= REDUNDANT_TARGET_MS;
    verdict.summary = format!(
        "{}{came_back} of {} returns by itself; after the heal writable p99 {writable_p99} ms, redundant p99 {redundant_p99} ms ({})",
        if broken > 0 { format!("wrong answers to faults: {broken}; ") } else { String::new() },
        steps.iter().filter(held).count(),
        if within { "within the targets of 5 s and 60 s" } else { "targets are 5 s and 60 s" }
    );
    verdict
}

/// What did not come back after a step, and what was noted of it.
fn stayed_away(done: &Done) -> Vec<String> {
    let names: Vec<&str> = done.records.iter().map(|r| r.name.as_str()).collect();
    let healed = format!("{} healed at {:.1} s", names.join(" + "), seconds(done.healed));
    let mut lines = match done.records.first().and_then(|r| r.writable_after_heal_ms) {
        None => vec![format!("{healed}: no write was acknowledged afterwards")],
        Some(ms) if ms > millis(WRITABLE_LIMIT) => vec![format!("{healed}: no write was acknowledged for {ms} ms afterwards")],
        Some(_) => Vec::new(),
    };
    if done.whole.is_none() {
        lines.push(format!("{healed}: not redundant by itself afterwards"));
    }
    if !lines.is_empty() {
        lines.extend(done.notes.iter().cloned());
    }
    lines
}

/// No change of primary but in the wake of a fault or a command.
pub fn causes(reigns: &[Reign], causes: &[Cause]) -> Verdict {
    let mut verdict = Verdict { checker: "cause".to_owned(), ..Verdict::default() };
    let changes = changes(reigns);
    for (before, reign) in &changes {
        if !causes.iter().any(|c| c.from <= reign.from && reign.from <= c.to.after(SLACK)) {
            verdict.witness.push(format!(
                "{:.1} s: {} became primary of epoch {} in place of {} (epoch {}), with no fault or command at work",
                seconds(reign.from),
                reign.node,
                reign.epoch,
                before.node,
                before.epoch
            ));
        }
    }
    let changes = changes.len() as u64;
    let without = verdict.witness.len() as u64;
    verdict.counts = BTreeMap::from([("changes".to_owned(), changes), ("without_cause".to_owned(), without)]);
    verdict.outcome = match (without, reigns.is_empty()) {
        (0, false) => Outcome::Passed,
        (0, true) => Outcome::Inconclusive,
        (_, _) => Outcome::Failed,
    };
    verdict.summary = format!("{changes} changes of primary, {without} without a cause");
    verdict
}

/// No process of a node ended while nothing was broken: who starts it again hides it.
pub fn ends(unprovoked: Vec<String>) -> Verdict {
    let outcome = if unprovoked.is_empty() { Outcome::Passed } else { Outcome::Failed };
    Verdict {
        checker: "ends".to_owned(),
        outcome,
        summary: format!("{} processes ended by themselves while nothing was broken", unprovoked.len()),
        counts: BTreeMap::from([("unprovoked".to_owned(), unprovoked.len() as u64)]),
        witness: unprovoked,
    }
}

/// Did enough happen to conclude anything?
pub fn enough(acknowledged: u64, faults: usize) -> Verdict {
    let least = WRITES_PER_FAULT_MIN * (faults as u64 + 1);
    let outcome = if acknowledged >= least && faults > 0 { Outcome::Passed } else { Outcome::Inconclusive };
    Verdict {
        checker: "workload".to_owned(),
        outcome,
        summary: format!("{acknowledged} writes acknowledged under {faults} faults (at least {least} are wanted)"),
        counts: BTreeMap::from([("acknowledged".to_owned(), acknowledged), ("faults".to_owned(), faults as u64)]),
        witness: Vec::new(),
    }
}

/// Nothing was broken: was it written all the time? Lines that lose packets make gaps of seconds by themselves.
pub fn calm(acknowledged: &[At], from: At, to: At) -> Verdict {
    let gap = longest_gap(acknowledged, from, to).map_or(u64::MAX, millis);
    let (count, seconds) = (acknowledged.len() as u64, to.since(from).as_secs());
    let outcome = match (count >= seconds.max(WRITES_PER_FAULT_MIN), gap <= CALM_GAP_MAX_MS) {
        (false, _) => Outcome::Inconclusive,
        (true, true) => Outcome::Passed,
        (true, false) => Outcome::Failed,
    };
    let witness = if outcome == Outcome::Failed { vec![format!("no write was acknowledged for {gap} ms")] } else { Vec::new() };
    Verdict {
        checker: "calm".to_owned(),
        outcome,
        summary: format!("{count} writes acknowledged in {seconds} s (one a second is wanted), the longest gap {gap} ms"),
        counts: BTreeMap::from([("acknowledged".to_owned(), count), ("longest_gap_ms".to_owned(), gap)]),
        witness,
    }
}

fn seconds(at: At) -> f64 {
    Duration::from_micros(at.0).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> At {
        At(ms * 1_000)
    }

    fn reign(node: &str, epoch: u64, from: u64, to: u64) -> Reign {
        Reign { node: node.into(), epoch, timeline: 1, from: at(from), to: at(to) }
    }

    #[test]
    fn an_outage_is_the_longest_gap_that_overlaps_the_fault() {
        let acknowledged = [at(0), at(100), at(4_000), at(4_100), at(4_200)];
        let mut done = Done { healed: at(3_900), whole: Some(at(4_150)), ..Done::default() };
        done.records.push(FaultRecord { from: at(500), ..FaultRecord::default() });
        measure(&mut done, &Seen { acknowledged: &acknowledged, reigns: &[], turns: &[], end: at(9_000) });
        assert_eq!(done.records[0].outage_ms, Some(3_900));
        assert_eq!(done.records[0].writable_after_heal_ms, Some(100));
    }

    #[test]
    fn a_failover_is_told_in_its_steps() {
        let turn = |ms, epoch, phase: &str| Turn { at: at(ms), epoch, phase: phase.into() };
        let turns = [turn(0, 1, "steady"), turn(3_000, 2, "electing"), turn(3_200, 2, "promoting"), turn(3_600, 2, "steady")];
        let reigns = [reign("dc1", 1, 0, 900), reign("dc2", 2, 3_500, 9_000)];
        let seen = Seen { acknowledged: &[at(900), at(3_550), at(3_700)], reigns: &reigns, turns: &turns, end: at(9_000) };
        let found = steps(at(1_000), at(5_000), &seen).unwrap();
        assert_eq!((found.noticed, found.elected), (Some(at(3_000)), Some(at(3_200))));
        assert_eq!((found.promoted, found.first_write), (Some(at(3_500)), Some(at(3_550))));
        assert_eq!(steps(at(4_000), at(5_000), &seen), None);
    }

    #[test]
    fn an_outage_without_an_end_counts_to_the_end() {
        assert_eq!(longest_gap(&[at(0), at(100)], at(50), at(2_100)), Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_change_of_primary_out_of_nothing_fails() {
        let reigns = [reign("dc1", 1, 0, 5_000), reign("dc2", 2, 6_000, 20_000), reign("dc3", 3, 30_000, 40_000)];
        let fault = Cause { from: at(4_000), to: at(8_000) };
        let verdict = causes(&reigns, &[fault]);
        assert_eq!(verdict.outcome, Outcome::Failed);
        assert_eq!(verdict.witness.len(), 1, "{:?}", verdict.witness);
        assert!(verdict.witness[0].contains("dc3"));
        let later = Cause { from: at(28_000), to: at(29_000) };
        assert_eq!(causes(&reigns, &[fault, later]).outcome, Outcome::Passed);
    }

    #[test]
    fn a_stale_primary_that_is_still_there_is_no_change() {
        let reigns = [reign("dc1", 1, 0, 9_000), reign("dc2", 2, 6_000, 20_000), reign("dc1", 1, 11_000, 12_000)];
        let verdict = causes(&reigns, &[Cause { from: at(5_000), to: at(7_000) }]);
        assert_eq!((verdict.outcome, verdict.counts["changes"]), (Outcome::Passed, 1));
    }

    #[test]
    fn a_calm_run_fails_by_a_gap_and_says_nothing_where_nobody_wrote() {
        let every = |ms: u64| (0..60_000 / ms).map(|i| at(i * ms)).collect::<Vec<_>>();
        let outcome = |acknowledged: &[At]| calm(acknowledged, at(0), at(60_000)).outcome;
        assert_eq!(outcome(&every(500)), Outcome::Passed);
        assert_eq!(outcome(&every(6_000)), Outcome::Inconclusive, "ten writes in a minute say nothing");
        let gap: Vec<At> = every(100).into_iter().filter(|a| !(at(20_000)..at(32_000)).contains(a)).collect();
        assert_eq!(outcome(&gap), Outcome::Failed);
    }

    #[test]
    fn a_return_that_did_not_happen_fails() {
        let mut done = Done { healed: at(1_000), whole: None, ..Done::default() };
        done.records.push(FaultRecord { name: "x".into(), took_hold: Some("seen".into()), ..FaultRecord::default() });
        assert_eq!(availability(&[done], &[]).outcome, Outcome::Failed);
        assert_eq!(availability(&[], &[]).outcome, Outcome::Inconclusive);
    }

    /// A step with one fault that took hold and healed, and after which all streamed at once.
    fn came_back(name: &str, writable_ms: Option<u64>) -> Done {
        let record = FaultRecord {
            name: name.into(),
            took_hold: Some("seen".into()),
            writable_after_heal_ms: writable_ms,
            redundant_after_heal_ms: Some(1_000),
            ..FaultRecord::default()
        };
        Done { records: vec![record], healed: at(1_000), whole: Some(at(2_000)), ..Done::default() }
    }

    #[test]
    fn a_cluster_that_streams_and_takes_no_writes_has_not_come_back() {
        assert_eq!(availability(&[came_back("x", Some(60_000))], &[]).outcome, Outcome::Passed);
        for writable in [None, Some(60_001)] {
            let verdict = availability(&[came_back("x", Some(20)), came_back("y", writable)], &[]);
            assert_eq!(verdict.outcome, Outcome::Failed, "{writable:?}");
            assert!(verdict.witness[0].contains("y healed at 1.0 s: no write"), "{:?}", verdict.witness);
        }
    }

    #[test]
    fn what_is_known_not_to_be_handled_may_stay_away() {
        let gap = crate::fault::catalogue().iter().find(|f| matches!(f.expected, Expected::Known(_))).unwrap();
        let mut done = came_back(gap.name, None);
        done.broken.push("it did as it liked".to_owned());
        assert_eq!(availability(&[done], crate::fault::catalogue()).outcome, Outcome::Passed);
    }

    #[test]
    fn what_the_program_did_wrong_fails_also_where_the_fault_did_not_take_hold() {
        let mut done = came_back("x", Some(20));
        done.records[0].took_hold = None;
        done.broken.push("dc1 ended with exit status: 3 after SIGTERM".to_owned());
        let verdict = availability(&[came_back("y", Some(20)), done], &[]);
        assert_eq!(verdict.outcome, Outcome::Failed);
        assert_eq!(verdict.witness, ["dc1 ended with exit status: 3 after SIGTERM"]);
    }
}
