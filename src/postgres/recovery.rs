//! Recovery that cannot go on: a copy whose missing WAL nobody has any more waits for ever, and looks like one that is merely slow.

use super::error::Error;
use super::instance::Instance;
use super::lifecycle::POLL;
use super::lockout::{self, LogSays};
use super::process::{self, lock};
use super::procfs;
use super::tool::blocking;
use crate::ha::{PostgresFacts, Role};
use crate::types::{Epoch, Millis, NodeId, WalPosition};
use std::time::Duration;
use tokio::time::sleep;

/// PostgreSQL names the WAL segment that it replays in the title of its startup process, and what has come in that of its receiver. One that
/// neither goes on to another segment, nor does any work, nor receives anything for this long waits.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(60);
/// The second one stays where the next segment was never begun.
const TITLES: [&str; 2] = ["startup recovering ", "startup waiting for "];
const RECEIVER: &str = "walreceiver streaming ";
/// A process that waits wakes up now and then: this much work, in clock ticks of a hundredth of a second, is none.
const IDLE_TICKS: u64 = 20;
/// Looks come twice a second at least.
const UNSEEN: Duration = Duration::from_secs(5);

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
/// What the receiver says when the upstream has not kept the WAL that this standby needs, all in one line. A sender of this server says the
/// second part, too, to whom it feeds.
const WAL_GONE: [&str; 2] = ["could not receive data from WAL stream", "has already been removed"];
/// What the log said before the last of these was about another stream, another upstream, or another start.
const BEGINNINGS: [&str; 4] =
    ["started streaming WAL", "restarted WAL streaming", "parameter \"primary_conninfo\" changed", lockout::STARTS];
/// What the startup process says, twice a second, when what was streamed does not continue what this copy holds: another has written a timeline of the
/// same number, as when somebody promotes by hand during an election. At the end of what is on its disk it is said once, and rightly.
const NO_SEQUEL: &[&str] = &[
    "record with incorrect prev-link",
    "invalid record length at",
    "record length",
    "invalid resource manager ID",
    "incorrect resource manager data checksum",
    "invalid magic number",
    "unexpected pageaddr",
    "there is no contrecord flag",
    "invalid contrecord length",
];
/// Bytes of the log's end that are looked at: more than a minute of that.
const LOOKED_AT: u64 = 64 << 10;
/// So often, since a stream began last, that no end of WAL explains it: a quarter of a minute. Restarts in a row bring half a dozen.
const NO_SEQUEL_TIMES: usize = 30;

/// What the server waits for, and since when.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    wait: Wait,
    since: Millis,
    looked: Millis,
    /// Why it will never come.
    hopeless: Option<String>,
    /// It waits at the end of its WAL, consistent, and lets nobody in.
    pub locked_out: bool,
    /// It has waited for a minute, and its log has forgotten its start.
    pub in_the_dark: bool,
}

#[derive(Clone, Debug)]
enum Wait {
    /// Starting: the server as it was last seen to get on.
    Replay(Replay),
    /// Up, and nothing comes from its upstream.
    Stream { position: Option<WalPosition>, upstream: (NodeId, Epoch) },
}

/// How far a recovery has got.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Replay {
    /// The startup process: what was seen of another says nothing of this one.
    pid: i32,
    segment: String,
    /// How far WAL was received, in PostgreSQL's words; slow lines bring less than a segment a minute.
    received: Option<String>,
    /// Processor time of the startup process, in ticks.
    worked: u64,
}

impl Replay {
    fn got_on_since(&self, before: &Replay) -> bool {
        (&self.segment, &self.received) != (&before.segment, &before.received) || self.worked >= before.worked + IDLE_TICKS
    }
}

impl Recovery {
    fn begun(wait: Wait, now: Millis) -> Recovery {
        Recovery { wait, since: now, looked: now, hopeless: None, locked_out: false, in_the_dark: false }
    }

