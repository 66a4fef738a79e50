//! Counting while the run goes on: a sample per second and site, and the times when nobody's write was acknowledged.
//!
//! Who speaks to Postgres itself may go on writing to a primary that nobody routes to any more. Such writes are in the totals; that the
//! database is available they do not show.

use super::history::{Door, Fate};
use crate::record::{At, Outage, Sample};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A pause between two acknowledgements that is longer counts as an outage.
const OUTAGE_MIN: Duration = Duration::from_millis(300);
const SECOND: u64 = 1_000_000;

/// Where a run stands.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
    /// Acknowledged by all sites in the last whole second that anybody reported.
    pub per_second: u32,
    /// Of the last write that was acknowledged through a proxy.
    pub last_acknowledged: Option<At>,
    pub outages: usize,
}

/// Shared by all sites.
pub struct Tally(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    sites: Vec<Second>,
    samples: Vec<Sample>,
    outages: Vec<Outage>,
    progress: Progress,
}

#[derive(Default)]
struct Second {
    name: String,
    index: u64,
    acknowledged: u32,
    refused: u32,
    unknown: u32,
    latencies_us: Vec<u32>,
}

impl Tally {
    #[must_use]
    pub fn new(sites: &[String]) -> Tally {
        let sites = sites.iter().map(|name| Second { name: name.clone(), ..Second::default() }).collect();
        Tally(Mutex::new(Counts { sites, ..Counts::default() }))
    }

    /// A write that came in by `door` was answered (or given up) at `to`.
    pub fn count(&self, site: u8, door: Door, from: At, to: At, fate: Fate) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.turn(usize::from(site), to.0 / SECOND);
        let Some(second) = counts.sites.get_mut(usize::from(site)) else { return };
        match fate {
            Fate::Done => {
                second.acknowledged += 1;
                second.latencies_us.push(u32::try_from(to.since(from).as_micros()).unwrap_or(u32::MAX));
                counts.progress.acknowledged += 1;
                if door != Door::Direct {
                    counts.acknowledge(to);
                }
            }
            Fate::Refused => {
                second.refused += 1;
                counts.progress.refused += 1;
            }
            Fate::Unknown => {
                second.unknown += 1;
                counts.progress.unknown += 1;
            }
        }
    }

    #[must_use]
    pub fn progress(&self) -> Progress {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut progress = counts.progress.clone();
        progress.outages = counts.outages.len();
        let latest = counts.samples.iter().rev().take(counts.sites.len());
        progress.per_second = latest.map(|sample| sample.acknowledged).sum();
        progress
    }

    /// Ends the counting at `now`: an outage that still lasts is one too.
    #[must_use]
    pub fn finish(&self, now: At) -> (Vec<Sample>, Vec<Outage>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for site in 0..counts.sites.len() {
            counts.turn(site, now.0 / SECOND + 1);
        }
        counts.acknowledge(now);
        counts.samples.sort_by(|a, b| (a.at, &a.site).cmp(&(b.at, &b.site)));
        (std::mem::take(&mut counts.samples), std::mem::take(&mut counts.outages))
    }
}

impl Counts {
    /// Closes a site's second when another one begins. Seconds in which nothing was answered become empty samples.
    fn turn(&mut self, site: usize, index: u64) {
        let Some(second) = self.sites.get_mut(site) else { return };
        let is_first = second.index == 0 && second.acknowledged + second.refused + second.unknown == 0;
        if is_first {
            second.index = index;
        }
        while second.index < index {
            self.samples.push(close(second));
            second.index += 1;
        }
    }

    fn acknowledge(&mut self, at: At) {
        let before = self.progress.last_acknowledged.unwrap_or(at);
        if at.since(before) > OUTAGE_MIN {
            self.outages.push(Outage { from: before, to: at });
        }
        // Two threads may report out of order.
        self.progress.last_acknowledged = Some(at.max(before));
    }
}

fn close(second: &mut Second) -> Sample {
    let mut latencies = std::mem::take(&mut second.latencies_us);
    latencies.sort_unstable();
    Sample {
        at: At(second.index * SECOND),
        site: second.name.clone(),
        acknowledged: std::mem::take(&mut second.acknowledged),
        refused: std::mem::take(&mut second.refused),
        unknown: std::mem::take(&mut second.unknown),
        p50_ms: share_ms(&latencies, 50),
        p99_ms: share_ms(&latencies, 99),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for a chart")]
fn share_ms(sorted_us: &[u32], percent: usize) -> f32 {
    let index = (sorted_us.len() * percent / 100).min(sorted_us.len().saturating_sub(1));
    sorted_us.get(index).map_or(0.0, |us| *us as f32 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> At {
        At(ms * 1000)
    }

    #[test]
    fn a_pause_of_all_sites_is_an_outage_and_a_pause_of_one_is_none() {
        let tally = Tally::new(&["dc1".into(), "dc2".into()]);
        for t in 0..10 {
            tally.count(0, Door::Auto, ms(t * 100), ms(t * 100 + 5), Fate::Done);
        }
        tally.count(1, Door::Auto, ms(1100), ms(1150), Fate::Done);
        tally.count(1, Door::Auto, ms(1200), ms(1400), Fate::Refused);
        tally.count(0, Door::Auto, ms(1200), ms(2000), Fate::Done);
        let (samples, outages) = tally.finish(ms(2050));
        assert_eq!(outages.len(), 1, "{outages:?}");
        assert_eq!((outages[0].from, outages[0].to), (ms(1150), ms(2000)));
        let dc1: Vec<u32> = samples.iter().filter(|s| s.site == "dc1").map(|s| s.acknowledged).collect();
        assert_eq!(dc1, vec![10, 0, 1]);
        assert!((samples[0].p50_ms - 5.0).abs() < 0.01);
    }

    #[test]
    fn an_outage_that_never_ends_is_seen() {
        let tally = Tally::new(&["dc1".into()]);
        tally.count(0, Door::Auto, ms(0), ms(10), Fate::Done);
        let (_, outages) = tally.finish(ms(5000));
        assert_eq!(outages.len(), 1);
    }

    #[test]
    fn who_writes_past_the_proxies_shows_no_availability() {
        let tally = Tally::new(&["dc1".into()]);
        tally.count(0, Door::Primary, ms(0), ms(10), Fate::Done);
        for t in 1..20 {
            tally.count(0, Door::Direct, ms(t * 100), ms(t * 100 + 5), Fate::Done);
        }
        assert_eq!((tally.progress().acknowledged, tally.progress().last_acknowledged), (20, Some(ms(10))));
        let (_, outages) = tally.finish(ms(2000));
        assert_eq!(outages.len(), 1, "{outages:?}");
    }
}
