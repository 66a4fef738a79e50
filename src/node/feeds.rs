//! What flows between the parts: observations to whoever decides, the topology to the proxy, suspects to the prober.

use crate::agent::{ViewSource, refusing};
use crate::cluster::{ClusterState, Lease, MemberKind, SyncRule, Topology};
use crate::consensus::{Failure, Handle};
use crate::ha::{PostgresState, Role, View};
use crate::telemetry::Clock;
use crate::types::{Millis, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Ages of observations are looked at this often, when nothing else happens.
const TOPOLOGY_TICK: Duration = Duration::from_millis(500);
/// A standby that has been silent for this long gets no reads.
const READABLE_MAX_AGE: Duration = Duration::from_secs(2);
/// A topology that was not looked at for so long is of a node that was frozen or starved.
const TOPOLOGY_MAX_AGE: Duration = Duration::from_millis(1_500);
/// A peer that refuses is asked again this often: its death must be seen by everybody before it counts.
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// When the topology was last derived anew, whether it changed or not.
#[derive(Clone, Debug, Default)]
pub struct Attested(Arc<AtomicU64>);

impl Attested {
    /// Is it of the present?
    #[must_use]
    pub fn is_fresh(&self, now: Millis) -> bool {
        now.since(Millis(self.0.load(Ordering::Relaxed))) <= TOPOLOGY_MAX_AGE
    }
}

/// The peers' observations, as they arrive, into `view`. The own one gets there directly.
pub async fn observations(me: NodeId, consensus: Handle, view: Arc<ViewSource>) {
    let mut observed = consensus.observations();
    let mut known: BTreeMap<NodeId, Millis> = BTreeMap::new();
    while observed.changed().await.is_ok() {
        let all = observed.borrow_and_update().clone();
        // A starting member says nothing of itself yet, and does so under no name.
        for (node, seen) in all.iter().filter(|(node, seen)| **node != me && seen.observation.node == **node) {
            if known.insert(*node, seen.at) != Some(seen.at) {
                view.seen(seen.observation.clone(), seen.at);
            }
        }
        let gone: Vec<NodeId> = known.keys().filter(|node| !all.contains_key(node)).copied().collect();
        for node in gone {
            known.remove(&node);
            view.forget(node);
        }
    }
    // The senders live as long as consensus, whose end is told elsewhere, with its cause.
    std::future::pending().await
}

/// The proxy's whole view of the cluster, again whenever state or observations change it.
pub async fn topology(consensus: Handle, view: Arc<ViewSource>, clock: Clock, told: watch::Sender<Arc<Topology>>, attested: Attested) {
    let mut states = consensus.state();
    let mut seen = view.subscribe();
    loop {
        let (now, state) = (clock.now(), states.borrow_and_update().clone());
        let topology = Topology::derive(&state, &readable(&state, &view.view(now)));
        told.send_if_modified(|known| {
            let changed = **known != topology;
            if changed {
                *known = Arc::new(topology);
            }
            changed
        });
        attested.0.store(now.0, Ordering::Relaxed);
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return std::future::pending().await },
            changed = seen.changed() => if changed.is_err() { return std::future::pending().await },
            () = tokio::time::sleep(TOPOLOGY_TICK) => {}
        }
    }
}

/// Standbys that run and are heard, with the bytes that each has yet to replay. An isolated one still serves its own datacenter. One on
/// another timeline may hold commits that nobody confirmed, and that a rewind will take away; so may one that was the primary (P3).
fn readable(state: &ClusterState, view: &View) -> BTreeMap<NodeId, Option<u64>> {
    let ahead = state.primary().and_then(|primary| view.fresh(primary, READABLE_MAX_AGE)).map(|o| &o.postgres);
    let current = state.timelines.newest_settled().map(|claim| claim.timeline);
    let standby = |node: NodeId| {
        let o = view.fresh(node, READABLE_MAX_AGE)?;
        let facts = &o.postgres;
        let standby = facts.state == PostgresState::Running && facts.role == Some(Role::Standby);
        let serves = standby && facts.timeline == current && !o.doubtful && shows_what_is_confirmed(state, node);
        let comparable = ahead.filter(|ahead| ahead.timeline == facts.timeline);
        let replayed = facts.replayed.or(facts.position.map(|p| p.lsn));
        let lag = comparable.and_then(|ahead| Some(replayed?.behind(ahead.position?.lsn)));
        serves.then_some((node, lag))
    };
    state.data_members().filter_map(standby).collect()
}

