//! One word for a whole run, with the reasons: failed beats inconclusive, and passed needs that something happened.

use super::stats;
use super::text::plural;
use crate::record::{Outcome, Record};

/// The word and why, most important first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub outcome: Outcome,
    pub reasons: Vec<String>,
}

/// A run passes when every checker that applies passed, there was at least one, and every fault took hold.
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
    let missed: Vec<String> =
        (1..).zip(&record.faults).filter(|(_, f)| f.took_hold.is_none()).map(|(i, f)| format!("#{i} {}", f.name)).collect();
    if !missed.is_empty() {
        let total = plural(record.faults.len(), "fault");
        let shown = missed.len().min(MISSED_SHOWN);
        let more = if missed.len() > shown { format!(" and {} more", missed.len() - shown) } else { String::new() };
        doubts.push(format!("{} of {total} did not take hold: {}{more}", missed.len(), missed[..shown].join(", ")));
    }
    doubts
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
