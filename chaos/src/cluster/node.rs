//! One datacenter's node: its processes, and what can be done to them from outside.
//!
//! A process that hangs in the kernel (its disk does) cannot be waited for: every wait here has a bound, and what did not end by
//! then is remembered as dying, so that nothing is started beside it.

use super::processes::{Process, send};
use super::system::{Part, System};
use crate::record::{At, RunClock};
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// A killed process is gone at once, unless the kernel holds it.
const GONE_LIMIT: Duration = Duration::from_secs(3);
/// A node promises to be through with its stop in fifteen seconds.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// As `RestartSec` of a service manager: what ends at once must not be started in a storm.
const RESTART_AFTER: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a process answered SIGTERM.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    With(ExitStatus),
    /// It goes on ending.
    NotWithin(Duration),
}

/// A process that ended although nobody asked it to.
#[derive(Clone, Debug)]
pub struct End {
    pub node: String,
    pub program: String,
    /// "exit status: 1"
    pub how: String,
}

struct Running {
    program: String,
    child: Child,
}

#[derive(Default)]
struct Processes {
    /// Should it run? Not after everything was killed on purpose.
    wanted: bool,
    /// Programs that were killed or stopped on purpose.
    held: Vec<String>,
    running: Vec<Running>,
    /// Killed, and not gone yet.
    dying: Vec<Running>,
    /// Ended by themselves, to be started again at this instant of the tender's clock.
    again: Option<At>,
}

pub struct Node {
    pub name: String,
    pub site: Site,
    /// It only votes: no Postgres.
    pub witness: bool,
    system: Arc<dyn System>,
    processes: Mutex<Processes>,
}

impl Node {
    pub(super) fn new(site: Site, system: Arc<dyn System>) -> Node {
        let (name, witness) = (site.name().to_owned(), system.is_witness(&site));
        Node { name, site, witness, system, processes: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Processes> {
        // What a panicking thread left is still a list of processes.
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its own state: consensus log, promise, secrets, `pgdata`.
    pub fn data_dir(&self) -> PathBuf {
        self.system.data_dir(&self.site)
    }

    /// All processes of the datacenter that live.
    pub fn processes(&self) -> Vec<Process> {
        Process::read_all(&self.site.pids())
    }

    /// Start what does not run. From now on it is started again when it ends by itself.
    ///
    /// # Errors
    /// A program cannot be started, or a killed one is held by the kernel.
    pub fn start(&self) -> Result<()> {
        let mut processes = self.lock();
        processes.wanted = true;
        processes.held.clear();
        self.start_missing(&mut processes)
    }

    fn start_missing(&self, processes: &mut Processes) -> Result<()> {
        processes.again = None;
        processes.running.retain_mut(|r| matches!(r.child.try_wait(), Ok(None)));
        processes.dying.retain_mut(|r| matches!(r.child.try_wait(), Ok(None)));
        if let Some(held) = processes.dying.first() {
            bail!("{}: the killed process {} has not ended; is its disk hanging?", self.name, held.child.id());
        }
        for mut program in self.system.programs(&self.site) {
            if processes.running.iter().any(|r| r.program == program.name) || processes.held.contains(&program.name) {
                continue;
            }
            let log = self.log(&program.name)?;
            let errors = log.try_clone().context("cannot share a log")?;
            // A group of its own: Ctrl-C at the terminal is for the harness, which ends the nodes in order.
            let command = program.command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
            let child = command.spawn().with_context(|| format!("{}: cannot start {}", self.name, program.name))?;
            processes.running.push(Running { program: program.name, child });
        }
        Ok(())
    }

    fn log(&self, program: &str) -> Result<File> {
        let path = self.site.logs().join(format!("{program}.log"));
        OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Start again what ended by itself a second ago. Returns what has ended since the last call.
    pub(super) fn tend(&self, clock: &RunClock) -> Option<End> {
        // Somebody is busy with this node: there will be a next time.
        let mut processes = self.processes.try_lock().ok()?;
        if !processes.wanted {
            return None;
        }
        if processes.again.is_some_and(|at| clock.now() >= at) {
            let _ = self.start_missing(&mut processes);
        }
        let ended = processes.running.iter_mut().find_map(|r| Some((r.program.clone(), r.child.try_wait().ok()??)));
        let (program, status) = ended?;
        processes.running.retain(|r| r.program != program);
        processes.again = Some(clock.now().after(RESTART_AFTER));
        Some(End { node: self.name.clone(), program, how: status.to_string() })
    }

    /// kill -9 of one program. A node's Postgres lives on; what was killed stays down until [`Node::start`].
    pub fn kill(&self, part: Part) {
        let mut killed = self.hold(part);
        for running in &mut killed {
            let _ = running.child.kill();
        }
        let mut processes = self.lock();
        processes.dying.extend(killed);
        wait_gone(&mut processes.dying);
    }

    /// From now on nobody starts this program again. Returns it, if it ran.
    fn hold(&self, part: Part) -> Vec<Running> {
        let (mut processes, program) = (self.lock(), self.system.program_of(part));
        processes.held.push(program.to_owned());
        let (held, others) = processes.running.drain(..).partition(|r| r.program == program);
        processes.running = others;
        held
    }

    /// kill -9 of everything in the datacenter. It stays down until [`Node::start`].
    pub fn kill_all(&self) {
        {
            let mut processes = self.lock();
            processes.wanted = false;
            let killed: Vec<Running> = processes.running.drain(..).collect();
            processes.dying.extend(killed);
        }
        let clock = RunClock::start();
        loop {
            let _ = self.site.kill();
            let gone = wait_gone(&mut self.lock().dying);
            if (gone && Process::read_all(&self.site.pids()).is_empty()) || clock.now() >= At(0).after(GONE_LIMIT) {
                return;
            }
            sleep(LOOK_EVERY);
        }
    }

    /// SIGTERM to what manages Postgres, and wait: it hands over what it has, and stops its Postgres.
    ///
    /// # Errors
    /// It did not run.
    pub fn stop(&self) -> Result<Ended> {
        let mut running = self.hold(Part::Node);
        for r in &running {
            let _ = send(r.child.id(), Signal::TERM);
        }
        let clock = RunClock::start();
        let mut first = None;
        loop {
            running.retain_mut(|r| match r.child.try_wait() {
                Ok(Some(status)) => {
                    first = Some(status);
                    false
                }
                Ok(None) | Err(_) => true,
            });
            if running.is_empty() {
                return first.map(Ended::With).with_context(|| format!("{} did not run", self.name));
            }
            if clock.now() >= At(0).after(STOP_LIMIT) {
                self.lock().dying.extend(running);
                return Ok(Ended::NotWithin(STOP_LIMIT));
            }
            sleep(LOOK_EVERY);
        }
    }

    /// SIGCONT of everything in the datacenter.
    pub fn thaw_all(&self) {
        for pid in self.site.pids() {
            // Who has ended needs no waking.
            let _ = send(pid, Signal::CONT);
        }
    }
}

/// Reap those that have ended; `true` when none is left within the bound.
fn wait_gone(dying: &mut Vec<Running>) -> bool {
    let clock = RunClock::start();
    loop {
        dying.retain_mut(|r| matches!(r.child.try_wait(), Ok(None)));
        if dying.is_empty() {
            return true;
        }
        if clock.now() >= At(0).after(GONE_LIMIT) {
            return false;
        }
        sleep(LOOK_EVERY);
    }
}
