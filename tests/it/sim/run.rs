//! Running seeds: a phase with faults, a heal, and the question whether the cluster is whole again.

use super::config::Config;
use super::mutant::Mutant;
use super::node::Time;
use super::oracle::Violation;
use super::world::World;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use trilithon::cluster::{MemberKind, Phase};
use trilithon::telemetry::Clock;
use trilithon::types::NodeId;

/// After the heal the cluster is writable and fully redundant within this time (P7): an election, a recovery of up to half a
/// minute, a rewind that fails and a copy that follows it, each with a margin.
const WHOLE_WITHIN: Time = 300_000;

/// What became of one seed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub simulated: Time,
    pub events: u64,
    pub acks: u64,
    pub elections: u64,
    pub promotions: u64,
    pub hash: u64,
    pub healed_in: Time,
    pub violation: Option<Violation>,
    pub transcript: String,
}

/// Simulate one seed to its end, or to its first violation.
pub fn run_seed(cfg: Config, text: bool) -> Report {
    let (seed, duration) = (cfg.seed, cfg.duration);
    let mut world = World::new(cfg, text);
    // Calm hours with a fault now and then, interrupted by heals after which the world must become whole.
    let rounds = 4;
    let mut healed_in = 0;
    for round in 1..=rounds {
        world.run_until(duration * round / rounds);
        healed_in = healed_in.max(become_whole(&mut world));
        if world.violation.is_some() {
            break;
        }
        rest(&mut world);
    }
    Report {
        seed,
        simulated: world.now,
        events: world.events,
        acks: world.oracle.acks,
        elections: world.oracle.elections,
        promotions: world.oracle.promotions,
        hash: world.trace.hash(),
        healed_in,
        transcript: world.trace.tail(if text { 100_000 } else { 0 }) + &snapshot(&world),
        violation: world.violation,
    }
}

/// Heal, and wait until nothing is left to repair.
fn become_whole(world: &mut World) -> Time {
    if world.violation.is_some() {
        return 0;
    }
    world.heal();
    let begun = world.now;
    let mut acks = world.oracle.acks;
    while world.violation.is_none() {
        if (world.now - begun).is_multiple_of(10_000) {
            world.tidy_up();
        }
        world.run_until(world.now + 1_000);
        match shortfall(world) {
            None if world.oracle.acks > acks => return world.now - begun,
            None => {}
            Some(what) if world.now - begun > WHOLE_WITHIN => {
                world.violate("P7", || format!("not whole {} s after the heal: {what}", WHOLE_WITHIN / 1_000));
            }
            Some(_) => acks = world.oracle.acks,
        }
        if world.now - begun > WHOLE_WITHIN + 60_000 {
            world.violate("P7", || "no write was acknowledged after the heal".into());
        }
    }
    0
}

/// A healthy stretch, in which nothing may happen.
fn rest(world: &mut World) {
    world.oracle.healthy_since = Some(world.now);
    let until = world.now + 30_000;
    world.run_until(until);
    world.faults_on = world.cfg.fault_gap > 0;
    world.disturb();
    world.after(1, super::world::Event::Fault);
}

/// What is missing to a writable and fully redundant cluster.
pub fn shortfall(world: &World) -> Option<String> {
    let state = &world.raft.truth;
    let Phase::Steady { primary } = state.phase else { return Some(format!("phase {:?}", state.phase)) };
    let [rule] = state.rules.as_slice() else { return Some(format!("{} rules in flight", state.rules.len())) };
    if state.members.len() != world.nodes.len() {
        return Some("a member is missing".into());
    }
    for node in world.nodes.iter().filter(|n| n.kind == MemberKind::Data) {
        let fine = match node.id == primary {
            true => node.pg.runs_as_primary(),
            false => node.pg.runs_as_standby() && node.pg.receiver.is_some_and(|(up, _)| world.nodes[up].id == primary),
        };
        if !fine {
            return Some(format!("{} is {:?}, {}", node.name, node.pg.proc, node.step_text()));
        }
        if node.id != primary && !rule.standbys.contains(&node.id) && node.id != NodeId(0) {
            return Some(format!("{} is not in the rule {rule}", node.name));
        }
    }
    None
}

/// Where everybody stands.
fn snapshot(world: &World) -> String {
    let state = &world.raft.truth;
    let rules: Vec<String> = state.rules.iter().map(ToString::to_string).collect();
    let leader = world.raft.leader.map(|l| world.name(l).to_owned());
    let mut text = format!(
        "end at {}: phase {:?} epoch {} rules {rules:?} lease {:?} change {:?} consensus leader {leader:?}\n",
        world.now, state.phase, state.epoch, state.lease, state.change
    );
    for n in &world.nodes {
        let a = &n.agent;
        text += &format!(
            "end {} {}: promised {} {:?} up {} {:?} poisoned {} following {:?} receiver {:?} step `{}` action {:?} controller {} {:?}\n",
            n.name,
            n.id,
            a.disk_promise,
            n.pg.proc,
            a.up,
            n.pg.tip(),
            n.pg.poisoned,
            n.pg.data.as_ref().and_then(|d| d.following),
            n.pg.receiver,
            n.step_text(),
            a.action.as_ref().map(|r| &r.action),
            a.leads,
            a.last_reason.as_ref().map(ToString::to_string),
        );
    }
    text
}

