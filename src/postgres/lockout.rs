//! A server that lets nobody in, though it is consistent: it starts as a standby in the midst of a transaction with more than 64
//! subtransactions, and PostgreSQL gives nobody a snapshot before WAL tells that such a transaction has ended. Where all lost their power at
//! once nobody writes that WAL, nobody's end of WAL would ever be known (INV-7), and no election would end.
//!
//! So it is stopped, which makes pg_control say where its WAL ended; and it is promoted, or told whom to follow, without a session. Nothing
//! is added to its WAL by that.

use super::conf::SyncNames;
use super::control::{ControlData, LastState};
use super::durable::write_atomic;
use super::error::Error;
use super::facts::LocalEnd;
use super::instance::Instance;
use super::layout::Layout;
use super::lifecycle::POLL;
use super::process::{self, lock};
use super::recovery::STALLED_AFTER;
use super::tool::{self, blocking};
use crate::ha::{PostgresFacts, PostgresState, Role};
use crate::types::{Epoch, Lsn, Timeline, WalPosition};
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::sleep;
use tokio_postgres::error::SqlState;

/// For so long it has done nothing since it could have let somebody in: others do within milliseconds.
const LOCKED_OUT_AFTER: Duration = Duration::from_secs(2);
/// A slow disk keeps one waiting for a moment, too.
const WAITS_AFTER: Duration = Duration::from_secs(5);
/// Bytes of the log's end in which this start is looked for: everybody who is refused leaves a line.
const LOOKED_AT: u64 = 1 << 20;
const WALDUMP_LIMIT: Duration = Duration::from_secs(30);
/// What pg_waldump says where there is nothing, and of a segment that was made and never written.
const NO_RECORD: [&str; 2] = ["could not find a valid record after", "WAL segment size"];
/// What the log of this start says, in this order; PostgreSQL 15 to 18.
pub(super) const STARTS: &str = "LOG:  starting PostgreSQL";
const CONSISTENT: &str = "LOG:  consistent recovery state reached";
const WAITS: &str = "LOG:  waiting for WAL to become available";

