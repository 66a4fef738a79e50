//! `make bench`: how long writes are out for each kind of loss, over many runs on one demo cluster, what three idle nodes cost,
//! and how long a cluster takes to start. Every run ends with the audit of the failover tests: a lost row ends the bench.
//!
//! TRILITHON_BENCH_RUNS sets the number of runs (20). Machines differ: compare ratios, and say what machine it was.
//! Deliberately absent: pass or fail by figures; `tests/it/failover.rs` has the bounds.

#[path = "../tests/it/cluster_harness.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod cluster_harness;
#[path = "../tests/it/cluster_load.rs"]
mod cluster_load;
#[path = "../tests/it/failover_scenarios.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod failover_scenarios;

use cluster_harness::Cluster;
use failover_scenarios::{self as scenarios, Measured};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Long enough to average over heartbeats and lease renewals.
const IDLE: Duration = Duration::from_secs(40);
/// What a start leaves behind (files to sync, checkpoints) is not idleness.
const SETTLE: Duration = Duration::from_secs(10);
/// The kernel's clock ticks per second in /proc/PID/stat, fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// For a frozen primary, as the figures to reach name it.
const FROZEN: Duration = Duration::from_secs(30);

fn main() {
    let runs = std::env::var("TRILITHON_BENCH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let only: Option<String> = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(bench(runs, only.as_deref()));
}

async fn bench(runs: usize, only: Option<&str>) {
    let cluster = Cluster::start(Path::new(env!("CARGO_BIN_EXE_trilithon")), "bench", &[]).await;
    println!("demo: whole {:.1} s after the command", cluster.started_in.as_secs_f64());
    let wanted = |name: &str| only.is_none_or(|o| name.contains(o));
    if wanted("idle") {
        idle(&cluster).await;
    }
    println!(
        "\n{:<28} {:>4}  {:>10} {:>10}  {:>10} {:>10}  {:>9} {:>8}",
        "write outage", "runs", "p50", "max", "rejoin p50", "max", "rows", "unknown"
    );
    if wanted("killed") {
        let mut all = Vec::new();
        for run in 0..runs {
            all.push(scenarios::primary_datacenter_killed(&cluster, &format!("killed_{run}")).await);
        }
        row("primary's datacenter killed", &all);
    }
    if wanted("postmaster") {
        let mut all = Vec::new();
        for run in 0..runs {
            all.push(scenarios::postmaster_killed(&cluster, &format!("postmaster_{run}")).await);
        }
        row("postmaster killed", &all);
    }
    if wanted("switchover") {
        let mut all = Vec::new();
        for run in 0..runs {
            all.push(scenarios::switchover(&cluster, &format!("switchover_{run}")).await);
        }
        row("planned switchover", &all);
    }
    if wanted("frozen") {
        frozen(&cluster, runs.div_ceil(4)).await;
    }
    if wanted("cut") {
        let mut all = Vec::new();
        for run in 0..runs.div_ceil(4) {
            all.push(scenarios::primary_cut_off(&cluster, &format!("cut_{run}"), FROZEN).await);
        }
        row("primary cut off 30 s", &all);
    }
    println!("\nEvery acknowledged row was on every node once after each run.");
}

async fn frozen(cluster: &Cluster, runs: usize) {
    let mut all = Vec::new();
    let (mut synchronous, mut local, mut longest) = (0, 0, Duration::ZERO);
    for run in 0..runs {
        let thawed = scenarios::primary_frozen(cluster, &format!("frozen_{run}"), FROZEN).await;
        synchronous += thawed.synchronous;
        local += thawed.local;
        longest = longest.max(thawed.local_for);
        all.push(thawed.measured);
    }
    row("primary frozen 30 s", &all);
    println!(
        "  after the thaw the old primary acknowledged {synchronous} rows, and {local} with synchronous_commit=local (within {longest:?})"
    );
}

fn row(name: &str, all: &[Measured]) {
    let mut outages: Vec<Duration> = all.iter().map(|m| m.outage).collect();
    let mut rejoins: Vec<Duration> = all.iter().filter_map(|m| m.rejoin).collect();
    outages.sort();
    rejoins.sort();
    let seconds = |d: Option<&Duration>| d.map_or("-".to_owned(), |d| format!("{:.2} s", d.as_secs_f64()));
    let middle = |sorted: &[Duration]| seconds(sorted.get(sorted.len() / 2));
    println!(
        "{name:<28} {:>4}  {:>10} {:>10}  {:>10} {:>10}  {:>9} {:>8}",
        all.len(),
        middle(&outages),
        seconds(outages.last()),
        middle(&rejoins),
        seconds(rejoins.last()),
        all.iter().map(|m| m.acknowledged).sum::<usize>(),
        all.iter().map(|m| m.unknown).sum::<usize>(),
    );
    let mut errors = std::collections::BTreeMap::<&str, u64>::new();
    for (error, count) in all.iter().flat_map(|m| &m.errors) {
        *errors.entry(error).or_default() += count;
    }
    for (error, count) in errors {
        println!("    {count:>6} × {error}");
    }
}

/// Memory and CPU of the node processes, without Postgres, while nobody does anything.
async fn idle(cluster: &Cluster) {
    let pids: Vec<u32> = cluster.file().nodes.iter().map(|n| n.pid).collect();
    tokio::time::sleep(SETTLE).await;
    let before: f64 = pids.iter().map(|pid| cpu_seconds(*pid)).sum();
    let began = cluster.now();
    tokio::time::sleep(IDLE).await;
    let cpu = pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>() - before;
    let percent = 100.0 * cpu / cluster.now().since(began).as_secs_f64();
    let pss: Vec<f64> = pids.iter().map(|pid| pss_mb(*pid)).collect();
    println!("idle: {:.1} MB PSS in {} nodes ({pss:.1?}), {percent:.2} % of one core", pss.iter().sum::<f64>(), pids.len());
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node runs");
    // The name in parentheses may hold blanks; user and system time are the 12th and 13th field after it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|f| f.parse::<f64>().expect("a number of ticks")).sum();
    ticks / TICKS_PER_SECOND
}

fn pss_mb(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the node runs");
    let line = rollup.lines().find(|l| l.starts_with("Pss:")).expect("the kernel counts proportional memory");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number of kB") / 1000.0
}
