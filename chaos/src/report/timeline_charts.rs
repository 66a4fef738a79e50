//! The charts of one strip of the timeline: acknowledged writes by datacenter, errors, latency.
//!
//! Seconds are joined into buckets of at least two pixels: rates are means, the p99 is the worst of its seconds and datacenters, the
//! p50 the mean weighted with the writes. An outage is never averaged away: it is drawn from its own record.

use super::scale::{Axis, logarithmic_marks, round_up};
use super::svg::{self, Area, n};
use super::text::{count, millis};
use super::timeline::Strip;
use crate::record::{At, Record, Sample};

/// Buckets in a strip; more cannot be told apart on its width.
const BUCKETS_MAX: u64 = 530;
const SECOND: u64 = 1_000_000;

/// Ends of the axes, the same in every strip.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Acknowledged writes per second, all datacenters.
    acknowledged: f64,
    /// Refused and unknown per second.
    errors: f64,
    latency_ms: (f64, f64),
    /// Microseconds.
    bucket: u64,
}

impl Peaks {
    /// `length` is that of a strip, microseconds.
    pub fn of(record: &Record, length: u64) -> Peaks {
        let bucket = (length / SECOND).div_ceil(BUCKETS_MAX).max(1) * SECOND;
        let all = buckets(record, |_| true, At(0), At(super::stats::end(record).0 + 1), bucket);
        let most = |of: fn(&Bucket) -> f64| all.iter().map(of).fold(0.0, f64::max);
        let slowest = most(|bucket| bucket.p99_ms);
        let fastest = all.iter().map(Bucket::p50_ms).filter(|p50| *p50 > 0.0).fold(f64::INFINITY, f64::min);
        let low = if fastest.is_finite() { 10f64.powf(fastest.log10().floor()) } else { 1.0 };
        Peaks {
            acknowledged: round_up(most(|bucket| bucket.acknowledged)),
            errors: round_up(most(|bucket| bucket.refused + bucket.unknown)),
            latency_ms: (low, round_up(slowest).max(low * 10.0)),
            bucket,
        }
    }
}

/// The samples of some seconds together; counts are per second.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    acknowledged: f64,
    refused: f64,
    unknown: f64,
    /// Sum of p50 × acknowledged, and of the acknowledged that have a p50.
    p50_weighed: (f64, f64),
    p99_ms: f64,
}

impl Bucket {
    fn add(&mut self, sample: &Sample, seconds: f64) {
        self.acknowledged += f64::from(sample.acknowledged) / seconds;
        self.refused += f64::from(sample.refused) / seconds;
        self.unknown += f64::from(sample.unknown) / seconds;
        if sample.acknowledged > 0 && sample.p50_ms.is_finite() && sample.p99_ms.is_finite() {
            let weight = f64::from(sample.acknowledged);
            self.p50_weighed.0 += f64::from(sample.p50_ms) * weight;
            self.p50_weighed.1 += weight;
            self.p99_ms = self.p99_ms.max(f64::from(sample.p99_ms));
        }
    }

    /// Zero where nothing was acknowledged.
    fn p50_ms(&self) -> f64 {
        if self.p50_weighed.1 > 0.0 { self.p50_weighed.0 / self.p50_weighed.1 } else { 0.0 }
    }
}

fn buckets(record: &Record, wanted: impl Fn(&Sample) -> bool, from: At, to: At, bucket: u64) -> Vec<Bucket> {
    let seconds = bucket as f64 / SECOND as f64;
    let mut buckets = vec![Bucket::default(); usize::try_from((to.0 - from.0).div_ceil(bucket)).unwrap_or(0)];
    for sample in record.samples.iter().filter(|sample| (from..to).contains(&sample.at) && wanted(sample)) {
        let index = usize::try_from((sample.at.0 - from.0) / bucket).unwrap_or(usize::MAX);
        if let Some(bucket) = buckets.get_mut(index) {
            bucket.add(sample, seconds);
        }
    }
    buckets
}

fn bucket_edges(strip: &Strip, peaks: &Peaks, index: usize) -> (f64, f64) {
    let at = |i: usize| strip.x(At((strip.from.0 + i as u64 * peaks.bucket).min(strip.to.0)));
    (at(index), at(index + 1))
}

/// Areas on top of each other, one per datacenter.
pub fn throughput(strip: &Strip, peaks: &Peaks, area: Area) -> String {
    let height = Axis::linear((0.0, peaks.acknowledged), (area.bottom(), area.y));
    let mut drawn = frame(area, "writes/s", &[(1.0, count(peaks.acknowledged as u64))]);
    let mut floor: Vec<f64> = Vec::new();
    for (i, site) in strip.sites.iter().enumerate() {
        let own = buckets(strip.record, |sample| sample.site == **site, strip.from, strip.to, peaks.bucket);
        floor.resize(own.len(), 0.0);
        let roof: Vec<f64> = floor.iter().zip(&own).map(|(floor, bucket)| floor + bucket.acknowledged).collect();
        drawn += &svg::path(&band(strip, peaks, &height, &floor, &roof), &format!("area{}", i % 6));
        floor = roof;
    }
    drawn
}

/// A closed path between two stepped lines; stretches where both are one are left out.
fn band(strip: &Strip, peaks: &Peaks, height: &Axis, floor: &[f64], roof: &[f64]) -> String {
    let mut data = String::new();
    let mut i = 0;
    while i < roof.len() {
        let length = (i..roof.len()).take_while(|&j| roof[j] > floor[j]).count();
        if length > 0 {
            data += &format!("M{} {}", n(bucket_edges(strip, peaks, i).0), n(height.at(floor[i])));
            for (j, value) in roof.iter().enumerate().skip(i).take(length) {
                data += &format!("V{}H{}", n(height.at(*value)), n(bucket_edges(strip, peaks, j).1));
            }
            for (j, value) in floor.iter().enumerate().skip(i).take(length).rev() {
                data += &format!("V{}H{}", n(height.at(*value)), n(bucket_edges(strip, peaks, j).0));
            }
            data.push('Z');
        }
        i += length.max(1);
    }
    data
}

