//! The fixed lists: what `make chaos` runs, its short form for every change, and what seeded bugs are hunted with.

use super::plan::{Listed, Mode};
use crate::fault::Phase;
use std::time::Duration;

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

/// What every system is put through that is compared, ten minutes: a fault, and the seconds that it holds. Longer than the slowest of
/// them needs to notice and to act, so that each is seen through.
const COMPARED: &[(&str, u64)] = &[
    ("kill-node-and-postgres", 50),
    ("kill-postmaster", 5),
    ("freeze-datacenter", 50),
    ("planned-switchover", 5),
    ("isolate-primary", 50),
    ("kill-raft-leader", 10),
    ("isolate-sync-standby", 20),
    ("kill-node", 50),
    ("terminate-node", 10),
    ("everybody-loses-power", 5),
];

/// As a plan's mode.
pub fn listed(list: &[Entry]) -> Mode {
    Mode::List(list.iter().map(|(name, phase)| Listed { name: (*name).to_owned(), phase: Some(*phase), hold: None }).collect())
}

/// The list that systems are compared by.
pub fn compared() -> Mode {
    let entry = |(name, seconds): &(&str, u64)| Listed {
        name: (*name).to_owned(),
        phase: Some(Phase::Steady),
        hold: Some(Duration::from_secs(*seconds)),
    };
    Mode::List(COMPARED.iter().map(entry).collect())
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

    #[test]
    fn every_compared_fault_means_something_for_all() {
        for (name, _) in COMPARED {
            let fault = fault::named(name).unwrap_or_else(|| panic!("no fault is called {name}"));
            assert_eq!(fault::meaningless(fault, Phase::Steady), None, "{name}");
        }
    }
}
