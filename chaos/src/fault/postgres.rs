//! Faults by ordinary means of Postgres: long recovery, long transactions, conflicts, and superusers who know better.

use super::aim::{self, Target};
use super::evidence::Tail;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Phase};
use super::procs::Kind;
use super::{process, said, sessions};
use crate::cluster;
use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Postgres, name, aim, about, inject)
}

const DURING_CHANGES: &[Phase] = &[Phase::Steady, Phase::Election, Phase::Promotion, Phase::Drain];

pub(super) const FAULTS: &[Fault] = &[
    fault("long-crash-recovery", Aim::Primary, "The primary's postmaster is killed with much WAL since its last checkpoint.", long_recovery)
        .hold(5, 20),
    fault("replay-paused", Aim::SyncStandby, "A synchronous standby receives and confirms WAL, and replays none.", |i| pause_replay(i, i.target()))
        .hold(8, 20),
    fault("replay-paused-candidate", Aim::Candidate, "Replay on the candidate is paused by hand before it is elected.", |i| {
        pause_replay(i, i.target())?;
        let primary = aim::named(i.ctx, &i.ctx.cluster.primary().context("there is no primary at this moment")?)?;
        process::kill_all(i, primary)
    })
    .hold(8, 20)
    .known("a promotion ends a pause; where it does not, the lease goes back after five tries of ha.promotion_timeout"),
    fault("long-transaction", Aim::Primary, "A transaction with an old snapshot and a lock stays open, also through a switchover.", |i| {
        hold_lock(i, i.target())
    })
    .hold(10, 30)
    .phases(&[Phase::Steady, Phase::Drain]),
    fault("replication-conflict", Aim::OtherStandby, "A query on a standby holds what the primary's next WAL takes away.", conflict).hold(10, 30),
    fault("slot-overflow", Aim::OtherStandby, "A standby is away until the primary has removed WAL that it needs.", overflow).hold(5, 15),
    fault("cancel-storm", Aim::Primary, "No standby confirms, and every commit that waits for one is cancelled.", cancel_storm)
        .hold(8, 20)
        .known("connected directly to Postgres a cancelled wait is reported as success; through the proxy it is 08007"),
    fault("terminate-all-backends", Aim::Primary, "A superuser ends every session of the primary, Trilithon's own too.", |i| {
        let target = i.target();
        let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')";
        let ended = target.value(all)?;
        i.undo("whoever ended over it", || Ok(()));
        i.proved(format!("{ended} sessions of {} were ended", target.name()));
        Ok(())
    })
    .hold(2, 8)
    .phases(DURING_CHANGES),
    fault("synchronous-names-emptied", Aim::Primary, "ALTER SYSTEM takes the synchronous standbys away: commits would wait for nobody.", |i| {
        alter_system(i, i.target(), "synchronous_standby_names", "''")
    })
    .hold(3, 10),
    fault("protected-settings-altered", Aim::Primary, "ALTER SYSTEM of settings that decide about durability and ports.", |i| {
        // Those on the command line outrank the file; the rest must be taken out of it again.
        for (name, value) in [("fsync", "off"), ("full_page_writes", "off"), ("port", "5999"), ("restart_after_crash", "on"), ("archive_mode", "on")] {
            i.target().sql(&format!("ALTER SYSTEM SET {name} = {value}"))?;
        }
        alter_system(i, i.target(), "restore_command", "'/bin/false'")
    })
    .hold(3, 10),
    fault("standby-pointed-elsewhere", Aim::SyncStandby, "ALTER SYSTEM on a standby has it stream from nowhere.", |i| {
        alter_system(i, i.target(), "primary_conninfo", "'host=10.99.99.99 port=5432'")
    })
    .hold(3, 10),
    fault("promoted-by-hand", Aim::SyncStandby, "A superuser calls pg_promote() on a standby: a second primary that acknowledges nothing.", promote)
        .hold(5, 15)
    .phases(DURING_CHANGES),
    fault("stopped-by-hand", Aim::Primary, "Somebody stops the primary's Postgres as `pg_ctl stop -m fast` does.", |i| by_hand(i, Signal::INT)).hold(3, 10),
    fault("stopped-at-once-by-hand", Aim::SyncStandby, "Somebody stops a standby's Postgres as `pg_ctl stop -m immediate` does.", |i| {
        by_hand(i, Signal::QUIT)
    })
    .hold(3, 10),
    fault("slots-dropped-by-hand", Aim::Primary, "A superuser ends the walsenders and drops the members' replication slots.", drop_slots).hold(3, 10),
    fault("replication-password-changed", Aim::Primary, "A superuser changes the password of Trilithon's replication role.", change_password)
        .hold(5, 15)
        .known("the password is drawn once and never changed: streaming ends until it is put back"),
];

