//! Seeded bugs around the pure core (see [`crate::bug`]): each rewrites what goes into it or what comes out, as the simulator's mutants
//! do. Without the feature `bugs` every function here gives back what it was given.

use crate::bug::{self, Bug};
use crate::cluster::{ClusterState, Command, Phase, SyncRule};
use crate::ha::{Action, Decision, LocalState, NodeObservation, Reason, Seal, Step, StepReason, View};
use crate::types::{Millis, NodeId, WalPosition};
use std::collections::BTreeMap;
use std::time::Duration;

/// A primary that has heard no standby for so long goes on alone.
const ALONE_AFTER: Duration = Duration::from_secs(1);
/// From one needless election to the next.
const NEEDLESS_AFTER: Duration = Duration::from_secs(6);

/// What this node does next.
pub(super) fn step(s: &ClusterState, local: &LocalState, view: &View, step: Step) -> Step {
    let elsewhere = match s.phase {
        Phase::Electing { .. } => true,
        Phase::Promoting { candidate } => candidate != local.me,
        Phase::Empty | Phase::Bootstrapping { .. } | Phase::Steady { .. } | Phase::Draining { .. } => false,
    };
    if bug::is(Bug::SkipSeal) && step.action == Some(Action::Detach) && elsewhere {
        return Step { action: None, reason: StepReason::Sealed };
    }
    if bug::is(Bug::NarrowRuleEarly)
        && let Some(rule) = s.rules.last().filter(|rule| rule.primary == local.me && rule.acks > 0)
        && matches!(step.reason, StepReason::Converged | StepReason::RuleChanged)
        && rule.standbys.iter().all(|node| view.fresh(*node, ALONE_AFTER).is_none())
    {
        let rule = SyncRule::new(local.me, [], 0);
        let done = local.settled.as_ref() == Some(&(s.epoch, rule.clone()));
        let action = (!done).then_some(Action::ApplyRule { epoch: s.epoch, rule });
        return Step { action, reason: StepReason::RuleChanged };
    }
    step
}

/// What this node says of its seal.
pub(super) fn seal(s: &ClusterState, told: &mut NodeObservation) {
    if bug::is(Bug::SkipSeal)
        && matches!(s.phase, Phase::Electing { .. })
        && told.promised == s.epoch
        && let Some(end) = told.postgres.position
    {
        told.seal = Some(Seal { epoch: s.epoch, end, ruined: false });
    }
}

/// What the controller believes to have seen.
pub(super) fn view(s: &ClusterState, view: &mut View) {
    if bug::is(Bug::ShortLeaseWait) {
        let waited = view.now.since(view.lease_seen) * 6;
        view.lease_seen = Millis(view.now.0.saturating_sub(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)));
    }
    if bug::is(Bug::NeedlessElection) && matches!(s.phase, Phase::Steady { .. }) && view.now.since(view.phase_since) > NEEDLESS_AFTER {
        view.lease_seen = Millis(0);
    }
}

/// What the controller proposes.
pub(super) fn decision(s: &ClusterState, view: &View, decision: Decision) -> Decision {
    // The first election of all has one candidate only.
    let sealed = || Some(seals(s, view)).filter(|_| s.timelines.0.len() > 1).into_iter().flatten();
    let wrong = match &decision.command {
        Some(Command::Elect { candidate, .. }) if bug::is(Bug::ElectLagging) => {
            sealed().min_by_key(|(_, end)| *end).filter(|(node, _)| node != candidate)
        }
        None if bug::is(Bug::ElectUncovered) && matches!(s.phase, Phase::Electing { .. }) => sealed().next(),
        Some(_) | None => None,
    };
    let Some((candidate, end)) = wrong else { return decision };
    let others = s.data_members().filter(|node| *node != candidate);
    let rule = SyncRule::new(candidate, others, 1);
    let command = Command::Elect { candidate, rule, lsn: end.lsn };
    Decision { command: Some(command), reason: Reason::MostAdvanced { node: candidate, position: end } }
}

fn seals(s: &ClusterState, view: &View) -> BTreeMap<NodeId, WalPosition> {
    let of_now = |seal: &Seal| seal.epoch == s.epoch && !seal.ruined;
    let told = view.observations.iter().filter_map(|(node, seen)| Some((*node, seen.observation.seal.filter(of_now)?.end)));
    told.collect()
}
