//! The other documents: topology, history, consensus. PURE.

use super::status::{lag_bytes, role_word, state_word};
use super::{RaftInfo, Snapshot};
use crate::cluster::{ClusterState, ElectionCause};
use crate::proto::v1::{HistoryReply, PrimaryChange, RaftMember, RaftStatusReply, TopologyMember, TopologyReply};
use std::time::Duration;

/// Who streams from whom, and where each service listens.
pub(super) fn topology(snapshot: &Snapshot) -> TopologyReply {
    let state = &snapshot.state;
    let members = state.members.iter().map(|(node, member)| {
        let heard = snapshot.heard(*node);
        let facts = heard.map(|o| &o.postgres);
        let addresses = &member.addresses;
        TopologyMember {
            name: member.name.to_string(),
            datacenter: member.datacenter.clone(),
            role: role_word(state, *node, member, facts).to_owned(),
            state: state_word(member, heard).to_owned(),
            upstream: facts.and_then(|f| f.streaming_from).map(|node| state.name_of(node)),
            lag_bytes: lag_bytes(snapshot, *node),
            postgres: addresses.postgres.clone(),
            proxy_auto: addresses.proxy_auto.clone(),
            proxy_primary: addresses.proxy_primary.clone(),
            proxy_standby: addresses.proxy_standby.clone(),
            grpc: addresses.grpc.clone(),
            http: addresses.http.clone(),
        }
    });
    TopologyReply { cluster: state.name.clone(), primary: state.primary().map(|node| state.name_of(node)), members: members.collect() }
}

/// Each change of primary, oldest first.
pub(super) fn history(state: &ClusterState) -> HistoryReply {
    let changes = state.history.iter().map(|entry| PrimaryChange {
        epoch: entry.epoch.0,
        timeline: entry.timeline.map(|t| t.0),
        from: entry.from.map(|node| state.name_of(node)),
        to: state.name_of(entry.to),
        lsn: entry.lsn.to_string(),
        cause: cause_word(entry.cause).to_owned(),
        settled: entry.settled,
        outage_ms: entry.outage_ms,
        accept_loss: entry.accept_loss,
    });
    HistoryReply { changes: changes.collect() }
}

/// The word that users see.
pub(super) fn cause_word(cause: ElectionCause) -> &'static str {
    match cause {
        ElectionCause::Bootstrap => "bootstrap",
        ElectionCause::LeaseExpired => "lease_expired",
        ElectionCause::PrimaryDown => "primary_down",
        ElectionCause::ProvenDead => "proven_dead",
        ElectionCause::Switchover => "switchover",
        ElectionCause::Manual => "manual",
        ElectionCause::CandidateLost => "candidate_lost",
    }
}

/// Consensus as the node that answers sees it.
pub(super) fn raft(snapshot: &Snapshot) -> RaftStatusReply {
    let raft: &RaftInfo = &snapshot.raft;
    let state = &snapshot.state;
    let peers = raft.peers.iter().map(|peer| RaftMember {
        id: peer.id.0,
        name: state.name_of(peer.id),
        voter: peer.voter,
        address: peer.address.clone(),
        matched: peer.matched,
    });
    RaftStatusReply {
        node: snapshot.me.to_string(),
        id: raft.id.0,
        role: raft.role.word().to_owned(),
        term: raft.term,
        leader: raft.leader.map(|node| state.name_of(node)),
        last_log: raft.last_log,
        committed: raft.committed,
        applied: raft.applied,
        snapshot: raft.snapshot,
        quorum_acked_ms: raft.quorum_acked.map(|age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        members: peers.collect(),
        has_quorum: snapshot.has_quorum(),
    }
}
