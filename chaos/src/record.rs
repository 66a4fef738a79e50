//! What a run leaves behind: plain data that the report is drawn from, and JSON that others can read.
//!
//! All instants are microseconds since the run began, on one monotonic clock ([`RunClock`]); wall time appears once.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Microseconds since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct At(pub u64);

impl At {
    /// Time from `earlier` to this; zero where it is not earlier.
    #[must_use]
    pub fn since(self, earlier: At) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// `later` after this.
    #[must_use]
    pub fn after(self, later: Duration) -> At {
        At(self.0 + u64::try_from(later.as_micros()).unwrap_or(u64::MAX / 2))
    }
}

/// The run's clock. Cheap to copy, the same on every thread.
#[derive(Clone, Copy, Debug)]
pub struct RunClock(Duration);

impl RunClock {
    /// Begins now.
    #[must_use]
    pub fn start() -> RunClock {
        RunClock(boot_time())
    }

    /// Since the beginning.
    #[must_use]
    pub fn now(&self) -> At {
        At(u64::try_from(boot_time().saturating_sub(self.0).as_micros()).unwrap_or(u64::MAX))
    }
}

fn boot_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// The words that repeat it: `chaos replay …`.
    pub command: String,
    /// Which system was broken.
    #[serde(default)]
    pub system: String,
    pub seed: u64,
    /// RFC 3339.
    pub began: String,
    pub duration: At,
    /// Program → version: trilithon, postgres, kernel.
    pub versions: BTreeMap<String, String>,
    /// The world's preset and its links, in words.
    pub world: String,
    pub faults: Vec<FaultRecord>,
    /// Who was primary, as the clients' SQL saw it.
    pub primaries: Vec<Reign>,
    pub outages: Vec<Outage>,
    pub samples: Vec<Sample>,
    pub verdicts: Vec<Verdict>,
    pub notes: Vec<String>,
}

/// One fault that was injected.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FaultRecord {
    pub name: String,
    /// In words: "primary (dc1)".
    pub aim: String,
    /// steady, election, promotion, drain, rewind, base_backup, member_change
    pub phase: String,
    pub from: At,
    pub to: At,
    /// The phase that it was to strike in and did not: that was over, or was never reached, and [`FaultRecord::phase`] is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
    /// Evidence that it took hold; `None`: it did not, and nothing is concluded from it.
    pub took_hold: Option<String>,
    /// Longest time without an acknowledged write that overlaps this fault or its mending.
    pub outage_ms: Option<u64>,
    /// Heal → first acknowledged write.
    pub writable_after_heal_ms: Option<u64>,
    /// Heal → all members stream and the rule is full.
    pub redundant_after_heal_ms: Option<u64>,
    /// When the fault led to a failover and its steps were seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
}

impl FaultRecord {
    /// The phase in which all is well, in words.
    const STEADY: &str = "steady";

    /// It struck while all was well. Where the cluster was brought to a phase that had passed by then, [`FaultRecord::aim`] says after a
    /// comma what it took.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.phase == FaultRecord::STEADY && !self.aim.contains(", ")
    }
}

/// The steps of the first failover after a fault, as the cluster's history and the clients tell them; one not seen is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Steps {
    /// The cluster decided that the primary is lost.
    pub noticed: Option<At>,
    pub elected: Option<At>,
    /// Postgres left recovery.
    pub promoted: Option<At>,
    /// The first write that the new primary acknowledged.
    pub first_write: Option<At>,
}

/// A primary as clients saw it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reign {
    pub node: String,
    pub epoch: u64,
    pub timeline: u32,
    pub from: At,
    pub to: At,
}

/// Primaries that took over, each behind the one before it. One of an older epoch that is still seen has taken over nothing.
pub fn changes(reigns: &[Reign]) -> Vec<(&Reign, &Reign)> {
    let mut changes = Vec::new();
    let mut last: Option<&Reign> = None;
    for reign in reigns {
        if let Some(before) = last {
            if reign.epoch < before.epoch {
                continue;
            }
            if reign.node != before.node || (reign.epoch > before.epoch && before.epoch > 0) {
                changes.push((before, reign));
            }
        }
        last = Some(reign);
    }
    changes
}

/// No write was acknowledged to anybody between these.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Outage {
    pub from: At,
    pub to: At,
}

/// One second of one datacenter's clients.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    pub at: At,
    pub site: String,
    pub acknowledged: u32,
    pub refused: u32,
    pub unknown: u32,
    pub p50_ms: f32,
    pub p99_ms: f32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The system does not tell what the checker lives on.
    NotApplicable,
    Passed,
    /// Too little happened to conclude anything.
    #[default]
    Inconclusive,
    Failed,
}

/// What one checker found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// list-append, set, register, bank, session, replica-reads, contract, administrator, copies, amcheck, checksums, dual-primary, …
    pub checker: String,
    pub outcome: Outcome,
    /// One line with figures.
    pub summary: String,
    /// Figures by name: acknowledged, lost, duplicated, …
    pub counts: BTreeMap<String, u64>,
    /// When failed: the shortest history that shows it, one line each.
    pub witness: Vec<String>,
}
