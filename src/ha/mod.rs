//! Decisions about high availability. PURE: time and observations come in, commands, actions and reasons go out.
//!
//! ```text
//!   ClusterState ─┐                                             (on the Raft leader)
//!   Observations ─┼─► decide ──► Decision{command?, reason} ──► propose ──► apply
//!   now, settings ┘
//!   ClusterState ─┐                                             (on every node)
//!   LocalState ───┴─► converge ──► Step{action?, reason}  ──► execute against Postgres
//! ```
//! Level-triggered and idempotent: nobody orders another node about; each looks at the state and takes one next step.
//! Deliberately absent: I/O, clocks, randomness, logging.

mod converge;
mod decide;
mod elect;
mod facts;
mod lease;
mod lineage;
mod local;
mod observation;
mod reason;
mod rules;
mod switchover;
mod trace;

pub use converge::converge;
pub use decide::decide;
pub use lease::{HolderLease, LeaseWatch};
pub use lineage::{Lineage, lineage};
pub use local::{Action, LeaseBelief, LocalState, Step, StepReason, Upstream};
pub use observation::{NodeObservation, Observations, PostgresFacts, PostgresState, Role, Seal, Seen, StandbyView, View};
pub use reason::{CandidateLack, Decision, Reason};
pub use trace::{Entry, Replay, ReplayReport, Scribe};
