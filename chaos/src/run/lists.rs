//! The fixed lists: what `make chaos` runs, and its short form for every change.

use super::plan::Mode;
use crate::fault::Phase;

/// A fault, and a phase where it is not to be all of the fault's own.
type Entry = (&'static str, Phase);

/// Ten minutes: something of every family, and the phases in which a failover is most easily got wrong.
pub const STANDARD: &[Entry] = &[];

/// Two minutes.
pub const SHORT: &[Entry] = &[];

/// As a plan's mode.
pub fn listed(list: &[Entry]) -> Mode {
    Mode::List(list.iter().map(|(name, phase)| ((*name).to_owned(), Some(*phase))).collect())
}
