//! Several things at once: what really happens to datacenters.

use super::aim::Target;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Needs, Phase};
use super::procs::{Kind, Process};
use super::{disk, postgres, process, sessions};
use anyhow::{Context as _, Result, anyhow, bail};
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use rustix::process::Signal;
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Together, name, aim, about, inject)
}

const ANY: &[Phase] = Phase::ALL;

pub(super) const FAULTS: &[Fault] = &[
    fault("lost-datacenter", Aim::Primary, "The primary's datacenter is gone: power and lines at the same moment.", |i| {
        i.isolate(i.target())?;
        lose_power(i, &[i.target()])
    })
    .phases(ANY),
    fault(
        "lost-standby-datacenter",
        Aim::SyncStandby,
        "A synchronous standby's datacenter is gone: power and lines at the same moment.",
        |i| {
            i.isolate(i.target())?;
            lose_power(i, &[i.target()])
        },
    )
    .phases(ANY),
    fault(
        "two-datacenters-lost",
        Aim::Primary,
        "Primary and one standby lose power at once: nobody has a quorum until one is back.",
        |i| {
            let other = i.others(i.target()).pop().context("nobody else")?;
            lose_power(i, &[i.target(), other])
        },
    ),
    fault("both-standbys-lost", Aim::Primary, "Both standbys lose power at once: the primary must acknowledge nothing more.", |i| {
        let others = i.others(i.target());
        lose_power(i, &others)
    }),
    fault("primary-cut-off-and-standby-killed", Aim::Primary, "The primary is cut off, and one of the two that should elect dies.", |i| {
        let other = i.others(i.target()).pop().context("nobody else")?;
        i.isolate(i.target())?;
        process::kill_all(i, other)
    }),
    fault(
        "primary-lost-behind-a-broken-line",
        Aim::Primary,
        "The line to one standby breaks, and then the primary is killed: only the other standby holds what was acknowledged since.",
        |i| {
            const APART: Duration = Duration::from_secs(3);
            let behind = i.others(i.target()).pop().context("nobody else")?;
            i.both_ways(i.target(), behind, |link| link.cut = true)?;
            std::thread::sleep(APART);
            process::kill_all(i, i.target())
        },
    ),
    fault(
        "unheard-standby-and-postmaster-killed",
        Aim::SyncStandby,
        "A standby streams, but its consensus port is cut; when the rule does without it the other's stream is cut, and the primary's postmaster killed.",
        lose_what_a_standby_shows,
    )
    .hold(5, 12),
    fault(
        "unconfirmed-commits-and-postmaster-killed",
        Aim::Primary,
        "No standby hears the primary's Postgres any more, its postmaster is killed while its node goes on, and who is elected is slow to promote.",
        lose_what_nobody_confirmed,
    )
    .hold(3, 6),
    fault(
        "cancelled-waits-and-failover",
        Aim::Primary,
        "No standby hears the primary's Postgres, commits that wait for one are cancelled, and then it is killed.",
        cancel_and_kill,
    )
    .known("PostgreSQL shows a commit whose wait a superuser cancelled, though no standby confirmed it: what was read of it may be lost"),
    fault(
        "reads-lost-while-standbys-lag",
        Aim::Primary,
        "Neither standby replays, the primary's Postgres stands still under its clients' requests and is killed: no read may be run again elsewhere.",
        lose_reads,
    )
    .hold(5, 12),
    fault("everybody-loses-power", Aim::Everyone, "All three datacenters lose power within 50 ms, and come back together.", |i| {
        let all = i.all_targets();
        lose_power(i, &all)
    })
    .phases(ANY),
    fault(
        "everybody-loses-power-and-returns-in-turn",
        Aim::Everyone,
        "All three lose power within 50 ms; they return one at a time, in any order.",
        |i| {
            const APART: (u64, u64) = (500, 6_000);
            let mut order = i.all_targets();
            order.shuffle(&mut i.rng);
            let pauses: Vec<Duration> = order.iter().map(|_| Duration::from_millis(i.rng.random_range(APART.0..=APART.1))).collect();
            // Healed backwards: the first in the list is the last to return.
            lose_power_and_return(i, &order, &pauses)
        },
    )
    .hold(2, 10),
    fault(
        "savepoints-and-everybody-loses-power",
        Aim::Primary,
        "All three lose power in the midst of a transaction with a hundred savepoints: nobody knows what was under way, and PostgreSQL lets nobody in.",
        lose_power_amid_savepoints,
    )
    .hold(2, 6),
    fault("everybody-freezes", Aim::Everyone, "All three datacenters freeze longer than any lease, and wake together.", |i| {
        i.all_targets().into_iter().try_for_each(|target| process::freeze(i, target))
    })
    .hold(4, 15),
    fault(
        "cascade",
        Aim::Primary,
        "The primary is killed; two seconds later the next one freezes; two seconds later the lines are cut.",
        |i| {
            const APART: Duration = Duration::from_secs(2);
            process::kill_all(i, i.target())?;
            std::thread::sleep(APART);
            let next = i.others(i.target()).pop().context("nobody else")?;
            process::freeze(i, next)?;
            std::thread::sleep(APART);
            let last = i.others(i.target()).into_iter().next().context("nobody else")?;
            i.both_ways(last, next, |link| link.cut = true)
        },
    )
    .hold(4, 12),
    fault("two-at-once", Aim::Everyone, "Two faults of the catalogue, chosen by the seed, at the same moment.", |i| swarm(i, 2))
        .hold(8, 25),
    fault("three-at-once", Aim::Everyone, "Three faults of the catalogue, chosen by the seed, at the same moment.", |i| swarm(i, 3))
        .hold(8, 25),
    fault("four-at-once", Aim::Everyone, "Four faults of the catalogue, chosen by the seed, at the same moment.", |i| swarm(i, 4))
        .hold(8, 25),
];

