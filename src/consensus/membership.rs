//! On the leader: openraft's membership follows the members of the replicated state. Level-triggered, so that a leader that dies
//! half-way leaves nothing that the next one does not finish.
//!
//! Someone in the state but not in the membership becomes a learner; a learner that has caught up becomes a voter, and in the
//! same change whoever has left the state leaves the voters. Addresses follow too. Also here: the first leader of a new cluster
//! proposes its first command. Deliberately absent: any decision about who should be a member; commands make those.

use super::config::Peer;
use super::node::{META_CREATE, Shared};
use super::raft::{EntryData, Membership, PeerNode, Raft, TypeConfig};
use super::watcher;
use crate::cluster::{ClusterState, Command, Proposal};
use openraft::{ChangeMembers, RaftMetrics, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Progress of a learner is not an event, so it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// A change of membership that takes longer is looked at again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A learner this close to the end of the log has caught up.
const CAUGHT_UP_WITHIN: u64 = 50;

/// Until the node stops.
pub async fn run(shared: Arc<Shared>) -> String {
    let mut state = shared.state.clone();
    let mut leadership = shared.leadership.subscribe();
    loop {
        let mine = leadership.borrow_and_update().mine;
        if let Some(raft) = shared.raft().filter(|_| mine) {
            step(&shared, raft).await;
        }
        tokio::select! {
            _ = leadership.changed() => {}
            _ = state.changed(), if mine => {}
            () = tokio::time::sleep(LOOK_EVERY), if mine => {}
        }
        state.mark_unchanged();
    }
}

async fn step(shared: &Shared, raft: &Raft) {
    let state = shared.state.borrow().clone();
    let metrics = watcher::metrics(raft);
    if metrics.state != ServerState::Leader {
        return;
    }
    if state.cluster.is_none() {
        return create(shared, raft).await;
    }
    let Some(change) = next_change(&state, metrics.membership_config.membership(), &caught_up(&metrics)) else { return };
    tracing::info!(change = %change, "changing the consensus membership");
    match timeout(CHANGE_TIMEOUT, raft.change_membership(change, false)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::warn!(error = %e, "the consensus membership was not changed"),
        Err(_) => tracing::warn!("the change of the consensus membership takes long"),
    }
}

/// The first command of a new cluster, agreed upon when it was formed.
async fn create(shared: &Shared, raft: &Raft) {
    let Some(json) = shared.store.meta(META_CREATE) else { return };
    let data = match serde_json::from_slice::<Command>(&json).map(|command| Proposal { expect: None, request: None, command }) {
        Ok(proposal) => EntryData::encode(&proposal),
        Err(e) => Err(e),
    };
    match data {
        Ok(data) => drop(timeout(CHANGE_TIMEOUT, raft.client_write(data)).await),
        Err(e) => tracing::error!(error = %e, "the first command of the cluster cannot be read"),
    }
}

/// Learners and voters near the end of the leader's log.
fn caught_up(metrics: &RaftMetrics<TypeConfig>) -> BTreeSet<u64> {
    let last = metrics.last_log_index.unwrap_or(0);
    let near = |at: &u64| at + CAUGHT_UP_WITHIN >= last;
    metrics.replication.iter().flatten().filter(|(_, at)| at.as_ref().is_some_and(|at| near(&at.index()))).map(|(id, _)| *id).collect()
}

/// The one change to make now, if any. Pure.
fn next_change(state: &ClusterState, membership: &Membership, caught_up: &BTreeSet<u64>) -> Option<ChangeMembers<u64, PeerNode>> {
    let wanted: BTreeMap<u64, PeerNode> = state.members.iter().map(|(id, member)| (id.0, node_of(member))).collect();
    let known: BTreeMap<u64, PeerNode> = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    if let Some((id, node)) = wanted.iter().find(|(id, _)| !known.contains_key(id)) {
        return Some(ChangeMembers::AddNodes([(*id, node.clone())].into()));
    }
    if let Some((id, node)) = wanted.iter().find(|(id, node)| known.get(id).is_some_and(|known| known != *node)) {
        return Some(ChangeMembers::SetNodes([(*id, node.clone())].into()));
    }
    let learners = wanted.keys().filter(|id| !voters.contains(id));
    let (ready, waiting): (Vec<u64>, Vec<u64>) = learners.partition(|id| caught_up.contains(id));
    let leaving = voters.iter().any(|id| !wanted.contains_key(id));
    // One change admits the newcomer and drops the one it replaces: a voter less would leave no room for another loss.
    let may_leave = leaving && waiting.is_empty();
    let unfinished = membership.get_joint_config().len() > 1;
    if !ready.is_empty() || may_leave || unfinished {
        let stay = voters.iter().filter(|id| wanted.contains_key(id)).copied();
        let next: BTreeSet<u64> = stay.chain(ready).collect();
        return (!next.is_empty()).then_some(ChangeMembers::ReplaceAllVoters(next));
    }
    let gone: BTreeSet<u64> = known.keys().filter(|id| !wanted.contains_key(id) && !voters.contains(id)).copied().collect();
    (!gone.is_empty()).then_some(ChangeMembers::RemoveNodes(gone))
}

fn node_of(member: &crate::cluster::Member) -> PeerNode {
    PeerNode { name: member.name.to_string(), address: member.addresses.grpc.clone() }
}

impl From<PeerNode> for Peer {
    fn from(node: PeerNode) -> Self {
        Peer { name: node.name, address: node.address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Addresses, Member, MemberKind, Tags};
    use crate::types::{ClusterId, NodeId};

    fn state(ids: &[u64]) -> ClusterState {
        let member = |id: u64| Member {
            name: format!("dc{id}").as_str().into(),
            datacenter: String::new(),
            kind: MemberKind::Data,
            addresses: Addresses { grpc: format!("host:{id}"), ..Addresses::default() },
            tags: Tags::default(),
        };
        let members = ids.iter().map(|id| (NodeId(*id), member(*id))).collect();
        ClusterState { cluster: Some(ClusterId(1)), members, ..ClusterState::default() }
    }

    fn membership(voters: &[u64], learners: &[u64]) -> Membership {
        let node = |id: &u64| (*id, PeerNode { name: format!("dc{id}"), address: format!("host:{id}") });
        let nodes: BTreeMap<u64, PeerNode> = voters.iter().chain(learners).map(node).collect();
        Membership::new(vec![voters.iter().copied().collect()], nodes).unwrap()
    }

    #[test]
    fn a_replaced_voter_leaves_in_the_change_that_admits_its_successor() {
        let wanted = state(&[1, 2, 4]);
        let none = BTreeSet::new();
        let step = |m: &Membership, caught_up: &BTreeSet<u64>| next_change(&wanted, m, caught_up);
        assert!(matches!(step(&membership(&[1, 2, 3], &[]), &none), Some(ChangeMembers::AddNodes(n)) if n.contains_key(&4)));
        assert_eq!(step(&membership(&[1, 2, 3], &[4]), &none), None);
        let all = ChangeMembers::ReplaceAllVoters([1, 2, 4].into());
        assert_eq!(step(&membership(&[1, 2, 3], &[4]), &[4].into()), Some(all));
        assert_eq!(step(&membership(&[1, 2, 4], &[3]), &none), Some(ChangeMembers::RemoveNodes([3].into())));
        assert_eq!(step(&membership(&[1, 2, 4], &[]), &none), None);
    }

    #[test]
    fn a_moved_member_gets_its_new_address() {
        let mut wanted = state(&[1, 2]);
        wanted.members.get_mut(&NodeId(2)).unwrap().addresses.grpc = "host:99".into();
        let change = next_change(&wanted, &membership(&[1, 2], &[]), &BTreeSet::new());
        assert!(matches!(change, Some(ChangeMembers::SetNodes(n)) if n[&2].address == "host:99"));
    }
}
