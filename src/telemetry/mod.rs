//! Logging, metrics and clocks. Knows nothing of clusters.
//!
//! Each INFO line is a fixed lower-case phrase with its data in fields; ERROR means that a human must look. Deliberately absent:
//! what is worth logging or counting; each part decides that for itself.

mod clock;
mod log;
mod metrics;
mod recorder;

pub use clock::{Clock, wall_clock};
pub use log::{LogError, LogFormat, LogHandle, init_logging};
pub use metrics::Metrics;
pub use recorder::{Recorder, Render};