/// Fill `mb` MB of WAL with changes that recovery must redo.
fn write_wal<'a>(i: &mut Injected<'a>, target: Target<'a>, mb: usize) -> Result<()> {
    // A row of 1 kB takes a little more in the WAL.
    const ROWS: usize = 4_000;
    let ctx = i.ctx;
    i.afterwards("remove what was written", move || {
        if let Some(primary) = ctx.cluster.primary() {
            let _ = ctx.cluster.sql(&primary, cluster::Target::Proxy, "DROP TABLE IF EXISTS chaos_wal");
        }
        Ok(())
    });
    target.sql("CREATE TABLE IF NOT EXISTS chaos_wal (v text)")?;
    for _ in 0..mb.div_ceil(4) {
        target.sql(&format!("INSERT INTO chaos_wal SELECT repeat(md5(random()::text), 32) FROM generate_series(1, {ROWS})"))?;
    }
    Ok(())
}

fn long_recovery(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    target.sql("CHECKPOINT")?;
    write_wal(i, target, i.ctx.scale.wal_mb)?;
    let log = Tail::of(target.postgres_log());
    process::kill(i, target, Kind::Postmaster)?;
    i.prove(format!("recovery of {}", target.name()), move || log.line(&["redo starts"]).map(|line| format!("{}: {line}", target.name())));
    Ok(())
}

pub(super) fn pause_replay<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    i.undo(format!("replay of {} goes on", target.name()), move || {
        resume_replay(target);
        Ok(())
    });
    target.sql("SELECT pg_wal_replay_pause()")?;
    // It pauses with the next record.
    i.wait("replay to pause", Duration::from_secs(5), || {
        target.value("SELECT pg_get_wal_replay_pause_state()").ok().filter(|s| s == "paused")
    })?;
    i.proved(format!("replay of {} is paused", target.name()));
    Ok(())
}

/// One that was promoted or started again meanwhile replays as it should.
pub(super) fn resume_replay(target: Target<'_>) {
    let _ = target.sql("SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery()");
}

fn hold_lock<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    target.sql("CREATE TABLE IF NOT EXISTS chaos_locked (id int)")?;
    let statements = &[
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "INSERT INTO chaos_locked VALUES (1)",
        "LOCK TABLE chaos_locked IN ACCESS EXCLUSIVE MODE",
    ];
    sessions::hold_at(i, target, i.ctx.cluster.ports().primary, statements)?;
    let held = target
        .value("SELECT count(*) FROM pg_locks WHERE relation = 'chaos_locked'::regclass AND mode = 'AccessExclusiveLock' AND granted")?;
    if held == "0" {
        bail!("the transaction on {} holds no lock", target.name());
    }
    i.proved(format!("a transaction on {} is open and holds a table", target.name()));
    Ok(())
}

fn conflict(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    let primary = aim::named(i.ctx, &i.ctx.cluster.primary().context("there is no primary at this moment")?)?;
    primary.sql("CREATE TABLE IF NOT EXISTS chaos_conflict (id int)")?;
    primary.sql("INSERT INTO chaos_conflict SELECT generate_series(1, 1000)")?;
    i.wait("the table on the standby", Duration::from_secs(10), || {
        target.value("SELECT count(*) FROM chaos_conflict").ok().filter(|n| n != "0")
    })?;
    sessions::hold(i, target, &["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM chaos_conflict"])?;
    primary.sql("TRUNCATE chaos_conflict")?;
    i.prove(format!("replay of {} waits", target.name()), move || {
        let startup = target.process(Kind::Startup).ok()?;
        startup.title.contains("waiting").then(|| format!("{}: {}", target.name(), startup.title))
    });
    Ok(())
}

fn overflow(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    let primary = aim::named(i.ctx, &i.ctx.cluster.primary().context("there is no primary at this moment")?)?;
    let ctx = i.ctx;
    i.afterwards("sizes of slots as before", move || {
        for name in ["max_slot_wal_keep_size", "wal_keep_size"] {
            ctx.cluster.cli(&["config", "set", &format!("postgres.parameters.{name}")])?;
        }
        Ok(())
    });
    for (name, value) in [("max_slot_wal_keep_size", "48MB"), ("wal_keep_size", "16MB")] {
        ctx.cluster.cli(&["config", "set", &format!("postgres.parameters.{name}"), value])?;
    }
    process::kill_all(i, target)?;
    write_wal(i, primary, i.ctx.scale.wal_mb)?;
    primary.sql("SELECT pg_switch_wal()")?;
    primary.sql("CHECKPOINT")?;
    i.prove(format!("a lost slot on {}", primary.name()), move || {
        let lost = primary.value("SELECT string_agg(slot_name, ', ') FROM pg_replication_slots WHERE wal_status = 'lost'").ok()?;
        Some(format!("{} has given up the slot {lost}", primary.name()))
    });
    Ok(())
}

