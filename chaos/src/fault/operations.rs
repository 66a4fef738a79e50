//! Faults of administrators: right orders at the wrong moment, and contradicting ones.

use super::aim::{self, Target};
use super::evidence::Tail;
use super::injected::{Ctx, Injected};
use super::kinds::{Aim, Family, Fault, Phase};
use super::misbehaved::Misbehaved;
use super::orders::{self, Order};
use super::procs::Kind;
use super::{process, said};
use crate::cluster::Status;
use crate::workload::final_state::{PrimaryChange, parse_changes};
use anyhow::{Context as _, Result, bail};
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Operations, name, aim, about, inject)
}

pub(super) const FAULTS: &[Fault] = &[
    fault("planned-switchover", Aim::Primary, "A switchover is ordered while all is well.", |i| {
        let target = i.target();
        let order = orders::give(i, target, &["switchover"])?;
        i.undo("nothing to mend after a switchover", || Ok(()));
        let ctx = i.ctx;
        // Exit codes are not the same for all systems; who is primary afterwards is.
        i.prove("another primary", move || {
            let next = ctx.cluster.status().ok().filter(Status::is_writable)?.primary?;
            (next != target.name()).then(|| format!("{next} is primary after {}", order.outcome().unwrap_or_default()))
        });
        Ok(())
    })
    .hold(5, 8),
    fault(
        "switchover-during-partition",
        Aim::OtherStandby,
        "A switchover is ordered while one standby is cut off: to the other it works.",
        |i| {
            let target = i.target();
            i.isolate(target)?;
            let to = others(i, target, Role::Standby)?;
            let order = orders::give(i, to, &["switchover", "--to", to.name()])?;
            let done = order.clone();
            // An administrator of the workload may have given another order before.
            let overtaken = move |order: &Order| order.refusal().filter(|said| OVERTAKEN.iter().any(|words| said.contains(words)));
            i.expect(format!("the switchover to {} is done", to.name()), move || done.done().or_else(|| overtaken(&done)));
            prove_outcome(i, order);
            Ok(())
        },
    )
    .hold(10, 20),
    fault("switchover-to-the-unreachable", Aim::OtherStandby, "A switchover to a standby that is cut off: refused, or called off.", |i| {
        let target = i.target();
        i.isolate(target)?;
        let from = others(i, target, Role::Primary)?;
        let order = orders::give(i, from, &["switchover", "--to", target.name()])?;
        i.expect(format!("the switchover to {} is answered, and not done", target.name()), move || order.refusal());
        Ok(())
    })
    .hold(25, 40),
    fault("candidate-lost-in-switchover", Aim::SyncStandby, "The candidate of a switchover is killed while the primary drains.", |i| {
        let target = i.target();
        let order = orders::give(i, others(i, target, Role::Primary)?, &["switchover", "--to", target.name()])?;
        reach(i, "a drain", |s| s.phase != "steady")?;
        process::kill_all(i, target)?;
        prove_outcome(i, order);
        Ok(())
    })
    .hold(8, 25)
    .phases(&[Phase::Steady]),
    fault("primary-lost-in-switchover", Aim::Primary, "The primary is killed while it drains for a switchover.", |i| {
        let target = i.target();
        let from = i.others(target).pop().context("there is no standby")?;
        let order = orders::give(i, from, &["switchover"])?;
        reach(i, "a drain", |s| s.phase != "steady")?;
        process::kill_all(i, target)?;
        prove_outcome(i, order);
        Ok(())
    })
    .hold(8, 25),
    fault(
        "contradicting-orders",
        Aim::Everyone,
        "At once: switchover to each standby, failover, pause and resume, from three datacenters.",
        contradict,
    )
    .hold(10, 25),
    fault("orders-over-and-over", Aim::Everyone, "A switchover follows the other as fast as they are accepted.", |i| {
        for _ in 0..4 {
            let primary = i.ctx.cluster.primary().context("there is no primary at this moment")?;
            let output = i.ctx.cluster.order_at(&primary, &["switchover"])?;
            let words = orders::in_words(&output);
            if !output.status.success() {
                bail!("switchover: {words}");
            }
            i.proved(words);
        }
        i.undo("nothing to mend after switchovers", || Ok(()));
        Ok(())
    })
    .hold(1, 3),
    fault("rolling-restart", Aim::Everyone, "Each node is ended by SIGTERM and started again, one after the other.", rolling_restart)
        .hold(1, 3),
    fault("failover-during-base-backup", Aim::Primary, "The primary is killed while a standby is copied from it.", |i| {
        let target = i.target();
        let copied = i.others(target).pop().context("there is no standby")?;
        orders::give(i, copied, &["reinit", copied.name()])?;
        i.wait("a copy", Duration::from_secs(20), || copied.process(Kind::BaseBackup).ok())?;
        i.proved(format!("{} was being copied", copied.name()));
        process::kill_all(i, target)
    })
    .hold(10, 30),
    fault("copied-standby-killed", Aim::OtherStandby, "Everything in a standby's datacenter is killed while it is being copied.", |i| {
        let target = i.target();
        orders::give(i, target, &["reinit", target.name()])?;
        i.wait("a copy", Duration::from_secs(20), || target.process(Kind::BaseBackup).ok())?;
        process::kill_all(i, target)
    }),
    fault("failover-during-failover", Aim::Primary, "The primary is killed, and its successor in the middle of the promotion.", |i| {
        let candidate = successor(i)?;
        process::kill_all(i, candidate)
    })
    .hold(8, 20),
    fault(
        "candidate-postgres-killed",
        Aim::Primary,
        "The primary is killed, and its successor's postmaster in the middle of the promotion.",
        |i| {
            let candidate = successor(i)?;
            process::kill(i, candidate, Kind::Postmaster)
        },
    )
    .hold(8, 20),
    fault("candidate-isolated", Aim::Primary, "The primary is killed, and its successor cut off in the middle of the promotion.", |i| {
        let candidate = successor(i)?;
        i.isolate(candidate)
    })
    .hold(8, 20),
    fault("candidate-frozen", Aim::Primary, "The primary is killed, and its successor freezes in the middle of the promotion.", |i| {
        let candidate = successor(i)?;
        process::freeze(i, candidate)
    })
    .hold(8, 20),
    fault(
        "paused-and-primary-killed",
        Aim::Primary,
        "Failover is paused when the primary is lost: nobody is elected until it is resumed.",
        |i| {
            pause(i)?;
            process::kill_all(i, i.target())
        },
    )
    .hold(8, 20),
    fault(
        "paused-and-postmaster-killed",
        Aim::Primary,
        "Failover is paused when the primary's Postgres crashes: nobody is elected until it is resumed.",
        |i| {
            pause(i)?;
            process::kill(i, i.target(), Kind::Postmaster)
        },
    )
    .hold(8, 20),
    fault(
        "fenced-standby-and-failover",
        Aim::SyncStandby,
        "One standby is fenced when the primary is lost: only the other may be elected.",
        |i| {
            let (target, ctx) = (i.target(), i.ctx);
            let primary = others(i, target, Role::Primary)?;
            i.afterwards(format!("unfence {}", target.name()), move || accepted(&ctx.cluster.cli(&["unfence", target.name()])?));
            accepted(&ctx.cluster.cli(&["fence", target.name()])?)?;
            i.wait("the fenced Postgres to stop", Duration::from_secs(15), || target.processes(Kind::Postmaster).is_empty().then_some(()))?;
            i.proved(format!("{} is fenced", target.name()));
            let before = ctx.cluster.status()?.epoch;
            i.forbid("an election of the fenced one", move || {
                let elected = since(ctx, before).into_iter().find(|change| change.to == target.name())?;
                Some(format!("{} was elected in epoch {}, and is fenced", elected.to, elected.epoch))
            });
            process::kill(i, primary, Kind::Postmaster)
        },
    )
    .hold(8, 20),
    fault(
        "member-removed-during-partition",
        Aim::OtherStandby,
        "A member that is cut off is removed; it comes back, learns it and ends.",
        remove,
    )
    .hold(8, 20)
    .remedy("a removed member joins again when a person has moved its directory aside"),
    fault(
        "member-added-during-partition",
        Aim::OtherStandby,
        "A member joins anew, with an empty disk, while it cannot reach one of the others.",
        |i| {
            let target = i.target();
            let far = i.others(target).pop().context("nobody else")?;
            i.undo(format!("start {}", target.name()), move || target.start());
            target.node.kill_all();
            super::volume::run(std::process::Command::new("find").arg(target.data_dir()).args(["-mindepth", "1", "-delete"]))?;
            i.cut_both(target, far)?;
            target.start()?;
            Ok(())
        },
    )
    .destroys()
    .hold(10, 25),
    fault("settings-changed-during-partition", Aim::RaftLeader, "A setting is changed while the consensus leader is cut off.", |i| {
        let target = i.target();
        let ctx = i.ctx;
        i.afterwards("the setting as before", move || accepted(&ctx.cluster.cli(&["config", "set", "ha.max_lag"])?));
        i.isolate(target)?;
        let from = i.others(target).pop().context("nobody else")?;
        let order = orders::give(i, from, &["config", "set", "ha.max_lag", "2MiB"])?;
        prove_outcome(i, order);
        Ok(())
    }),
];

