//! pg_rewind: makes a diverged directory a standby of the new primary again without copying all of it.
//!
//! A rewind that breaks off leaves a directory that looks whole and is not. So a mark beside it is written first, and taken away only
//! when the server has become consistent again under its new upstream; until then nothing starts the directory. What a dry run
//! already refuses leaves no mark.

use super::conf::Upstream;
use super::durable::{sync_dir, write_private};
use super::error::{Error, io};
use super::instance::{Activity, Instance};
use super::lifecycle::POLL;
use super::process::lock;
use super::session::Session;
use super::tool::{self, blocking, within};
use super::{conf, layout::Layout, swap};
use crate::types::{Lsn, SystemId, Timeline};
use std::time::Duration;
use tokio::time::sleep;

/// The primary's first checkpoint on its timeline; it is asked for, so only a slow disk makes it long.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(60);
/// Reads the WAL since the divergence twice and copies what changed.
const REWIND_LIMIT: Duration = Duration::from_secs(3600);
/// Begins the mark's line about the end of WAL before the rewind.
const END: &str = "wal ended at ";
/// From the start of the rewound server until it accepts connections: it fetches and replays what the primary wrote meanwhile.
const CONSISTENT_LIMIT: Duration = Duration::from_secs(600);
/// How often its log is asked meanwhile whether it waits in vain.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Instance {
    /// Rewinds the stopped directory against `source` and starts it as its standby, because only there it becomes consistent. When
    /// the future is dropped the directory stays marked, unless the dry run was not through yet.
    pub async fn rewind(&self, source: &Upstream, system: Option<SystemId>) -> Result<(), Error> {
        let _working = self.begin(Activity::Rewinding)?;
        if self.supervisor.pid().is_some() {
            return Err(Error::StillRunning);
        }
        let pids = self.leftovers().await;
        if !pids.is_empty() {
            return Err(Error::Orphans { pids, path: self.layout.pgdata.clone() });
        }
        if self.poisoned() {
            return Err(Error::Poisoned { path: self.layout.pgdata.clone(), what: "rewind".to_owned() });
        }
        let control = self.control_data().await?;
        self.check_system(&control, system)?;
        // pg_rewind copies what changed since the last checkpoint before the divergence that it finds in the WAL, and takes for granted that
        // the files hold everything before. Those of a server that was stopped while it replayed do not (INV-10).
        if !self.stopped_replayed().await? {
            return Err(Error::NotReplayed(self.layout.pgdata.clone()));
        }
        let session = self.connect_upstream(source).await?;
        self.reserve_upstream_slot(&session).await?;
        await_checkpoint(&session).await?;
        self.pg_rewind(source, true).await.map_err(|e| Error::NeedsClone(e.to_string()))?;
        // Read while the directory is still whole: what it ever confirmed ends here.
        let end = self.stopped_end().await?;
        let layout = self.layout.clone();
        blocking(move || {
            // What a swap that failed half-way left would otherwise lift this mark at the next start.
            swap::mend(&layout)?;
            mark(&layout, end)
        })
        .await?;
        self.pg_rewind(source, false).await.map_err(|e| Error::NeedsClone(e.to_string()))?;
        // From its start on it receives, and confirms, what the mark does not know of.
        let layout = self.layout.clone();
        blocking(move || mark(&layout, None)).await?;
        self.start_unchecked(system, Some(source.clone())).await?;
        self.await_consistent().await?;
        self.finish_rewind().await
    }

    /// The process that ran a rewind died while the rewound server was catching up. Only the rewind itself starts a marked
    /// directory, after pg_rewind was through; a server that accepts connections there has become consistent.
    pub(super) async fn lift_poison(&self) -> Result<(), Error> {
        if self.poisoned() { self.finish_rewind().await } else { Ok(()) }
    }

    /// It holds the primary's history now, and nothing of what was here before.
    async fn finish_rewind(&self) -> Result<(), Error> {
        let marked = self.by_hand();
        if !marked.is_empty() {
            self.own(&marked).await?;
        }
        let layout = self.layout.clone();
        blocking(move || unmark(&layout)).await
    }

    async fn pg_rewind(&self, source: &Upstream, dry_run: bool) -> Result<(), Error> {
        let secrets = self.secrets().ok_or(Error::NoSecrets)?;
        let install = self.install();
        let mut command = tool::command(&install, "pg_rewind", &self.run_as, &self.layout.node_dir);
        command.env("PGPASSWORD", &secrets.replication);
        let dsn = format!(
            "host='{}' port={} user={} dbname=postgres connect_timeout=5 keepalives_idle=5 keepalives_interval=2 keepalives_count=5",
            source.host,
            source.port,
            conf::REPLICATION_ROLE
        );
        command.arg("--source-server").arg(dsn).arg("-D").arg(&self.layout.pgdata).arg("--no-ensure-shutdown");
        if dry_run {
            command.arg("--dry-run");
        }
        tool::run(command, "pg_rewind", REWIND_LIMIT).await.map(drop)
    }

    /// It begins where the last common checkpoint began; pg_rewind leaves WAL since that one's record only, and takes away what is older and the
    /// primary has not kept.
    async fn await_consistent(&self) -> Result<(), Error> {
        let mut looked = self.clock.now();
        within(CONSISTENT_LIMIT, "becoming consistent after the rewind", async {
            while self.session().await.is_err() {
                if self.supervisor.pid().is_none() {
                    let layout = self.layout.clone();
                    return Err(Error::NeedsClone(blocking(move || super::process::log_tail(&layout)).await));
                }
                if self.clock.now().since(looked) >= LOOK_EVERY {
                    looked = self.clock.now();
                    if let Some(why) = self.starved_for_ever().await {
                        return Err(Error::NeedsClone(why.to_owned()));
                    }
                }
                sleep(POLL).await;
            }
            Ok(())
        })
        .await
    }

    /// Binaries of `major`; remembered for the copy that is about to be made.
    pub(super) async fn install_of(&self, major: u32) -> Result<super::install::Install, Error> {
        let bin_dir = lock(&self.model).install.clone();
        if bin_dir.major == major {
            return Ok(bin_dir);
        }
        let path = self.layout.pgdata.clone();
        blocking(move || super::install::Install::find(None, Some(major), &path)).await
    }
}

