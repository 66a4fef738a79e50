//! Puts a rule in force and proves it (INV-5, INV-6).
//!
//! The proof has four parts. (1) A new connection sees the list, so the postmaster has told every process about it. (2) Where the
//! list was empty before, the checkpointer has loaded the new one: only it makes commits wait at all, and a CHECKPOINT that ends
//! proves it. (3) A marker is committed after that, waits for its confirmation, and ends without a warning: a wait that was
//! cancelled reports success too, with a warning only. (4) `acks` distinct members report to have flushed the marker. A walsender
//! handles a standby's report only after it has loaded the configuration it was told about, so a report that covers the marker also
//! proves that this walsender goes by the new list; those that might still go by an old one are ended.

use super::conf::{SyncNames, node_of};
use super::error::Error;
use super::instance::{Activity, Instance, QUERY_LIMIT};
use super::lifecycle::POLL;
use super::process::lock;
use super::session::{Session, Target};
use super::tool::within;
use crate::bug::{self, Bug};
use crate::cluster::SyncRule;
use crate::types::{Epoch, Lsn, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::sleep;

/// How long walsenders that the rule does not need may take to confirm the marker before they are ended.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// Name of the sessions that write markers.
const MARKER: &str = "trilithon_marker";

/// A walsender of a member, as the marker's proof sees it.
struct Walsender {
    pid: i32,
    node: NodeId,
    flushed: Lsn,
    /// Named by the list that it has loaded: it may release waiting commits.
    releases: bool,
}

impl Instance {
    /// Puts `rule` in force and proves it with a marker write. Only `Ok` means that every later acknowledgement obeys the rule.
    pub async fn apply_rule(&self, epoch: Epoch, rule: &SyncRule, limit: Duration) -> Result<(), Error> {
        let _working = self.begin(Activity::Configuring)?;
        let names = SyncNames::of(rule);
        let session = self.session().await?;
        if session.value("SELECT pg_is_in_recovery()", QUERY_LIMIT).await?.as_deref() != Some("f") {
            return Err(Error::NotPrimary);
        }
        self.restore_protected().await?;
        let retuned = names.clone();
        self.retune(move |intent| intent.sync = retuned).await?;
        self.reload().await?;
        end_old_markers(&session).await?;
        let loaded = async {
            self.await_names(&names).await?;
            self.prove_waiting(rule).await
        };
        within(limit, "loading the rule", loaded).await?;
        self.prove_by_marker(epoch, rule, limit).await?;
        // Nobody changed it meanwhile.
        self.await_names(&names).await
    }

    /// Commits wait only when the checkpointer has loaded a list that is not empty.
    async fn prove_waiting(&self, rule: &SyncRule) -> Result<(), Error> {
        if rule.acks == 0 || self.waits() {
            return Ok(());
        }
        // A checkpoint that is asked for now begins only after the checkpointer has looked at its configuration.
        self.connect().await?.run("CHECKPOINT", Duration::from_secs(60)).await?;
        lock(&self.model).waits = true;
        Ok(())
    }

    async fn prove_by_marker(&self, epoch: Epoch, rule: &SyncRule, limit: Duration) -> Result<(), Error> {
        let writer = Session::open(&Target { name: MARKER, ..self.target() }, QUERY_LIMIT).await?;
        let watcher = self.session().await?;
        let mut confirmed = 0;
        let mut marker_lsn = Lsn(0);
        let proof = async {
            marker_lsn = write_marker(&writer, epoch, rule, limit).await?;
            while !satisfied(&watcher, rule, marker_lsn, &mut confirmed).await? {
                sleep(POLL).await;
            }
            self.end_stragglers(&watcher, marker_lsn).await
        };
        let ended = tokio::time::timeout(limit, proof).await;
        if !matches!(ended, Ok(Ok(()))) {
            drop(writer);
            let _ = end_old_markers(&watcher).await;
        }
        ended.unwrap_or(Err(Error::RuleUnproved { confirmed, needed: rule.acks, lsn: marker_lsn }))
    }

    /// Walsenders that have not confirmed the marker may go by an older list: none of them may release a commit any more.
    async fn end_stragglers(&self, session: &Session, marker: Lsn) -> Result<(), Error> {
        let behind = || async {
            let senders = walsenders(session).await?;
            Ok::<_, Error>(senders.into_iter().filter(|s| s.releases && s.flushed < marker).map(|s| s.pid).collect::<Vec<_>>())
        };
        let caught_up = within(STRAGGLERS, "standbys", async {
            while !behind().await?.is_empty() {
                sleep(POLL).await;
            }
            Ok(())
        });
        if caught_up.await.is_ok() {
            return Ok(());
        }
        let old = behind().await?;
        for pid in &old {
            session.run(&format!("SELECT pg_terminate_backend({pid})"), QUERY_LIMIT).await?;
        }
        while walsenders(session).await?.iter().any(|s| old.contains(&s.pid)) {
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// A marker that nobody confirms would wait for ever, also when its client has gone: this one's, or one of an attempt that was
/// broken off.
async fn end_old_markers(session: &Session) -> Result<(), Error> {
    let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{MARKER}'");
    session.run(&sql, QUERY_LIMIT).await
}

/// One commit that has to be confirmed. Returns a position that covers it.
async fn write_marker(writer: &Session, epoch: Epoch, rule: &SyncRule, limit: Duration) -> Result<Lsn, Error> {
    let text = format!("epoch {epoch}: {rule}").replace('\'', "");
    // Separate statements: several in one message would be one transaction.
    writer.run("SET synchronous_commit = on", QUERY_LIMIT).await?;
    writer.run(&format!("SELECT pg_logical_emit_message(true, 'trilithon', '{text}')"), limit).await?;
    let lsn = writer.value("SELECT pg_current_wal_flush_lsn()", QUERY_LIMIT).await?;
    if let Some(warning) = writer.warnings().first() {
        return Err(Error::MarkerCancelled(warning.clone()));
    }
    lsn.and_then(|l| l.parse().ok()).ok_or(Error::Answer("pg_current_wal_flush_lsn"))
}

/// Do `acks` distinct members of the rule hold the marker? Two walsenders of one member count once.
async fn satisfied(session: &Session, rule: &SyncRule, marker: Lsn, confirmed: &mut usize) -> Result<bool, Error> {
    let senders = walsenders(session).await?;
    let members: BTreeSet<NodeId> =
        senders.iter().filter(|s| s.releases && s.flushed >= marker && rule.standbys.contains(&s.node)).map(|s| s.node).collect();
    *confirmed = members.len();
    Ok(members.len() >= rule.acks)
}

async fn walsenders(session: &Session) -> Result<Vec<Walsender>, Error> {
    const SQL: &str = "SELECT pid, application_name, coalesce(flush_lsn, '0/0'), coalesce(sync_priority, 0) FROM pg_stat_replication \
                       WHERE application_name LIKE 'trilithon\\_n%'";
    let rows = session.rows(SQL, QUERY_LIMIT).await?;
    let parse = |row: &tokio_postgres::SimpleQueryRow| {
        Some(Walsender {
            pid: row.get(0)?.parse().ok()?,
            node: node_of(row.get(1)?)?,
            flushed: row.get(2)?.parse().ok()?,
            releases: row.get(3)? != "0" || bug::is(Bug::NamesEmptied),
        })
    };
    Ok(rows.iter().filter_map(parse).collect())
}
