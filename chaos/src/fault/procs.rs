//! Processes of a datacenter by what they do: found by command line among the members of its cgroup, stopped and killed by id.
//!
//! A process is remembered with its start time, so that a reused id is never taken for it.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::PathBuf;

/// What a process of a datacenter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `trilithon node`; Patroni.
    Node,
    /// `trilithon node`; etcd.
    Consensus,
    Postmaster,
    WalReceiver,
    WalSender,
    Checkpointer,
    Startup,
    /// Serves a client.
    Backend,
    Rewind,
    BaseBackup,
}

impl Kind {
    pub fn words(self) -> &'static str {
        match self {
            Kind::Node => "node process",
            Kind::Consensus => "consensus process",
            Kind::Postmaster => "postmaster",
            Kind::WalReceiver => "walreceiver",
            Kind::WalSender => "walsender",
            Kind::Checkpointer => "checkpointer",
            Kind::Startup => "startup process",
            Kind::Backend => "backend",
            Kind::Rewind => "pg_rewind",
            Kind::BaseBackup => "pg_basebackup",
        }
    }
}

/// A process, proof against reuse of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks since boot.
    started: u64,
    /// Its title or command line.
    pub title: String,
}

impl Process {
    /// `None` when it does not exist, or is only waiting to be reaped.
    pub fn of(pid: u32) -> Option<Process> {
        let (state, started) = stat(pid)?;
        (state != 'Z').then(|| Process { pid, started, title: command_line(pid).join(" ") })
    }

    pub fn is_gone(&self) -> bool {
        Process::of(self.pid).is_none_or(|now| now.started != self.started)
    }

    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| state == 'T' && started == self.started)
    }

    /// Nothing happens to one that is gone.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
            && !self.is_gone()
        {
            // It may end between the look and the signal.
            let _ = kill_process(pid, signal);
        }
    }
}

/// The processes of one datacenter, for threads that outlive the borrow of its site.
#[derive(Clone, Debug)]
pub struct Group(PathBuf);

impl Group {
    /// The one that `pid` is in.
    ///
    /// # Errors
    /// The process has ended, or the machine has no cgroups of version 2.
    pub fn of(pid: u32) -> Result<Group> {
        let group = super::limits::group_v2(pid).with_context(|| format!("process {pid} has no cgroup"))?;
        Ok(Group(group.join("cgroup.procs")))
    }

    pub fn find(&self, kind: Kind) -> Vec<Process> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        find(&pids, kind)
    }
}

/// Those among `pids` that are of `kind`.
pub fn find(pids: &[u32], kind: Kind) -> Vec<Process> {
    let found = pids.iter().filter(|pid| is_kind(&command_line(**pid), kind));
    found.filter_map(|pid| Process::of(*pid)).collect()
}

fn is_kind(words: &[String], kind: Kind) -> bool {
    let Some(first) = words.first() else { return false };
    let program = first.rsplit('/').next().unwrap_or(first);
    let title = first.strip_prefix("postgres: ");
    // Whatever the file of the program is called.
    let is_trilithon = || words.get(1).is_some_and(|word| word == "node");
    let worker = |name: &str| title.is_some_and(|t| t.split(": ").any(|part| part.starts_with(name)));
    match kind {
        // Patroni is a script: its interpreter comes first.
        Kind::Node => is_trilithon() || words.iter().take(2).any(|w| w.ends_with("/bin/patroni")),
        Kind::Consensus => is_trilithon() || program == "etcd",
        Kind::Postmaster => title.is_none() && program == "postgres",
        Kind::WalReceiver => worker("walreceiver"),
        Kind::WalSender => worker("walsender"),
        Kind::Checkpointer => worker("checkpointer"),
        Kind::Startup => worker("startup"),
        // A client's backend names where the client is: `host(port)` or `[local]`.
        Kind::Backend => title.is_some_and(|t| (t.contains(") ") || t.contains("[local]")) && !t.contains("walsender")),
        Kind::Rewind => program == "pg_rewind",
        Kind::BaseBackup => program == "pg_basebackup",
    }
}

fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).trim_end().to_owned()).collect()
}

/// State and start time; the name in parentheses may hold anything, so it is skipped from behind.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.rsplit_once(") ")?.1;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    // Field 22 of proc(5); `rest` begins with field 3.
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn processes_are_told_apart_by_their_command_lines() {
        let postmaster = words(&["/usr/lib/postgresql/15/bin/postgres", "-D", "/d/pgdata"]);
        assert!(is_kind(&postmaster, Kind::Postmaster) && !is_kind(&postmaster, Kind::Backend));
        let receiver = words(&["postgres: trilithon_n2: walreceiver streaming 0/16B3748"]);
        assert!(is_kind(&receiver, Kind::WalReceiver) && !is_kind(&receiver, Kind::Postmaster));
        let sender = words(&["postgres: trilithon_n1: walsender trilithon_replication 10.99.2.1(4711) streaming 0/16B3748"]);
        assert!(is_kind(&sender, Kind::WalSender) && !is_kind(&sender, Kind::Backend));
        let backend = words(&["postgres: trilithon_n1: postgres bank 10.99.1.1(4712) idle in transaction"]);
        assert!(is_kind(&backend, Kind::Backend) && !is_kind(&backend, Kind::WalSender));
        let node = words(&["/opt/trilithon", "node", "--config", "x.toml"]);
        assert!(is_kind(&node, Kind::Node) && is_kind(&node, Kind::Consensus));
        let patroni = words(&["/p/venv/bin/python3", "/p/venv/bin/patroni", "/d/dc1-patroni.yml"]);
        assert!(is_kind(&patroni, Kind::Node) && !is_kind(&patroni, Kind::Consensus));
        let etcd = words(&["/usr/bin/etcd", "--name", "dc1"]);
        assert!(is_kind(&etcd, Kind::Consensus) && !is_kind(&etcd, Kind::Node));
        assert!(is_kind(&words(&["postgres: trilithon_n3: startup recovering 000000020000000000000003"]), Kind::Startup));
    }

    #[test]
    fn this_process_is_alive_and_not_stopped() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(!me.is_gone() && !me.is_stopped());
    }
}
