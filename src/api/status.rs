//! The document of `trilithon status`, from what one node knows at one instant. PURE: a function of the snapshot.

use super::warnings::warnings;
use super::{RaftRole, Snapshot};
use crate::cluster::{ClusterState, Durability, Member, MemberKind, Phase};
use crate::ha::{NodeObservation, PostgresFacts, PostgresState, Role};
use crate::proto::v1::{ClusterStatus, LeaseStatus, MemberStatus, RuleStatus, TagsStatus};
use crate::types::NodeId;
use std::time::Duration;

/// Build the document.
#[must_use]
pub fn status(snapshot: &Snapshot) -> ClusterStatus {
    let state = &snapshot.state;
    let members: Vec<MemberStatus> = state.members.iter().map(|(node, member)| member_status(snapshot, *node, member)).collect();
    let warnings = warnings(snapshot, &members);
    ClusterStatus {
        cluster: state.name.clone(),
        phase: phase_word(state).to_owned(),
        epoch: state.epoch.0,
        revision: state.revision.0,
        primary: state.primary().map(|node| state.name_of(node)),
        lease: Some(lease(snapshot)),
        rule: state.rules.last().map(|rule| RuleStatus {
            standbys: rule.standbys.iter().map(|node| state.name_of(*node)).collect(),
            acks: u32::try_from(rule.acks).unwrap_or(u32::MAX),
            changing: state.rules.len() > 1,
        }),
        reason: with_names(&snapshot.reason, state),
        warnings,
        members,
        paused: state.paused,
        writable: writable(snapshot),
        system: state.system.map(|system| system.to_string()),
        answered_by: snapshot.me.to_string(),
        quorum: snapshot.has_quorum(),
    }
}

/// A pause shows while nothing else goes on: it matters most when the cluster would otherwise be steady.
fn phase_word(state: &ClusterState) -> &'static str {
    match state.phase {
        Phase::Steady { .. } if state.paused => "paused",
        Phase::Empty
        | Phase::Bootstrapping { .. }
        | Phase::Steady { .. }
        | Phase::Draining { .. }
        | Phase::Electing { .. }
        | Phase::Promoting { .. } => state.phase.word(),
    }
}

fn lease(snapshot: &Snapshot) -> LeaseStatus {
    let lease = &snapshot.state.lease;
    let seen = snapshot.view.now.since(snapshot.view.lease_seen);
    let observed = snapshot.state.settings.lease_ttl().saturating_sub(seen);
    // The holder knows better than an observer: it counts from the moment before it asked (INV-9).
    let own = snapshot.lease.filter(|(epoch, _)| snapshot.my_id() == lease.holder && *epoch == lease.epoch).map(|(_, left)| left);
    LeaseStatus {
        holder: lease.holder.map(|node| snapshot.state.name_of(node)),
        remaining_ms: lease.holder.map(|_| millis(own.unwrap_or(observed))),
    }
}

/// Are writes accepted, as far as this node knows? On the primary it is its own lease that counts, elsewhere what was observed.
#[must_use]
pub(super) fn writable(snapshot: &Snapshot) -> bool {
    let state = &snapshot.state;
    let Phase::Steady { primary } = state.phase else { return false };
    let proved = snapshot.heard(primary).is_some_and(|o| {
        let facts = &o.postgres;
        let serves = facts.state == PostgresState::Running && facts.role == Some(Role::Primary);
        serves && o.settled.as_ref().is_some_and(|(epoch, _)| *epoch == state.epoch)
    });
    let leased = if snapshot.my_id() == Some(primary) {
        snapshot.lease.is_some_and(|(epoch, left)| epoch == state.epoch && !left.is_zero())
    } else {
        state.lease.holder == Some(primary) && lease(snapshot).remaining_ms.is_some_and(|left| left > 0)
    };
    proved && leased
}

fn member_status(snapshot: &Snapshot, node: NodeId, member: &Member) -> MemberStatus {
    let state = &snapshot.state;
    let heard = snapshot.heard(node);
    let facts = heard.map(|o| &o.postgres);
    let data = member.kind == MemberKind::Data;
    let lag_bytes = lag_bytes(snapshot, node);
    MemberStatus {
        name: member.name.to_string(),
        datacenter: member.datacenter.clone(),
        role: role_word(state, node, member, facts).to_owned(),
        state: state_word(member, heard).to_owned(),
        timeline: facts.and_then(|f| f.timeline).map(|t| t.0),
        lsn: facts.and_then(|f| f.position).map(|p| p.lsn.to_string()),
        lag_bytes,
        lag_seconds: match (lag_bytes, facts.and_then(|f| f.replay_lag_ms)) {
            // With nothing left to replay, the age of the last transaction only tells how quiet the cluster is.
            (Some(0), _) => Some(0.0),
            (Some(_), Some(ms)) => Some(Duration::from_millis(ms).as_secs_f64()),
            (Some(_) | None, _) => None,
        },
        sync: if data { sync_word(snapshot, node, member, facts).map(str::to_owned) } else { None },
        raft: raft_word(snapshot, node).map(str::to_owned),
        tags: Some(TagsStatus {
            priority: member.tags.priority,
            nofailover: member.tags.nofailover,
            nosync: member.tags.nosync,
            noloadbalance: member.tags.noloadbalance,
            fenced: state.fences.contains(&node),
        }),
        version: heard.map(|o| o.software_version.clone()).unwrap_or_default(),
        postgres_version: facts.and_then(|f| postgres_version(f.version_num)),
        step: heard.map(|o| with_names(&o.step, state)).unwrap_or_default(),
        address: member.addresses.postgres.clone(),
        id: node.0,
    }
}

