//! Several records side by side, such as Trilithon and its peers under the same faults: one page.
//!
//! Every figure is drawn from each record in the same way, and each record's command, versions, world and notes (its settings) are on
//! the page. A figure that a record does not have is a dash, never a zero.

use super::compare_charts as charts;
use super::outcome::{judge, word};
use super::page::{document, section, small, wide};
use super::stats::{self, Spread, Totals};
use super::tables;
use super::text::{count, escape, millis_or_dash, plural, whole_instant};
use super::timeline;
use crate::record::Record;
use std::collections::BTreeSet;

/// The page. Labels are drawn in the order given; the first is the one that the others are compared with.
pub fn comparison(records: &[(&str, &Record)]) -> String {
    let labels: Vec<String> = records.iter().map(|(label, _)| escape(label)).collect();
    let title = labels.join(" · ");
    let mut body = format!("<header class=\"banner\">\n<h1>Side by side</h1>\n<p>{title}</p>\n{}</header>\n", sameness(records));
    body += &section("Totals", "", &totals_table(records));
    let about =
        "For each kind of fault: from the shortest outage to the longest, a dot at the median. What has no mark was not measured there.";
    if let Some(chart) = charts::outages(records) {
        let figures = format!("<details><summary>Figures</summary>{}</details>\n", outages_table(records));
        body += &section("Outage per fault", about, &(charts::key(records) + &small(&chart) + &figures));
    }
    if let Some(chart) = charts::errors(records) {
        let about = "What clients were told other than yes, per 10,000 acknowledged writes. Refused is honest; unknown leaves the client to find out.";
        body += &section("Errors", about, &small(&chart));
    }
    for (label, record) in records {
        let name = escape(label);
        let pictures = wide(&timeline::timeline(record));
        let verdicts = format!("<h3>Checkers</h3>{}", tables::verdicts(record));
        let notes = if record.notes.is_empty() { String::new() } else { format!("<h3>Settings and notes</h3>{}", tables::notes(record)) };
        body += &section(&name, "", &(pictures + &verdicts + &notes + &tables::repeat(record)));
    }
    document(&format!("comparison of {}", records.iter().map(|(label, _)| *label).collect::<Vec<_>>().join(", ")), &body)
}

/// Whether what should be the same for all is so; a comparison of different things says so first.
fn sameness(records: &[(&str, &Record)]) -> String {
    let worlds: BTreeSet<&str> = records.iter().map(|(_, record)| record.world.as_str()).collect();
    let kinds: BTreeSet<BTreeSet<&str>> =
        records.iter().map(|(_, record)| record.faults.iter().map(|fault| fault.name.as_str()).collect()).collect();
    let seeds: BTreeSet<u64> = records.iter().map(|(_, record)| record.seed).collect();
    let word = |n: usize| if n <= 1 { "same" } else { "<b>different</b>" };
    format!("<p class=\"soft\">{} world · {} kinds of fault · {} seed</p>\n", word(worlds.len()), word(kinds.len()), word(seeds.len()))
}

/// A figure's name, how it is taken, and whether any but zero is bad.
type Row = (&'static str, fn(&Record, &Totals) -> String, bool);

const ROWS: [Row; 13] = [
    ("verdict", |record, _| word(judge(record).outcome).to_owned(), false),
    ("length", |record, _| whole_instant(stats::end(record)), false),
    ("faults that took hold", |_, totals| format!("{} of {}", totals.held, totals.faults), false),
    ("changes of primary", |_, totals| count(totals.changes as u64), false),
    ("writes acknowledged", |_, totals| count(totals.acknowledged), false),
    ("refused", |_, totals| count(totals.refused), false),
    ("outcome unknown", |_, totals| count(totals.unknown), false),
    ("lost", |record, _| stats::counted(record, "lost").map_or_else(dash, count), true),
    ("duplicated", |record, _| stats::counted(record, "duplicated").map_or_else(dash, count), true),
    ("outage p50", |_, totals| spread(totals.outage, |outage| outage.p50), false),
    ("outage p99", |_, totals| spread(totals.outage, |outage| outage.p99), false),
    ("heal → writable p99", |_, totals| spread(totals.writable, |writable| writable.p99), false),
    ("heal → redundant p99", |_, totals| spread(totals.redundant, |redundant| redundant.p99), false),
];

fn dash() -> String {
    "–".to_owned()
}

fn spread(spread: Option<Spread>, which: fn(Spread) -> u64) -> String {
    millis_or_dash(spread.map(which))
}

fn totals_table(records: &[(&str, &Record)]) -> String {
    let totals: Vec<Totals> = records.iter().map(|(_, record)| stats::totals(record)).collect();
    let mut rows = String::new();
    for (name, figure, zero_is_good) in ROWS {
        rows += &format!("<tr><td data-label=\"\" class=\"row-name\">{name}</td>");
        for ((label, record), totals) in records.iter().zip(&totals) {
            let value = figure(record, totals);
            let bad = (zero_is_good && value != "0" && value != "–") || value == "failed";
            let class = if bad { "number bad" } else { "number" };
            rows += &format!("<td data-label=\"{}\" class=\"{class}\">{}</td>", escape(label), escape(&value));
        }
        rows += "</tr>\n";
    }
    format!("<div class=\"scroll\"><table class=\"plain\">{}<tbody>{rows}</tbody></table></div>\n", head("", records))
}

fn head(first: &str, records: &[(&str, &Record)]) -> String {
    let labels = records.iter().enumerate().map(|(i, (label, _))| {
        format!("<th class=\"number\"><i class=\"key\" style=\"background: {}\"></i>{}</th>", charts::colour(i), escape(label))
    });
    format!("<thead><tr><th>{first}</th>{}</tr></thead>\n", labels.collect::<String>())
}

fn outages_table(records: &[(&str, &Record)]) -> String {
    let mut rows = String::new();
    for (name, kinds) in charts::kinds_side_by_side(records) {
        rows += &format!("<tr><td data-label=\"kind\" class=\"name\">{}</td>", escape(name));
        for ((label, _), outage) in records.iter().zip(kinds) {
            let figures = outage.map_or_else(dash, |o| {
                format!("{} / {} ({})", millis_or_dash(Some(o.p50)), millis_or_dash(Some(o.max)), plural(o.n, "fault"))
            });
            rows += &format!("<td data-label=\"{}\" class=\"number\">{figures}</td>", escape(label));
        }
        rows += "</tr>\n";
    }
    format!("<div class=\"scroll\"><table>{}<tbody>{rows}</tbody></table></div>\n", head("p50 / max", records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn lost_writes_stand_out_and_missing_figures_are_dashes() {
        let (good, bad, empty) = (sample::small(), sample::failed(), Record::default());
        let page = comparison(&[("ours", &good), ("<theirs>", &bad), ("none", &empty)]);
        assert!(page.contains("<td data-label=\"&lt;theirs&gt;\" class=\"number bad\">1</td>"));
        assert!(page.contains("<td data-label=\"none\" class=\"number\">–</td>"));
        assert!(!page.contains("<theirs>") && !page.contains("<script"));
    }

    #[test]
    fn a_comparison_of_different_worlds_says_so() {
        let record = sample::small();
        assert!(comparison(&[("a", &record), ("b", &record)]).contains("same world · same kinds of fault · same seed"));
        let other = Record { world: "lan".to_owned(), seed: 8, ..record.clone() };
        assert!(comparison(&[("a", &record), ("b", &other)]).contains("<b>different</b> world · same kinds"));
    }
}
