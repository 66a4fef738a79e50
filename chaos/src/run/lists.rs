//! The fixed lists: what `make chaos` runs, its short form for every change, and what seeded bugs are hunted with.

use super::plan::Mode;
use crate::fault::Phase;

/// A fault, and the phase in which it strikes.
pub type Entry = (&'static str, Phase);

/// Ten minutes: something of every family, and the phases in which a failover is most easily got wrong.
pub const STANDARD: &[Entry] = &[
    ("kill-node-and-postgres", Phase::Steady),
    ("isolate-primary", Phase::Steady),
    ("freeze-datacenter", Phase::Steady),
    ("deaf-primary", Phase::Drain),
    ("kill-candidate", Phase::Promotion),
    ("power-loss", Phase::Steady),
    ("stop-node", Phase::Steady),
    ("kill-postmaster", Phase::Steady),
    ("kill-raft-leader", Phase::Election),
    ("mute-primary", Phase::Steady),
    ("slow-clock-and-isolation", Phase::Steady),
    ("bridge", Phase::Steady),
    ("flapping-primary", Phase::Steady),
    ("kill-standby-node", Phase::Rewind),
    ("postgres-port-cut", Phase::Steady),
    ("everybody-loses-power", Phase::Steady),
    ("slow-fsync", Phase::Steady),
    ("isolate-raft-leader", Phase::Steady),
    ("kill-standby-postmaster", Phase::BaseBackup),
    ("synchronous-names-emptied", Phase::Steady),
    ("kill-node", Phase::MemberChange),
    ("connections-reset", Phase::Steady),
    ("terminate-node", Phase::Steady),
    ("primary-cut-off-and-standby-killed", Phase::Steady),
    ("cascade", Phase::Steady),
];

/// Two minutes.
pub const SHORT: &[Entry] = &[
    ("kill-node-and-postgres", Phase::Steady),
    ("isolate-primary", Phase::Steady),
    ("deaf-primary", Phase::Drain),
    ("power-loss", Phase::Steady),
    ("kill-candidate", Phase::Promotion),
    ("freeze-datacenter", Phase::Steady),
];

/// Five minutes: each of the usual mistakes shows under one of them.
pub const HUNT: &[Entry] = &[
    ("freeze-datacenter", Phase::Steady),
    ("everybody-loses-power", Phase::Steady),
    ("isolate-primary", Phase::Steady),
    ("primary-cut-off-and-standby-killed", Phase::Steady),
    ("cancel-storm", Phase::Steady),
    ("kill-postmaster", Phase::Steady),
    ("deaf-primary", Phase::Drain),
    ("kill-candidate", Phase::Promotion),
    ("both-standbys-lost", Phase::Steady),
    ("connections-reset", Phase::Steady),
    ("stop-node", Phase::Steady),
    ("kill-node", Phase::MemberChange),
    ("terminate-node", Phase::Steady),
    ("power-loss", Phase::Steady),
    ("kill-raft-leader", Phase::Election),
];

/// As a plan's mode.
pub fn listed(list: &[Entry]) -> Mode {
    Mode::List(list.iter().map(|(name, phase)| ((*name).to_owned(), Some(*phase))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault;

    #[test]
    fn every_entry_is_in_the_catalogue_with_that_phase() {
        for (name, phase) in [STANDARD, SHORT, HUNT].concat() {
            let fault = fault::named(name).unwrap_or_else(|| panic!("no fault is called {name}"));
            assert!(fault.phases.contains(&phase), "{name} is not made for {}", phase.word());
        }
    }
}