fn lose_power<'a>(i: &mut Injected<'a>, targets: &[Target<'a>]) -> Result<()> {
    lose_power_and_return(i, targets, &[])
}

/// Recovery begins with the last checkpoint, whose record of the transactions under way is not complete.
fn lose_power_amid_savepoints(i: &mut Injected<'_>) -> Result<()> {
    const MANY: &str = "DO $$ BEGIN FOR n IN 1..100 LOOP \
                BEGIN INSERT INTO chaos_savepoints VALUES (n); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$";
    let target = i.target();
    target.sql("CREATE TABLE IF NOT EXISTS chaos_savepoints (n int)")?;
    sessions::hold(i, target, &["BEGIN", MANY])?;
    target.sql("CHECKPOINT")?;
    let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", target.value("SELECT pg_current_wal_flush_lsn()")?);
    for standby in i.others(target) {
        i.wait("replay of the checkpoint", Duration::from_secs(10), || standby.value(&reached).ok().filter(|there| there == "t"))?;
        standby.sql("CHECKPOINT")?;
    }
    i.proved("a hundred savepoints under everybody's checkpoint");
    let all: Vec<Target<'_>> = [target].into_iter().chain(i.others(target)).collect();
    lose_power(i, &all)
}

/// Within a quarter of a second, before anybody could be elected; with `pauses`, the healing waits so long before each return.
fn lose_power_and_return<'a>(i: &mut Injected<'a>, targets: &[Target<'a>], pauses: &[Duration]) -> Result<()> {
    const ALL_WITHIN: Duration = Duration::from_millis(250);
    for (at, target) in targets.iter().copied().enumerate() {
        let pause = pauses.get(at).copied().unwrap_or_default();
        i.undo(format!("power for {}", target.name()), move || {
            std::thread::sleep(pause);
            if target.site.disk().is_some() {
                disk::disk(target)?.remount()?;
            }
            target.start()
        });
    }
    let clock = i.ctx.clock;
    // From the moment its disk hangs nothing that a machine still does becomes durable: that is when its power fails.
    let began = clock.now();
    targets.iter().filter_map(|target| target.site.disk()).for_each(|disk| disk.hang(true));
    let (lost, failed) = std::thread::scope(|scope| {
        let power = |target: &Target<'a>| {
            let site = target.site;
            let fail = move || (clock.now(), site.power_loss(None));
            std::thread::Builder::new().name("chaos-power".to_owned()).spawn_scoped(scope, fail)
        };
        let threads: Result<Vec<_>, std::io::Error> = targets.iter().map(power).collect();
        let (mut lost, mut last) = (0, began);
        for thread in threads.context("no thread to cut the power")? {
            let (at, blocks) = thread.join().map_err(|_| anyhow!("a loss of power panicked"))?;
            (lost, last) = (lost + blocks?, last.max(at));
        }
        Ok::<_, anyhow::Error>((lost, last))
    })?;
    let took = failed.since(began);
    // Known to be dead now; without this the cluster's own service manager would start them.
    targets.iter().for_each(|target| target.node.kill_all());
    if targets.len() > 1 && took > ALL_WITHIN {
        bail!("{} datacenters lost their power over {} ms, which is not at once", targets.len(), took.as_millis());
    }
    let names: Vec<&str> = targets.iter().map(Target::name).collect();
    i.proved(format!("{} lost power within {} ms, and {lost} unflushed blocks", names.join(", "), took.as_millis()));
    Ok(())
}

