//! A million simulated hours before a release: every core, for as long as it takes, and never twice the same seed.
//!
//! Seeds are given out in order and their results are folded at once, so that memory does not grow with the length. Whoever stops a
//! campaign goes on with it later: each line of progress names the lowest seed that is not finished, and all below it are.
//!
//! `TRILITHON_CAMPAIGN_HOURS=N` sets the length, `TRILITHON_SIM_FIRST=N` the first seed; `make sim-release` sets both. Without them
//! this is a short test of the campaign itself.

use super::config::Config;
use super::mutant::Mutant;
use super::oracle::Violation;
use super::run::{Report, explain, run_seed};
use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;
use trilithon::telemetry::Clock;
use trilithon::types::Millis;

/// Milliseconds in an hour.
const HOUR: u64 = 3_600_000;
/// Between two lines of progress: on a terminal each overwrites the one before, in a log they stay.
const TELL_TERMINAL: Duration = Duration::from_secs(1);
const TELL_LOG: Duration = Duration::from_secs(60);
/// Reports that wait to be folded; folding one takes microseconds.
const QUEUE: usize = 64;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
struct Campaign {
    first: u64,
    hours: u64,
    mutant: Option<Mutant>,
}

/// All that is kept of the seeds that are finished.
#[derive(Debug, Default)]
struct Tally {
    /// Every seed below this one is finished.
    next: u64,
    /// Finished ones above it: as many as there are cores, at most.
    ahead: BTreeSet<u64>,
    seeds: u64,
    simulated: u64,
    events: u64,
    acks: u64,
    elections: u64,
    promotions: u64,
    healed_in: u64,
    violations: Vec<Report>,
}

impl Tally {
    fn from(first: u64) -> Tally {
        Tally { next: first, ..Tally::default() }
    }

    fn add(&mut self, report: Report) {
        self.ahead.insert(report.seed);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        self.seeds += 1;
        self.simulated += report.simulated;
        self.events += report.events;
        self.acks += report.acks;
        self.elections += report.elections;
        self.promotions += report.promotions;
        self.healed_in = self.healed_in.max(report.healed_in);
        if report.violation.is_some() {
            self.violations.push(report);
        }
    }

    fn hours(&self) -> u64 {
        self.simulated / HOUR
    }

    /// One line: how far, how fast, how long yet, and where to go on.
    fn progress(&self, campaign: Campaign, took: Duration) -> String {
        let rate = self.simulated as f64 / HOUR as f64 / took.as_secs_f64().max(0.001);
        let left = campaign.hours.saturating_sub(self.hours());
        let seconds = if rate > 0.0 { (left as f64 / rate) as u64 } else { 0 };
        format!(
            "{:>5.1} %  {} of {} h  {rate:.1} h/s  left {}  seeds {} to {}  elections {}  violations {}",
            self.hours() as f64 * 100.0 / campaign.hours.max(1) as f64,
            grouped(self.hours()),
            grouped(campaign.hours),
            span(seconds),
            campaign.first,
            self.next.saturating_sub(1),
            grouped(self.elections),
            self.violations.len(),
        )
    }

    /// What goes into the release's notes.
    fn summary(&self, campaign: Campaign, took: Duration) -> String {
        let mut text = format!(
            "{} simulated hours in {}\n\
             seeds                {} ({} to {})\n\
             events               {}\n\
             acknowledged writes  {}\n\
             elections            {}\n\
             changes of primary   {}\n\
             slowest heal         {} s\n\
             violations           {}\n",
            grouped(self.hours()),
            span(took.as_secs()),
            grouped(self.seeds),
            campaign.first,
            self.next.saturating_sub(1),
            grouped(self.events),
            grouped(self.acks),
            grouped(self.elections),
            grouped(self.promotions),
            self.healed_in / 1_000,
            self.violations.len(),
        );
        let left = campaign.hours.saturating_sub(self.hours());
        if left > 0 {
            text += &format!("to go on: make sim-release FIRST={} HOURS={left}\n", self.next);
        }
        for report in &self.violations {
            let what = report.violation.as_ref().map(|v| format!("{} at {} ms: {}", v.oracle, v.at, v.text)).unwrap_or_default();
            text += &format!("seed {}: {what}\nto repeat it: TRILITHON_SIM_SEED={} make sim\n", report.seed, report.seed);
        }
        text
    }
}

