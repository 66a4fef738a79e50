//! All volatile facts that this node knows, stamped with its own clock: the newest observation of each member, its own included.

use super::marks::Marks;
use crate::ha::{NodeObservation, Observations, Seen, View};
use crate::types::{Millis, NodeId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The newest observation per member.
#[derive(Debug)]
pub struct ViewSource {
    marks: Arc<Marks>,
    observations: Mutex<Observations>,
    /// Bumped when an observation differs from the one before.
    version: watch::Sender<u64>,
}

impl ViewSource {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(marks: Arc<Marks>) -> ViewSource {
        ViewSource { marks, observations: Mutex::default(), version: watch::Sender::new(0) }
    }

    /// `observation` arrived at `at`.
    pub fn seen(&self, observation: NodeObservation, at: Millis) {
        let node = observation.node;
        let news = {
            let mut observations = self.lock();
            let news = observations.get(&node).is_none_or(|known| known.observation != observation);
            observations.insert(node, Seen { at, observation });
            news
        };
        if news {
            self.version.send_modify(|v| *v += 1);
        }
    }

    /// The peer's connection broke or came back: look again, it may prove something.
    pub fn poke(&self) {
        self.version.send_modify(|v| *v += 1);
    }

    /// Forget a member that has left.
    pub fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// Everything, as of `now`.
    #[must_use]
    pub fn view(&self, now: Millis) -> View {
        let instants = self.marks.instants(now);
        View {
            now,
            observations: self.lock().clone(),
            lease_seen: instants.lease_seen,
            phase_since: instants.phase_since,
            writable_last: instants.writable_last,
        }
    }

    /// Changes when an observation differs from the one before.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Observations> {
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
