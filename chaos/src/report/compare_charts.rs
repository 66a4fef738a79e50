//! The pictures of a comparison: outage ranges by kind of fault, and errors by the thousand.

use super::outages;
use super::scale::{Axis, round_up};
use super::stats::{self, Spread};
use super::svg::{self, Area, n};
use super::text::{clipped, escape, millis};
use crate::record::Record;
use std::collections::BTreeMap;

/// Near what a phone shows, so that texts stay readable there; a wide screen enlarges it.
const WIDTH: f64 = 480.0;
/// Height of one record's line within a kind's row.
const LINE: f64 = 13.0;
/// Height of a name above its lines.
const NAME: f64 = 16.0;
const PEERS: usize = 6;

/// The colour of the record at `index`, as CSS.
pub fn colour(index: usize) -> &'static str {
    const COLOURS: [&str; PEERS] = ["var(--site0)", "var(--amber)", "var(--site2)", "var(--site1)", "var(--site3)", "var(--site4)"];
    COLOURS[index % PEERS]
}

/// Labels with their colours.
pub fn key(records: &[(&str, &Record)]) -> String {
    let labels = records
        .iter()
        .enumerate()
        .map(|(i, (label, _))| format!("<li><i class=\"key\" style=\"background: {}\"></i>{}</li>", colour(i), escape(label)));
    format!("<ul class=\"figures\">{}</ul>\n", labels.collect::<String>())
}

/// Every kind that any record measured, with each record's spread; the first record's longest median first.
pub fn kinds_side_by_side<'a>(records: &[(&str, &'a Record)]) -> Vec<(&'a str, Vec<Option<Spread>>)> {
    let mut by_name: BTreeMap<&str, Vec<Option<Spread>>> = BTreeMap::new();
    for (i, (_, record)) in records.iter().enumerate() {
        for kind in stats::kinds(record).into_iter().filter(|kind| kind.outage.is_some()) {
            by_name.entry(kind.name).or_insert_with(|| vec![None; records.len()])[i] = kind.outage;
        }
    }
    let mut kinds: Vec<(&str, Vec<Option<Spread>>)> = by_name.into_iter().collect();
    kinds.sort_by_key(|(_, spreads)| std::cmp::Reverse(spreads.first().copied().flatten().map(|spread| spread.p50)));
    kinds
}

/// One row per kind, in it one line per record from its shortest to its longest outage. `None` where nothing was measured.
pub fn outages(records: &[(&str, &Record)]) -> Option<String> {
    let kinds = kinds_side_by_side(records);
    let longest = kinds.iter().flat_map(|(_, spreads)| spreads).flatten().map(|spread| spread.max).max()?;
    let row = NAME + LINE * records.len() as f64 + 6.0;
    let bottom = outages::TOP + row * kinds.len() as f64;
    let (axis, grid) = outages::frame(longest, (28.0, WIDTH - 70.0), (outages::TOP - 4.0, bottom));
    let mut drawn = String::new();
    for (i, (name, _)) in kinds.iter().enumerate() {
        let top = outages::TOP + i as f64 * row;
        if i % 2 == 0 {
            drawn += &svg::rect(Area { x: 0.0, y: top, w: WIDTH, h: row }, "faint", "");
        }
        drawn += &svg::text(5.0, top + 12.0, "label strong", &clipped(name, 60));
    }
    drawn += &grid;
    for (i, (name, spreads)) in kinds.iter().enumerate() {
        let top = outages::TOP + i as f64 * row + NAME;
        for (peer, spread) in spreads.iter().enumerate() {
            let Some(spread) = spread else { continue };
            drawn += &range(peer, records[peer].0, name, *spread, &axis, top + (peer as f64 + 0.5) * LINE);
        }
    }
    Some(svg::picture(WIDTH, bottom + 24.0, "Outage per kind of fault, side by side", &drawn))
}

