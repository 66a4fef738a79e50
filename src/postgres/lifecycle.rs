//! Start, stop, demote, drain.
//!
//! A server is always started as a standby; a primary comes to be by promotion only, so no restart can bring back a primary whose
//! right is gone. Stopped means: the postmaster and every process it left behind are gone.

use super::conf::{Alone, Intent, StoppedAt, Upstream};
use super::control::LastState;
use super::durable::write_atomic;
use super::error::Error;
use super::facts::LocalEnd;
use super::instance::{Activity, Instance, QUERY_LIMIT, data_major};
use super::process::{Postmaster, lock};
use super::procfs::{self, PidFile};
use super::tool::{blocking, within};
use super::{conf, history};
use crate::types::SystemId;
use rustix::process::Signal;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// How long a start is watched before it is left to go on by itself: a longer crash recovery shows up in the facts as starting.
const START_WATCHED: Duration = Duration::from_secs(5);
/// What our own standby.signal says; PostgreSQL does not read it. One that says something else was put there by somebody.
pub(super) const STANDBY_SIGNAL: &str = "# Trilithon starts every server as a standby\n";
/// A shutdown is asked for this often until it has happened.
const SIGNAL_AGAIN: Duration = Duration::from_millis(200);
/// An immediate shutdown takes milliseconds; PostgreSQL itself kills what is left after five seconds.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(2);
/// Killed processes are gone when the kernel has freed their memory.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at something that changes within milliseconds.
pub(super) const POLL: Duration = Duration::from_millis(5);

impl Instance {
    /// Starts as a standby that follows nobody. Returns when it accepts connections, or after five seconds of recovery.
    pub async fn start_detached(&self, system: Option<SystemId>) -> Result<(), Error> {
        let _working = self.begin(Activity::Starting)?;
        self.start(system, None).await
    }

    pub(super) async fn start(&self, system: Option<SystemId>, upstream: Option<Upstream>) -> Result<(), Error> {
        if self.supervisor.pid().is_some() {
            return Err(Error::StillRunning);
        }
        let pids = self.leftovers().await;
        if !pids.is_empty() {
            return Err(Error::Orphans { pids, path: self.layout.pgdata.clone() });
        }
        if self.poisoned() {
            return Err(Error::Poisoned { path: self.layout.pgdata.clone(), what: "rewind".to_owned() });
        }
        self.start_unchecked(system, upstream).await
    }

    /// Without the look at the poison marker, which a rewind in progress has set itself.
    pub(super) async fn start_unchecked(&self, system: Option<SystemId>, upstream: Option<Upstream>) -> Result<(), Error> {
        self.refresh_install().await?;
        let control = self.control_data().await?;
        self.check_system(&control, system)?;
        lock(&self.model).sizes = control.sizes.clone();
        self.clear_stumps(control.timeline()).await?;
        let origin = history::Origin {
            checkpoint: (control.checkpoint_timeline, control.checkpoint),
            least: (control.min_recovery_timeline, control.min_recovery_end),
        };
        let alone = Alone { end: self.remembered(&control).map(|stopped| (stopped.timeline, stopped.lsn)) };
        let marked = self.marked();
        self.retune(|intent| *intent = Intent { upstream, alone: Some(alone), by_hand: marked, ..Intent::default() }).await?;
        self.told.store(0, Ordering::Relaxed);
        let layout = self.layout.clone();
        let run_as = self.run_as.clone();
        blocking(move || {
            if data_major(&layout)?.is_none() {
                return Err(Error::NoDatabase { path: layout.pgdata.clone() });
            }
            history::bridge(&layout.wal(), origin, &run_as)?;
            for name in ["promote", "recovery.signal", "fallback_promote", "backup_label.old"] {
                let _ = std::fs::remove_file(layout.pgdata.join(name));
            }
            let signal = layout.pgdata.join("standby.signal");
            write_atomic(&signal, STANDBY_SIGNAL, 0o600, Some(&run_as))?;
            let auto = layout.pgdata.join("postgresql.auto.conf");
            super::drift::strip(&auto, &run_as).map(drop)
        })
        .await?;
        let (install, node) = {
            let model = lock(&self.model);
            (model.install.clone(), model.node)
        };
        let settings = conf::command_line(&self.layout, &self.listen, self.port, node, install.major);
        loop {
            self.forget_connections();
            self.forget_recovery();
            self.supervisor.spawn(&install, &self.run_as, &self.layout, &settings)?;
            // The list of synchronous standbys is not empty from the first moment on.
            lock(&self.model).waits = true;
            match self.await_ready().await {
                // Each time fewer lines of pg_hba.conf are left, so this ends.
                Err(Error::StartFailed { .. }) if self.hba_mended().await => {}
                ended => return ended,
            }
        }
    }

