//! The end of a run on a terminal: the word, the checkers, the outages by kind of fault.

use super::outcome::{judge, word};
use super::stats::{self, Kind, Spread};
use super::text::{clipped, count, flat, millis_or_dash, plural, whole_instant};
use crate::record::{Outcome, Record};
use anstyle::{AnsiColor, Style};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const NAME: usize = 32;

fn style_of(outcome: Outcome) -> Style {
    let colour = match outcome {
        Outcome::Passed => AnsiColor::Green,
        Outcome::Inconclusive => AnsiColor::Yellow,
        Outcome::NotApplicable => AnsiColor::BrightBlack,
        Outcome::Failed => AnsiColor::Red,
    };
    Style::new().fg_color(Some(colour.into())).bold()
}

/// Several lines with colours; print them with `anstream`, which takes the colours out where nobody sees them.
pub fn summary(record: &Record) -> String {
    let totals = stats::totals(record);
    let judgement = judge(record);
    let style = style_of(judgement.outcome);
    let mut text = format!("\n{style}{}{style:#}", word(judgement.outcome).to_uppercase());
    text += &format!("  {} of {} took hold", totals.held, plural(totals.faults, "fault"));
    text += &format!(" · {}", plural(totals.changes, "change") + " of primary");
    text += &format!(
        " · {} writes acknowledged, {} refused, {} unknown\n",
        count(totals.acknowledged),
        count(totals.refused),
        count(totals.unknown)
    );
    if judgement.outcome != Outcome::Passed {
        text.extend(judgement.reasons.iter().map(|reason| format!("  {style}·{style:#} {}\n", flat(reason))));
    }
    text += &checkers(record);
    text += &faults(record);
    text += &format!(
        "\n{DIM}{} · seed {} · to repeat it:{DIM:#} {BOLD}{}{BOLD:#}\n",
        whole_instant(stats::end(record)),
        record.seed,
        record.command
    );
    text
}

fn checkers(record: &Record) -> String {
    let mut text = format!("\n{BOLD}checkers{BOLD:#}\n");
    for verdict in &record.verdicts {
        let style = style_of(verdict.outcome);
        text += &format!(
            "  {style}{:<14}{style:#}  {:<16} {}\n",
            word(verdict.outcome),
            clipped(&flat(&verdict.checker), 16),
            flat(&verdict.summary)
        );
        text.extend(verdict.witness.iter().map(|line| format!("      {DIM}│{DIM:#} {}\n", flat(line))));
    }
    text
}

fn faults(record: &Record) -> String {
    let title = format!(
        "{:<NAME$} {:>6} {:>10} {:>10} {:>10} {:>13} {:>14}",
        "faults", "held", "outage p50", "p99", "max", "writable p99", "redundant p99"
    );
    let mut text = format!("\n{BOLD}{title}{BOLD:#}\n");
    for kind in stats::kinds(record) {
        text += &row(kind.name, &kind);
    }
    let totals = stats::totals(record);
    let (outage, writable, redundant) = (totals.outage, totals.writable, totals.redundant);
    let all = Kind { name: "all", injected: totals.faults, held: totals.held, outages_ms: Vec::new(), outage, writable, redundant };
    text + &format!("{BOLD}{}{BOLD:#}\n", row("all", &all).trim_end())
}

fn row(name: &str, kind: &Kind) -> String {
    let of = |spread: Option<Spread>, which: fn(Spread) -> u64| millis_or_dash(spread.map(which));
    let held = format!("{}/{}", kind.held, kind.injected);
    // Padded before it is coloured: a colour's characters would count as width.
    let held = format!("{held:>6}");
    let style = if kind.held < kind.injected { style_of(Outcome::Inconclusive) } else { Style::new() };
    format!(
        "{:<NAME$} {style}{held}{style:#} {:>10} {:>10} {:>10} {:>13} {:>14}\n",
        clipped(&flat(name), NAME),
        of(kind.outage, |spread| spread.p50),
        of(kind.outage, |spread| spread.p99),
        of(kind.outage, |spread| spread.max),
        of(kind.writable, |spread| spread.p99),
        of(kind.redundant, |spread| spread.p99),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn plain(record: &Record) -> String {
        anstream::adapter::strip_str(&summary(record)).to_string()
    }

    #[test]
    fn columns_are_aligned_whatever_took_hold() {
        let mut record = sample::small();
        record.faults[1].took_hold = None;
        let text = plain(&record);
        let rows: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("faults")).take(4).collect();
        let widths: Vec<usize> = rows.iter().map(|row| row.chars().count()).collect();
        assert_eq!(widths, [widths[0]; 4], "{text}");
        assert!(text.contains("INCONCLUSIVE  2 of 3 faults took hold"), "{text}");
    }

    #[test]
    fn a_failure_shows_its_history_and_how_to_repeat_it() {
        let text = plain(&sample::failed());
        assert!(text.contains("│ 10:00.000  final read: 88213 on none") && text.contains("to repeat it: chaos run --minutes 10 --seed 11"));
    }
}