fn range(peer: usize, label: &str, kind: &str, spread: Spread, axis: &Axis, y: f64) -> String {
    let at = |ms: u64| axis.at(ms as f64);
    let class = format!("peer{}", peer % PEERS);
    let title = format!("{label}, {kind}: p50 {}, max {}, {} measured", millis(spread.p50), millis(spread.max), spread.n);
    svg::line((at(spread.min), y), (at(spread.max).max(at(spread.min) + 0.5), y), &format!("{class} range"))
        + &marker(peer, at(spread.p50), y, &class, &title)
        + &svg::text(at(spread.max) + 8.0, y + 4.0, "label", &millis(spread.p50))
}

/// A shape of its own for each record: colours alone do not tell everybody.
fn marker(peer: usize, x: f64, y: f64, class: &str, title: &str) -> String {
    let outline = match peer % 3 {
        0 => return svg::dot(x, y, 4.5, class, title),
        1 => format!("M{} {}h8v8h-8Z", n(x - 4.0), n(y - 4.0)),
        _ => format!("M{} {}l5.5 5.5 -5.5 5.5 -5.5 -5.5Z", n(x), n(y - 5.5)),
    };
    format!("<path d=\"{outline}\" class=\"{class}\"><title>{}</title></path>\n", escape(title))
}

/// Refused and unknown for each record, per 10,000 acknowledged writes; `None` where nothing was acknowledged.
pub fn errors(records: &[(&str, &Record)]) -> Option<String> {
    let rates: Vec<Option<(f64, f64)>> = records.iter().map(|(_, record)| rates(record)).collect();
    let most = rates.iter().flatten().map(|(refused, unknown)| refused.max(*unknown)).fold(0.0, f64::max);
    if rates.iter().all(Option::is_none) {
        return None;
    }
    let axis = Axis::linear((0.0, round_up(most)), (5.0, WIDTH - 110.0));
    let mut drawn = String::new();
    for (i, ((label, _), rates)) in records.iter().zip(&rates).enumerate() {
        let top = 20.0 + i as f64 * 54.0;
        drawn += &svg::text(5.0, top - 6.0, "label strong", &clipped(label, 60));
        let Some((refused, unknown)) = rates else {
            drawn += &svg::text(5.0, top + 10.0, "label", "nothing acknowledged");
            continue;
        };
        for (y, name, value, class) in [(top, "refused", *refused, "refused"), (top + 15.0, "unknown", *unknown, "unknown")] {
            let w = axis.at(value) - 5.0;
            drawn += &svg::rect(Area { x: 5.0, y, w: w.max(1.0), h: 12.0 }, class, "");
            drawn += &svg::text(12.0 + w, y + 10.0, "label", &format!("{value:.1} {name}"));
        }
    }
    let bottom = 6.0 + records.len() as f64 * 54.0;
    Some(svg::picture(WIDTH, bottom, "Errors per 10,000 acknowledged writes", &drawn))
}

fn rates(record: &Record) -> Option<(f64, f64)> {
    let totals = stats::totals(record);
    let per = |errors: u64| errors as f64 * 10_000.0 / totals.acknowledged as f64;
    (totals.acknowledged > 0).then(|| (per(totals.refused), per(totals.unknown)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn kinds_that_one_record_lacks_are_kept() {
        let (ours, mut theirs) = (sample::small(), sample::small());
        theirs.faults[1].name = "only_theirs".to_owned();
        let kinds = kinds_side_by_side(&[("ours", &ours), ("theirs", &theirs)]);
        let names: Vec<&str> = kinds.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["freeze_datacenter", "isolate_primary", "only_theirs"]);
        assert!(kinds[2].1[0].is_none() && kinds[2].1[1].is_some());
    }

    #[test]
    fn errors_are_rated_by_what_was_acknowledged() {
        let mut record = sample::small();
        record.samples[0].refused = 12;
        record.samples[0].unknown = 3;
        assert_eq!(rates(&record), Some((20.0, 5.0)));
        assert_eq!(errors(&[("none", &Record::default())]), None);
        let drawn = errors(&[("ours", &record), ("none", &Record::default())]).unwrap();
        assert!(drawn.contains("20.0 refused") && drawn.contains("nothing acknowledged"));
    }
}