    /// For how long it has not got on, while it starts.
    pub fn idle(&self, now: Millis) -> Option<Duration> {
        matches!(self.wait, Wait::Replay(_)).then(|| now.since(self.since))
    }
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
        let LogSays { at_its_end, forgotten } = self.log_says(now).await;
        let mut known = lock(&self.recovery);
        *known = found.map(|found| match known.take() {
            Some(Recovery { wait: Wait::Replay(before), since, looked, .. }) if before.pid == found.pid => {
                // While nobody looked, everybody may have been frozen.
                let moved = found.got_on_since(&before) || now.since(looked) >= UNSEEN;
                let since = if moved { now } else { since };
                // What streams may yet tell what was under way, however long nothing is written.
                let stalled = now.since(since) >= STALLED_AFTER && !at_its_end && found.received.is_none();
                let words = || format!("its recovery waits for WAL after segment {}, which is nowhere to be had", found.segment);
                let hopeless = stalled.then(words);
                let wait = Wait::Replay(if moved { found } else { before });
                Recovery { wait, since, looked: now, hopeless, locked_out: at_its_end, in_the_dark: forgotten }
            }
            Some(_) | None => Recovery::begun(Wait::Replay(found), now),
        });
    }

    /// Why a server does nothing, as it was last seen. Looked for until it is found.
    async fn log_says(&self, now: Millis) -> LogSays {
        let idle = match &*lock(&self.recovery) {
            Some(seen) if seen.locked_out => return LogSays { at_its_end: true, forgotten: false },
            Some(seen) => seen.idle(now),
            None => None,
        };
        // What follows somebody waits for that one's WAL.
        let Some(idle) = idle.filter(|_| self.following().is_none()) else { return LogSays::default() };
        let layout = self.layout.clone();
        blocking(move || LogSays::of(&layout, idle)).await
    }

    /// Look at a standby that is up: is the WAL that it needs gone? The primary accepts its connection each time, so that it seems to
    /// stream for a moment; but it gets nowhere.
    pub(super) async fn watch_stream(&self, facts: &PostgresFacts) {
        let Some(now_following) = self.following().filter(|_| facts.role == Some(Role::Standby)) else {
            return self.forget_recovery();
        };
        let now = self.clock.now();
        let wait = Wait::Stream { position: facts.position, upstream: now_following };
        let mut seen = Recovery::begun(wait, now);
        match &*lock(&self.recovery) {
            // Another primary may have what the one before had not kept: its time begins anew.
            Some(Recovery { wait: Wait::Stream { position, upstream }, since, hopeless, .. })
                if *position == facts.position && *upstream == now_following =>
            {
                (seen.since, seen.hopeless) = (*since, hopeless.clone());
            }
            Some(_) | None => {}
        }
        if now.since(seen.since) >= STARVED_AFTER && facts.streaming_from.is_none() && seen.hopeless.is_none() {
            seen.hopeless = self.starved_for_ever().await.map(str::to_owned);
        }
        *lock(&self.recovery) = Some(seen);
    }

    /// Why nothing will come from its upstream, if its log tells.
    pub(super) async fn starved_for_ever(&self) -> Option<&'static str> {
        let layout = self.layout.clone();
        let log = blocking(move || process::log_end(&layout, LOOKED_AT)).await;
        starved_for_ever(&log)
    }

    /// Waits until a running, detached standby has replayed all of its WAL. One that stands still for a minute needs a copy.
    pub async fn replay_all(&self) -> Result<(), Error> {
        let (mut reached, mut since) = (None, self.clock.now());
        loop {
            if self.supervisor.pid().is_none() {
                return Err(self.start_failed().await);
            }
            // While it starts, it is the facts that watch it.
            if let Some(why) = self.stalled() {
                return Err(Error::NeedsClone(why));
            }
            match self.replayed().await {
                Err(_) if self.lets_nobody_in() => return Ok(()),
                Ok((_, true)) => return Ok(()),
                Ok((replayed, false)) if replayed == reached => {}
                Ok((replayed, false)) => (reached, since) = (replayed, self.clock.now()),
                Err(Error::NotStandby) => return Err(Error::NotStandby),
                Err(_) => since = self.clock.now(),
            }
            if self.clock.now().since(since) >= STALLED_AFTER {
                return Err(Error::NeedsClone("it does not replay the WAL that it holds".to_owned()));
            }
            sleep(POLL).await;
        }
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

/// PURE: why nothing will come from this upstream, if its log tells.
fn starved_for_ever(log: &str) -> Option<&'static str> {
    let since = BEGINNINGS.iter().filter_map(|words| log.rfind(words)).max().map_or(log, |at| &log[at..]);
    if since.lines().any(|line| WAL_GONE.iter().all(|words| line.contains(words))) {
        return Some("the primary has not kept the WAL that this copy needs next");
    }
    let ends = |line: &&str| line.split_once(" LOG:  ").is_some_and(|(_, said)| NO_SEQUEL.iter().any(|words| said.starts_with(words)));
    let breaks = since.lines().filter(ends).count();
    (breaks >= NO_SEQUEL_TIMES).then_some("what the primary streams does not continue what this copy holds")
}

