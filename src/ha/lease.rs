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
    held: Option<(Epoch, Millis)>,
}

impl HolderLease {
    /// A renewal or acquisition for `epoch`, sent at `sent` (read before sending), was answered as committed.
    pub fn renewed(&mut self, epoch: Epoch, sent: Millis, settings: &Settings) {
        let deadline = sent.after(settings.lease_ttl());
        self.held = match self.held {
            Some((held, until)) if held == epoch => Some((epoch, until.max(deadline))),
            Some((held, until)) if held > epoch => Some((held, until)),
            Some(_) | None => Some((epoch, deadline)),
        };
    }

    /// Given back, or refused.
    pub fn drop_belief(&mut self) {
        self.held = None;
    }

    /// Instant at which serving must have stopped.
    #[must_use]
    pub fn deadline(&self) -> Option<(Epoch, Millis)> {
        self.held
    }

    /// The belief at `now`.
    #[must_use]
    pub fn belief(&self, now: Millis, settings: &Settings) -> LeaseBelief {
        match self.held {
            None => LeaseBelief::None,
            Some((epoch, deadline)) if now.after(settings.fencing_margin()) < deadline => LeaseBelief::Valid { epoch },
            Some((epoch, _)) => LeaseBelief::Ending { epoch },
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