    async fn await_ready(&self) -> Result<(), Error> {
        let watched = within(START_WATCHED, "start", async {
            loop {
                if self.supervisor.pid().is_none() {
                    return Err(self.start_failed().await);
                }
                let pgdata = self.layout.pgdata.clone();
                let status = blocking(move || PidFile::read(&pgdata)).await.and_then(|f| f.status);
                // `ready` and `standby` are written when connections are accepted.
                if status.is_some_and(|s| s == "ready" || s == "standby") && self.session().await.is_ok() {
                    return Ok(());
                }
                if self.lets_nobody_in() {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        });
        match watched.await {
            Err(Error::Timeout { .. }) => Ok(()),
            other => other,
        }
    }

    /// Clean stop of whatever runs: a standby's end of WAL is remembered, because pg_control does not hold it for sure.
    pub async fn stop(&self, limit: Duration) -> Result<(), Error> {
        let _working = self.begin(Activity::Stopping)?;
        self.stop_cleanly(limit).await
    }

    pub(super) async fn stop_cleanly(&self, limit: Duration) -> Result<(), Error> {
        let before = self.before_stop().await;
        let end = match self.detach_running(Duration::from_secs(2)).await {
            Ok(()) => self.proved_end().await,
            Err(_) => None,
        };
        self.signal_and_wait(Signal::INT, limit).await?;
        let control = self.control_data().await?;
        let end = match (end, before) {
            (None, Some(before)) => self.end_after_stop(&before, &control).await,
            (asked, _) => asked,
        };
        if let (Some(end), LastState::ShutDownInRecovery) = (end, control.state) {
            let LocalEnd { timeline, lsn, replayed } = end;
            let stopped = StoppedAt { timeline, lsn, replayed, control: control.digest };
            self.retune(|intent| intent.stopped = Some(stopped)).await?;
        }
        Ok(())
    }

    /// A primary without right, or any server that must go at once: immediate shutdown, then SIGKILL for whatever is left.
    /// Breaks into every other action.
    pub async fn demote(&self) -> Result<(), Error> {
        self.signal_and_wait(Signal::QUIT, IMMEDIATE_LIMIT).await
    }

    /// Sends `signal`; when the server is not gone by `limit`, everything in the data directory is killed. Returns only when no
    /// process is left.
    pub(super) async fn signal_and_wait(&self, signal: Signal, limit: Duration) -> Result<(), Error> {
        let mut exits = self.supervisor.subscribe();
        let left = async {
            // Again, since a start that was broken off may bring its postmaster about just after the first one.
            loop {
                self.supervisor.send(signal);
                if tokio::time::timeout(SIGNAL_AGAIN, gone(&mut exits)).await.is_ok() {
                    break;
                }
            }
            self.await_leftovers().await;
            Ok(())
        };
        let stopped = within(limit, "shutdown", left).await;
        if stopped.is_err() {
            self.kill_all().await?;
        }
        self.forget_connections();
        Ok(())
    }

    async fn await_leftovers(&self) {
        while !self.leftovers().await.is_empty() {
            sleep(POLL).await;
        }
    }

    /// SIGKILL to the postmaster and to every process in the data directory, until none is left.
    pub(super) async fn kill_all(&self) -> Result<(), Error> {
        self.supervisor.send(Signal::KILL);
        within(KILL_LIMIT, "killing the processes of PostgreSQL", async {
            loop {
                let pids = self.leftovers().await;
                if pids.is_empty() && self.supervisor.pid().is_none() {
                    return Ok(());
                }
                // A leftover without a known pid is only seen through its shared memory.
                pids.iter().filter(|pid| **pid > 0).for_each(|pid| procfs::signal(*pid, Signal::KILL));
                sleep(POLL).await;
            }
        })
        .await
    }

    /// Lets the transactions in flight end until `grace` is over, ends the others, and shuts down so that all WAL is shipped.
    /// Once the shutdown has begun the activity says so. After `limit` logical and lagging walsenders are ended, after twice that
    /// the server is stopped at once, which leaves an unclean directory.
    pub async fn drain(&self, grace: Duration, limit: Duration) -> Result<(), Error> {
        let _working = self.begin(Activity::Draining { committed: false })?;
        let session = self.session().await?;
        let idle = async {
            const OPEN: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                                AND pid <> pg_backend_pid() AND xact_start IS NOT NULL";
            while session.value(OPEN, QUERY_LIMIT).await?.as_deref() != Some("0") {
                sleep(POLL).await;
            }
            Ok(())
        };
        // Those still open when the grace ends are terminated by the shutdown itself.
        let _ = within(grace, "draining", idle).await;
        drop(session);
        self.activity.send_replace(Activity::Draining { committed: true });
        self.ship_and_stop(limit).await?;
        match self.control_data().await?.state {
            LastState::ShutDown => Ok(()),
            LastState::ShutDownInRecovery | LastState::Unclean => Err(Error::NotCleanlyStopped(self.layout.pgdata.clone())),
        }
    }

    async fn ship_and_stop(&self, limit: Duration) -> Result<(), Error> {
        let senders = self.walsender_pids().await;
        let mut exits = self.supervisor.subscribe();
        self.supervisor.send(Signal::INT);
        let exited = tokio::time::timeout(limit, gone(&mut exits)).await;
        if exited.is_err() {
            // A walsender whose receiver hangs keeps the shutdown waiting for ever.
            senders.iter().for_each(|pid| procfs::signal(*pid, Signal::TERM));
        }
        self.signal_and_wait(Signal::INT, limit).await
    }

    async fn walsender_pids(&self) -> Vec<i32> {
        let asked = async { self.session().await?.rows("SELECT pid FROM pg_stat_replication", QUERY_LIMIT).await };
        let rows = asked.await.unwrap_or_default();
        rows.iter().filter_map(|r| r.try_get(0).ok().flatten()?.parse().ok()).collect()
    }

    /// CHECKPOINT, so that the shutdown of a switchover is short.
    pub async fn prepare(&self, limit: Duration) -> Result<(), Error> {
        let session = self.connect().await?;
        session.run("CHECKPOINT", limit).await
    }
}

/// Until no postmaster runs.
async fn gone(exits: &mut watch::Receiver<Postmaster>) {
    // The sender lives as long as the instance.
    let _ = exits.wait_for(|p| !matches!(p, Postmaster::Running { .. })).await.map(|state| *state);
}
