//! What an administrator may do. Each action proposes one command under the caller's request id, so that it takes effect at most
//! once (INV-12) however often it is tried, then waits until the outcome is known and says what goes on meanwhile.
//!
//! Nothing here orders a node about: the command changes the replicated state, and controller and agents do the rest.

use super::candidate::successor;
use super::status::with_names;
use super::{ClusterAccess, ProposeError};
use crate::cluster::{ClusterState, Command, Phase, Proposal, Rejection};
use crate::types::{NodeId, RequestId, Revision};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

mod change;
mod reinit;
mod simple;

/// Why an action is not done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ActionError {
    /// The request makes no sense, whatever the cluster's state.
    #[error("{0}")]
    Usage(String),
    /// Nothing was changed; the text says why and what would make it possible.
    #[error("{0}")]
    Refused(String),
    /// It was begun and did not succeed.
    #[error("{0}")]
    Failed(String),
    /// Nothing was changed: no majority could be reached.
    #[error("{0}")]
    NoQuorum(String),
    /// It may yet happen. Asking again with the same request id is safe.
    #[error("{0}")]
    Unknown(String),
}

/// Actions on behalf of one request; `progress` gets a line whenever something is to be told.
pub struct Actions {
    access: ClusterAccess,
    request: RequestId,
    progress: mpsc::Sender<String>,
}

/// Long enough for a change of the Raft leader (about a second), short enough for a person.
const PROPOSE_PATIENCE: Duration = Duration::from_secs(15);
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// A committed command reaches this node's copy of the state with the next heartbeat.
const APPLY_PATIENCE: Duration = Duration::from_secs(10);

impl Actions {
    #[must_use]
    pub fn new(access: ClusterAccess, request: RequestId, progress: mpsc::Sender<String>) -> Actions {
        Actions { access, request, progress }
    }

    /// Tell the caller. A caller that does not listen does not hold the action up.
    fn say(&self, line: impl Into<String>) {
        drop(self.progress.try_send(line.into()));
    }

    fn state(&self) -> std::sync::Arc<ClusterState> {
        self.access.state.borrow().clone()
    }

    /// This request took effect before: a retry.
    fn took_effect(&self) -> bool {
        self.state().requests.contains(&self.request)
    }

    fn member(&self, name: &str) -> Result<NodeId, ActionError> {
        let state = self.state();
        state.find(name).map(|(node, _)| node).ok_or_else(|| {
            let known: Vec<&str> = state.members.values().map(|m| m.name.as_str()).collect();
            ActionError::Refused(format!("there is no member {name}; members are {}", known.join(", ")))
        })
    }

    /// Propose what `build` makes of the newest state, again when the state moved on meanwhile or the leader changed, until the
    /// outcome is known. On return this node's copy of the state includes it.
    async fn propose(&self, build: impl Fn(&ClusterState) -> Result<Command, ActionError> + Send) -> Result<(), ActionError> {
        let deadline = self.access.clock.now().after(PROPOSE_PATIENCE);
        let mut unknown = None;
        let mut told = false;
        loop {
            if self.took_effect() {
                return Ok(());
            }
            let state = self.state();
            let proposal = Proposal { expect: Some(state.revision), request: Some(self.request), command: build(&state)? };
            let left = deadline.since(self.access.clock.now());
            let failure = match timeout(left, self.access.proposer.propose(proposal)).await {
                Ok(Ok(Ok(revision))) => return self.applied(revision).await,
                Ok(Ok(Err(Rejection::Refused(why)))) => return Err(ActionError::Refused(with_names(&why, &state))),
                // The revision is checked before anything else: it certainly had no effect.
                Ok(Ok(Err(Rejection::StaleRevision { actual }))) => {
                    self.catch_up(actual).await;
                    ProposeError::NotSent("the cluster keeps changing".into())
                }
                Ok(Err(failure)) => failure,
                Err(_elapsed) => ProposeError::Unknown("no answer in time".into()),
            };
            if let ProposeError::Unknown(why) = &failure {
                unknown = Some(why.clone());
            }
            if self.access.clock.now().after(RETRY_AFTER) >= deadline {
                return Err(given_up(unknown, &failure));
            }
            if !told && failure == ProposeError::NoLeader {
                told = true;
                self.say("waiting for a Raft leader");
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Wait a moment for the local copy to reach `revision`.
    async fn catch_up(&self, revision: Revision) {
        let mut state = self.access.state.clone();
        // Not reaching it is no fault: the next attempt is decided on whatever is there.
        drop(timeout(Duration::from_secs(1), state.wait_for(|s| s.revision >= revision)).await);
    }

    async fn applied(&self, revision: Revision) -> Result<(), ActionError> {
        let mut state = self.access.state.clone();
        match timeout(APPLY_PATIENCE, state.wait_for(|s| s.revision >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ActionError::Unknown(format!(
                "accepted as revision {revision}, but {} does not hear from the leader any more; `trilithon status` at another endpoint shows the outcome",
                self.access.me
            ))),
        }
    }

    /// Name of the steady primary.
    fn steady(&self) -> Option<NodeId> {
        match self.state().phase {
            Phase::Steady { primary } => Some(primary),
            Phase::Empty | Phase::Bootstrapping { .. } | Phase::Draining { .. } | Phase::Electing { .. } | Phase::Promoting { .. } => None,
        }
    }

    fn successor(&self) -> Result<NodeId, ActionError> {
        successor(&self.access.snapshot()).map_err(|why| ActionError::Refused(format!("no member can take over: {why}")))
    }
}

fn given_up(unknown: Option<String>, last: &ProposeError) -> ActionError {
    let seconds = PROPOSE_PATIENCE.as_secs();
    match unknown {
        Some(why) => {
            ActionError::Unknown(format!("{why}; it may yet take effect: run the same command again, or look at `trilithon status`"))
        }
        None => ActionError::NoQuorum(format!("nothing was changed: {last} (tried for {seconds} s)")),
    }
}
