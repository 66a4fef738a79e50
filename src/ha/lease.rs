//! The lease's arithmetic, on both sides (INV-9). No timestamps are exchanged; each side measures on its own clock.
//!
//! The holder counts from the moment *before* it sent the renewal; others count from the moment they *applied* it and wait the
//! ttl stretched by the clocks' drift. Every renewal that succeeded was committed, hence applied here, before the wait began: so
//! the holder's deadline lies, in real time, before the end of the wait.

use super::LeaseBelief;
use crate::cluster::{Lease, Settings};
use crate::types::{Epoch, Millis};

/// The holder's belief. Volatile: a restarted process starts with none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HolderLease {
    held: Option<Held>,
}

/// With the settings under which it was taken: a longer lease that was ordered since has a longer margin, and none of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    epoch: Epoch,
    fencing: Millis,
    deadline: Millis,
}

impl HolderLease {
    /// A renewal or acquisition for `epoch`, sent at `sent` (read before sending), was answered as committed.
    pub fn renewed(&mut self, epoch: Epoch, sent: Millis, settings: &Settings) {
        let fencing = sent.after(settings.lease_ttl().saturating_sub(settings.fencing_margin()));
        let new = Held { epoch, fencing, deadline: sent.after(settings.lease_ttl()) };
        let newer = |held: &Held| held.epoch > epoch || (held.epoch == epoch && held.deadline > new.deadline);
        self.held = self.held.filter(newer).or(Some(new));
    }

    /// Given back, or refused.
    pub fn drop_belief(&mut self) {
        self.held = None;
    }

    /// Instant at which serving must have stopped.
    #[must_use]
    pub fn deadline(&self) -> Option<(Epoch, Millis)> {
        self.held.map(|held| (held.epoch, held.deadline))
    }

    /// Instant at which the holder begins to fence itself.
    #[must_use]
    pub fn fencing(&self) -> Option<Millis> {
        self.held.map(|held| held.fencing)
    }

    /// The belief at `now`.
    #[must_use]
    pub fn belief(&self, now: Millis) -> LeaseBelief {
        match self.held {
            None => LeaseBelief::None,
            Some(Held { epoch, fencing, .. }) if now < fencing => LeaseBelief::Valid { epoch },
            Some(Held { epoch, .. }) => LeaseBelief::Ending { epoch },
        }
    }
}

/// What a member that is not the holder knows: when it applied the newest change of the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaseWatch {
    seen: Option<(Lease, Millis)>,
}

impl LeaseWatch {
    /// The state machine applied `lease` at `now`. Call it after each entry and once at start: after a restart the wait begins anew.
    pub fn applied(&mut self, lease: Lease, now: Millis) {
        if self.seen.is_none_or(|(known, _)| known != lease) {
            self.seen = Some((lease, now));
        }
    }

    /// When the newest change was applied here; `now` while nothing was.
    #[must_use]
    pub fn since(&self, now: Millis) -> Millis {
        self.seen.map_or(now, |(_, at)| at)
    }
}
