//! What /proc tells about the processes of one data directory. Linux only, as is the rest of process control here.
//!
//! A killed postmaster leaves its backends behind: they hold the shared memory, and may still write. Until all of them are gone the
//! directory counts as busy, neither stopped nor fit to be started.

use rustix::process::Pid;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The lines of postmaster.pid that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub pid: i32,
    /// Key and id of the shared memory segment by which PostgreSQL itself recognises survivors.
    pub shared_memory: Option<u64>,
    /// `starting`, `ready`, `standby`, `stopping`; absent in the first moments.
    pub status: Option<String>,
}

impl PidFile {
    pub fn read(pgdata: &Path) -> Option<PidFile> {
        Self::parse(&fs::read_to_string(pgdata.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<PidFile> {
        let lines: Vec<&str> = text.lines().collect();
        // A standalone backend writes its pid negated.
        let pid = lines.first()?.trim().parse::<i32>().ok().filter(|p| *p > 0)?;
        let shared_memory = lines.get(6).and_then(|l| l.split_whitespace().nth(1)).and_then(|id| id.parse().ok());
        let status = lines.get(7).map(|l| l.trim().to_owned()).filter(|l| !l.is_empty());
        Some(PidFile { pid, shared_memory, status })
    }
}

/// Is `pid` a postgres process that works in `pgdata`? Compares directories by inode, so a renamed one still counts.
pub(super) fn works_in(pid: i32, pgdata: &Path) -> bool {
    let Ok(ours) = fs::metadata(pgdata) else { return false };
    is_postgres(pid) && fs::metadata(format!("/proc/{pid}/cwd")).is_ok_and(|c| c.dev() == ours.dev() && c.ino() == ours.ino())
}

fn is_postgres(pid: i32) -> bool {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(exe) => exe.file_name().is_some_and(|n| n.to_string_lossy().starts_with("postgres")),
        Err(_) => fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "postgres"),
    }
}

/// The command line of `pid`, its words joined by blanks.
pub(super) fn command_line(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ")
}

/// Every postgres process that works in `pgdata`, postmaster and backends alike. Zombies hold nothing and do not count.
pub(super) fn processes_in(pgdata: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    pids.filter(|pid| works_in(*pid, pgdata)).collect()
}

/// Processes attached to the shared memory segment `id`, as the kernel counts them.
pub(super) fn attached_to(id: u64) -> u64 {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let row = table.lines().skip(1).find(|l| l.split_whitespace().nth(1) == Some(&id.to_string()));
    row.and_then(|l| l.split_whitespace().nth(6)).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Sends `signal`; a process that is gone already is no error.
pub(super) fn signal(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Shields the postmaster from the kernel's out-of-memory killer; its backends set themselves back (see the environment it is
/// started with). Needs privileges; without them the usual odds stay.
pub(super) fn shield_from_oom_killer(pid: i32) {
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "-900");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files_are_read_at_every_stage_of_a_start() {
        let full = "123\n/data\n1700000000\n5432\n/run\n127.0.0.1\n  12345678    42\nready   \n";
        let parsed = PidFile::parse(full).unwrap();
        assert_eq!((parsed.pid, parsed.shared_memory, parsed.status.as_deref()), (123, Some(42), Some("ready")));
        let early = PidFile::parse("123\n/data\n1700000000\n").unwrap();
        assert_eq!((early.shared_memory, early.status), (None, None));
        assert_eq!(PidFile::parse("-17\n/data\n"), None, "single-user mode is no postmaster");
    }

    #[test]
    fn this_process_is_no_postgres() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!works_in(me, &std::env::current_dir().unwrap()));
    }
}
