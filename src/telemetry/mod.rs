//! Logging, metrics and clocks. Knows nothing of clusters.

mod clock;

pub use clock::{Clock, wall_clock};
