//! Gathers what `converge` reads and what the peers are told.

use super::memory::Memory;
use crate::bug::{self, Bug};
use crate::cluster::{ClusterState, SyncRule};
use crate::ha::{LeaseBelief, LocalState, NodeObservation, PostgresFacts, PostgresState, Role, Upstream, View};
use crate::types::{Epoch, Lsn, Millis, NodeId, Timeline};
use std::time::Duration;

/// A postmaster that has not answered a new connection for this long counts as hung (the machine may live, the lease even).
const HANG_TIMEOUT: Duration = Duration::from_secs(3);
/// A primary whose storage has taken no WAL for this long gives way. Far above what slow disks and a cloud's hiccups take: the
/// storage of its successor may be the same.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
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
    let stalled = stalled(&facts, own.now, memory);
    let primary_of = primary_of(s, own.me, &facts);
    memory.confirmed = confirmed(s, &facts).or(memory.confirmed);
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
        needs_clone: memory.needs_clone.as_ref().map(|need| need.why.clone()),
        prepared: memory.prepared,
        upstream,
        hung,
        stalled,
        adopt_existing: own.adopt_existing,
        postgres: facts,
    }
}

/// Seen waiting each time that it was looked at, with the end of flushed WAL where it was.
fn stalled(facts: &PostgresFacts, now: Millis, memory: &mut Memory) -> bool {
    let end = facts.position.map(|p| p.lsn).filter(|_| facts.flush_waits);
    memory.flush_waits = end.map(|end| match memory.flush_waits {
        Some((before, since)) if before == end => (end, since),
        Some(_) | None => (end, now),
    });
    memory.flush_waits.is_some_and(|(_, since)| now.since(since) >= STALL_TIMEOUT)
}

/// The epoch for which a running primary was promoted, known from its timeline's claim: a hand-made primary has none (INV-8).
pub(super) fn primary_of(s: &ClusterState, me: NodeId, facts: &PostgresFacts) -> Option<Epoch> {
    if facts.role != Some(Role::Primary) {
        return None;
    }
    s.timelines.get(facts.timeline?).filter(|claim| claim.node == me).map(|claim| claim.epoch)
}

/// How far every rule in force has confirmed the WAL of a running primary, with its timeline.
fn confirmed(s: &ClusterState, facts: &PostgresFacts) -> Option<(Timeline, Lsn)> {
    if facts.role != Some(Role::Primary) {
        return None;
    }
    let end = facts.position?.lsn;
    let by = |rule: &SyncRule| {
        let mut flushed: Vec<Lsn> =
            rule.standbys.iter().filter_map(|n| facts.standbys.get(n)).filter(|v| v.streaming).map(|v| v.flushed).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        if rule.acks == 0 { Some(end) } else { flushed.get(rule.acks - 1).copied() }
    };
    let lowest = s.rules.iter().map(by).min()?;
    Some((facts.timeline?, lowest?))
}

/// A standby on a timeline of its own writing: what its rule had not confirmed is visible there, and may be gone after the next election.
/// After a restart of this process nothing is known, so that all of it is in doubt.
#[must_use]
pub fn doubtful(s: &ClusterState, me: NodeId, facts: &PostgresFacts, memory: &Memory) -> bool {
    let wrote_it = facts.timeline.and_then(|t| s.timelines.get(t)).is_some_and(|claim| claim.node == me);
    let covered = facts.timeline.zip(memory.confirmed).zip(facts.position).is_some_and(|((t, (on, lsn)), end)| t == on && end.lsn <= lsn);
    facts.role == Some(Role::Standby) && wrote_it && !covered && !bug::is(Bug::DoubtfulRead)
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
        seal: local.seal(s),
        settled: local.settled.clone(),
        prepared: local.prepared,
        adopt_existing: local.adopt_existing,
        revision: s.revision,
        step,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..rest
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::{TimelineClaim, TimelineClaims};
    use crate::ha::StandbyView;
    use crate::types::WalPosition;

    pub fn state() -> ClusterState {
        let claim = TimelineClaim { timeline: Timeline(3), epoch: Epoch(2), node: NodeId(1), settled: true };
        let rules = vec![SyncRule::new(NodeId(1), [NodeId(2), NodeId(3)], 1)];
        ClusterState { epoch: Epoch(2), rules, timelines: TimelineClaims(vec![claim]), ..ClusterState::default() }
    }

    pub fn facts(role: Role, end: u64) -> PostgresFacts {
        let position = Some(WalPosition { writer: Epoch(2), lsn: Lsn(end) });
        PostgresFacts { state: PostgresState::Running, role: Some(role), timeline: Some(Timeline(3)), position, ..PostgresFacts::default() }
    }

    #[test]
    fn storage_stalls_when_processes_wait_and_nothing_moves() {
        let (mut memory, mut primary) = (Memory::default(), facts(Role::Primary, 110));
        let limit = u64::try_from(STALL_TIMEOUT.as_millis()).unwrap();
        let mut at = |primary: &PostgresFacts, ms| stalled(primary, Millis(ms), &mut memory);
        assert!(!at(&primary, 0) && !at(&primary, 10 * limit), "nobody waits: an idle primary");
        primary.flush_waits = true;
        assert!(!at(&primary, 10 * limit + 1) && at(&primary, 11 * limit + 1));
        let moved = PostgresFacts { flush_waits: true, ..facts(Role::Primary, 120) };
        assert!(!at(&moved, 11 * limit + 2), "it is slow, but it moves");
        primary.flush_waits = false;
        assert!(!at(&primary, 30 * limit), "looked at when nobody waited");
        primary.flush_waits = true;
        assert!(!at(&primary, 40 * limit), "one look is no stall");
    }

    #[test]
    fn a_former_primary_is_doubtful_beyond_what_its_rule_confirmed() {
        let (s, mut primary) = (state(), facts(Role::Primary, 110));
        let walsender = |flushed| StandbyView { streaming: true, flushed: Lsn(flushed), ..StandbyView::default() };
        primary.standbys = [(NodeId(2), walsender(100)), (NodeId(3), walsender(90))].into();
        let memory = Memory { confirmed: confirmed(&s, &primary), ..Memory::default() };
        assert_eq!(memory.confirmed, Some((Timeline(3), Lsn(100))), "one of two suffices");
        assert!(!doubtful(&s, NodeId(1), &primary, &memory), "a primary answers for itself");
        assert!(!doubtful(&s, NodeId(1), &facts(Role::Standby, 100), &memory), "all confirmed: reads go on, stale");
        assert!(doubtful(&s, NodeId(1), &facts(Role::Standby, 101), &memory));
        assert!(doubtful(&s, NodeId(1), &facts(Role::Standby, 50), &Memory::default()), "a new process knows nothing");
        assert!(!doubtful(&s, NodeId(2), &facts(Role::Standby, 101), &Memory::default()), "what others wrote was received, not made up");
    }
}