/// pg_rewind reads the source's timeline from its pg_control, which a promotion updates with its first checkpoint only.
async fn await_checkpoint(source: &Session) -> Result<(), Error> {
    source.run("CHECKPOINT", CHECKPOINT_LIMIT).await?;
    let sql = "SELECT pg_is_in_recovery() OR c.timeline_id <> ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int \
               FROM pg_control_checkpoint() c";
    within(CHECKPOINT_LIMIT, "the primary's first checkpoint", async {
        while source.value(sql, Duration::from_secs(5)).await?.as_deref() != Some("f") {
            sleep(POLL).await;
        }
        Ok(())
    })
    .await
}

/// `end`: where the WAL of the directory ended before the first change to it.
fn mark(layout: &Layout, end: Option<(Timeline, Lsn)>) -> Result<(), Error> {
    let end = end.map_or_else(String::new, |(timeline, lsn)| format!("{END}{} {lsn}\n", timeline.0));
    write_private(&layout.poison(), &format!("a rewind of the data directory beside this file began and did not end\n{end}"))
}

/// The end of WAL in the mark; `None` also where the rewound server may have run.
pub(super) fn marked_end(layout: &Layout) -> Option<(Timeline, Lsn)> {
    let text = std::fs::read_to_string(layout.poison()).ok()?;
    let (timeline, lsn) = text.lines().find_map(|line| line.strip_prefix(END))?.split_once(' ')?;
    Some((Timeline(timeline.parse().ok()?), lsn.parse().ok()?))
}

fn unmark(layout: &Layout) -> Result<(), Error> {
    std::fs::remove_file(layout.poison()).map_err(io("cannot remove", layout.poison()))?;
    sync_dir(layout.poison().parent().unwrap_or(std::path::Path::new("/")))
}
