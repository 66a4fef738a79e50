//! Faults of the lines between datacenters: what a WAN does on bad days, each way by itself.

use super::aim::{self, Target};
use super::flap;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Phase};
use anyhow::{Context as _, Result, bail};
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Network, name, aim, about, inject)
}

const ANY: &[Phase] = Phase::ALL;
const DURING_CHANGES: &[Phase] = &[Phase::Steady, Phase::Election, Phase::Promotion, Phase::Drain];

pub(super) const FAULTS: &[Fault] = &[
    fault("isolate-primary", Aim::Primary, "The primary's datacenter is cut off from both others.", |i| i.isolate(i.target())).phases(ANY),
    fault("isolate-raft-leader", Aim::RaftLeader, "The consensus leader's datacenter is cut off.", |i| i.isolate(i.target())).phases(ANY),
    fault("isolate-primary-and-raft-leader", Aim::Primary, "Primary and consensus leader are each alone: nobody has a quorum.", |i| {
        let leader = aim::leader(&i.ctx.cluster.status()?).context("there is no consensus leader at this moment")?;
        let leader = aim::named(i.ctx, &leader)?;
        i.isolate(i.target())?;
        if leader.name() == i.target().name() { Ok(()) } else { i.isolate(leader) }
    }),
    fault("isolate-sync-standby", Aim::SyncStandby, "A standby whose confirmation commits wait for is cut off.", |i| i.isolate(i.target()))
        .phases(DURING_CHANGES),
    fault("isolate-other-standby", Aim::OtherStandby, "Another standby is cut off, and comes back with WAL to catch up.", |i| {
        i.isolate(i.target())
    })
    .hold(10, 30),
    fault("isolate-candidate", Aim::Candidate, "Whoever is about to become primary is cut off.", |i| i.isolate(i.target())).phases(&[
        Phase::Election,
        Phase::Promotion,
        Phase::Drain,
    ]),
    fault("bridge", Aim::Link, "The line between the primary and one standby breaks; both still reach the third.", |i| {
        let [one, other] = pair(i)?;
        i.cut_both(one, other)
    })
    .phases(DURING_CHANGES),
    fault("bridge-between-standbys", Aim::Primary, "The line between the two standbys breaks; the primary reaches both.", |i| {
        let [one, other] = standbys(i)?;
        i.cut_both(one, other)
    })
    .phases(DURING_CHANGES),
    fault("mute-primary", Aim::Primary, "The primary hears everybody, and nobody hears it.", |i| {
        i.others(i.target()).into_iter().try_for_each(|other| i.cut(i.target(), other))
    })
    .phases(DURING_CHANGES),
    fault("deaf-primary", Aim::Primary, "Everybody hears the primary, and it hears nobody.", |i| {
        i.others(i.target()).into_iter().try_for_each(|other| i.cut(other, i.target()))
    })
    .phases(DURING_CHANGES),
    fault("mute-raft-leader", Aim::RaftLeader, "The consensus leader hears everybody, and nobody hears it.", |i| {
        i.others(i.target()).into_iter().try_for_each(|other| i.cut(i.target(), other))
    }),
    fault("ring-of-one-way-cuts", Aim::Everyone, "Each datacenter hears only the next one: no two can talk in both directions.", |i| {
        let all = i.all_targets();
        (0..all.len()).try_for_each(|at| i.cut(all[at], all[(at + 1) % all.len()]))
    }),
    fault("three-way-split", Aim::Everyone, "Every line is cut: three datacenters alone.", |i| {
        let all = i.all_targets();
        (1..all.len()).try_for_each(|at| (0..at).try_for_each(|before| i.cut_both(all[before], all[at])))
    })
    .phases(DURING_CHANGES),
    fault("flapping-primary", Aim::Primary, "All lines of the primary's datacenter break and mend every 0.1 to 5 s.", |i| {
        i.others(i.target()).into_iter().for_each(|other| i.prove_cut(i.target(), other));
        flap::lines(i, i.target(), (Duration::from_millis(100), Duration::from_secs(5)))
    })
    .hold(15, 40),
    fault("flapping-fast", Aim::OtherStandby, "All lines of a standby's datacenter break and mend several times a second.", |i| {
        i.others(i.target()).into_iter().for_each(|other| i.prove_cut(i.target(), other));
        flap::lines(i, i.target(), (Duration::from_millis(100), Duration::from_millis(400)))
    })
    .hold(10, 20),
    fault("slow-one-way", Aim::Primary, "What the primary sends takes 200 ms longer; answers come as fast as ever.", |i| {
        for other in i.others(i.target()) {
            let base = i.handshake(i.target(), other)?;
            i.line(i.target(), other, |link| link.delay += Duration::from_millis(200))?;
            i.prove_slower(base, Duration::from_millis(200));
        }
        Ok(())
    })
    .hold(10, 30),
    fault("slow-everywhere", Aim::Everyone, "All lines take 100 ms more each way, beyond what heartbeats are set for.", |i| {
        let [one, other] = first_two(i)?;
        let base = i.handshake(one, other)?;
        everywhere(i, |link| link.delay += Duration::from_millis(100))?;
        i.prove_slower(base, Duration::from_millis(200));
        Ok(())
    })
    .hold(10, 30),
    fault("loss-30", Aim::Primary, "Three of ten packets of the primary's datacenter vanish, in both directions.", |i| {
        i.all_lines(i.target(), |link| link.loss = 0.3)?;
        i.others(i.target()).into_iter().for_each(|other| i.prove_drops(i.target(), other));
        Ok(())
    })
    .hold(10, 30),
    fault("loss-5-everywhere", Aim::Everyone, "One packet in twenty more vanishes on every line.", |i| {
        everywhere(i, |link| link.loss += 0.05)?;
        let [one, other] = first_two(i)?;
        i.prove_drops(one, other);
        Ok(())
    })
    .hold(10, 40),
    fault("jitter-and-reorder", Aim::Everyone, "Packets arrive up to 30 ms late, and one in fifty overtakes others.", |i| {
        let [one, other] = first_two(i)?;
        let base = i.handshake(one, other)?;
        everywhere(i, |link| {
            // Who overtakes takes half the delay: without a delay nobody could.
            link.delay = link.delay.max(Duration::from_millis(20));
            (link.jitter, link.reorder) = (Duration::from_millis(30), 0.02);
        })?;
        i.prove_passes(one, other);
        // On the longest lines the jitter alone must do it, in one of the handshakes.
        i.prove_slower(base, Duration::from_millis(5));
        Ok(())
    })
    .hold(10, 40),
    fault("duplicates", Aim::Everyone, "One packet in ten arrives twice.", |i| {
        everywhere(i, |link| link.duplicate = 0.1)?;
        let [one, _] = first_two(i)?;
        // The kernel tells a sender of what came twice.
        let told = move || super::probe::tcp_counter(one.site, "TCPDSACKOldSent").unwrap_or(0);
        let before = told();
        i.prove("what came twice", move || {
            let twice = told().saturating_sub(before);
            (twice > 0).then(|| format!("{} received {twice} segments twice", one.name()))
        });
        Ok(())
    })
    .hold(10, 40),
    fault("narrow-line", Aim::Primary, "The primary's lines carry 1 Mbit/s.", |i| {
        let other = i.others(i.target()).pop().context("nobody else")?;
        let base = i.handshake(other, i.target())?;
        i.all_lines(i.target(), |link| link.bits_per_second = Some(1_000_000))?;
        i.prove_passes(i.target(), other);
        i.prove_slower(base, Duration::from_millis(10));
        Ok(())
    })
    .hold(10, 40),
    fault("postgres-port-cut", Aim::Primary, "Postgres's port of the primary is cut while consensus goes on.", |i| {
        let ports = i.ctx.cluster.ports();
        cut_ports(i, &[ports.postgres])?;
        let other = i.others(i.target()).pop().context("nobody else")?;
        i.prove_unreachable(other, i.target(), ports.postgres);
        i.prove_reachable(other, i.target(), ports.grpc);
        Ok(())
    })
    .hold(10, 40)
    .phases(DURING_CHANGES),
    fault("consensus-port-cut", Aim::Primary, "The primary's consensus port is cut while its Postgres goes on streaming.", |i| {
        let ports = i.ctx.cluster.ports();
        cut_ports(i, &[ports.grpc])?;
        let other = i.others(i.target()).pop().context("nobody else")?;
        i.prove_unreachable(other, i.target(), ports.grpc);
        i.prove_reachable(other, i.target(), ports.postgres);
        Ok(())
    })
    .phases(DURING_CHANGES),
    fault(
        "clients-cut",
        Aim::Primary,
        "Clients elsewhere no longer reach the proxy in the primary's datacenter; members reach each other.",
        |i| {
            let ports = i.ctx.cluster.ports();
            cut_ports(i, &[ports.auto, ports.primary, ports.standby])?;
            let other = i.others(i.target()).pop().context("nobody else")?;
            i.prove_unreachable(other, i.target(), ports.primary);
            i.prove_reachable(other, i.target(), ports.postgres);
            Ok(())
        },
    ),
    fault(
        "connections-reset",
        Aim::Primary,
        "Every TCP connection between the primary's datacenter and others is reset, and each new one too.",
        reset,
    )
    .hold(4, 8),
    fault("half-open", Aim::Link, "A line is silent for a minute, without a reset, and then speaks again on the old connections.", |i| {
        let [one, other] = pair(i)?;
        i.cut_both(one, other)
    })
    .hold(60, 75),
    fault("mtu-black-hole", Aim::Primary, "Packets above 600 bytes vanish without a word on the primary's lines; small ones pass.", |i| {
        i.all_lines(i.target(), |link| link.mtu = Some(600))?;
        for other in i.others(i.target()) {
            i.prove_cut(i.target(), other);
            i.prove_passes(i.target(), other);
        }
        Ok(())
    })
    .hold(10, 40),
];

