//! Waiting, in slices: everything in a run that takes time notices Ctrl-C within a tenth of a second.

use crate::record::{At, RunClock};
use anyhow::{Result, bail};
use std::thread::sleep;
use std::time::Duration;

const SLICE: Duration = Duration::from_millis(100);

/// Somebody asked the run to end. Told apart from failures, because it is none, and no pass either.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The run's clock, and whether to go on.
pub struct Pace {
    pub clock: RunClock,
    stop: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Pace {
    /// `stop` says whether somebody asked for the end.
    pub fn new(clock: RunClock, stop: impl Fn() -> bool + Send + Sync + 'static) -> Pace {
        Pace { clock, stop: Box::new(stop) }
    }

    pub fn now(&self) -> At {
        self.clock.now()
    }

    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<()> {
        if (self.stop)() { bail!(Interrupted) } else { Ok(()) }
    }

    /// # Errors
    /// [`Interrupted`].
    pub fn sleep(&self, time: Duration) -> Result<()> {
        self.until(time, SLICE.min(time), || false).map(drop)
    }

    /// Look every `every` until `good`, for at most `limit`. `false`: it was not.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn until(&self, limit: Duration, every: Duration, mut good: impl FnMut() -> bool) -> Result<bool> {
        let end = self.now().after(limit);
        loop {
            self.check()?;
            if good() {
                return Ok(true);
            }
            let left = end.since(self.now());
            if left.is_zero() {
                return Ok(false);
            }
            sleep(every.clamp(Duration::from_millis(1), SLICE).min(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_wait_ends_with_its_condition_its_limit_or_an_interruption() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let pace = Pace::new(RunClock::start(), move || count.fetch_add(1, Ordering::Relaxed) > 20);
        assert!(pace.until(Duration::from_secs(9), SLICE, || true).unwrap());
        assert!(!pace.until(Duration::from_millis(5), Duration::from_millis(1), || false).unwrap());
        let error = pace.sleep(Duration::from_secs(60)).unwrap_err();
        assert!(error.is::<Interrupted>());
    }
}
