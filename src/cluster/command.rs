//! Everything that can change the replicated state.

use super::{Member, Secrets, Settings, SyncRule, Tags};
use crate::types::{ClusterId, Epoch, Lsn, NodeId, RequestId, Revision, SystemId, Timeline};
use serde::{Deserialize, Serialize};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The revision that this was decided on; a stale one is rejected (INV-2). `None` only for commands that carry their own
    /// compare-and-set: the lease's (holder, epoch, seq) and those of membership and settings.
    pub expect: Option<Revision>,
    /// Present on an administrator's command: applied at most once (INV-12).
    #[serde(default)]
    pub request: Option<RequestId>,
    pub command: Command,
}

/// Why an election was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElectionCause {
    /// The very first primary.
    Bootstrap,
    /// Nobody renewed the lease for its full length.
    LeaseExpired,
    /// The primary gave the lease back, or reported its Postgres dead.
    PrimaryDown,
    /// Its process and its postmaster both refuse connections.
    ProvenDead,
    /// A planned change.
    Switchover,
    /// An administrator ordered it.
    Manual,
    /// The chosen candidate was lost or too slow.
    CandidateLost,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// First command of a cluster: its identity, members and settings.
    Create {
        cluster: ClusterId,
        name: String,
        members: Vec<(NodeId, Member)>,
        settings: Settings,
    },

    // ---- the lease: own compare-and-set, no revision (INV-9)
    /// Take the lease of `epoch` as its chosen candidate and claim the next timeline (INV-8).
    AcquireLease {
        node: NodeId,
        epoch: Epoch,
    },
    RenewLease {
        node: NodeId,
        epoch: Epoch,
    },
    /// Only once Postgres is confirmed down or read-only.
    ReleaseLease {
        node: NodeId,
        epoch: Epoch,
    },

    // ---- bootstrap
    /// Once, before there is a database.
    SetSecrets {
        secrets: Secrets,
    },
    /// `node` alone may initialise the database. Granted once; taken over only by `AbandonBootstrap`.
    ClaimBootstrap {
        node: NodeId,
    },
    /// The claimant is lost or failed before it had a database.
    AbandonBootstrap {
        node: NodeId,
    },
    /// The claimant's Postgres holds a database: it becomes primary of epoch 1 through an election of one.
    FinishBootstrap {
        node: NodeId,
        system: SystemId,
        timeline: Timeline,
        lsn: Lsn,
        rule: SyncRule,
    },

    // ---- elections and rules: decided by the controller on a revision
    /// Record the wish; preparation (candidate near, CHECKPOINT) goes on while the primary serves.
    RequestSwitchover {
        to: NodeId,
    },
    StartDrain {
        from: NodeId,
        to: NodeId,
    },
    /// The primary is lost and an administrator names its successor; carried out once the lease has ended.
    RequestFailover {
        to: NodeId,
        accept_loss: bool,
    },
    /// Forget the administrator's wish; while draining, before the shutdown, the old primary resumes.
    CallOff {
        reason: String,
    },
    /// epoch+1. `lease_seq` is the renewal count that the decision saw: one renewal in between rejects it.
    BeginElection {
        preferred: Option<NodeId>,
        cause: ElectionCause,
        lease_seq: u64,
        accept_loss: bool,
    },
    Elect {
        candidate: NodeId,
        rule: SyncRule,
        lsn: Lsn,
    },
    ProposeRule {
        rule: SyncRule,
    },
    /// `epoch` is the one whose marker write proved `rule` (INV-6).
    SettleRule {
        epoch: Epoch,
        rule: SyncRule,
        outage_ms: Option<u64>,
    },

    // ---- administration
    Pause {
        paused: bool,
    },
    Configure {
        settings: Box<Settings>,
    },
    SetTags {
        node: NodeId,
        tags: Tags,
    },
    Fence {
        node: NodeId,
        fenced: bool,
    },
    /// Give `member` a fresh id (`ClusterState::next_node`). A living member of that name is refused; a dead one is named in
    /// `replaces` and leaves with the same command.
    AdmitMember {
        member: Member,
        replaces: Option<NodeId>,
    },
    /// A member's own addresses and kind, told at each start.
    UpdateMember {
        node: NodeId,
        member: Member,
    },
    RemoveMember {
        node: NodeId,
    },
}
