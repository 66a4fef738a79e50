//! Tables and lists of the page. On a narrow screen each row becomes a card: every cell carries its column's name.

use super::outcome::word;
use super::stats::{self, Spread};
use super::text::{count, escape, instant, millis, millis_between, millis_or_dash};
use crate::record::{Outcome, Record, Verdict};

/// One cell: its column's name, its class, its markup.
fn cell(column: &str, class: &str, content: &str) -> String {
    format!("<td data-label=\"{column}\" class=\"{class}\">{content}</td>")
}

fn head(columns: &[(&str, &str)]) -> String {
    let cells: String = columns.iter().map(|(name, class)| format!("<th class=\"{class}\">{name}</th>")).collect();
    format!("<thead><tr>{cells}</tr></thead>\n")
}

/// Every fault with its proof; rows are numbered as in the timeline.
pub fn faults(record: &Record) -> String {
    let columns = [
        ("#", "number"),
        ("at", "number"),
        ("fault", ""),
        ("aim", ""),
        ("phase", ""),
        ("lasted", "number"),
        ("outage", "number"),
        ("heal → writable", "number"),
        ("heal → redundant", "number"),
        ("proof that it took hold", ""),
    ];
    let mut rows = String::new();
    for (number, fault) in (1..).zip(&record.faults) {
        let unsure = if fault.took_hold.is_some() && fault.missed.is_none() { "" } else { " class=\"unsure\"" };
        let phase = fault.missed.as_ref().map_or_else(|| escape(&fault.phase), |phase| format!("<b>missed {}</b>", escape(phase)));
        let proof = fault.took_hold.as_deref().map_or_else(|| "<b>did not take hold</b>".to_owned(), escape);
        rows += &format!("<tr id=\"fault-{number}\"{unsure}>");
        rows += &cell("#", "number", &number.to_string());
        rows += &cell("at", "number", &instant(fault.from));
        rows += &cell("fault", "name", &escape(&fault.name));
        rows += &cell("aim", "wide", &escape(&fault.aim));
        rows += &cell("phase", "", &phase);
        rows += &cell("lasted", "number", &millis(millis_between(fault.from, fault.to)));
        rows += &cell("outage", "number", &millis_or_dash(fault.outage_ms));
        rows += &cell("heal → writable", "number wide", &millis_or_dash(fault.writable_after_heal_ms));
        rows += &cell("heal → redundant", "number wide", &millis_or_dash(fault.redundant_after_heal_ms));
        rows += &cell("proof", "proof", &proof);
        rows += "</tr>\n";
    }
    format!("<div class=\"scroll\"><table>{}<tbody>{rows}</tbody></table></div>\n", head(&columns))
}

/// Outage and mending by kind of fault.
pub fn kinds(record: &Record) -> String {
    let columns = [
        ("kind", ""),
        ("took hold", "number"),
        ("outage p50", "number"),
        ("p99", "number"),
        ("max", "number"),
        ("heal → writable p99", "number"),
        ("heal → redundant p99", "number"),
    ];
    let of = |spread: Option<Spread>, which: fn(Spread) -> u64| millis_or_dash(spread.map(which));
    let mut rows = String::new();
    for kind in stats::kinds(record) {
        rows += "<tr>";
        rows += &cell("kind", "name", &escape(kind.name));
        rows += &cell("took hold", "number", &format!("{} of {}", kind.held, kind.injected));
        rows += &cell("outage p50", "number", &of(kind.outage, |spread| spread.p50));
        rows += &cell("p99", "number", &of(kind.outage, |spread| spread.p99));
        rows += &cell("max", "number", &of(kind.outage, |spread| spread.max));
        rows += &cell("heal → writable p99", "number wide", &of(kind.writable, |spread| spread.p99));
        rows += &cell("heal → redundant p99", "number wide", &of(kind.redundant, |spread| spread.p99));
        rows += "</tr>\n";
    }
    format!("<div class=\"scroll\"><table>{}<tbody>{rows}</tbody></table></div>\n", head(&columns))
}

/// One card per checker, failed ones first; the witness of a failed one is open.
pub fn verdicts(record: &Record) -> String {
    let mut sorted: Vec<&Verdict> = record.verdicts.iter().collect();
    sorted.sort_by_key(|verdict| std::cmp::Reverse(verdict.outcome));
    let cards: String = sorted.into_iter().map(verdict).collect();
    format!("<div class=\"cards\">{cards}</div>\n")
}

fn verdict(verdict: &Verdict) -> String {
    let class = class_of(verdict.outcome);
    let word = word(verdict.outcome);
    let (checker, summary) = (escape(&verdict.checker), escape(&verdict.summary));
    let mut card =
        format!("<article class=\"card {class}\"><h3><span class=\"badge {class}\">{word}</span>{checker}</h3><p>{summary}</p>\n");
    if !verdict.counts.is_empty() {
        let figures = verdict.counts.iter().map(|(name, n)| format!("<li><b>{}</b> {}</li>", count(*n), escape(name)));
        card += &format!("<ul class=\"figures\">{}</ul>\n", figures.collect::<String>());
    }
    if !verdict.witness.is_empty() {
        let open = if verdict.outcome == Outcome::Failed { " open" } else { "" };
        let lines = escape(&verdict.witness.join("\n"));
        card += &format!("<details{open}><summary>shortest history that shows it</summary><pre>{lines}</pre></details>\n");
    }
    card + "</article>\n"
}

/// The class that colours an outcome.
pub fn class_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "good",
        Outcome::NotApplicable => "soft",
        Outcome::Inconclusive => "unsure",
        Outcome::Failed => "bad",
    }
}

/// What repeats the run, and what it ran.
pub fn repeat(record: &Record) -> String {
    let versions = record.versions.iter().map(|(program, version)| (program.as_str(), version.clone()));
    let mut entries = vec![("seed", record.seed.to_string()), ("began", record.began.clone()), ("world", record.world.clone())];
    entries.extend(versions);
    let rows: String = entries.iter().map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value))).collect();
    format!("<pre class=\"command\">{}</pre>\n<dl>{rows}</dl>\n", escape(&record.command))
}

pub fn notes(record: &Record) -> String {
    let items: String = record.notes.iter().map(|note| format!("<li>{}</li>\n", escape(note))).collect();
    format!("<ul>{items}</ul>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn foreign_text_is_escaped_in_every_table() {
        let mut record = sample::failed();
        let evil = "</td><script>";
        record.command = evil.to_owned();
        record.notes = vec![evil.to_owned()];
        record.versions.insert(evil.to_owned(), evil.to_owned());
        for fault in &mut record.faults {
            (fault.aim, fault.phase) = (evil.to_owned(), evil.to_owned());
        }
        for verdict in &mut record.verdicts {
            (verdict.checker, verdict.summary, verdict.witness) = (evil.to_owned(), evil.to_owned(), vec![evil.to_owned()]);
            verdict.counts.insert(evil.to_owned(), 1);
        }
        let all = faults(&record) + &kinds(&record) + &verdicts(&record) + &repeat(&record) + &notes(&record);
        assert!(!all.contains("<script") && !all.contains("<img"));
    }

    #[test]
    fn failed_checkers_come_first_with_their_witness_open() {
        let cards = verdicts(&sample::failed());
        let at = |what: &str| cards.find(what).unwrap();
        assert!(at("1 of 312,804") < at("dc3 made only") && at("dc3 made only") < at("41,223"));
        assert!(cards.contains("<details open>") && cards.contains("final read: 88213"));
    }
}
