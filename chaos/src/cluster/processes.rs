//! Processes of a datacenter, found without touching its disk, which may hang: by its cgroup and /proc.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;

/// One process, as /proc tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// Name of its program: `trilithon`, `postgres`.
    pub program: String,
    /// Its words, or the title that it gave itself: `postgres: walreceiver streaming 0/5000060`.
    pub title: String,
}

impl Process {
    /// `None` where it has ended, also where nobody has taken note of that.
    pub fn read(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (program, state, parent) = parse(&stat)?;
        if state == 'Z' || state == 'X' {
            return None;
        }
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_owned();
        Some(Process { pid, parent, program, title })
    }

    /// All of these that live.
    pub fn read_all(pids: &[u32]) -> Vec<Process> {
        pids.iter().filter_map(|pid| Process::read(*pid)).collect()
    }
}

/// The program's name stands in brackets and may itself contain any of them.
fn parse(stat: &str) -> Option<(String, char, u32)> {
    let (head, tail) = (stat.find('(')?, stat.rfind(')')?);
    let mut rest = stat.get(tail + 1..)?.split_whitespace();
    let state = rest.next()?.chars().next()?;
    Some((stat.get(head + 1..tail)?.to_owned(), state, rest.next()?.parse().ok()?))
}

/// Send a signal to a process that was found a moment ago.
///
/// # Errors
/// It is not there any more.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).context("zero is no process")?;
    kill_process(target, signal).with_context(|| format!("cannot send {signal:?} to process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_brackets() {
        assert_eq!(parse("7 (a) b) S 1 7 7 0"), Some(("a) b".to_owned(), 'S', 1)));
    }
}
