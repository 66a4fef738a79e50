//! Why the controller acts, or why it holds: shown by `status`, logged once per change, asserted in tests (P8).

use crate::cluster::Command;
use crate::types::{NodeId, WalPosition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What should happen next, and why. At most one command: the next decision sees its effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub command: Option<Command>,
    pub reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    AllWell,
    Paused,
    // before there is a database
    WaitingForMembers { missing: BTreeSet<NodeId> },
    NobodyMayInitialise { members: BTreeSet<NodeId> },
    DataWithoutCluster { node: NodeId },
    Bootstrapping { node: NodeId },
    Initialised { node: NodeId },
    BootstrapLost { node: NodeId },
    // the primary
    LeaseExpired { primary: NodeId },
    PrimaryDown { primary: NodeId },
    ProvenDead { primary: NodeId },
    PrimarySilent { primary: NodeId },
    PrimaryRefuses { primary: NodeId },
    NotElectable { missing: BTreeSet<NodeId> },
    // elections
    WaitingForSeals { missing: BTreeSet<NodeId> },
    WaitingForPreferred { node: NodeId },
    NewestNotEligible { node: NodeId },
    LossBoundExceeded,
    MostAdvanced { node: NodeId, position: WalPosition },
    LossAccepted { node: NodeId },
    WaitingForLease { candidate: NodeId },
    WaitingForPromotion { candidate: NodeId },
    WaitingForStandby { candidate: NodeId },
    CandidateLost { candidate: NodeId },
    CandidateSlow { candidate: NodeId },
    // rules
    RuleSettled,
    WaitingForProof,
    StandbysChanged,
    TooFewStandbys { have: usize, need: usize },
    // planned changes
    Preparing { to: NodeId },
    WaitingForCandidate { to: NodeId, why: CandidateLack },
    Prepared { to: NodeId },
    WaitingForDrain { in_flight: u64 },
    Drained { to: NodeId },
    ChangeImpossible { why: String },
    FailoverOrdered { to: NodeId },
}

/// What a switchover's candidate lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateLack {
    Unreachable,
    NotStreaming,
    Behind { bytes: u64 },
}

impl fmt::Display for CandidateLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CandidateLack::Unreachable => write!(f, "it does not answer"),
            CandidateLack::NotStreaming => write!(f, "it does not stream from the primary"),
            CandidateLack::Behind { bytes } => write!(f, "it is {bytes} bytes behind"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::AllWell => write!(f, "all well"),
            Reason::Paused => write!(f, "paused: automatic elections are off"),
            Reason::WaitingForMembers { missing } if missing.is_empty() => {
                write!(f, "waiting for the members to form the cluster before the database is initialised")
            }
            Reason::WaitingForMembers { missing } => write!(f, "waiting for {} before the database is initialised", list(missing)),
            Reason::NobodyMayInitialise { members } if members.is_empty() => {
                write!(f, "no member may hold data: give one a Postgres before the database is initialised")
            }
            Reason::NobodyMayInitialise { members } => {
                write!(
                    f,
                    "nobody may initialise the database: {} may not become primary, being tagged nofailover or fenced; \
                     `trilithon member tag NAME nofailover=false` or `trilithon unfence NAME` lets one",
                    list(members)
                )
            }
            Reason::DataWithoutCluster { node } => {
                write!(
                    f,
                    "{node} holds a data directory that this new cluster does not know; move it aside, or set cluster.bootstrap = \"existing\" on that node"
                )
            }
            Reason::Bootstrapping { node } => write!(f, "{node} initialises the database"),
            Reason::Initialised { node } => write!(f, "{node} has initialised the database"),
            Reason::BootstrapLost { node } => write!(f, "{node} was lost while it initialised the database"),
            Reason::LeaseExpired { primary } => write!(f, "{primary} did not renew its lease"),
            Reason::PrimaryDown { primary } => write!(f, "Postgres on {primary} is down"),
            Reason::ProvenDead { primary } => write!(f, "process and postmaster of {primary} refuse connections"),
            Reason::PrimarySilent { primary } => write!(f, "{primary} is silent; its lease still runs"),
            Reason::PrimaryRefuses { primary } => write!(f, "{primary} refuses connections; its lease still runs"),
            Reason::NotElectable { missing } => write!(f, "no election is safe without one of {}", list(missing)),
            Reason::WaitingForSeals { missing } => write!(f, "waiting for seals of {}", list(missing)),
            Reason::WaitingForPreferred { node } => write!(f, "waiting for the seal of {node}"),
            Reason::NewestNotEligible { node } => write!(f, "{node} holds the newest data but may not become primary"),
            Reason::LossBoundExceeded => {
                write!(f, "no candidate is within the bound on lost data, or the primary's last position is unknown")
            }
            Reason::MostAdvanced { node, position } => write!(f, "{node} is the most advanced, at {position}"),
            Reason::LossAccepted { node } => write!(f, "{node} was ordered, data loss accepted"),
            Reason::WaitingForLease { candidate } => write!(f, "{candidate} was elected and takes the lease"),
            Reason::WaitingForPromotion { candidate } => write!(f, "{candidate} is being promoted"),
            Reason::WaitingForStandby { candidate } => write!(f, "{candidate} is promoted and waits for a standby to confirm"),
            Reason::CandidateLost { candidate } => write!(f, "candidate {candidate} was lost"),
            Reason::CandidateSlow { candidate } => write!(f, "candidate {candidate} took too long"),
            Reason::RuleSettled => write!(f, "the new rule is proved"),
            Reason::WaitingForProof => write!(f, "waiting for proof of the new rule"),
            Reason::StandbysChanged => write!(f, "the set of usable standbys changed"),
            Reason::TooFewStandbys { have, need } => write!(f, "{have} of {need} required standbys stream: commits wait"),
            Reason::Preparing { to } => write!(f, "preparing the switchover to {to}"),
            Reason::WaitingForCandidate { to, why } => write!(f, "switchover to {to} waits: {why}"),
            Reason::Prepared { to } => write!(f, "draining for {to}"),
            Reason::WaitingForDrain { in_flight } => write!(f, "draining: {in_flight} transactions in flight"),
            Reason::Drained { to } => write!(f, "drained for {to}"),
            Reason::ChangeImpossible { why } => write!(f, "called off: {why}"),
            Reason::FailoverOrdered { to } => write!(f, "failover to {to} was ordered"),
        }
    }
}

fn list(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) fn act(command: Command, reason: Reason) -> Decision {
    Decision { command: Some(command), reason }
}

pub(super) fn hold(reason: Reason) -> Decision {
    Decision { command: None, reason }
}
