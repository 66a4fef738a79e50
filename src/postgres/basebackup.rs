//! A fresh copy of another member's database. It is taken beside the data directory and takes its name only when it is whole; what
//! was there before is kept aside, so the last good copy is never wiped (INV-10).

use super::conf::{Upstream, application_name};
use super::error::{Error, io};
use super::install::Install;
use super::instance::{Activity, Instance};
use super::layout::Layout;
use super::process::lock;
use super::swap::{discard, empty_incoming, remove, swap};
use super::tool::{self, KillGroup, blocking};
use super::user::RunAs;
use crate::types::SystemId;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, BufReader};

/// pg_basebackup says something each second while it copies. Silent for longer: the source hangs.
const SILENCE_MAX: Duration = Duration::from_secs(120);

impl Instance {
    /// Replaces the data directory by a base backup of `source`. Postgres must be down. Dropping the future ends the copy and leaves
    /// the old directory as it was. Afterwards the directory is stopped; it can be started detached or by `follow`.
    pub async fn copy_from(&self, source: &Upstream, system: Option<SystemId>) -> Result<(), Error> {
        let working = self.begin(Activity::Cloning { done: 0, total: 0 })?;
        if self.poisoned() || self.stalled().is_some() {
            // What still runs there is a rewound server that never became consistent, or one that waits for WAL that nobody has.
            self.demote().await?;
        }
        if self.supervisor.pid().is_some() {
            return Err(Error::StillRunning);
        }
        let pids = self.leftovers().await;
        if !pids.is_empty() {
            return Err(Error::Orphans { pids, path: self.layout.pgdata.clone() });
        }
        let (slot, size) = self.check_source(source, system).await?;
        let install = self.source_install(source).await?;
        let (layout, run_as) = (self.layout.clone(), self.run_as.clone());
        blocking(move || make_room(&layout, &run_as, size)).await?;
        self.copy(source, &slot, &install).await?;
        let layout = self.layout.clone();
        // Once begun it goes on to its end, whoever waits for it: until then nothing else may begin, and nothing is told of the directory.
        blocking(move || {
            let swapped = swap(&layout);
            drop(working);
            swapped
        })
        .await?;
        self.refresh_install().await?;
        self.retune(|intent| *intent = super::conf::Intent::default()).await?;
        let layout = self.layout.clone();
        if let Err(error) = blocking(move || discard(&layout)).await {
            tracing::warn!(%error, "the copy is in place; what it made superfluous stays until the next one");
        }
        Ok(())
    }

    /// Is it the right system, and does it keep WAL for this member from now on? The slot's name, and the databases' size in bytes, as far as
    /// the source tells it.
    async fn check_source(&self, source: &Upstream, system: Option<SystemId>) -> Result<(String, Option<u64>), Error> {
        let session = self.connect_upstream(source).await?;
        let found = session.value("SELECT system_identifier FROM pg_control_system()", Duration::from_secs(5)).await?;
        let found = found.and_then(|s| s.parse().ok()).map(SystemId).ok_or(Error::Answer("pg_control_system"))?;
        if let Some(expected) = system.filter(|expected| *expected != found) {
            return Err(Error::OtherSystem { path: self.layout.pgdata.clone(), found, expected });
        }
        let slot = self.reserve_upstream_slot(&session).await?;
        let size = "SELECT sum(pg_database_size(oid)) FROM pg_database WHERE has_database_privilege(oid, 'CONNECT')";
        let size = session.value(size, Duration::from_secs(5)).await.ok().flatten();
        Ok((slot, size.and_then(|bytes| bytes.parse().ok())))
    }

    /// Binaries of the source's major version, whatever the old directory was.
    async fn source_install(&self, source: &Upstream) -> Result<Install, Error> {
        let session = self.connect_upstream(source).await?;
        let number = session.value("SHOW server_version_num", Duration::from_secs(5)).await?;
        let major = number.and_then(|n| n.parse::<u32>().ok()).map(|n| n / 10_000).ok_or(Error::Answer("server_version_num"))?;
        self.install_of(major).await
    }

