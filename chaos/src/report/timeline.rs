//! The picture of a run, in strips of equal length one below the other: who was primary, which faults there were, what clients
//! got acknowledged and refused, how long it took, and when nobody could write.
//!
//! This file lays out the strips and draws the bands of faults and primaries; the charts below them are in [`super::timeline_charts`].
//! Faults are numbered as in the report's table.

use super::scale::{Axis, time_step};
use super::stats;
use super::svg::{self, Area, n};
use super::text::{clipped, escape, instant, millis, millis_between, whole_instant};
use super::timeline_charts::{self as charts, Peaks};
use crate::record::{At, FaultRecord, Outage, Record};

const WIDTH: f64 = 1160.0;
/// Where the time axis begins and ends; left of it are the names.
const PLOT: (f64, f64) = (84.0, 1138.0);
const SITE_ROW: f64 = 17.0;
const FAULT_ROW: f64 = 17.0;
/// More rows would push the charts off the screen; what does not fit is drawn without its name, or without a number.
const FAULT_ROWS_MAX: usize = 7;
const STRIPS_MAX: u64 = 24;

/// One stretch of the run and where it is drawn.
pub struct Strip<'a> {
    pub record: &'a Record,
    pub sites: &'a [&'a str],
    pub from: At,
    pub to: At,
    pub time: Axis,
    pub plot: (f64, f64),
}

impl Strip<'_> {
    pub fn x(&self, at: At) -> f64 {
        self.time.at(at.0 as f64)
    }

    fn shows(&self, from: At, to: At) -> bool {
        from < self.to && to >= self.from
    }
}

/// The picture with its own colours, for documents.
pub fn picture(record: &Record) -> String {
    let style = format!("<style>{}{}</style>\n", include_str!("colours.css"), include_str!("chart.css"));
    let drawn = timeline(record);
    let (opening, rest) = drawn.split_at(drawn.find('\n').map_or(0, |end| end + 1));
    format!("{opening}{style}<rect width=\"100%\" height=\"100%\" class=\"paper\"/>\n{rest}")
}

/// The picture, for a page that brings the colours.
pub fn timeline(record: &Record) -> String {
    let sites = stats::sites(record);
    let end = stats::end(record).max(At(1_000_000));
    let length = strip_length(end);
    let peaks = Peaks::of(record, length);
    let mut y = 8.0;
    let mut drawn = String::new();
    for i in 0..end.0.div_ceil(length) {
        let (from, to) = (At(i * length), At((i + 1) * length));
        let time = Axis::linear((from.0 as f64, to.0 as f64), PLOT);
        let strip = Strip { record, sites: &sites, from, to, time, plot: PLOT };
        let (content, bottom) = draw_strip(&strip, &peaks, y);
        drawn += &content;
        y = bottom + 22.0;
    }
    let (legend, bottom) = legend(&sites, y);
    let label = format!("Timeline of the run: {} faults over {}", record.faults.len(), whole_instant(end));
    svg::picture(WIDTH, bottom, &label, &(drawn + &legend))
}

/// Microseconds in a strip: the whole run up to a quarter of an hour, else a round length.
fn strip_length(end: At) -> u64 {
    const MINUTE: u64 = 60_000_000;
    if end.0 <= 15 * MINUTE {
        return end.0;
    }
    [10, 20, 30, 60, 120, 240]
        .into_iter()
        .map(|minutes| minutes * MINUTE)
        .find(|length| end.0.div_ceil(*length) <= STRIPS_MAX)
        .unwrap_or(480 * MINUTE)
}

fn draw_strip(strip: &Strip, peaks: &Peaks, top: f64) -> (String, f64) {
    let (faults, faults_bottom) = faults(strip, top);
    let (reigns, reigns_bottom) = reigns(strip, faults_bottom + 8.0);
    let width = PLOT.1 - PLOT.0;
    let throughput = Area { x: PLOT.0, y: reigns_bottom + 10.0, w: width, h: 92.0 };
    let errors = Area { x: PLOT.0, y: throughput.bottom() + 8.0, w: width, h: 26.0 };
    let latency = Area { x: PLOT.0, y: errors.bottom() + 10.0, w: width, h: 66.0 };
    let bottom = latency.bottom();
    let mut drawn = tints(strip, faults_bottom, bottom);
    drawn += &time_marks(strip, reigns_bottom + 4.0, bottom);
    drawn += &reigns;
    drawn += &charts::throughput(strip, peaks, throughput);
    drawn += &charts::errors(strip, peaks, errors);
    drawn += &charts::latency(strip, peaks, latency);
    drawn += &outages(strip, throughput, bottom);
    drawn += &faults;
    (drawn, bottom + 18.0)
}

/// Where in its row a fault's bar and name are.
struct Placed<'a> {
    row: usize,
    bar: (f64, f64),
    /// The name for which there is room, and its left end.
    name: Option<(f64, &'a str)>,
}

