//! An engine in memory that forgets what was not synced, for tests of what is built on top of the store.

use super::{Change, Engine, Tree};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

type Pairs = BTreeMap<(Tree, Vec<u8>), Vec<u8>>;

/// Content after each batch since the last barrier: a crash may leave any prefix of them.
#[derive(Debug, Default)]
struct Disk {
    durable: Pairs,
    volatile: Pairs,
    unsynced: Vec<(Tree, Vec<Change>)>,
    fail_barrier: bool,
    panic: bool,
}

/// Shares its disk with its clones, so that a test can crash it and open it again.
#[derive(Clone, Debug, Default)]
pub struct MemoryEngine {
    disk: Arc<Mutex<Disk>>,
}

impl MemoryEngine {
    /// Lose power: of the batches since the last barrier the first `kept` survive.
    pub fn crash(&self, kept: usize) {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let survivors: Vec<_> = disk.unsynced.drain(..).take(kept).collect();
        let mut durable = std::mem::take(&mut disk.durable);
        for (tree, batch) in survivors {
            apply(&mut durable, tree, batch);
        }
        disk.volatile = durable.clone();
        disk.durable = durable;
    }

    /// From now on the disk refuses to sync.
    pub fn fail_barriers(&self) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).fail_barrier = true;
    }

    /// From now on the engine panics, as one with a mistake would.
    pub fn panic(&self) {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).panic = true;
    }
}

impl Engine for MemoryEngine {
    fn apply_batch(&mut self, tree: Tree, batch: Vec<Change>) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        apply(&mut disk.volatile, tree, batch.clone());
        disk.unsynced.push((tree, batch));
        Ok(())
    }

    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(disk.volatile.get(&(tree, key.to_vec())).cloned())
    }

    fn range(&self, tree: Tree) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(disk.volatile.iter().filter(|((t, _), _)| *t == tree).map(|((_, k), v)| (k.clone(), v.clone())).collect())
    }

    fn barrier(&mut self) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!disk.panic, "the engine was told to panic");
        if disk.fail_barrier {
            return Err(io::Error::other("input/output error"));
        }
        disk.unsynced.clear();
        disk.durable = disk.volatile.clone();
        Ok(())
    }

    fn size(&self) -> u64 {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.durable.iter().map(|((_, k), v)| (k.len() + v.len()) as u64).sum()
    }
}

fn apply(pairs: &mut Pairs, tree: Tree, batch: Vec<Change>) {
    for change in batch {
        match change {
            Change::Put(key, value) => drop(pairs.insert((tree, key), value)),
            Change::Delete(key) => drop(pairs.remove(&(tree, key))),
        }
    }
}
