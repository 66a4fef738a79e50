//! Recovery that cannot end: a copy whose missing WAL nobody has any more waits for ever, and looks like one that is merely slow.

use super::error::Error;
use super::instance::Instance;
use super::process;
use super::procfs::{self, PidFile};
use super::tool::blocking;
use std::time::Duration;
use tokio::time::sleep;

/// PostgreSQL names the WAL segment that it replays in the title of its startup process. Replaying one takes seconds at most; a title
/// that stands still for this long belongs to a process that waits.
const STALLED_AFTER: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const TITLE: &str = "startup recovering ";

/// What PostgreSQL says when this directory can never be started as a standby of its cluster again.
const HOPELESS: &[&str] = &[
    "is not a child of this server's history",
    "does not contain minimum recovery point",
    "WAL ends before end of online backup",
    "WAL ends before consistent recovery point",
    "could not locate a valid checkpoint record",
    "could not locate required checkpoint record",
];

impl Instance {
    /// Until the server that was just started accepts connections. It is stopped when its recovery can never end.
    pub async fn await_recovery(&self) -> Result<(), Error> {
        let mut segment: Option<String> = None;
        let mut since = self.clock.now();
        loop {
            if self.supervisor.pid().is_none() {
                return Err(self.start_failed().await);
            }
            let pgdata = self.layout.pgdata.clone();
            let (status, now_at) = blocking(move || (PidFile::read(&pgdata).and_then(|f| f.status), recovering(&pgdata))).await;
            if status.is_some_and(|s| s == "ready" || s == "standby") {
                return Ok(());
            }
            if now_at != segment {
                (segment, since) = (now_at, self.clock.now());
            }
            if let Some(at) = segment.as_ref().filter(|_| self.clock.now().since(since) >= STALLED_AFTER) {
                let why = format!("its recovery waits for WAL after segment {at} that is nowhere to be had");
                self.demote().await?;
                return Err(Error::NeedsClone(why));
            }
            sleep(LOOK_EVERY).await;
        }
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

/// The segment that the startup process of this directory replays.
fn recovering(pgdata: &std::path::Path) -> Option<String> {
    let titles = procfs::processes_in(pgdata).into_iter().map(procfs::command_line);
    titles.filter_map(|title| Some(title.split_once(TITLE)?.1.trim_matches(['\0', ' ']).to_owned())).next()
}
