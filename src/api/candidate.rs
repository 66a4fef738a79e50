//! Which standby a switchover without `--to` means.

use super::Snapshot;
use crate::cluster::MemberKind;
use crate::ha::{PostgresState, Role};
use crate::types::NodeId;
use std::cmp::Reverse;

/// The best successor: streaming, allowed, of the highest priority, then confirming commits, then the nearest.
/// `Err` says for each other member why it will not do.
pub(super) fn successor(snapshot: &Snapshot) -> Result<NodeId, String> {
    let state = &snapshot.state;
    let primary = state.primary();
    let others: Vec<NodeId> = state.members.keys().copied().filter(|node| Some(*node) != primary).collect();
    let lacks = |node: NodeId| lack(snapshot, node);
    let fit = others.iter().copied().filter(|node| lacks(*node).is_none());
    let best = fit.max_by_key(|node| {
        let priority = state.members.get(node).map_or(0, |m| m.tags.priority);
        let confirms = state.rules.last().is_some_and(|rule| rule.standbys.contains(node));
        let position = snapshot.heard(*node).and_then(|o| o.postgres.position);
        (priority, confirms, position, Reverse(*node))
    });
    best.ok_or_else(|| {
        let reasons = others.iter().filter_map(|node| Some(format!("{} {}", state.name_of(*node), lacks(*node)?)));
        let reasons: Vec<String> = reasons.collect();
        if reasons.is_empty() { "there is no other member".to_owned() } else { reasons.join(", ") }
    })
}

/// Why `node` cannot take over, if so.
fn lack(snapshot: &Snapshot, node: NodeId) -> Option<&'static str> {
    let member = snapshot.state.members.get(&node)?;
    if member.kind == MemberKind::Witness {
        return Some("is a witness");
    }
    if member.tags.nofailover {
        return Some("is tagged nofailover");
    }
    if snapshot.state.fences.contains(&node) {
        return Some("is fenced");
    }
    let Some(heard) = snapshot.heard(node) else { return Some("does not answer") };
    if heard.leaving {
        return Some("is stopping");
    }
    let facts = &heard.postgres;
    let streams = facts.state == PostgresState::Running && facts.role == Some(Role::Standby) && facts.streaming_from.is_some();
    (!streams).then_some("does not stream from the primary")
}
