//! The interface to the node: everything that administration may see and do. The node's wiring fills it in.

use super::EventLog;
use crate::agent::DecisionInfo;
use crate::cluster::{ClusterState, Outcome, Proposal};
use crate::ha::{NodeObservation, View, decide};
use crate::telemetry::Clock;
use crate::types::{Epoch, Millis, NodeId, NodeName, RequestId};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;
use tonic::transport::Channel;

/// What this node knows and can ask for. Cheap to clone.
#[derive(Clone)]
pub struct ClusterAccess {
    /// This node; its consensus id is looked up in the state, since a wiped node comes back under a new one.
    pub me: NodeName,
    pub clock: Clock,
    /// As applied here.
    pub state: watch::Receiver<Arc<ClusterState>>,
    pub view: Arc<dyn ViewProvider>,
    pub decision: watch::Receiver<DecisionInfo>,
    pub events: Arc<EventLog>,
    pub proposer: Arc<dyn Proposer>,
    pub raft: Arc<dyn RaftView>,
    pub local: Arc<dyn LocalControl>,
    pub peers: Arc<dyn PeerDialer>,
}

/// Why a proposal has no known outcome.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Certainly not in the log.
    #[error("no Raft leader is known; a majority of the members must be reachable")]
    NoLeader,
    /// Certainly not in the log.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may or may not be applied; proposing it again with the same request id is safe (INV-12).
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// Way into the log, wherever the leader is. Bounded in time by the implementation.
pub trait Proposer: Send + Sync {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<Outcome, ProposeError>>;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RaftRole {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// A storage error ended consensus on this node.
    #[default]
    Stopped,
}

impl RaftRole {
    /// The word that users see.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            RaftRole::Leader => "leader",
            RaftRole::Follower => "follower",
            RaftRole::Candidate => "candidate",
            RaftRole::Learner => "learner",
            RaftRole::Stopped => "stopped",
        }
    }
}

/// Consensus as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftInfo {
    pub id: NodeId,
    pub role: RaftRole,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub last_log: Option<u64>,
    pub committed: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    /// On the leader: time since a majority last answered.
    pub quorum_acked: Option<Duration>,
    pub peers: Vec<RaftPeer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftPeer {
    pub id: NodeId,
    pub voter: bool,
    pub address: String,
    /// On the leader: last log index known to be there.
    pub matched: Option<u64>,
}

/// Consensus, asked when needed.
pub trait RaftView: Send + Sync {
    fn info(&self) -> RaftInfo;
}

/// Observations of all nodes as this node knows them, its own included.
pub trait ViewProvider: Send + Sync {
    fn view(&self, now: Millis) -> View;
}

/// What only this node can do for itself.
pub trait LocalControl: Send + Sync {
    /// Replace this node's data directory by a fresh copy of the primary's. Returns once the wish is recorded; its course shows
    /// in the observations. The same `request` again is the same wish (INV-12). `Err`: refused, with the reason.
    fn reinit(&self, request: RequestId) -> BoxFuture<'_, Result<(), String>>;

    /// The holder's own belief: epoch of the lease held, and the time left (zero when it has run out); `None` without a lease.
    fn lease(&self) -> Option<(Epoch, Duration)>;
}

/// Connections to other members' Admin services, with this node's certificate.
pub trait PeerDialer: Send + Sync {
    /// `address` is the `host:port` of member `name`, whose certificate is then asked for. `Err` in words.
    fn connect<'a>(&'a self, name: &'a str, address: &'a str) -> BoxFuture<'a, Result<Channel, String>>;
}

/// Everything known at one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub me: NodeName,
    pub state: Arc<ClusterState>,
    /// `now` is the instant of the snapshot.
    pub view: View,
    /// Why the cluster does what it does: the controller's word, or elsewhere what this node would decide itself.
    pub reason: String,
    pub raft: RaftInfo,
    pub lease: Option<(Epoch, Duration)>,
}

impl ClusterAccess {
    /// Take a snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.borrow().clone();
        let view = self.view.view(self.clock.now());
        let decided = self.decision.borrow().clone();
        let reason = if decided.deciding { decided.reason } else { decide(&state, &view).reason.to_string() };
        Snapshot { me: self.me.clone(), state, view, reason, raft: self.raft.info(), lease: self.local.lease() }
    }
}

impl Snapshot {
    /// This node's consensus id, once it is a member.
    #[must_use]
    pub fn my_id(&self) -> Option<NodeId> {
        self.state.find(self.me.as_str()).map(|(id, _)| id)
    }

    /// Does this node hear from a majority? A follower that was cut off goes on naming its last leader, so that it must also
    /// hear from it; a leader that was cut off notices by the age of its last quorum.
    #[must_use]
    pub fn has_quorum(&self) -> bool {
        const STALE: Duration = Duration::from_secs(2);
        match self.raft.role {
            RaftRole::Stopped | RaftRole::Candidate => false,
            RaftRole::Leader => self.raft.quorum_acked.is_none_or(|age| age < STALE),
            RaftRole::Follower | RaftRole::Learner => self.raft.leader.is_some_and(|leader| self.heard(leader).is_some()),
        }
    }

    /// When this node's own agent last told what it sees.
    #[must_use]
    pub fn own_observation(&self) -> Option<Millis> {
        Some(self.view.observations.get(&self.my_id()?)?.at)
    }

    /// What `node` said lately. Older than the lease's length means silent: by then the cluster has acted on it.
    #[must_use]
    pub fn heard(&self, node: NodeId) -> Option<&NodeObservation> {
        self.view.fresh(node, self.state.settings.lease_ttl().max(Duration::from_secs(1)))
    }
}