/// Primary and standby of [`Aim::Link`].
fn pair<'a>(i: &Injected<'a>) -> Result<[Target<'a>; 2]> {
    <[Target<'a>; 2]>::try_from(i.all_targets()).ok().context("a line has two ends")
}

fn standbys<'a>(i: &Injected<'a>) -> Result<[Target<'a>; 2]> {
    <[Target<'a>; 2]>::try_from(i.others(i.target())).ok().context("this fault is made for three datacenters")
}

fn first_two<'a>(i: &Injected<'a>) -> Result<[Target<'a>; 2]> {
    let all = i.all_targets();
    if all.len() < 2 {
        bail!("there is only one datacenter");
    }
    Ok([all[0], all[1]])
}

fn everywhere(i: &mut Injected<'_>, change: impl Fn(&mut crate::world::Link)) -> Result<()> {
    let all = i.all_targets();
    for (at, one) in all.iter().enumerate() {
        for other in &all[at + 1..] {
            i.both_ways(*one, *other, &change)?;
        }
    }
    Ok(())
}

/// Ports of the target alone: a packet counts by either end, so the same port of others would be cut off as well if lines between
/// them were touched.
pub(super) fn cut_ports(i: &mut Injected<'_>, ports: &[u16]) -> Result<()> {
    i.all_lines(i.target(), |link| link.cut_ports.extend(ports))?;
    let other = i.others(i.target()).pop().context("nobody else")?;
    i.prove_passes(other, i.target());
    Ok(())
}

/// Whoever sends on a connection that leads to or from one of the cluster's ports in the target's datacenter gets a reset.
fn reset(i: &mut Injected<'_>) -> Result<()> {
    let ports = i.ctx.cluster.ports();
    let ports = [ports.postgres, ports.auto, ports.primary, ports.standby, ports.grpc, ports.http];
    i.all_lines(i.target(), |link| link.reset_ports.extend(ports))?;
    for other in i.others(i.target()) {
        i.prove_cut(i.target(), other);
    }
    Ok(())
}
