//! Tables of figures as Markdown, for documents that quote them.

use super::stats::{self, Spread};
use super::text::{flat, millis_or_dash};
use crate::record::Record;

/// Outages and returns by kind of fault, and of all.
pub fn kinds_table(record: &Record) -> String {
    let totals = stats::totals(record);
    let mut text =
        "| fault | took hold | outage p50 | p99 | max | heal → writable p99 | heal → redundant p99 |\n|---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    let row = |name: &str, held: usize, of: usize, spreads: [Option<Spread>; 3]| {
        let [outage, writable, redundant] = spreads;
        let figure = |spread: Option<Spread>, which: fn(Spread) -> u64| millis_or_dash(spread.map(which));
        let outages = [figure(outage, |o| o.p50), figure(outage, |o| o.p99), figure(outage, |o| o.max)].join(" | ");
        format!("| {name} | {held} of {of} | {outages} | {} | {} |\n", figure(writable, |w| w.p99), figure(redundant, |r| r.p99))
    };
    for kind in stats::kinds(record) {
        text += &row(&format!("`{}`", cell(kind.name)), kind.held, kind.injected, [kind.outage, kind.writable, kind.redundant]);
    }
    text + &row("**all**", totals.held, totals.faults, [totals.outage, totals.writable, totals.redundant])
}

/// On one line, and without what ends a cell.
pub fn cell(text: &str) -> String {
    flat(text).replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn every_row_has_its_tables_columns() {
        let mut record = sample::small();
        record.faults[0].name = "a|b\nc".to_owned();
        let text = kinds_table(&record);
        let columns = |line: &str| line.replace("\\|", "").matches('|').count() - 1;
        let tables: Vec<usize> = text.lines().filter(|line| line.starts_with('|')).map(columns).collect();
        assert_eq!(tables, [7, 7, 7, 7, 7, 7], "{text}");
        assert!(text.contains("| **all** | 3 of 3 | 2.41 s | 3.02 s | 3.02 s | 20 ms | 3.10 s |"), "{text}");
    }
}