/// What it shows from then on others decide without, and the last of them does not even have it: nobody may be shown it.
fn lose_what_a_standby_shows(i: &mut Injected<'_>) -> Result<()> {
    const READ: Duration = Duration::from_secs(4);
    let (target, ctx) = (i.target(), i.ctx);
    let primary = ctx.cluster.primary().context("there is no primary at this moment")?;
    let (primaries, others): (Vec<_>, Vec<_>) = i.others(target).into_iter().partition(|t| t.name() == primary);
    let (Some(&primary), Some(&third)) = (primaries.first(), others.first()) else { bail!("the primary is who should confirm") };
    let ports = ctx.cluster.ports();
    super::network::cut_ports(i, &[ports.grpc])?;
    i.prove_unreachable(primary, target, ports.grpc);
    i.prove_reachable(primary, target, ports.postgres);
    let without = || ctx.cluster.status().ok()?.rule.filter(|rule| !rule.changing && !rule.standbys.iter().any(|s| s == target.name()));
    i.wait("a rule without it", Duration::from_secs(20), without)?;
    i.proved(format!("the rule did without {}", target.name()));
    i.both_ways(primary, third, |link| link.cut_ports.extend([ports.postgres]))?;
    i.see_unreachable(third, primary, ports.postgres)?;
    std::thread::sleep(READ);
    see_waiting_commits(i, primary)?;
    process::kill(i, primary, Kind::Postmaster)
}

fn see_waiting_commits(i: &mut Injected<'_>, primary: Target<'_>) -> Result<()> {
    let waiting: u64 = primary.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")?.parse()?;
    if waiting == 0 {
        bail!("no commit waits for a confirmation");
    }
    i.proved(format!("{waiting} commits waited for a confirmation"));
    Ok(())
}

/// What it has after its restart others lack, and its node hears that one of them is elected. Until that one has the new timeline, nobody
/// may be shown what the former primary has.
fn lose_what_nobody_confirmed(i: &mut Injected<'_>) -> Result<()> {
    const WAITS: Duration = Duration::from_secs(2);
    let (target, ctx) = (i.target(), i.ctx);
    let port = ctx.cluster.ports().postgres;
    super::network::cut_ports(i, &[port])?;
    for other in i.others(target) {
        i.see_unreachable(target, other, port)?;
    }
    std::thread::sleep(WAITS);
    see_waiting_commits(i, target)?;
    process::kill(i, target, Kind::Postmaster)?;
    let elected = || ctx.cluster.status().ok().filter(|status| status.phase == "promoting")?.primary;
    let elected = i.wait("an election", Duration::from_secs(5), elected)?;
    let elected = i.others(target).into_iter().find(|t| t.name() == elected).context("the former primary was elected")?;
    process::stop(i, elected, Kind::Startup)
}

