//! What openraft sees of the store. The whole log is in memory (snapshots keep it short), so reading never waits for the disk;
//! writing goes through the writer thread.

use super::mark::{FoundMark, Mark, MarkFile};
use super::recover::{self, KEY_FORMAT, Recovered};
use super::writer::{self, Figures, QUEUE, Request, Writer};
use super::{Change, Engine, SledEngine, StoreError, Tree, frame, sled_engine};
use crate::consensus::codec;
use crate::consensus::raft::{Entry, FORMAT, LogId, TypeConfig, Vote};
use crate::telemetry::Clock;
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use prost::Message;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Small facts beside the log, by name.
pub type Meta = BTreeMap<Vec<u8>, Vec<u8>>;

/// Figures for `raft status` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StoreStats {
    /// 99th percentile of the last barriers.
    pub fsync_p99: Option<Duration>,
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Content {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    meta: Meta,
}

/// Handle on the open store. Clones share it; the writer thread ends with the last of them.
#[derive(Clone)]
pub struct LogStore {
    content: Arc<RwLock<Content>>,
    requests: mpsc::Sender<Request>,
    figures: Arc<Figures>,
    failed: watch::Receiver<Option<String>>,
}

impl LogStore {
    /// Open or create the store in `dir`. Blocking. The second value says what damage was cut off, if any.
    pub fn open(dir: &Path, clock: Clock) -> Result<(LogStore, Option<String>), StoreError> {
        let io_error = |source| StoreError::Io { path: dir.to_owned(), source };
        sled_engine::create_durably(dir).map_err(io_error)?;
        let engine = SledEngine::open(&dir.join("sled")).map_err(|e| of_directory(e, dir))?;
        let (mark, found) = MarkFile::open(&dir.join("acknowledged")).map_err(io_error)?;
        sled_engine::sync_dir(dir).map_err(io_error)?;
        LogStore::with_engine(engine, mark, found, clock, dir)
    }

    /// Over any engine; in memory there is no mark.
    pub fn over(engine: impl Engine, clock: Clock) -> Result<LogStore, StoreError> {
        let (store, _) = LogStore::with_engine(engine, MarkFile::absent(), FoundMark::default(), clock, Path::new("memory"))?;
        Ok(store)
    }

    pub(super) fn with_engine(
        mut engine: impl Engine,
        mut mark: MarkFile,
        found: FoundMark,
        clock: Clock,
        dir: &Path,
    ) -> Result<(LogStore, Option<String>), StoreError> {
        let recovered = load(&engine, found, dir)?;
        let cut = recovered.cut.clone();
        let next = recovered.entries.keys().next_back().map_or(recovered.purged.map_or(0, |p| p.index() + 1), |last| last + 1);
        let settle = |engine: &mut dyn EngineDyn| -> io::Result<()> {
            engine.delete_log(recovered.delete.clone())?;
            engine.put_meta(KEY_FORMAT, &[FORMAT])?;
            engine.sync()
        };
        settle(&mut engine)
            .and_then(|()| mark.write(Mark { next, vote: recovered.vote }, true))
            .map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
        Ok((LogStore::start(engine, mark, recovered, clock, dir)?, cut))
    }

