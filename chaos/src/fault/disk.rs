//! Faults of disks that keep what they hold: full, slow, hung, failing, without power. What destroys data is in [`super::damage`].

use super::aim::Target;
use super::evidence::Tail;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Needs, Phase};
use super::volume::Volume;
use crate::world::Disk;
use anyhow::{Context as _, Result};
use rand::Rng as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Disk, name, aim, about, inject).needs(Needs::Disks)
}

const ANY: &[Phase] = Phase::ALL;
const DURING_CHANGES: &[Phase] = &[Phase::Steady, Phase::Election, Phase::Promotion, Phase::Drain];

pub(super) const FAULTS: &[Fault] = &[
    fault("disk-full", Aim::Primary, "The primary's disk, with PGDATA and consensus store, has no block left.", |i| fill(i, i.target()))
        .hold(8, 20)
        .known("nothing is reserved; the election does not ask who has room; the node ends when its consensus log cannot be written"),
    fault("disk-full-standby", Aim::SyncStandby, "A synchronous standby's disk is full: its walreceiver ends.", |i| fill(i, i.target()))
        .hold(8, 20)
        .known("a standby without room is neither reported nor passed over"),
    fault("wal-volume-full", Aim::Primary, "pg_wal is a small volume of its own, and full; the rest of the disk has room.", |i| {
        small_volume(i, i.target(), "pg_wal")
    })
    .hold(8, 20)
    .known("Postgres panics; the election does not ask who has room, and there is no reserve")
    .needs(Needs::Nothing),
    fault("consensus-volume-full", Aim::Primary, "The consensus store is a small volume of its own, and full.", |i| {
        small_volume(i, i.target(), "consensus")?;
        fatten(i, i.target())
    })
    .hold(8, 20)
    .known("noticed at a start only: no reserve, no quota; the node ends")
    .needs(Needs::Nothing),
    fault("disk-read-only", Aim::Primary, "The file system of the primary goes read-only after an error, as ext4 does.", |i| {
        read_only(i, i.target())
    })
    .hold(5, 15),
    fault("slow-fsync", Aim::Primary, "Each fsync in the primary's datacenter takes 30 ms to 1 s longer.", |i| {
        let delay = Duration::from_millis(i.rng.random_range(30..=1_000));
        slow(i, i.target(), delay)
    })
    .hold(10, 30)
    .phases(DURING_CHANGES),
    fault("very-slow-fsync", Aim::Primary, "Each fsync in the primary's datacenter takes 1 to 5 s longer, beyond its lease.", |i| {
        let delay = Duration::from_millis(i.rng.random_range(1_000..=5_000));
        slow(i, i.target(), delay)
    })
    .hold(15, 40)
    .known("commits take as long as the storage takes; only one that takes nothing for ten seconds makes its primary give way"),
    fault("slow-fsync-raft-leader", Aim::RaftLeader, "Each fsync in the consensus leader's datacenter takes 200 ms to 2 s longer.", |i| {
        let delay = Duration::from_millis(i.rng.random_range(200..=2_000));
        slow(i, i.target(), delay)
    })
    .hold(10, 30),
    fault("write-errors", Aim::Primary, "Every write to the primary's disk fails with EIO.", |i| {
        break_disk(i, i.target(), "fails writes", |disk, on| disk.fail_writes(on), |disk| disk.counters().failed_writes)
    })
    .phases(DURING_CHANGES),
    fault("fsync-errors", Aim::Primary, "Every fsync of the primary's disk fails with EIO; the pages count as clean afterwards.", |i| {
        break_disk(i, i.target(), "fails fsyncs", |disk, on| disk.fail_fsyncs(on), |disk| disk.counters().failed_fsyncs)
    })
    .phases(DURING_CHANGES),
    fault("fsync-errors-standby", Aim::SyncStandby, "Every fsync of a synchronous standby's disk fails with EIO.", |i| {
        break_disk(i, i.target(), "fails fsyncs", |disk, on| disk.fail_fsyncs(on), |disk| disk.counters().failed_fsyncs)
    }),
    fault("hung-disk", Aim::Primary, "The primary's disk answers nothing; connections to its Postgres still work.", |i| {
        hang(i, i.target())
    })
    .hold(20, 40),
    fault("hung-disk-standby", Aim::SyncStandby, "A synchronous standby's disk answers nothing.", |i| hang(i, i.target())).hold(10, 30),
    fault("power-loss", Aim::Primary, "The primary's machine loses power: what was not flushed to its disk is lost.", |i| {
        power_loss(i, i.target())
    })
    .phases(ANY),
    fault("power-loss-standby", Aim::SyncStandby, "A synchronous standby's machine loses power.", |i| power_loss(i, i.target()))
        .phases(ANY),
    fault("torn-power-loss", Aim::Primary, "Power fails, and an arbitrary part of the unflushed sectors is written all the same.", |i| {
        torn(i, i.target())
    })
    .phases(DURING_CHANGES),
];