    async fn copy(&self, source: &Upstream, slot: &str, install: &Install) -> Result<(), Error> {
        let secrets = self.secrets().ok_or(Error::NoSecrets)?;
        let incoming = self.layout.incoming();
        let mut command = tool::command(install, "pg_basebackup", &self.run_as, &self.layout.node_dir);
        command.env("PGPASSWORD", &secrets.replication);
        let node = lock(&self.model).node;
        // Not the member's own name: a walsender of a copy in progress must never count as its confirmation.
        let dsn = format!(
            "host='{}' port={} user={} application_name=copy_{} connect_timeout=5 keepalives_idle=5 keepalives_interval=2 keepalives_count=5",
            source.host,
            source.port,
            super::conf::REPLICATION_ROLE,
            application_name(node)
        );
        command.args(["-d", &dsn, "-X", "stream", "-S", slot, "--checkpoint=fast", "-P", "-v", "-w", "-D"]).arg(&incoming);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(io("cannot run", "pg_basebackup"))?;
        let _group = KillGroup::of(&child);
        let errors = child.stderr.take().ok_or(Error::Answer("pg_basebackup"))?;
        let words = self.read_progress(errors).await?;
        let ended = tokio::time::timeout(SILENCE_MAX, child.wait()).await;
        let status =
            ended.map_err(|_| Error::Timeout { what: "pg_basebackup", after: SILENCE_MAX })?.map_err(io("cannot run", "pg_basebackup"))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Tool { tool: "pg_basebackup", status: status.to_string(), output: tool::last_words(&words, "") })
    }

    /// Publishes the progress; returns the rest of what was said, the newest few thousand characters.
    async fn read_progress(&self, from: impl tokio::io::AsyncRead + Unpin) -> Result<String, Error> {
        const WORDS_MAX: usize = 8192;
        let mut reader = BufReader::new(from);
        let (mut words, mut line, mut buffer) = (String::new(), Vec::new(), [0_u8; 1024]);
        loop {
            let read = tokio::time::timeout(SILENCE_MAX, reader.read(&mut buffer)).await;
            let read = read
                .map_err(|_| Error::Timeout { what: "pg_basebackup", after: SILENCE_MAX })?
                .map_err(io("cannot read", "pg_basebackup"))?;
            if read == 0 {
                return Ok(words);
            }
            for byte in &buffer[..read] {
                if !matches!(byte, b'\n' | b'\r') {
                    line.push(*byte);
                    continue;
                }
                let text = String::from_utf8_lossy(&line).into_owned();
                line.clear();
                match parse_progress(&text) {
                    Some((done, total)) => drop(self.activity.send_replace(Activity::Cloning { done, total })),
                    None if words.len() < WORDS_MAX => words.extend([text.as_str(), "\n"]),
                    None => {}
                }
            }
        }
    }
}

/// `  32768/131072 kB (25%), 0/1 tablespace` → bytes.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (done, rest) = line.trim().split_once('/')?;
    let total = rest.split_once(" kB")?.0;
    Some((done.trim().parse::<u64>().ok()? * 1024, total.trim().parse::<u64>().ok()? * 1024))
}

/// An earlier attempt's leavings go. Where the disk could not hold another copy of `size` bytes, the directory kept aside goes too: it is
/// older than the one that is being replaced, which stays. A copy that cannot fit is not begun: the consensus log may be on the same disk.
fn make_room(layout: &Layout, run_as: &RunAs, size: Option<u64>) -> Result<(), Error> {
    let incoming = layout.incoming();
    empty_incoming(layout, run_as)?;
    discard(layout)?;
    let free = || rustix::fs::statvfs(&incoming).map(|s| s.f_bavail.saturating_mul(s.f_frsize)).unwrap_or(u64::MAX);
    let wanted = size.unwrap_or_else(|| size_of_directory(&layout.pgdata));
    if layout.previous().exists() && free() < wanted.saturating_mul(12) / 10 {
        remove(&layout.previous())?;
    }
    match size.filter(|size| free() < *size) {
        Some(needed) => Err(Error::NoRoom { path: incoming.clone(), needed: needed >> 20, free: free() >> 20 }),
        None => Ok(()),
    }
}

fn size_of_directory(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(meta) if meta.is_dir() => size_of_directory(&e.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::user::OsUser;
    use super::*;

    #[test]
    fn progress_is_read_in_bytes() {
        assert_eq!(parse_progress("  32768/131072 kB (25%), 0/1 tablespace"), Some((32_768 * 1024, 131_072 * 1024)));
        assert_eq!(parse_progress("pg_basebackup: initiating base backup"), None);
    }

    #[test]
    fn a_copy_that_cannot_fit_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), None);
        let run_as = RunAs { user: OsUser { name: String::new(), uid: 0, gid: 0 }, change: false };
        make_room(&layout, &run_as, Some(1)).unwrap();
        std::fs::create_dir_all(layout.previous()).unwrap();
        let refused = make_room(&layout, &run_as, Some(u64::MAX >> 10)).unwrap_err();
        assert!(matches!(refused, Error::NoRoom { .. }) && !layout.previous().exists(), "{refused}");
    }
}
