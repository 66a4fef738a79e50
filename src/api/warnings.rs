//! What a person should know about the present state, in words. PURE.

use super::Snapshot;
use crate::cluster::{Durability, Phase};
use crate::ha::Role;
use crate::proto::v1::MemberStatus;
use crate::types::NodeId;
use std::collections::BTreeSet;

/// All warnings, the gravest first.
pub(super) fn warnings(snapshot: &Snapshot, members: &[MemberStatus]) -> Vec<String> {
    let mut out = Vec::new();
    consensus(snapshot, &mut out);
    foreign_primaries(snapshot, &mut out);
    durability(snapshot, members, &mut out);
    each_member(snapshot, members, &mut out);
    if snapshot.state.paused {
        out.push("automatic failover is off; `trilithon resume` turns it on".into());
    }
    let versions: BTreeSet<&str> = members.iter().map(|m| m.version.as_str()).filter(|v| !v.is_empty()).collect();
    if versions.len() > 1 {
        out.push(format!("members run different versions: {}", versions.into_iter().collect::<Vec<_>>().join(", ")));
    }
    out
}

fn consensus(snapshot: &Snapshot, out: &mut Vec<String>) {
    if !snapshot.has_quorum() {
        out.push(format!("{} sees no quorum of the members: what follows may be old, and nothing can be changed", snapshot.me));
    }
    let Phase::Steady { primary } = snapshot.state.phase else { return };
    let wait = snapshot.state.lease_wait();
    if snapshot.state.lease.holder.is_none() {
        out.push(format!("{} has given its lease back: no writes are accepted", snapshot.state.name_of(primary)));
    } else if snapshot.view.now.since(snapshot.view.lease_seen) >= wait {
        out.push(format!("{} has not renewed its lease: it accepts no writes", snapshot.state.name_of(primary)));
    }
}

/// A primary that the cluster did not choose, or no longer.
fn foreign_primaries(snapshot: &Snapshot, out: &mut Vec<String>) {
    let state = &snapshot.state;
    let chosen = state.primary();
    for node in state.data_members().filter(|node| Some(*node) != chosen) {
        let runs = snapshot.heard(node).is_some_and(|o| o.postgres.role == Some(Role::Primary));
        if runs {
            out.push(format!("{} runs as a primary although it is not the cluster's: it is being stopped", state.name_of(node)));
        }
    }
    for node in state.data_members() {
        let found = snapshot.heard(node).and_then(|o| o.postgres.system);
        if let (Some(found), Some(expected)) = (found, state.system)
            && found != expected
        {
            let name = state.name_of(node);
            out.push(format!("the data directory of {name} belongs to database system {found}, not {expected}: move it aside"));
        }
    }
}

fn durability(snapshot: &Snapshot, members: &[MemberStatus], out: &mut Vec<String>) {
    let state = &snapshot.state;
    let (Phase::Steady { primary } | Phase::Draining { from: primary, .. }, Some(rule)) = (state.phase, state.rules.last()) else { return };
    let name = state.name_of(primary);
    let streaming = |node: &NodeId| members.iter().any(|m| m.id == node.0 && m.state == "streaming");
    let confirming = rule.standbys.iter().filter(|node| streaming(node)).count();
    let alone = !members.iter().any(|m| m.state == "streaming");
    match state.settings.durability {
        Durability::Async => {
            let bound = state.settings.max_lag_bytes;
            out.push(format!("durability is async: a failover may lose up to {bound} bytes of acknowledged writes"));
        }
        Durability::Quorum | Durability::All if rule.acks == 0 => {
            out.push(format!("solo writes: no standby confirms commits, so losing the disk of {name} loses acknowledged writes"));
        }
        Durability::Quorum | Durability::All if confirming < rule.acks => {
            out.push(format!("commits wait: {confirming} of {} required standbys stream", rule.acks));
        }
        Durability::Quorum | Durability::All => {}
    }
    if alone {
        out.push(format!("no standby streams from {name}: nothing could take over"));
    }
}

fn each_member(snapshot: &Snapshot, members: &[MemberStatus], out: &mut Vec<String>) {
    let state = &snapshot.state;
    for member in members {
        let name = &member.name;
        let heard = snapshot.heard(NodeId(member.id)).is_some();
        match member.state.as_str() {
            "unreachable" if !heard => out.push(format!("{name} is unreachable")),
            "unreachable" => out.push(format!("Postgres on {name} does not answer")),
            "stopped" if state.fences.contains(&NodeId(member.id)) => {
                out.push(format!("{name} is fenced; `trilithon unfence {name}` lets it run again"));
            }
            "stopped" if state.system.is_some() => out.push(format!("Postgres on {name} is stopped: {}", member.step)),
            _ => {}
        }
        if let Some(lag) = member.lag_bytes.filter(|lag| *lag > state.settings.max_lag_bytes) {
            out.push(format!("{name} is {lag} bytes behind the primary"));
        }
    }
}
