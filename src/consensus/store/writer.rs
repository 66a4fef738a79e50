//! The one thread that writes: group commit.
//!
//! Invariant: a request is answered only after the barrier of the group it was in, and the mark is noted between the two. After
//! the first failure nothing is written again and everything is refused. A panic is such a failure: it ends the thread, and whoever
//! watches `failed` is told.

use super::frame;
use super::mark::{Mark, MarkFile};
use super::recover::{KEY_COMMITTED, KEY_PURGED, KEY_VOTE};
use super::{Change, Engine, Tree};
use crate::bug::{self, Bug};
use crate::consensus::codec;
use crate::consensus::raft::{LogId, TypeConfig, Vote};
use crate::telemetry::Clock;
use openraft::storage::IOFlushed;
use prost::Message;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait for the writer; openraft itself is bounded too.
pub const QUEUE: usize = 1024;
/// Requests that share one barrier.
const GROUP_MAX: usize = 256;
/// Barriers whose duration is remembered, for the percentile: some minutes of an idle cluster.
const BARRIERS_KEPT: usize = 512;

pub type Done = oneshot::Sender<io::Result<()>>;

/// What the writer is asked to do.
pub enum Request {
    /// Serialized entries, and openraft's callback.
    Append(Vec<(u64, Vec<u8>)>, IOFlushed<TypeConfig>),
    SaveVote(Vote, Done),
    /// Delete these indices from the end of the log; openraft never asks this of a committed one.
    Truncate(Range<u64>, Done),
    /// Delete these indices from its beginning.
    Purge(LogId, Range<u64>, Done),
    /// Rides with the next barrier: an older value costs only a longer replay.
    Committed(Option<LogId>),
    Meta(Vec<(Vec<u8>, Vec<u8>)>, Done),
    /// Finish what waits, close the database and end. Answered when its lock is free.
    Close(Done),
}

/// Figures that the writer leaves behind.
#[derive(Debug, Default)]
pub struct Figures {
    barriers: Mutex<VecDeque<Duration>>,
    pub size: AtomicU64,
}

impl Figures {
    fn record(&self, took: Duration) {
        let mut barriers = self.barriers.lock().unwrap_or_else(PoisonError::into_inner);
        if barriers.len() == BARRIERS_KEPT {
            barriers.pop_front();
        }
        barriers.push_back(took);
    }

    /// 99th percentile of the last barriers.
    pub fn barrier_p99(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.barriers.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * 99 / 100).copied()
    }
}

pub struct Writer<E> {
    pub engine: E,
    pub mark: MarkFile,
    pub clock: Clock,
    pub figures: std::sync::Arc<Figures>,
    /// Why the store failed; set once.
    pub failed: watch::Sender<Option<String>>,
}

enum Answer {
    Raft(IOFlushed<TypeConfig>),
    Caller(Done),
}

/// The whole life of the thread. Its own end is told too where it is no orderly one: openraft does not hear of the callbacks that a
/// panic takes along, and would take a log that is never written for a slow one.
pub fn run(writer: Writer<impl Engine>, requests: mpsc::Receiver<Request>, failed: &watch::Sender<Option<String>>) {
    // Nothing of the writer is used after a panic.
    if catch_unwind(AssertUnwindSafe(|| writer.run(requests))).is_err() {
        let why = "the thread that writes it panicked; standard error says where";
        failed.send_if_modified(|known| known.is_none() && known.replace(why.to_owned()).is_none());
    }
}

