//! How a standby's server ended: one whose replay fails does so again at each start, wherever the stream goes on, and only a copy ends that.

use super::instance::Instance;
use super::lockout;
use super::process;
use super::tool::blocking;

/// Bytes of the log's end in which the last start is looked for.
const LOOKED_AT: u64 = 256 << 10;
/// What the postmaster says last of a startup process that failed, and why it ends itself.
const ENDED: &str = "LOG:  startup process (PID ";
const BY_SIGNAL: &str = " was terminated by signal ";
const BY_ERROR: &str = " exited with exit code ";
/// Sent from outside, or for want of memory (7) or room (25): they say nothing of the copy.
const SENT: [&str; 4] = ["9: ", "15: ", "7: ", "25: "];
/// What an error in the midst of a record brings with it.
const IN_REPLAY: &str = "CONTEXT:  WAL redo at ";
/// What ends it between two records, or before the first: this directory and its upstream do not go together.
const NEVER_FITS: [&str; 2] = ["FATAL:  according to history file, WAL location", "is not a child of this server's history"];
/// The machine lacks something, and a copy would lack it too. The last one ends PostgreSQL's hint to create a directory.
const NOT_THE_COPY: [&str; 9] = [
    "No space left on device",
    "Disk quota exceeded",
    "Input/output error",
    "Read-only file system",
    "Too many open files",
    "out of memory",
    "out of shared memory",
    "Cannot allocate memory",
    "before restarting the server",
];

impl Instance {
    /// Why the replay of WAL ended the last server, if it did and no want of the machine's explains it.
    pub async fn replay_failure(&self) -> Option<String> {
        let layout = self.layout.clone();
        let log = blocking(move || process::log_end(&layout, LOOKED_AT)).await;
        replay_failure(&log)
    }
}

/// PURE: the words of the error that ended this log's last server in the midst of its replay, or how it ended where it had no time for words.
fn replay_failure(log: &str) -> Option<String> {
    let this_start = log.rfind(lockout::STARTS).map_or(log, |at| &log[at..]);
    let said = |line: &str, level: &str| line.split_once(level).map(|(_, words)| words.trim().to_owned());
    let ended = this_start.lines().rev().find_map(|line| said(line, ENDED).map(|words| format!("startup process (PID {words}")))?;
    let crashed = ended.split_once(BY_SIGNAL).is_some_and(|(_, signal)| !SENT.iter().any(|sent| signal.starts_with(sent)));
    let misfit = this_start.lines().rev().find(|line| NEVER_FITS.iter().any(|words| line.contains(words)));
    let failed = ended.contains(BY_ERROR) && (this_start.contains(IN_REPLAY) || misfit.is_some());
    if !(crashed || failed) || NOT_THE_COPY.iter().any(|words| this_start.contains(words)) {
        return None;
    }
    let why = this_start.lines().rev().find_map(|line| said(line, " PANIC:  "));
    // Sessions are told of the crash with a FATAL of their own; the one that is meant comes before the record that was replayed.
    let error = this_start.rfind(IN_REPLAY).and_then(|at| this_start[..at].lines().rev().find_map(|line| said(line, " FATAL:  ")));
    let misfit = misfit.and_then(|line| said(line, " FATAL:  "));
    Some(why.or(error).or(misfit).unwrap_or(ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTS: &str = "12:00 [7] LOG:  starting PostgreSQL 15.18 on x86_64\n";
    const ABORTED: &str = "12:01 [7] LOG:  startup process (PID 8) was terminated by signal 6: Aborted\n";
    const EXITED: &str = "12:01 [7] LOG:  startup process (PID 8) exited with exit code 1\n";
    const IN_RECORD: &str = "12:01 [8] CONTEXT:  WAL redo at 0/4000060 for Heap/INSERT: off 9 flags 0x08\n";

    fn log(parts: &[&str]) -> Option<String> {
        replay_failure(&parts.concat())
    }

    #[test]
    fn a_failed_replay_is_told_with_its_words() {
        let panic = "12:01 [8] PANIC:  failed to add tuple\n";
        let session = "12:01 [9] postgres@postgres FATAL:  terminating connection because of crash of another server process\n";
        assert_eq!(log(&[STARTS, panic, IN_RECORD, ABORTED]).as_deref(), Some("failed to add tuple"));
        assert_eq!(
            log(&[STARTS, session, "12:01 [7] LOG:  startup process (PID 8) was terminated by signal 11: Segmentation fault\n"]).as_deref(),
            Some("startup process (PID 8) was terminated by signal 11: Segmentation fault")
        );
        let fatal = "12:01 [8] FATAL:  could not access status of transaction 9\n";
        let detail = "12:01 [8] DETAIL:  Could not open file \"pg_xact/0000\".\n";
        assert_eq!(
            log(&[STARTS, session, fatal, detail, IN_RECORD, session, EXITED]).as_deref(),
            Some("could not access status of transaction 9")
        );
        let misfit =
            "according to history file, WAL location 0/405F4A0 belongs to timeline 2, but previous recovered WAL file came from timeline 3";
        assert_eq!(log(&[STARTS, &format!("12:01 [8] FATAL:  {misfit}\n"), session, EXITED]).as_deref(), Some(misfit));
    }

    #[test]
    fn what_a_copy_would_not_mend_is_no_failed_replay() {
        assert_eq!(log(&[STARTS, ABORTED, STARTS]), None, "the start before");
        assert_eq!(log(&[STARTS, "12:01 [7] LOG:  received fast shutdown request\n"]), None);
        assert_eq!(log(&[STARTS, "12:01 [7] LOG:  startup process (PID 8) was terminated by signal 9: Killed\n"]), None);
        assert_eq!(
            log(&[STARTS, "12:01 [8] FATAL:  could not open file \"global/1\": Permission denied\n", EXITED]),
            None,
            "before any record"
        );
        let full = "12:01 [8] PANIC:  could not write to file \"pg_wal/xlogtemp.8\": No space left on device\n";
        assert_eq!(log(&[STARTS, full, ABORTED]), None);
        let missing = "12:01 [8] FATAL:  directory \"/fast\" does not exist\n\
                       12:01 [8] HINT:  Create this directory for the tablespace before restarting the server.\n";
        assert_eq!(log(&[STARTS, missing, IN_RECORD, EXITED]), None);
    }
}
