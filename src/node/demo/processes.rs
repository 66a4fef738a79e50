//! The processes of a demo: one `trilithon node` for each datacenter, and what that starts.
//!
//! A datacenter's processes are recognised by their working directory ([`super::source`]), so a kill takes all of them at
//! once, orphans of a killed node too, and nothing else. Deliberately absent: any knowledge of what they do.
//!
//! Entry points: [`spawn`], [`kill_all`], [`stop_all`].

use super::plan::{Plan, Site};
use super::source;
use crate::telemetry::Clock;
use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Nodes hand over, stop Postgres and leave; longer than their own bound for a fast shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// A killed process is gone as soon as the kernel has freed its memory.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Start the node of `site`. Its own process group keeps the terminal's Ctrl-C from it: the supervisor stops it in order.
pub fn spawn(site: &Site) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find the running program")?;
    let log = OpenOptions::new().create(true).append(true).open(site.log_file());
    let log = log.with_context(|| format!("cannot write {}", site.log_file().display()))?;
    let child = Command::new(&program)
        .args(["node", "--config"])
        .arg(site.config_file())
        .current_dir(&site.dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log file")?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(false)
        .spawn();
    child.with_context(|| format!("cannot start {} for {}", program.display(), site.name))
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = as_pid(pid) {
        // It may have ended in this moment, which is what was wanted.
        let _ = kill_process(pid, signal);
    }
}

/// kill -9 everything that works in `dir`, until nothing does; an error names what would not die.
pub async fn kill_all(dir: &Path) -> anyhow::Result<usize> {
    let clock = Clock::default();
    let deadline = clock.now().after(KILL_TIMEOUT);
    let mut killed = std::collections::BTreeSet::new();
    loop {
        // Again and again: a process may have forked between the look and the kill.
        let alive = source::processes_of(dir);
        if alive.is_empty() {
            return Ok(killed.len());
        }
        anyhow::ensure!(clock.now() < deadline, "processes {alive:?} of {} survive kill -9; look at them with ps", dir.display());
        for pid in alive {
            signal(pid, Signal::KILL);
            killed.insert(pid);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// SIGTERM to the nodes, time to leave in order, then kill -9 for what remains.
pub async fn stop_all(plan: &Plan, nodes: &[u32]) -> anyhow::Result<()> {
    let clock = Clock::default();
    let deadline = clock.now().after(STOP_TIMEOUT);
    for pid in nodes {
        signal(*pid, Signal::TERM);
    }
    while clock.now() < deadline && plan.sites.iter().any(|s| !source::processes_of(&s.dir).is_empty()) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    for site in &plan.sites {
        kill_all(&site.dir).await?;
    }
    Ok(())
}

/// The end of a node's log, for the person who has to find out why it ended.
#[must_use]
pub fn last_words(site: &Site, lines: usize) -> String {
    let text = fs::read_to_string(site.log_file()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
