//! What a node needs to know to take part in consensus.

use super::state_machine::ApplyHook;
use super::tls::Tls;
use crate::cluster::{Member, Settings};
use crate::ha::Entry;
use crate::telemetry::{Clock, Recorder};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Snapshot after this many entries. The whole log is in memory, so this bounds it; an idle cluster makes some 1.3 entries a second.
const SNAPSHOT_EVERY: u64 = 2_000;
/// Entries kept behind a snapshot, for followers that were away for some minutes.
const LOG_KEPT: u64 = 500;
/// With entries of at most 16 KiB a message stays below the limit on messages.
const ENTRIES_PER_MESSAGE: u64 = 128;

/// How long Raft waits. The defaults bear round trips of up to 200 ms: a new leader within about 1.6 s, and no election while one
/// lives. The RPC timeout *is* the heartbeat interval, so round trip and fsync together must stay well below it. Half the interval
/// would find a lost leader half a second sooner, and idle nodes twice as busy with telling each other that they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    /// An election starts after the leader's lease (`election_max`) and a random time between the two.
    pub election_min: Duration,
    pub election_max: Duration,
    /// A leader that lost its quorum stays silent this long at a time, so that followers it can still reach elect another.
    pub quorum_loss_probe: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(800),
            quorum_loss_probe: Duration::from_millis(1_800),
        }
    }
}

impl Timing {
    /// From a heartbeat interval and the lower end of the election timeout, as the configuration file has them.
    #[must_use]
    pub fn new(heartbeat: Duration, election_min: Duration) -> Timing {
        let election_max = election_min * 4 / 3;
        Timing { heartbeat, election_min, election_max, quorum_loss_probe: election_max * 9 / 4 }
    }

    pub(super) fn raft_config(&self, cluster: &str) -> Result<Arc<openraft::Config>, openraft::ConfigError> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: cluster.to_owned(),
            heartbeat_interval: ms(self.heartbeat),
            election_timeout_min: ms(self.election_min),
            election_timeout_max: ms(self.election_max),
            enable_pre_vote: Some(true),
            quorum_loss_probe_interval: Some(ms(self.quorum_loss_probe)),
            broadcast_submitted_on_append: Some(true),
            install_snapshot_timeout: 10_000,
            max_payload_entries: ENTRIES_PER_MESSAGE,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: LOG_KEPT,
            replication_lag_threshold: SNAPSHOT_EVERY + LOG_KEPT,
            backoff: "50ms 100ms 200ms ...500ms".to_owned(),
            // A restarted leader has an older state in memory until it has replayed; let it win an election first.
            enable_leader_restore: Some(false),
            // A member whose store was put back in time lacks what the leader takes it to hold: without this its leader never sends it
            // that again, and where it hands over to such a member it takes no proposals until somebody else is elected.
            allow_log_reversion: Some(true),
            ..openraft::Config::default()
        };
        config.validate().map(Arc::new)
    }
}

/// How a node without a store meets the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Form a cluster with the configured peers if none of them knows one; join it otherwise.
    New,
    /// Only join.
    Existing,
}

/// A configured peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub name: String,
    /// `host:port` of its gRPC listener.
    pub address: String,
}

/// Everything that [`super::start`] needs.
#[derive(Clone)]
pub struct Config {
    /// Name of the cluster; peers of another one are refused.
    pub cluster: String,
    /// This node, as it will be in the replicated state. `addresses.grpc` is how the others reach it.
    pub member: Member,
    /// All configured peers; this node may be among them.
    pub peers: Vec<Peer>,
    pub bootstrap: Bootstrap,
    /// Seeds the cluster's settings when it is formed.
    pub settings: Settings,
    /// Directory of log and snapshot; created if missing.
    pub dir: PathBuf,
    pub timing: Timing,
    /// `None` only while every address is a loopback one.
    pub tls: Option<Tls>,
    pub clock: Clock,
    /// Called with the state after each applied entry.
    pub on_apply: ApplyHook,
    /// Each command with the states before and after it, where that is wanted.
    pub trace: Option<Recorder<Entry>>,
}

impl Config {
    /// The others, sorted by name.
    pub(super) fn others(&self) -> Vec<Peer> {
        let mut others: Vec<Peer> = self.peers.iter().filter(|p| p.name != self.member.name.as_str()).cloned().collect();
        others.sort();
        others
    }
}
