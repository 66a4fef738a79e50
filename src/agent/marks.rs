//! When this process applied what: the only bridge between the replicated state and this node's clock (INV-3, INV-9).
//!
//! The consensus layer calls [`Marks::applied`] synchronously with each applied entry, so that a wait counts from the moment of
//! application and not from the moment somebody looked.

use crate::cluster::{ClusterState, Phase, PlannedChange};
use crate::ha::LeaseWatch;
use crate::telemetry::Clock;
use crate::types::{Epoch, Millis};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Instants at which this process applied changes.
#[derive(Debug)]
pub struct Marks {
    clock: Clock,
    inner: Mutex<Inner>,
}

/// What a decision's patience counts from.
type Stage = (Epoch, Phase, Option<PlannedChange>);

#[derive(Debug, Default)]
struct Inner {
    lease: LeaseWatch,
    stage: Option<(Stage, Millis)>,
    /// Newest instant at which the state was steady with a lease renewal: writes were possible.
    writable_last: Millis,
    renewals: (Epoch, u64),
}

/// The instants that a decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instants {
    pub lease_seen: Millis,
    pub phase_since: Millis,
    pub writable_last: Millis,
}

impl Marks {
    /// Nothing applied yet.
    #[must_use]
    pub fn new(clock: Clock) -> Marks {
        Marks { clock, inner: Mutex::default() }
    }

    /// One entry was applied, or a snapshot was installed.
    pub fn applied(&self, state: &ClusterState) {
        let now = self.clock.now();
        let mut inner = self.lock();
        inner.lease.applied(state.lease, now);
        let stage = (state.epoch, state.phase, state.change);
        if inner.stage.is_none_or(|(known, _)| known != stage) {
            inner.stage = Some((stage, now));
        }
        let renewals = (state.lease.epoch, state.lease.seq);
        if matches!(state.phase, Phase::Steady { .. }) && state.lease.holder.is_some() && renewals != inner.renewals {
            inner.writable_last = now;
        }
        inner.renewals = renewals;
    }

    /// The instants as of `now`.
    #[must_use]
    pub fn instants(&self, now: Millis) -> Instants {
        let inner = self.lock();
        Instants {
            lease_seen: inner.lease.since(now),
            phase_since: inner.stage.map_or(now, |(_, at)| at),
            writable_last: inner.writable_last,
        }
    }

    /// A panic elsewhere leaves four plain values that are still true.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
