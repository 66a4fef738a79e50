//! Gathers what `converge` reads and what the peers are told.

use super::memory::Memory;
use crate::cluster::ClusterState;
use crate::ha::{LeaseBelief, LocalState, NodeObservation, PostgresFacts, PostgresState, Role, Upstream, View};
use crate::types::{Epoch, Millis, NodeId, Timeline};
use std::time::Duration;

/// A postmaster that has not answered a new connection for this long counts as hung (the machine may live, the lease even).
const HANG_TIMEOUT: Duration = Duration::from_secs(3);
/// What a primary said this long ago still describes it well enough to follow it.
const UPSTREAM_MAX_AGE: Duration = Duration::from_secs(3);

/// The parts of a turn that do not come from Postgres.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub me: NodeId,
    pub now: Millis,
    pub promised: Epoch,
    pub lease: LeaseBelief,
    pub released: bool,
    /// The epoch whose lease came near its deadline: no promotion in it any more.
    pub ended: Option<Epoch>,
    pub poisoned: bool,
    /// A step is under way: a Postgres that stops does so because of it.
    pub stopping_ourselves: bool,
    pub adopt_existing: bool,
}

/// Put this node's facts together. Keeps `memory` honest: what was proved about a primary ends with it.
pub fn local_state(s: &ClusterState, facts: PostgresFacts, own: Own, memory: &mut Memory, upstream: Option<Upstream>) -> LocalState {
    // One that does not come to an end by itself, a process stuck in the kernel perhaps, is as good as hung.
    let stuck = facts.state == PostgresState::Stopping && !own.stopping_ourselves;
    let silent = facts.state == PostgresState::Unknown || stuck;
    memory.silent_since = if silent { memory.silent_since.or(Some(own.now)) } else { None };
    let hung = memory.silent_since.is_some_and(|since| own.now.since(since) >= HANG_TIMEOUT);
    let primary_of = primary_of(s, own.me, &facts);
    if primary_of.is_none() {
        memory.forget_primary();
    }
    LocalState {
        me: own.me,
        promised: own.promised,
        following: memory.following,
        primary_of,
        settled: memory.settled.clone(),
        lease: own.lease,
        released: own.released,
        gave_up: memory.gave_up.max(own.ended),
        poisoned: own.poisoned,
        needs_clone: memory.needs_clone.clone(),
        prepared: memory.prepared,
        upstream,
        hung,
        adopt_existing: own.adopt_existing,
        postgres: facts,
    }
}

/// The epoch for which a running primary was promoted, known from its timeline's claim: a hand-made primary has none (INV-8).
fn primary_of(s: &ClusterState, me: NodeId, facts: &PostgresFacts) -> Option<Epoch> {
    if facts.role != Some(Role::Primary) {
        return None;
    }
    s.timelines.get(facts.timeline?).filter(|claim| claim.node == me).map(|claim| claim.epoch)
}

/// The primary of the present epoch as it last described itself.
pub fn upstream(s: &ClusterState, view: &View) -> Option<Upstream> {
    let node = s.primary()?;
    let o = view.fresh(node, UPSTREAM_MAX_AGE)?;
    let claimed = s.timelines.of_epoch(s.epoch).map(|c| c.timeline);
    let accepting = o.promised == s.epoch && o.postgres.role == Some(Role::Primary) && claimed == o.postgres.timeline;
    Some(Upstream { node, accepting, timeline: o.postgres.timeline.unwrap_or_default(), ancestry: o.postgres.ancestry.clone() })
}

/// Which epoch writes `timeline`; before the first claim everything was written in epoch 0.
pub fn writer(s: &ClusterState, timeline: Timeline) -> Option<Epoch> {
    match s.timelines.0.is_empty() {
        true => Some(Epoch(0)),
        false => s.timelines.writer(timeline),
    }
}

/// What the peers are told. The seal is derived, so it can never outlive what it promises.
pub fn observation(s: &ClusterState, local: &LocalState, step: String, rest: NodeObservation) -> NodeObservation {
    NodeObservation {
        node: local.me,
        promised: local.promised,
        postgres: local.postgres.clone(),
        seal: local.seal(),
        settled: local.settled.clone(),
        prepared: local.prepared,
        adopt_existing: local.adopt_existing,
        revision: s.revision,
        step,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..rest
    }
}