impl<E: Engine> Writer<E> {
    /// Until it is closed or the last sender is gone.
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        let mut closing = None;
        while closing.is_none()
            && let Some(first) = requests.blocking_recv()
        {
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Request::Close(done) => closing = Some(done),
                    other => group.push(other),
                }
                next = (closing.is_none() && group.len() < GROUP_MAX).then(|| requests.try_recv().ok()).flatten();
            }
            self.commit(&mut group);
        }
        drop(self);
        if let Some(done) = closing {
            // Whoever asked may have stopped waiting; the store is closed either way.
            drop(done.send(Ok(())));
        }
    }

    fn commit(&mut self, group: &mut Vec<Request>) {
        let mut answers = Vec::with_capacity(group.len());
        let failed = self.failed.borrow().clone();
        let result = match failed {
            Some(why) => {
                group.drain(..).for_each(|request| answers.extend(answer_of(request)));
                Err(io::Error::other(why))
            }
            None => self.write_group(group, &mut answers),
        };
        if let Err(e) = &result {
            self.failed.send_if_modified(|known| known.is_none() && known.replace(e.to_string()).is_none());
        }
        for answer in answers {
            let copy = match &result {
                Ok(()) => Ok(()),
                Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
            };
            match answer {
                Answer::Raft(callback) => callback.io_completed(copy),
                // The caller may have given up; the write stands.
                Answer::Caller(done) => drop(done.send(copy)),
            }
        }
    }

    fn write_group(&mut self, group: &mut Vec<Request>, answers: &mut Vec<Answer>) -> io::Result<()> {
        let mut mark = self.mark.current();
        let mut first_error = Ok(());
        for request in group.drain(..) {
            if first_error.is_ok() {
                first_error = self.apply(&request, &mut mark);
            }
            answers.extend(answer_of(request));
        }
        first_error?;
        if answers.is_empty() {
            return Ok(());
        }
        let began = self.clock.precise();
        if !bug::is(Bug::LogNotSynced) {
            self.engine.barrier()?;
        }
        self.figures.record(self.clock.precise().saturating_sub(began));
        self.figures.size.store(self.engine.size(), Ordering::Relaxed);
        self.mark.write(mark, false)
    }

    fn apply(&mut self, request: &Request, mark: &mut Mark) -> io::Result<()> {
        match request {
            Request::Append(entries, _) => {
                let puts = entries.iter().map(|(index, bytes)| {
                    let key = index.to_be_bytes().to_vec();
                    let value = frame::seal(&key, bytes);
                    Change::Put(key, value)
                });
                mark.next = entries.last().map_or(mark.next, |(index, _)| index + 1);
                self.engine.apply_batch(Tree::Log, puts.collect())
            }
            Request::SaveVote(..) if bug::is(Bug::VoteForgotten) => Ok(()),
            Request::SaveVote(vote, _) => {
                mark.vote = Some(*vote);
                self.put_meta(KEY_VOTE, &codec::vote(vote).encode_to_vec())
            }
            Request::Truncate(range, _) => {
                mark.next = mark.next.min(range.start);
                // Lowered durably first, or a loss of power could leave a mark beyond the log's end: a false alarm.
                let lowered = Mark { next: self.mark.current().next.min(range.start), ..self.mark.current() };
                self.mark.write(lowered, true)?;
                self.delete(range)
            }
            Request::Purge(upto, range, _) => {
                self.put_meta(KEY_PURGED, &codec::log_id(upto).encode_to_vec())?;
                // The two trees are written in this order, and sled keeps the order of its log: never a hole without `purged`.
                mark.next = mark.next.max(upto.index() + 1);
                self.delete(range)
            }
            Request::Committed(Some(id)) => self.put_meta(KEY_COMMITTED, &codec::log_id(id).encode_to_vec()),
            Request::Committed(None) | Request::Close(_) => Ok(()),
            Request::Meta(pairs, _) => pairs.iter().try_for_each(|(key, value)| self.put_meta(key, value)),
        }
    }

    fn put_meta(&mut self, key: &[u8], payload: &[u8]) -> io::Result<()> {
        self.engine.apply_batch(Tree::Meta, vec![Change::Put(key.to_vec(), frame::seal(key, payload))])
    }

    fn delete(&mut self, range: &Range<u64>) -> io::Result<()> {
        // A batch is atomic in sled: a crash leaves all of the range or nothing of it, and the log has no hole.
        let deletes = range.clone().map(|index| Change::Delete(index.to_be_bytes().to_vec()));
        self.engine.apply_batch(Tree::Log, deletes.collect())
    }
}

fn answer_of(request: Request) -> Option<Answer> {
    match request {
        Request::Append(_, callback) => Some(Answer::Raft(callback)),
        Request::SaveVote(_, done)
        | Request::Truncate(_, done)
        | Request::Purge(_, _, done)
        | Request::Meta(_, done)
        | Request::Close(done) => Some(Answer::Caller(done)),
        Request::Committed(_) => None,
    }
}