/// What was cancelled is on the primary's disk only, and nobody may have been told that it is safe.
fn cancel_and_kill(i: &mut Injected<'_>) -> Result<()> {
    const WAITS: Duration = Duration::from_secs(4);
    let (target, port) = (i.target(), i.ctx.cluster.ports().postgres);
    i.all_lines(target, |link| link.cut_ports.extend([port]))?;
    let cancelling = "DO $$ DECLARE n int; BEGIN \
                      SELECT count(pg_cancel_backend(pid)) INTO n FROM pg_stat_activity WHERE wait_event = 'SyncRep'; \
                      IF n = 0 THEN RAISE EXCEPTION 'nobody waits'; END IF; END $$";
    let (cancelled, _) = sessions::run(i, target, cancelling, 1);
    std::thread::sleep(WAITS);
    process::kill_all(i, target)?;
    i.prove("cancelled waits", move || (cancelled.get() > 0).then(|| format!("waiting commits were cancelled {} times", cancelled.get())));
    Ok(())
}

/// Replay goes on as soon as the requests were lost: an election must not wait for what a standby has not replayed.
fn lose_reads(i: &mut Injected<'_>) -> Result<()> {
    const LAG: Duration = Duration::from_secs(2);
    const STANDS_STILL: Duration = Duration::from_secs(1);
    const LOST_WITHIN: Duration = Duration::from_millis(500);
    let (target, standbys) = (i.target(), i.others(i.target()));
    for standby in &standbys {
        postgres::pause_replay(i, *standby)?;
    }
    std::thread::sleep(LAG);
    let servers = [Kind::Postmaster, Kind::Backend, Kind::WalSender, Kind::Checkpointer].map(|kind| target.processes(kind)).concat();
    servers.iter().for_each(|process| process.signal(Signal::STOP));
    std::thread::sleep(STANDS_STILL);
    servers.iter().for_each(|process| process.signal(Signal::KILL));
    i.prove(format!("Postgres of {} gone", target.name()), move || {
        let gone = servers.iter().all(Process::is_gone);
        gone.then(|| format!("{} processes of Postgres on {} were stopped for a second and killed", servers.len(), target.name()))
    });
    std::thread::sleep(LOST_WITHIN);
    standbys.iter().for_each(|standby| postgres::resume_replay(*standby));
    Ok(())
}

/// Faults that may meet any other: short of injection, and harmless to what is stored.
fn may_meet_others(fault: &Fault) -> bool {
    let quick = matches!(fault.family, Family::Network | Family::Process | Family::Clients | Family::Disk | Family::Clock);
    quick && !fault.destroys && fault.phases.contains(&Phase::Steady)
}

fn swarm(i: &mut Injected<'_>, count: usize) -> Result<()> {
    const TRIES: usize = 12;
    let has_disks = i.all_targets().iter().all(|t| t.site.disk().is_some());
    let has_clocks = i.all_targets().iter().all(|t| t.site.clock().is_some());
    let possible = |fault: &&Fault| match fault.needs {
        Needs::Nothing => true,
        Needs::Disks => has_disks,
        Needs::Shim => has_clocks,
    };
    let all: Vec<&'static Fault> = super::catalogue().iter().filter(|f| may_meet_others(f)).filter(possible).collect();
    let mut chosen: Vec<&'static str> = Vec::new();
    let mut refused = Vec::new();
    for _ in 0..TRIES {
        let fault = all[i.rng.random_range(0..all.len())];
        if chosen.contains(&fault.name) {
            continue;
        }
        // A role may be vacant after the first of them; then another fault is drawn.
        match i.also(fault) {
            Ok(()) => chosen.push(fault.name),
            Err(error) => refused.push(format!("{}: {error:#}", fault.name)),
        }
        if chosen.len() == count {
            return Ok(());
        }
    }
    bail!("only {} of {count} faults found somebody: {}", chosen.len(), refused.join("; "))
}
