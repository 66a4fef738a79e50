//! A datacenter's own clocks: a small library, preloaded into its processes, adds what a file says to what the kernel says.
//!
//! It reaches the processes that [`super::Site::command`] starts, and their children unless these are given a new environment (as
//! Trilithon gives to Postgres). Static programs are not reached. Relative sleeps keep the kernel's pace, so a drifting process sleeps
//! rightly and measures wrongly, which is what leases must survive.

use super::external;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const SOURCE: &str = include_str!("clock_shim.c");
const COMPILE_DEADLINE: Duration = Duration::from_secs(30);
/// A clock that is off by more than this is broken, not drifting.
const DRIFT_PPM_MAX: i64 = 500_000;

/// Compiles the library; it serves every datacenter.
pub(super) fn compile(library: &Path) -> Result<()> {
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O2", "-Wall", "-x", "c", "-o"]).arg(library).arg("-");
    external::run(&mut command, SOURCE, COMPILE_DEADLINE).context("the clock shim").map(drop)
}

/// What the library reads: `struct control` of clock_shim.c.
#[derive(Debug, Default)]
struct Control {
    sequence: u64,
    wall_ns: i64,
    boot_ns: i64,
    drift_ppm: i64,
    base_ns: i64,
}

/// One datacenter's clocks; changes are seen at once by running processes.
#[derive(Debug)]
pub struct SiteClock {
    library: PathBuf,
    path: PathBuf,
    file: File,
    control: Mutex<Control>,
}

impl SiteClock {
    pub(super) fn create(library: &Path, path: &Path) -> Result<SiteClock> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let clock = SiteClock { library: library.to_owned(), path: path.to_owned(), file, control: Mutex::default() };
        clock.write(&mut clock.control())?;
        Ok(clock)
    }

    /// Gives these clocks to `command`.
    pub(super) fn place(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("CHAOS_CLOCK", &self.path);
    }

    /// The wall clock jumps: it is `seconds` ahead of the true one from now on, or behind.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_wall(&self, seconds: i64) -> Result<()> {
        let mut control = self.control();
        control.wall_ns = seconds.saturating_mul(1_000_000_000);
        self.write(&mut control)
    }

    /// From now on all clocks run faster by so many millionths, or slower: 50,000 is 5 %. What they have gained or lost stays.
    ///
    /// # Errors
    /// When it is more than half, or the file cannot be written.
    pub fn set_drift_ppm(&self, drift_ppm: i64) -> Result<()> {
        ensure!(drift_ppm.abs() <= DRIFT_PPM_MAX, "a drift of {drift_ppm} ppm is beyond ±{DRIFT_PPM_MAX}");
        let mut control = self.control();
        let now = boot_ns();
        let gained = i128::from(now - control.base_ns) * i128::from(control.drift_ppm) / 1_000_000;
        control.boot_ns += i64::try_from(gained).unwrap_or(0);
        control.base_ns = now;
        control.drift_ppm = drift_ppm;
        self.write(&mut control)
    }

    /// The clocks that count from boot jump forward: as in another time namespace, or after a suspend.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn advance_boot(&self, by: Duration) -> Result<()> {
        let mut control = self.control();
        control.boot_ns = control.boot_ns.saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX));
        self.write(&mut control)
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sequence is odd meanwhile, so that no reader takes half of it.
    fn write(&self, control: &mut Control) -> Result<()> {
        let fields = [control.wall_ns, control.boot_ns, control.drift_ppm, control.base_ns].map(i64::to_ne_bytes).concat();
        let at = |bytes: &[u8], offset| self.file.write_all_at(bytes, offset).with_context(|| self.path.display().to_string());
        at(&(control.sequence + 1).to_ne_bytes(), 0)?;
        at(&fields, 8)?;
        control.sequence += 2;
        at(&control.sequence.to_ne_bytes(), 0)
    }
}

impl Drop for SiteClock {
    fn drop(&mut self) {
        // Not truncated: a process that still maps it would be killed by its next look at a clock.
        let _ = fs::remove_file(&self.path);
    }
}

fn boot_ns() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}
