//! One word for a whole run, with the reasons: failed beats inconclusive, and passed needs that something happened.

use super::stats;
use super::text::plural;
use crate::record::{FaultRecord, Outcome, Record};

/// The word and why, most important first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub outcome: Outcome,
    pub reasons: Vec<String>,
}

/// A run passes when every checker that applies passed, there was at least one, and every fault took hold, in its phase.
pub fn judge(record: &Record) -> Judgement {
    let of = |outcome: Outcome| record.verdicts.iter().filter(move |verdict| verdict.outcome == outcome);
    let failed: Vec<String> = of(Outcome::Failed).map(|verdict| format!("{}: {}", verdict.checker, verdict.summary)).collect();
    let unsure = doubts(record);
    if !failed.is_empty() {
        return Judgement { outcome: Outcome::Failed, reasons: failed.into_iter().chain(unsure).collect() };
    }
    if !unsure.is_empty() {
        return Judgement { outcome: Outcome::Inconclusive, reasons: unsure };
    }
    let totals = stats::totals(record);
    let held = format!("{} of {} took hold", plural(totals.held, "fault"), plural(totals.kinds, "kind"));
    let passed = format!("{} found nothing wrong", plural(of(Outcome::Passed).count(), "checker"));
    Judgement { outcome: Outcome::Passed, reasons: vec![held, passed] }
}

/// Names in the reason; the table has them all.
const MISSED_SHOWN: usize = 6;

fn doubts(record: &Record) -> Vec<String> {
    let mut doubts = Vec::new();
    if record.verdicts.iter().all(|verdict| verdict.outcome == Outcome::NotApplicable) {
        doubts.push("no checker ran".to_owned());
    }
    // A calm run has none, and a verdict of its own on whether enough happened.
    if record.faults.is_empty() && !record.verdicts.iter().any(|verdict| verdict.checker == "calm") {
        doubts.push("no fault was injected".to_owned());
    }
    let unsure = record.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::Inconclusive);
    doubts.extend(unsure.map(|verdict| format!("{}: {}", verdict.checker, verdict.summary)));
    doubts.extend(some_that(record, "did not take hold", |fault| fault.took_hold.is_none()));
    doubts.extend(some_that(record, "missed the phase that they were to strike in", |fault| fault.missed.is_some()));
    doubts
}

/// "2 of 25 faults did what they did: #3 kill-node, #7 bridge"; `None`: none of them.
fn some_that(record: &Record, did: &str, which: impl Fn(&FaultRecord) -> bool) -> Option<String> {
    let named: Vec<String> = (1..).zip(&record.faults).filter(|(_, f)| which(f)).map(|(i, f)| format!("#{i} {}", f.name)).collect();
    if named.is_empty() {
        return None;
    }
    let total = plural(record.faults.len(), "fault");
    let shown = named.len().min(MISSED_SHOWN);
    let more = if named.len() > shown { format!(" and {} more", named.len() - shown) } else { String::new() };
    Some(format!("{} of {total} {did}: {}{more}", named.len(), named[..shown].join(", ")))
}

/// The word for people.
pub fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Inconclusive => "inconclusive",
        Outcome::Failed => "failed",
        Outcome::NotApplicable => "not applicable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_run_passes_only_when_all_took_hold_and_all_checkers_passed() {
        let record = sample::small();
        assert_eq!(judge(&record).outcome, Outcome::Passed);
        let mut missed = record.clone();
        missed.faults[1].took_hold = None;
        let judgement = judge(&missed);
        assert_eq!(judgement.outcome, Outcome::Inconclusive);
        assert!(judgement.reasons[0].contains("#2"), "{judgement:?}");
    }

    #[test]
    fn a_fault_that_struck_in_another_phase_than_it_should_concludes_nothing() {
        let mut record = sample::small();
        record.faults[2].missed = Some("election".to_owned());
        let judgement = judge(&record);
        assert_eq!(judgement.outcome, Outcome::Inconclusive);
        assert_eq!(judgement.reasons, ["1 of 3 faults missed the phase that they were to strike in: #3 isolate_primary"]);
    }

    #[test]
    fn failure_beats_doubt() {
        let mut record = sample::small();
        record.verdicts[0].outcome = Outcome::Inconclusive;
        record.verdicts[1].outcome = Outcome::Failed;
        let judgement = judge(&record);
        assert_eq!(judgement.outcome, Outcome::Failed);
        assert!(judgement.reasons[0].starts_with(&record.verdicts[1].checker));
        assert_eq!(judgement.reasons.len(), 2);
    }

    #[test]
    fn nothing_is_never_a_pass() {
        assert_eq!(judge(&Record::default()).outcome, Outcome::Inconclusive);
    }
}
