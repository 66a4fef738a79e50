//! Several runs as one body of evidence: what they sum up to, as Markdown.

use super::markdown::{cell, kinds_table};
use super::outcome::{judge, word};
use super::stats::{self, Totals};
use super::text::{count, plural, whole_instant};
use crate::record::{At, Outcome, Record};
use std::collections::BTreeMap;

/// A paragraph, what each checker said how often, and tables of outages by kind of fault: an election under which the next fault strikes
/// has taken a datacenter away already, so that it cannot be as short.
pub fn together(records: &[Record]) -> String {
    let totals: Vec<Totals> = records.iter().map(stats::totals).collect();
    let sum = |of: fn(&Totals) -> u64| totals.iter().map(of).sum::<u64>();
    let runs = |outcome: Outcome| records.iter().filter(|record| judge(record).outcome == outcome).count();
    // Faults only: what else a record holds has a time of its own.
    let faults = Record { faults: records.iter().flat_map(|r| r.faults.iter().cloned()).collect(), ..Record::default() };
    let all = stats::totals(&faults);
    let held = stats::kinds(&faults).iter().filter(|kind| kind.held > 0).count();
    let time = At(records.iter().map(|record| stats::end(record).0).sum());
    let mut text = format!(
        "{} in {}: {} *passed*, {} *inconclusive*, {} *failed*. {} of {} took hold, of {}; {} of primary; {} writes acknowledged, {} refused, \
         {} unknown.\n\n",
        plural(records.len(), "run"),
        whole_instant(time),
        runs(Outcome::Passed),
        runs(Outcome::Inconclusive),
        runs(Outcome::Failed),
        count(all.held as u64),
        plural(all.faults, "fault"),
        plural(held, "kind"),
        plural(totals.iter().map(|t| t.changes).sum(), "change"),
        count(sum(|t| t.acknowledged)),
        count(sum(|t| t.refused)),
        count(sum(|t| t.unknown)),
    );
    text += &checkers(records);
    for (title, alone) in [(PEACE, true), (CHANGE, false)] {
        let part = Record { faults: faults.faults.iter().filter(|f| f.is_alone() == alone).cloned().collect(), ..Record::default() };
        if !part.faults.is_empty() {
            text += &format!("\n### {title}\n\n{}", kinds_table(&part));
        }
    }
    text
}

/// Above the faults that met a sound cluster, and above the others.
const PEACE: &str = "Struck while all was well";
const CHANGE: &str = "Struck during a change, for which something had been broken before";

/// How often a checker said what, and its figures.
type Row<'r> = (BTreeMap<Outcome, usize>, BTreeMap<&'r str, u64>);

/// One row per checker: how many runs it passed, and its figures added up.
fn checkers(records: &[Record]) -> String {
    let mut rows: BTreeMap<&str, Row<'_>> = BTreeMap::new();
    for verdict in records.iter().flat_map(|record| &record.verdicts) {
        let (outcomes, counts) = rows.entry(&verdict.checker).or_default();
        *outcomes.entry(verdict.outcome).or_default() += 1;
        // Quantiles do not add up.
        for (name, figure) in verdict.counts.iter().filter(|(name, _)| !name.ends_with("_ms")) {
            *counts.entry(name).or_default() += figure;
        }
    }
    let mut text = "| checker | verdicts | figures of all runs |\n|---|---|---|\n".to_owned();
    for (checker, (outcomes, counts)) in rows {
        let said: Vec<String> = outcomes.iter().map(|(outcome, n)| format!("{n} {}", word(*outcome))).collect();
        let figures: Vec<String> = counts.iter().map(|(name, figure)| format!("{name} {}", count(*figure))).collect();
        text += &format!("| {} | {} | {} |\n", cell(checker), said.join(", "), cell(&figures.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn runs_add_up_and_the_step_from_one_to_the_next_is_no_change_of_primary() {
        let mut one = sample::small();
        one.faults[0].phase = "drain".to_owned();
        let changes = stats::totals(&one).changes;
        let text = together(&[one.clone(), one.clone()]);
        assert!(text.starts_with("2 runs in "), "{text}");
        assert!(text.contains(&format!("6 of 6 faults took hold, of 2 kinds; {} of primary", plural(2 * changes, "change"))), "{text}");
        let held: Vec<&str> =
            text.lines().filter(|line| line.starts_with("| **all** |")).filter_map(|line| line.split('|').nth(2)).collect();
        assert_eq!(held, [" 4 of 4 ", " 2 of 2 "], "{text}");
    }

    #[test]
    fn a_kind_that_never_took_hold_is_not_counted() {
        let mut one = sample::small();
        one.faults[0].took_hold = None;
        assert!(together(&[one]).contains("2 of 3 faults took hold, of 2 kinds;"));
    }
}
