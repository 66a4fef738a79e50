//! Runs `decide` on the Raft leader, and only there: at each change and at a tick, propose at most one command.
//!
//! Nothing is remembered between turns: a lost answer, a lost leadership or a rejected command is mended by the next decision.
//! Two controllers at once are harmless, because a command names the revision that it was decided on (INV-2).

use super::mistakes;
use super::view::ViewSource;
use crate::cluster::{ClusterState, Phase, Proposal};
use crate::consensus::Handle;
use crate::ha::{Decision, Entry, View, decide};
use crate::telemetry::{Clock, Recorder};
use crate::types::{Millis, NodeId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Fallback when nothing changes; time itself is an input: patience ends in silence.
const TICK: Duration = Duration::from_millis(100);
/// The same while all is well; the end of the lease is not overslept.
const CALM_TICK: Duration = Duration::from_millis(500);
/// An answer that takes longer is unknown; the next decision looks again.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The Raft leadership is moved off the primary's node once all has been well for this long, and no oftener.
const TRANSFER_AFTER: Duration = Duration::from_secs(5);
const TRANSFER_PAUSE: Duration = Duration::from_secs(30);

/// The present decision, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionInfo {
    /// This node decides.
    pub deciding: bool,
    pub reason: String,
}

/// What the controller works with.
pub struct Controller {
    pub me: NodeId,
    pub clock: Clock,
    pub consensus: Handle,
    pub view: Arc<ViewSource>,
    pub info: watch::Sender<DecisionInfo>,
    pub trace: Option<Recorder<Entry>>,
    pub stop: CancellationToken,
}

impl Controller {
    /// Until `stop`.
    pub async fn run(self) {
        let mut states = self.consensus.state();
        let mut leader = self.consensus.is_leader();
        let mut observed = self.view.subscribe();
        let mut calm_since = self.clock.now();
        let mut transferred: Option<Millis> = None;
        while !self.stop.is_cancelled() {
            if !*leader.borrow_and_update() {
                self.info.send_if_modified(|i| std::mem::take(&mut i.deciding));
                calm_since = self.clock.now();
                tokio::select! {
                    _ = leader.changed() => {}
                    () = self.stop.cancelled() => {}
                }
                continue;
            }
            let state = states.borrow_and_update().clone();
            let mut view = self.view.view(self.clock.now());
            mistakes::view(&state, &mut view);
            let decision = mistakes::decision(&state, &view, decide(&state, &view));
            if let Some(trace) = &self.trace {
                trace.record(Entry::Decided { on: state.clone(), view: view.clone(), decision: decision.clone() });
            }
            self.explain(&state, &decision);
            let acted = decision.command.is_some();
            if acted {
                calm_since = view.now;
                self.propose(&state, decision).await;
            } else if view.now.since(calm_since) > TRANSFER_AFTER
                && transferred.is_none_or(|at| view.now.since(at) > TRANSFER_PAUSE)
                && let Some(to) = better_leader(&state, &view, self.me)
            {
                transferred = Some(view.now);
                self.hand_over(to).await;
            }
            tokio::select! {
                () = tokio::time::sleep(tick(&state, &view)) => {}
                _ = states.changed() => {}
                _ = observed.changed() => {}
                _ = leader.changed() => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn propose(&self, state: &ClusterState, decision: Decision) {
        let Some(command) = decision.command else { return };
        let proposal = Proposal { expect: Some(state.revision), request: None, command };
        match tokio::time::timeout(PROPOSE_TIMEOUT, self.consensus.propose(proposal)).await {
            Ok(Ok(Ok(revision))) => tracing::debug!(%revision, "decision applied"),
            Ok(Ok(Err(rejection))) => tracing::debug!(%rejection, "decision rejected"),
            Ok(Err(error)) => tracing::debug!(%error, "decision not known to be applied"),
            Err(_) => tracing::debug!("decision timed out"),
        }
    }

    /// One INFO line per changed reason.
    fn explain(&self, state: &ClusterState, decision: &Decision) {
        let reason = decision.reason.to_string();
        let info = DecisionInfo { deciding: true, reason };
        self.info.send_if_modified(|known| {
            let changed = *known != info;
            if changed {
                tracing::info!(epoch = %state.epoch, revision = %state.revision, reason = %info.reason, command = ?decision.command, "decision");
                *known = info.clone();
            }
            changed
        });
    }

    async fn hand_over(&self, to: NodeId) {
        tracing::info!(%to, "moving the raft leadership off the primary's node");
        if let Err(error) = self.consensus.transfer_leader(to).await {
            tracing::debug!(%error, "leadership was not transferred");
        }
    }
}

/// How long nothing can happen by time alone.
fn tick(state: &ClusterState, view: &View) -> Duration {
    let calm = matches!(state.phase, Phase::Steady { .. }) && state.change.is_none() && state.rules.len() == 1;
    let waited = view.now.since(view.lease_seen);
    let left = [state.serving_wait(), state.lease_wait()].map(|wait| wait.saturating_sub(waited));
    let next = left.into_iter().find(|left| !left.is_zero()).unwrap_or_default();
    if calm { CALM_TICK.min(next).max(Duration::from_millis(5)) } else { TICK }
}

/// A node's death should cost one election, not two: prefer a Raft leader that is not the primary.
fn better_leader(state: &ClusterState, view: &View, me: NodeId) -> Option<NodeId> {
    let Phase::Steady { primary } = state.phase else { return None };
    if primary != me || state.change.is_some() {
        return None;
    }
    let near = Duration::from_secs(1);
    state.members.keys().copied().find(|n| *n != me && view.fresh(*n, near).is_some())
}