/// What the member says, else what the state makes of it.
pub(super) fn role_word(state: &ClusterState, node: NodeId, member: &Member, facts: Option<&PostgresFacts>) -> &'static str {
    if member.kind == MemberKind::Witness {
        return "witness";
    }
    let agreed = matches!(state.phase, Phase::Steady { primary } | Phase::Draining { from: primary, .. } if primary == node);
    match facts.and_then(|f| f.role) {
        Some(Role::Primary) => "primary",
        Some(Role::Standby) => "standby",
        None if agreed => "primary",
        None => "standby",
    }
}

pub(super) fn state_word(member: &Member, heard: Option<&NodeObservation>) -> &'static str {
    let Some(observation) = heard else { return "unreachable" };
    if member.kind == MemberKind::Witness {
        return "running";
    }
    let facts = &observation.postgres;
    match facts.state {
        PostgresState::Running if facts.role == Some(Role::Standby) && facts.streaming_from.is_some() => "streaming",
        PostgresState::Running => "running",
        // Without a known end of WAL it is replaying after a crash.
        PostgresState::Starting if facts.position.is_none() => "recovering",
        PostgresState::Starting => "starting",
        PostgresState::Rewinding => "rewinding",
        PostgresState::Cloning => "cloning",
        PostgresState::Absent | PostgresState::Stopped | PostgresState::Stopping => "stopped",
        // Its process answers, its Postgres does not: for whoever wants to use it that is the same.
        PostgresState::Unknown => "unreachable",
    }
}

/// WAL of the primary that `node` has not replayed; `None` where it is not known or the two cannot be compared.
pub(super) fn lag_bytes(snapshot: &Snapshot, node: NodeId) -> Option<u64> {
    let primary = snapshot.state.primary().filter(|primary| *primary != node)?;
    let ahead = &snapshot.heard(primary)?.postgres;
    let facts = &snapshot.heard(node)?.postgres;
    // Bare positions of two timelines cannot be compared (INV-7).
    let comparable = facts.timeline.is_some() && facts.timeline == ahead.timeline;
    let replayed = facts.replayed.or(facts.position.map(|p| p.lsn))?;
    comparable.then_some(replayed.behind(ahead.position?.lsn))
}

fn sync_word(snapshot: &Snapshot, node: NodeId, member: &Member, facts: Option<&PostgresFacts>) -> Option<&'static str> {
    let state = &snapshot.state;
    if state.primary() == Some(node) {
        return None;
    }
    let named = state.rules.last().is_some_and(|rule| rule.acks > 0 && rule.standbys.contains(&node));
    let streams = facts.is_some_and(|f| f.streaming_from.is_some());
    let barred = member.tags.nosync || member.tags.nofailover || state.settings.durability == Durability::Async;
    match (named, streams) {
        (true, _) => Some("sync"),
        (false, true) if barred => Some("async"),
        (false, true) => Some("potential"),
        (false, false) => Some("async"),
    }
}

fn raft_word(snapshot: &Snapshot, node: NodeId) -> Option<&'static str> {
    let raft = &snapshot.raft;
    if raft.leader == Some(node) {
        return Some(RaftRole::Leader.word());
    }
    let peer = raft.peers.iter().find(|peer| peer.id == node)?;
    Some(if peer.voter { RaftRole::Follower.word() } else { RaftRole::Learner.word() })
}

/// `server_version_num` as people write it: 150006 is 15.6.
#[must_use]
pub fn postgres_version(version_num: u32) -> Option<String> {
    (version_num > 0).then(|| format!("{}.{}", version_num / 10_000, version_num % 10_000))
}

/// Decisions name members by their ids (`n2`); people know them by name.
pub(super) fn with_names(text: &str, state: &ClusterState) -> String {
    let word = |word: &str| {
        let id = word.strip_prefix('n').and_then(|digits| digits.parse().ok()).map(NodeId);
        id.and_then(|id| state.members.get(&id)).map_or_else(|| word.to_owned(), |member| member.name.to_string())
    };
    let is_boundary = |c: char| !c.is_ascii_alphanumeric();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_boundary) {
        let length = rest[at..].chars().next().map_or(1, char::len_utf8);
        out.push_str(&word(&rest[..at]));
        out.push_str(&rest[at..at + length]);
        rest = &rest[at + length..];
    }
    out + &word(rest)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
