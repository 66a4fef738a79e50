//! What the rest of the program holds: propose, read, watch.
//!
//! The outcome of a proposal is one of three, never confused: it was applied (and accepted or rejected by the state machine), it
//! surely was not and will not be, or nobody can tell. A caller that must know compares the state afterwards, or proposes commands
//! that carry their own compare-and-set.

use super::distance::RoundTrips;
use super::links::never_sent;
use super::network::timed;
use super::node::{Reach, Shared};
use super::raft::{Applied, ENTRY_BYTES_MAX, EntryData};
use crate::cluster::{ClusterState, Outcome, Proposal};
use crate::ha::Observations;
use crate::proto::v1;
use crate::proto::v1::propose_reply::Result as Reply;
use crate::types::{ClusterId, Millis, NodeId};
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Instant as _, ReadPolicy};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

/// Far longer than an election takes.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before asking again who leads.
const RETRY: Duration = Duration::from_millis(30);
/// Who lacks no more log entries than this has them within a message or two.
const HAND_OVER_LAG: u64 = 16;

/// A proposal without an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// It was never appended and never will be: propose again, or decide anew.
    #[error("the proposal was not sent: {0}")]
    NotSent(String),
    /// It may have been applied, or may be later.
    #[error("the outcome of the proposal is unknown: {0}; look at the state before proposing again")]
    Unknown(String),
    /// Surely not appended: no leader was found before the deadline, most likely for want of a quorum.
    #[error("no leader: {0}")]
    NoLeader(String),
    #[error("the proposal has {bytes} bytes, more than the {max} that a log entry may have")]
    TooLarge { bytes: usize, max: usize },
}

/// A linearizable read that could not be promised.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    #[error("no leader could prove in time that it leads: {0}")]
    NoQuorum(String),
}

/// Who leads, as this node knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leader: Option<NodeId>,
    /// This node leads, and a quorum has confirmed it recently.
    pub mine: bool,
    pub term: u64,
}

/// Whether consensus works on this node at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Ok,
    /// It has stopped for good (disk error, panic): fence Postgres and exit.
    Fatal(String),
    /// The cluster has removed this node, or replaced it by another of its name: it must not run Postgres as a member.
    Removed(String),
}

/// How far formation has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Starting,
    /// In words: for whom or what this node waits.
    Waiting(String),
    /// It has an identity and takes part.
    Member {
        node: NodeId,
    },
}

/// Role of a node in consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaftRole {
    Leader,
    Follower,
    Candidate,
    Learner,
    Stopped,
}

/// Figures for `raft status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub role: RaftRole,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub last_log_index: Option<u64>,
    pub committed_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    pub purged_index: Option<u64>,
    /// On the leader: how long ago a quorum last confirmed it.
    pub quorum_ack_age: Option<Duration>,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// On the leader: the last index that each member is known to hold.
    pub matched: BTreeMap<NodeId, Option<u64>>,
    pub fsync_p99: Option<Duration>,
    pub db_bytes: u64,
}

/// Cheap to clone; valid for as long as the node runs.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

enum Attempt {
    Done(Outcome),
    /// Surely not appended, and why; try whoever was named as leader, or the next one that is known.
    Again(String, Option<NodeId>),
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Handle {
        Handle { shared }
    }

    /// This node's id, once it has one.
    #[must_use]
    pub fn node_id(&self) -> Option<NodeId> {
        self.shared.identity.get().map(|me| me.node)
    }

