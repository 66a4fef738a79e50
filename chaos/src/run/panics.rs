//! Checker panics: no node's log tells of a panic of the program's own code. A panic costs a node, not data, and the node is started again:
//! nothing else in a run would show it.
//!
//! sled answers an input error of the disk by a panic of the thread that writes; the program ends then, as it must, and is not blamed.
//!
//! Nor does any tell of a member whose consensus log lacks what it had confirmed, unless a fault destroyed something: the leader gives it
//! all again, so that nothing else would show this either.

use super::logs;
use crate::record::{Outcome, Verdict};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// How the standard library begins to tell of one; the place in the code follows.
const PANIC: &str = "panicked at ";
/// In the places of a library whose panics are answered.
const ANSWERED: &str = "/sled-";
/// How openraft tells of a log that ends before what its member confirmed.
const LOG_LOST: &str = "follower log is reverted";
/// Lines that a verdict shows.
const SHOWN_MAX: usize = 10;

/// Judge the logs that were kept in `dir` of these datacenters. Consensus logs may be lost where a fault `destroyed` something.
pub fn check(dir: &Path, sites: &[&str], destroyed: bool) -> Verdict {
    let mut verdict = Verdict { checker: "panics".to_owned(), ..Verdict::default() };
    let mut unread = Vec::new();
    for site in sites {
        let path = logs::of(dir, site).join("node.log");
        match File::open(&path) {
            Ok(file) => {
                let lines = told(BufReader::new(file)).into_iter().filter(|line| !destroyed || line.contains(PANIC));
                verdict.witness.extend(lines.map(|line| format!("{site}: {line}")));
            }
            Err(error) => unread.push(format!("the log of {site} ({error})")),
        }
    }
    let panics = verdict.witness.iter().filter(|line| line.contains(PANIC)).count();
    let lost = verdict.witness.len() - panics;
    verdict.counts.extend([("panics".to_owned(), panics as u64), ("lost logs".to_owned(), lost as u64)]);
    (verdict.outcome, verdict.summary) = match (verdict.witness.len(), unread.is_empty()) {
        (0, true) => (Outcome::Passed, format!("the logs of {} nodes tell of none", sites.len())),
        (0, false) => (Outcome::Inconclusive, format!("could not be read: {}", unread.join(", "))),
        (_, _) => {
            (Outcome::Failed, format!("{panics} panics of the program's own code, {lost} consensus logs that lost what was confirmed"))
        }
    };
    verdict.witness.truncate(SHOWN_MAX);
    verdict
}

/// Lines that tell of a panic that nothing answers, or of a lost log. Logs of servers may hold any bytes.
fn told(log: impl std::io::BufRead) -> Vec<String> {
    let lines = log.split(b'\n').map_while(Result::ok).map(|line| String::from_utf8_lossy(&line).into_owned());
    let panicked = |line: &str| line.split_once(PANIC).is_some_and(|(_, place)| !place.contains(ANSWERED));
    lines.filter(|line| panicked(line) || line.contains(LOG_LOST)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_programs_own_is_told_and_one_that_is_answered_is_not() {
        let log = b"INFO all well\nthread 'agent' (7) panicked at src/agent/turn.rs:4:2:\nindex out of bounds\n\xff\n\
            thread 'raft-log' (9) panicked at /x/sled-0.34.7/src/pagecache/logger.rs:467:41:\n";
        assert_eq!(told(&log[..]), ["thread 'agent' (7) panicked at src/agent/turn.rs:4:2:"]);
    }

    #[test]
    fn a_log_that_is_not_there_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(logs::of(dir.path(), "dc1")).unwrap();
        let log = logs::of(dir.path(), "dc1").join("node.log");
        std::fs::write(&log, "INFO all well\n").unwrap();
        assert_eq!(check(dir.path(), &["dc1"], false).outcome, Outcome::Passed);
        assert_eq!(check(dir.path(), &["dc1", "dc2"], false).outcome, Outcome::Inconclusive);
        std::fs::write(&log, "thread 'x' panicked at src/ha/decide.rs:1:1:\n").unwrap();
        let verdict = check(dir.path(), &["dc1", "dc2"], true);
        assert_eq!((verdict.outcome, verdict.counts["panics"]), (Outcome::Failed, 1));
        std::fs::write(&log, " WARN conflict 4 < last matching T1-N1.7: follower log is reverted; this is allowed.\n").unwrap();
        assert_eq!(check(dir.path(), &["dc1"], true).outcome, Outcome::Passed, "an old copy was put back");
        let verdict = check(dir.path(), &["dc1"], false);
        assert_eq!((verdict.outcome, verdict.counts["panics"], verdict.counts["lost logs"]), (Outcome::Failed, 0, 1));
    }
}
