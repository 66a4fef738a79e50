//! The page: one file that needs nothing else, without scripts; light and dark, wide and narrow.

use super::outcome::{judge, word};
use super::stats::{self, Totals};
use super::tables;
use super::text::{count, escape, millis, millis_or_dash, plural, whole_instant};
use super::{outages, shape_of_failover, timeline};
use crate::record::{Outcome, Record};

/// The report of one run.
pub fn page(record: &Record) -> String {
    let judgement = judge(record);
    let totals = stats::totals(record);
    let title = format!("{} · seed {}", word(judgement.outcome), record.seed);
    let mut body = banner(record, judgement.outcome, &judgement.reasons);
    body += &tiles(record, &totals);
    let strips =
        "Each fault is numbered as in the table below. Bars of a datacenter: it was primary. Hatched red: nobody's write was acknowledged.";
    body += &section("Timeline", strips, &wide(&timeline::timeline(record)));
    body += &section("Checkers", "", &tables::verdicts(record));
    if let (Some(by_kind), Some(by_phase)) = (outages::by_kind(record), outages::by_phase(record)) {
        let about = "Longest time without an acknowledged write that overlaps the fault or its mending. Each dot is a fault; the tick is the median.";
        let mut beside = format!("<h3>By length, coloured by the phase that was hit</h3>\n{}", fit(&by_phase));
        if let Some(shape) = shape_of_failover(record) {
            beside += &format!("<h3>Shape of a failover: what the time is spent on</h3>\n{}", fit(&shape));
        }
        let kinds = format!("<h3>By kind of fault</h3>\n{}", fit(&by_kind));
        body += &section("Outages", about, &format!("<div class=\"halves\"><div>{kinds}</div><div>{beside}</div></div>\n"));
    }
    let by_kind = format!("<details><summary>Figures by kind</summary>{}</details>\n", tables::kinds(record));
    body += &section("Faults", "", &(by_kind + &tables::faults(record)));
    body += &section("How to repeat it", "", &tables::repeat(record));
    if !record.notes.is_empty() {
        body += &section("Notes", "", &tables::notes(record));
    }
    document(&title, &body)
}

/// A whole document around `body`.
pub fn document(title: &str, body: &str) -> String {
    let style = [include_str!("colours.css"), include_str!("chart.css"), include_str!("page.css")].concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Trilithon chaos · {}</title>\n\
         <style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title)
    )
}

/// Three stones: two that stand and one across.
const MARK: &str = r#"<svg class="mark" viewBox="0 0 32 32" width="32" height="32" aria-hidden="true"><path d="M3 5h26v7H3zM6 13h7v15H6zM19 13h7v15h-7z"/></svg>"#;

fn banner(record: &Record, outcome: Outcome, reasons: &[String]) -> String {
    const REASONS_SHOWN: usize = 6;
    let class = tables::class_of(outcome);
    let mut items: String = reasons.iter().take(REASONS_SHOWN).map(|reason| format!("<li>{}</li>\n", escape(reason))).collect();
    if reasons.len() > REASONS_SHOWN {
        items += &format!("<li>and {} more</li>\n", reasons.len() - REASONS_SHOWN);
    }
    let (word, length) = (word(outcome), whole_instant(stats::end(record)));
    format!(
        "<header class=\"banner {class}\">\n<p class=\"brand\">{MARK}<span>Trilithon chaos</span></p>\n\
         <h1>{word}</h1>\n<ul>{items}</ul>\n<p class=\"soft\">{length} · seed {} · {}</p>\n</header>\n",
        record.seed,
        escape(&record.began)
    )
}

