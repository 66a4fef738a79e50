//! The only place that reads clocks.

use crate::types::Millis;
use std::time::{Duration, SystemTime};

/// Reads CLOCK_BOOTTIME, which goes on while the machine sleeps; a frozen process sees the gap when it wakes.
/// `rate_permille` stretches it for tests of drifting clocks; 1000 in production.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    rate_permille: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { rate_permille: 1000 }
    }
}

impl Clock {
    /// Milliseconds since boot.
    #[must_use]
    pub fn now(&self) -> Millis {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let ms = u64::try_from(t.tv_sec).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1_000_000;
        Millis(ms * self.rate_permille / 1000)
    }

    /// Since boot, to the nanosecond, for durations that are shown and never decide.
    #[must_use]
    pub fn precise(&self) -> Duration {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
    }
}

/// Wall-clock time since 1970, for display only: it never decides.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
