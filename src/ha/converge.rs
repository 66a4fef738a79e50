//! What is my one next step? Run by every node at each tick and each event.
//!
//! Order matters: first lose what may not be kept (a primary without right), then promise the newest epoch, then move towards
//! the target. Nothing here waits: a step that cannot be taken yet is a hold with its reason.

use super::local::Upstream;
use super::{Action, LeaseBelief, Lineage, LocalState, PostgresState, Role, Step, StepReason, lineage};
use crate::cluster::{ChangeKind, ClusterState, MemberKind, Phase};
use crate::types::NodeId;

/// The one next step of this node.
#[must_use]
pub fn converge(s: &ClusterState, local: &LocalState) -> Step {
    // INV-9: before anything else, also before looking for newer state.
    if runs_as_primary(local) && !may_serve(s, local) {
        return act(Action::Demote, StepReason::NoRightToServe);
    }
    if local.hung && (may_be_primary(s, local) || is_awaited(s)) {
        return act(Action::Demote, StepReason::Unresponsive);
    }
    if local.stalled && runs_as_primary(local) && has_successor(s, local) {
        return act(Action::Demote, StepReason::StorageStalls);
    }
    let Some(member) = s.members.get(&local.me) else {
        return hold(StepReason::NotBootstrapped);
    };
    if member.kind == MemberKind::Witness {
        return hold(StepReason::Witness);
    }
    if s.epoch < local.promised {
        // My copy of the state is stale: wait for it, never act on it.
        return hold(StepReason::StateIsOld { mine: local.promised, state: s.epoch });
    }
    if s.epoch > local.promised {
        // INV-1: the promise is on disk before anything is done about the epoch.
        return act(Action::Promise { epoch: s.epoch }, StepReason::NewEpoch { epoch: s.epoch });
    }
    if let Some(step) = unused_lease(s, local).or_else(|| unusable(s, local)) {
        return step;
    }
    match s.phase {
        Phase::Empty => hold(StepReason::NotBootstrapped),
        Phase::Bootstrapping { node } if node == local.me => initialise(local),
        Phase::Bootstrapping { .. } => hold(StepReason::NotBootstrapped),
        Phase::Electing { .. } => seal(local),
        Phase::Promoting { candidate } if candidate == local.me => become_primary(s, local),
        Phase::Steady { primary } | Phase::Draining { from: primary, .. } if primary == local.me => be_primary(s, local),
        Phase::Steady { primary } | Phase::Promoting { candidate: primary } => stand_by(s, local, primary, Wipe::Allowed),
        Phase::Draining { from: primary, .. } => stand_by(s, local, primary, Wipe::Forbidden),
    }
}

fn runs_as_primary(local: &LocalState) -> bool {
    let up = match local.postgres.state {
        PostgresState::Running | PostgresState::Starting | PostgresState::Unknown => true,
        PostgresState::Absent | PostgresState::Stopped | PostgresState::Stopping | PostgresState::Cloning | PostgresState::Rewinding => {
            false
        }
    };
    up && local.postgres.role == Some(Role::Primary)
}

/// A server that does not answer does not tell its role. One that follows nobody may be a primary, which acknowledges again when it wakes up;
/// and whoever holds the lease would renew it for ever.
fn may_be_primary(s: &ClusterState, local: &LocalState) -> bool {
    let holder = s.lease.holder == Some(local.me) && s.lease.epoch == s.epoch;
    holder || local.following.is_none()
}

/// A standby that does not answer goes on receiving, and is left alone; but an election that needs its seal would wait for it for ever.
fn is_awaited(s: &ClusterState) -> bool {
    matches!(s.phase, Phase::Electing { .. })
}

/// Somebody who receives this primary's WAL could take over, and may: an election is automatic then.
fn has_successor(s: &ClusterState, local: &LocalState) -> bool {
    let eligible = |node: &NodeId| s.members.get(node).is_some_and(|m| m.kind == MemberKind::Data && !m.tags.nofailover);
    !s.paused && local.postgres.standbys.iter().any(|(node, view)| view.streaming && eligible(node))
}

/// INV-9: only with a valid lease of this epoch, as its primary, and alive.
fn may_serve(s: &ClusterState, local: &LocalState) -> bool {
    s.epoch == local.promised
        && s.primary() == Some(local.me)
        && local.primary_of == Some(s.epoch)
        && local.lease == (LeaseBelief::Valid { epoch: s.epoch })
        && !local.hung
}

