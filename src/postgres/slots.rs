//! Replication slots: one per other member, on every member, so that whoever is promoted still has the WAL that the others need.

use super::conf::{Drift, application_name, node_of};
use super::error::Error;
use super::instance::{Activity, Instance, QUERY_LIMIT, SLOT_LIMIT};
use super::process::lock;
use crate::types::{Lsn, NodeId};
use std::collections::BTreeMap;

/// A slot as the server lists it.
struct Slot {
    node: NodeId,
    active: bool,
    restart: Option<Lsn>,
    lost: bool,
}

impl Instance {
    /// The regular upkeep, for each tick: restores protected settings (what was found changed is returned), keeps the slots of
    /// `members` (each with the end of its flushed WAL, where known) and the length of the log. Does nothing while an action runs.
    pub async fn tend(&self, members: &BTreeMap<NodeId, Option<Lsn>>) -> Result<Vec<Drift>, Error> {
        if *self.activity.borrow() != Activity::Idle {
            return Ok(Vec::new());
        }
        let drift = self.drift().await?;
        let kept = self.keep(members).await;
        // INV-6: that the rule was changed is told whatever else fails, which the next round says.
        if drift.is_empty() { kept.map(|()| drift) } else { Ok(drift) }
    }

    async fn keep(&self, members: &BTreeMap<NodeId, Option<Lsn>>) -> Result<(), Error> {
        if self.supervisor.pid().is_none() {
            return Ok(());
        }
        self.sync_slots(members).await?;
        self.tell_histories().await
    }

    /// One slot for each of `members` (with the end of its flushed WAL, where known), none for former members. On a standby, where
    /// nobody moves them, they are advanced; a slot that was invalidated is made anew.
    pub async fn sync_slots(&self, members: &BTreeMap<NodeId, Option<Lsn>>) -> Result<(), Error> {
        let me = lock(&self.model).node;
        let session = self.session().await?;
        let slots = self.list_slots().await?;
        for slot in &slots {
            let name = application_name(slot.node);
            let wanted = members.contains_key(&slot.node) && slot.node != me;
            if !slot.active && (!wanted || slot.lost) {
                session.run(&format!("SELECT pg_drop_replication_slot('{name}')"), SLOT_LIMIT).await?;
            }
        }
        self.create_slots(members.keys().copied()).await?;
        if session.value("SELECT pg_is_in_recovery()", QUERY_LIMIT).await?.as_deref() != Some("t") {
            return Ok(());
        }
        for slot in slots.iter().filter(|s| !s.active && !s.lost) {
            let Some(flushed) = members.get(&slot.node).copied().flatten() else { continue };
            if slot.restart.is_some_and(|r| r < flushed) {
                // Never beyond what is replayed here: PostgreSQL refuses that, and this node could not serve it either.
                let sql = format!(
                    "SELECT pg_replication_slot_advance('{}', least('{flushed}'::pg_lsn, pg_last_wal_replay_lsn())) \
                     WHERE least('{flushed}'::pg_lsn, pg_last_wal_replay_lsn()) > '{}'::pg_lsn",
                    application_name(slot.node),
                    slot.restart.unwrap_or_default()
                );
                session.run(&sql, QUERY_LIMIT).await?;
            }
        }
        Ok(())
    }

    /// Creates what is missing; WAL is kept from this moment.
    pub(super) async fn create_slots(&self, members: impl Iterator<Item = NodeId>) -> Result<(), Error> {
        let me = lock(&self.model).node;
        let names: Vec<String> = members.filter(|m| *m != me).map(|m| format!("'{}'", application_name(m))).collect();
        if names.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT pg_create_physical_replication_slot(name, true) FROM unnest(ARRAY[{}]) name \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = name)",
            names.join(",")
        );
        self.session().await?.run(&sql, SLOT_LIMIT).await
    }

    async fn list_slots(&self) -> Result<Vec<Slot>, Error> {
        const SQL: &str = "SELECT slot_name, active, restart_lsn, coalesce(wal_status = 'lost', false) FROM pg_replication_slots \
                           WHERE slot_type = 'physical' AND slot_name LIKE 'trilithon\\_n%'";
        let rows = self.session().await?.rows(SQL, QUERY_LIMIT).await?;
        let parse = |row: &tokio_postgres::SimpleQueryRow| {
            Some(Slot {
                node: node_of(row.get(0)?)?,
                active: row.get(1)? == "t",
                restart: row.get(2).and_then(|l| l.parse().ok()),
                lost: row.get(3)? == "t",
            })
        };
        Ok(rows.iter().filter_map(parse).collect())
    }
}
