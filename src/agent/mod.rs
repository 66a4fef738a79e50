//! The shell around the core on each node: observe → converge → execute, plus the lease's thread and the controller.
//!
//! ```text
//!   state (consensus) ──┐
//!   facts (postgres) ───┼─► LocalState ─► converge ─► Action ─► execute (one at a time, abortable)
//!   promise, lease ─────┘        └─► NodeObservation ─► peers ─► View ─► decide (on the Raft leader)
//! ```
//! Event-driven: a commit, a postmaster's exit, a peer's news and the lease wake the loop; a tick is the fallback. It decides
//! nothing itself. Every failed step leaves a state that the next turn repairs. Guards INV-1 (promise first) and INV-9 (lease).
//!
//! Entry point: [`Agent`], wired by `node`.

mod by_hand;
mod controller;
mod execute;
mod failures;
mod flight;
mod lease;
mod marks;
mod memory;
mod mistakes;
mod observe;
mod probe;
mod promise;
mod turn;
mod upkeep;
mod view;
mod witness;

pub use controller::{Controller, DecisionInfo};
pub use lease::{Fence, LeaseCell, LeaseKeeper};
pub use marks::Marks;
pub use probe::refusing;
pub use promise::{Promise, PromiseError, write_durably};
pub use turn::{Agent, AgentError, Obeyed, Requests};
pub use view::ViewSource;
pub use witness::Witness;
