//! The types that openraft is instantiated with. Nothing outside `consensus` sees them.

use crate::cluster::{Outcome, Proposal};
use bytes::Bytes;
use std::fmt;

/// Version of entries, snapshots and messages that this release writes, and the newest it reads.
pub const FORMAT: u8 = 1;

/// Longest serialized log entry. sled moves values above some 128 KiB to files that it never syncs; and the whole log is kept in
/// memory, so a bound on an entry is a bound on that too.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024;

openraft::declare_raft_types!(
    /// Consensus over [`EntryData`], answered by the outcome of applying it.
    pub TypeConfig:
        D = EntryData,
        R = Applied,
        NodeId = u64,
        Node = PeerNode,
);

pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
/// Who led when an entry was made: ordered by term, then node.
pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub type LogId = openraft::LogId<LeaderId>;
pub type Vote = openraft::impls::Vote<LeaderId>;
pub type EntryPayload = openraft::EntryPayload<EntryData, u64, PeerNode>;
pub type Entry = openraft::Entry<LeaderId, EntryPayload>;
pub type Membership = openraft::Membership<u64, PeerNode>;
pub type StoredMembership = openraft::StoredMembership<LeaderId, u64, PeerNode>;
pub type SnapshotMeta = openraft::storage::SnapshotMeta<LeaderId, u64, PeerNode>;
pub type Snapshot = openraft::storage::Snapshot<LeaderId, u64, PeerNode, Bytes>;

/// A proposal as the log carries it: JSON, so that an additive field needs no new format. Parsed only when it is applied, so that
/// a node can store and pass on entries of a newer release; applying one that it cannot read stops it with a clear message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryData {
    pub format: u32,
    pub json: Bytes,
}

impl EntryData {
    /// Serialize `proposal` in this release's format.
    pub fn encode(proposal: &Proposal) -> Result<EntryData, serde_json::Error> {
        Ok(EntryData { format: u32::from(FORMAT), json: serde_json::to_vec(proposal)?.into() })
    }

    /// The proposal, or why this release cannot read it.
    pub fn decode(&self) -> Result<Proposal, String> {
        if self.format > u32::from(FORMAT) {
            return Err(format!("log entry of format {}; this release reads up to {FORMAT}: upgrade this node", self.format));
        }
        serde_json::from_slice(&self.json).map_err(|e| format!("log entry that this release cannot read ({e}): upgrade this node"))
    }
}

impl fmt::Display for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.json.len())
    }
}

/// Answer to a written entry; `None` for entries that are openraft's own (blank, membership).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied(pub Option<Outcome>);

/// What the membership says of a node: enough to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNode {
    pub name: String,
    /// `host:port` of its gRPC listener, as others reach it.
    pub address: String,
}
