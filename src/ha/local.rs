//! What `converge` reads: this node's own facts, and what it may do next.

use super::{PostgresFacts, PostgresState, Role, Seal};
use crate::cluster::{ClusterState, SyncRule};
use crate::types::{Epoch, Lsn, NodeId, RequestId, Timeline};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What this node knows about itself at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalState {
    pub me: NodeId,
    /// Newest epoch promised, as on disk (INV-1).
    pub promised: Epoch,
    pub postgres: PostgresFacts,
    /// Upstream that Postgres is configured to stream from, with the epoch under which that was done; `None`: detached.
    pub following: Option<(NodeId, Epoch)>,
    /// Epoch for which the running primary was promoted; `None` on anything else, also on a hand-made primary.
    pub primary_of: Option<Epoch>,
    /// Rule in force in Postgres (synchronous_standby_names of every walsender) and proved by an acknowledged marker write (INV-6).
    pub settled: Option<(Epoch, SyncRule)>,
    pub lease: LeaseBelief,
    /// The lease of `promised` is being given back; renewals have stopped.
    pub released: bool,
    /// Promotion in this epoch failed for good.
    pub gave_up: Option<Epoch>,
    /// A clone or rewind broke off midway: this data directory must never be started.
    pub poisoned: bool,
    /// The last attempt to rewind or to follow showed that only a fresh copy helps; holds the words of the failure.
    pub needs_clone: Option<String>,
    /// Preparation (CHECKPOINT) done for this switchover.
    pub prepared: Option<RequestId>,
    /// The primary of the present epoch as it last described itself, if that is recent.
    pub upstream: Option<Upstream>,
    /// Postgres has not answered a new connection for the hang timeout.
    pub hung: bool,
    /// The storage has taken no WAL for the stall timeout, though processes wait for it.
    pub stalled: bool,
    /// Initialise from a data directory that exists, rather than with initdb.
    pub adopt_existing: bool,
}

/// What a standby must know of its primary before it follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub node: NodeId,
    /// It runs as primary of the present epoch.
    pub accepting: bool,
    pub timeline: Timeline,
    /// Its ancestors with the position at which each was left.
    pub ancestry: Vec<(Timeline, Lsn)>,
}

/// This node's belief about its lease at `now`; volatile, empty after a restart (INV-9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseBelief {
    #[default]
    None,
    Valid {
        epoch: Epoch,
    },
    /// Within the fencing margin or beyond the deadline: stop serving now.
    Ending {
        epoch: Epoch,
    },
}

impl LocalState {
    /// The seal this node can give now: promise on disk, not a primary, no WAL receiver, end of WAL known. Of a directory that a rewind
    /// has ruined, the end is that from before the rewind: nothing was received since. A copy of the state `s` older than the promise, as
    /// after a restart, does not know who wrote the last WAL: it would tell too old a writer (INV-7).
    #[must_use]
    pub fn seal(&self, s: &ClusterState) -> Option<Seal> {
        if s.epoch < self.promised {
            return None;
        }
        let quiet = match self.postgres.state {
            PostgresState::Stopped => true,
            PostgresState::Running => self.postgres.role == Some(Role::Standby) && self.postgres.streaming_from.is_none(),
            PostgresState::Unknown
            | PostgresState::Absent
            | PostgresState::Starting
            | PostgresState::Stopping
            | PostgresState::Cloning
            | PostgresState::Rewinding => false,
        };
        let end = self.postgres.position?;
        let ruined = self.poisoned;
        let still = !ruined || self.postgres.state == PostgresState::Stopped;
        (quiet && still && self.following.is_none()).then_some(Seal { epoch: self.promised, end, ruined })
    }
}

/// One idempotent step towards the replicated target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Persist the promise (fsync). Acting on the epoch comes after (INV-1).
    Promise {
        epoch: Epoch,
    },
    /// Stop the WAL receiver and wait until it has gone.
    Detach,
    /// A primary without right: immediate shutdown.
    Demote,
    /// Take the lease of this epoch and with it the timeline.
    AcquireLease {
        epoch: Epoch,
    },
    ReleaseLease {
        epoch: Epoch,
    },
    InitDb,
    /// Start as a standby that follows nobody.
    StartDetached,
    /// Set the upstream, starting Postgres as a standby if it is down.
    Follow {
        primary: NodeId,
        epoch: Epoch,
    },
    /// Clean stop, before a rewind or a clone or because of a fence.
    Stop,
    /// pg_rewind against the primary; interrupted, it poisons the directory.
    Rewind {
        primary: NodeId,
    },
    /// Replace the data directory by a base backup, keeping the old one aside while disk allows.
    Clone {
        primary: NodeId,
    },
    /// Put `rule` into the configuration, make PostgreSQL choose `timeline`, promote.
    Promote {
        epoch: Epoch,
        timeline: Timeline,
        rule: SyncRule,
    },
    /// Put `rule` in force, prove it with a marker write.
    ApplyRule {
        epoch: Epoch,
        rule: SyncRule,
    },
    /// CHECKPOINT, so that the shutdown of a switchover is short.
    Prepare {
        request: RequestId,
    },
    /// End transactions, then fast shutdown, which ships all WAL.
    Drain,
}