    /// How far formation has come.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// The applied state; the receiver always holds the newest.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.shared.state.clone()
    }

    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// What each member, this one too, last said about itself, stamped with the time of arrival.
    #[must_use]
    pub fn observations(&self) -> watch::Receiver<Arc<Observations>> {
        self.shared.observations.subscribe()
    }

    /// How each other member can be reached from here.
    #[must_use]
    pub fn reach(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, Reach>>> {
        self.shared.reach.subscribe()
    }

    /// How far away each other member is.
    #[must_use]
    pub fn round_trips(&self) -> RoundTrips {
        self.shared.round_trips.borrow().clone()
    }

    /// This node leads, and a quorum has confirmed it recently.
    #[must_use]
    pub fn is_leader(&self) -> watch::Receiver<bool> {
        self.shared.mine.subscribe()
    }

    /// [`Handle::propose_within`] ten seconds. Dropping it earlier leaves the outcome unknown.
    pub async fn propose(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        self.propose_within(&proposal, PROPOSE_TIMEOUT).await
    }

    /// Have `proposal` appended, committed and applied, wherever the leader is.
    pub async fn propose_within(&self, proposal: &Proposal, within: Duration) -> Result<Outcome, ProposeError> {
        let data = EntryData::encode(proposal).map_err(|e| ProposeError::NotSent(e.to_string()))?;
        if data.json.len() > ENTRY_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: data.json.len(), max: ENTRY_BYTES_MAX });
        }
        let deadline = self.shared.config.clock.now().after(within);
        let mut hint = None;
        loop {
            let left = self.left(deadline);
            let (why, named) = match self.attempt(&data, hint, left).await? {
                Attempt::Done(outcome) => return Ok(outcome),
                Attempt::Again(why, named) => (why, named),
            };
            if self.left(deadline) <= RETRY {
                return Err(ProposeError::NoLeader(why));
            }
            tokio::time::sleep(RETRY).await;
            // Followed once: two that name each other must not keep us from whom we know better ourselves.
            hint = if hint.is_none() { named } else { None };
        }
    }

    fn left(&self, deadline: Millis) -> Duration {
        deadline.since(self.shared.config.clock.now())
    }

    /// One try at the leader we know of.
    async fn attempt(&self, data: &EntryData, hint: Option<NodeId>, left: Duration) -> Result<Attempt, ProposeError> {
        let (Some(me), Some(_)) = (self.node_id(), self.shared.raft()) else {
            return Ok(Attempt::Again("this node has not yet joined a cluster".to_owned(), None));
        };
        let leader = hint.or(self.shared.leadership.borrow().leader);
        match leader {
            None => Ok(Attempt::Again("none is known; most members may be unreachable".to_owned(), None)),
            Some(leader) if leader == me => propose_here(&self.shared, data, left).await,
            Some(leader) => self.propose_there(leader, data, left).await,
        }
    }

    async fn propose_there(&self, leader: NodeId, data: &EntryData, left: Duration) -> Result<Attempt, ProposeError> {
        let Some(mut client) = self.general(leader) else {
            return Ok(Attempt::Again(format!("the address of leader {leader} is not known"), None));
        };
        let message = v1::ProposeRequest {
            header: Some(self.shared.identity.header(leader.0)),
            proposal: Some(v1::RaftProposal { format: data.format, json: data.json.clone() }),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let reply = match timeout(left, client.propose(timed(message, left))).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) if never_sent(&status) => return Ok(Attempt::Again(format!("leader {leader}: {}", status.message()), None)),
            Ok(Err(status)) => return Err(ProposeError::Unknown(format!("leader {leader}: {}", status.message()))),
            Err(_) => return Err(ProposeError::Unknown(format!("leader {leader} did not answer in time"))),
        };
        match reply.result() {
            Reply::Applied => {
                let outcome = serde_json::from_slice(&reply.outcome).map_err(|e| ProposeError::Unknown(e.to_string()))?;
                Ok(Attempt::Done(outcome))
            }
            // Zero: it knows of none either.
            Reply::NotLeader => Ok(Attempt::Again(reply.reason, Some(NodeId(reply.leader)).filter(|n| n.0 != 0))),
            Reply::Unknown | Reply::Unspecified => Err(ProposeError::Unknown(reply.reason)),
        }
    }

    fn general(&self, node: NodeId) -> Option<v1::peer_client::PeerClient<tonic::transport::Channel>> {
        let peer = self.shared.address_of(node)?;
        Some(self.shared.links.get(&peer.name, &peer.address).ok()?.general())
    }

    /// Wait until the state that [`Handle::state`] shows is at least as new as the cluster's was when this was called.
    pub async fn read_index(&self, within: Duration) -> Result<(), ReadError> {
        let deadline = self.shared.config.clock.now().after(within);
        loop {
            let why = match self.index_from_leader(self.left(deadline)).await {
                Ok(index) => return self.applied(index, self.left(deadline)).await,
                Err(why) => why,
            };
            if self.left(deadline) <= RETRY {
                return Err(ReadError::NoQuorum(why));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn index_from_leader(&self, left: Duration) -> Result<u64, String> {
        let me = self.node_id().ok_or("this node has not yet joined a cluster")?;
        let leader = self.shared.leadership.borrow().leader.ok_or("none is known")?;
        if leader == me {
            return read_index_here(&self.shared, left).await;
        }
        let mut client = self.general(leader).ok_or("its address is not known")?;
        let message = v1::ReadIndexRequest { header: Some(self.shared.identity.header(leader.0)) };
        let reply = timeout(left, client.read_index(timed(message, left))).await.map_err(|_| "no answer in time".to_owned())?;
        let reply = reply.map_err(|status| status.message().to_owned())?.into_inner();
        if reply.ready { Ok(reply.index) } else { Err(reply.reason) }
    }

    async fn applied(&self, index: u64, left: Duration) -> Result<(), ReadError> {
        let raft = self.shared.raft().ok_or_else(|| ReadError::NoQuorum("this node has not yet joined a cluster".to_owned()))?;
        let waited = raft.wait(Some(left)).applied_index_at_least(Some(index), "read index").await;
        waited.map(drop).map_err(|e| ReadError::NoQuorum(e.to_string()))
    }

    /// Figures, once this node takes part.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let (me, raft) = (self.shared.identity.get()?, self.shared.raft()?);
        // Copied out at once: holding the borrow would block openraft.
        let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&raft.metrics()).clone();
        let store = self.shared.store.stats();
        let role = match metrics.state {
            openraft::ServerState::Leader => RaftRole::Leader,
            openraft::ServerState::Follower => RaftRole::Follower,
            openraft::ServerState::Candidate => RaftRole::Candidate,
            openraft::ServerState::Learner => RaftRole::Learner,
            openraft::ServerState::Shutdown => RaftRole::Stopped,
        };
        let matched = metrics.replication.iter().flatten().map(|(id, at)| (NodeId(*id), at.as_ref().map(openraft::LogId::index)));
        Some(Status {
            node: me.node,
            cluster: me.cluster,
            role,
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId),
            last_log_index: metrics.last_log_index,
            committed_index: metrics.local_committed.map(|id| id.index()),
            applied_index: metrics.last_applied.map(|id| id.index()),
            snapshot_index: metrics.snapshot.map(|id| id.index()),
            purged_index: metrics.purged.map(|id| id.index()),
            // A sole voter is its own quorum.
            quorum_ack_age: metrics.last_quorum_acked.map(|at| at.elapsed()).filter(|_| metrics.membership_config.voter_ids().count() > 1),
            voters: metrics.membership_config.voter_ids().map(NodeId).collect(),
            learners: metrics.membership_config.membership().learner_ids().map(NodeId).collect(),
            matched: matched.collect(),
            fsync_p99: store.fsync_p99,
            db_bytes: store.bytes,
        })
    }

    /// Ask the leader, which must be this node, to hand over to `to`. Done when [`Handle::leadership`] shows it. Refused where `to` lacks
    /// much of the log: from here on the leader takes no proposals until somebody else leads.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), ProposeError> {
        let not_sent = |why: String| ProposeError::NotSent(why);
        let raft = self.shared.raft().filter(|raft| raft.is_leader());
        let (raft, status) = raft.zip(self.status()).ok_or_else(|| not_sent("this node does not lead".to_owned()))?;
        if !status.voters.contains(&to) {
            return Err(not_sent(format!("member {to} does not vote")));
        }
        let (holds, last) = (status.matched.get(&to).copied().flatten().unwrap_or_default(), status.last_log_index.unwrap_or_default());
        if holds + HAND_OVER_LAG < last {
            return Err(not_sent(format!("member {to} holds the log up to {holds} of {last}")));
        }
        raft.trigger().transfer_leader(to.0).await.map_err(|e| not_sent(e.to_string()))
    }
}