/// A lease whose Postgres is not, or no more, a primary keeps the others waiting for nothing.
fn unused_lease(s: &ClusterState, local: &LocalState) -> Option<Step> {
    let held = match local.lease {
        LeaseBelief::Valid { epoch } | LeaseBelief::Ending { epoch } => Some(epoch),
        LeaseBelief::None => None,
    }
    // After a restart the belief is gone, the lease in the state may not be.
    .or((s.lease.holder == Some(local.me) && s.lease.epoch == s.epoch).then_some(s.epoch))?;
    let down = match local.postgres.state {
        PostgresState::Absent | PostgresState::Stopped | PostgresState::Cloning | PostgresState::Rewinding => true,
        PostgresState::Running => local.postgres.role == Some(Role::Standby),
        PostgresState::Unknown | PostgresState::Starting | PostgresState::Stopping => false,
    };
    let elected = matches!(s.phase, Phase::Promoting { candidate } if candidate == local.me);
    if elected && gave_up(s, local) && !local.released && local.postgres.state == PostgresState::Starting {
        // A start without end would keep the lease for ever. Once it is being given back, the next start is that of a standby.
        return Some(act(Action::Demote, StepReason::LeaseUnused));
    }
    let on_the_way = elected && !gave_up(s, local);
    (down && !on_the_way && !local.released).then(|| act(Action::ReleaseLease { epoch: held }, StepReason::LeaseUnused))
}

/// Promotion failed for good, or the claimed timeline was begun and then lost: it is never begun twice (INV-8).
fn gave_up(s: &ClusterState, local: &LocalState) -> bool {
    let claimed = s.timelines.of_epoch(s.epoch).map(|c| c.timeline);
    let begun = claimed.is_some() && local.postgres.timeline == claimed && local.postgres.role != Some(Role::Primary);
    local.gave_up == Some(s.epoch) || begun
}

/// Directories that must not be touched or started.
fn unusable(s: &ClusterState, local: &LocalState) -> Option<Step> {
    if s.fences.contains(&local.me) {
        return Some(match local.postgres.state {
            PostgresState::Running | PostgresState::Starting => act(Action::Stop, StepReason::Fenced),
            PostgresState::Unknown
            | PostgresState::Absent
            | PostgresState::Stopped
            | PostgresState::Stopping
            | PostgresState::Cloning
            | PostgresState::Rewinding => hold(StepReason::Fenced),
        });
    }
    match (s.system, local.postgres.system) {
        (Some(ours), Some(theirs)) if ours != theirs && !local.poisoned => Some(hold(StepReason::ForeignSystem)),
        (Some(_) | None, _) if astray(s, local) => None,
        (Some(_) | None, _) => busy(local.postgres.state).map(|state| hold(StepReason::Busy(state))),
    }
}

/// A server that starts and never will be up: rewound towards a primary of the past, or waiting for WAL that nobody has. Only a copy
/// helps, and it must not wait for the start.
fn astray(s: &ClusterState, local: &LocalState) -> bool {
    let elsewhere = local.following.is_none_or(|(node, epoch)| s.primary() != Some(node) || epoch != s.epoch);
    local.postgres.state == PostgresState::Starting && ((local.poisoned && elsewhere) || local.needs_clone.is_some())
}

fn busy(state: PostgresState) -> Option<PostgresState> {
    match state {
        PostgresState::Unknown | PostgresState::Starting | PostgresState::Stopping | PostgresState::Cloning | PostgresState::Rewinding => {
            Some(state)
        }
        PostgresState::Absent | PostgresState::Stopped | PostgresState::Running => None,
    }
}

fn initialise(local: &LocalState) -> Step {
    match local.postgres.state {
        PostgresState::Absent => act(Action::InitDb, StepReason::Bootstrapping),
        PostgresState::Stopped => act(Action::StartDetached, StepReason::Bootstrapping),
        PostgresState::Running
        | PostgresState::Unknown
        | PostgresState::Starting
        | PostgresState::Stopping
        | PostgresState::Cloning
        | PostgresState::Rewinding => hold(StepReason::Bootstrapping),
    }
}

/// Electing: cut the old WAL flow, whatever comes next. A crashed primary recovers first, because only then is the end of its WAL known.
fn seal(local: &LocalState) -> Step {
    // Streaming without an upstream: an earlier attempt to turn away was broken off before Postgres was told.
    if local.following.is_some() || local.postgres.streaming_from.is_some() {
        return act(Action::Detach, StepReason::Sealing);
    }
    if local.poisoned {
        return hold(StepReason::Poisoned);
    }
    match (local.postgres.state, local.postgres.position) {
        (PostgresState::Stopped, None) => act(Action::StartDetached, StepReason::UnknownPosition),
        (PostgresState::Absent, _) => hold(StepReason::NoData),
        (_, Some(_)) => hold(StepReason::Sealed),
        (_, None) => hold(StepReason::UnknownPosition),
    }
}

