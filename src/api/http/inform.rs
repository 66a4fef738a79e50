//! Patroni's documents, key by key, from our state: exporters, load balancers and scripts written for Patroni read them.

use crate::api::documents::cause_word;
use crate::api::status::{lag_bytes, state_word};
use crate::api::{Snapshot, status};
use crate::cluster::{ClusterState, Durability, Member, MemberKind, Phase, Settings, Tags};
use crate::ha::Role;
use crate::types::NodeId;
use serde_json::{Value, json};

/// `/patroni`: this node.
pub(super) fn patroni(snapshot: &Snapshot) -> Value {
    let state = &snapshot.state;
    let me = snapshot.my_id();
    let heard = me.and_then(|me| snapshot.heard(me));
    let member = me.and_then(|me| state.members.get(&me));
    let mut document = json!({
        "state": member.map_or("starting", |member| state_word(member, heard)),
        "role": role(snapshot, me),
        "patroni": { "version": env!("CARGO_PKG_VERSION"), "scope": state.name, "name": snapshot.me.as_str() },
        "dcs_last_seen": last_seen(snapshot),
    });
    if let Some(system) = state.system {
        document["database_system_identifier"] = json!(system.to_string());
    }
    if state.paused {
        document["pause"] = json!(true);
    }
    if !matches!(state.phase, Phase::Steady { .. } | Phase::Draining { .. }) || state.lease.holder.is_none() {
        document["cluster_unlocked"] = json!(true);
    }
    if let Some(tags) = member.map(|m| tags(&m.tags)).filter(|t| !is_empty(t)) {
        document["tags"] = tags;
    }
    let Some(facts) = heard.map(|o| &o.postgres) else { return document };
    if facts.version_num > 0 {
        document["server_version"] = json!(facts.version_num);
    }
    if let Some(timeline) = facts.timeline {
        document["timeline"] = json!(timeline.0);
    }
    let end = facts.position.map(|p| p.lsn.0);
    match facts.role {
        Some(Role::Primary) => {
            document["xlog"] = json!({ "location": end });
            let rows = facts.standbys.iter().map(|(node, view)| {
                let streaming = if view.streaming { "streaming" } else { "catchup" };
                let sync = if view.sync { "quorum" } else { "async" };
                json!({ "application_name": state.name_of(*node), "state": streaming, "sync_state": sync, "sync_priority": u8::from(view.sync) })
            });
            document["replication"] = rows.collect();
        }
        Some(Role::Standby) => {
            document["xlog"] = json!({
                "received_location": end, "replayed_location": facts.replayed.map(|l| l.0), "replayed_timestamp": null, "paused": false
            });
            if facts.streaming_from.is_some() {
                document["replication_state"] = json!("streaming");
            }
        }
        None => {}
    }
    document
}

/// Seconds since 1970 at which the agreed state was last known to be fresh, as Patroni's clients expect it.
fn last_seen(snapshot: &Snapshot) -> u64 {
    let age = snapshot.view.now.since(snapshot.view.lease_seen);
    crate::telemetry::wall_clock().saturating_sub(age).as_secs()
}

fn role(snapshot: &Snapshot, node: Option<NodeId>) -> &'static str {
    let heard = node.and_then(|node| snapshot.heard(node));
    match heard.and_then(|o| o.postgres.role) {
        Some(Role::Primary) => "primary",
        Some(Role::Standby) => "replica",
        None => "uninitialized",
    }
}

/// `/cluster`: all members.
pub(super) fn cluster(snapshot: &Snapshot) -> Value {
    let state = &snapshot.state;
    let members: Vec<Value> = state.members.iter().map(|(node, m)| cluster_member(snapshot, *node, m)).collect();
    let mut document = json!({ "members": members, "scope": state.name });
    if state.paused {
        document["pause"] = json!(true);
    }
    document
}

fn cluster_member(snapshot: &Snapshot, node: NodeId, member: &Member) -> Value {
    let state = &snapshot.state;
    let heard = snapshot.heard(node);
    let (host, port) = member.addresses.postgres.rsplit_once(':').unwrap_or(("", "0"));
    let confirms = state.rules.last().is_some_and(|rule| rule.acks > 0 && rule.standbys.contains(&node));
    let is_leader = matches!(state.phase, Phase::Steady { primary } | Phase::Draining { from: primary, .. } if primary == node);
    let role = match (member.kind, is_leader, confirms, state.settings.durability) {
        (MemberKind::Witness, ..) => "witness",
        (MemberKind::Data, true, ..) => "leader",
        (MemberKind::Data, false, true, Durability::Quorum) => "quorum_standby",
        (MemberKind::Data, false, true, Durability::All | Durability::Async) => "sync_standby",
        (MemberKind::Data, false, false, _) => "replica",
    };
    let mut document = json!({
        "name": member.name.as_str(), "role": role, "state": state_word(member, heard),
        "api_url": format!("http://{}/patroni", member.addresses.http), "host": host, "port": port.parse::<u16>().unwrap_or_default(),
    });
    if let Some(timeline) = heard.and_then(|o| o.postgres.timeline) {
        document["timeline"] = json!(timeline.0);
    }
    if let Some(position) = heard.and_then(|o| o.postgres.position) {
        document["lsn"] = json!(position.lsn.to_string());
    }
    let tags = tags(&member.tags);
    if !is_empty(&tags) {
        document["tags"] = tags;
    }
    if !is_leader && member.kind == MemberKind::Data {
        let lag = lag_bytes(snapshot, node).map_or(json!("unknown"), |lag| json!(lag));
        document["lag"] = lag.clone();
        document["replay_lag"] = lag;
    }
    document
}

/// Only what differs from the ordinary, as Patroni shows it.
fn tags(tags: &Tags) -> Value {
    let mut shown = json!({});
    for (name, set) in [("nofailover", tags.nofailover), ("nosync", tags.nosync), ("noloadbalance", tags.noloadbalance)] {
        if set {
            shown[name] = json!(true);
        }
    }
    if tags.priority != Tags::default().priority {
        shown["failover_priority"] = json!(tags.priority);
    }
    shown
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_none_or(serde_json::Map::is_empty)
}

/// `/history`: [timeline left, position at which it was left, reason, time (never known: INV-3), new primary].
pub(super) fn history(state: &ClusterState) -> Value {
    let pairs = state.history.iter().zip(state.history.iter().skip(1));
    let rows = pairs
        .filter(|(_, next)| next.settled)
        .filter_map(|(before, next)| Some(json!([before.timeline?.0, next.lsn.0, cause_word(next.cause), null, state.name_of(next.to)])));
    rows.collect()
}

/// `/config`: the replicated settings under Patroni's names.
pub(super) fn config(settings: &Settings) -> Value {
    let mode = match settings.durability {
        Durability::Quorum => json!("quorum"),
        Durability::All => json!("on"),
        Durability::Async => json!("off"),
    };
    json!({
        "ttl": settings.lease_ttl_ms as f64 / 1000.0,
        "maximum_lag_on_failover": settings.max_lag_bytes,
        "synchronous_mode": mode,
        "synchronous_mode_strict": settings.strict,
        "synchronous_node_count": settings.acks,
        "postgresql": { "parameters": settings.parameters, "pg_hba": settings.hba, "use_slots": true, "use_pg_rewind": true },
        "trilithon": crate::config::show_settings(settings),
    })
}

/// Number of warnings, for metrics.
pub(super) fn warnings(snapshot: &Snapshot) -> usize {
    status(snapshot).warnings.len()
}
