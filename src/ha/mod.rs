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

mod lease;
mod local;
mod observation;

pub use lease::{HolderLease, LeaseWatch};
pub use local::{Action, LeaseBelief, LocalState, Step, StepReason, Upstream};
pub use observation::{NodeObservation, Observations, PostgresFacts, PostgresState, Role, Seal, Seen, StandbyView, View};