impl Instance {
    /// Why it is to be stopped, if so: nothing but a stop tells where its WAL ends. As of the last facts.
    #[must_use]
    pub fn locked_out(&self) -> Option<&'static str> {
        if self.poisoned() {
            return None;
        }
        if self.lets_nobody_in() && self.lockout_end().is_none() {
            return Some("to learn where its WAL ends (more than 64 subtransactions were under way)");
        }
        self.is_in_the_dark().then_some("since its log does not tell any more why")
    }

    /// Is it consistent, with all of its WAL replayed, and yet open to nobody?
    pub(super) fn lets_nobody_in(&self) -> bool {
        lock(&self.recovery).as_ref().is_some_and(|recovery| recovery.locked_out)
    }

    /// Nobody can tell whether a server that starts, alone, and has done nothing for a minute lets nobody in: its log does not reach back to its
    /// start any more. When it starts anew it does.
    fn is_in_the_dark(&self) -> bool {
        let alone = lock(&self.model).intent.alone.is_some();
        alone && lock(&self.recovery).as_ref().is_some_and(|recovery| recovery.in_the_dark)
    }

    /// Has a server that starts as somebody's standby done nothing for so long that it waits for what that one would send?
    #[must_use]
    pub fn waits_for_upstream(&self) -> bool {
        let idle = lock(&self.recovery).as_ref().and_then(|recovery| recovery.idle(self.clock.now()));
        self.following().is_some() && !self.poisoned() && idle.is_some_and(|idle| idle >= WAITS_AFTER)
    }

    /// Where the WAL of a server ends that lets nobody in: there it had ended before this start, and nobody could add to it since.
    #[must_use]
    pub fn lockout_end(&self) -> Option<(Timeline, Lsn)> {
        let alone = lock(&self.model).intent.alone.clone();
        alone.and_then(|alone| alone.end).filter(|_| self.lets_nobody_in())
    }

    /// What can be said of a server that lets nobody in and whose end is known: it is a standby that runs.
    pub(super) async fn lockout_facts(&self, writers: &(dyn Fn(Timeline) -> Option<Epoch> + Sync)) -> Option<PostgresFacts> {
        let (timeline, lsn) = self.lockout_end()?;
        let control = self.cached_control().await.ok()?;
        let ancestry = self.known_ancestry(timeline).await?;
        Some(PostgresFacts {
            state: PostgresState::Running,
            role: Some(Role::Standby),
            system: Some(control.system),
            timeline: Some(timeline),
            position: writers(timeline).map(|writer| WalPosition { writer, lsn }),
            replayed: Some(lsn),
            ancestry,
            ..PostgresFacts::default()
        })
    }

    /// Of a server that lets nobody in, and has followed nobody since its start, before its stop.
    pub(super) async fn before_stop(&self) -> Option<BeforeStop> {
        let alone = lock(&self.model).intent.alone.clone().filter(|_| self.lets_nobody_in())?;
        Some(BeforeStop { known: alone.end, control: self.control_data().await.ok()? })
    }

    /// Where its WAL ends, after a stop that left `after`.
    pub(super) async fn end_after_stop(&self, before: &BeforeStop, after: &ControlData) -> Option<LocalEnd> {
        let told = match end_after(&before.control, after) {
            Some(end) if self.is_last(&end, after).await => Some(end),
            Some(_) | None => None,
        };
        let Some((timeline, lsn)) = before.known else { return told };
        Some(LocalEnd { timeline, lsn, replayed: told.is_some() || after.min_recovery_end >= lsn })
    }

    /// Can no further record be read here? Whatever made the server wait, more WAL would be no end (INV-7).
    async fn is_last(&self, end: &LocalEnd, control: &ControlData) -> bool {
        let segment = self.layout.wal().join(control.wal_file(end.timeline, end.lsn));
        let path = segment.clone();
        if blocking(move || matches!(path.try_exists(), Ok(false))).await {
            return true;
        }
        let mut command = tool::command(&self.install(), "pg_waldump", &self.run_as, &self.layout.node_dir);
        command.args(["--limit", "1", "--timeline", &end.timeline.to_string(), "--start", &end.lsn.to_string()]).arg(segment);
        let said = tool::run(command, "pg_waldump", WALDUMP_LIMIT).await;
        let last = matches!(&said, Err(Error::Tool { output, .. }) if NO_RECORD.iter().any(|words| output.contains(words)));
        if !last {
            tracing::warn!(end = %end.lsn, ?said, "PostgreSQL was stopped before it had replayed all of its WAL, or nobody can tell: starting it again");
        }
        last
    }

    /// A connection that is refused shows that the postmaster has read its files again: it does that first. Whether it took `names` from
    /// them is asked after the promotion; until it does, the list is one that nobody can confirm.
    pub(super) async fn await_refusal(&self, names: &SyncNames) -> Result<(), Error> {
        match self.connect().await {
            Err(Error::Connect { source, .. }) if source.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => Ok(()),
            Err(gone) => Err(gone),
            Ok(_) => self.await_names(names).await,
        }
    }

    /// `pg_promote` without a session; returns when there is one, on a primary.
    pub(super) async fn promote_by_file(&self) -> Result<(), Error> {
        let (file, run_as) = (self.layout.pgdata.join("promote"), self.run_as.clone());
        blocking(move || write_atomic(&file, "", 0o600, Some(&run_as))).await?;
        if !self.supervisor.send(Signal::USR1) {
            return Err(Error::NotRunning);
        }
        while self.session().await.is_err() {
            if self.supervisor.pid().is_none() {
                return Err(self.start_failed().await);
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// What the stop of a server that nobody can ask is compared with.
pub(super) struct BeforeStop {
    /// Where its WAL had ended before its start.
    known: Option<(Timeline, Lsn)>,
    control: ControlData,
}

/// What the log says of a server that has done nothing for so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogSays {
    /// It waits at the end of its own WAL, consistent.
    pub at_its_end: bool,
    /// Nothing of its start any more.
    pub forgotten: bool,
}

impl LogSays {
    pub fn of(layout: &Layout, idle: Duration) -> LogSays {
        if idle < LOCKED_OUT_AFTER {
            return LogSays::default();
        }
        let log = process::log_end(layout, LOOKED_AT);
        let at_its_end = waits_at_its_end(&log);
        LogSays { at_its_end, forgotten: !at_its_end && idle >= STALLED_AFTER && !log.contains(STARTS) }
    }
}

/// PURE: does a server with this log wait at the end of its own WAL, consistent?
fn waits_at_its_end(log: &str) -> bool {
    let this_start = log.rfind(STARTS).map_or(log, |at| &log[at..]);
    this_start.split_once(CONSISTENT).is_some_and(|(_, since)| since.contains(WAITS))
}

/// PURE: how far a locked out server had replayed, which `before` and `after` its clean stop had these contents of pg_control. A stop that
/// moves the checkpoint does not say how far replay had come; the stop of the next start does.
fn end_after(before: &ControlData, after: &ControlData) -> Option<LocalEnd> {
    let same = (before.checkpoint_timeline, before.checkpoint) == (after.checkpoint_timeline, after.checkpoint);
    let told = same && after.state == LastState::ShutDownInRecovery && after.min_recovery_end > Lsn::default();
    told.then_some(LocalEnd { timeline: after.min_recovery_timeline, lsn: after.min_recovery_end, replayed: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGINS: &str = "1 [1] LOG:  starting PostgreSQL 15.18 on x86_64\n1 [2] LOG:  redo starts at 0/1\n";
    const AT_END: &str =
        "1 [2] LOG:  consistent recovery state reached at 0/2\n1 [2] LOG:  waiting for WAL to become available at 0/1002000\n";

    #[test]
    fn only_this_start_counts_and_only_after_consistency() {
        assert!(waits_at_its_end(&(BEGINS.to_owned() + AT_END)));
        assert!(waits_at_its_end(AT_END), "its beginning is out of sight");
        assert!(!waits_at_its_end(&(BEGINS.to_owned() + AT_END + BEGINS)), "the start before");
        let waits = "1 [2] LOG:  waiting for WAL to become available at 0/1002000\n";
        assert!(!waits_at_its_end(&(BEGINS.to_owned() + waits)), "it lacks WAL");
        let then_consistent = "1 [2] LOG:  consistent recovery state reached at 0/2\n";
        assert!(!waits_at_its_end(&(BEGINS.to_owned() + waits + then_consistent)), "it goes on");
    }

    #[test]
    fn only_a_clean_stop_that_moved_no_checkpoint_tells_the_end() {
        let text = |state: &str, checkpoint: &str, least: &str| {
            ControlData::sample(&[
                ("Database cluster state", state),
                ("Latest checkpoint location", checkpoint),
                ("Minimum recovery ending location", least),
            ])
        };
        let before = text("in archive recovery", "0/3000060", "0/3000100");
        let end = |after: &ControlData| end_after(&before, after).map(|end| end.lsn);
        assert_eq!(end(&text("shut down in recovery", "0/3000060", "0/3000148")), Some(Lsn(0x300_0148)));
        assert_eq!(end(&text("shut down in recovery", "0/3000120", "0/3000148")), None, "a restartpoint: more may have been replayed");
        assert_eq!(end(&text("in archive recovery", "0/3000060", "0/3000148")), None, "killed");
        assert_eq!(end(&text("shut down", "0/3000060", "0/0")), None);
    }
}
