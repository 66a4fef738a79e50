//! What the members agree on. Replicated through Raft, rebuilt from snapshot and log.

use super::{ElectionCause, Settings, SyncRule};
use crate::types::{ClusterId, Epoch, Lsn, NodeId, NodeName, RequestId, Revision, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The whole replicated state. Holds no clock reading (INV-3) and no volatile fact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterState {
    pub name: String,
    /// Drawn at bootstrap; `None` until the first command.
    pub cluster: Option<ClusterId>,
    /// Which initdb all data directories descend from; `None` until the first primary settled.
    pub system: Option<SystemId>,
    /// Bumped by every applied command except the lease's (INV-2).
    pub revision: Revision,
    pub epoch: Epoch,
    pub phase: Phase,
    /// One rule, or several while a change is in flight: an election must cover all of them (INV-5). Empty before bootstrap.
    pub rules: Vec<SyncRule>,
    /// When each of `rules` was adopted, in the same order.
    pub adopted: Vec<Adopted>,
    pub members: BTreeMap<NodeId, Member>,
    /// Next consensus id to give out; ids are never reused.
    pub next_node: NodeId,
    pub lease: Lease,
    pub timelines: TimelineClaims,
    /// The longest ttl by which the present epoch's lease may have been taken, in milliseconds; 0 where that is the settings'.
    #[serde(default)]
    pub lease_floor_ms: u64,
    pub settings: Settings,
    /// Passwords of Postgres's own roles; drawn by the first controller, kept by each member in files of mode 0600.
    pub secrets: Option<Secrets>,
    /// Automatic elections are off.
    pub paused: bool,
    /// Members that may not run Postgres.
    pub fences: BTreeSet<NodeId>,
    /// An administrator's wish to change the primary, from its request until an election begins or it is called off.
    pub change: Option<PlannedChange>,
    /// The newest wish that was called off, with the reason, so that whoever waits for it learns its end.
    pub called_off: Option<CalledOff>,
    /// Why the election of this epoch was called, and who was primary before.
    pub election: Option<ElectionCall>,
    /// Newest last, at most [`ClusterState::HISTORY_MAX`].
    pub history: Vec<HistoryEntry>,
    /// Administrators' requests that took effect, oldest first, at most [`ClusterState::REQUESTS_MAX`] (INV-12).
    pub requests: Vec<RequestId>,
}

impl ClusterState {
    /// How long others wait after applying the last renewal of the present lease (INV-9).
    #[must_use]
    pub fn lease_wait(&self) -> std::time::Duration {
        self.settings.wait_for_ttl(self.settings.lease_ttl_ms.max(self.lease_floor_ms))
    }

    /// How long others wait after applying the last renewal until the holder's proxy begins no transaction any more (INV-9).
    #[must_use]
    pub fn serving_wait(&self) -> std::time::Duration {
        self.settings.wait_for_serving(self.settings.lease_ttl_ms.max(self.lease_floor_ms))
    }

    /// Changes of primary kept.
    pub const HISTORY_MAX: usize = 200;
    /// Administrators' requests remembered: far more than can be retried within a command's deadline.
    pub const REQUESTS_MAX: usize = 512;

    /// The node that is, or is about to become, primary of this epoch.
    #[must_use]
    pub fn primary(&self) -> Option<NodeId> {
        match self.phase {
            Phase::Steady { primary } | Phase::Draining { from: primary, .. } | Phase::Promoting { candidate: primary } => Some(primary),
            Phase::Empty | Phase::Bootstrapping { .. } | Phase::Electing { .. } => None,
        }
    }

    /// Members that hold data.
    pub fn data_members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().filter(|(_, m)| m.kind == MemberKind::Data).map(|(n, _)| *n)
    }

    /// The member called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(NodeId, &Member)> {
        self.members.iter().find(|(_, m)| m.name.as_str() == name).map(|(n, m)| (*n, m))
    }

    /// A member's name, or its id where it has left.
    #[must_use]
    pub fn name_of(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| node.to_string(), |m| m.name.to_string())
    }
}

/// Where the cluster stands. A switchover is an election that begins with a live, drained primary; there is no second code path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No member has initialised a database yet.
    #[default]
    Empty,
    /// One member runs initdb, or hands over its existing data directory. No other member may do the same.
    Bootstrapping {
        node: NodeId,
    },
    Steady {
        primary: NodeId,
    },
    Draining {
        from: NodeId,
        to: NodeId,
    },
    Electing {
        preferred: Option<NodeId>,
        /// An administrator accepted in words that acknowledged writes may be lost.
        accept_loss: bool,
    },
    Promoting {
        candidate: NodeId,
    },
}

impl Phase {
    /// The word that users see.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Phase::Empty | Phase::Bootstrapping { .. } => "bootstrapping",
            Phase::Steady { .. } => "steady",
            Phase::Draining { .. } => "draining",
            Phase::Electing { .. } => "electing",
            Phase::Promoting { .. } => "promoting",
        }
    }
}

