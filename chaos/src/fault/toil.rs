//! A thread that does one thing over and over while a fault is in force.

use anyhow::{Context as _, Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Told to end, or given up: the thread ends with its present turn.
pub struct Toil {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Lets a turn wait without outlasting the fault.
pub struct Rest(Arc<AtomicBool>);

impl Rest {
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// At most `time`; less when the fault ends.
    pub fn sleep(&self, time: Duration) {
        const STEP: Duration = Duration::from_millis(10);
        let mut left = time;
        while !left.is_zero() && !self.is_over() {
            let step = left.min(STEP);
            std::thread::sleep(step);
            left -= step;
        }
    }
}

impl Toil {
    /// Do `turn` over and over. It must return within a second or so of the fault's end.
    ///
    /// # Errors
    /// The machine has no thread left.
    pub fn begin(name: &str, mut turn: impl FnMut(&Rest) + Send + 'static) -> Result<Toil> {
        let stop = Arc::new(AtomicBool::new(false));
        let rest = Rest(Arc::clone(&stop));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !rest.is_over() {
                turn(&rest);
            }
        });
        Ok(Toil { stop, thread: Some(thread.context("no thread for a fault")?) })
    }

    /// End it, and wait for its last turn.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        ended.map_err(|_| anyhow!("a fault's thread panicked"))
    }
}

impl Drop for Toil {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
