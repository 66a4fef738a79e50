//! Time as the pure core sees it: an argument, never a clock.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Milliseconds on the deciding process's own monotonic clock (CLOCK_BOOTTIME). Never replicated, never compared between
/// processes (INV-3): clocks may cost availability, never safety.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// Time since `earlier`, zero when `earlier` lies in the future.
    #[must_use]
    pub fn since(self, earlier: Millis) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This instant moved forward by `d` (whole milliseconds, saturating).
    #[must_use]
    pub fn after(self, d: Duration) -> Millis {
        Millis(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
}
