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
/// The Raft leadership is moved once all has been well for this long, and no oftener.
const TRANSFER_AFTER: Duration = Duration::from_secs(2);
const TRANSFER_PAUSE: Duration = Duration::from_secs(30);
/// Whoever was silent for longer is not handed it.
const FRESH: Duration = Duration::from_secs(1);
/// It is moved nearer to the others where that saves so much in each round trip, in milliseconds, and a third of it.
const NEARER_MS: u32 = 10;

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
        tracing::info!(%to, "moving the raft leadership off the primary's node, or nearer to the others");
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

/// A node's death should cost one election, not two: prefer a Raft leader that is not the primary. And whatever is decided waits for the
/// nearest of the others: prefer one that is near to them.
fn better_leader(state: &ClusterState, view: &View, me: NodeId) -> Option<NodeId> {
    let Phase::Steady { primary } = state.phase else { return None };
    if state.change.is_some() {
        return None;
    }
    let stays = |n: &NodeId| view.fresh(*n, FRESH).is_some_and(|o| !o.leaving);
    let others = state.members.keys().copied().filter(|n| *n != me && *n != primary && stays(n));
    let (wait, best) = others.map(|n| (quorum_wait(state, view, n).unwrap_or(u32::MAX), n)).min()?;
    // Whoever is silent now may be about to be replaced: that needs the leader that there is.
    let calm = state.members.keys().all(|n| view.fresh(*n, FRESH).is_some());
    let is_nearer = |mine: u32| wait.saturating_add(NEARER_MS.max(mine / 3)) <= mine;
    let nearer = calm && quorum_wait(state, view, me).is_some_and(is_nearer);
    (primary == me || nearer).then_some(best)
}

/// Round trip in which a majority has answered `node`, in milliseconds, as it last measured it; `None` unless it measured all.
fn quorum_wait(state: &ClusterState, view: &View, node: NodeId) -> Option<u32> {
    let trips = &view.fresh(node, FRESH)?.round_trips;
    let others = state.members.keys().filter(|n| **n != node);
    let mut trips: Vec<u32> = others.map(|n| trips.get(n).copied()).collect::<Option<_>>()?;
    trips.sort_unstable();
    trips.get((state.members.len() / 2).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Addresses, Member, MemberKind, Tags};
    use crate::ha::{NodeObservation, Seen};
    use crate::types::NodeName;

    /// Three members, 15, 40 and 40 ms apart; one is primary.
    fn scene(trips: [[u32; 3]; 3]) -> (ClusterState, View) {
        let member = || {
            let (name, addresses) = (NodeName("dc".to_owned()), Addresses::default());
            Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses, tags: Tags::default() }
        };
        let phase = Phase::Steady { primary: NodeId(1) };
        let state = ClusterState { phase, members: (1..=3).map(|n| (NodeId(n), member())).collect(), ..ClusterState::default() };
        let seen = |node: u64, trips: [u32; 3]| {
            let round_trips = (1..=3).map(NodeId).zip(trips).filter(|(_, ms)| *ms > 0).collect();
            Seen { at: Millis(0), observation: NodeObservation { node: NodeId(node), round_trips, ..NodeObservation::default() } }
        };
        let observations = (1..=3).map(NodeId).zip((1..=3).zip(trips).map(|(node, trips)| seen(node, trips))).collect();
        (state, View { observations, ..View::default() })
    }

    #[test]
    fn the_raft_leadership_goes_to_a_standby_near_the_others_and_stays_there() {
        let (state, mut view) = scene([[0, 15, 40], [15, 0, 40], [40, 40, 0]]);
        let better = |view: &View, me| better_leader(&state, view, NodeId(me));
        assert_eq!([1, 2, 3].map(|me| better(&view, me)), [Some(NodeId(2)), None, Some(NodeId(2))]);
        let mut alone = view.clone();
        alone.now = Millis(1_001);
        assert_eq!([1, 2, 3].map(|me| better(&alone, me)), [None; 3], "nobody is heard");
        view.observations.remove(&NodeId(1));
        assert_eq!(better(&view, 3), None, "the primary is silent: whoever leads may have to replace it");
    }

    #[test]
    fn where_nothing_is_known_or_gained_only_the_primary_hands_it_over() {
        for trips in [[[0; 3]; 3], [[0, 40, 40], [40, 0, 40], [40, 40, 0]], [[0, 31, 40], [31, 0, 40], [40, 40, 0]]] {
            let (state, view) = scene(trips);
            assert_eq!([1, 2, 3].map(|me| better_leader(&state, &view, NodeId(me))), [Some(NodeId(2)), None, None], "{trips:?}");
        }
    }
}
