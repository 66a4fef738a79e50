//! Consensus: openraft over sled and gRPC, and what the rest of the program sees of it.
//!
//! ```text
//!   agent, api ──► Handle ──► openraft ──► LogStore ──► writer thread ──► sled + fdatasync
//!                    ▲           │ ▲ network ⇄ other members (peer.proto, mutual TLS)
//!         watches ───┴── state machine (cluster::apply, in memory) ──► snapshot file
//! ```
//! What is promised: a proposal that was answered is on the disks of a majority; ids are never reused after a lost disk; a node
//! that lost something it had promised does not start. Guards INV-3 (nothing here puts a clock reading into the log) and, with the
//! apply hook, the members' side of INV-9. Deliberately absent: any decision about Postgres; openraft's types outside this module.
//!
//! Entry point: [`start`]; then everything goes through [`Handle`].

mod addresses;
mod admission;
mod codec;
mod config;
mod distance;
mod formation;
mod handle;
mod links;
mod listener;
mod membership;
mod network;
mod node;
mod observe;
mod raft;
mod service;
mod snapshot;
mod state_machine;
pub mod store;
pub mod tls;
mod watcher;

pub use config::{Bootstrap, Config, Peer, Timing};
pub use handle::{Handle, Health, Leadership, Progress, ProposeError, RaftRole, ReadError, Status};
pub use links::Failure;
pub use node::{Node, Reach, StartError, TaskEnd, start};
pub use state_machine::ApplyHook;
