//! What flows between the parts: observations to whoever decides, the topology to the proxy, suspects to the prober.

use super::reads::Reads;
use crate::agent::{ViewSource, refusing};
use crate::cluster::{Lease, MemberKind, Topology};
use crate::consensus::{Failure, Handle};
use crate::telemetry::Clock;
use crate::types::{Millis, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Ages of observations are looked at this often, when nothing else happens.
const TOPOLOGY_TICK: Duration = Duration::from_millis(500);
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
        now.since(Millis(self.0.load(Ordering::Acquire))) <= TOPOLOGY_MAX_AGE
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
pub async fn topology(
    me: NodeId,
    consensus: Handle,
    view: Arc<ViewSource>,
    clock: Clock,
    told: watch::Sender<Arc<Topology>>,
    attested: Attested,
) {
    let mut states = consensus.state();
    let mut seen = view.subscribe();
    let (leadership, mut reads) = (consensus.leadership(), Reads::of(me));
    loop {
        let (now, state) = (clock.now(), states.borrow_and_update().clone());
        let leads = *leadership.borrow();
        let topology = Topology::derive(&state, &reads.readable(&state, &view.view(now), leads));
        told.send_if_modified(|known| {
            let changed = **known != topology;
            if changed {
                *known = Arc::new(topology);
            }
            changed
        });
        // Behind the topology: who finds this one fresh finds that one told.
        attested.0.store(now.0, Ordering::Release);
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return std::future::pending().await },
            changed = seen.changed() => if changed.is_err() { return std::future::pending().await },
            () = tokio::time::sleep(TOPOLOGY_TICK) => {}
        }
    }
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
