//! The replicated state of one cluster and the rules by which it changes. PURE: no clock, no I/O, no randomness, no logging.
//!
//! ```text
//!   Proposal{expect, request, command} ──► apply(&mut ClusterState, proposal) ──► Outcome{Applied | Rejected(why)}
//!                                              │
//!                                              └──► topology(&ClusterState, live) ──► what proxies route by
//! ```
//! `apply` is total and deterministic: every member computes the same state from the same log. Guards INV-2 (compare-and-set),
//! INV-3 (no clock readings in here), INV-4/5 (rules), INV-8 (timelines are claimed here), INV-12 (requests apply once).
//! Deliberately absent: volatile facts. Positions, lag and health never enter the log.

mod apply;
mod command;
mod rule;
mod settings;
mod state;
mod topology;

pub use apply::{Outcome, Rejection, apply};
pub use command::{Command, ElectionCause, Proposal};
pub use rule::SyncRule;
pub use settings::{Durability, Settings};
pub use state::{
    Addresses, Adopted, CalledOff, ChangeKind, ClusterState, ElectionCall, HistoryEntry, Lease, Member, MemberKind, Phase, PlannedChange,
    Secrets, Tags, TimelineClaim, TimelineClaims,
};
pub use topology::{Backend, Topology, WriteGate};