/// Passwords that every member needs to follow any other. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    pub superuser: String,
    pub replication: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets { .. }")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: NodeName,
    pub datacenter: String,
    pub kind: MemberKind,
    pub addresses: Addresses,
    #[serde(default)]
    pub tags: Tags,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberKind {
    #[default]
    Data,
    /// Votes in consensus, holds no Postgres; never confirms a commit, never counts as sealed.
    Witness,
}

/// `host:port` of each service of a member, as others reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    pub grpc: String,
    pub http: String,
    pub postgres: String,
    pub proxy_auto: String,
    pub proxy_primary: String,
    pub proxy_standby: String,
}

/// Patroni's tags, with its meanings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tags {
    /// Among equally advanced candidates the highest wins.
    pub priority: i32,
    pub nofailover: bool,
    pub nosync: bool,
    pub noloadbalance: bool,
}

impl Default for Tags {
    fn default() -> Self {
        Tags { priority: 100, nofailover: false, nosync: false, noloadbalance: false }
    }
}

/// The primary's time-bounded right to serve (INV-9). No timestamps: each member measures from its own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    pub holder: Option<NodeId>,
    pub epoch: Epoch,
    /// +1 with each renewal; an election names the value it saw, so a renewal in between defeats it.
    pub seq: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedChange {
    pub request: RequestId,
    pub from: Option<NodeId>,
    pub to: NodeId,
    pub kind: ChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// The primary lives: prepare, drain, hand over.
    Switchover,
    /// The primary is lost and the cluster does not go on by itself.
    Failover {
        /// The administrator accepted in words that acknowledged writes may be lost.
        accept_loss: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalledOff {
    pub request: RequestId,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElectionCall {
    pub from: Option<NodeId>,
    pub cause: ElectionCause,
}

/// When a rule came into force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Whoever holds WAL written in a later epoch holds everything this rule ever confirmed: that epoch's election covered it.
    pub epoch: Epoch,
    /// First revision that has it: a proof from a node that had not seen this revision is about an earlier adoption.
    pub revision: Revision,
}

/// One number on the tree of timelines (INV-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineClaim {
    pub timeline: Timeline,
    pub epoch: Epoch,
    pub node: NodeId,
    /// The promotion onto it was proved by a marker write. An unsettled claim may or may not exist on its node's disk.
    pub settled: bool,
}

/// Claimed timelines, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineClaims(pub Vec<TimelineClaim>);

impl TimelineClaims {
    /// First number nobody ever claimed.
    #[must_use]
    pub fn next_free(&self) -> Timeline {
        self.0.iter().map(|c| c.timeline).max().map_or(Timeline(1), Timeline::next)
    }

    /// The claim on `timeline`.
    #[must_use]
    pub fn get(&self, timeline: Timeline) -> Option<&TimelineClaim> {
        self.0.iter().find(|c| c.timeline == timeline)
    }

    /// The claim made in `epoch`.
    #[must_use]
    pub fn of_epoch(&self, epoch: Epoch) -> Option<&TimelineClaim> {
        self.0.iter().find(|c| c.epoch == epoch)
    }

    /// The epoch that writes `timeline`, by which positions are compared across timelines.
    #[must_use]
    pub fn writer(&self, timeline: Timeline) -> Option<Epoch> {
        self.get(timeline).map(|c| c.epoch).or_else(|| self.forgotten_writer(timeline))
    }

    /// The latest epoch that a claim can have had which is older than all that are kept. Each claim took the next number in a later epoch, so
    /// that this keeps their order, and a member that comes back after so long has a place in it (INV-7).
    fn forgotten_writer(&self, timeline: Timeline) -> Option<Epoch> {
        let oldest = self.0.first()?;
        let before = oldest.timeline.0.checked_sub(timeline.0)?;
        oldest.epoch.0.checked_sub(u64::from(before)).map(Epoch)
    }

    /// The newest timeline whose promotion was proved.
    #[must_use]
    pub fn newest_settled(&self) -> Option<&TimelineClaim> {
        self.0.iter().rev().find(|c| c.settled)
    }
}

/// One change of primary, for `trilithon history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub epoch: Epoch,
    pub timeline: Option<Timeline>,
    pub from: Option<NodeId>,
    pub to: NodeId,
    /// Position that the winner was elected with.
    pub lsn: Lsn,
    pub cause: ElectionCause,
    /// Promotion was proved by a marker write.
    pub settled: bool,
    /// How long writes were out, as the deciding controller measured it; a duration, not a clock reading.
    #[serde(default)]
    pub outage_ms: Option<u64>,
    /// The administrator accepted that acknowledged writes may be lost.
    #[serde(default)]
    pub accept_loss: bool,
}