impl Campaign {
    /// Until the hours are done, or a seed fails.
    fn run(self, tell: impl Fn(&str)) -> (Tally, Duration) {
        let clock = Clock::default();
        let begun = clock.now();
        let next = AtomicU64::new(self.first);
        let enough = AtomicBool::new(false);
        let (send, receive) = sync_channel::<Report>(QUEUE);
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        let tally = std::thread::scope(|scope| {
            for _worker in 0..workers {
                let send = send.clone();
                let (next, enough) = (&next, &enough);
                scope.spawn(move || {
                    while !enough.load(Ordering::Relaxed) {
                        let report = survived(next.fetch_add(1, Ordering::Relaxed), self.mutant);
                        // Nobody listens any more only when the fold itself has panicked, which the scope reports.
                        if send.send(report).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            self.fold(&receive, &enough, |tally| tell(&tally.progress(self, clock.now().since(begun))), clock)
        });
        (tally, clock.now().since(begun))
    }

    fn fold(self, reports: &Receiver<Report>, enough: &AtomicBool, tell: impl Fn(&Tally), clock: Clock) -> Tally {
        let every = if std::io::stdout().is_terminal() { TELL_TERMINAL } else { TELL_LOG };
        let mut tally = Tally::from(self.first);
        let mut told = Millis::default();
        loop {
            match reports.recv_timeout(every) {
                Ok(report) => tally.add(report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return tally,
            }
            if tally.simulated >= self.hours * HOUR || !tally.violations.is_empty() {
                enough.store(true, Ordering::Relaxed);
            }
            if clock.now().since(told) >= every {
                told = clock.now();
                tell(&tally);
            }
        }
    }
}

/// An assertion of the core that fails is a violation like any other: it must come with its seed.
fn survived(seed: u64, mutant: Option<Mutant>) -> Report {
    let run = AssertUnwindSafe(|| run_seed(Config::draw(seed, mutant), false));
    let report = catch_unwind(run).unwrap_or_else(|_panic| {
        let text = "an assertion failed; its message is on the terminal".to_owned();
        Report { seed, violation: Some(Violation { oracle: "assertion", at: 0, text }), ..Report::default() }
    });
    // A million of these would be kept for nothing.
    Report { transcript: String::new(), ..report }
}

fn show(line: &str) {
    let end = if std::io::stdout().is_terminal() { "\x1b[K\r" } else { "\n" };
    print!("{line}{end}");
    // A terminal that is gone is no reason to stop.
    drop(std::io::stdout().flush());
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let head = digits.len() % 3;
    let (first, rest) = digits.split_at(head);
    let groups = rest.as_bytes().chunks(3).map(|c| String::from_utf8_lossy(c).into_owned());
    Some(first.to_owned()).into_iter().filter(|f| !f.is_empty()).chain(groups).collect::<Vec<_>>().join(",")
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600.. => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

#[test]
fn a_campaign_ends_without_a_violation() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    let hours = number("TRILITHON_CAMPAIGN_HOURS").unwrap_or(20);
    let campaign = Campaign { first: number("TRILITHON_SIM_FIRST").unwrap_or(1), hours, mutant: None };
    let (tally, took) = campaign.run(show);
    println!("{}", tally.summary(campaign, took));
    assert!(tally.violations.is_empty(), "{}", tally.violations.first().map(explain).unwrap_or_default());
    assert!(tally.hours() >= hours);
}

#[test]
fn a_campaign_stops_at_a_violation_and_names_its_seed() {
    let campaign = Campaign { first: 1, hours: 10_000, mutant: Some(Mutant::PromoteWithoutLease) };
    let (tally, took) = campaign.run(|_| {});
    let summary = tally.summary(campaign, took);
    let seed = tally.violations.first().expect("this bug is caught within a few seeds").seed;
    assert!(tally.hours() < 1_000, "it went on for {} h", tally.hours());
    assert!(summary.contains(&format!("TRILITHON_SIM_SEED={seed} make sim")), "{summary}");
}

#[test]
fn a_campaign_that_was_stopped_goes_on_at_its_first_unfinished_seed() {
    let mut tally = Tally::from(7);
    for seed in [8, 10, 9] {
        tally.add(Report { seed, simulated: HOUR, ..Report::default() });
    }
    assert_eq!((tally.next, tally.hours()), (7, 3), "seed 7 is still under way");
    tally.add(Report { seed: 7, simulated: HOUR, ..Report::default() });
    assert_eq!((tally.next, tally.ahead.len()), (11, 0));
    let summary = tally.summary(Campaign { first: 7, hours: 1_000_000, mutant: None }, Duration::from_secs(3_700));
    assert!(summary.contains("make sim-release FIRST=11 HOURS=999996"), "{summary}");
    assert!(summary.contains("4 simulated hours in 1 h 1 min"), "{summary}");
    assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
}
