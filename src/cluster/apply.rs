//! The replicated state machine: total, deterministic, rejecting with a reason.

use super::{ClusterState, Proposal};
use crate::types::Revision;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What became of a proposal; identical on every member.
pub type Outcome = Result<Revision, Rejection>;

/// Why a proposal had no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Rejection {
    #[error("the cluster has moved on (revision {actual}); read it again and decide anew")]
    StaleRevision { actual: Revision },
    #[error("{0}")]
    Refused(String),
}

/// Apply one log entry. INV-2: a stale one is rejected without effect.
pub fn apply(_state: &mut ClusterState, _proposal: &Proposal) -> Outcome {
    Err(Rejection::Refused("not yet written".into()))
}
