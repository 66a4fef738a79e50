//! Figures of a record. Only faults that took hold count; what was not seen is `None`, never zero.

use super::text::millis_between;
use crate::record::{At, FaultRecord, Record, changes};
use std::collections::{BTreeMap, BTreeSet};

/// How some durations (milliseconds) are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    pub n: usize,
    pub min: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = u64>) -> Option<Spread> {
        let mut sorted: Vec<u64> = values.into_iter().collect();
        sorted.sort_unstable();
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        Some(Spread { n: sorted.len(), min, p50: nearest_rank(&sorted, 0.5), p99: nearest_rank(&sorted, 0.99), max })
    }
}

/// The smallest value that at least a share `q` of `sorted` (not empty) does not exceed.
fn nearest_rank(sorted: &[u64], q: f64) -> u64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// All faults of one name.
#[derive(Clone, Debug)]
pub struct Kind<'a> {
    pub name: &'a str,
    pub injected: usize,
    pub held: usize,
    /// Of those that took hold.
    pub outages_ms: Vec<u64>,
    pub outage: Option<Spread>,
    pub writable: Option<Spread>,
    pub redundant: Option<Spread>,
}

/// One entry per name, by median outage from long to short, then by name.
pub fn kinds(record: &Record) -> Vec<Kind<'_>> {
    let mut by_name: BTreeMap<&str, Vec<&FaultRecord>> = BTreeMap::new();
    for fault in &record.faults {
        by_name.entry(&fault.name).or_default().push(fault);
    }
    let mut kinds: Vec<Kind> = by_name.into_iter().map(|(name, faults)| kind(name, &faults)).collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.outage.map(|outage| outage.p50)));
    kinds
}

fn kind<'a>(name: &'a str, faults: &[&FaultRecord]) -> Kind<'a> {
    let held: Vec<&&FaultRecord> = faults.iter().filter(|fault| fault.took_hold.is_some()).collect();
    let outages_ms: Vec<u64> = held.iter().filter_map(|fault| fault.outage_ms).collect();
    Kind {
        name,
        injected: faults.len(),
        held: held.len(),
        outage: Spread::of(outages_ms.iter().copied()),
        outages_ms,
        writable: Spread::of(held.iter().filter_map(|fault| fault.writable_after_heal_ms)),
        redundant: Spread::of(held.iter().filter_map(|fault| fault.redundant_after_heal_ms)),
    }
}

/// Figures of the whole run.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    pub faults: usize,
    pub held: usize,
    pub kinds: usize,
    /// Primaryships after the first.
    pub changes: usize,
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
    /// Of faults that took hold.
    pub outage: Option<Spread>,
    pub writable: Option<Spread>,
    pub redundant: Option<Spread>,
    /// Time without any acknowledged write, milliseconds.
    pub silent_ms: u64,
}

pub fn totals(record: &Record) -> Totals {
    let held = || record.faults.iter().filter(|fault| fault.took_hold.is_some());
    let sum = |of: fn(&crate::record::Sample) -> u32| record.samples.iter().map(|sample| u64::from(of(sample))).sum();
    Totals {
        faults: record.faults.len(),
        held: held().count(),
        kinds: record.faults.iter().map(|fault| fault.name.as_str()).collect::<BTreeSet<_>>().len(),
        changes: changes(&record.primaries).len(),
        acknowledged: sum(|sample| sample.acknowledged),
        refused: sum(|sample| sample.refused),
        unknown: sum(|sample| sample.unknown),
        outage: Spread::of(held().filter_map(|fault| fault.outage_ms)),
        writable: Spread::of(held().filter_map(|fault| fault.writable_after_heal_ms)),
        redundant: Spread::of(held().filter_map(|fault| fault.redundant_after_heal_ms)),
        silent_ms: record.outages.iter().map(|outage| millis_between(outage.from, outage.to)).sum(),
    }
}

/// Writes refused and of unknown outcome from the fault with this index to the next one, or to the end.
pub fn errors(record: &Record, index: usize) -> (u64, u64) {
    let from = record.faults.get(index).map_or(At(0), |fault| fault.from);
    let to = record.faults.get(index + 1).map_or(At(u64::MAX), |fault| fault.from);
    // A sample is named by the beginning of its second.
    let within = record.samples.iter().filter(|sample| sample.at.0 + 1_000_000 > from.0 && sample.at.0 + 1_000_000 <= to.0);
    within.fold((0, 0), |sum, sample| (sum.0 + u64::from(sample.refused), sum.1 + u64::from(sample.unknown)))
}

/// What the checkers counted under `name` together; `None` where none counts it.
pub fn counted(record: &Record, name: &str) -> Option<u64> {
    let counts: Vec<u64> = record.verdicts.iter().filter_map(|verdict| verdict.counts.get(name).copied()).collect();
    (!counts.is_empty()).then(|| counts.iter().sum())
}

/// The datacenters by name.
pub fn sites(record: &Record) -> Vec<&str> {
    let sampled = record.samples.iter().map(|sample| sample.site.as_str());
    let reigned = record.primaries.iter().map(|reign| reign.node.as_str());
    sampled.chain(reigned).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Where the record ends: its duration, or the last thing in it where the run broke off before one was set.
pub fn end(record: &Record) -> At {
    let faults = record.faults.iter().map(|fault| fault.to);
    let reigns = record.primaries.iter().map(|reign| reign.to);
    let samples = record.samples.iter().map(|sample| At(sample.at.0 + 1_000_000));
    faults.chain(reigns).chain(samples).chain([record.duration]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([7]), Some(Spread { n: 1, min: 7, p50: 7, p99: 7, max: 7 }));
        assert_eq!(Spread::of((1..=200).rev()), Some(Spread { n: 200, min: 1, p50: 100, p99: 198, max: 200 }));
    }

    #[test]
    fn faults_that_did_not_take_hold_count_in_no_figure() {
        let mut record = sample::small();
        record.faults[0].took_hold = None;
        record.faults[0].outage_ms = Some(99_999);
        assert!(totals(&record).outage.is_none_or(|outage| outage.max < 99_999));
        let kinds = kinds(&record);
        let kind = kinds.iter().find(|kind| kind.name == record.faults[0].name).expect("a kind for each name");
        assert!(kind.held < kind.injected && !kind.outages_ms.contains(&99_999));
    }

    #[test]
    fn a_change_of_epoch_is_a_change_of_primary_even_on_the_same_node() {
        let mut record = sample::small();
        let mut again = record.primaries[0].clone();
        record.primaries = vec![again.clone(), again.clone()];
        assert_eq!(totals(&record).changes, 0);
        again.epoch += 1;
        record.primaries.push(again);
        assert_eq!(totals(&record).changes, 1);
    }

    #[test]
    fn what_no_checker_counted_is_not_zero() {
        let record = sample::small();
        assert_eq!(counted(&record, "lost"), Some(0));
        assert_eq!(counted(&record, "no such figure"), None);
    }
}
