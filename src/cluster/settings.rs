//! Cluster-wide settings that live in the replicated state after bootstrap; the configuration file only seeds them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Any `acks` of the standbys.
    #[default]
    Quorum,
    /// Each standby that is eligible.
    All,
    /// Nobody: a failover may lose up to `max_lag_bytes` of acknowledged writes.
    Async,
}

/// Policy of the controller and defaults of each member. Every field has a default, so an older log entry still reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// How long a primary may serve without renewing.
    pub lease_ttl_ms: u64,
    /// Bound on the relative speed of two members' clocks, in parts per thousand: 50 is ±5 %.
    pub clock_drift_permille: u64,
    pub durability: Durability,
    /// Standbys that confirm a commit under `Quorum`.
    pub acks: usize,
    /// Strict: without enough standbys writes wait. Otherwise the primary goes on with fewer, visibly.
    pub strict: bool,
    /// Do refused connections prove that a process is gone? Not where a firewall may refuse in its place.
    pub trust_refusals: bool,
    /// Asynchronous mode: a candidate further behind than this is not elected by itself. Also: how near a switchover's candidate must be.
    pub max_lag_bytes: u64,
    /// Transactions still open this long after a drain began are cancelled.
    pub drain_timeout_ms: u64,
    /// A switchover that is not through by then is called off.
    pub switchover_timeout_ms: u64,
    /// A chosen candidate that has not accepted writes by then is replaced.
    pub promotion_timeout_ms: u64,
    /// PostgreSQL parameters for every member.
    pub parameters: BTreeMap<String, String>,
    /// Lines added to pg_hba.conf on every member.
    pub hba: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            lease_ttl_ms: 3_000,
            clock_drift_permille: 50,
            durability: Durability::Quorum,
            acks: 1,
            strict: true,
            trust_refusals: true,
            max_lag_bytes: 1 << 20,
            drain_timeout_ms: 5_000,
            switchover_timeout_ms: 20_000,
            promotion_timeout_ms: 30_000,
            parameters: BTreeMap::new(),
            hba: Vec::new(),
        }
    }
}

impl Settings {
    /// The lease's length.
    #[must_use]
    pub fn lease_ttl(&self) -> Duration {
        Duration::from_millis(self.lease_ttl_ms)
    }

    /// How long others wait after applying the last renewal: ttl(1+ρ)/(1−ρ) plus a margin of 50 ms for timers (INV-9).
    #[must_use]
    pub fn lease_wait(&self) -> Duration {
        self.wait_for_ttl(self.lease_ttl_ms)
    }

    /// The same for a lease of `ttl_ms` milliseconds.
    #[must_use]
    pub fn wait_for_ttl(&self, ttl_ms: u64) -> Duration {
        let drift = self.clock_drift_permille.min(500);
        let scaled = ttl_ms * (1_000 + drift) / (1_000 - drift);
        Duration::from_millis(scaled + 50)
    }

    /// From one renewal to the next: half of what the holder's proxy may use, so that a renewal may take as long as the pause between two
    /// (at 3 s, 562 ms: two round trips of 200 ms, and the disks) before a client waits.
    #[must_use]
    pub fn renewal_interval(&self) -> Duration {
        Duration::from_millis(serving_share(self.lease_ttl_ms) / 2)
    }

    /// How long after a renewal was sent the holder's proxy may begin transactions: twice as long as from one renewal to the next.
    /// All that stands between a primary in whose place a firewall refuses connections and the next one (INV-9).
    #[must_use]
    pub fn serving_ttl(&self) -> Duration {
        Duration::from_millis(serving_share(self.lease_ttl_ms))
    }

    /// How long others wait after applying the last renewal of a lease of `ttl_ms` milliseconds, until no transaction begins any more.
    #[must_use]
    pub fn wait_for_serving(&self, ttl_ms: u64) -> Duration {
        self.wait_for_ttl(serving_share(ttl_ms))
    }

    /// How long before its deadline a holder begins to fence itself: a sixth of the ttl.
    #[must_use]
    pub fn fencing_margin(&self) -> Duration {
        self.lease_ttl() / 6
    }

    /// Longest time in a switchover's drain.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// Three eighths.
const fn serving_share(ttl_ms: u64) -> u64 {
    ttl_ms * 3 / 8
}