fn become_primary(s: &ClusterState, local: &LocalState) -> Step {
    if local.postgres.role == Some(Role::Primary) && local.postgres.state == PostgresState::Running {
        return be_primary(s, local);
    }
    if gave_up(s, local) {
        // The next election wants to know where its WAL ends.
        let unknown = local.postgres.state == PostgresState::Stopped && local.postgres.position.is_none() && !local.poisoned;
        return if unknown { act(Action::StartDetached, StepReason::UnknownPosition) } else { hold(StepReason::Sealed) };
    }
    if local.poisoned || local.postgres.state == PostgresState::Absent {
        return hold(StepReason::Poisoned);
    }
    if local.following.is_some() {
        return act(Action::Detach, StepReason::Sealing);
    }
    // INV-9: no promotion without the lease. INV-8: the timeline comes with it.
    if local.lease != (LeaseBelief::Valid { epoch: s.epoch }) {
        return act(Action::AcquireLease { epoch: s.epoch }, StepReason::LeaseNeeded);
    }
    if local.postgres.state == PostgresState::Stopped {
        return act(Action::StartDetached, StepReason::Elected);
    }
    match (s.timelines.of_epoch(s.epoch), s.rules.last()) {
        (Some(claim), Some(rule)) if claim.node == local.me => {
            let action = Action::Promote { epoch: s.epoch, timeline: claim.timeline, rule: rule.clone() };
            act(action, StepReason::Elected)
        }
        (Some(_) | None, _) => hold(StepReason::LeaseNeeded),
    }
}

/// `may_serve` holds, or Postgres is not running as primary.
fn be_primary(s: &ClusterState, local: &LocalState) -> Step {
    let serving = local.postgres.role == Some(Role::Primary) && local.postgres.state == PostgresState::Running;
    match (serving, s.phase) {
        (true, Phase::Draining { .. }) => act(Action::Drain, StepReason::Draining),
        (true, _) => tend(s, local),
        (false, Phase::Draining { .. }) => hold(StepReason::Drained),
        // Never a restart in place: the next election decides, and this node seals for it.
        (false, _) => match (local.postgres.state, local.poisoned) {
            (PostgresState::Stopped, false) => act(Action::StartDetached, StepReason::UnknownPosition),
            (_, true) => hold(StepReason::Poisoned),
            (_, false) => hold(StepReason::Sealed),
        },
    }
}

fn tend(s: &ClusterState, local: &LocalState) -> Step {
    if let Some(rule) = s.rules.last().filter(|r| local.settled.as_ref() != Some(&(s.epoch, (*r).clone()))) {
        return act(Action::ApplyRule { epoch: s.epoch, rule: rule.clone() }, StepReason::RuleChanged);
    }
    let planned = s.change.filter(|c| c.kind == ChangeKind::Switchover && local.prepared != Some(c.request));
    match planned {
        Some(change) => act(Action::Prepare { request: change.request }, StepReason::PreparingSwitchover),
        None => hold(StepReason::Converged),
    }
}

/// May a data directory that holds data be replaced now?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wipe {
    /// The primary was elected and accepts connections in this epoch: it holds every acknowledged write (INV-10). Waiting until it is
    /// settled could be waiting for ever, since the copy that is to be replaced may be the one whose confirmation settles it.
    Allowed,
    /// The primary is about to hand over; a copy can wait until it is known to whom.
    Forbidden,
}

fn stand_by(s: &ClusterState, local: &LocalState, primary: NodeId, wipe: Wipe) -> Step {
    let upstream = local.upstream.as_ref().filter(|u| u.node == primary && u.accepting);
    let worthless = local.poisoned || local.postgres.state == PostgresState::Absent;
    let Some(upstream) = upstream else {
        return without_upstream(local, primary, worthless);
    };
    if worthless {
        let reason = if local.poisoned { StepReason::Poisoned } else { StepReason::NoData };
        return act(Action::Clone { primary }, reason);
    }
    if let Some(why) = &local.needs_clone {
        return replace(local, primary, wipe, why.clone());
    }
    match lineage(&local.postgres, upstream) {
        Lineage::Fits if local.following == Some((primary, s.epoch)) && local.postgres.state == PostgresState::Running => {
            hold(StepReason::Following(primary))
        }
        Lineage::Fits => act(Action::Follow { primary, epoch: s.epoch }, StepReason::Following(primary)),
        Lineage::Unknown if local.postgres.state == PostgresState::Stopped => act(Action::StartDetached, StepReason::UnknownPosition),
        Lineage::Unknown if older_than_the_cluster(s, local) => {
            replace(local, primary, wipe, "its WAL is older than the cluster".to_owned())
        }
        Lineage::Unknown => hold(StepReason::UnknownPosition),
        Lineage::Impostor => replace(local, primary, wipe, "its timeline has the primary's number and another history".to_owned()),
        // What the administrator accepted to lose is kept aside rather than rewound away.
        Lineage::Diverged => match loss_accepted_since(s, local) {
            Some(why) => replace(local, primary, wipe, format!("{why}; the old directory is kept aside")),
            None => rewind(local, primary, upstream),
        },
    }
}

