//! Pictures of how long nobody could write: every fault as a dot by its kind, and a histogram by phase.

use super::scale::{Axis, logarithmic_marks, round_up};
use super::stats::{self, Kind};
use super::svg::{self, Area};
use super::text::{clipped, millis, plural};
use crate::record::Record;
use std::collections::BTreeMap;

/// Near what a phone shows, so that texts are not shrunk there.
const WIDTH: f64 = 440.0;
const ROW: f64 = 34.0;
/// Where rows begin, below the axis's names.
pub const TOP: f64 = 24.0;
/// Left end of the logarithmic axis, milliseconds; what is shorter is drawn at it.
const SHORTEST_MS: f64 = 100.0;

/// One row per kind: a dot for each fault, a tick for the median. `None` where no outage was measured.
pub fn by_kind(record: &Record) -> Option<String> {
    let kinds: Vec<Kind> = stats::kinds(record).into_iter().filter(|kind| kind.outage.is_some()).collect();
    let longest = kinds.iter().filter_map(|kind| kind.outage).map(|outage| outage.max).max()?;
    let bottom = TOP + kinds.len() as f64 * ROW;
    let (axis, grid) = frame(longest, (28.0, WIDTH - 18.0), (TOP - 4.0, bottom));
    // Every second row is tinted: a name stands above its dots, and the eye must not take the next one's.
    let tinted = (0..kinds.len()).step_by(2).map(|i| Area { x: 0.0, y: TOP + i as f64 * ROW - 2.0, w: WIDTH, h: ROW });
    let mut drawn = tinted.map(|area| svg::rect(area, "faint", "")).collect::<String>() + &grid;
    for (i, kind) in kinds.iter().enumerate() {
        drawn += &kind_row(kind, &axis, TOP + i as f64 * ROW);
    }
    Some(svg::picture(WIDTH, bottom + 22.0, "Outage of each fault, by kind", &drawn))
}

/// Name and figures, and below them the dots: narrow enough for a phone.
fn kind_row(kind: &Kind, axis: &Axis, top: f64) -> String {
    let middle = top + 22.0;
    let mut drawn = svg::text(5.0, top + 11.0, "label strong", &clipped(kind.name, 32));
    for outage in &kind.outages_ms {
        drawn += &svg::dot(axis.at(*outage as f64), middle, 4.0, "dot", &format!("{} {}", kind.name, millis(*outage)));
    }
    let Some(spread) = kind.outage else { return drawn };
    let x = axis.at(spread.p50 as f64);
    drawn += &svg::line((x, middle - 7.0), (x, middle + 7.0), "median");
    let figures = match spread.n {
        1 => millis(spread.p50),
        n => format!("p50 {} · max {} · {n}×", millis(spread.p50), millis(spread.max)),
    };
    drawn + &svg::text(WIDTH - 5.0, top + 11.0, "label end", &figures)
}

/// A logarithmic axis of milliseconds between the pixels `across`, with its grid from `down.0` to `down.1` and names at both ends.
pub fn frame(longest_ms: u64, across: (f64, f64), down: (f64, f64)) -> (Axis, String) {
    let high = round_up(longest_ms as f64).max(1_000.0);
    let axis = Axis::logarithmic((SHORTEST_MS, high), across);
    let mut drawn = String::new();
    for mark in logarithmic_marks(SHORTEST_MS, high) {
        let x = axis.at(mark);
        let name = if mark <= SHORTEST_MS * 1.001 { format!("≤ {} ms", mark.round()) } else { mark_name(mark) };
        drawn += &svg::line((x, down.0), (x, down.1), "grid");
        // Above and below: a table of seventy kinds is longer than a screen.
        drawn += &svg::text(x, down.0 - 6.0, "label middle", &name);
        drawn += &svg::text(x, down.1 + 14.0, "label middle", &name);
    }
    (axis, drawn)
}

fn mark_name(ms: f64) -> String {
    if ms < 999.0 { format!("{} ms", ms.round()) } else { format!("{} s", svg::n(ms / 1e3)) }
}

/// Upper ends of the histogram's columns, milliseconds; the last column has none.
const EDGES_MS: [u64; 13] = [100, 250, 500, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 6_000, 10_000, 20_000, 60_000];

