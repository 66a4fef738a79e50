//! Snapshots of the replicated state as plain files: temporary, fsync, rename, fsync of the directory.
//!
//! One file, `snapshot`, at most. Its bytes are also what travels to a follower: `magic · format · crc32c · prost`. Everything
//! that reads one checks it first. Deliberately absent: incremental snapshots; the state is a few hundred kilobytes at most.

use super::codec;
use super::raft::{FORMAT, LogId, SnapshotMeta, StoredMembership};
use crate::cluster::ClusterState;
use crate::proto::v1;
use bytes::Bytes;
use prost::Message;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"TRISNAP\n";
const HEADER: usize = 8 + 1 + 4;
/// Refuse to receive or read more than this; the real size is three orders of magnitude below.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;

/// A snapshot's bytes are not what a snapshot is.
#[derive(Debug, Error)]
pub enum SnapshotError {
    #[error("it is not a snapshot")]
    NotASnapshot,
    #[error("its format {0} is newer than this release reads ({FORMAT})")]
    Format(u8),
    #[error("its checksum does not match")]
    Checksum,
    #[error("its content cannot be decoded: {0}")]
    Content(String),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A decoded snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub meta: SnapshotMeta,
    pub state: ClusterState,
}

/// Serialize.
pub fn encode(meta: &SnapshotMeta, state: &ClusterState) -> io::Result<Bytes> {
    let content = v1::RaftSnapshotFile {
        last_log_id: meta.last_log_id.as_ref().map(codec::log_id),
        membership: Some(codec::stored_membership(&meta.last_membership)),
        state: serde_json::to_vec(state)?.into(),
    };
    let content = content.encode_to_vec();
    let mut out = Vec::with_capacity(HEADER + content.len());
    out.extend_from_slice(MAGIC);
    out.push(FORMAT);
    out.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
    out.extend_from_slice(&content);
    Ok(out.into())
}

/// Check and parse.
pub fn decode(bytes: &[u8]) -> Result<Decoded, SnapshotError> {
    let (Some(header), Some(content)) = (bytes.get(..HEADER), bytes.get(HEADER..)) else {
        return Err(SnapshotError::NotASnapshot);
    };
    if &header[..8] != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    if header[8] > FORMAT {
        return Err(SnapshotError::Format(header[8]));
    }
    if crc32c::crc32c(content).to_le_bytes() != header[9..] {
        return Err(SnapshotError::Checksum);
    }
    let bad = |e: String| SnapshotError::Content(e);
    let file = v1::RaftSnapshotFile::decode(content).map_err(|e| bad(e.to_string()))?;
    let last_membership: StoredMembership = codec::stored_membership_from(file.membership).map_err(|e| bad(e.to_string()))?;
    let meta = SnapshotMeta { last_log_id: file.last_log_id.map(codec::log_id_from), last_membership };
    let state = serde_json::from_slice(&file.state).map_err(|e| bad(e.to_string()))?;
    Ok(Decoded { meta, state })
}

/// Where the snapshot of one node lives.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    dir: PathBuf,
    /// End of the newest snapshot saved. Building one goes on while another is installed; the older must not win.
    newest: Arc<Mutex<Option<LogId>>>,
}

impl SnapshotDir {
    pub fn new(dir: &Path) -> SnapshotDir {
        SnapshotDir { dir: dir.to_owned(), newest: Arc::default() }
    }

    /// Read and check the snapshot, if there is one. Blocking.
    pub fn load(&self) -> Result<Option<(Decoded, Bytes)>, SnapshotError> {
        let path = self.dir.join("snapshot");
        match std::fs::read(&path) {
            Ok(bytes) => {
                let decoded = decode(&bytes)?;
                *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = decoded.meta.last_log_id;
                Ok(Some((decoded, bytes.into())))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SnapshotError::Io { path, source }),
        }
    }

    /// Replace the snapshot durably, unless a newer one is there. Says whether it did. Blocking.
    pub fn save(&self, meta: &SnapshotMeta, bytes: &[u8]) -> io::Result<bool> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if *newest > meta.last_log_id {
            return Ok(false);
        }
        let temporary = self.dir.join("snapshot.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.dir.join("snapshot"))?;
        File::open(&self.dir)?.sync_all()?;
        *newest = meta.last_log_id;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_snapshot_never_replaces_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::new(dir.path());
        let ending_at = |index| SnapshotMeta {
            last_log_id: Some(codec::log_id_from(v1::RaftLogId { term: 1, node: 1, index })),
            ..SnapshotMeta::default()
        };
        let bytes = |meta: &SnapshotMeta| encode(meta, &ClusterState::default()).unwrap();
        let (newer, older) = (ending_at(9), ending_at(7));
        assert!(snapshots.save(&newer, &bytes(&newer)).unwrap());
        assert!(!snapshots.save(&older, &bytes(&older)).unwrap());
        assert_eq!(snapshots.load().unwrap().unwrap().0.meta, newer);
    }

    #[test]
    fn damaged_snapshot_is_never_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::new(dir.path());
        assert!(snapshots.load().unwrap().is_none());
        let state = ClusterState { name: "demo".into(), ..ClusterState::default() };
        let bytes = encode(&SnapshotMeta::default(), &state).unwrap();
        assert!(snapshots.save(&SnapshotMeta::default(), &bytes).unwrap());
        let (decoded, read) = snapshots.load().unwrap().unwrap();
        assert_eq!((decoded.state, read), (state, bytes.clone()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
