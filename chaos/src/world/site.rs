//! One datacenter of a world.

use super::cgroup::Cgroup;
use super::clock::SiteClock;
use super::disk::Disk;
use super::limits::Limits;
use super::namespace::Namespace;
use super::runtime::SiteRuntime;
use super::wan::Place;
use anyhow::Result;
use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Parts of a node's data that can be on a file system of their own. Known beforehand, so that whoever takes a world down finds them.
pub(super) const VOLUMES: [&str; 2] = ["pg_wal", "consensus"];

/// Never on the disk that faults are injected into.
pub(super) fn volume(logs: &Path, part: &str) -> PathBuf {
    logs.join(format!("{part}.img"))
}

/// Where a volume's image is mounted.
#[must_use]
pub fn mount_point(image: &Path) -> PathBuf {
    image.with_extension("mount")
}

/// A datacenter: where processes start, and how all of them stop at once. Clones are the same datacenter.
#[derive(Clone, Debug)]
pub struct Site {
    pub(super) name: String,
    pub(super) index: usize,
    pub(super) address: Ipv4Addr,
    pub(super) dir: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) namespace: Namespace,
    pub(super) cgroup: Cgroup,
    pub(super) limits: Limits,
    pub(super) disk: Option<Arc<Disk>>,
    pub(super) clock: Option<Arc<SiteClock>>,
    pub(super) runtime: Arc<SiteRuntime>,
}

impl Site {
    /// `dc1`, `dc2`, …
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// `10.99.<n>.1`, `n` from 1.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where the datacenter's processes keep their data; on its own disk, where the world has disks.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Outlives the world, and is never on the disk that faults are injected into.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The image of a small file system for one part of a node's data, of [`VOLUMES`]; it is mounted beside it, on [`mount_point`].
    #[must_use]
    pub fn volume(&self, part: &str) -> PathBuf {
        volume(&self.logs, part)
    }

    /// A command that starts in the datacenter's network and cgroup, with its clocks. It is in a process group of its own, which Ctrl-C
    /// in the harness's terminal does not reach. It fails to start once the world has gone down.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.process_group(0);
        self.cgroup.place(&mut command);
        self.limits.place(&mut command);
        self.namespace.place(&mut command);
        if let Some(clock) = &self.clock {
            clock.place(&mut command);
        }
        command
    }

    /// The words that open a shell in the datacenter, from any terminal of this machine.
    #[must_use]
    pub fn shell_line(&self) -> String {
        let (procs, net) = (self.cgroup.path().join("cgroup.procs"), self.namespace.path());
        format!("sh -c 'echo $$ > {} && cd {} && exec nsenter --net={} bash'", procs.display(), self.dir.display(), net.display())
    }

    /// Stops every process, without their notice.
    ///
    /// # Errors
    /// When not all stopped within five seconds: one that waits for the disk stops when the disk answers.
    pub fn freeze(&self) -> Result<()> {
        self.cgroup.freeze()
    }

    /// # Errors
    /// When the world has gone down.
    pub fn thaw(&self) -> Result<()> {
        self.cgroup.thaw()
    }

    /// SIGKILL to every process at once, and waits for their end. What they wrote stays; see [`Site::power_loss`].
    ///
    /// # Errors
    /// When some did not end within ten seconds.
    pub fn kill(&self) -> Result<()> {
        let pids = self.pids();
        self.cgroup.kill()?;
        self.cgroup.wait_gone(&pids)
    }

    /// Power loss of the whole datacenter: every process dies without seeing an error of its disk, and what was not flushed is lost; with
    /// `torn`, some of it is kept, as [`Disk::crash_torn`] says. How many blocks were lost. The disk needs [`Disk::remount`] then.
    ///
    /// # Errors
    /// When some processes did not end within ten seconds.
    pub fn power_loss(&self, torn: Option<u64>) -> Result<u64> {
        let Some(disk) = &self.disk else {
            return self.kill().map(|()| 0);
        };
        let pids = self.pids();
        disk.hang(true);
        self.cgroup.kill()?;
        let lost = torn.map_or_else(|| disk.crash(), |seed| disk.crash_torn(seed))?;
        self.cgroup.wait_gone(&pids)?;
        disk.unmount()?;
        Ok(lost)
    }

    /// Starves its processes: together they get the processor time of so many cores, at least a hundredth; `None` ends it.
    ///
    /// # Errors
    /// When the machine does not let cgroups limit processor time.
    pub fn limit_cpu(&self, cores: Option<f64>) -> Result<()> {
        self.limits.cpu(cores)
    }

    /// Lets its processes have so many bytes together, page cache included; beyond it the kernel reclaims, then kills. `None` ends it.
    ///
    /// # Errors
    /// When the machine does not let cgroups limit memory, or they hold more than that already and cannot give it back.
    pub fn limit_memory(&self, bytes: Option<u64>) -> Result<()> {
        self.limits.memory(bytes)
    }

    /// Its disk; `None` in a world without.
    #[must_use]
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_deref()
    }

    /// The clocks of its processes; `None` in a world without.
    #[must_use]
    pub fn clock(&self) -> Option<&SiteClock> {
        self.clock.as_deref()
    }

    /// Every process of the datacenter.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.cgroup.pids()
    }

    /// The datacenter's clients.
    #[must_use]
    pub fn runtime(&self) -> &SiteRuntime {
        &self.runtime
    }
}

impl Place for &Site {
    fn index(&self) -> usize {
        self.index
    }
}
