//! Faults of processes: killed, stopped, starved.

use super::aim::Target;
use super::evidence::Tail;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Phase};
use super::limits;
use super::misbehaved::Misbehaved;
use super::procs::{Group, Kind, Process};
use crate::cluster::{Ended, Part};
use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Process, name, aim, about, inject)
}

const ANY: &[Phase] = Phase::ALL;
const DURING_CHANGES: &[Phase] = &[Phase::Steady, Phase::Election, Phase::Promotion, Phase::Drain];

pub(super) const FAULTS: &[Fault] = &[
    fault("kill-node", Aim::Primary, "kill -9 of the primary's node process; its Postgres runs on.", |i| kill_node(i, i.target()))
        .phases(ANY),
    fault("kill-standby-node", Aim::SyncStandby, "kill -9 of a synchronous standby's node process.", |i| kill_node(i, i.target()))
        .phases(ANY),
    fault("kill-raft-leader", Aim::RaftLeader, "kill -9 of the consensus leader's node process.", |i| {
        kill_part(i, i.target(), Part::Consensus)
    })
    .phases(ANY),
    fault("kill-postmaster", Aim::Primary, "kill -9 of the primary's postmaster; its orphans end by themselves.", |i| {
        kill(i, i.target(), Kind::Postmaster)
    })
    .hold(3, 10)
    .phases(ANY),
    fault("kill-standby-postmaster", Aim::SyncStandby, "kill -9 of a synchronous standby's postmaster.", |i| {
        kill(i, i.target(), Kind::Postmaster)
    })
    .hold(3, 10)
    .phases(ANY),
    fault("kill-node-and-postgres", Aim::Primary, "kill -9 of everything in the primary's datacenter.", |i| kill_all(i, i.target()))
        .phases(ANY),
    fault("kill-candidate", Aim::Candidate, "kill -9 of everything in the candidate's datacenter.", |i| kill_all(i, i.target())).phases(&[
        Phase::Election,
        Phase::Promotion,
        Phase::Drain,
    ]),
    fault(
        "kill-backend",
        Aim::Primary,
        "kill -9 of one backend: the postmaster ends all others, and must not start again in place.",
        |i| kill(i, i.target(), Kind::Backend),
    )
    .hold(3, 10),
    fault("kill-walreceiver", Aim::SyncStandby, "kill -9 of a walreceiver: its postmaster ends every process of that standby.", |i| {
        kill(i, i.target(), Kind::WalReceiver)
    })
    .hold(3, 10),
    fault("kill-walsender", Aim::Primary, "kill -9 of a walsender of the primary.", |i| kill(i, i.target(), Kind::WalSender)).hold(3, 10),
    fault("kill-checkpointer", Aim::Primary, "kill -9 of the primary's checkpointer.", |i| kill(i, i.target(), Kind::Checkpointer))
        .hold(3, 10),
    fault("kill-startup", Aim::OtherStandby, "kill -9 of a standby's startup process: its Postgres ends.", |i| {
        kill(i, i.target(), Kind::Startup)
    })
    .hold(3, 10)
    .phases(&[Phase::Steady, Phase::Election, Phase::Promotion]),
    fault(
        "kill-node-over-and-over",
        Aim::Primary,
        "The primary's node process is killed each time a service manager has started it.",
        again,
    )
    .hold(10, 20),
    fault("stop-node", Aim::Primary, "SIGSTOP of the primary's node process: its Postgres and its clients go on, its lease ends.", |i| {
        stop(i, i.target(), Kind::Node)
    })
    .phases(DURING_CHANGES),
    fault("stop-raft-leader", Aim::RaftLeader, "SIGSTOP of the consensus leader's node process.", |i| stop(i, i.target(), Kind::Consensus))
        .phases(DURING_CHANGES),
    fault("stop-postmaster", Aim::Primary, "SIGSTOP of the primary's postmaster: old connections work, new ones hang.", |i| {
        stop(i, i.target(), Kind::Postmaster)
    }),
    fault("stop-walreceiver", Aim::SyncStandby, "SIGSTOP of a walreceiver: the connection lives and confirms nothing.", |i| {
        stop(i, i.target(), Kind::WalReceiver)
    }),
    fault(
        "stop-startup",
        Aim::OtherStandby,
        "SIGSTOP of a standby's startup process: it receives and confirms WAL, and replays nothing.",
        |i| stop(i, i.target(), Kind::Startup),
    ),
    fault("stop-backend-with-locks", Aim::Primary, "SIGSTOP of a backend that holds the lock of a table.", stop_locker),
    fault(
        "freeze-datacenter",
        Aim::Primary,
        "Everything in the primary's datacenter freezes, longer than the lease, and wakes as if nothing had been.",
        |i| freeze(i, i.target()),
    )
    .hold(4, 20)
    .phases(ANY),
    fault("freeze-briefly", Aim::Primary, "Everything in the primary's datacenter freezes for less than the lease.", |i| {
        freeze(i, i.target())
    })
    .hold(1, 2),
    fault("freeze-standby", Aim::SyncStandby, "Everything in a synchronous standby's datacenter freezes and wakes.", |i| {
        freeze(i, i.target())
    })
    .hold(4, 20)
    .phases(ANY),
    fault("kill-datacenter", Aim::RaftLeader, "Everything in the consensus leader's datacenter is killed at once.", |i| {
        kill_all(i, i.target())
    })
    .phases(ANY),
    fault("cpu-starved", Aim::Primary, "The primary's datacenter has a twentieth of a CPU.", |i| starve(i, i.target(), 0.05)).hold(10, 30),
    fault("cpu-starved-standby", Aim::SyncStandby, "A synchronous standby's datacenter has a twentieth of a CPU.", |i| {
        starve(i, i.target(), 0.05)
    })
    .hold(10, 30),
    fault(
        "memory-limited",
        Aim::Primary,
        "The primary's datacenter may hold 96 MB in all, or no more than it cannot give back; the kernel kills what does not fit.",
        squeeze,
    )
    .hold(10, 30),
    fault("descriptors-exhausted", Aim::Primary, "The primary's node process can open no further file or socket.", exhaust).hold(10, 30),
    fault("terminate-node", Aim::Primary, "SIGTERM of the primary's node: it hands over and ends.", |i| terminate(i, i.target()))
        .phases(&[Phase::Steady, Phase::Rewind, Phase::BaseBackup]),
    fault("terminate-standby", Aim::SyncStandby, "SIGTERM of a synchronous standby's node: it leaves the rule first.", |i| {
        terminate(i, i.target())
    }),
];