/// How an order is refused because of another one.
const OVERTAKEN: [&str; 2] = ["another planned change", "is the primary already"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Primary,
    Standby,
}

/// Of those that are not `target` the primary, or a standby.
fn others<'a>(i: &Injected<'a>, target: Target<'a>, role: Role) -> Result<Target<'a>> {
    let primary = i.ctx.cluster.primary().context("there is no primary at this moment")?;
    let fits = |t: &Target<'_>| (t.name() == primary) == (role == Role::Primary);
    i.others(target).into_iter().find(fits).context("nobody else has that role at this moment")
}

fn prove_outcome(i: &mut Injected<'_>, order: Order) {
    i.prove("the outcome of an order", move || order.outcome());
}

fn accepted(output: &std::process::Output) -> Result<()> {
    if !output.status.success() {
        bail!("{}", orders::in_words(output));
    }
    Ok(())
}

/// Until the cluster's state is as wanted. Returns it.
fn reach(i: &Injected<'_>, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
    let cluster = i.ctx.cluster;
    i.wait(what, Duration::from_secs(20), || cluster.status().ok().filter(&wanted))
}

/// Kill the primary, and give the one that is being promoted in its place, at that moment.
fn successor<'a>(i: &mut Injected<'a>) -> Result<Target<'a>> {
    let old = i.target();
    let epoch = i.ctx.cluster.status()?.epoch;
    process::kill_all(i, old)?;
    let fits = |s: &Status| s.epoch > epoch && s.primary.as_deref().is_some_and(|p| p != old.name());
    let status = reach(i, "a successor", fits)?;
    let name = status.primary.context("just checked")?;
    // The status may be some milliseconds old; what the successor was doing then is said, so that nobody need believe in luck.
    i.proved(format!("{name} was {} as the successor", status.phase));
    aim::named(i.ctx, &name)
}