/// A copy of an adopted database from before its latest promotions: nobody here claimed its timeline, so that it has no place in an election, and
/// never will.
fn older_than_the_cluster(s: &ClusterState, local: &LocalState) -> bool {
    let unclaimed = local.postgres.timeline.is_some_and(|timeline| s.timelines.writer(timeline).is_none());
    local.postgres.state == PostgresState::Running && unclaimed
}

/// Was what this copy holds beyond the primary's accepted as lost, by any election since it was written? Where the history does not reach
/// back so far, nobody can tell, and it may have been.
fn loss_accepted_since(s: &ClusterState, local: &LocalState) -> Option<&'static str> {
    let known = local.postgres.position.map(|p| p.writer);
    let wrote = known.or_else(|| s.timelines.writer(local.postgres.timeline?));
    if s.history.iter().any(|h| h.accept_loss && wrote.is_none_or(|wrote| wrote < h.epoch)) {
        return Some("data loss was accepted");
    }
    let oldest = s.history.first().filter(|_| s.history.len() >= ClusterState::HISTORY_MAX)?;
    (wrote?.next() < oldest.epoch).then_some("it was away for longer than the history goes back")
}

/// The primary is not up yet: turn away from an older one and wait; a stopped copy may recover and serve stale reads meanwhile.
fn without_upstream(local: &LocalState, primary: NodeId, worthless: bool) -> Step {
    if local.following.is_some_and(|(node, epoch)| node != primary || epoch < local.promised) {
        return act(Action::Detach, StepReason::Sealing);
    }
    match local.postgres.state {
        PostgresState::Stopped if !worthless => act(Action::StartDetached, StepReason::WaitingForPrimary(primary)),
        PostgresState::Stopped
        | PostgresState::Absent
        | PostgresState::Running
        | PostgresState::Unknown
        | PostgresState::Starting
        | PostgresState::Stopping
        | PostgresState::Cloning
        | PostgresState::Rewinding => hold(StepReason::WaitingForPrimary(primary)),
    }
}

/// INV-10: the winner of the election holds every acknowledged write, and it runs on its own timeline: what diverged was acknowledged to nobody.
fn rewind(local: &LocalState, primary: NodeId, upstream: &Upstream) -> Step {
    let mine = local.postgres.timeline.unwrap_or_default();
    let reason = StepReason::Diverged { mine };
    match local.postgres.state {
        PostgresState::Running => act(Action::Stop, reason),
        PostgresState::Stopped if local.postgres.position.is_none() && known(upstream, local) => {
            act(Action::StartDetached, StepReason::UnknownPosition)
        }
        PostgresState::Stopped => act(Action::Rewind { primary }, reason),
        PostgresState::Absent
        | PostgresState::Unknown
        | PostgresState::Starting
        | PostgresState::Stopping
        | PostgresState::Cloning
        | PostgresState::Rewinding => hold(reason),
    }
}

fn known(upstream: &Upstream, local: &LocalState) -> bool {
    upstream.ancestry.iter().any(|(t, _)| Some(*t) == local.postgres.timeline)
}

fn replace(local: &LocalState, primary: NodeId, wipe: Wipe, why: String) -> Step {
    if wipe == Wipe::Forbidden {
        return hold(StepReason::LastCopyKept);
    }
    match local.postgres.state {
        PostgresState::Running => act(Action::Stop, StepReason::CloneNeeded(why)),
        PostgresState::Stopped
        | PostgresState::Absent
        | PostgresState::Unknown
        | PostgresState::Starting
        | PostgresState::Stopping
        | PostgresState::Cloning
        | PostgresState::Rewinding => act(Action::Clone { primary }, StepReason::CloneNeeded(why)),
    }
}

fn act(action: Action, reason: StepReason) -> Step {
    Step { action: Some(action), reason }
}

fn hold(reason: StepReason) -> Step {
    Step { action: None, reason }
}
