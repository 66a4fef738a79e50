//! `/metrics` about the cluster: `trilithon_*`, and `patroni_*` under the names that existing dashboards read.

use super::inform::warnings;
use crate::api::status::{lag_bytes, writable};
use crate::api::{ClusterAccess, RaftRole, Snapshot};
use crate::cluster::Phase;
use crate::ha::{PostgresState, Role};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;

/// Takes a snapshot at each scrape.
pub(super) struct ClusterCollector {
    access: ClusterAccess,
}

impl ClusterCollector {
    pub(super) fn new(access: ClusterAccess) -> ClusterCollector {
        ClusterCollector { access }
    }
}

impl fmt::Debug for ClusterCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterCollector")
    }
}

type Labels = Vec<(&'static str, String)>;

/// One metric with its values by label.
struct Gauge {
    name: &'static str,
    help: &'static str,
    values: Vec<(Labels, f64)>,
}

fn gauge(name: &'static str, help: &'static str, value: impl Into<Option<f64>>) -> Gauge {
    Gauge { name, help, values: value.into().map(|value| (Vec::new(), value)).into_iter().collect() }
}

impl Collector for ClusterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let snapshot = self.access.snapshot();
        for gauge in cluster(&snapshot).into_iter().chain(members(&snapshot)).chain(patroni(&snapshot)) {
            let mut metric = encoder.encode_descriptor(gauge.name, gauge.help, None, MetricType::Gauge)?;
            if let [(labels, value)] = gauge.values.as_slice()
                && labels.is_empty()
            {
                ConstGauge::new(*value).encode(metric)?;
                continue;
            }
            for (labels, value) in gauge.values {
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// Positions exceed 2^53 only after petabytes of WAL.
#[allow(clippy::cast_precision_loss)]
fn number(n: u64) -> f64 {
    n as f64
}

fn cluster(snapshot: &Snapshot) -> Vec<Gauge> {
    let (state, raft) = (&snapshot.state, &snapshot.raft);
    let phases = ["bootstrapping", "steady", "draining", "electing", "promoting"];
    let by_phase = phases.iter().map(|phase| (vec![("phase", (*phase).to_owned())], flag(state.phase.word() == *phase)));
    let lease = snapshot.lease.map(|(_, left)| left.as_secs_f64());
    let last = state.history.iter().rev().find(|entry| entry.settled);
    vec![
        Gauge {
            name: "trilithon_build_info",
            help: "Version of this node",
            values: vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("node", snapshot.me.to_string())], 1.0)],
        },
        gauge("trilithon_epoch", "Fencing token of the present primaryship", number(state.epoch.0)),
        gauge("trilithon_revision", "Revision of the replicated state", number(state.revision.0)),
        Gauge { name: "trilithon_phase", help: "1 for the present phase", values: by_phase.collect() },
        gauge("trilithon_writable", "Writes are accepted, as this node sees it", flag(writable(snapshot))),
        gauge("trilithon_paused", "Automatic failover is off", flag(state.paused)),
        gauge("trilithon_warnings", "Warnings that `trilithon status` shows", number(warnings(snapshot) as u64)),
        gauge("trilithon_sync_acks", "Standbys that confirm each commit", state.rules.last().map(|r| number(r.acks as u64))),
        gauge("trilithon_lease_seconds", "Time left of this node's own lease", lease),
        gauge(
            "trilithon_last_outage_seconds",
            "Write outage of the newest change of primary",
            last.and_then(|e| Some(number(e.outage_ms?) / 1000.0)),
        ),
        gauge("trilithon_raft_term", "Term", number(raft.term)),
        gauge("trilithon_raft_leader", "This node leads", flag(raft.role == RaftRole::Leader)),
        gauge("trilithon_raft_quorum", "This node hears a majority", flag(snapshot.has_quorum())),
        gauge("trilithon_raft_last_log_index", "Newest entry", raft.last_log.map(number)),
        gauge("trilithon_raft_committed_index", "Newest committed entry", raft.committed.map(number)),
        gauge("trilithon_raft_applied_index", "Newest applied entry", raft.applied.map(number)),
    ]
}

