//! sled 0.34 as an engine, with the durable barrier that it lacks.
//!
//! On Linux `Db::flush` ends in `sync_file_range`, which flushes neither the file's metadata nor the disk's cache; sled's own
//! fsync happens in a background thread, and its failure is only logged. So after each flush we call `fdatasync` on a descriptor
//! of our own: it works on the inode, whoever wrote it. The power-loss test shows that without it acknowledged entries are lost.

use super::{Change, Engine, StoreError, Tree};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// sled's default of 1 GiB is for databases; this one holds a few megabytes, and its values are in memory anyway.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// sled collects garbage in its flusher, so the flusher stays on; durability is the barrier's.
const FLUSH_EVERY_MS: u64 = 2_000;

/// A sled database in a directory of its own.
pub struct SledEngine {
    db: sled::Db,
    log: sled::Tree,
    meta: sled::Tree,
    /// Own descriptor of the file that sled appends to.
    file: File,
}

impl SledEngine {
    /// Open or create the database in `path`, and make its directory entries durable.
    pub fn open(path: &Path) -> Result<SledEngine, StoreError> {
        SledEngine::open_with(path, Some(FLUSH_EVERY_MS))
    }

    pub(super) fn open_with(path: &Path, flush_every_ms: Option<u64>) -> Result<SledEngine, StoreError> {
        let io_error = |source| StoreError::Io { path: path.to_owned(), source };
        create_durably(path).map_err(io_error)?;
        // sled panics on some kinds of damage instead of returning an error.
        let opened = catch_unwind(AssertUnwindSafe(|| -> sled::Result<_> {
            let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(flush_every_ms).open()?;
            let (log, meta) = (db.open_tree("log")?, db.open_tree("meta")?);
            Ok((db, log, meta))
        }));
        let corrupt = |what: String| StoreError::Corrupt { path: path.to_owned(), what };
        let (db, log, meta) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(sled::Error::Io(e))) if e.to_string().contains("could not acquire lock") => {
                return Err(StoreError::Locked { path: path.to_owned() });
            }
            Ok(Err(sled::Error::Io(e))) => return Err(io_error(e)),
            Ok(Err(e)) => return Err(corrupt(e.to_string())),
            Err(_) => return Err(corrupt("the database cannot be read".to_owned())),
        };
        let file = File::open(path.join("db")).map_err(io_error)?;
        let mut engine = SledEngine { db, log, meta, file };
        engine.barrier().and_then(|()| sync_dir(path)).map_err(io_error)?;
        Ok(engine)
    }

    /// The first half of the barrier: everything applied has been written, but not synced.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.db.flush().map(drop).map_err(io::Error::from)
    }

    /// The second half: everything written is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn tree(&self, tree: Tree) -> &sled::Tree {
        match tree {
            Tree::Log => &self.log,
            Tree::Meta => &self.meta,
        }
    }
}

impl Engine for SledEngine {
    fn apply_batch(&mut self, tree: Tree, batch: Vec<Change>) -> io::Result<()> {
        let mut out = sled::Batch::default();
        for change in batch {
            match change {
                Change::Put(key, value) => out.insert(key, value),
                Change::Delete(key) => out.remove(key),
            }
        }
        Ok(self.tree(tree).apply_batch(out)?)
    }

    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.tree(tree).get(key)?.map(|value| value.to_vec()))
    }

    fn range(&self, tree: Tree) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let read = || self.tree(tree).iter().map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect::<sled::Result<Vec<_>>>();
        match catch_unwind(AssertUnwindSafe(read)) {
            Ok(pairs) => Ok(pairs?),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the database cannot be read")),
        }
    }

    fn barrier(&mut self) -> io::Result<()> {
        self.flush()?;
        self.sync()
    }

    fn size(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

/// Create `path` and its parents, and fsync each directory that got a new entry.
pub fn create_durably(path: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut at = Some(path);
    while let Some(dir) = at.filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        missing.push(dir.to_owned());
        at = dir.parent();
    }
    for dir in missing.iter().rev() {
        std::fs::create_dir(dir)?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

/// Make the entries of a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
