//! How much of the machine a datacenter's processes get: processor time and memory.
//!
//! With cgroup version 2 the limits are files of the datacenter's own cgroup, where the machine delegates these controllers; on machines
//! that still have them in version 1, each datacenter has a cgroup in those hierarchies as well.

use super::cgroup::Cgroup;
use super::manifest::{Manifest, Thing};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The kernel's default, in both versions.
const PERIOD_US: u64 = 100_000;
/// Less would be no starvation but a freeze, for which there is another word.
const CORES_MIN: f64 = 0.01;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Cpu,
    Memory,
}

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
        }
    }
}

/// Where the limits of one datacenter are written.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Of version 2.
    own: PathBuf,
    /// Of version 1, each with its `cgroup.procs`.
    old: Vec<(Controller, PathBuf, Arc<fs::File>)>,
}

impl Limits {
    /// For the site whose cgroup is `own`; `name` is unique on this machine.
    pub fn create(own: &Cgroup, name: &str, manifest: &mut Manifest) -> Result<Limits> {
        let mut old = Vec::new();
        for controller in [Controller::Cpu, Controller::Memory] {
            let Some(root) = mounted(controller) else { continue };
            let path = root.join(name);
            manifest.will_make(Thing::OldCgroup(path.clone()))?;
            // A container may see the old hierarchies without owning them; the limits are then missing, and say so when they are used.
            if fs::create_dir(&path).is_ok() {
                let procs = path.join("cgroup.procs");
                let procs = fs::OpenOptions::new().write(true).open(&procs).with_context(|| procs.display().to_string())?;
                old.push((controller, path, Arc::new(procs)));
            }
        }
        Ok(Limits { own: own.path().to_owned(), old })
    }

    /// Lets `command` start under them.
    pub fn place(&self, command: &mut Command) {
        for (_, _, procs) in &self.old {
            super::cgroup::start_in(command, procs);
        }
    }

    /// Processor time of so many cores; `None`: no limit.
    pub fn cpu(&self, cores: Option<f64>) -> Result<()> {
        let quota = cores.map(|cores| (cores.max(CORES_MIN) * PERIOD_US as f64) as u64);
        let new = quota.map_or("max".to_owned(), |quota| quota.to_string());
        let old = quota.map_or("-1".to_owned(), |quota| quota.to_string());
        self.write(Controller::Cpu, ("cpu.max", &format!("{new} {PERIOD_US}")), ("cpu.cfs_quota_us", &old))
    }

    /// So many bytes, page cache included; `None`: no limit. Version 2 kills what does not fit any more; version 1 refuses a limit below what
    /// it cannot take back, and gets the lowest that it accepts.
    pub fn memory(&self, bytes: Option<u64>) -> Result<()> {
        const TRIES: u32 = 16;
        let mut wanted = bytes;
        for _ in 0..TRIES {
            match (self.try_memory(wanted), wanted) {
                (Err(error), Some(refused)) if is_busy(&error) => wanted = Some(refused + refused / 4),
                (done, _) => return done,
            }
        }
        self.try_memory(wanted)
    }

    fn try_memory(&self, bytes: Option<u64>) -> Result<()> {
        let new = bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
        let old = bytes.map_or("-1".to_owned(), |bytes| bytes.to_string());
        self.write(Controller::Memory, ("memory.max", &new), ("memory.limit_in_bytes", &old))
    }

    fn write(&self, controller: Controller, new: (&str, &str), old: (&str, &str)) -> Result<()> {
        let (path, value) = match self.old.iter().find(|(this, _, _)| *this == controller) {
            Some((_, path, _)) => (path.join(old.0), old.1),
            None => (self.own.join(new.0), new.1),
        };
        fs::write(&path, value)
            .with_context(|| format!("{}: does this machine delegate the controller {}?", path.display(), controller.name()))
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy)
}

/// Hands what the machine delegates down to the cgroups within `world`.
pub(super) fn delegate(world: &Path) {
    for controller in [Controller::Cpu, Controller::Memory] {
        // Where it is not delegated to us there is nothing to hand down, and the limits say so when they are used.
        let _ = fs::write(world.join("cgroup.subtree_control"), format!("+{}", controller.name()));
    }
}

/// Where version 1 of a controller is mounted.
fn mounted(controller: Controller) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, path, "cgroup", options, ..] = fields.as_slice() else { return None };
        options.split(',').any(|option| option == controller.name()).then(|| PathBuf::from(path))
    })
}
