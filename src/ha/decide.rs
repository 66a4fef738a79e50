//! What should the cluster become? Run by the controller on the Raft leader at each tick and each event.

use super::elect::{confirm, elect};
use super::facts::{covers, eligible, lease_expired, max_age, missing, newest_writer, proven_dead, refuses, sealable};
use super::reason::{act, hold};
use super::rules::tend_rule;
use super::switchover::{draining, prepare};
use super::{Decision, PostgresState, Reason, View};
use crate::cluster::{ChangeKind, ClusterState, Command, ElectionCause, MemberKind, Phase, SyncRule};
use crate::types::{Lsn, NodeId};
use std::collections::BTreeSet;

/// The one decision. At most one command: the next tick sees its effect.
#[must_use]
pub fn decide(s: &ClusterState, v: &View) -> Decision {
    match s.phase {
        Phase::Empty => first_member(s, v),
        Phase::Bootstrapping { node } => bootstrapping(s, v, node),
        Phase::Steady { primary } => steady(s, v, primary),
        Phase::Draining { from, to } => draining(s, v, from, to),
        Phase::Electing { preferred, accept_loss } => match ordered_otherwise(s, preferred, accept_loss) {
            Some(decision) => decision,
            None => elect(s, v, preferred, accept_loss),
        },
        Phase::Promoting { candidate } => confirm(s, v, candidate),
    }
}

/// All data members must be heard before one initialises: another may hold a database that must not be forgotten.
fn first_member(s: &ClusterState, v: &View) -> Decision {
    let silent: BTreeSet<NodeId> = s.members.keys().copied().filter(|n| v.fresh(*n, max_age(s)).is_none()).collect();
    if s.members.is_empty() || !silent.is_empty() {
        return hold(Reason::WaitingForMembers { missing: silent });
    }
    let heard = || s.data_members().filter_map(|n| Some((n, v.fresh(n, max_age(s))?)));
    let has_data = |state: PostgresState| match state {
        PostgresState::Absent => false,
        PostgresState::Unknown
        | PostgresState::Stopped
        | PostgresState::Starting
        | PostgresState::Running
        | PostgresState::Stopping
        | PostgresState::Cloning
        | PostgresState::Rewinding => true,
    };
    if let Some((node, _)) = heard().find(|(_, o)| o.adopt_existing && has_data(o.postgres.state)) {
        return act(Command::ClaimBootstrap { node }, Reason::Bootstrapping { node });
    }
    if let Some((node, _)) = heard().find(|(_, o)| has_data(o.postgres.state)) {
        return hold(Reason::DataWithoutCluster { node });
    }
    let priority = |n: NodeId| s.members.get(&n).map_or(0, |m| m.tags.priority);
    // Whoever initialises is the only one that could be elected then.
    let first = heard().map(|(n, _)| n).filter(|n| eligible(s, *n)).max_by_key(|n| (priority(*n), std::cmp::Reverse(*n)));
    match first {
        Some(node) => act(Command::ClaimBootstrap { node }, Reason::Bootstrapping { node }),
        None => hold(Reason::NobodyMayInitialise { members: s.data_members().collect() }),
    }
}

fn bootstrapping(s: &ClusterState, v: &View, node: NodeId) -> Decision {
    // As a member it is waited for, as any member is before somebody else may begin: what it has initialised, this new cluster would not know.
    if !s.members.contains_key(&node) {
        return act(Command::AbandonBootstrap { node }, Reason::BootstrapLost { node });
    }
    let Some(o) = v.fresh(node, max_age(s)) else {
        return hold(Reason::Bootstrapping { node });
    };
    let ready = o.postgres.state == PostgresState::Running;
    match (ready, o.postgres.system, o.postgres.timeline, o.postgres.position) {
        (true, Some(system), Some(timeline), Some(position)) => {
            let rule = SyncRule::new(node, [], 0);
            act(Command::FinishBootstrap { node, system, timeline, lsn: position.lsn, rule }, Reason::Initialised { node })
        }
        _unfinished => hold(Reason::Bootstrapping { node }),
    }
}