/// Append on this node, which believes that it leads.
async fn propose_here(shared: &Shared, data: &EntryData, left: Duration) -> Result<Attempt, ProposeError> {
    let Some(raft) = shared.raft() else {
        return Ok(Attempt::Again("this node has not yet joined a cluster".to_owned(), None));
    };
    // A member of a newer release may have sent it. What this one cannot read, it could not apply either, nor start again with.
    if let Err(unread) = data.decode() {
        return Err(ProposeError::NotSent(format!("this release cannot read the command, upgrade the leader first: {unread}")));
    }
    match timeout(left, raft.client_write(data.clone())).await {
        Ok(Ok(reply)) => match reply.data {
            Applied(Some(outcome)) => Ok(Attempt::Done(outcome)),
            Applied(None) => Err(ProposeError::Unknown("the entry had no outcome".to_owned())),
        },
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => Ok(Attempt::Again(to.to_string(), to.leader_id.map(NodeId))),
        Ok(Err(RaftError::APIError(e))) => Err(ProposeError::Unknown(e.to_string())),
        Ok(Err(RaftError::Fatal(e))) => Err(ProposeError::Unknown(e.to_string())),
        // On a lost quorum openraft keeps the write pending: it may yet be committed.
        Err(_) => Err(ProposeError::Unknown("no quorum confirmed it in time".to_owned())),
    }
}

/// Answer a proposal that another member forwarded.
pub(super) async fn propose_for_peer(shared: &Shared, data: &EntryData, left: Duration) -> v1::ProposeReply {
    let leader = shared.leadership.borrow().leader.map_or(0, |n| n.0);
    let reply = |result: Reply, reason: String| v1::ProposeReply { result: result.into(), leader, reason, ..Default::default() };
    match propose_here(shared, data, left).await {
        Ok(Attempt::Done(outcome)) => match serde_json::to_vec(&outcome) {
            Ok(json) => v1::ProposeReply { result: Reply::Applied.into(), outcome: json.into(), ..Default::default() },
            Err(e) => reply(Reply::Unknown, e.to_string()),
        },
        Ok(Attempt::Again(why, _)) => reply(Reply::NotLeader, why),
        Err(ProposeError::Unknown(why)) => reply(Reply::Unknown, why),
        Err(e) => reply(Reply::NotLeader, e.to_string()),
    }
}

/// Prove leadership to a quorum; the index that a linearizable read must have applied.
pub(super) async fn read_index_here(shared: &Shared, left: Duration) -> Result<u64, String> {
    let raft = shared.raft().ok_or("this node has not yet joined a cluster")?;
    // ReadIndex and not LeaseRead: a restarted voter's lease is zero, and clocks must never decide.
    let read = timeout(left, raft.get_read_log_id(ReadPolicy::ReadIndex)).await.map_err(|_| "no quorum confirmed it in time".to_owned())?;
    read.map(|(read, _)| read.log_id().index()).map_err(|e| e.to_string())
}