fn faults(strip: &Strip, top: f64) -> (String, f64) {
    let shown: Vec<(usize, &FaultRecord)> =
        (1..).zip(&strip.record.faults).filter(|(_, fault)| strip.shows(fault.from, fault.to)).collect();
    let mut row_ends: Vec<f64> = Vec::new();
    let mut drawn = String::new();
    for (number, fault) in shown {
        // Where the name finds no room, its number may.
        let names = [format!("{number} {}", clipped(&fault.name, 30)), number.to_string()];
        let placed = place(strip, fault, &names, &mut row_ends);
        let y = top + placed.row as f64 * FAULT_ROW;
        let class = if fault.took_hold.is_some() { "fault" } else { "fault missed" };
        drawn += &format!("<a href=\"#fault-{number}\">");
        let bar = Area { x: placed.bar.0, y, w: placed.bar.1 - placed.bar.0, h: FAULT_ROW - 4.0 };
        drawn += &svg::rect(bar, class, &hint(number, fault));
        if let Some((x, name)) = placed.name {
            drawn += &svg::text(x, y + 10.5, "label strong", name);
        }
        drawn += "</a>\n";
    }
    let bottom = top + row_ends.len().max(1) as f64 * FAULT_ROW;
    drawn += &svg::text(PLOT.0 - 8.0, top + 10.5, "label end", "faults");
    (drawn, bottom)
}

/// The first row with room for the bar and the first of `names`, or else the next; at last the row that is free first, without one.
fn place<'a>(strip: &Strip, fault: &FaultRecord, names: &'a [String], row_ends: &mut Vec<f64>) -> Placed<'a> {
    let from = strip.x(fault.from);
    let bar = (from, strip.x(fault.to).max(from + 3.0));
    for name in names {
        let (x, width) = beside(bar, name, strip.plot);
        let occupied = (bar.0.min(x), bar.1.max(x + width));
        let free = row_ends.iter().position(|end| *end + 3.0 <= occupied.0);
        let row = free.unwrap_or(row_ends.len());
        if row < FAULT_ROWS_MAX {
            row_ends.resize(row_ends.len().max(row + 1), f64::NEG_INFINITY);
            row_ends[row] = occupied.1;
            return Placed { row, bar, name: Some((x, name)) };
        }
    }
    let row = (0..row_ends.len()).min_by(|a, b| row_ends[*a].total_cmp(&row_ends[*b])).unwrap_or(0);
    row_ends[row] = row_ends[row].max(bar.1);
    Placed { row, bar, name: None }
}

/// Left end and width of a name: inside its bar where it fits, else to the right of it, and near the right edge to its left.
fn beside(bar: (f64, f64), name: &str, plot: (f64, f64)) -> (f64, f64) {
    let width = svg::text_width(name) + 5.0;
    let x = if width + 2.0 <= bar.1 - bar.0 {
        bar.0 + 4.0
    } else if bar.1 + 4.0 + width <= plot.1 {
        bar.1 + 4.0
    } else {
        (bar.0 - width).max(plot.0)
    };
    (x, width)
}

fn hint(number: usize, fault: &FaultRecord) -> String {
    let lasted = millis(millis_between(fault.from, fault.to));
    let proof = fault.took_hold.as_deref().unwrap_or("did not take hold");
    format!("#{number} {} · {} · {}\n{} for {lasted}\n{proof}", fault.name, fault.aim, fault.phase, instant(fault.from))
}

/// A faint column below each fault that took hold, so that the eye finds what it did.
fn tints(strip: &Strip, top: f64, bottom: f64) -> String {
    let held = strip.record.faults.iter().filter(|fault| fault.took_hold.is_some() && strip.shows(fault.from, fault.to));
    held.map(|fault| {
        let (from, to) = (strip.x(fault.from), strip.x(fault.to));
        svg::rect(Area { x: from, y: top, w: (to - from).max(1.0), h: bottom - top }, "tint", "")
    })
    .collect()
}

fn reigns(strip: &Strip, top: f64) -> (String, f64) {
    let mut drawn = String::new();
    for (i, site) in strip.sites.iter().enumerate() {
        let y = top + i as f64 * SITE_ROW;
        drawn += &svg::text(PLOT.0 - 8.0, y + 11.0, "label end", &clipped(site, 10));
        drawn += &svg::rect(Area { x: PLOT.0, y: y + 1.0, w: PLOT.1 - PLOT.0, h: SITE_ROW - 3.0 }, "track", "");
        for reign in strip.record.primaries.iter().filter(|r| r.node == *site && strip.shows(r.from, r.to)) {
            let (from, to) = (strip.x(reign.from), strip.x(reign.to).max(strip.x(reign.from) + 1.5));
            let title = format!("{} primary, epoch {}, timeline {}, from {}", reign.node, reign.epoch, reign.timeline, instant(reign.from));
            let area = Area { x: from, y: y + 1.0, w: to - from, h: SITE_ROW - 3.0 };
            drawn += &svg::rect(area, &format!("site{}", i % 6), &title);
            let wide =
                if strip.from <= reign.from { format!("primary · epoch {}", reign.epoch) } else { format!("epoch {}", reign.epoch) };
            let fits = [wide, reign.epoch.to_string()].into_iter().find(|text| svg::text_width(text) + 6.0 < to - from);
            drawn += &fits.map_or_else(String::new, |text| svg::text(from + 5.0, y + 11.5, "label inverse", &text));
        }
    }
    (drawn, top + strip.sites.len().max(1) as f64 * SITE_ROW)
}