fn pause(i: &mut Injected<'_>) -> Result<()> {
    let ctx = i.ctx;
    i.undo("resume", move || accepted(&ctx.cluster.cli(&["resume"])?));
    accepted(&ctx.cluster.cli(&["pause"])?)?;
    reach(i, "the pause", |s| s.paused)?;
    let (before, primary) = (ctx.cluster.status()?.epoch, i.target().name());
    i.proved(format!("failover is paused in epoch {before}, {primary} primary"));
    i.forbid("an automatic election", move || {
        let elected = since(ctx, before).into_iter().find(|change| AUTOMATIC.contains(&change.cause.as_str()))?;
        Some(format!("{} was elected in epoch {} ({}), and elections are paused", elected.to, elected.epoch, elected.cause))
    });
    Ok(())
}

/// Causes of elections that nobody ordered.
const AUTOMATIC: [&str; 3] = ["lease_expired", "primary_down", "proven_dead"];

/// Changes of primary after an epoch, as the cluster tells them; none where nobody answers.
fn since(ctx: &Ctx<'_>, epoch: u64) -> Vec<PrimaryChange> {
    let asked = ctx.cluster.cli_unnoted(&["history", "-o", "json"]).ok();
    let all = asked.and_then(|output| parse_changes(&String::from_utf8_lossy(&output.stdout)).ok()).unwrap_or_default();
    all.into_iter().filter(|change| change.epoch > epoch).collect()
}

fn contradict(i: &mut Injected<'_>) -> Result<()> {
    let primary = i.ctx.cluster.primary().context("there is no primary at this moment")?;
    let all = i.all_targets();
    let standbys: Vec<&str> = all.iter().map(Target::name).filter(|name| *name != primary).collect();
    let [one, other] = standbys[..] else { bail!("this fault is made for three datacenters") };
    let ctx = i.ctx;
    i.undo("resume", move || accepted(&ctx.cluster.cli(&["resume"])?));
    let words: [&[&str]; 6] = [
        &["switchover", "--to", one],
        &["switchover", "--to", other],
        &["failover", "--to", other],
        &["pause"],
        &["switchover", "--to", &primary],
        &["resume"],
    ];
    let mut given = Vec::new();
    for (at, words) in words.iter().enumerate() {
        given.push(orders::give(i, all[at % all.len()], words)?);
    }
    i.prove("outcomes of all orders", move || {
        let outcomes: Option<Vec<String>> = given.iter().map(Order::outcome).collect();
        outcomes.map(|o| o.join(", "))
    });
    Ok(())
}

fn rolling_restart(i: &mut Injected<'_>) -> Result<()> {
    for target in i.all_targets() {
        i.undo(format!("start {}", target.name()), move || target.start());
        process::end_in_order(i, target)?;
        target.start()?;
        let whole = i.ctx.cluster.until_redundant(Duration::from_secs(60));
        let whole = whole.map_err(|error| Misbehaved(format!("{} was restarted in order: {error:#}", target.name())))?;
        i.proved(format!("{} was restarted, all streamed again after {} ms", target.name(), whole.as_millis()));
    }
    Ok(())
}

fn remove(i: &mut Injected<'_>) -> Result<()> {
    let (target, ctx) = (i.target(), i.ctx);
    let log = Tail::of(target.node_log());
    // After the lines are mended: it must first learn that it was removed.
    i.afterwards(format!("{} joins again", target.name()), move || {
        let clock = ctx.clock;
        let end = clock.now().after(Duration::from_secs(20));
        while log.line(&[said::MEMBER_REMOVED]).is_none() && clock.now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        let learned = log.line(&[said::MEMBER_REMOVED]);
        target.node.kill_all();
        super::volume::run(std::process::Command::new("find").arg(target.data_dir()).args(["-mindepth", "1", "-delete"]))?;
        target.start()?;
        learned.map(drop).with_context(|| format!("{} did not learn within 20 s that it was removed", target.name()))
    });
    i.isolate(target)?;
    let from = others(i, target, Role::Primary)?;
    let output = ctx.cluster.order_at(from.name(), &["member", "remove", target.name()])?;
    i.proved(format!("member remove {}: {}", target.name(), orders::in_words(&output)));
    accepted(&output)
}
