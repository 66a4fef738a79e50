//! What the kernel denies to processes, and how often it did. Limits on a whole datacenter are the world's; those on one process, and
//! the kernel's counters, are here.
//!
//! Controllers of cgroup v1 and v2 are both found in the field, and a mixture of them: whichever a process is under is asked.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs;
use std::path::PathBuf;

/// A counter of the groups that `pid` is in: file and key under version 2, the same under version 1; an empty key is a file with a bare
/// number. As in `("cpu", ("cpu.stat", "nr_throttled"), ("cpu.stat", "nr_throttled"))`.
pub fn counter(pid: u32, controller: &str, new: (&str, &str), old: (&str, &str)) -> Option<u64> {
    let (group, (file, key)) = match group_v1(pid, controller).filter(|group| group.join(old.0).exists()) {
        Some(group) => (group, old),
        None => (group_v2(pid)?, new),
    };
    let text = fs::read_to_string(group.join(file)).ok()?;
    if key.is_empty() {
        return text.trim().parse().ok();
    }
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// Directory of the group of version 2 that `pid` is in.
pub(super) fn group_v2(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    Some(mounted("cgroup2", "")?.join(path))
}

/// Directory of the group of `controller` that `pid` is in, where that controller is still of version 1.
fn group_v1(pid: u32, controller: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|c| c == controller).then(|| path.trim_start_matches('/').to_owned())
    })?;
    Some(mounted("cgroup", controller)?.join(path))
}

/// Where a hierarchy is mounted.
fn mounted(kind: &str, controller: &str) -> Option<PathBuf> {
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
