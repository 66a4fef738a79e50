//! A simulator of whole clusters: the pure core, unchanged, in a world where everything fails.
//!
//! ```text
//!   seed ─► Config ─► World ──events──► agent: observe → ha::converge → action ─► Postgres model (WAL as a tree)
//!                       │                  └─ ha::decide on the leader ─► raft model ─► cluster::apply on every node
//!                       └─ oracles look at every step (P1, P2, P3, the invariants), and after the heal at the whole
//! ```
//! `TRILITHON_SIM_HOURS=N` sets how much is simulated, `TRILITHON_SIM_SEED=N` replays one seed with its transcript;
//! a campaign of a million hours is in [`campaign`].

pub mod admin;
pub mod agent;
pub mod campaign;
pub mod client;
pub mod config;
pub mod core;
pub mod exec;
pub mod faults;
pub mod mutant;
pub mod mutants;
pub mod net;
pub mod node;
pub mod oracle;
pub mod raft;
pub mod rng;
pub mod run;
pub mod stream;
pub mod text;
pub mod trace;
pub mod wal;
pub mod world;
