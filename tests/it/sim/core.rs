//! The code under test, called through one door; a mutant rewrites what goes in or what comes out.

use super::mutant::Mutant;
use trilithon::cluster::{ClusterState, Command, Outcome, Phase, Proposal, SyncRule, apply};
use trilithon::ha::{
    Action, Decision, HolderLease, LeaseBelief, LocalState, NodeObservation, PostgresState, Role, Seal, Step, StepReason, View, converge,
    decide,
};
use trilithon::types::{Epoch, Millis, NodeId, Timeline};

/// The pure core, possibly with one bug.
#[derive(Clone, Copy, Debug)]
pub struct Core {
    pub mutant: Option<Mutant>,
}

impl Core {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn apply(&self, state: &mut ClusterState, proposal: &Proposal) -> Outcome {
        let Some(mutant) = self.mutant else { return apply(state, proposal) };
        let mut proposal = proposal.clone();
        let old_rules = state.rules.clone();
        match (mutant, &mut proposal.command) {
            (Mutant::NoCompareAndSet, _) => proposal.expect = proposal.expect.map(|_| state.revision),
            (Mutant::IgnoreLeaseSeq, Command::BeginElection { lease_seq, .. }) => *lease_seq = state.lease.seq,
            (Mutant::RequestAppliedTwice, _) => state.requests.retain(|r| Some(*r) != proposal.request),
            (Mutant::RenewAfterRelease, Command::RenewLease { node, epoch }) if *epoch == state.lease.epoch && state.lease.seq > 0 => {
                state.lease.holder = Some(*node);
            }
            (_, _) => {}
        }
        let outcome = apply(state, &proposal);
        if outcome.is_ok() && !state.rules.is_empty() {
            self.after_apply(state, &proposal.command, old_rules);
        }
        outcome
    }

    fn after_apply(&self, state: &mut ClusterState, command: &Command, old_rules: Vec<SyncRule>) {
        let newest = state.rules.last().cloned();
        match (self.mutant, command) {
            (Some(Mutant::ReplaceRuleAtOnce), Command::ProposeRule { .. })
            | (Some(Mutant::ElectForgetsOldRules), Command::Elect { .. }) => {
                state.rules = newest.into_iter().collect();
                state.adopted = state.adopted.last().copied().into_iter().collect();
            }
            (Some(Mutant::EpochNotRaised), Command::BeginElection { .. }) if old_rules.len() == 1 && state.epoch.0 > 2 => {
                state.epoch.0 -= 1;
                state.lease.epoch = state.epoch;
            }
            (_, _) => {}
        }
    }

    pub fn decide(&self, state: &ClusterState, view: &mut View) -> Decision {
        match self.mutant {
            None => decide(state, view),
            Some(Mutant::CoverOnlyNewestRule) if matches!(state.phase, Phase::Electing { .. }) && state.rules.len() > 1 => {
                let mut state = state.clone();
                let old = state.rules.len() - 1;
                state.rules.drain(..old);
                state.adopted.drain(..old);
                decide(&state, view)
            }
            Some(Mutant::IgnoreDrift) => {
                let mut state = state.clone();
                state.settings.clock_drift_permille = 0;
                decide(&state, view)
            }
            Some(Mutant::CountAnyAsSealed | Mutant::LsnBeforeEpoch | Mutant::OldSealsCount) => {
                let mut view = view.clone();
                for seen in view.observations.values_mut() {
                    self.rewrite(state, &mut seen.observation);
                }
                decide(state, &view)
            }
            Some(Mutant::CandidateByPreference) => by_preference(state, view, decide(state, view)),
            Some(_elsewhere) => decide(state, view),
        }
    }

    fn rewrite(&self, state: &ClusterState, o: &mut NodeObservation) {
        match (self.mutant, o.seal.as_mut(), o.postgres.position) {
            (Some(Mutant::CountAnyAsSealed), _, Some(end)) => o.seal = Some(Seal { epoch: state.epoch, end, ruined: false }),
            (Some(Mutant::LsnBeforeEpoch), Some(seal), _) => seal.end.writer = Epoch(0),
            (Some(Mutant::OldSealsCount), Some(seal), _) => seal.epoch = state.epoch,
            (_, _, _) => {}
        }
    }

