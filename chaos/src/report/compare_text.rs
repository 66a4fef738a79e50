//! Several records side by side without a browser: aligned for a terminal, as Markdown for documents, as JSON for programs.

use super::outcome::{judge, word};
use super::stats::{self, Totals};
use super::text::{count, millis_or_dash};
use crate::record::{FaultRecord, Outcome, Record};
use serde::Serialize;
use std::collections::BTreeMap;

/// A row's name, and a cell for each record.
type Row = (String, Vec<String>);

/// A figure's name, and how it is taken.
type Figure = (&'static str, fn(&Record, &Totals) -> String);

/// What a record is called beside others.
pub fn label(record: &Record) -> &str {
    if record.system.is_empty() { "unnamed" } else { &record.system }
}

/// For each fault that any record has, in the order of the first: outage, then what clients were told other than yes.
fn fault_rows(records: &[Record]) -> Vec<Row> {
    let mut names: Vec<&str> = Vec::new();
    for fault in records.iter().flat_map(|record| &record.faults) {
        if !names.contains(&fault.name.as_str()) {
            names.push(&fault.name);
        }
    }
    names.into_iter().map(|name| (name.to_owned(), records.iter().map(|record| fault_cell(record, name)).collect())).collect()
}

/// Where a fault was injected several times: the median outage, and all errors.
fn fault_cell(record: &Record, name: &str) -> String {
    let kinds = stats::kinds(record);
    let Some(outage) = kinds.iter().find(|kind| kind.name == name).and_then(|kind| kind.outage) else { return "–".to_owned() };
    let faults = (0..).zip(&record.faults).filter(|(_, fault)| fault.name == name);
    let errors = faults.map(|(at, _)| stats::errors(record, at)).fold((0, 0), |sum, e| (sum.0 + e.0, sum.1 + e.1));
    format!("{} ({} / {})", millis_or_dash(Some(outage.p50)), count(errors.0), count(errors.1))
}

fn total_rows(records: &[Record]) -> Vec<Row> {
    let figures: [Figure; 8] = [
        ("writes acknowledged", |_, totals| count(totals.acknowledged)),
        ("refused", |_, totals| count(totals.refused)),
        ("outcome unknown", |_, totals| count(totals.unknown)),
        ("acknowledged and lost", |record, _| stats::counted(record, "lost").map_or_else(|| "–".to_owned(), count)),
        ("applied twice", |record, _| stats::counted(record, "duplicated").map_or_else(|| "–".to_owned(), count)),
        ("checkers that failed", |record, _| failed(record)),
        ("heal → redundant, worst", |_, totals| millis_or_dash(totals.redundant.map(|redundant| redundant.max))),
        ("verdict", |record, _| word(judge(record).outcome).to_owned()),
    ];
    let totals: Vec<Totals> = records.iter().map(stats::totals).collect();
    let row =
        |(name, figure): Figure| (name.to_owned(), records.iter().zip(&totals).map(|(record, totals)| figure(record, totals)).collect());
    figures.into_iter().map(row).collect()
}

fn failed(record: &Record) -> String {
    let failed: Vec<&str> = record.verdicts.iter().filter(|v| v.outcome == Outcome::Failed).map(|v| v.checker.as_str()).collect();
    if failed.is_empty() { "none".to_owned() } else { failed.join(", ") }
}

const HEAD: &str = "outage (refused / unknown)";

/// For a terminal.
pub fn side_by_side(records: &[Record]) -> String {
    let head: Row = (HEAD.to_owned(), records.iter().map(|record| label(record).to_owned()).collect());
    let rows: Vec<Row> = std::iter::once(head).chain(fault_rows(records)).chain(total_rows(records)).collect();
    let first = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|(_, cells)| cells.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..records.len()).map(width).collect();
    let line = |(name, cells): &Row| {
        let cells: String = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:>width$}")).collect();
        format!("{name:<first$}{cells}\n")
    };
    rows.iter().map(line).collect()
}

/// For documents.
pub fn table(records: &[Record]) -> String {
    let labels: Vec<&str> = records.iter().map(label).collect();
    let mut text = format!("| {HEAD} | {} |\n|---|{}\n", labels.join(" | "), "--:|".repeat(records.len()));
    for (name, cells) in fault_rows(records) {
        text += &format!("| `{name}` | {} |\n", cells.join(" | "));
    }
    for (name, cells) in total_rows(records) {
        text += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    text
}

/// One system's figures.
#[derive(Serialize)]
struct Figures<'a> {
    system: &'a str,
    command: &'a str,
    began: &'a str,
    world: &'a str,
    versions: &'a BTreeMap<String, String>,
    verdict: &'static str,
    acknowledged: u64,
    refused: u64,
    unknown: u64,
    lost: Option<u64>,
    duplicated: Option<u64>,
    faults: Vec<Fault<'a>>,
    checkers: BTreeMap<&'a str, &'static str>,
    /// Settings among them.
    notes: &'a [String],
}

#[derive(Serialize)]
struct Fault<'a> {
    #[serde(flatten)]
    record: &'a FaultRecord,
    refused: u64,
    unknown: u64,
}

/// For programs.
pub fn figures(records: &[Record]) -> serde_json::Result<String> {
    let all: Vec<Figures> = records.iter().map(of).collect();
    serde_json::to_string_pretty(&all)
}

fn of(record: &Record) -> Figures<'_> {
    let totals = stats::totals(record);
    let faults = (0..).zip(&record.faults).map(|(at, fault)| {
        let (refused, unknown) = stats::errors(record, at);
        Fault { record: fault, refused, unknown }
    });
    Figures {
        system: label(record),
        command: &record.command,
        began: &record.began,
        world: &record.world,
        versions: &record.versions,
        verdict: word(judge(record).outcome),
        acknowledged: totals.acknowledged,
        refused: totals.refused,
        unknown: totals.unknown,
        lost: stats::counted(record, "lost"),
        duplicated: stats::counted(record, "duplicated"),
        faults: faults.collect(),
        checkers: record.verdicts.iter().map(|v| (v.checker.as_str(), word(v.outcome))).collect(),
        notes: &record.notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn two() -> Vec<Record> {
        let (mut ours, mut theirs) = (sample::small(), sample::failed());
        "ours".clone_into(&mut ours.system);
        "theirs".clone_into(&mut theirs.system);
        vec![ours, theirs]
    }

    #[test]
    fn every_line_is_as_wide_as_the_first() {
        let text = side_by_side(&two());
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(text.contains("isolate_primary"), "{text}");
    }

    #[test]
    fn what_a_record_did_not_measure_is_a_dash() {
        let mut records = two();
        records[1].faults.retain(|fault| fault.name != "isolate_primary");
        let row = table(&records).lines().find(|line| line.contains("`isolate_primary`")).map(str::to_owned).unwrap();
        assert!(row.ends_with("| – |"), "{row}");
    }

    #[test]
    fn programs_find_every_system_and_fault() {
        let parsed: serde_json::Value = serde_json::from_str(&figures(&two()).unwrap()).unwrap();
        assert_eq!(parsed[1]["system"], "theirs");
        assert_eq!(parsed[0]["faults"].as_array().map(Vec::len), Some(sample::small().faults.len()));
    }
}
