//! The replicated state, applied in memory and published.
//!
//! Nothing here is durable by itself: after a restart openraft rebuilds the state from the snapshot and the log, up to the last
//! index known to be committed. The hook runs synchronously at each entry, so that a lease's change is stamped with the time at
//! which this process applied it (INV-9), not the time at which somebody looked.

use super::raft::{Applied, EntryPayload, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use super::snapshot::{self, Decoded, SnapshotDir};
use crate::bug::{self, Bug};
use crate::cluster::{self, ClusterState, Outcome, Proposal};
use crate::ha::Entry;
use crate::telemetry::Recorder;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{OptionalSend, entry::RaftEntry};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// Called with the state after each applied entry and after each installed snapshot. Must not block.
pub type ApplyHook = Arc<dyn Fn(&ClusterState) + Send + Sync>;

/// The snapshot on disk; shared between the state machine and its builders.
#[derive(Clone, Debug, Default)]
struct Current(Arc<RwLock<Option<(SnapshotMeta, Bytes)>>>);

impl Current {
    fn set(&self, meta: SnapshotMeta, bytes: Bytes) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|(known, _)| known.last_log_id <= meta.last_log_id) {
            *current = Some((meta, bytes));
        }
    }

    fn get(&self) -> Option<Snapshot> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|(meta, bytes)| Snapshot { meta: meta.clone(), snapshot: bytes.clone() })
    }
}

/// openraft's view of the replicated state.
pub struct StateMachine {
    state: Arc<ClusterState>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    published: watch::Sender<Arc<ClusterState>>,
    hook: ApplyHook,
    trace: Option<Recorder<Entry>>,
    dir: SnapshotDir,
    current: Current,
}

impl StateMachine {
    /// Start from the snapshot on disk, or from nothing.
    pub fn new(
        dir: SnapshotDir,
        loaded: Option<(Decoded, Bytes)>,
        published: watch::Sender<Arc<ClusterState>>,
        hook: ApplyHook,
        trace: Option<Recorder<Entry>>,
    ) -> Self {
        let current = Current::default();
        let decoded = loaded.map(|(decoded, bytes)| {
            current.set(decoded.meta.clone(), bytes);
            decoded
        });
        let Decoded { meta, state } = decoded.unwrap_or_default();
        let machine = StateMachine {
            state: Arc::new(state),
            last_applied: meta.last_log_id,
            membership: meta.last_membership,
            published,
            hook,
            trace,
            dir,
            current,
        };
        machine.record_state();
        machine.publish();
        machine
    }

    /// Apply one command. Recorded before it is published: whoever decides on the new state comes later in the trace.
    fn change(&mut self, mut proposal: Proposal) -> Outcome {
        let asked = self.trace.is_some().then(|| (self.state.clone(), proposal.clone()));
        if bug::is(Bug::NoCompareAndSet) {
            proposal.expect = proposal.expect.map(|_| self.state.revision);
        }
        let outcome = cluster::apply(Arc::make_mut(&mut self.state), &proposal);
        if bug::is(Bug::RequestAppliedTwice) {
            Arc::make_mut(&mut self.state).requests.clear();
        }
        if let (Some(trace), Some((before, proposal))) = (&self.trace, asked) {
            trace.record(Entry::Applied { before, proposal, outcome: outcome.clone(), after: self.state.clone() });
        }
        self.publish();
        outcome
    }

    fn record_state(&self) {
        if let Some(trace) = &self.trace {
            trace.record(Entry::State(self.state.clone()));
        }
    }

    fn publish(&self) {
        (self.hook)(&self.state);
        self.published.send_replace(self.state.clone());
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let log_id = entry.log_id();
            let answer = match entry.payload {
                EntryPayload::Blank => Applied(None),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership);
                    Applied(None)
                }
                EntryPayload::Normal(data) => {
                    // Skipping an entry that others apply would make this copy differ from theirs: stop instead.
                    let proposal = data.decode().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                    Applied(Some(self.change(proposal)))
                }
            };
            self.last_applied = Some(log_id);
            // Published before answered: whoever is told of an outcome finds it in the state.
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() };
        Builder { meta, state: self.state.clone(), dir: self.dir.clone(), current: self.current.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: Bytes) -> io::Result<()> {
        let (dir, copy, its) = (self.dir.clone(), bytes.clone(), meta.clone());
        let decoded = blocking(move || {
            let decoded = snapshot::decode(&copy).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            dir.save(&its, &copy)?;
            Ok(decoded)
        });
        let decoded = decoded.await?;
        self.current.set(meta.clone(), bytes);
        self.state = Arc::new(decoded.state);
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.record_state();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.current.get())
    }
}

/// Builds one snapshot from a frozen copy of the state.
pub struct Builder {
    meta: SnapshotMeta,
    state: Arc<ClusterState>,
    dir: SnapshotDir,
    current: Current,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (meta, state, dir) = (self.meta.clone(), self.state.clone(), self.dir.clone());
        let bytes = blocking(move || {
            let bytes = snapshot::encode(&meta, &state)?;
            dir.save(&meta, &bytes)?;
            Ok(bytes)
        });
        let bytes = bytes.await?;
        self.current.set(self.meta.clone(), bytes.clone());
        Ok(Snapshot { meta: self.meta.clone(), snapshot: bytes })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