/// Why this step, or why none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepReason {
    Converged,
    Witness,
    Fenced,
    StateIsOld {
        mine: Epoch,
        state: Epoch,
    },
    NewEpoch {
        epoch: Epoch,
    },
    NoRightToServe,
    /// Postgres has not answered for the hang timeout.
    Unresponsive,
    StorageStalls,
    LeaseNeeded,
    LeaseUnused,
    NotBootstrapped,
    Bootstrapping,
    Sealing,
    Sealed,
    Busy(PostgresState),
    Elected,
    RuleChanged,
    PreparingSwitchover,
    Draining,
    Drained,
    WaitingForPrimary(NodeId),
    NoData,
    Poisoned,
    Diverged {
        mine: Timeline,
    },
    CloneNeeded(String),
    UnknownPosition,
    Following(NodeId),
    /// INV-10: this may be the only copy; it is neither rewound nor wiped.
    LastCopyKept,
    /// Postgres belongs to another cluster.
    ForeignSystem,
}

/// The next step and its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub action: Option<Action>,
    pub reason: StepReason,
}

impl fmt::Display for StepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepReason::Converged => write!(f, "nothing to do"),
            StepReason::Witness => write!(f, "witness: votes, holds no data"),
            StepReason::Fenced => write!(f, "fenced by an administrator"),
            StepReason::StateIsOld { mine, state } => {
                write!(f, "promised epoch {mine}, my copy of the state is of epoch {state}: waiting for it")
            }
            StepReason::NewEpoch { epoch } => write!(f, "epoch {epoch} began: promising it"),
            StepReason::NoRightToServe => write!(f, "running as primary without the lease of this epoch: stopping"),
            StepReason::StorageStalls => {
                write!(
                    f,
                    "the storage takes no WAL: commits wait for it, giving up the right to write (look at the disk of the data directory)"
                )
            }
            StepReason::Unresponsive => {
                write!(f, "postgres does not answer, and may be a primary or is awaited by an election: stopping it")
            }
            StepReason::LeaseNeeded => write!(f, "elected: taking the lease"),
            StepReason::LeaseUnused => write!(f, "Postgres is not primary any more: giving the lease back"),
            StepReason::NotBootstrapped => write!(f, "no database yet: waiting for the first member to initialise"),
            StepReason::Bootstrapping => write!(f, "initialising the database"),
            StepReason::Sealing => write!(f, "turning away from the old primary"),
            StepReason::Sealed => write!(f, "sealed: waiting for the election"),
            StepReason::Busy(what) => write!(f, "postgres is {what:?}"),
            StepReason::Elected => write!(f, "elected: promoting"),
            StepReason::RuleChanged => write!(f, "putting the rule in force and proving it"),
            StepReason::PreparingSwitchover => write!(f, "checkpoint before the switchover"),
            StepReason::Draining => write!(f, "draining transactions, then shutting down"),
            StepReason::Drained => write!(f, "drained: waiting for the election"),
            StepReason::WaitingForPrimary(node) => write!(f, "waiting for {node} to accept writes"),
            StepReason::NoData => write!(f, "no data yet: copying from the primary"),
            StepReason::Poisoned => write!(f, "an interrupted copy is unusable: copying from the primary"),
            StepReason::Diverged { mine } => write!(f, "timeline {mine} left the primary's history: rewinding"),
            StepReason::CloneNeeded(why) => write!(f, "copying from the primary: {why}"),
            StepReason::UnknownPosition => write!(f, "end of WAL unknown: recovering"),
            StepReason::Following(node) => write!(f, "following {node}"),
            StepReason::LastCopyKept => write!(f, "may hold the only copy of acknowledged writes: keeping it untouched"),
            StepReason::ForeignSystem => write!(f, "this data directory belongs to another database system: refusing to touch it"),
        }
    }
}
