//! The gate before the primary (INV-9, INV-11): may a transaction begin now, where, and in which epoch?
//!
//! One word of memory says it, so that the check costs one load at each beginning of a transaction. A transaction is counted *before*
//! the word is read: once the word says "closed" and the count reads zero, no transaction is open on the primary through this
//! proxy and none can begin. That is what a drain waits for.
//!
//! The gate does not queue; whoever finds it closed waits for the next `View` (see `session::acquire`).

use crate::cluster::{Topology, WriteGate};
use crate::types::{Epoch, NodeId, Revision};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Asks whether the local node's lease is valid now (INV-9).
pub type LeaseCheck = Arc<dyn Fn() -> bool + Send + Sync>;

/// Asks whether the topology was looked at again just now (P3).
pub type FreshCheck = Arc<dyn Fn() -> bool + Send + Sync>;

const OPEN: u64 = 1 << 63;
const NODE_BITS: u32 = 24;

/// Shared by every worker.
pub struct Gate {
    me: NodeId,
    lease_valid: LeaseCheck,
    /// `OPEN | epoch << 24 | node`, or 0 while closed.
    word: AtomicU64,
    in_flight: AtomicU64,
    paused: AtomicBool,
    /// Revision of the topology the word was made from.
    revision: AtomicU64,
    drained: tokio::sync::Notify,
}

/// One transaction that may be open on the primary. Dropping it is its end.
pub struct Passage {
    gate: Arc<Gate>,
    /// The epoch in which its server connection must have been opened.
    pub epoch: Epoch,
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

impl Gate {
    /// Closed until the first topology arrives.
    #[must_use]
    pub fn new(me: NodeId, lease_valid: LeaseCheck) -> Arc<Gate> {
        Arc::new(Gate {
            me,
            lease_valid,
            word: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            revision: AtomicU64::new(0),
            drained: tokio::sync::Notify::new(),
        })
    }

    /// Takes over a new topology. Must come before anything else is done about it.
    pub fn set(&self, topology: &Topology) {
        let word = match topology.write {
            WriteGate::Open { primary, epoch } => pack(primary, epoch),
            WriteGate::Draining { .. } | WriteGate::Held => 0,
        };
        self.word.store(word, SeqCst);
        self.revision.store(topology.revision.0, SeqCst);
        self.drained.notify_waiters();
    }

    /// Begins a transaction on the primary, or `None` while none may begin.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Passage> {
        self.in_flight.fetch_add(1, SeqCst);
        let Some((_, epoch)) = self.open() else {
            self.leave();
            return None;
        };
        Some(Passage { gate: Arc::clone(self), epoch })
    }

    /// Whether a further transaction may begin on a connection opened in `epoch` by a client that is already counted.
    #[must_use]
    pub fn still_open(&self, epoch: Epoch) -> bool {
        self.open().is_some_and(|(_, now)| now == epoch)
    }

    /// Primary and epoch, while transactions may begin.
    #[must_use]
    pub fn open(&self) -> Option<(NodeId, Epoch)> {
        let (primary, epoch) = unpack(self.word.load(SeqCst))?;
        let leased = primary != self.me || (self.lease_valid)();
        (leased && !self.paused.load(SeqCst)).then_some((primary, epoch))
    }

    /// An administrator holds or releases every new transaction.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, SeqCst);
    }

    /// The topology the gate reflects, and the transactions that may be open on the primary. The revision is read first: zero beside
    /// the revision of a drain means that the drain is complete here.
    #[must_use]
    pub fn drain_state(&self) -> (Revision, u64) {
        let revision = Revision(self.revision.load(SeqCst));
        (revision, self.in_flight.load(SeqCst))
    }

    /// Resolves when the gate is at least at `revision` and nothing is in flight. Bound it with a timeout.
    pub async fn drained(&self, revision: Revision) {
        loop {
            let mut changed = std::pin::pin!(self.drained.notified());
            changed.as_mut().enable();
            let (at, in_flight) = self.drain_state();
            if at >= revision && in_flight == 0 {
                return;
            }
            changed.await;
        }
    }

    fn leave(&self) {
        if self.in_flight.fetch_sub(1, SeqCst) == 1 && self.word.load(SeqCst) == 0 {
            self.drained.notify_waiters();
        }
    }
}

fn pack(primary: NodeId, epoch: Epoch) -> u64 {
    assert!(primary.0 < 1 << NODE_BITS, "node ids are allocated one by one and stay below 2^24");
    assert!(epoch.0 < 1 << (63 - NODE_BITS), "epochs count elections and stay below 2^39");
    OPEN | epoch.0 << NODE_BITS | primary.0
}

fn unpack(word: u64) -> Option<(NodeId, Epoch)> {
    (word & OPEN != 0).then_some((NodeId(word & ((1 << NODE_BITS) - 1)), Epoch((word & !OPEN) >> NODE_BITS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn topology(write: WriteGate, revision: u64) -> Topology {
        Topology { write, revision: Revision(revision), ..Topology::default() }
    }

    const OPEN_AT_2: WriteGate = WriteGate::Open { primary: NodeId(2), epoch: Epoch(7) };

    #[test]
    fn inv_11_gate_is_closed_until_a_topology_opens_it() {
        let gate = Gate::new(NodeId(1), Arc::new(|| true));
        assert!(gate.enter().is_none());
        gate.set(&topology(OPEN_AT_2, 1));
        let passage = gate.enter().expect("open");
        assert_eq!((passage.epoch, gate.open()), (Epoch(7), Some((NodeId(2), Epoch(7)))));
        gate.set(&topology(WriteGate::Draining { primary: NodeId(2), epoch: Epoch(7) }, 2));
        assert!(gate.enter().is_none());
        assert!(!gate.still_open(Epoch(7)));
        assert_eq!(gate.drain_state(), (Revision(2), 1));
        drop(passage);
        assert_eq!(gate.drain_state(), (Revision(2), 0));
    }

    #[test]
    fn inv_9_the_primary_node_itself_needs_its_lease() {
        let lease = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&lease);
        let gate = Gate::new(NodeId(2), Arc::new(move || asked.load(SeqCst)));
        gate.set(&topology(OPEN_AT_2, 1));
        assert!(gate.enter().is_none());
        lease.store(true, SeqCst);
        assert!(gate.enter().is_some());
    }

    #[test]
    fn a_connection_of_an_older_epoch_may_not_begin() {
        let gate = Gate::new(NodeId(1), Arc::new(|| true));
        gate.set(&topology(OPEN_AT_2, 1));
        assert!(gate.still_open(Epoch(7)));
        gate.set(&topology(WriteGate::Open { primary: NodeId(2), epoch: Epoch(8) }, 2));
        assert!(!gate.still_open(Epoch(7)));
    }
}