fn hours_wanted() -> u64 {
    std::env::var("TRILITHON_SIM_HOURS").ok().and_then(|h| h.parse().ok()).unwrap_or(2_000)
}

/// Seeds in parallel until `hours` are simulated or one fails.
pub fn run_many(first: u64, hours: u64, mutant: Option<Mutant>) -> (Vec<Report>, u64) {
    let next = AtomicU64::new(first);
    let simulated = AtomicU64::new(0);
    let reports = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _worker in 0..workers {
            scope.spawn(|| {
                while simulated.load(Ordering::Relaxed) < hours * 3_600_000 {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let report = run_seed(Config::draw(seed, mutant), false);
                    simulated.fetch_add(report.simulated, Ordering::Relaxed);
                    if report.violation.is_some() {
                        simulated.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                    reports.lock().expect("no worker panics while it holds this").push(report);
                }
            });
        }
    });
    let reports = reports.into_inner().expect("all workers have ended");
    let total = reports.iter().map(|r| r.simulated).sum();
    (reports, total)
}

/// The seed's options and its last steps, for whoever has to find the cause.
pub fn explain(report: &Report) -> String {
    let cfg = Config::draw(report.seed, None);
    let again = run_seed(cfg.clone(), true);
    let text = report.violation.as_ref().map(|v| format!("{} at {} ms: {}", v.oracle, v.at, v.text)).unwrap_or_default();
    let lines: Vec<&str> = again.transcript.lines().collect();
    let newest = lines[lines.len().saturating_sub(120)..].join("\n");
    format!("seed {}\n{cfg:?}\n{text}\n{newest}", report.seed)
}

#[test]
fn a_seed_replays_bit_for_bit() {
    for seed in 1..=6 {
        let (once, again) = (run_seed(Config::draw(seed, None), false), run_seed(Config::draw(seed, None), true));
        assert_eq!((once.hash, once.events, once.acks), (again.hash, again.events, again.acks), "seed {seed}");
    }
}

/// Seeds that a campaign once stopped at.
/// 7706: the primary's disk was lost while the only other copy could not be started without it; no cluster survives that, and nothing was
/// elected. The world's faults counted a copy that was not consistent yet as one that could take over.
/// 9888: after a switchover to a healthy candidate its promotion failed twice by chance, and the election that followed was said to have no
/// cause.
/// 12567: a primary died, came back, was elected again and was given up at once, because a standby still told of the refusal it had met
/// before: its lease ran on while the next one was taken (INV-9). Refusals now name the lease that they were met under.
/// 17288: a killed agent came back while its orphaned Postgres was frozen; the world expected it to be stopped before it had thawed.
/// 66661: a node started again with a copy of the state from before the first claim of a timeline, and sealed: its WAL counted as the oldest
/// of all, and the acknowledged writes at its end were lost (INV-7). An older copy than the promise gives no seal now.
/// 213202: under asynchronous durability an orphaned Postgres, frozen until its agent was back, acknowledged a write in the moment in which it
/// woke; nothing but an agent ends it there (a known gap), and the world excused only the moment in which the agent woke.
const REGRESSIONS: [u64; 6] = [7_706, 9_888, 12_567, 17_288, 66_661, 213_202];

#[test]
fn seeds_that_once_failed_pass() {
    for seed in REGRESSIONS {
        let report = run_seed(Config::draw(seed, None), false);
        assert!(report.violation.is_none(), "seed {seed}: {:?}", report.violation);
    }
}

#[test]
fn thousands_of_simulated_hours_lose_nothing() {
    if let Some(seed) = std::env::var("TRILITHON_SIM_SEED").ok().and_then(|s| s.parse().ok()) {
        let report = run_seed(Config::draw(seed, None), true);
        println!("{}", report.transcript);
        assert!(report.violation.is_none(), "{:?}", report.violation);
        return;
    }
    let clock = Clock::default();
    let begun = clock.now();
    let first = std::env::var("TRILITHON_SIM_FIRST").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let (reports, total) = run_many(first, hours_wanted(), None);
    let sum = |f: fn(&Report) -> u64| reports.iter().map(f).sum::<u64>();
    println!(
        "{} seeds, {} simulated hours in {:?}: {} events, {} acknowledged writes, {} elections, {} promotions, slowest heal {} s",
        reports.len(),
        total / 3_600_000,
        clock.now().since(begun),
        sum(|r| r.events),
        sum(|r| r.acks),
        sum(|r| r.elections),
        sum(|r| r.promotions),
        reports.iter().map(|r| r.healed_in).max().unwrap_or(0) / 1_000,
    );
    let mut failed: Vec<&Report> = reports.iter().filter(|r| r.violation.is_some()).collect();
    failed.sort_by_key(|r| r.simulated);
    assert!(failed.is_empty(), "{}", explain(failed[0]));
}