/// What the startup process of this directory does, if there is one.
fn recovering(pgdata: &std::path::Path) -> Option<Replay> {
    let all: Vec<(i32, String)> = procfs::processes_in(pgdata).into_iter().map(|pid| (pid, procfs::command_line(pid))).collect();
    let after = |title: &str, words: &str| Some(title.split_once(words)?.1.trim().to_owned());
    let received = all.iter().find_map(|(_, title)| after(title, RECEIVER));
    let (pid, segment) = all.iter().find_map(|(pid, title)| Some((*pid, TITLES.iter().find_map(|words| after(title, words))?)))?;
    Some(Replay { pid, segment, received, worked: procfs::ticks(pid)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: &str = "12:00 [9] LOG:  started streaming WAL from primary at 0/30000000 on timeline 32\n";
    const BROKEN: &str = "12:00 [7] LOG:  record with incorrect prev-link 39025100/0 at 0/30229F60\n\
                          12:00 [7] LOG:  waiting for WAL to become available at 0/30002000\n";
    const GONE: &str =
        "12:00 [9] FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 00000001 has already been removed\n";

    #[test]
    fn a_stream_that_breaks_off_again_and_again_at_one_place_never_goes_on() {
        let often = BROKEN.repeat(NO_SEQUEL_TIMES);
        assert_eq!(starved_for_ever(&(BROKEN.to_owned() + BEGAN)), None, "the end of what was on its disk");
        assert_eq!(starved_for_ever(&(BEGAN.to_owned() + BROKEN)), None);
        assert!(starved_for_ever(&(BEGAN.to_owned() + &often)).is_some());
        assert_eq!(starved_for_ever(&(often.clone() + BEGAN)), None, "it streams again");
        assert!(starved_for_ever(&often).is_some(), "it has gone on for so long that its beginning is out of sight");
        assert_eq!(starved_for_ever(&often.replace("LOG:  record", "DEBUG:  record")), None, "said again and again at this level");
        assert_eq!(starved_for_ever(&often.replace("LOG:  record", "ERROR:  a record")), None, "somebody's statement");
    }

    #[test]
    fn wal_that_was_removed_since_the_last_stream_is_gone() {
        assert!(starved_for_ever(&(BEGAN.to_owned() + GONE)).is_some());
        assert_eq!(starved_for_ever(&(GONE.to_owned() + BEGAN)), None);
        let other = "12:00 [1] LOG:  parameter \"primary_conninfo\" changed to \"host=b\"\n";
        assert_eq!(starved_for_ever(&(GONE.to_owned() + other)), None, "another upstream may have kept it");
        let sender = "12:00 [8] archiver@[unknown] ERROR:  requested WAL segment 00000001 has already been removed\n";
        assert_eq!(starved_for_ever(&(BEGAN.to_owned() + sender)), None, "what it does not keep for others");
        assert_eq!(starved_for_ever("FATAL:  could not connect to the primary server\n"), None);
    }

    #[test]
    fn a_recovery_gets_on_while_anything_comes() {
        let before = Replay { pid: 7, segment: "1".into(), received: Some("0/1".into()), worked: 5 };
        assert!(!before.got_on_since(&before));
        assert!(Replay { received: Some("0/2".into()), ..before.clone() }.got_on_since(&before));
        assert!(Replay { segment: "2".into(), ..before.clone() }.got_on_since(&before));
        assert!(Replay { worked: 5 + IDLE_TICKS, ..before.clone() }.got_on_since(&before));
    }
}
