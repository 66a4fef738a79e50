//! Volatile facts: what each node last said about itself. Streamed between nodes, never replicated.

use crate::cluster::{Lease, SyncRule};
use crate::types::{Epoch, Lsn, Millis, NodeId, RequestId, Revision, SystemId, Timeline, WalPosition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// "I follow no epoch older than `epoch`, no WAL receiver of mine runs, and my WAL ends at `end`."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub epoch: Epoch,
    pub end: WalPosition,
    /// The copy itself is lost to a rewind that broke off. It can tell what it ever confirmed, so it may elect; it cannot be elected.
    #[serde(default)]
    pub ruined: bool,
}

/// What the local Postgres is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostgresState {
    /// We could not find out; never treated as stopped.
    #[default]
    Unknown,
    /// No data directory.
    Absent,
    /// Data directory there, no postmaster and no orphaned backend.
    Stopped,
    /// Postmaster runs, connections are not yet accepted (crash recovery, start-up).
    Starting,
    Running,
    Stopping,
    /// A base backup or a rewind replaces the data directory.
    Cloning,
    Rewinding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Primary,
    Standby,
}

/// Facts about the local Postgres, read from the server or, where it is down, from pg_control.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PostgresFacts {
    pub state: PostgresState,
    /// Of a running server.
    pub role: Option<Role>,
    pub system: Option<SystemId>,
    /// Timeline of the last WAL held.
    pub timeline: Option<Timeline>,
    /// End of flushed (received) WAL with its writer; `None` while unknown, for example after a crash before recovery.
    pub position: Option<WalPosition>,
    pub replayed: Option<Lsn>,
    /// Cleanly shut down as a primary: start of the shutdown checkpoint record. It is also `position.lsn` then, since that
    /// record carries nothing of a client's.
    pub shutdown_checkpoint: Option<Lsn>,
    /// Ancestors of `timeline`, oldest first, each with the position at which it was left.
    pub ancestry: Vec<(Timeline, Lsn)>,
    /// Whose WAL a standby receives at this moment.
    pub streaming_from: Option<NodeId>,
    /// On a primary: each member's walsender.
    pub standbys: BTreeMap<NodeId, StandbyView>,
    /// `server_version_num`, 0 when unknown.
    pub version_num: u32,
    /// A primary with processes that wait, at this moment, for the storage to take their WAL.
    pub flush_waits: bool,
    /// Milliseconds since the last transaction replayed, as the standby sees it.
    pub replay_lag_ms: Option<u64>,
}

/// One row of pg_stat_replication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyView {
    pub streaming: bool,
    pub flushed: Lsn,
    pub replayed: Lsn,
    /// Named by the synchronous_standby_names that its walsender has loaded.
    pub sync: bool,
}

/// What one node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeObservation {
    pub node: NodeId,
    /// Newest epoch that it promised (INV-1).
    pub promised: Epoch,
    pub postgres: PostgresFacts,
    pub seal: Option<Seal>,
    /// The rule under which a marker write of that epoch was acknowledged (INV-6).
    pub settled: Option<(Epoch, SyncRule)>,
    /// This switchover's preparation (CHECKPOINT) is done.
    pub prepared: Option<RequestId>,
    /// Its shutdown for a drain has begun: the old primary can no longer simply resume.
    pub drain_committed: bool,
    /// It stops soon, on purpose: rules should do without it.
    pub leaving: bool,
    /// Revision that its proxy acts on.
    pub revision: Revision,
    /// Transactions that its proxy still has open on the primary.
    pub proxy_in_flight: u64,
    /// It was configured to give an existing data directory to the new cluster.
    pub adopt_existing: bool,
    /// Its own next step, in words, for `status`.
    pub step: String,
    /// Peers whose process and postmaster both refused connections when this node last asked, and the lease that it knew before it asked:
    /// of a later one, taken by a peer that has come back since, a refusal proves nothing (INV-9).
    pub refusals: BTreeMap<NodeId, Lease>,
    /// Round trip to each member that it reaches, in milliseconds: a hint, which no decision here looks at.
    pub round_trips: BTreeMap<NodeId, u32>,
    pub software_version: String,
    /// A standby with WAL that it wrote itself as primary and that its rule is not known to have confirmed: a read there may show what an
    /// election takes away.
    pub doubtful: bool,
}

/// An observation and when it arrived here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub at: Millis,
    pub observation: NodeObservation,
}

/// Everything volatile that the controller knows.
pub type Observations = BTreeMap<NodeId, Seen>;

/// The controller's own view of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub now: Millis,
    pub observations: Observations,
    /// When this process applied the newest renewal or change of the lease; its own start after a restart (INV-9).
    pub lease_seen: Millis,
    /// When this process applied the newest change of (epoch, phase, planned change).
    pub phase_since: Millis,
    /// When the last settled primary was last known to accept writes.
    pub writable_last: Millis,
}

impl View {
    /// The observation of `node`, unless it is older than `max_age`.
    #[must_use]
    pub fn fresh(&self, node: NodeId, max_age: Duration) -> Option<&NodeObservation> {
        let seen = self.observations.get(&node)?;
        (self.now.since(seen.at) <= max_age).then_some(&seen.observation)
    }
}
