//! The persisted promise: "I follow no epoch older than this one" (INV-1).
//!
//! One small file beside the data directory, not in it, so that neither a clone nor a rewind touches it. Written to a temporary
//! file, fsynced, renamed, the directory fsynced. An unreadable promise stops the node: guessing low would break the promise.

use crate::bug::{self, Bug};
use crate::types::Epoch;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

const FILE: &str = "promise.json";
const FORMAT: u32 = 1;

/// Why the promise could not be read or kept.
#[derive(Debug, Error)]
pub enum PromiseError {
    #[error("cannot {action} the promise {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the promise {path} is damaged ({what}); if this node's disk was restored from an old copy, move its whole data directory aside and let it rejoin empty"
    )]
    Damaged { path: PathBuf, what: String },
    #[error("the promise never goes back: epoch {promised} is promised, {asked} was asked for")]
    Backwards { promised: Epoch, asked: Epoch },
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    format: u32,
    epoch: Epoch,
    crc32c: u32,
}

/// The promise of this node.
#[derive(Clone, Debug)]
pub struct Promise {
    path: PathBuf,
    epoch: Epoch,
}

impl Promise {
    /// Read the promise in `directory`, which exists; epoch 0 where none was ever made.
    ///
    /// # Errors
    /// `Damaged` or `Io`; the node must not go on.
    pub fn open(directory: &Path) -> Result<Promise, PromiseError> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Promise { path, epoch: Epoch(0) }),
            Err(source) => return Err(PromiseError::Io { action: "read", path, source }),
        };
        let damaged = |what: String| PromiseError::Damaged { path: path.clone(), what };
        let disk: OnDisk = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if disk.format != FORMAT || disk.crc32c != checksum(disk.epoch) {
            return Err(damaged("wrong format or checksum".to_owned()));
        }
        Ok(Promise { path, epoch: disk.epoch })
    }

    /// The newest epoch promised.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// [`Promise::raise`] on a thread that may wait for the disk.
    ///
    /// # Errors
    /// As there.
    pub async fn raised(mut self, epoch: Epoch) -> Result<Promise, PromiseError> {
        let path = self.path.clone();
        let raising = tokio::task::spawn_blocking(move || self.raise(epoch).map(|()| self));
        raising.await.map_err(|e| PromiseError::Io { action: "write", path, source: io::Error::other(e) })?
    }

    /// Promise `epoch`. Blocks until it is on disk; only then may it be acted on (INV-1).
    ///
    /// # Errors
    /// `Backwards` for an older epoch; `Io` where the disk refuses, and the old promise stands.
    pub fn raise(&mut self, epoch: Epoch) -> Result<(), PromiseError> {
        if epoch < self.epoch {
            return Err(PromiseError::Backwards { promised: self.epoch, asked: epoch });
        }
        if bug::is(Bug::PromiseNotPersisted) {
            self.epoch = epoch;
            return Ok(());
        }
        let disk = OnDisk { format: FORMAT, epoch, crc32c: checksum(epoch) };
        let text = serde_json::to_string(&disk).expect("three numbers always serialise");
        write_durably(&self.path, text.as_bytes()).map_err(|source| PromiseError::Io {
            action: "write",
            path: self.path.clone(),
            source,
        })?;
        self.epoch = epoch;
        Ok(())
    }
}

fn checksum(epoch: Epoch) -> u32 {
    crc32c::crc32c(&epoch.0.to_be_bytes())
}

/// Replace `path` as a whole: after a loss of power it holds the old bytes or the new ones.
///
/// # Errors
/// The old file stands.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promise_survives_a_restart_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut promise = Promise::open(dir.path()).unwrap();
        assert_eq!(promise.epoch(), Epoch(0));
        promise.raise(Epoch(7)).unwrap();
        let mut again = Promise::open(dir.path()).unwrap();
        assert_eq!(again.epoch(), Epoch(7));
        assert!(matches!(again.raise(Epoch(6)), Err(PromiseError::Backwards { .. })));
    }

    #[test]
    fn damaged_promise_is_refused_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        Promise::open(dir.path()).unwrap().raise(Epoch(7)).unwrap();
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap().replace("\"epoch\":7", "\"epoch\":5");
        fs::write(&path, text).unwrap();
        assert!(matches!(Promise::open(dir.path()), Err(PromiseError::Damaged { .. })));
    }
}