fn members(snapshot: &Snapshot) -> Vec<Gauge> {
    let state = &snapshot.state;
    let by_member = |value: &dyn Fn(crate::types::NodeId) -> Option<f64>| -> Vec<(Labels, f64)> {
        let values = state.members.iter().filter_map(|(node, member)| Some((vec![("member", member.name.to_string())], value(*node)?)));
        values.collect()
    };
    let up = |node| Some(flag(snapshot.heard(node).is_some()));
    let postgres = |node| Some(flag(snapshot.heard(node).is_some_and(|o| o.postgres.state == PostgresState::Running)));
    let primary = |node| Some(flag(matches!(state.phase, Phase::Steady { primary } if primary == node)));
    let lag = |node| lag_bytes(snapshot, node).map(number);
    let confirms = |node| Some(flag(state.rules.last().is_some_and(|rule| rule.acks > 0 && rule.standbys.contains(&node))));
    vec![
        Gauge { name: "trilithon_member_up", help: "This node hears it", values: by_member(&up) },
        Gauge { name: "trilithon_member_postgres_running", help: "Its Postgres accepts connections", values: by_member(&postgres) },
        Gauge { name: "trilithon_member_primary", help: "It is the steady primary", values: by_member(&primary) },
        Gauge { name: "trilithon_member_lag_bytes", help: "WAL of the primary that it has not replayed", values: by_member(&lag) },
        Gauge { name: "trilithon_member_sync", help: "It may confirm commits", values: by_member(&confirms) },
    ]
}

/// Patroni's names and labels. Positions are gauges here, as a promotion may take them back.
fn patroni(snapshot: &Snapshot) -> Vec<Gauge> {
    let state = &snapshot.state;
    let me = snapshot.my_id();
    let facts = me.and_then(|me| snapshot.heard(me)).map(|o| &o.postgres);
    let labels = || vec![("scope", state.name.clone()), ("name", snapshot.me.to_string())];
    let one = |name, help, value: Option<f64>| Gauge { name, help, values: value.map(|v| (labels(), v)).into_iter().collect() };
    let role = facts.and_then(|f| f.role);
    let (is_primary, is_standby) = (role == Some(Role::Primary), role == Some(Role::Standby));
    let confirms = me.zip(state.rules.last()).is_some_and(|(me, rule)| rule.acks > 0 && rule.standbys.contains(&me));
    let quorum = state.settings.durability == crate::cluster::Durability::Quorum;
    let end = facts.and_then(|f| f.position).map(|p| number(p.lsn.0));
    let replayed = facts.and_then(|f| f.replayed).map(|l| number(l.0));
    let seen = crate::telemetry::wall_clock().saturating_sub(snapshot.view.now.since(snapshot.view.lease_seen));
    vec![
        one(
            "patroni_postgres_running",
            "Postgres accepts connections",
            Some(flag(facts.is_some_and(|f| f.state == PostgresState::Running))),
        ),
        one(
            "patroni_primary",
            "This node is the primary and accepts writes",
            Some(flag(me == state.primary() && is_primary && writable(snapshot))),
        ),
        one("patroni_replica", "This node is a standby", Some(flag(is_standby))),
        one("patroni_standby_leader", "Always 0: standby clusters do not exist here", Some(0.0)),
        one("patroni_sync_standby", "This standby confirms each commit", Some(flag(is_standby && confirms && !quorum))),
        one("patroni_quorum_standby", "This standby may confirm commits", Some(flag(is_standby && confirms && quorum))),
        one("patroni_postgres_streaming", "This standby streams", Some(flag(facts.is_some_and(|f| f.streaming_from.is_some())))),
        one("patroni_xlog_location", "End of WAL on the primary", end.filter(|_| is_primary).or(Some(0.0))),
        one("patroni_xlog_received_location", "End of WAL received on a standby", end.filter(|_| is_standby).or(Some(0.0))),
        one("patroni_xlog_replayed_location", "End of WAL replayed on a standby", replayed.filter(|_| is_standby).or(Some(0.0))),
        one("patroni_postgres_server_version", "server_version_num", facts.map(|f| f64::from(f.version_num))),
        one("patroni_postgres_timeline", "Timeline", facts.and_then(|f| f.timeline).map(|t| f64::from(t.0))),
        one("patroni_cluster_unlocked", "Nobody holds the lease", Some(flag(state.lease.holder.is_none()))),
        one("patroni_is_paused", "Automatic failover is off", Some(flag(state.paused))),
        one("patroni_dcs_last_seen", "Time at which the agreed state was last fresh", Some(number(seen.as_secs()))),
        one("patroni_failsafe_mode_is_active", "Always 0: there is no such mode here", Some(0.0)),
        one("patroni_pending_restart", "Always 0: restarts are not deferred", Some(0.0)),
    ]
}