/// The world's fault-injecting disk under the target's data.
pub(super) fn disk<'a>(target: Target<'a>) -> Result<&'a Disk> {
    target.site.disk().with_context(|| format!("{} has no fault-injecting disk; bring the world up with disks", target.name()))
}

/// What nodes and Postgres write into their logs when a disk fails them.
const COMPLAINTS: &[&str] =
    &["No space left", "os error 28", "Read-only file system", "os error 30", "Input/output error", "os error 5", "PANIC"];

/// The node or its Postgres complains.
fn prove_complaint<'a>(i: &mut Injected<'a>, target: Target<'a>) {
    let logs = [Tail::of(target.node_log()), Tail::of(target.postgres_log())];
    i.prove(format!("a complaint in the logs of {}", target.name()), move || {
        logs.iter().find_map(|log| log.line(COMPLAINTS)).map(|line| format!("{}: {line}", target.name()))
    });
}

fn fill<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let disk = disk(target)?;
    prove_complaint(i, target);
    i.undo(format!("make room in {}", target.name()), move || disk.free());
    disk.full(0)?;
    press(i);
    Ok(())
}

/// Writes that need room, through the proxies.
fn press(i: &mut Injected<'_>) {
    const SQL: &str = "CREATE TABLE IF NOT EXISTS chaos_room (v text); INSERT INTO chaos_room SELECT repeat(md5(g::text), 30) FROM \
                       generate_series(1, 2000) g";
    let port = i.ctx.cluster.ports().primary;
    for target in super::aim::all(i.ctx) {
        super::sessions::run_at(i, target, port, SQL, 1);
    }
    let ctx = i.ctx;
    // After everything else is mended, without haste: the cluster may still be electing.
    i.afterwards("remove the table that took room", move || {
        if let Some(primary) = ctx.cluster.primary() {
            let _ = ctx.cluster.sql(&primary, crate::cluster::Target::Own, "DROP TABLE IF EXISTS chaos_room");
        }
        Ok(())
    });
}

/// `part` of the target's data moves onto a volume of its own, which is then full.
fn small_volume<'a>(i: &mut Injected<'a>, target: Target<'a>, part: &'static str) -> Result<()> {
    let place: PathBuf = if part == "pg_wal" { target.pgdata().join(part) } else { target.consensus() };
    let image = target.site.volume(part);
    i.undo(format!("start {}", target.name()), move || target.start());
    super::process::end_in_order(i, target)?;
    let volume = Rc::new(Volume::planned(&place, &image));
    let removing = Rc::clone(&volume);
    i.undo(format!("{part} of {} back on its disk", target.name()), move || {
        target.node.kill_all();
        removing.remove()
    });
    volume.take()?;
    target.start()?;
    i.ctx.cluster.until_redundant(Duration::from_secs(60))?;
    if i.ctx.cluster.primary().as_deref() != Some(target.name()) {
        // Its stop handed the primaryship over; the fault is about a primary.
        i.ctx.cluster.switchover(Some(target.name()))?;
        i.ctx.cluster.until_redundant(Duration::from_secs(60))?;
    }
    prove_complaint(i, target);
    let freeing = Rc::clone(&volume);
    i.undo(format!("make room in {part} of {}", target.name()), move || freeing.free());
    volume.fill()?;
    press(i);
    Ok(())
}

