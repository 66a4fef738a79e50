//! Whom a standby streams from, and turning away from it.
//!
//! Turning away is what a seal rests on: when `detach` returns, no walreceiver runs and none can connect again. Three things
//! together make that hold: the password file of the old upstream is deleted first, so a walreceiver that still starts with the old
//! configuration is refused; the configuration is emptied and reloaded; and the walreceiver's process is awaited, killed if need be
//! (a startup process that waits for a conflicting query does not look at its configuration).

use super::conf::{Upstream, application_name};
use super::error::Error;
use super::facts::LocalEnd;
use super::history::{self, Descent};
use super::instance::{Activity, Instance, QUERY_LIMIT, SLOT_LIMIT};
use super::lifecycle::POLL;
use super::procfs;
use super::session::{Host, Session, Target};
use super::tool::{blocking, within};
use crate::types::SystemId;
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::sleep;

/// A walreceiver usually goes within 35 ms of a reload. One that has not by then is ended by signal.
const PATIENCE: Duration = Duration::from_millis(250);
/// A standby stops within milliseconds, or after its restartpoint.
const RESTART_LIMIT: Duration = Duration::from_secs(20);
/// What a standby still has to replay when it is stopped is milliseconds' worth, or much.
const REPLAY_MOMENT: Duration = Duration::from_secs(1);
/// In which a startup process that a signal woke looks for a newer timeline; where it does not, the server takes the longer way.
const LOOK: Duration = Duration::from_millis(25);
const WALRECEIVERS: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'";

impl Instance {
    /// Stops the WAL receiver and waits until it has gone. Needs no answer from anybody but the local server; on a stopped one it
    /// only changes the configuration.
    pub async fn detach(&self, limit: Duration) -> Result<(), Error> {
        let _working = self.begin(Activity::Configuring)?;
        self.detach_running(limit).await
    }

