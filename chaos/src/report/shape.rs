//! What a failover's time is spent on: from the fault to notice, to the election, to the promotion, to the first write.
//!
//! Drawn only from faults whose [`Steps`] were recorded; a step that was not seen leaves the interval before and after it out.

use super::scale::round_up;
use super::stats::Spread;
use super::svg::{self, Area};
use super::text::{millis, millis_between, plural};
use crate::record::{At, FaultRecord, Record, Steps};

const WIDTH: f64 = 440.0;
const COLUMNS: usize = 16;
const INTERVALS: [(&str, &str); 4] =
    [("notice", "fault → noticed"), ("elect", "noticed → elected"), ("promote", "elected → promoted"), ("serve", "promoted → first write")];

/// Medians in one bar and a histogram for each interval; `None` where no fault carries steps.
pub fn shape_of_failover(record: &Record) -> Option<String> {
    let held = record.faults.iter().filter(|fault| fault.took_hold.is_some());
    let all: Vec<[Option<u64>; 4]> = held.filter_map(|fault| Some(intervals(fault, fault.steps?))).collect();
    let by_interval: Vec<Vec<u64>> = (0..4).map(|i| all.iter().filter_map(|intervals| intervals[i]).collect()).collect();
    if by_interval.iter().all(Vec::is_empty) {
        return None;
    }
    let spreads: Vec<Option<Spread>> = by_interval.iter().map(|values| Spread::of(values.iter().copied())).collect();
    let mut drawn = medians(&spreads);
    let width = (WIDTH - 24.0) / 2.0;
    // One axis for all four: they are there to be compared.
    let longest = round_up(spreads.iter().flatten().map(|spread| spread.max).max().unwrap_or(0) as f64);
    for (i, values) in by_interval.iter().enumerate() {
        let area = Area { x: (i % 2) as f64 * (width + 24.0), y: 92.0 + (i / 2) as f64 * 136.0, w: width, h: 70.0 };
        drawn += &histogram(i, values, spreads[i], longest, area);
    }
    let label = format!("Steps of {}", plural(all.len(), "failover"));
    Some(svg::picture(WIDTH, 320.0, &label, &drawn))
}

fn intervals(fault: &FaultRecord, steps: Steps) -> [Option<u64>; 4] {
    let between = |from: Option<At>, to: Option<At>| Some(millis_between(from?, to?));
    [
        between(Some(fault.from), steps.noticed),
        between(steps.noticed, steps.elected),
        between(steps.elected, steps.promoted),
        between(steps.promoted, steps.first_write),
    ]
}

/// The medians one after the other.
fn medians(spreads: &[Option<Spread>]) -> String {
    let total: u64 = spreads.iter().flatten().map(|spread| spread.p50).sum();
    let mut x = 0.0;
    let mut drawn = String::new();
    for (i, spread) in spreads.iter().enumerate() {
        let Some(spread) = spread else { continue };
        let w = WIDTH * spread.p50 as f64 / total.max(1) as f64;
        let title = format!("{}: p50 {}", INTERVALS[i].1, millis(spread.p50));
        drawn += &svg::rect(Area { x, y: 22.0, w: (w - 2.0).max(1.0), h: 22.0 }, &format!("phase{i}"), &title);
        let text = [format!("{} {}", INTERVALS[i].0, millis(spread.p50)), millis(spread.p50)];
        let fits = text.into_iter().find(|text| svg::text_width(text) + 8.0 < w);
        drawn += &fits.map_or_else(String::new, |text| svg::text(x + 6.0, 37.0, "label inverse", &text));
        x += w;
    }
    drawn + &svg::text(0.0, 13.0, "label", &format!("medians, one after the other: {}", millis(total)))
}

fn histogram(index: usize, values: &[u64], spread: Option<Spread>, longest: f64, area: Area) -> String {
    let mut columns = [0usize; COLUMNS];
    for value in values {
        let column = (*value as f64 / longest * COLUMNS as f64) as usize;
        columns[column.min(COLUMNS - 1)] += 1;
    }
    let tallest = columns.iter().copied().max().unwrap_or(0).max(1) as f64;
    let width = area.w / COLUMNS as f64;
    let mut drawn = svg::text(area.x, area.y - 24.0, "label strong", INTERVALS[index].1);
    let figures = spread
        .map_or_else(|| "not seen".to_owned(), |spread| format!("p50 {} · p99 {} · {}×", millis(spread.p50), millis(spread.p99), spread.n));
    drawn += &svg::text(area.x, area.y - 9.0, "label", &figures);
    for (i, faults) in columns.iter().enumerate().filter(|(_, faults)| **faults > 0) {
        let h = (*faults as f64 / tallest * area.h).max(2.0);
        let column = Area { x: area.x + i as f64 * width + 0.5, y: area.bottom() - h, w: width - 1.0, h };
        drawn += &svg::rect(column, &format!("phase{index}"), &plural(*faults, "failover"));
    }
    drawn += &svg::line((area.x, area.bottom()), (area.right(), area.bottom()), "base");
    drawn += &svg::text(area.x, area.bottom() + 14.0, "label", "0");
    drawn + &svg::text(area.right(), area.bottom() + 14.0, "label end", &millis(longest as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn without_steps_there_is_no_shape() {
        assert_eq!(shape_of_failover(&sample::small()), None);
    }

    #[test]
    fn a_step_not_seen_leaves_both_its_intervals_out() {
        let fault = FaultRecord { from: At(1_000_000), ..FaultRecord::default() };
        let steps = Steps { noticed: Some(At(2_500_000)), elected: None, promoted: Some(At(4_000_000)), first_write: Some(At(4_100_000)) };
        assert_eq!(intervals(&fault, steps), [Some(1_500), None, None, Some(100)]);
    }

    #[test]
    fn medians_and_histograms_are_drawn_from_steps() {
        let mut record = sample::small();
        record.faults[0].steps = Some(Steps { noticed: Some(At(6_500_000)), elected: Some(At(6_700_000)), ..Steps::default() });
        let drawn = shape_of_failover(&record).unwrap();
        assert!(drawn.contains("notice 1.50 s") && drawn.contains("not seen"), "{drawn}");
        record.faults[0].took_hold = None;
        assert_eq!(shape_of_failover(&record), None);
    }
}
