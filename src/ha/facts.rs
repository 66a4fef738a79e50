//! Questions that decisions ask of the state and the observations.

use super::{NodeObservation, PostgresState, Seal, View};
use crate::cluster::{ClusterState, Durability, MemberKind, Phase, SyncRule};
use crate::types::{Epoch, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An observation older than this says nothing: two thirds of the lease, so that silence is noticed before it ends.
pub(super) fn max_age(s: &ClusterState) -> Duration {
    s.settings.lease_ttl() * 2 / 3
}

/// Recent observations of data members. A witness has no Postgres and never counts.
pub(super) fn fresh_data<'a>(s: &'a ClusterState, v: &'a View) -> BTreeMap<NodeId, &'a NodeObservation> {
    s.data_members().filter_map(|n| Some((n, v.fresh(n, max_age(s))?))).collect()
}

/// Has the lease run out, as far as this process can prove (INV-9)?
pub(super) fn lease_expired(s: &ClusterState, v: &View) -> bool {
    v.now.since(v.lease_seen) >= s.lease_wait()
}

/// Its process and its postmaster refuse connections from every member that we hear, and have done so since it last renewed the lease that
/// is to be cut short: one that refused earlier may have come back and taken it. Where a rule asks for no confirmation, or where people say
/// that a firewall may refuse in the place of the living, this means nothing (INV-9).
pub(super) fn refuses(s: &ClusterState, v: &View, node: NodeId) -> bool {
    if !s.settings.trust_refusals || s.rules.iter().any(|rule| rule.acks == 0) {
        return false;
    }
    let mut observers = others(s, node).filter_map(|n| v.fresh(n, max_age(s))).peekable();
    observers.peek().is_some() && observers.all(|o| o.refusals.get(&node) == Some(&s.lease))
}

/// It refuses everybody, and were it a firewall that does, nobody could tell: the primary behind it acknowledges no write, because its sealed
/// standbys confirm none, and its proxy begins no read, because it has not renewed its lease for the time that is waited here. A member that
/// we do not hear may be behind that firewall, too: its proxy would go on reading there (INV-9).
pub(super) fn proven_dead(s: &ClusterState, v: &View, node: NodeId) -> bool {
    // Until its promotion is settled no proxy begins anything; a settlement meanwhile makes this decision stale (INV-2).
    let is_open = s.lease.holder == Some(node) && !matches!(s.phase, Phase::Electing { .. } | Phase::Promoting { .. });
    let may_serve = is_open && v.now.since(v.lease_seen) < s.serving_wait();
    !may_serve && refuses(s, v, node) && others(s, node).all(|n| v.fresh(n, max_age(s)).is_some())
}

fn others(s: &ClusterState, node: NodeId) -> impl Iterator<Item = NodeId> {
    s.members.keys().copied().filter(move |n| *n != node)
}

/// Seals of this epoch. Only data members with a known end of WAL.
pub(super) fn seals(s: &ClusterState, v: &View) -> BTreeMap<NodeId, Seal> {
    fresh_data(s, v).into_iter().filter_map(|(n, o)| Some((n, o.seal.filter(|seal| seal.epoch == s.epoch)?))).collect()
}

/// Members that could give a seal soon.
pub(super) fn sealable(s: &ClusterState, v: &View) -> BTreeSet<NodeId> {
    let able = |o: &NodeObservation| match o.postgres.state {
        PostgresState::Stopped | PostgresState::Starting | PostgresState::Running | PostgresState::Stopping => true,
        PostgresState::Unknown | PostgresState::Absent | PostgresState::Cloning | PostgresState::Rewinding => false,
    };
    fresh_data(s, v).into_iter().filter(|(_, o)| able(o) && o.postgres.system == s.system).map(|(n, _)| n).collect()
}

/// Do these members cover every rule in flight (INV-4, INV-5)? An asynchronous rule promises only its loss bound, which the
/// choice of the candidate checks; for it one of its standbys is enough.
pub(super) fn covers(s: &ClusterState, nodes: &BTreeSet<NodeId>, newest: Option<Epoch>) -> bool {
    uncovered(s, nodes, newest).all(|rule| is_async(s, rule) && !rule.standbys.is_disjoint(nodes))
}

/// Rules that neither these members meet, nor a WAL whose end was written in epoch `newest`: that epoch's election covered all
/// rules adopted before it, its winner's WAL holds what they confirmed, and its seals let them confirm nothing more.
pub(super) fn uncovered<'a>(s: &'a ClusterState, nodes: &'a BTreeSet<NodeId>, newest: Option<Epoch>) -> impl Iterator<Item = &'a SyncRule> {
    let outlived = move |index: usize| s.adopted.get(index).is_some_and(|adopted| Some(adopted.epoch) < newest);
    s.rules.iter().enumerate().filter(move |(index, rule)| !rule.covered_by(nodes) && !outlived(*index)).map(|(_, rule)| rule)
}

/// The newest epoch that wrote the WAL of any of these members, as they say.
pub(super) fn newest_writer(v: &View, nodes: &BTreeSet<NodeId>) -> Option<Epoch> {
    nodes.iter().filter_map(|n| v.observations.get(n)?.observation.postgres.position).map(|p| p.writer).max()
}

/// The newest rule, if its primary has proved it since it was adopted (INV-6): the proof of an earlier adoption says nothing, since
/// other names were in force in between.
pub(super) fn proved<'a>(s: &'a ClusterState, o: &NodeObservation) -> Option<&'a SyncRule> {
    let rule = s.rules.last()?;
    let seen = s.adopted.last().is_none_or(|adopted| o.revision >= adopted.revision);
    let (epoch, settled) = o.settled.as_ref()?;
    (seen && *epoch == s.epoch && settled == rule).then_some(rule)
}