/// Bars of refused and, below them, unknown outcomes.
pub fn errors(strip: &Strip, peaks: &Peaks, area: Area) -> String {
    let height = Axis::linear((0.0, peaks.errors), (0.0, area.h));
    let mut drawn = frame(area, "errors/s", &[(1.0, count(peaks.errors as u64))]);
    let all = buckets(strip.record, |_| true, strip.from, strip.to, peaks.bucket);
    for (i, bucket) in all.iter().enumerate() {
        let (left, right) = bucket_edges(strip, peaks, i);
        let (unknown, refused) = (height.at(bucket.unknown), height.at(bucket.refused));
        if unknown > 0.0 {
            // One event in a busy minute must be seen: at least two pixels.
            let area = Area { x: left, y: area.bottom() - unknown.max(2.0), w: (right - left).max(1.0), h: unknown.max(2.0) };
            drawn += &svg::rect(area, "unknown", "");
        }
        if refused > 0.0 {
            let y = (area.bottom() - unknown - refused.max(1.5)).max(area.y);
            drawn += &svg::rect(Area { x: left, y, w: (right - left).max(1.0), h: refused.max(1.5) }, "refused", "");
        }
    }
    drawn
}

/// p50 and p99 as lines on a logarithmic axis, broken where nothing was acknowledged.
pub fn latency(strip: &Strip, peaks: &Peaks, area: Area) -> String {
    let height = Axis::logarithmic(peaks.latency_ms, (area.bottom(), area.y));
    let (low, high) = peaks.latency_ms;
    let shown = logarithmic_marks(low, high).into_iter().filter(|mark| is_power_of_ten(*mark));
    let marks: Vec<(f64, String)> = shown.map(|mark| ((area.bottom() - height.at(mark)) / area.h, mark_name(mark))).collect();
    let mut drawn = frame(area, "latency", &marks);
    let all = buckets(strip.record, |_| true, strip.from, strip.to, peaks.bucket);
    for (of, class) in [(Bucket::p50_ms as fn(&Bucket) -> f64, "p50"), (|bucket: &Bucket| bucket.p99_ms, "p99")] {
        let mut data = String::new();
        let mut pen = 'M';
        for (i, bucket) in all.iter().enumerate() {
            let (left, right) = bucket_edges(strip, peaks, i);
            if of(bucket) > 0.0 {
                data += &format!("{pen}{} {}", n(f64::midpoint(left, right)), n(height.at(of(bucket))));
                // A second with silence on both sides is still a dot.
                if pen == 'M' {
                    data.push_str("h.5");
                }
                pen = 'L';
            } else {
                pen = 'M';
            }
        }
        drawn += &svg::path(&data, class);
    }
    drawn
}

fn is_power_of_ten(mark: f64) -> bool {
    (mark.log10() - mark.log10().round()).abs() < 1e-6
}

fn mark_name(ms: f64) -> String {
    match ms {
        0.0..1.0 => format!("{ms} ms"),
        1.0..1_000.0 => millis(ms as u64),
        _ => format!("{} s", n(ms / 1e3)),
    }
}

/// The chart's name, and lines with values at shares of its height.
fn frame(area: Area, name: &str, marks: &[(f64, String)]) -> String {
    let mut drawn = svg::line((area.x, area.bottom()), (area.right(), area.bottom()), "base");
    for (share, value) in marks {
        let y = area.bottom() - share * area.h;
        drawn += &svg::line((area.x, y), (area.right(), y), "grid");
        drawn += &svg::text(area.x - 8.0, y + 4.0, "label end", value);
    }
    let middle = area.y + area.h / 2.0;
    let turned = format!("<text transform=\"translate(14 {}) rotate(-90)\" class=\"label middle\">{name}</text>\n", n(middle));
    // Turned, a name needs its length as height; a low chart's name stays level.
    drawn + &if area.h > svg::text_width(name) { turned } else { svg::text(area.x - 8.0, middle + 12.0, "label end", name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn buckets_keep_the_mean_rate_and_the_worst_latency() {
        let mut record = sample::small();
        record.samples[3].p99_ms = 900.0;
        record.samples[4].acknowledged = 0;
        let joined = buckets(&record, |_| true, At(0), At(10 * SECOND), 5 * SECOND);
        assert_eq!(joined.len(), 2);
        assert_eq!([joined[0].acknowledged, joined[0].p99_ms, joined[0].p50_ms()], [80.0, 900.0, 8.0]);
    }

    #[test]
    fn silence_breaks_areas_and_lines() {
        let mut record = sample::small();
        for second in 20..30 {
            record.samples[second].acknowledged = 0;
        }
        let peaks = Peaks::of(&record, record.duration.0);
        let time = Axis::linear((0.0, record.duration.0 as f64), (0.0, 600.0));
        let sites = ["dc1"];
        let strip = Strip { record: &record, sites: &sites, from: At(0), to: record.duration, time, plot: (0.0, 600.0) };
        let area = Area { x: 0.0, y: 0.0, w: 600.0, h: 100.0 };
        let drawn = throughput(&strip, &peaks, area);
        assert_eq!(drawn.matches("M").count(), 2, "{drawn}");
        let line = latency(&strip, &peaks, area);
        assert!(line.contains("M305 "), "{line}");
    }
}
