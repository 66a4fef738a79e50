//! What the kernel can deny to processes: time on the CPU, memory, file descriptors.
//!
//! Controllers of cgroup v1 and v2 are both found in the field, and a mixture of them. With v2 the datacenter's own group is
//! limited; with v1 the processes move into a group of the fault's own in that controller's hierarchy, and back when it heals.

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs;
use std::path::{Path, PathBuf};

/// A limit in force on a group of processes; [`Limit::lift`] ends it.
pub struct Limit {
    /// Where the limit and its counters are.
    group: PathBuf,
    /// v2: file and value to write back. v1: none, the group goes away.
    restore: Option<(PathBuf, String)>,
    /// v1: where the processes go back to.
    home: Option<PathBuf>,
}

impl Limit {
    /// Let `pids` together run `share` of one CPU.
    ///
    /// # Errors
    /// The machine has no cpu controller, or it refuses.
    pub fn cpu(name: &str, pids: &[u32], share: f64) -> Result<Limit> {
        // Short periods, as a busy hypervisor has them; the kernel takes no quota below 1 ms.
        let (period, quota) = (20_000u64, ((20_000.0 * share) as u64).max(1_000));
        Limit::set(
            "cpu",
            name,
            pids,
            ("cpu.max", &format!("{quota} {period}")),
            &[("cpu.cfs_period_us", &period.to_string()), ("cpu.cfs_quota_us", &quota.to_string())],
        )
    }

    /// Let `pids` together hold `bytes` from now on, page cache included.
    ///
    /// # Errors
    /// The machine has no memory controller, or it refuses.
    pub fn memory(name: &str, pids: &[u32], bytes: u64) -> Result<Limit> {
        Limit::set("memory", name, pids, ("memory.max", &bytes.to_string()), &[("memory.limit_in_bytes", &bytes.to_string())])
    }

    fn set(controller: &str, name: &str, pids: &[u32], v2: (&str, &str), v1: &[(&str, &str)]) -> Result<Limit> {
        let first = *pids.first().context("no processes to limit")?;
        if let Some(group) = group_v2(first)
            && group.join(v2.0).exists()
        {
            let file = group.join(v2.0);
            let before = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            write(&file, v2.1)?;
            return Ok(Limit { group, restore: Some((file, before.trim().to_owned())), home: None });
        }
        let Some(root) = mounted(&format!("cgroup:{controller}")) else {
            bail!("this machine offers no {controller} controller of cgroups (see /proc/cgroups)");
        };
        let group = root.join(format!("chaos-{}-{name}", std::process::id()));
        fs::create_dir_all(&group).with_context(|| format!("cannot create {}", group.display()))?;
        let limit = Limit { group: group.clone(), restore: None, home: Some(root) };
        let set = v1.iter().try_for_each(|(file, value)| write(&group.join(file), value));
        let moved = set.and_then(|()| move_into(&group, pids));
        if moved.is_err() {
            let _ = limit.lift();
        }
        moved.map(|()| limit)
    }

    /// One figure of the group's counters, as in `("cpu.stat", "nr_throttled")`; a file with a bare number has no key.
    pub fn counter(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.group.join(file)).ok()?;
        if key.is_empty() {
            return text.trim().parse().ok();
        }
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    }

    /// End it. Safe to call again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn lift(&self) -> Result<()> {
        if let Some((file, before)) = &self.restore {
            return write(file, before);
        }
        let Some(home) = self.home.as_ref().filter(|_| self.group.exists()) else { return Ok(()) };
        // A process that forks while its siblings are moved leaves a child behind: look again until nobody is left.
        for _ in 0..50 {
            let left = members(&self.group);
            if left.is_empty() {
                break;
            }
            move_into(home, &left)?;
        }
        fs::remove_dir(&self.group).with_context(|| format!("cannot remove {}", self.group.display()))
    }
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value} to {}", file.display()))
}

fn members(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn move_into(group: &Path, pids: &[u32]) -> Result<()> {
    for pid in pids {
        let moved = fs::write(group.join("cgroup.procs"), pid.to_string());
        // One that ended meanwhile need not move.
        if let Err(error) = moved
            && error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error())
        {
            return Err(error).with_context(|| format!("cannot move process {pid} into {}", group.display()));
        }
    }
    Ok(())
}

/// Directory of the v2 group that `pid` is in.
pub(super) fn group_v2(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    Some(mounted("cgroup2")?.join(path))
}

/// Where `cgroup2`, or `cgroup:<controller>` of version 1, is mounted.
fn mounted(what: &str) -> Option<PathBuf> {
    let (kind, controller) = what.split_once(':').unwrap_or((what, ""));
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let fits = *fields.get(2)? == kind && (controller.is_empty() || fields.get(3)?.split(',').any(|o| o == controller));
        fits.then(|| PathBuf::from(fields[1]))
    })
}

/// Let `pid` open no more than `descriptors`; those that it has stay. Returns the limit it had.
///
/// # Errors
/// It ended.
pub fn descriptors(pid: u32, descriptors: Option<u64>) -> Result<Option<u64>> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
    let hard = hard_limit(pid)?;
    let before = prlimit(Some(process), Resource::Nofile, Rlimit { current: descriptors, maximum: hard });
    Ok(before.with_context(|| format!("cannot limit the descriptors of process {pid}"))?.current)
}

/// The hard limit, which stays.
fn hard_limit(pid: u32) -> Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).with_context(|| format!("process {pid} has ended"))?;
    let line = text.lines().find(|l| l.starts_with("Max open files")).context("no line for open files in /proc")?;
    Ok(line.split_whitespace().nth(4).and_then(|hard| hard.parse().ok()))
}

/// Descriptors that `pid` has open.
pub fn open_descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}
