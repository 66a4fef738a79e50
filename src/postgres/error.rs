//! What can go wrong with a local Postgres, in words that name the thing and the remedy.

use super::Activity;
use crate::types::{Lsn, SystemId, Timeline};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Everything this module can fail with. [`Error::needs_clone`] tells the one class that a fresh copy repairs.
#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "no PostgreSQL server found in {searched}: install PostgreSQL 15 to 18, or set postgres.bin_dir to the directory that holds `postgres` and `initdb`"
    )]
    NoBinaries { searched: String },
    #[error("{bin_dir} holds PostgreSQL {found}; Trilithon supports 15 to 18: install a supported version, or set postgres.bin_dir to one")]
    Unsupported { bin_dir: PathBuf, found: String },
    #[error(
        "{path} was written by PostgreSQL {data}, and no binaries of that version were found (found: {found}): install postgresql-{data}, or set postgres.bin_dir"
    )]
    OtherMajor { path: PathBuf, data: u32, found: String },
    #[error("there is no operating system user `{0}`, and PostgreSQL refuses to run as root: create the user, or set postgres.os_user")]
    NoSuchUser(String),
    #[error(
        "user `{user}` cannot enter {path}: PostgreSQL runs as that user; allow it with `chmod o+x {path}`, or choose another node.data_dir"
    )]
    NotTraversable { path: PathBuf, user: String },
    #[error(
        "{path} belongs to user id {found}, PostgreSQL would run as {expected}: set postgres.os_user to the owner, or chown the directory"
    )]
    OtherOwner { path: PathBuf, found: u32, expected: u32 },
    #[error(
        "{path} is not empty and holds no PostgreSQL database (found `{found}`): nothing was touched; choose an empty directory, or move its content away"
    )]
    ForeignDirectory { path: PathBuf, found: String },
    #[error("{path} already holds a PostgreSQL database: it was not initialised again")]
    AlreadyInitialised { path: PathBuf },
    #[error("there is no database in {path}")]
    NoDatabase { path: PathBuf },
    #[error(
        "{path} belongs to database system {found}, this cluster is {expected}: it was not touched; move it away so that this member can be copied anew"
    )]
    OtherSystem { path: PathBuf, found: SystemId, expected: SystemId },
    #[error("an interrupted {what} left {path} unusable: it must be replaced by a fresh copy")]
    Poisoned { path: PathBuf, what: String },
    #[error("a PostgreSQL server (pid {pid}) that Trilithon did not start runs in {path}: stop it first")]
    ForeignPostmaster { pid: i32, path: PathBuf },
    #[error(
        "PostgreSQL processes {pids:?} that nothing controls any more still work in {path}: waiting for their end; if it does not come, look at the disk, then kill -9"
    )]
    Orphans { pids: Vec<i32>, path: PathBuf },
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "no room for a copy in {path}: the databases have {needed} MB, and {free} MB are free; make room on that disk (nothing was replaced)"
    )]
    NoRoom { path: PathBuf, needed: u64, free: u64 },
    #[error("{tool} failed ({status}): {output}")]
    Tool { tool: &'static str, status: String, output: String },
    #[error("PostgreSQL did not start ({ended}): {log}")]
    StartFailed { ended: String, log: String },
    #[error("busy: {0:?}")]
    Busy(Activity),
    #[error("PostgreSQL is not running")]
    NotRunning,
    #[error("PostgreSQL is running")]
    StillRunning,
    #[error("PostgreSQL is not a standby")]
    NotStandby,
    #[error("PostgreSQL is not a primary")]
    NotPrimary,
    #[error("the passwords of this cluster are not known here yet")]
    NoSecrets,
    #[error("cannot connect to PostgreSQL at {target}: {source}")]
    Connect { target: String, source: tokio_postgres::Error },
    #[error("query failed: {}", describe(.0))]
    Query(#[from] tokio_postgres::Error),
    #[error("PostgreSQL answered unexpectedly to {0}")]
    Answer(&'static str),
    #[error("{what} took longer than {after:?}")]
    Timeout { what: &'static str, after: Duration },
    #[error("the rule `{wanted}` is not in force: PostgreSQL says `{found}`")]
    RuleNotInForce { wanted: String, found: String },
    #[error("{confirmed} of {needed} standbys confirmed the marker write at {lsn} in time")]
    RuleUnproved { confirmed: usize, needed: usize, lsn: Lsn },
    #[error("the marker write was not confirmed: {0}")]
    MarkerCancelled(String),
    #[error("PostgreSQL took timeline {found} instead of the claimed {claimed}; it was stopped at once")]
    WrongTimeline { claimed: Timeline, found: Timeline },
    #[error("a promotion onto the claimed timeline {claimed} was begun here before and broken off: another number must be claimed")]
    TimelineBegun { claimed: Timeline },
    #[error("only a fresh copy helps: {0}")]
    NeedsClone(String),
    #[error("{0} was not shut down cleanly: start it detached and stop it first")]
    NotCleanlyStopped(PathBuf),
    #[error("{0} may not hold all that its WAL says: start it detached, let it replay, and stop it first")]
    NotReplayed(PathBuf),
    #[error("`{what}` cannot be read in the output of {tool}")]
    Unreadable { tool: &'static str, what: &'static str },
}

impl Error {
    /// Can trying the same again not help?
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Error::WrongTimeline { .. }
                | Error::TimelineBegun { .. }
                | Error::Poisoned { .. }
                | Error::NoDatabase { .. }
                | Error::OtherSystem { .. }
                | Error::OtherMajor { .. }
                | Error::NoBinaries { .. }
                | Error::Unsupported { .. }
                | Error::OtherOwner { .. }
                | Error::ForeignDirectory { .. }
        )
    }

    /// Rewinding or following cannot help here, a copy must; `false` for everything that a retry may mend.
    #[must_use]
    pub fn needs_clone(&self) -> bool {
        matches!(self, Error::NeedsClone(_) | Error::Poisoned { .. })
    }
}

/// tokio-postgres prints "db error" only; people need the server's words.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}

/// Attaches what was being done and to which path.
pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { what, path, source }
}
