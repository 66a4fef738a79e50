//! A run: from a seed to a plan, through the faults, to a record.
//!
//! ```text
//!   settings ──► plan (seed → steps) ──► session: world, cluster, workloads
//!                                            │   for each step: phase ─► inject ─► hold ─► mend ─► whole again     (step)
//!                                            │   meanwhile: who is primary (watch), how it goes (voice)
//!                                            └─► final reads ─► checkers, and the run's own verdicts ─► record
//! ```
//! Deliberately absent: any verdict on a run that was interrupted, and any decision by wall time.
//!
//! Entry points: [`session::run`], [`mutants::run`].

mod clients;
mod core_trace;
mod hunts;
mod lists;
mod logs;
pub mod mutants;
mod pace;
mod panics;
mod phase;
mod plan;
pub mod session;
mod settings;
mod step;
mod verdicts;
mod versions;
mod voice;
mod watch;

pub use lists::{SHORT, STANDARD, compared, listed};
pub use pace::{Interrupted, Pace};
pub use plan::{Listed, Mode};
pub use session::Finished;
pub use settings::{Settings, Which};
pub use voice::Voice;