fn kill_node<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    kill_part(i, target, Part::Node)
}

/// Down until the fault heals: no service manager starts it meanwhile.
fn kill_part<'a>(i: &mut Injected<'a>, target: Target<'a>, part: Part) -> Result<()> {
    let kind = match part {
        Part::Node => Kind::Node,
        Part::Consensus => Kind::Consensus,
    };
    let process = target.process(kind)?;
    i.undo(format!("start {}", target.name()), move || target.start());
    target.node.kill(part);
    prove_gone(i, target, kind, process);
    Ok(())
}

pub(super) fn kill_all<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let victims: Vec<Process> = target.site.pids().into_iter().filter_map(Process::of).collect();
    if victims.is_empty() {
        bail!("nothing runs in {}", target.name());
    }
    i.undo(format!("start {}", target.name()), move || target.start());
    target.node.kill_all();
    i.prove(format!("all processes of {} gone", target.name()), move || {
        let gone = victims.iter().all(Process::is_gone);
        gone.then(|| format!("all {} processes of {} are gone", victims.len(), target.name()))
    });
    Ok(())
}

/// kill -9 of one of Postgres's processes. Nothing is to be mended: whoever is responsible for it must see to it.
pub(super) fn kill<'a>(i: &mut Injected<'a>, target: Target<'a>, kind: Kind) -> Result<()> {
    let process = target.process(kind)?;
    i.undo("whoever ended over it", || Ok(()));
    process.signal(Signal::KILL);
    prove_gone(i, target, kind, process);
    Ok(())
}

fn prove_gone<'a>(i: &mut Injected<'a>, target: Target<'a>, kind: Kind, process: Process) {
    let what = format!("{} {} of {}", kind.words(), process.pid, target.name());
    i.prove(format!("{what} gone"), move || process.is_gone().then(|| format!("{what} is gone")));
}

/// SIGSTOP until it heals.
pub(super) fn stop<'a>(i: &mut Injected<'a>, target: Target<'a>, kind: Kind) -> Result<()> {
    let process = target.process(kind)?;
    stop_process(i, target, kind, process);
    Ok(())
}

fn stop_process<'a>(i: &mut Injected<'a>, target: Target<'a>, kind: Kind, process: Process) {
    let waking = process.clone();
    i.undo(format!("wake the {} of {}", kind.words(), target.name()), move || {
        waking.signal(Signal::CONT);
        Ok(())
    });
    process.signal(Signal::STOP);
    let what = format!("{} {} of {}", kind.words(), process.pid, target.name());
    i.prove(format!("{what} stopped"), move || process.is_stopped().then(|| format!("{what} is stopped")));
}

/// A service manager's restarts are the harness's, which starts nothing else while a fault is in force: a start would wait with whatever
/// is frozen or hangs.
fn again(i: &mut Injected<'_>) -> Result<()> {
    const LIVES: Duration = Duration::from_millis(2_500);
    const TEND_EVERY: Duration = Duration::from_millis(100);
    let target = i.target();
    let first = target.process(Kind::Node)?;
    i.undo(format!("start {}", target.name()), move || target.start());
    let log = Tail::of(target.node_log());
    let group = Group::of(first.pid)?;
    let (cluster, clock) = (i.ctx.cluster.clone(), i.ctx.clock);
    let toil = super::toil::Toil::begin("chaos-kill", move |rest| {
        for process in group.find(Kind::Node) {
            process.signal(Signal::KILL);
        }
        let mut left = LIVES;
        while !left.is_zero() && !rest.is_over() {
            cluster.tend(&clock);
            rest.sleep(TEND_EVERY);
            left = left.saturating_sub(TEND_EVERY);
        }
    })?;
    i.undo("end the killing", move || toil.end());
    prove_gone(i, target, Kind::Node, first);
    i.prove(format!("{} was started again and killed again", target.name()), move || {
        let starts = super::evidence::plain(&log.new_text()).matches("node starts").count();
        (starts >= 2).then(|| format!("{} was started {starts} times in vain", target.name()))
    });
    Ok(())
}

