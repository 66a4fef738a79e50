//! The access of a real node: consensus, agent and lease behind the interfaces that administration uses.

use super::grpc::GrpcDialer;
use super::{ClusterAccess, EventLog, LocalControl, ProposeError, Proposer, RaftInfo, RaftPeer, RaftRole, RaftView, ViewProvider};
use crate::agent::{DecisionInfo, LeaseCell, Requests, ViewSource};
use crate::cluster::{Outcome, Proposal};
use crate::consensus::tls::Tls;
use crate::consensus::{self, Handle};
use crate::ha::View;
use crate::telemetry::Clock;
use crate::types::{Epoch, Millis, NodeName, RequestId};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The parts of a running node that administration needs.
pub struct Attachments {
    pub me: NodeName,
    pub clock: Clock,
    pub consensus: Handle,
    pub view: Arc<ViewSource>,
    pub lease: Arc<LeaseCell>,
    pub decision: watch::Receiver<DecisionInfo>,
    /// To the agent.
    pub requests: mpsc::Sender<Requests>,
    /// `None` in plaintext.
    pub tls: Option<Tls>,
}

impl Attachments {
    /// The access; run [`EventLog::follow`] of its `events` as one of the node's tasks.
    #[must_use]
    pub fn access(self) -> ClusterAccess {
        let state = self.consensus.state();
        let local = Local { clock: self.clock, lease: self.lease, requests: self.requests, known: Mutex::default() };
        ClusterAccess {
            me: self.me,
            clock: self.clock,
            state,
            view: self.view,
            decision: self.decision,
            events: Arc::new(EventLog::default()),
            proposer: Arc::new(self.consensus.clone()),
            raft: Arc::new(self.consensus),
            local: Arc::new(local),
            peers: Arc::new(GrpcDialer { tls: self.tls }),
        }
    }
}

impl ViewProvider for ViewSource {
    fn view(&self, now: Millis) -> View {
        ViewSource::view(self, now)
    }
}

impl Proposer for Handle {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(async move {
            Handle::propose(self, proposal).await.map_err(|error| match error {
                consensus::ProposeError::NoLeader(_) => ProposeError::NoLeader,
                consensus::ProposeError::Unknown(why) => ProposeError::Unknown(why),
                consensus::ProposeError::NotSent(why) => ProposeError::NotSent(why),
                too_large @ consensus::ProposeError::TooLarge { .. } => ProposeError::NotSent(too_large.to_string()),
            })
        })
    }
}

impl RaftView for Handle {
    fn info(&self) -> RaftInfo {
        // Not yet a member: shown as stopped, which is also what it can do.
        let Some(status) = self.status() else { return RaftInfo::default() };
        let state = self.state();
        let state = state.borrow();
        let voters = status.voters.iter().map(|id| (*id, true));
        let peers = voters.chain(status.learners.iter().map(|id| (*id, false))).map(|(id, voter)| RaftPeer {
            id,
            voter,
            address: state.members.get(&id).map(|m| m.addresses.grpc.clone()).unwrap_or_default(),
            matched: status.matched.get(&id).copied().flatten(),
        });
        RaftInfo {
            id: status.node,
            role: match status.role {
                consensus::RaftRole::Leader => RaftRole::Leader,
                consensus::RaftRole::Follower => RaftRole::Follower,
                consensus::RaftRole::Candidate => RaftRole::Candidate,
                consensus::RaftRole::Learner => RaftRole::Learner,
                consensus::RaftRole::Stopped => RaftRole::Stopped,
            },
            term: status.term,
            leader: status.leader,
            last_log: status.last_log_index,
            committed: status.committed_index,
            applied: status.applied_index,
            snapshot: status.snapshot_index,
            quorum_acked: status.quorum_ack_age.filter(|_| status.role == consensus::RaftRole::Leader),
            peers: peers.collect(),
        }
    }
}

struct Local {
    clock: Clock,
    lease: Arc<LeaseCell>,
    requests: mpsc::Sender<Requests>,
    /// Wishes that the agent was told, newest last (INV-12).
    known: Mutex<VecDeque<RequestId>>,
}

/// Wishes remembered: a retry comes within minutes, a person types slowly.
const KNOWN_MAX: usize = 64;

impl LocalControl for Local {
    fn reinit(&self, request: RequestId) -> BoxFuture<'_, Result<(), String>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let told = if known.contains(&request) {
            Ok(())
        } else {
            self.requests
                .try_send(Requests::Reinitialise)
                .map_err(|_| "the agent is busy with earlier wishes; try again in a moment".to_owned())
        };
        if told.is_ok() && !known.contains(&request) {
            known.push_back(request);
            let excess = known.len().saturating_sub(KNOWN_MAX);
            known.drain(..excess);
        }
        Box::pin(std::future::ready(told))
    }

    fn lease(&self) -> Option<(Epoch, Duration)> {
        self.lease.deadline().map(|(epoch, until)| (epoch, until.since(self.clock.now())))
    }
}
