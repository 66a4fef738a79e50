//! The durable part of consensus: votes and log entries that survive the loss of power.
//!
//! ```text
//!   openraft ──► LogStore ──► writer thread ──► Engine (sled) ──► barrier ──► mark ──► callbacks
//!                  │ whole log and vote also in memory: reads never touch the disk
//! ```
//! One thread writes. It takes everything that waits, applies it, makes the group durable with one barrier, and only then answers.
//! Whatever was answered survives; what was not may be gone, from the end backwards. After a failed barrier nothing is retried:
//! the kernel may have dropped the pages and a second fsync would lie. Every later request fails, and the node must stop.
//!
//! Layout: tree `log` (u64 big-endian → format byte, crc32c, prost), tree `meta` (vote, committed, purged, node, cluster, create,
//! format), and beside the database the file `acknowledged` (see [`mark`]). Entry point: [`LogStore::open`].
//! Deliberately absent: snapshots (plain files, `consensus::snapshot`), and any knowledge of what an entry means.

mod frame;
mod log_store;
mod mark;
mod memory;
mod recover;
mod sled_engine;
mod writer;

#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod tests;

pub use log_store::{LogStore, Meta, StoreStats};
pub use memory::MemoryEngine;
pub use recover::Recovered;
pub use sled_engine::SledEngine;

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// One of the two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    Log,
    Meta,
}

/// One step of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
}

/// What a key-value store must do to carry the log. `apply_batch` and `get` see each other's effects at once; nothing is durable
/// before `barrier` returns, and everything applied before it is durable after. Batches survive a crash in order: never a later
/// one without all earlier ones.
pub trait Engine: Send + 'static {
    fn apply_batch(&mut self, tree: Tree, batch: Vec<Change>) -> io::Result<()>;
    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// All pairs in key order; an item that cannot be read is an error in its place.
    fn range(&self, tree: Tree) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>;
    fn barrier(&mut self) -> io::Result<()>;
    /// Bytes on disk.
    fn size(&self) -> u64;
}

/// Why the store of this node cannot be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot use {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is in use by another process; stop it first, or give this node a data_dir of its own")]
    Locked { path: PathBuf },
    #[error("{path} has format {found}, this release reads up to {known}: start it with the release that wrote it, or a newer one")]
    Format { path: PathBuf, found: u8, known: u8 },
    /// Something that this node promised or acknowledged is damaged or gone. Going on could lose a committed entry or vote twice.
    #[error(
        "the consensus log in {path} is damaged: {what}. This node must not go on with it. Move the directory aside (mv {path} \
         {path}.damaged) and start the node again: it rejoins the cluster empty, under a new id; its PostgreSQL data is not touched"
    )]
    Corrupt { path: PathBuf, what: String },
}
