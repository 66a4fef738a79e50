//! What the catalogue is made of: one [`Fault`] a line, readable as documentation.
//!
//! Deliberately absent: any code that breaks something; a fault names the function that does.

use super::injected::Injected;
use anyhow::Result;
use serde::Serialize;
use std::time::Duration;

/// At whom a fault is aimed. Roles are looked up at the moment of injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Aim {
    Primary,
    /// Leader of the consensus group.
    RaftLeader,
    /// A standby whose confirmation commits wait for.
    SyncStandby,
    /// A standby that is neither the first synchronous one nor, where it can be avoided, the consensus leader.
    OtherStandby,
    /// Whoever is about to become primary; while nothing is being elected, the most advanced standby.
    Candidate,
    Everyone,
    /// One line between two datacenters.
    Link,
    /// Clients and listeners, in every datacenter.
    Clients,
}

impl Aim {
    /// As in "primary (dc1)".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Aim::Primary => "primary",
            Aim::RaftLeader => "consensus leader",
            Aim::SyncStandby => "synchronous standby",
            Aim::OtherStandby => "other standby",
            Aim::Candidate => "candidate",
            Aim::Everyone => "everyone",
            Aim::Link => "line",
            Aim::Clients => "clients",
        }
    }
}

/// What the cluster is doing when the fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Phase {
    Steady,
    Election,
    Promotion,
    /// A switchover's transactions end.
    Drain,
    Rewind,
    BaseBackup,
    MemberChange,
}

impl Phase {
    pub const ALL: &'static [Phase] =
        &[Phase::Steady, Phase::Election, Phase::Promotion, Phase::Drain, Phase::Rewind, Phase::BaseBackup, Phase::MemberChange];

    /// As in the record.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Phase::Steady => "steady",
            Phase::Election => "election",
            Phase::Promotion => "promotion",
            Phase::Drain => "drain",
            Phase::Rewind => "rewind",
            Phase::BaseBackup => "base_backup",
            Phase::MemberChange => "member_change",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    Network,
    Process,
    Clock,
    Disk,
    Damage,
    Postgres,
    Operations,
    Clients,
    Together,
}

/// What is known beforehand of how Trilithon takes it. Promises about data hold under every fault; this is about coming back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Expected {
    /// Comes back to full redundancy by itself.
    Handled,
    /// The node must refuse to go on and name a remedy that a person applies; healing applies it.
    Remedy(&'static str),
    /// Known not to be handled; says what happens instead.
    Known(&'static str),
}

/// What a world must have for the fault to be possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Needs {
    Nothing,
    /// Fault-injecting disks.
    Disks,
    /// Clocks of its own in each datacenter.
    Shim,
}

/// How a fault is injected: breaks things through primitives that note how to mend each of them and what proves that it took hold.
pub type Inject = for<'i, 'a> fn(&'i mut Injected<'a>) -> Result<()>;

/// One entry of the catalogue.
#[derive(Clone, Copy, Serialize)]
pub struct Fault {
    /// kebab-case, unique.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    pub family: Family,
    pub aim: Aim,
    /// In which phases it makes sense.
    pub phases: &'static [Phase],
    /// Least and most time from injection to heal.
    pub hold: (Duration, Duration),
    pub expected: Expected,
    pub needs: Needs,
    /// Costs the target what it stored. Two of these at once may cost a quorum of disks, for which nothing is promised.
    pub destroys: bool,
    #[serde(skip)]
    pub(super) inject: Inject,
}

impl Fault {
    /// A fault in the steady phase, held 5 to 15 s, that Trilithon handles.
    pub(super) const fn new(family: Family, name: &'static str, aim: Aim, about: &'static str, inject: Inject) -> Fault {
        let hold = (Duration::from_secs(5), Duration::from_secs(15));
        let phases = &[Phase::Steady];
        Fault { name, about, family, aim, phases, hold, expected: Expected::Handled, needs: Needs::Nothing, destroys: false, inject }
    }

    pub(super) const fn phases(mut self, phases: &'static [Phase]) -> Fault {
        self.phases = phases;
        self
    }

    /// Seconds.
    pub(super) const fn hold(mut self, least: u64, most: u64) -> Fault {
        self.hold = (Duration::from_secs(least), Duration::from_secs(most));
        self
    }

    pub(super) const fn needs(mut self, needs: Needs) -> Fault {
        self.needs = needs;
        self
    }

    pub(super) const fn destroys(mut self) -> Fault {
        self.destroys = true;
        self
    }

    pub(super) const fn known(mut self, gap: &'static str) -> Fault {
        self.expected = Expected::Known(gap);
        self
    }

    pub(super) const fn remedy(mut self, remedy: &'static str) -> Fault {
        self.expected = Expected::Remedy(remedy);
        self
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.aim.words())
    }
}
