//! The step in flight: its launch, its end, and what is learned from it. One at a time, abortable.

use super::AgentError;
use super::execute::{self, Deps, Done};
use super::turn::Loop;
use crate::cluster::{ClusterState, Phase};
use crate::ha::{Action, LocalState};
use crate::types::{Epoch, NodeId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// An elected candidate that failed this often to start or to promote leaves the place to another.
const PROMOTION_TRIES: u32 = 5;

/// The step that is being carried out.
pub(super) struct Flight {
    pub action: Action,
    /// Of the state that it was decided on: what its outcome teaches is about that one's primary.
    pub epoch: Epoch,
    /// A drain past its point of no return.
    pub committed: Arc<AtomicBool>,
}

impl Flight {
    /// A newer, different step ends the one in flight; a copy goes on while its source is the primary, a drain past its point
    /// of no return goes on always.
    fn is_overtaken(&self, s: &ClusterState, me: NodeId, wanted: Option<&Action>) -> bool {
        match &self.action {
            Action::Clone { primary } | Action::Rewind { primary } => s.primary() != Some(*primary),
            Action::Drain => {
                let still = matches!(s.phase, Phase::Draining { from, .. } if from == me);
                let fenced = wanted == Some(&Action::Demote);
                fenced || (!still && !self.committed.load(Ordering::Acquire))
            }
            Action::Demote | Action::Stop | Action::InitDb => false,
            // INV-9: what it began cannot be called back; the lease is given back after its end has been seen.
            Action::Promote { .. } if matches!(wanted, Some(Action::ReleaseLease { .. })) => false,
            // It stops the server by itself where that must begin anew, and starts it.
            Action::Follow { .. } if wanted == Some(&Action::StartDetached) => false,
            other => wanted.is_some_and(|w| w != other),
        }
    }
}

/// Without this step an elected candidate cannot become the primary.
fn leads_to_promotion(s: &ClusterState, me: NodeId, action: &Action) -> bool {
    let elected = s.phase == (Phase::Promoting { candidate: me });
    elected && matches!(action, Action::Promote { .. } | Action::StartDetached)
}

impl Loop {
    /// A candidate that is no primary in time leaves the place to another; a promotion under way has its own limit.
    pub(super) fn hurry(&mut self, s: &ClusterState, waited: Duration) {
        let elected = s.phase == (Phase::Promoting { candidate: self.agent.me }) && s.epoch == self.agent.promise.epoch();
        let overdue = waited > Duration::from_millis(s.settings.promotion_timeout_ms);
        let promoting = self.flight.as_ref().is_some_and(|f| matches!(f.action, Action::Promote { .. }));
        if elected && overdue && !promoting && self.memory.gave_up != Some(s.epoch) {
            tracing::error!(epoch = %s.epoch, ?waited, "elected, and still no primary: giving the lease back (ha.promotion_timeout)");
            self.memory.gave_up = Some(s.epoch);
        }
    }

    pub(super) fn abort_if_overtaken(&mut self, s: &ClusterState, wanted: Option<&Action>) {
        let Some(flight) = &self.flight else { return };
        if flight.is_overtaken(s, self.agent.me, wanted) {
            tracing::debug!(action = ?flight.action, "step overtaken by a newer one");
            self.tasks.abort_all();
            self.flight = None;
            self.tasks = JoinSet::new();
        }
    }

    pub(super) async fn launch(&mut self, s: &Arc<ClusterState>, local: &LocalState, action: Action) -> Result<(), AgentError> {
        match &action {
            // INV-1: on disk before anything else is looked at. Milliseconds, and nothing may overtake it.
            Action::Promise { epoch } => {
                self.agent.promise = self.agent.promise.clone().raised(*epoch).await?;
                return Ok(());
            }
            Action::ReleaseLease { epoch } => {
                self.agent.lease.release(*epoch);
                return Ok(());
            }
            // Renewals stop also where the kill cannot succeed, so that the others need wait for the lease only.
            Action::Demote if s.lease.holder == Some(self.agent.me) && s.lease.epoch == s.epoch => self.agent.lease.end(s.epoch),
            // INV-6: other names go into the configuration now. The older proof ends here, also if this attempt is broken off.
            Action::ApplyRule { .. } => self.memory.settled = None,
            _effect_on_postgres => {}
        }
        let committed = Arc::new(AtomicBool::new(false));
        let deps = Deps {
            me: self.agent.me,
            clock: self.agent.clock,
            consensus: self.agent.consensus.clone(),
            postgres: self.agent.postgres.clone(),
            lease: self.agent.lease.clone(),
            view: self.agent.view.clone(),
            descent: execute::descent(local),
            committed: committed.clone(),
        };
        tracing::debug!(?action, "step begins");
        self.tasks.spawn(execute::execute(deps, s.clone(), action.clone()));
        self.flight = Some(Flight { action, epoch: s.epoch, committed });
        Ok(())
    }

    pub(super) fn landed(&mut self, s: &ClusterState, done: Result<Result<Done, execute::ExecuteError>, tokio::task::JoinError>) {
        let Some(flight) = self.flight.take() else { return };
        match done {
            Ok(Ok(done)) => {
                self.memory.backoff.clear();
                self.remember(flight.action, flight.epoch, done);
            }
            Ok(Err(error)) => {
                let count = self.memory.backoff.failed(&flight.action, self.agent.clock.now());
                // The reason may change while it goes on failing: told more and more seldom, never no more.
                if count.is_power_of_two() {
                    tracing::warn!(action = ?flight.action, %error, count, "step failed, trying again");
                } else {
                    tracing::debug!(action = ?flight.action, %error, count, "step failed again");
                }
                let elected = flight.epoch == s.epoch && leads_to_promotion(s, self.agent.me, &flight.action);
                if elected && (error.is_final() || count >= PROMOTION_TRIES) {
                    tracing::error!(epoch = %s.epoch, %error, "promotion failed for good, giving the lease back");
                    self.memory.gave_up = Some(s.epoch);
                }
                if let execute::ExecuteError::CloneNeeded(why) = error {
                    self.memory.need_clone(why, flight.epoch);
                }
                self.memory.following = self.agent.postgres.following();
            }
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                self.memory.backoff.failed(&flight.action, self.agent.clock.now());
                tracing::error!(action = ?flight.action, %error, epoch = %s.epoch, "step panicked");
            }
        }
    }

    fn remember(&mut self, action: Action, epoch: Epoch, done: Done) {
        match (action, done) {
            (Action::Follow { primary, epoch }, _) => self.memory.following = Some((primary, epoch)),
            (Action::Detach | Action::StartDetached | Action::Demote | Action::Promote { .. }, _) => self.memory.following = None,
            (Action::Clone { .. }, _) => self.memory.cloned(),
            (Action::Rewind { .. }, _) => {
                self.memory.following = None;
                self.memory.rewound(epoch);
            }
            (Action::ApplyRule { epoch, rule }, _) => self.memory.settled = Some((epoch, rule)),
            (Action::Prepare { request }, _) => self.memory.prepared = Some(request),
            (
                Action::Promise { .. }
                | Action::AcquireLease { .. }
                | Action::ReleaseLease { .. }
                | Action::InitDb
                | Action::Stop
                | Action::Drain,
                _,
            ) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_begins_anew_is_not_taken_for_one_that_somebody_stopped() {
        let flight = |action| Flight { action, epoch: Epoch(3), committed: Arc::default() };
        let follow = flight(Action::Follow { primary: NodeId(1), epoch: Epoch(3) });
        let state = ClusterState::default();
        let ends = |wanted: Option<Action>| follow.is_overtaken(&state, NodeId(2), wanted.as_ref());
        assert!(!ends(Some(Action::StartDetached)) && !ends(None));
        assert!(!ends(Some(Action::Follow { primary: NodeId(1), epoch: Epoch(3) })));
        assert!(ends(Some(Action::Follow { primary: NodeId(3), epoch: Epoch(4) })), "another primary");
        assert!(ends(Some(Action::Detach)) && ends(Some(Action::Promise { epoch: Epoch(4) })), "an election");
    }
}
