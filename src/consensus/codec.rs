//! Between openraft's types and ours on disk and on the wire (`peer.proto`), so that an upgrade of openraft stays inside this crate.
//!
//! Decoding is total: whatever bytes arrive give a value or a [`CodecError`]. Deliberately absent: serde on openraft's own types.

use super::raft::{Entry, EntryData, EntryPayload, LeaderId, LogId, Membership, PeerNode, StoredMembership, Vote};
use crate::proto::v1;
use openraft::entry::RaftEntry;
use openraft::vote::RaftLeaderId;
use thiserror::Error;

/// A message or a stored value is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    #[error("a required field is missing: {0}")]
    Missing(&'static str),
    #[error("the membership names a voter without an address")]
    Membership,
}

pub fn log_id(id: &LogId) -> v1::RaftLogId {
    let leader = id.committed_leader_id();
    v1::RaftLogId { term: leader.term, node: leader.node_id, index: id.index() }
}

pub fn log_id_from(id: v1::RaftLogId) -> LogId {
    LogId::new(LeaderId::new(id.term, id.node), id.index)
}

pub fn vote(vote: &Vote) -> v1::RaftVote {
    v1::RaftVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub fn vote_from(vote: Option<v1::RaftVote>) -> Result<Vote, CodecError> {
    let vote = vote.ok_or(CodecError::Missing("vote"))?;
    Ok(Vote { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed })
}

pub fn membership(membership: &Membership) -> v1::RaftMembership {
    let configs = membership.get_joint_config().iter().map(|set| v1::RaftVoters { ids: set.iter().copied().collect() });
    let nodes = membership.nodes().map(|(id, node)| (*id, v1::RaftNode { name: node.name.clone(), address: node.address.clone() }));
    v1::RaftMembership { configs: configs.collect(), nodes: nodes.collect() }
}

pub fn membership_from(membership: v1::RaftMembership) -> Result<Membership, CodecError> {
    let configs = membership.configs.into_iter().map(|set| set.ids.into_iter().collect()).collect::<Vec<_>>();
    let nodes = membership.nodes.into_iter().map(|(id, node)| (id, PeerNode { name: node.name, address: node.address }));
    let nodes = nodes.collect::<std::collections::BTreeMap<_, _>>();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| CodecError::Membership)
}

pub fn stored_membership(stored: &StoredMembership) -> v1::RaftStoredMembership {
    v1::RaftStoredMembership { log_id: stored.log_id().as_ref().map(log_id), membership: Some(membership(stored.membership())) }
}

pub fn stored_membership_from(stored: Option<v1::RaftStoredMembership>) -> Result<StoredMembership, CodecError> {
    let stored = stored.ok_or(CodecError::Missing("membership"))?;
    let membership = stored.membership.map(membership_from).transpose()?.unwrap_or_default();
    Ok(StoredMembership::new(stored.log_id.map(log_id_from), membership))
}

pub fn entry(entry: &Entry) -> v1::RaftEntry {
    use v1::raft_entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(v1::RaftBlank {}),
        EntryPayload::Normal(data) => Payload::Proposal(v1::RaftProposal { format: data.format, json: data.json.clone() }),
        EntryPayload::Membership(m) => Payload::Membership(membership(m)),
    };
    v1::RaftEntry { log_id: Some(log_id(&entry.log_id)), payload: Some(payload) }
}

pub fn entry_from(entry: v1::RaftEntry) -> Result<Entry, CodecError> {
    use v1::raft_entry::Payload;
    let id = log_id_from(entry.log_id.ok_or(CodecError::Missing("log_id"))?);
    let payload = match entry.payload.ok_or(CodecError::Missing("payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Proposal(p) => EntryPayload::Normal(EntryData { format: p.format, json: p.json }),
        Payload::Membership(m) => EntryPayload::Membership(membership_from(m)?),
    };
    Ok(Entry::new(id, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn entries_read_back_as_they_were_written() {
        let id = log_id_from(v1::RaftLogId { term: 3, node: 2, index: 17 });
        let node = |n: u64| (n, PeerNode { name: format!("dc{n}"), address: format!("127.0.0.1:{n}") });
        let nodes: BTreeMap<u64, PeerNode> = [node(1), node(2), node(3), node(4)].into();
        let joint = Membership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])], nodes).unwrap();
        let data = EntryData { format: 1, json: bytes::Bytes::from_static(b"{}") };
        for payload in [EntryPayload::Blank, EntryPayload::Normal(data), EntryPayload::Membership(joint)] {
            let written = Entry::new(id, payload);
            assert_eq!(entry_from(entry(&written)).unwrap(), written);
        }
    }

    #[test]
    fn messages_without_their_fields_are_errors() {
        assert_eq!(vote_from(None), Err(CodecError::Missing("vote")));
        assert!(entry_from(v1::RaftEntry::default()).is_err());
        let lonely = v1::RaftMembership { configs: vec![v1::RaftVoters { ids: vec![9] }], nodes: Default::default() };
        assert!(membership_from(lonely).is_err());
    }
}
