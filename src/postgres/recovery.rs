//! Recovery that cannot go on: a copy whose missing WAL nobody has any more waits for ever, and looks like one that is merely slow.

use super::error::Error;
use super::instance::Instance;
use super::process::{self, lock};
use super::procfs;
use super::tool::blocking;
use crate::ha::{PostgresFacts, Role};
use crate::types::{Epoch, Millis, NodeId, WalPosition};
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

/// A standby that gets nothing from its upstream for this long may have a reason, and its log tells it.
const STARVED_AFTER: Duration = Duration::from_secs(30);
/// What the log says when the upstream has not kept the WAL that this standby needs.
const WAL_GONE: &str = "has already been removed";
const STREAM_BEGAN: &str = "started streaming WAL";

/// What the server waits for, and since when.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    wait: Wait,
    since: Millis,
    /// Why it will never come.
    hopeless: Option<String>,
}

#[derive(Clone, Debug)]
enum Wait {
    /// Starting: the startup process as it was last seen to get on. `worked`: its processor time, in ticks.
    Replay { segment: String, worked: u64 },
    /// Up, and nothing comes from its upstream.
    Stream { position: Option<WalPosition>, upstream: (NodeId, Epoch) },
}

impl Instance {
    /// Why the server will never be up, or never follow, if so. As of the last facts.
    #[must_use]
    pub fn stalled(&self) -> Option<String> {
        lock(&self.recovery).as_ref()?.hopeless.clone()
    }

    /// Look at the startup process of a server that is starting.
    pub(super) async fn watch_recovery(&self) {
        let pgdata = self.layout.pgdata.clone();
        let found = blocking(move || recovering(&pgdata)).await;
        let now = self.clock.now();
        let mut known = lock(&self.recovery);
        *known = found.map(|(segment, worked)| match known.take() {
            Some(Recovery { wait: Wait::Replay { segment: before, worked: then }, since, .. })
                if before == segment && worked < then + IDLE_TICKS =>
            {
                let stalled = now.since(since) >= STALLED_AFTER;
                let hopeless = stalled.then(|| format!("its recovery waits for WAL after segment {segment}, which is nowhere to be had"));
                Recovery { wait: Wait::Replay { segment, worked: then }, since, hopeless }
            }
            Some(_) | None => Recovery { wait: Wait::Replay { segment, worked }, since: now, hopeless: None },
        });
    }

    /// Look at a standby that is up: is the WAL that it needs gone? The primary accepts its connection each time, so that it seems to
    /// stream for a moment; but it gets nowhere.
    pub(super) async fn watch_stream(&self, facts: &PostgresFacts) {
        let Some(now_following) = self.following().filter(|_| facts.role == Some(Role::Standby)) else {
            return self.forget_recovery();
        };
        let now = self.clock.now();
        let wait = Wait::Stream { position: facts.position, upstream: now_following };
        let mut seen = Recovery { wait, since: now, hopeless: None };
        match &*lock(&self.recovery) {
            // Another primary may have what the one before had not kept: its time begins anew.
            Some(Recovery { wait: Wait::Stream { position, upstream }, since, hopeless })
                if *position == facts.position && *upstream == now_following =>
            {
                (seen.since, seen.hopeless) = (*since, hopeless.clone());
            }
            Some(_) | None => {}
        }
        if now.since(seen.since) >= STARVED_AFTER && facts.streaming_from.is_none() && seen.hopeless.is_none() {
            let layout = self.layout.clone();
            let log = blocking(move || process::log_tail(&layout)).await;
            let gone = log.rfind(WAL_GONE) > log.rfind(STREAM_BEGAN);
            seen.hopeless = gone.then(|| "the primary has not kept the WAL that this copy needs next".to_owned());
        }
        *lock(&self.recovery) = Some(seen);
    }

    /// It streams, or is down: nothing waits.
    pub(super) fn forget_recovery(&self) {
        *lock(&self.recovery) = None;
    }

    /// The server ended while it started: can another try help?
    pub(super) async fn start_failed(&self) -> Error {
        let layout = self.layout.clone();
        let log = blocking(move || process::log_tail(&layout)).await;
        match HOPELESS.iter().find(|words| log.contains(**words)) {
            Some(words) => Error::NeedsClone(format!("PostgreSQL does not start: {words}")),
            None => Error::StartFailed { ended: self.supervisor.ended(), log },
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