    pub fn converge(&self, state: &ClusterState, local: &LocalState) -> Step {
        let step = converge(state, local);
        let Some(mutant) = self.mutant else { return step };
        let rule = state.rules.last();
        let serving = step.reason == StepReason::Converged && local.postgres.role == Some(Role::Primary);
        let live: Vec<NodeId> = local.postgres.standbys.keys().copied().collect();
        let action = match (mutant, &step.action, &step.reason) {
            (Mutant::PromoteWithoutLease, Some(Action::AcquireLease { epoch }), _) => {
                rule.map(|rule| Action::Promote { epoch: *epoch, timeline: state.timelines.next_free(), rule: rule.clone() })
            }
            (Mutant::PromiseGoesBack, None, StepReason::StateIsOld { .. }) => Some(Action::Promise { epoch: state.epoch }),
            (Mutant::FollowWithoutPromise, Some(Action::Promise { epoch }), _) => {
                state.primary().filter(|p| *p != local.me).map(|primary| Action::Follow { primary, epoch: *epoch })
            }
            (Mutant::WipeTheOnlyHolder, Some(Action::StartDetached), StepReason::UnknownPosition) => {
                state.data_members().find(|n| *n != local.me).map(|primary| Action::Clone { primary })
            }
            (Mutant::NarrowBeforeJoint, None, _) if serving => rule
                .filter(|r| live.iter().filter(|n| r.standbys.contains(n)).count() < r.acks)
                .map(|r| Action::ApplyRule { epoch: state.epoch, rule: SyncRule { acks: r.acks - 1, ..r.clone() } }),
            (Mutant::WidenBeforeJoint, None, _) if serving => rule
                .filter(|r| live.iter().any(|n| !r.standbys.contains(n)))
                .map(|r| Action::ApplyRule { epoch: state.epoch, rule: SyncRule::new(local.me, live.clone(), r.acks) }),
            (Mutant::ReleaseBeforeStop, Some(Action::Drain), _) if state.lease.holder == Some(local.me) => {
                Some(Action::ReleaseLease { epoch: state.epoch })
            }
            (Mutant::SkipTheSeal, Some(Action::Detach), _) if matches!(state.phase, Phase::Electing { .. }) => {
                return Step { action: None, reason: StepReason::Sealed };
            }
            (_, _, _) => None,
        };
        match action {
            Some(action) => Step { action: Some(action), reason: step.reason },
            None => step,
        }
    }

    pub fn seal(&self, state: &ClusterState, local: &LocalState) -> Option<Seal> {
        match self.mutant {
            Some(Mutant::SkipTheSeal) => local.postgres.position.map(|end| Seal { epoch: local.promised, end, ruined: false }),
            Some(_) | None => local.seal(state),
        }
    }

    pub fn report(&self, o: &mut NodeObservation, state: &ClusterState) {
        if self.is(Mutant::SealBeforePromise)
            && let Some(end) = o.postgres.position.filter(|_| o.postgres.state == PostgresState::Running)
        {
            o.seal = Some(Seal { epoch: state.epoch, end, ruined: false });
        }
    }

    pub fn belief(&self, lease: &HolderLease, now: Millis) -> LeaseBelief {
        match (lease.belief(now), self.is(Mutant::IsolatedPrimaryServes)) {
            (LeaseBelief::Ending { epoch }, true) => LeaseBelief::Valid { epoch },
            (belief, _) => belief,
        }
    }

    /// From when does a lease count?
    pub fn lease_base(&self, sent: Millis, answered: Millis) -> Millis {
        if self.is(Mutant::LeaseFromAnswer) { answered } else { sent }
    }

    /// From when does a restarted process count the lease of another?
    pub fn watch_begins(&self, now: Millis) -> Millis {
        if self.is(Mutant::WatchForgetsRestart) { Millis(0) } else { now }
    }

    pub fn keeps_old_seals(&self) -> bool {
        self.is(Mutant::OldSealsCount)
    }

    pub fn promised(&self, old: Epoch, new: Epoch) -> Epoch {
        if self.is(Mutant::PromiseGoesBack) { new } else { old.max(new) }
    }

    pub fn chosen_timeline(&self, claimed: Timeline, parent: Timeline) -> Timeline {
        if self.is(Mutant::ReuseTimeline) { parent.next() } else { claimed }
    }

    pub fn persists_promise(&self) -> bool {
        !self.is(Mutant::PromiseNotPersisted)
    }

    pub fn forgets_promise(&self) -> bool {
        self.is(Mutant::PromiseNotPersisted)
    }

    pub fn keeps_lease_over_restart(&self) -> bool {
        self.is(Mutant::LeaseOverRestart)
    }

    pub fn renews_after_release(&self) -> bool {
        self.is(Mutant::RenewAfterRelease)
    }

    pub fn leaves_receiver_running(&self) -> bool {
        self.is(Mutant::SealWhileReceiving)
    }

    pub fn underreports_after_crash(&self) -> bool {
        self.is(Mutant::UnderreportAfterCrash)
    }

    pub fn starts_poisoned(&self) -> bool {
        self.is(Mutant::PoisonedDirectoryStarted)
    }

    pub fn restarts_as_primary(&self) -> bool {
        self.is(Mutant::StalePrimaryRestarts)
    }

    pub fn settles_without_marker(&self) -> bool {
        self.is(Mutant::SettleWithoutMarker)
    }

    pub fn proof_outlives_its_rule(&self) -> bool {
        self.is(Mutant::ProofOutlivesItsRule)
    }

    pub fn acknowledges_while_draining(&self) -> bool {
        self.is(Mutant::AcknowledgeWhileDraining)
    }
}

/// Whoever sealed and has the highest priority, or the highest id, however far behind.
fn by_preference(state: &ClusterState, view: &View, decision: Decision) -> Decision {
    let Some(Command::Elect { candidate, rule, lsn }) = &decision.command else { return decision };
    let sealed = |n: &NodeId| {
        view.observations.get(n).is_some_and(|s| s.observation.seal.is_some_and(|x| x.epoch == state.epoch) && *n != *candidate)
    };
    let Some(other) = rule.standbys.iter().copied().rev().find(sealed) else { return decision };
    let rule = SyncRule::new(other, rule.standbys.iter().copied().chain([*candidate]), rule.acks);
    Decision { command: Some(Command::Elect { candidate: other, rule, lsn: *lsn }), reason: decision.reason.clone() }
}
