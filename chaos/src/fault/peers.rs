//! Which faults mean something for other systems than Trilithon: the same thing must break in each, or the comparison says nothing.
//!
//! A node's process is Patroni's, consensus is etcd's; roles, lines, disks and Postgres are the same. What aims at Trilithon's files,
//! logs, verbs or phases has nothing to strike elsewhere, and is left out with the reason.

use super::kinds::{Family, Fault, Needs, Phase};

/// Why `fault` in `phase` cannot be compared; `None`: it can.
#[must_use]
pub fn meaningless(fault: &Fault, phase: Phase) -> Option<&'static str> {
    const VERBS: &str = "it gives orders that only Trilithon's command line knows";
    const LOGS: &str = "what proves it is a line in Trilithon's log";
    if phase != Phase::Steady {
        return Some("the phases of a change of primary are not seen from outside");
    }
    if fault.needs == Needs::Shim {
        return Some("etcd is linked statically: the clocks of a world do not reach it");
    }
    match fault.family {
        Family::Network | Family::Clients => None,
        Family::Clock => Some("etcd is linked statically: the clocks of a world do not reach it"),
        Family::Damage => Some("it damages files of Trilithon's own layout"),
        Family::Process => (fault.name == "descriptors-exhausted").then_some(LOGS),
        Family::Disk => Some("it looks for what Trilithon does about its own store"),
        Family::Postgres => match fault.name {
            "long-crash-recovery" | "slot-overflow" | "promoted-by-hand" => Some(LOGS),
            "slots-dropped-by-hand" | "replication-password-changed" | "cancel-storm" => Some("it aims at what Trilithon made in Postgres"),
            "protected-settings-altered" | "synchronous-names-emptied" | "standby-pointed-elsewhere" => Some(VERBS),
            _ => None,
        },
        Family::Operations => match fault.name {
            "planned-switchover" | "rolling-restart" | "failover-during-base-backup" | "copied-standby-killed" => None,
            _ => Some(VERBS),
        },
        // These draw from the whole catalogue.
        Family::Together => {
            matches!(fault.name, "two-at-once" | "three-at-once" | "four-at-once").then_some("it may draw one that is left out")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::named;

    #[test]
    fn what_breaks_the_same_thing_everywhere_is_compared() {
        for name in ["kill-node", "kill-raft-leader", "isolate-primary", "freeze-datacenter", "everybody-loses-power", "planned-switchover"]
        {
            assert_eq!(meaningless(named(name).unwrap(), Phase::Steady), None, "{name}");
        }
        assert!(meaningless(named("isolate-primary").unwrap(), Phase::Drain).is_some());
        assert!(meaningless(named("consensus-store-from-the-past").unwrap(), Phase::Steady).is_some());
    }
}
