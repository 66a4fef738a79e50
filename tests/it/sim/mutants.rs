//! Self-proof: every seeded bug must be caught. Prints who caught it, and how long that took.
//!
//! `TRILITHON_MUTANT=Name` runs one, `TRILITHON_MUTANT_HOURS=N` sets the budget of each in simulated hours.

use super::config::Config;
use super::mutant::Mutant;
use super::run::{Report, run_seed};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use trilithon::telemetry::Clock;

/// One row of the table.
struct Hunt {
    mutant: Mutant,
    caught: Option<Report>,
    simulated: u64,
    took: Duration,
}

fn hunt(mutant: Mutant, budget_hours: u64) -> Hunt {
    let clock = Clock::default();
    let begun = clock.now();
    let mut simulated = 0;
    let mut seed = 1;
    let mut caught = None;
    while caught.is_none() && simulated < budget_hours * 3_600_000 {
        let report = run_seed(Config::draw(seed, Some(mutant)), false);
        simulated += report.violation.as_ref().map_or(report.simulated, |v| v.at);
        caught = report.violation.is_some().then_some(report);
        seed += 1;
    }
    Hunt { mutant, caught, simulated, took: clock.now().since(begun) }
}

fn row(hunt: &Hunt) -> String {
    let (oracle, seed) = match &hunt.caught {
        Some(report) => (report.violation.as_ref().map_or("", |v| v.oracle), report.seed.to_string()),
        None => ("NOT CAUGHT", String::new()),
    };
    let hours = hunt.simulated as f64 / 3_600_000.0;
    format!("| {:<26} | {oracle:<10} | {seed:>5} | {hours:>9.2} | {:>8.2} |", format!("{:?}", hunt.mutant), hunt.took.as_secs_f64())
}

#[test]
fn every_seeded_bug_is_caught() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    let budget = number("TRILITHON_MUTANT_HOURS").unwrap_or(60);
    let only = std::env::var("TRILITHON_MUTANT").ok();
    let wanted: Vec<Mutant> = Mutant::ALL.into_iter().filter(|m| only.as_ref().is_none_or(|o| *o == format!("{m:?}"))).collect();
    let next = AtomicUsize::new(0);
    let hunts = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _worker in 0..workers {
            scope.spawn(|| {
                while let Some(mutant) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let hunt = hunt(*mutant, budget);
                    hunts.lock().expect("no worker panics while it holds this").push(hunt);
                }
            });
        }
    });
    let mut hunts = hunts.into_inner().expect("all workers have ended");
    hunts.sort_by_key(|h| Mutant::ALL.iter().position(|m| *m == h.mutant));
    println!("| seeded bug                 | caught by  |  seed | sim hours |  seconds |");
    println!("|----------------------------|------------|-------|-----------|----------|");
    for hunt in &hunts {
        println!("{}", row(hunt));
    }
    let missed: Vec<Mutant> = hunts.iter().filter(|h| h.caught.is_none()).map(|h| h.mutant).collect();
    assert!(missed.is_empty(), "not caught within {budget} simulated hours: {missed:?}");
}
