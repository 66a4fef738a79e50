//! Where the other members are, as far as this node knows, and which address to dial.
//!
//! ```text
//!   listed      the replicated state; openraft's membership while there is none   ┐
//!   told        by the member itself with each observation, or by who found it    ├─► candidates ──► `observe` tries them
//!   reached     where it last answered as itself; before that the configuration   ┘                     │ answered as itself
//!                                         every call ◄── reached, else listed ◄─────────────────────────┘
//! ```
//! None of them is always right. The state cannot change before somebody leads, so that a cluster that is renumbered as a whole finds
//! itself again by its configuration alone; and a file may be older than the state. A wrong address costs time, never safety: each
//! message names cluster and receiver, and whoever else is found there refuses it.
//!
//! Deliberately absent: connections (`links`), and telling the cluster a new address, which is a command like any other.

use super::config::Peer;
use crate::cluster::ClusterState;
use crate::types::NodeId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The longest DNS name, and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;

#[derive(Clone, Debug, Default)]
struct Known {
    told: Option<String>,
    reached: Option<String>,
}

/// Shared by its clones.
#[derive(Clone)]
pub struct Addresses {
    configured: Arc<[Peer]>,
    state: watch::Receiver<Arc<ClusterState>>,
    known: Arc<Mutex<BTreeMap<NodeId, Known>>>,
}

impl Addresses {
    pub fn new(configured: &[Peer], state: watch::Receiver<Arc<ClusterState>>) -> Addresses {
        Addresses { configured: configured.into(), state, known: Arc::default() }
    }

    /// What the replicated state says of a member.
    pub fn listed(&self, node: NodeId) -> Option<Peer> {
        let state = self.state.borrow();
        state.members.get(&node).map(|m| Peer { name: m.name.to_string(), address: m.addresses.grpc.clone() })
    }

    /// Somebody, mostly the member itself, said where it is.
    pub fn tell(&self, node: NodeId, address: &str) {
        // Empty: of an older release, which does not say it.
        if address.is_empty() || address.len() > ADDRESS_BYTES_MAX || self.listed(node).is_none() {
            return;
        }
        let mut known = self.known();
        let told = &mut known.entry(node).or_default().told;
        if told.as_deref() != Some(address) {
            *told = Some(address.to_owned());
        }
    }

    /// A member answered at this address, as itself.
    pub fn reached(&self, node: NodeId, address: &str) {
        self.known().entry(node).or_default().reached = Some(address.to_owned());
    }

    /// Is this where it last answered?
    pub fn is_at(&self, node: NodeId, address: &str) -> bool {
        self.known().get(&node).is_some_and(|known| known.reached.as_deref() == Some(address))
    }

    /// It left, or its entry in the state changed: what is known beside that may be older.
    pub fn forget(&self, node: NodeId) {
        self.known().remove(&node);
    }

    /// The address for a call.
    pub fn dial(&self, node: NodeId, listed: Peer) -> Peer {
        match self.known().get(&node).and_then(|known| known.reached.clone()) {
            Some(address) => Peer { address, ..listed },
            None => listed,
        }
    }

    /// All that are worth an attempt. One, as long as everybody agrees.
    pub fn candidates(&self, node: NodeId, listed: &Peer) -> Vec<Peer> {
        let known = self.known().get(&node).cloned().unwrap_or_default();
        // Read when this process started: whatever answered since is newer.
        let configured = || self.configured.iter().find(|p| p.name == listed.name).map(|p| p.address.clone());
        let mut all = vec![listed.clone()];
        for address in [known.told, known.reached.or_else(configured)].into_iter().flatten() {
            if all.iter().all(|peer| peer.address != address) {
                all.push(Peer { name: listed.name.clone(), address });
            }
        }
        all
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<NodeId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Addresses as Listed, Member, MemberKind, Tags};

    const DC2: NodeId = NodeId(2);

    fn book(configured: &str) -> (Addresses, Peer) {
        let member = Member {
            name: "dc2".into(),
            datacenter: String::new(),
            kind: MemberKind::Data,
            addresses: Listed { grpc: "listed:1".into(), ..Listed::default() },
            tags: Tags::default(),
        };
        let state = ClusterState { members: [(DC2, member)].into(), ..ClusterState::default() };
        let peer = |address: &str| Peer { name: "dc2".into(), address: address.into() };
        // A receiver outlives its sender's last value.
        let (_, state) = watch::channel(Arc::new(state));
        (Addresses::new(&[peer(configured)], state), peer("listed:1"))
    }

    fn tried(book: &Addresses, listed: &Peer) -> Vec<String> {
        book.candidates(DC2, listed).into_iter().map(|peer| peer.address).collect()
    }

    #[test]
    fn the_file_counts_until_the_member_was_reached() {
        let (book, listed) = book("file:1");
        assert_eq!(tried(&book, &listed), ["listed:1", "file:1"]);
        assert_eq!(book.dial(DC2, listed.clone()), listed);
        book.reached(DC2, "listed:1");
        assert_eq!(tried(&book, &listed), ["listed:1"]);
        book.tell(DC2, "moved:1");
        assert_eq!(tried(&book, &listed), ["listed:1", "moved:1"]);
        assert_eq!(book.dial(DC2, listed.clone()).address, "listed:1");
        book.reached(DC2, "moved:1");
        assert_eq!(book.dial(DC2, listed.clone()).address, "moved:1");
        book.forget(DC2);
        assert_eq!(book.dial(DC2, listed.clone()), listed);
    }

    #[test]
    fn one_address_is_tried_where_all_agree_and_strangers_are_not_noted() {
        let (book, listed) = book("listed:1");
        for address in ["", "listed:1", &"x".repeat(1_000)] {
            book.tell(DC2, address);
        }
        book.tell(NodeId(9), "elsewhere:1");
        assert_eq!(tried(&book, &listed), ["listed:1"]);
        assert_eq!(book.known().len(), 1);
    }
}