fn cancel_storm(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    target.sql("CREATE TABLE IF NOT EXISTS chaos_cancelled (at timestamptz DEFAULT clock_timestamp())")?;
    for standby in i.others(target) {
        process::stop(i, standby, Kind::WalReceiver)?;
    }
    let port = i.ctx.cluster.ports().primary;
    sessions::run_at(i, target, port, "INSERT INTO chaos_cancelled DEFAULT VALUES", 8);
    let cancelling = "DO $$ DECLARE n int; BEGIN \
                      SELECT count(pg_cancel_backend(pid)) INTO n FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%chaos_cancelled%'; \
                      IF n = 0 THEN RAISE EXCEPTION 'nobody waits'; END IF; END $$";
    let (cancelled, _) = sessions::run(i, target, cancelling, 1);
    i.prove("cancelled waits", move || (cancelled.get() > 2).then(|| format!("waiting commits were cancelled {} times", cancelled.get())));
    Ok(())
}

/// ALTER SYSTEM and a reload, which strike by being accepted; the node must put it back and say so.
fn alter_system<'a>(i: &mut Injected<'a>, target: Target<'a>, name: &'static str, value: &'static str) -> Result<()> {
    let log = Tail::of(target.node_log());
    i.undo(format!("{name} of {}", target.name()), move || {
        // Whoever put it back already has nothing left to reset; one that is down says so elsewhere.
        let _ = target.sql("ALTER SYSTEM RESET ALL");
        let _ = target.sql("SELECT pg_reload_conf()");
        Ok(())
    });
    target.sql(&format!("ALTER SYSTEM SET {name} = {value}"))?;
    target.sql("SELECT pg_reload_conf()")?;
    i.proved(format!("{name} of {} was set to {value}", target.name()));
    i.expect(format!("{} restores {name}", target.name()), move || {
        log.line(&[said::SETTING_RESTORED]).map(|line| format!("{}: {line}", target.name()))
    });
    Ok(())
}

fn promote(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    let log = Tail::of(target.postgres_log());
    i.undo("nothing to mend after a promotion by hand", || Ok(()));
    target.sql("SELECT pg_promote(false)")?;
    i.prove(format!("{} promoted", target.name()), move || {
        log.line(&["received promote request", "selected new timeline"]).map(|line| format!("{}: {line}", target.name()))
    });
    Ok(())
}

fn by_hand(i: &mut Injected<'_>, signal: Signal) -> Result<()> {
    let target = i.target();
    let postmaster = target.process(Kind::Postmaster)?;
    i.undo("whoever ended over it", || Ok(()));
    postmaster.signal(signal);
    i.prove(format!("postmaster of {} gone", target.name()), move || {
        postmaster.is_gone().then(|| format!("the postmaster {} of {} has ended", postmaster.pid, target.name()))
    });
    Ok(())
}

fn drop_slots(i: &mut Injected<'_>) -> Result<()> {
    const TRIES: usize = 40;
    let target = i.target();
    i.undo("nothing to mend after slots were dropped", || Ok(()));
    let mut dropped = 0;
    for _ in 0..TRIES {
        // In one statement, before the walreceiver is back.
        let sql =
            "SELECT pg_terminate_backend(active_pid, 500), pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE active";
        dropped += usize::from(target.sql(sql).is_ok_and(|rows| !rows.is_empty()));
        if dropped > 0 {
            break;
        }
    }
    if dropped == 0 {
        bail!("no slot of {} could be dropped: their walreceivers were faster", target.name());
    }
    i.proved(format!("slots of {} were dropped under their walreceivers", target.name()));
    Ok(())
}

fn change_password(i: &mut Injected<'_>) -> Result<()> {
    const ROLE: &str = "trilithon_replication";
    let target = i.target();
    let before = target.value(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{ROLE}'"))?;
    let ctx = i.ctx;
    i.undo("the replication role's password as before", move || {
        let primary = ctx.cluster.primary().context("there is no primary to put the password back on")?;
        // Nobody streams, so that nobody would confirm: the change must not wait for that.
        let sql = format!("SET synchronous_commit = local; ALTER ROLE {ROLE} PASSWORD '{before}'");
        ctx.cluster.sql(&primary, cluster::Target::Own, &sql).map(drop)
    });
    target.sql(&format!("SET synchronous_commit = local; ALTER ROLE {ROLE} PASSWORD 'another'"))?;
    let logs: Vec<Tail> = i.others(target).iter().map(|t| Tail::of(t.postgres_log())).collect();
    target.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")?;
    i.prove("a refused standby", move || logs.iter().find_map(|log| log.line(&["password authentication failed"])));
    Ok(())
}