    pub(super) async fn detach_running(&self, limit: Duration) -> Result<(), Error> {
        self.retune(|intent| intent.upstream = None).await?;
        if self.supervisor.pid().is_none() {
            return Ok(());
        }
        self.reload().await?;
        within(limit, "ending the WAL receiver", async {
            let session = self.session().await?;
            if within(PATIENCE, "WAL receiver", no_walreceiver(&session)).await.is_ok() {
                return Ok(());
            }
            loop {
                for row in session.rows(WALRECEIVERS, QUERY_LIMIT).await? {
                    if let Some(pid) = row.try_get(0).ok().flatten().and_then(|p| p.parse().ok()) {
                        procfs::signal(pid, Signal::TERM);
                    }
                }
                if within(PATIENCE, "WAL receiver", no_walreceiver(&session)).await.is_ok() {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// Streams from `upstream`, starting Postgres as a standby if it is down. Returns once Postgres was told, not once it streams.
    ///
    /// A standby that was about to follow another candidate has chosen that one's timeline as its target, and would ask for it for ever:
    /// where there is a history of a timeline that is not of the upstream's `descent`, it goes, and a running server starts anew.
    pub async fn follow(&self, upstream: Upstream, system: Option<SystemId>, descent: Option<&Descent>) -> Result<(), Error> {
        let _working = self.begin(Activity::Configuring)?;
        let (wal, known) = (self.layout.wal(), descent.cloned());
        let strays = blocking(move || {
            let Some(descent) = known else { return Ok(Vec::new()) };
            history::unhide(&wal, &descent)?;
            history::strays(&wal, &descent)
        });
        let strays = strays.await?;
        if !strays.is_empty() {
            tracing::info!(files = ?strays, "forgetting timelines that the primary never was on");
            if self.supervisor.pid().is_some() {
                self.stop_cleanly(RESTART_LIMIT).await?;
            }
            let wal = self.layout.wal();
            blocking(move || history::forget(&wal, &strays)).await?;
        }
        if self.supervisor.pid().is_none() {
            self.activity.send_replace(Activity::Starting);
            return self.start(system, Some(upstream)).await;
        }
        // One that lets nobody in is a standby; what it waits for comes now.
        if self.lockout_end().is_some() {
            self.forget_recovery();
        } else {
            if !self.recovers().await? {
                return Err(Error::NotStandby);
            }
            if let Some(descent) = descent
                && let Err(error) = self.foretell(descent).await
            {
                tracing::debug!(%error, "the next timeline was not foretold");
            }
        }
        self.retune(|intent| intent.upstream = Some(upstream)).await?;
        self.reload().await
    }

    /// Spares the primary's first commits several round trips. Only where nothing can come in any more, and what came in ends exactly where
    /// the upstream's timeline begins: a server that goes over to a timeline asks nobody whether it may, and one that is promoted then writes
    /// in its own history that it left that timeline where its WAL ends.
    async fn foretell(&self, descent: &Descent) -> Result<(), Error> {
        let Some(left) = descent.left_at().filter(|_| self.following().is_none()) else { return Ok(()) };
        // What a broken-off step left in the files must not let one connect meanwhile.
        self.retune(|_| {}).await?;
        // None while a walreceiver runs.
        if self.flushed_end().await?.is_some_and(|end| end.timeline == descent.own && end.lsn == left) {
            let (wal, run_as, descent) = (self.layout.wal(), self.run_as.clone(), descent.clone());
            blocking(move || history::foretell(&wal, &descent, &run_as)).await?;
            // It looks only where it has nobody to ask for WAL: before it is told whom to follow.
            self.reload().await?;
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// End of the WAL that a running, detached standby holds; `None` while it cannot be proved, and on a primary. It has a moment to replay
    /// that, too; not longer, since the end may lie in the middle of a record.
    pub(super) async fn proved_end(&self) -> Option<LocalEnd> {
        let mut known = None;
        let replayed = async {
            while self.session().await?.value("SELECT pg_is_in_recovery()", QUERY_LIMIT).await?.as_deref() == Some("t") {
                let (end, since) = match (self.flushed_end().await?, known) {
                    (Some(end), Some((_, since))) => (end, since),
                    (Some(end), None) => (end, self.clock.now()),
                    (None, _) => {
                        sleep(POLL).await;
                        continue;
                    }
                };
                known = Some((end, since));
                if end.replayed || self.clock.now().since(since) >= REPLAY_MOMENT {
                    return Ok(());
                }
                sleep(POLL).await;
            }
            known = None;
            Ok(())
        };
        let _ = within(Duration::from_secs(5), "the end of WAL", replayed).await;
        known.map(|(end, _)| end)
    }

    /// A connection to the upstream's database `postgres` as the replication role.
    pub(super) async fn connect_upstream(&self, upstream: &Upstream) -> Result<Session, Error> {
        let secrets = self.secrets().ok_or(Error::NoSecrets)?;
        let target = Target {
            host: Host::Tcp(upstream.host.clone()),
            port: upstream.port,
            user: super::conf::REPLICATION_ROLE,
            password: Some(secrets.replication),
            options: "-c search_path=pg_catalog".to_owned(),
            name: "trilithon_copy",
        };
        Session::open(&target, Duration::from_secs(5)).await
    }

    /// Makes sure that the upstream keeps WAL for this member from now on.
    pub(super) async fn reserve_upstream_slot(&self, session: &Session) -> Result<String, Error> {
        let name = application_name(super::process::lock(&self.model).node);
        let sql = format!(
            "SELECT pg_create_physical_replication_slot('{name}', true) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{name}')"
        );
        session.run(&sql, SLOT_LIMIT).await?;
        Ok(name)
    }
}

async fn no_walreceiver(session: &Session) -> Result<(), Error> {
    while !session.rows(WALRECEIVERS, QUERY_LIMIT).await?.is_empty() {
        sleep(POLL).await;
    }
    Ok(())
}