    fn start(engine: impl Engine, mark: MarkFile, found: Recovered, clock: Clock, dir: &Path) -> Result<LogStore, StoreError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (failed_tx, failed) = watch::channel(None);
        let figures = Arc::new(Figures::default());
        figures.size.store(engine.size(), Ordering::Relaxed);
        let writer = Writer { engine, mark, clock, figures: figures.clone(), failed: failed_tx.clone() };
        std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer::run(writer, queue, &failed_tx))
            .map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
        let content =
            Content { entries: found.entries, vote: found.vote, committed: found.committed, purged: found.purged, meta: found.meta };
        Ok(LogStore { content: Arc::new(RwLock::new(content)), requests, figures, failed })
    }

    /// A fact beside the log.
    pub fn meta(&self, key: &str) -> Option<Vec<u8>> {
        self.read().meta.get(key.as_bytes()).cloned()
    }

    /// Store facts beside the log, durably when this returns.
    pub async fn put_meta(&self, pairs: Vec<(&str, Vec<u8>)>) -> io::Result<()> {
        let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (k.as_bytes().to_vec(), v)).collect();
        let (done, answer) = oneshot::channel();
        self.send(Request::Meta(pairs.clone(), done)).await?;
        wait(answer).await?;
        self.write().meta.extend(pairs);
        Ok(())
    }

    /// No vote and no entry: this node has never taken part in consensus.
    pub fn is_pristine(&self) -> bool {
        let content = self.read();
        content.vote.is_none() && content.entries.is_empty() && content.purged.is_none()
    }

    /// Last log id that was purged: a snapshot must cover it.
    pub fn purged(&self) -> Option<LogId> {
        self.read().purged
    }

    /// Why the store failed, once it has.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    pub fn stats(&self) -> StoreStats {
        StoreStats { fsync_p99: self.figures.barrier_p99(), bytes: self.figures.size.load(Ordering::Relaxed) }
    }

    /// Close the database, so that the directory can be opened again while handles on this one still exist.
    pub async fn close(&self) {
        let (done, answer) = oneshot::channel();
        if self.send(Request::Close(done)).await.is_ok() {
            // An error means that the writer has ended already.
            drop(answer.await);
        }
    }

    async fn send(&self, request: Request) -> io::Result<()> {
        self.requests.send(request).await.map_err(|_| writer_gone())
    }

    fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(&mut self, range: RB) -> io::Result<Vec<Entry>> {
        let content = self.read();
        // `BTreeMap::range` panics on an empty range given backwards.
        if let (Bound::Included(a), Bound::Excluded(b)) = (range.start_bound(), range.end_bound())
            && a >= b
        {
            return Ok(Vec::new());
        }
        Ok(content.entries.range((range.start_bound().cloned(), range.end_bound().cloned())).map(|(_, e)| e.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.read().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let content = self.read();
        let last = content.entries.values().next_back().map(|e| e.log_id);
        Ok(LogState { last_purged_log_id: content.purged, last_log_id: last.or(content.purged) })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(Request::SaveVote(*vote, done)).await?;
        wait(answer).await?;
        self.write().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.write().committed = committed;
        self.send(Request::Committed(committed)).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        {
            let mut content = self.write();
            for entry in entries {
                encoded.push((entry.index(), codec::entry(&entry).encode_to_vec()));
                content.entries.insert(entry.index(), entry);
            }
        }
        self.send(Request::Append(encoded, callback)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let keep = last_log_id.map_or(0, |id| id.index() + 1);
        let end = {
            let mut content = self.write();
            let end = content.entries.keys().next_back().map_or(keep, |last| last + 1);
            content.entries.split_off(&keep);
            end
        };
        let (done, answer) = oneshot::channel();
        self.send(Request::Truncate(keep..end.max(keep), done)).await?;
        wait(answer).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let end = log_id.index() + 1;
        let start = {
            let mut content = self.write();
            let start = content.entries.keys().next().copied().unwrap_or(end).min(end);
            content.entries = content.entries.split_off(&end);
            content.purged = Some(log_id);
            start
        };
        let (done, answer) = oneshot::channel();
        self.send(Request::Purge(log_id, start..end, done)).await?;
        wait(answer).await
    }
}

/// The few steps of opening that need an engine, in one place.
trait EngineDyn {
    fn delete_log(&mut self, keys: Vec<Vec<u8>>) -> io::Result<()>;
    fn put_meta(&mut self, key: &[u8], payload: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl<E: Engine> EngineDyn for E {
    fn delete_log(&mut self, keys: Vec<Vec<u8>>) -> io::Result<()> {
        if keys.is_empty() { Ok(()) } else { self.apply_batch(Tree::Log, keys.into_iter().map(Change::Delete).collect()) }
    }

    fn put_meta(&mut self, key: &[u8], payload: &[u8]) -> io::Result<()> {
        self.apply_batch(Tree::Meta, vec![Change::Put(key.to_vec(), frame::seal(key, payload))])
    }

    fn sync(&mut self) -> io::Result<()> {
        self.barrier()
    }
}

fn load(engine: &impl Engine, found: FoundMark, dir: &Path) -> Result<Recovered, StoreError> {
    let corrupt = |what: String| StoreError::Corrupt { path: dir.to_owned(), what };
    // The format comes first: a newer release's values must not be called damaged.
    let format = engine.get(Tree::Meta, KEY_FORMAT).map_err(|e| corrupt(e.to_string()))?;
    if let Some(&found) = format.as_ref().and_then(|value| value.first()).filter(|found| **found > FORMAT) {
        return Err(StoreError::Format { path: dir.to_owned(), found, known: FORMAT });
    }
    let read = |tree| engine.range(tree).map_err(|e| corrupt(e.to_string()));
    recover::judge(read(Tree::Log)?, read(Tree::Meta)?, found).map_err(corrupt)
}

/// Name the directory that the operator must move, not the one inside it.
fn of_directory(error: StoreError, dir: &Path) -> StoreError {
    let path = dir.to_owned();
    match error {
        StoreError::Io { source, .. } => StoreError::Io { path, source },
        StoreError::Locked { .. } => StoreError::Locked { path },
        StoreError::Format { found, known, .. } => StoreError::Format { path, found, known },
        StoreError::Corrupt { what, .. } => StoreError::Corrupt { path, what },
    }
}

async fn wait(answer: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    answer.await.unwrap_or_else(|_| Err(writer_gone()))
}

fn writer_gone() -> io::Error {
    io::Error::other("the writer of the consensus log has ended")
}
