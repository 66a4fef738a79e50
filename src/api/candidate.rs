//! Which standby a switchover without `--to` means.

use super::Snapshot;
use crate::cluster::MemberKind;
use crate::ha::{PostgresState, Role};
use crate::types::NodeId;
use std::cmp::Reverse;

/// The best successor. `Err` says for each other member why it will not do.
pub(super) fn successor(snapshot: &Snapshot) -> Result<NodeId, String> {
    let state = &snapshot.state;
    let others: Vec<NodeId> = state.members.keys().copied().filter(|node| Some(*node) != state.primary()).collect();
    let lacks = |node: NodeId| lack(snapshot, node);
    let fit = others.iter().copied().filter(|node| lacks(*node).is_none());
    fit.max_by_key(|node| rank(snapshot, *node)).ok_or_else(|| {
        let reasons = others.iter().filter_map(|node| Some(format!("{} {}", state.name_of(*node), lacks(*node)?)));
        let reasons: Vec<String> = reasons.collect();
        if reasons.is_empty() { "there is no other member".to_owned() } else { reasons.join(", ") }
    })
}

/// Highest priority, then confirming commits, then having replayed nearly all, or the most, then nearest to the primary: that one will be the first to
/// confirm what its successor writes.
fn rank(snapshot: &Snapshot, node: NodeId) -> impl Ord {
    let state = &snapshot.state;
    let primary = state.primary().and_then(|primary| snapshot.heard(primary));
    let end = primary.and_then(|o| o.postgres.position).map(|p| p.lsn);
    let replayed = snapshot.heard(node).and_then(|o| o.postgres.replayed);
    let priority = state.members.get(&node).map_or(0, |m| m.tags.priority);
    let confirms = state.rules.last().is_some_and(|rule| rule.standbys.contains(&node));
    let keeps_up = replayed.zip(end).is_some_and(|(at, end)| at.behind(end) <= state.settings.max_lag_bytes);
    let away = primary.and_then(|o| o.round_trips.get(&node)).copied().unwrap_or(u32::MAX);
    (priority, confirms, keeps_up, replayed.filter(|_| !keeps_up), Reverse(away), Reverse(node))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::access::RaftInfo;
    use crate::cluster::{Addresses, ClusterState, Member, Phase, SyncRule, Tags};
    use crate::ha::{NodeObservation, PostgresFacts, Seen, View};
    use crate::types::{Epoch, Lsn, Millis, NodeName, WalPosition};
    use std::sync::Arc;

    /// One is primary, at 1000; two is 40 ms away, three 15 ms.
    fn scene(replayed: [u64; 2], tags: [Tags; 2]) -> Snapshot {
        let [two, three] = tags;
        let member = |tags| {
            let (name, addresses) = (NodeName("dc".to_owned()), Addresses::default());
            Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses, tags }
        };
        let members = [(NodeId(1), member(Tags::default())), (NodeId(2), member(two)), (NodeId(3), member(three))].into();
        let (phase, rules) = (Phase::Steady { primary: NodeId(1) }, vec![SyncRule::new(NodeId(1), [NodeId(2), NodeId(3)], 1)]);
        let mut state = ClusterState { phase, members, rules, ..ClusterState::default() };
        state.settings.max_lag_bytes = 100;
        let position = |lsn| Some(WalPosition { writer: Epoch(1), lsn: Lsn(lsn) });
        let primary = PostgresFacts { position: position(1_000), ..PostgresFacts::default() };
        let standby = |replayed| PostgresFacts {
            state: PostgresState::Running,
            role: Some(Role::Standby),
            streaming_from: Some(NodeId(1)),
            replayed: Some(Lsn(replayed)),
            ..PostgresFacts::default()
        };
        let seen = |n, postgres, round_trips| {
            let observation = NodeObservation { node: NodeId(n), postgres, round_trips, ..NodeObservation::default() };
            (NodeId(n), Seen { at: Millis(0), observation })
        };
        let trips = [(NodeId(2), 40), (NodeId(3), 15)].into();
        let [behind, near] = replayed.map(standby);
        let observations = [seen(1, primary, trips), seen(2, behind, [].into()), seen(3, near, [].into())].into();
        let view = View { observations, ..View::default() };
        Snapshot {
            me: NodeName("dc".to_owned()),
            state: Arc::new(state),
            view,
            reason: String::new(),
            raft: RaftInfo::default(),
            lease: None,
        }
    }

    #[test]
    fn the_nearest_takes_over_unless_it_lags_or_another_is_preferred() {
        let plain = [Tags::default(), Tags::default()];
        assert_eq!(successor(&scene([1_000, 980], plain.clone())), Ok(NodeId(3)));
        assert_eq!(successor(&scene([1_000, 800], plain)), Ok(NodeId(2)), "three has yet to replay more than the bound");
        let preferred = [Tags { priority: Tags::default().priority + 1, ..Tags::default() }, Tags::default()];
        assert_eq!(successor(&scene([1_000, 1_000], preferred)), Ok(NodeId(2)));
        let barred = [Tags { nofailover: true, ..Tags::default() }, Tags { nofailover: true, ..Tags::default() }];
        assert!(successor(&scene([1_000, 1_000], barred)).unwrap_err().contains("is tagged nofailover"));
    }
}