/// Hatched over the charts, with their length where it is a second or more and there is room.
fn outages(strip: &Strip, throughput: Area, bottom: f64) -> String {
    let mut free_from = f64::NEG_INFINITY;
    let (mut drawn, mut labels) = (String::new(), String::new());
    for outage in strip.record.outages.iter().filter(|outage| strip.shows(outage.from, outage.to)) {
        let Outage { from, to } = *outage;
        let (left, right) = (strip.x(from), strip.x(to));
        let lasted = millis_between(from, to);
        let title = format!("no write acknowledged for {} from {}", millis(lasted), instant(from));
        drawn += &svg::rect(Area { x: left, y: throughput.y, w: (right - left).max(1.0), h: bottom - throughput.y }, "outage", &title);
        let label = millis(lasted);
        let width = svg::text_width(&label) + 8.0;
        let x = (right + 3.0).min(strip.plot.1 - width);
        if lasted >= 1_000 && x >= free_from {
            labels += &svg::rect(Area { x: x - 1.0, y: throughput.y + 2.0, w: width - 2.0, h: 14.0 }, "pill", "");
            labels += &svg::text(x + 2.0, throughput.y + 12.5, "label bad", &label);
            free_from = x + width;
        }
    }
    // After all hatches: one that comes soon after must not cover the figure of the one before.
    drawn + &labels
}

fn time_marks(strip: &Strip, top: f64, bottom: f64) -> String {
    let step = time_step((strip.to.0 - strip.from.0) / 1_000_000, 12) * 1_000_000;
    let first = strip.from.0.div_ceil(step) * step;
    let mut drawn = String::new();
    for at in (first..=strip.to.0).step_by(usize::try_from(step).unwrap_or(usize::MAX)).map(At) {
        let x = strip.x(at);
        drawn += &svg::line((x, top), (x, bottom), "grid");
        drawn += &format!("<text x=\"{}\" y=\"{}\" class=\"label middle\">{}</text>\n", n(x), n(bottom + 15.0), escape(&whole_instant(at)));
    }
    drawn
}

fn legend(sites: &[&str], y: f64) -> (String, f64) {
    let mut entries: Vec<(String, String)> =
        sites.iter().enumerate().map(|(i, site)| (clipped(site, 20), format!("site{}", i % 6))).collect();
    let marks = [("fault", "fault"), ("fault that did not take hold", "fault missed"), ("no write acknowledged", "outage")];
    entries.extend(marks.map(|(name, class)| (name.to_owned(), class.to_owned())));
    let errors = [("refused", "refused"), ("outcome unknown", "unknown"), ("p50", "p50-fill"), ("p99", "p99-fill")];
    entries.extend(errors.map(|(name, class)| (name.to_owned(), class.to_owned())));
    svg::legend(PLOT, y, &entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_run_of_hours_is_drawn_in_few_strips() {
        let strips = |minutes: u64| (minutes * 60_000_000).div_ceil(strip_length(At(minutes * 60_000_000)));
        assert_eq!([1, 15, 16, 120, 1_440].map(strips), [1, 1, 2, 12, 24]);
    }

    #[test]
    fn names_never_overlap_in_a_row() {
        let record = sample::drawn(3, 10, 1.0);
        let time = Axis::linear((0.0, record.duration.0 as f64), PLOT);
        let strip = Strip { record: &record, sites: &[], from: At(0), to: record.duration, time, plot: PLOT };
        let (mut ends, mut occupied) = (Vec::new(), [f64::NEG_INFINITY; FAULT_ROWS_MAX]);
        for fault in &record.faults {
            let names = [fault.name.clone()];
            let placed = place(&strip, fault, &names, &mut ends);
            let Some((x, name)) = placed.name else { continue };
            let right = x + svg::text_width(name);
            assert!(x.min(placed.bar.0) >= occupied[placed.row], "{name}");
            occupied[placed.row] = placed.bar.1.max(right);
            assert!(right <= PLOT.1);
        }
    }

    #[test]
    fn a_fault_that_did_not_take_hold_looks_different() {
        let mut record = sample::small();
        assert!(!timeline(&record).contains("<rect x=\"84\" y=\"8\" width=\"0\""));
        record.faults[0].took_hold = None;
        let drawn = timeline(&record);
        assert!(drawn.contains("class=\"fault missed\"><title>#1 isolate_primary"));
    }

    #[test]
    fn an_empty_record_has_a_picture() {
        assert!(picture(&Record::default()).contains("<style>"));
    }
}
