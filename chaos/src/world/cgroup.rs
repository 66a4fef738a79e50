//! One datacenter's cgroup (version 2): everything that was started in it can be frozen, thawed and killed at once.

use super::external::wait_until;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A process that waits for a disk in the kernel stops only when the disk answers.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);
/// Whoever looks after orphans may take its time, and its failure to is not ours.
const REAP_DEADLINE: Duration = Duration::from_secs(3);
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Where version 2 is mounted; `None`: nowhere.
pub(super) fn mounted() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// `None`: there is no such process.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything; the state and the parent follow its last parenthesis.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Lets `command` start in the cgroup, of either version, whose `cgroup.procs` this is.
pub(super) fn start_in(command: &mut Command, procs: &Arc<fs::File>) {
    let procs = Arc::clone(procs);
    // SAFETY: between fork and exec this makes one system call on a descriptor that the closure owns.
    unsafe {
        command.pre_exec(move || {
            rustix::io::write(&*procs, b"0")?;
            Ok(())
        })
    };
}

#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    /// Open, so that a command can be placed without a way to fail.
    procs: Arc<fs::File>,
}

impl Cgroup {
    /// Makes the cgroup `path`, whose parent exists.
    ///
    /// # Errors
    /// When the kernel refuses, for instance in a container that sees its cgroups read-only.
    pub fn create(path: &Path) -> Result<Cgroup> {
        fs::create_dir(path).with_context(|| format!("cgroup {}; is the hierarchy writable here?", path.display()))?;
        Cgroup::open(path)
    }

    fn open(path: &Path) -> Result<Cgroup> {
        let procs = path.join("cgroup.procs");
        let procs = fs::OpenOptions::new().write(true).open(&procs).with_context(|| procs.display().to_string())?;
        Ok(Cgroup { path: path.to_owned(), procs: Arc::new(procs) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `command` start in it; starting fails once the cgroup is gone.
    pub fn place(&self, command: &mut Command) {
        start_in(command, &self.procs);
    }

    /// Stops every process in it, and returns when all have stopped.
    ///
    /// # Errors
    /// When not all have stopped in time; they will, as soon as what they wait for in the kernel answers.
    pub fn freeze(&self) -> Result<()> {
        self.write("cgroup.freeze", "1")?;
        if !wait_until(FREEZE_DEADLINE, || self.event("frozen")) {
            bail!("cgroup {}: processes {:?} had not all stopped after {FREEZE_DEADLINE:?}", self.path.display(), self.pids());
        }
        Ok(())
    }

    /// # Errors
    /// When the cgroup is gone.
    pub fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// Sends SIGKILL to every process in it, frozen or not.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Waits until no process is left, and nothing of those that were `known` before: Postgres takes a dead process that its parent has
    /// not looked after yet for a living one. Our own children stay ours to look after.
    ///
    /// # Errors
    /// When some are left after ten seconds, which then wait for something in the kernel.
    pub fn wait_gone(&self, known: &[u32]) -> Result<()> {
        self.wait_empty()?;
        wait_until(REAP_DEADLINE, || known.iter().all(|pid| parent(*pid).is_none_or(|parent| parent == std::process::id())));
        Ok(())
    }

    fn wait_empty(&self) -> Result<()> {
        if !wait_until(KILL_DEADLINE, || self.is_empty()) {
            bail!("cgroup {}: processes {:?} did not end within {KILL_DEADLINE:?} of SIGKILL", self.path.display(), self.pids());
        }
        Ok(())
    }

    /// Processes in it.
    pub fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills what is in the cgroup `path` and removes it; nothing where there is none.
    ///
    /// # Errors
    /// When processes do not end.
    pub fn remove(path: &Path) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        let cgroup = Cgroup::open(path)?;
        cgroup.kill()?;
        cgroup.wait_empty()?;
        fs::remove_dir(path).with_context(|| format!("cgroup {}", path.display()))
    }

    /// No process is left in the group at `path` or below it. So it is where there is no group.
    pub fn is_deserted(path: &Path) -> bool {
        Cgroup::open(path).map_or(true, |cgroup| cgroup.is_empty())
    }

    fn is_empty(&self) -> bool {
        !self.event("populated")
    }

    fn event(&self, name: &str) -> bool {
        let text = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        text.lines().any(|line| line.split_once(' ') == Some((name, "1")))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| path.display().to_string())
    }
}
