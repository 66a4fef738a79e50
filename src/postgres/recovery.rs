//! Recovery that cannot end: a copy whose missing WAL nobody has any more waits for ever, and looks like one that is merely slow.

use super::error::Error;
use super::instance::Instance;
use super::process::{self, lock};
use super::procfs;
use super::tool::blocking;
use crate::types::Millis;
use std::time::Duration;

/// PostgreSQL names the WAL segment that it replays in the title of its startup process. One that neither goes on to another segment
/// nor does any work for this long waits.
const STALLED_AFTER: Duration = Duration::from_secs(60);
const TITLE: &str = "startup recovering ";
/// A process that waits wakes up now and then: this much work, in clock ticks of a hundredth of a second, is none.
const IDLE_TICKS: u64 = 20;

/// What PostgreSQL says when this directory can never be started as a standby of its cluster again.
const HOPELESS: &[&str] = &[
    "is not a child of this server's history",
    "does not contain minimum recovery point",
    "WAL ends before end of online backup",
    "WAL ends before consistent recovery point",
    "could not locate a valid checkpoint record",
    "could not locate required checkpoint record",
];

/// The startup process when it was last seen to get on.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    segment: String,
    /// Its processor time, in ticks.
    worked: u64,
    since: Millis,
    stalled: bool,
}

impl Instance {
    /// Why the server that starts will never be up, if so. As of the last facts.
    #[must_use]
    pub fn stalled(&self) -> Option<String> {
        let seen = lock(&self.recovery).clone().filter(|seen| seen.stalled)?;
        Some(format!("its recovery waits for WAL after segment {}, which is nowhere to be had", seen.segment))
    }

    /// Look at the startup process of a server that is starting.
    pub(super) async fn watch_recovery(&self) {
        let pgdata = self.layout.pgdata.clone();
        let found = blocking(move || recovering(&pgdata)).await;
        let now = self.clock.now();
        let mut known = lock(&self.recovery);
        *known = found.map(|(segment, worked)| match known.take() {
            Some(before) if before.segment == segment && worked < before.worked + IDLE_TICKS => {
                let stalled = now.since(before.since) >= STALLED_AFTER;
                Recovery { stalled, ..before }
            }
            Some(_) | None => Recovery { segment, worked, since: now, stalled: false },
        });
    }

    /// It is up, or down: nothing waits.
    pub(super) fn forget_recovery(&self) {
        *lock(&self.recovery) = None;
    }

    /// The server ended while it started: can another try help?
    pub(super) async fn start_failed(&self) -> Error {
        let layout = self.layout.clone();
        let log = blocking(move || process::log_tail(&layout)).await;
        match HOPELESS.iter().find(|words| log.contains(**words)) {
            Some(words) => Error::NeedsClone(format!("PostgreSQL does not start: {words}")),
            None => Error::StartFailed { log },
        }
    }
}

/// The segment that the startup process of this directory replays, and the time it has worked.
fn recovering(pgdata: &std::path::Path) -> Option<(String, u64)> {
    procfs::processes_in(pgdata).into_iter().find_map(|pid| {
        let title = procfs::command_line(pid);
        let segment = title.split_once(TITLE)?.1.trim().to_owned();
        Some((segment, procfs::ticks(pid)?))
    })
}