fn tiles(record: &Record, totals: &Totals) -> String {
    let counted = |name: &str| stats::counted(record, name).map_or_else(|| "–".to_owned(), count);
    let bad = |name: &str| if stats::counted(record, name).is_some_and(|n| n > 0) { "bad" } else { "" };
    let p50_p99 =
        totals.outage.map_or_else(|| "no outage measured".to_owned(), |o| format!("p50 {} · max {}", millis(o.p50), millis(o.max)));
    let p99 = |spread: Option<stats::Spread>| millis_or_dash(spread.map(|spread| spread.p99));
    let tiles = [
        ("faults took hold", format!("{} of {}", totals.held, totals.faults), plural(totals.kinds, "kind"), ""),
        ("changes of primary", count(totals.changes as u64), format!("silent for {} in all", millis(totals.silent_ms)), ""),
        ("writes acknowledged", count(totals.acknowledged), format!("{} refused", count(totals.refused)), ""),
        ("outcomes unknown", count(totals.unknown), "neither yes nor no".to_owned(), ""),
        ("lost", counted("lost"), "acknowledged, then gone".to_owned(), bad("lost")),
        ("duplicated", counted("duplicated"), "applied twice".to_owned(), bad("duplicated")),
        ("outage p99", p99(totals.outage), p50_p99, ""),
        ("heal → writable p99", p99(totals.writable), format!("redundant {}", p99(totals.redundant)), ""),
    ];
    let drawn = tiles.iter().map(|(name, value, about, class)| {
        format!("<div class=\"tile {class}\"><span>{name}</span><b>{}</b><small>{}</small></div>\n", escape(value), escape(about))
    });
    format!("<div class=\"tiles\">{}</div>\n", drawn.collect::<String>())
}

pub fn section(title: &str, about: &str, content: &str) -> String {
    let about = if about.is_empty() { String::new() } else { format!("<p class=\"soft\">{about}</p>\n") };
    format!("<section>\n<h2>{title}</h2>\n{about}{content}</section>\n")
}

/// A picture that would be too large over the whole width.
pub fn small(picture: &str) -> String {
    format!("<div class=\"picture small\" tabindex=\"0\">{picture}</div>\n")
}

/// A picture as wide as a phone.
fn fit(picture: &str) -> String {
    format!("<div class=\"picture fit\">{picture}</div>\n")
}

/// A picture that may be scrolled sideways on a narrow screen.
pub fn wide(picture: &str) -> String {
    format!("<div class=\"picture\" tabindex=\"0\">{picture}</div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_page_needs_nothing_else_and_runs_nothing() {
        let page = page(&sample::failed());
        for outside in ["<script", "<link", "<img", "@import", "url(http", "src="] {
            assert!(!page.replace("src=x onerror", "").contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("viewport"));
    }

    #[test]
    fn a_failed_run_says_so_first_and_how_to_repeat_it() {
        let page = page(&sample::failed());
        let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("{what}"));
        assert!(at("<h1>failed</h1>") < at("1 of 312,804 acknowledged") && at("Timeline") < at("How to repeat it"));
        assert!(page.contains("class=\"tile bad\"><span>lost</span><b>1</b>"));
    }

    #[test]
    fn an_empty_record_is_a_page_without_a_verdict() {
        let page = page(&Record::default());
        assert!(page.contains("<h1>inconclusive</h1>") && page.contains("no checker ran"));
    }

    /// Writes pages to look at: `CHAOS_REPORT_EXAMPLES=dir cargo test -p chaos examples`.
    #[test]
    fn examples_are_written_where_asked() {
        let Some(dir) = std::env::var_os("CHAOS_REPORT_EXAMPLES").map(std::path::PathBuf::from) else { return };
        let passed = {
            let mut record = sample::drawn(4, 10, 1.0);
            record.verdicts.pop();
            record
        };
        let (slow, slower) = (sample::drawn(5, 30, 3.5), sample::drawn(6, 30, 9.0));
        let long = sample::drawn(7, 120, 1.0);
        let compared = [("Trilithon", &long), ("Patroni, tuned", &slow), ("Patroni, defaults", &slower)];
        std::fs::create_dir_all(&dir).unwrap();
        let pages = [("failed.html", page(&sample::failed())), ("passed.html", page(&passed)), ("long.html", page(&long))];
        for (name, text) in pages {
            std::fs::write(dir.join(name), text).unwrap();
        }
        std::fs::write(dir.join("compared.html"), crate::report::compare::comparison(&compared)).unwrap();
        std::fs::write(dir.join("timeline.svg"), crate::report::picture(&passed)).unwrap();
        std::fs::write(dir.join("summary.txt"), crate::report::summary(&sample::failed())).unwrap();
    }
}