/// A rule without confirmations that was chosen as such, not one whose primary went on alone.
pub(super) fn is_async(s: &ClusterState, rule: &SyncRule) -> bool {
    s.settings.durability == Durability::Async && rule.acks == 0 && !rule.standbys.is_empty()
}

/// Who is missing for an election: what `status` names when none is safe.
pub(super) fn missing(s: &ClusterState, present: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    s.rules.iter().flat_map(|r| r.standbys.iter().copied().chain([r.primary])).filter(|n| !present.contains(n)).collect()
}

/// May this member be chosen as primary?
pub(super) fn eligible(s: &ClusterState, node: NodeId) -> bool {
    !s.fences.contains(&node) && s.members.get(&node).is_some_and(|m| m.kind == MemberKind::Data && !m.tags.nofailover)
}

/// May this member confirm commits? A nofailover member may not either: it could end up as the only holder of a commit.
pub(super) fn may_confirm(s: &ClusterState, node: NodeId) -> bool {
    eligible(s, node) && s.members.get(&node).is_some_and(|m| !m.tags.nosync)
}

/// The rule of `primary` with these usable standbys, or how many are needed where the policy forbids to go on.
pub(super) fn rule_for(s: &ClusterState, primary: NodeId, live: &BTreeSet<NodeId>) -> Result<SyncRule, usize> {
    let usable = live.iter().copied().filter(|n| *n != primary && may_confirm(s, *n));
    let count = usable.clone().count();
    let acks = match s.settings.durability {
        Durability::Quorum => s.settings.acks.max(1),
        Durability::All => count.max(s.settings.acks.max(1)),
        Durability::Async => 0,
    };
    if s.settings.strict && count < acks {
        return Err(acks);
    }
    Ok(SyncRule::new(primary, usable, acks))
}

/// Strict, and too few may confirm now: commits wait until these do. Where tags leave too few, better one that is tagged than nobody.
pub(super) fn awaited_rule(s: &ClusterState, primary: NodeId, acks: usize) -> SyncRule {
    let willing = SyncRule::new(primary, s.data_members().filter(|n| may_confirm(s, *n)), acks);
    if willing.acks < acks { SyncRule::new(primary, s.data_members(), acks) } else { willing }
}