fn steady(s: &ClusterState, v: &View, primary: NodeId) -> Decision {
    if let Some((cause, reason)) = loss(s, v, primary) {
        return lost(s, v, cause, reason);
    }
    // A rule that is changed for one that is gone would only be one more to cover.
    if refuses(s, v, primary) {
        return hold(Reason::PrimaryRefuses { primary });
    }
    if let Some(change) = s.change {
        return match change.kind {
            ChangeKind::Switchover => prepare(s, v, primary, change),
            // Silent within its lease: the order is carried out when that has ended.
            ChangeKind::Failover { .. } if v.fresh(primary, max_age(s)).is_none() => hold(Reason::PrimarySilent { primary }),
            ChangeKind::Failover { .. } => {
                let why = format!("{} is alive; use a switchover", s.name_of(primary));
                act(Command::CallOff { reason: why.clone() }, Reason::ChangeImpossible { why })
            }
        };
    }
    tend_rule(s, v, primary)
}

/// Why the primary is not heard of, within its lease.
pub(super) fn unheard(s: &ClusterState, v: &View, primary: NodeId) -> Reason {
    if refuses(s, v, primary) { Reason::PrimaryRefuses { primary } } else { Reason::PrimarySilent { primary } }
}

/// Is the primary lost, and how do we know?
pub(super) fn loss(s: &ClusterState, v: &View, primary: NodeId) -> Option<(ElectionCause, Reason)> {
    if s.lease.holder != Some(primary) {
        Some((ElectionCause::PrimaryDown, Reason::PrimaryDown { primary }))
    } else if lease_expired(s, v) {
        Some((ElectionCause::LeaseExpired, Reason::LeaseExpired { primary }))
    } else if proven_dead(s, v, primary) {
        Some((ElectionCause::ProvenDead, Reason::ProvenDead { primary }))
    } else {
        None
    }
}

fn lost(s: &ClusterState, v: &View, cause: ElectionCause, reason: Reason) -> Decision {
    if let Some(change) = s.change
        && let ChangeKind::Failover { accept_loss } = change.kind
    {
        let to = change.to;
        return act(begin(s, Some(to), ElectionCause::Manual, accept_loss), Reason::FailoverOrdered { to });
    }
    if s.paused {
        return hold(Reason::Paused);
    }
    let present = sealable(s, v);
    if !covers(s, &present, newest_writer(v, &present)) {
        return hold(Reason::NotElectable { missing: missing(s, &present) });
    }
    let preferred = s.change.map(|c| c.to);
    act(begin(s, preferred, cause, false), reason)
}

/// An administrator's failover while an election is stuck.
pub(super) fn ordered_otherwise(s: &ClusterState, preferred: Option<NodeId>, accept_loss: bool) -> Option<Decision> {
    let change = s.change?;
    let ChangeKind::Failover { accept_loss: ordered_loss } = change.kind else {
        return None;
    };
    if preferred == Some(change.to) && accept_loss == ordered_loss {
        return None;
    }
    Some(act(begin(s, Some(change.to), ElectionCause::Manual, ordered_loss), Reason::FailoverOrdered { to: change.to }))
}

/// INV-9: the election names the renewal count that this decision saw.
pub(super) fn begin(s: &ClusterState, preferred: Option<NodeId>, cause: ElectionCause, accept_loss: bool) -> Command {
    let preferred = preferred.filter(|n| s.members.get(n).is_some_and(|m| m.kind == MemberKind::Data));
    Command::BeginElection { preferred, cause, lease_seq: s.lease.seq, accept_loss }
}

/// Position the last primary is known to have reached, for the loss bound of asynchronous mode.
pub(super) fn last_known(v: &View, node: NodeId) -> Option<Lsn> {
    v.observations.get(&node)?.observation.postgres.position.map(|p| p.lsn)
}