/// What a standby shows it has flushed, and where its own word suffices for every rule in force, that confirms it. One that joins shows what
/// nobody else may have yet, and an election that is decided without it loses that. Whoever never confirms was tagged so, and is read all the same.
fn shows_what_is_confirmed(state: &ClusterState, node: NodeId) -> bool {
    let never = state.members.get(&node).is_some_and(|m| m.tags.nosync || m.tags.nofailover);
    let suffices = |rule: &SyncRule| rule.acks == 0 || rule.primary == node || rule.standbys.contains(&node);
    never || state.rules.iter().all(suffices)
}

/// Peers whose process refuses: do their Postgres refuse too?
pub async fn suspects(consensus: Handle, view: Arc<ViewSource>, told: watch::Sender<BTreeMap<NodeId, Lease>>) {
    let mut reach = consensus.reach();
    loop {
        // Read before anybody is asked (INV-9).
        let lease = consensus.state().borrow().lease;
        let suspects = refused_by_process(&consensus, &reach);
        let dead = if suspects.is_empty() { BTreeSet::new() } else { refusing(&suspects).await };
        let dead: BTreeMap<NodeId, Lease> = dead.into_iter().map(|node| (node, lease)).collect();
        let changed = told.send_if_modified(|known| {
            let changed = *known != dead;
            *known = dead;
            changed
        });
        if changed {
            view.poke();
        }
        let pause = if suspects.is_empty() { None } else { Some(PROBE_EVERY) };
        tokio::select! {
            changed = reach.changed() => if changed.is_err() { return std::future::pending().await },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

fn refused_by_process(
    consensus: &Handle,
    reach: &watch::Receiver<Arc<BTreeMap<NodeId, crate::consensus::Reach>>>,
) -> BTreeMap<NodeId, (String, String)> {
    let state = consensus.state().borrow().clone();
    let reach = reach.borrow().clone();
    let refused = reach.iter().filter(|(_, reach)| reach.state == Err(Failure::Refused)).map(|(node, _)| *node);
    let addresses = |node: NodeId| {
        let member = state.members.get(&node).filter(|m| m.kind == MemberKind::Data)?;
        Some((node, (member.addresses.grpc.clone(), member.addresses.postgres.clone())))
    };
    refused.filter_map(addresses).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Addresses, Member, Tags};
    use crate::types::NodeName;

    #[test]
    fn a_standby_is_read_once_its_word_confirms_what_it_shows() {
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        let mut state = ClusterState { rules: vec![SyncRule::new(one, [three], 1)], ..ClusterState::default() };
        let shown = |state: &ClusterState| [one, two, three].map(|node| shows_what_is_confirmed(state, node));
        assert_eq!(shown(&state), [true, false, true], "two streams, and the election may be decided by three alone");
        state.rules.push(SyncRule::new(one, [two, three], 1));
        assert_eq!(shown(&state), [true, false, true], "the narrow rule is in force still");
        state.rules.remove(0);
        assert_eq!(shown(&state), [true; 3]);
        state.rules = vec![SyncRule::new(one, [], 0)];
        assert_eq!(shown(&state), [true; 3], "commits wait for nobody");
        state.rules = vec![SyncRule::new(one, [three], 1)];
        let tags = Tags { nosync: true, ..Tags::default() };
        let (name, addresses) = (NodeName("dc2".to_owned()), Addresses::default());
        state.members.insert(two, Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses, tags });
        assert_eq!(shown(&state), [true; 3], "it never confirms, as its tag says");
    }
}