/// The consensus log grows by some kilobytes a minute; settings with long values make it grow by some in a second.
fn fatten<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    const KEY: &str = "postgres.parameters.chaos.note";
    const ORDERS: usize = 150;
    let ctx = i.ctx;
    i.afterwards("the setting as before", move || ctx.cluster.cli(&["config", "set", KEY]).map(drop));
    let values: Vec<String> = (0..ORDERS).map(|n| format!("{n:09}").repeat(900)).collect();
    let orders: Vec<[&str; 4]> = values.iter().map(|value| ["config", "set", KEY, value]).collect();
    let from = i.others(target).pop().context("nobody else")?;
    super::orders::series(i, from, &orders.iter().map(|o| &o[..]).collect::<Vec<_>>())
}

/// Mount and unmount are the world's: only its `remount` clears an aborted journal.
fn read_only<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let disk = disk(target)?;
    prove_complaint(i, target);
    i.undo(format!("mount {} anew", target.name()), move || {
        target.node.kill_all();
        disk.remount()?;
        target.start()
    });
    disk.read_only()?;
    press(i);
    Ok(())
}

fn slow<'a>(i: &mut Injected<'a>, target: Target<'a>, delay: Duration) -> Result<()> {
    let disk = disk(target)?;
    i.undo(format!("the disk of {} at its speed", target.name()), move || {
        disk.fsync_delay(Duration::ZERO);
        Ok(())
    });
    let before = disk.counters().delayed_fsyncs;
    disk.fsync_delay(delay);
    i.prove(format!("slow fsyncs of {}", target.name()), move || {
        let slow = disk.counters().delayed_fsyncs.saturating_sub(before);
        (slow > 1).then(|| format!("{slow} fsyncs of {} took {} ms longer", target.name(), delay.as_millis()))
    });
    Ok(())
}

fn break_disk<'a>(
    i: &mut Injected<'a>,
    target: Target<'a>,
    words: &'static str,
    switch: fn(&Disk, bool),
    failed: fn(&Disk) -> u64,
) -> Result<()> {
    let disk = disk(target)?;
    // After EIO the kernel's cache and the disk disagree: only a new mount is the truth, as after a reboot.
    i.undo(format!("mend the disk of {}", target.name()), move || {
        target.node.kill_all();
        switch(disk, false);
        disk.remount()?;
        target.start()
    });
    let before = failed(disk);
    switch(disk, true);
    press(i);
    i.prove(format!("the disk of {} {words}", target.name()), move || {
        let times = failed(disk).saturating_sub(before);
        (times > 0).then(|| format!("the disk of {} failed {times} requests", target.name()))
    });
    Ok(())
}

fn hang<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let disk = disk(target)?;
    i.undo(format!("the disk of {} answers", target.name()), move || {
        disk.hang(false);
        Ok(())
    });
    let before = disk.counters().hung;
    disk.hang(true);
    press(i);
    i.prove(format!("requests wait for the disk of {}", target.name()), move || {
        let waiting = disk.counters().hung.saturating_sub(before);
        (waiting > 0).then(|| format!("{waiting} requests wait for the disk of {}", target.name()))
    });
    Ok(())
}

/// The blocks that were lost.
pub(super) fn lose_power(target: Target<'_>, torn: Option<u64>) -> Result<u64> {
    let lost = target.site.power_loss(torn)?;
    // What is dead already: this tells the cluster that it is so on purpose, so that it starts nobody.
    target.node.kill_all();
    Ok(lost)
}

/// Also of several at once, by [`super::together`]; without a fault-injecting disk nothing but the processes is lost.
pub(super) fn power_loss<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let disk = disk(target)?;
    i.undo(format!("power for {}", target.name()), move || {
        disk.remount()?;
        target.start()
    });
    let lost = lose_power(target, None)?;
    i.proved(format!("{} lost power, and {lost} unflushed blocks with it", target.name()));
    Ok(())
}

fn torn<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let disk = disk(target)?;
    i.undo(format!("power for {}", target.name()), move || {
        disk.remount()?;
        target.start()
    });
    let torn = lose_power(target, Some(i.rng.random()))?;
    i.proved(format!("{} lost power, and {torn} unflushed blocks were lost or torn", target.name()));
    Ok(())
}
