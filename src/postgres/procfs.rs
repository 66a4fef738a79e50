//! What /proc tells about the processes of one data directory. Linux only, as is the rest of process control here.
//!
//! A killed postmaster leaves its backends behind: they hold the shared memory, and may still write. Until all of them are gone the
//! directory counts as busy, neither stopped nor fit to be started.

use super::error::Error;
use super::layout::Layout;
use super::lifecycle::POLL;
use rustix::process::Pid;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A System V shared memory segment. The id alone may belong to another server after a restart of the machine; the key is made
/// from the data directory's inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SharedMemory {
    key: u32,
    id: u64,
}

impl SharedMemory {
    /// The kernel prints keys with a sign, PostgreSQL without.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn parse(key: Option<&str>, id: Option<&str>) -> Option<SharedMemory> {
        Some(SharedMemory { key: key?.parse::<i64>().ok()? as u32, id: id?.parse().ok()? })
    }

    /// Processes attached to it, as the kernel counts them.
    pub fn attached(self) -> u64 {
        let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        self.attached_in(&table)
    }

    fn attached_in(self, table: &str) -> u64 {
        let rows = table.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
        let mut ours = rows.filter(|r| SharedMemory::parse(r.first().copied(), r.get(1).copied()) == Some(self));
        ours.next().and_then(|r| r.get(6)?.parse().ok()).unwrap_or(0)
    }
}

/// The lines of postmaster.pid that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub pid: i32,
    /// Key and id of the shared memory segment by which PostgreSQL itself recognises survivors.
    pub shared_memory: Option<SharedMemory>,
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
        let mut segment = lines.get(6).copied().unwrap_or_default().split_whitespace();
        let shared_memory = SharedMemory::parse(segment.next(), segment.next());
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
    is_program(pid, "postgres")
}

fn is_program(pid: i32, name: &str) -> bool {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(exe) => exe.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name)),
        Err(_) => fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == name),
    }
}

/// Programs that write into a data directory and are no servers. They outlive a node that is killed.
const TOOLS: [&str; 3] = ["initdb", "pg_basebackup", "pg_rewind"];
/// Looks, [`POLL`] apart, before a killed one counts as stuck: it goes as soon as the disk lets it.
const TOOLS_LOOKS: u32 = 2000;

/// Those that work on the data directory, or on the copy that is to replace it. Zombies have no command line any more.
pub(super) fn tools_of(layout: &Layout) -> Vec<i32> {
    let ours = [layout.pgdata.clone(), layout.incoming()];
    let works_on_ours = |pid: &i32| {
        let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        raw.split(|byte| *byte == 0).any(|word| ours.iter().any(|path| path.as_os_str().as_bytes() == word))
    };
    let tools = all().filter(|pid| TOOLS.iter().any(|name| is_program(*pid, name))).filter(works_on_ours);
    tools.chain(all().filter(|pid| prepares(*pid, &layout.incoming()))).collect()
}

/// A single-user server on a database that is being initialised. One on the data directory may be somebody's who repairs it.
fn prepares(pid: i32, incoming: &Path) -> bool {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let has = |word: &[u8]| raw.split(|byte| *byte == 0).any(|w| w == word);
    is_program(pid, "postgres") && has(b"--single") && has(incoming.as_os_str().as_bytes())
}

/// Ends what a killed predecessor of this process left at work: it would go on writing beside whatever is done next.
pub(super) fn end_tools(layout: &Layout) -> Result<(), Error> {
    for _look in 0..TOOLS_LOOKS {
        let pids = tools_of(layout);
        if pids.is_empty() {
            return Ok(());
        }
        pids.iter().for_each(|pid| signal(*pid, rustix::process::Signal::KILL));
        std::thread::sleep(POLL);
    }
    Err(Error::Orphans { pids: tools_of(layout), path: layout.pgdata.clone() })
}

/// The command line of `pid`, its words joined by blanks.
pub(super) fn command_line(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ")
}

/// Processor time that a process has used, in ticks.
pub(super) fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks; user and system time are the 12th and 13th field after it.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Every postgres process that works in `pgdata`, postmaster and backends alike. Zombies hold nothing and do not count.
pub(super) fn processes_in(pgdata: &Path) -> Vec<i32> {
    all().filter(|pid| works_in(*pid, pgdata)).collect()
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()))
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
        let segment = SharedMemory { key: 12_345_678, id: 42 };
        assert_eq!((parsed.pid, parsed.shared_memory, parsed.status.as_deref()), (123, Some(segment), Some("ready")));
        let early = PidFile::parse("123\n/data\n1700000000\n").unwrap();
        assert_eq!((early.shared_memory, early.status), (None, None));
        assert_eq!(PidFile::parse("-17\n/data\n"), None, "single-user mode is no postmaster");
    }

    #[test]
    fn a_segment_of_another_server_with_the_same_id_is_not_ours() {
        let head = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid\n";
        let ours = SharedMemory::parse(Some("4294967295"), Some("42")).unwrap();
        let row = |key: &str| format!("{head}{key:>10}         42   600                    56  4711  4712      7   101   104\n");
        assert_eq!(ours.attached_in(&row("-1")), 7);
        assert_eq!(ours.attached_in(&row("99")), 0);
    }

    #[test]
    fn this_process_is_no_postgres() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!works_in(me, &std::env::current_dir().unwrap()));
    }

    #[test]
    fn a_tool_that_outlived_its_node_is_ended_and_another_directorys_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Layout::new(&dir.path().join("a"), None), Layout::new(&dir.path().join("b"), None));
        let program = dir.path().join("pg_rewind");
        fs::copy("/bin/sh", &program).unwrap();
        let mut tool = std::process::Command::new(&program);
        tool.args(["-c", "read forever", "-D"]).arg(&theirs.pgdata).stdin(std::process::Stdio::piped());
        let mut child = tool.spawn().unwrap();
        end_tools(&ours).unwrap();
        assert_eq!(tools_of(&theirs), [i32::try_from(child.id()).unwrap()]);
        end_tools(&theirs).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