fn stop_locker(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    target.sql("CREATE TABLE IF NOT EXISTS chaos_locked (id int)")?;
    super::sessions::hold(i, target, &["BEGIN", "LOCK TABLE chaos_locked IN ACCESS EXCLUSIVE MODE"])?;
    let pid = target.value("SELECT pid FROM pg_locks WHERE relation = 'chaos_locked'::regclass AND granted LIMIT 1")?;
    let process = pid.parse().ok().and_then(Process::of).context("the backend with the lock has ended")?;
    stop_process(i, target, Kind::Backend, process);
    Ok(())
}

pub(super) fn freeze<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    i.undo(format!("thaw {}", target.name()), move || target.site.thaw());
    target.site.freeze()?;
    let system = i.ctx.cluster.system();
    // The kernel still shakes hands for a frozen process; only an answer would show life.
    i.prove(format!("{} frozen", target.name()), move || {
        let answers = super::probe::answers(target.site, system);
        (!answers).then(|| format!("{} does not answer", target.name()))
    });
    Ok(())
}

fn starve<'a>(i: &mut Injected<'a>, target: Target<'a>, share: f64) -> Result<()> {
    const STAT: (&str, &str) = ("cpu.stat", "nr_throttled");
    let pid = target.process(Kind::Node)?.pid;
    let throttled = move || limits::counter(pid, "cpu", STAT, STAT).unwrap_or(0);
    i.undo(format!("give {} its CPU back", target.name()), move || target.site.limit_cpu(None));
    let before = throttled();
    target.site.limit_cpu(Some(share))?;
    i.prove(format!("{} throttled", target.name()), move || {
        let times = throttled().saturating_sub(before);
        (times > 20).then(|| format!("{} was throttled more than {times} times", target.name()))
    });
    Ok(())
}

fn squeeze(i: &mut Injected<'_>) -> Result<()> {
    const BYTES: u64 = 96 << 20;
    let target = i.target();
    let pid = target.process(Kind::Node)?.pid;
    let reached = move || limits::counter(pid, "memory", ("memory.events", "max"), ("memory.failcnt", ""));
    i.undo(format!("give {} its memory back", target.name()), move || target.site.limit_memory(None));
    let before = reached().unwrap_or(0);
    target.site.limit_memory(Some(BYTES))?;
    // Something that needs memory, so that the limit is felt: a sort of more than fits.
    let sort = "SET work_mem = '512MB'; SELECT count(*) FROM (SELECT g FROM generate_series(1, 3000000) g ORDER BY md5(g::text)) s";
    super::sessions::run(i, target, sort, 2);
    i.prove(format!("{} out of memory", target.name()), move || {
        let hits = reached()?.saturating_sub(before);
        (hits > 0).then(|| format!("{} reached its limit of memory {hits} times", target.name()))
    });
    Ok(())
}

fn exhaust(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    let pid = target.process(Kind::Node)?.pid;
    let log = Tail::of(target.node_log());
    let before = limits::descriptors(pid, Some(limits::open_descriptors(pid)))?;
    i.undo(format!("let {} open files again", target.name()), move || {
        // The process may have ended over it.
        let _ = limits::descriptors(pid, before);
        Ok(())
    });
    super::sessions::knock(i, target, 40)?;
    i.prove(format!("{} out of descriptors", target.name()), move || {
        log.line(&["Too many open files", "os error 24"]).map(|line| format!("{}: {line}", target.name()))
    });
    Ok(())
}

/// In order: within twenty seconds the process is gone, and so is its Postgres. What else it does is its own fault, not that there was
/// nothing to end.
fn terminate<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let process = target.process(Kind::Node)?;
    i.undo(format!("start {}", target.name()), move || target.start());
    end_in_order(i, target)?;
    prove_gone(i, target, Kind::Node, process);
    Ok(())
}

/// SIGTERM, and wait.
///
/// # Errors
/// It does not run; [`Misbehaved`] where it does not end, or not with success.
pub(super) fn end_in_order(i: &Injected<'_>, target: Target<'_>) -> Result<()> {
    match i.ctx.cluster.terminate(target.node)? {
        Ended::With(status) if status.success() => Ok(()),
        Ended::With(status) => bail!(Misbehaved(format!("{} ended with {status} after SIGTERM, not in order", target.name()))),
        Ended::NotWithin(limit) => bail!(Misbehaved(format!("{} has not ended {} s after SIGTERM", target.name(), limit.as_secs()))),
    }
}