/// Outages counted by length; each column is stacked by the phase that the fault hit.
pub fn by_phase(record: &Record) -> Option<String> {
    let columns = columns(record);
    let tallest = columns.iter().map(|column| column.values().sum::<usize>()).max().filter(|tallest| *tallest > 0)?;
    // Columns from the first to the last that holds anything: the axis stays short.
    let first = columns.iter().position(|column| !column.is_empty())?;
    let last = columns.iter().rposition(|column| !column.is_empty())?;
    let phases = phases(record);
    let area = Area { x: 30.0, y: 10.0, w: WIDTH - 40.0, h: 150.0 };
    let top = round_up(tallest as f64);
    let height = Axis::linear((0.0, top), (0.0, area.h));
    let mut drawn = String::new();
    for mark in [top / 2.0, top] {
        let y = area.bottom() - height.at(mark);
        drawn += &svg::line((area.x, y), (area.right(), y), "grid");
        drawn += &svg::text(area.x - 6.0, y + 4.0, "label end", &svg::n(mark));
    }
    let width = (area.w / (last - first + 1) as f64).min(60.0);
    for (i, column) in columns.iter().enumerate().take(last + 1).skip(first) {
        let x = area.x + (i - first) as f64 * width;
        drawn += &draw_column(column, &phases, &height, Area { x, w: width, ..area });
        if let Some(edge) = EDGES_MS.get(i).filter(|_| i < last) {
            let name = (*edge as f64 / 1e3).to_string();
            drawn += &svg::text(x + width, area.bottom() + 14.0, "label middle", &name);
        }
    }
    drawn += &svg::line((area.x, area.bottom()), (area.right(), area.bottom()), "base");
    let entries: Vec<(String, String)> = phases.iter().enumerate().map(|(i, p)| (clipped(p, 20), phase_class(i))).collect();
    drawn += &svg::text(area.right(), area.bottom() + 30.0, "label end", "seconds");
    let (legend, bottom) = svg::legend((area.x, WIDTH), area.bottom() + 48.0, &entries);
    Some(svg::picture(WIDTH, bottom, "Outages by length and phase", &(drawn + &legend)))
}

fn draw_column(column: &BTreeMap<&str, usize>, phases: &[&str], height: &Axis, area: Area) -> String {
    let mut floor = area.bottom();
    let mut drawn = String::new();
    for (i, phase) in phases.iter().enumerate() {
        let Some(&faults) = column.get(phase) else { continue };
        let h = height.at(faults as f64);
        floor -= h;
        let title = format!("{phase}: {}", plural(faults, "fault"));
        drawn += &svg::rect(Area { x: area.x + 3.0, y: floor, w: area.w - 6.0, h }, &phase_class(i), &title);
    }
    drawn
}

fn phase_class(index: usize) -> String {
    format!("phase{}", index % 8)
}

/// Phases in the order of a failover, others after them by name.
fn phases(record: &Record) -> Vec<&str> {
    const ORDER: [&str; 7] = ["steady", "drain", "election", "promotion", "rewind", "base_backup", "member_change"];
    let mut phases: Vec<&str> = record.faults.iter().map(|fault| fault.phase.as_str()).collect();
    phases.sort_unstable_by_key(|phase| (ORDER.iter().position(|known| known == phase).unwrap_or(ORDER.len()), *phase));
    phases.dedup();
    phases
}

fn columns(record: &Record) -> Vec<BTreeMap<&str, usize>> {
    let mut columns = vec![BTreeMap::new(); EDGES_MS.len() + 1];
    for fault in record.faults.iter().filter(|fault| fault.took_hold.is_some()) {
        let Some(outage) = fault.outage_ms else { continue };
        let column = EDGES_MS.iter().position(|edge| outage <= *edge).unwrap_or(EDGES_MS.len());
        *columns[column].entry(fault.phase.as_str()).or_default() += 1;
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn every_outage_is_in_one_column() {
        let record = sample::drawn(5, 30, 1.0);
        let counted: usize = columns(&record).iter().flat_map(BTreeMap::values).sum();
        assert_eq!(Some(counted), stats::totals(&record).outage.map(|outage| outage.n));
    }

    #[test]
    fn no_outages_no_pictures() {
        assert_eq!((by_kind(&Record::default()), by_phase(&Record::default())), (None, None));
    }

    #[test]
    fn each_fault_that_took_hold_is_a_dot() {
        let mut record = sample::small();
        record.faults[2].took_hold = None;
        assert_eq!(by_kind(&record).unwrap().matches("<circle").count(), 2);
    }
}
