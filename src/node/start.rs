//! Before the first step of a restarted node: catch up with the cluster, and ask once for the lease that was this node's.
//!
//! Without this pause a node whose process alone was killed would stop a Postgres that is primary and healthy: its own copy of the
//! state is still empty, and its belief in the lease ended with the process (INV-9). The lease is asked for anew, through the log;
//! nothing is taken from before.

use crate::agent::LeaseCell;
use crate::cluster::{Addresses, Command, Member, MemberKind, Proposal};
use crate::config::Config;
use crate::consensus::{self, Handle, Progress};
use crate::ha::LeaseBelief;
use crate::telemetry::Clock;
use crate::types::NodeId;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(10);
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Pause before addresses are told again.
const RETRY: Duration = Duration::from_secs(1);

/// This node as the others will know it.
pub fn member(config: &Config) -> Member {
    let at = |address| config.advertised(address).to_string();
    let own = config.cluster.peer(&config.node.name);
    let data = config.node.kind == MemberKind::Data;
    Member {
        name: config.node.name.clone(),
        datacenter: config.node.datacenter.clone(),
        kind: config.node.kind,
        addresses: Addresses {
            // As it is written in everybody's `peers`, which may lead through another address than the one bound here.
            grpc: own.map_or_else(|| at(&config.api.grpc), |peer| peer.address.to_string()),
            http: at(&config.api.http),
            postgres: if data { config.postgres.advertise.to_string() } else { String::new() },
            proxy_auto: at(&config.proxy.auto),
            proxy_primary: at(&config.proxy.primary),
            proxy_standby: at(&config.proxy.standby),
        },
        tags: config.node.tags.clone(),
    }
}

/// The peers and the way to meet them, as consensus wants them.
pub fn peers(config: &Config) -> Vec<consensus::Peer> {
    let peer = |p: &crate::config::Peer| consensus::Peer { name: p.name.to_string(), address: p.address.to_string() };
    config.cluster.peers.iter().map(peer).collect()
}

/// Until this node has its id. Says for what it waits.
pub async fn membership(consensus: &Handle) -> NodeId {
    let mut progress = consensus.progress();
    loop {
        let known = progress.borrow_and_update().clone();
        match known {
            Progress::Member { node } => return node,
            Progress::Starting => {}
            Progress::Waiting(words) => super::supervise::notify_status(&words),
        }
        // Consensus lives as long as the node; its end is noticed elsewhere.
        if progress.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Wait, at most for the length of a lease, until the state is current and a lease that is this node's has been renewed.
pub async fn catch_up(me: NodeId, consensus: &Handle, lease: &LeaseCell, clock: Clock) {
    let ttl = consensus.state().borrow().settings.lease_ttl().max(Duration::from_secs(1));
    let deadline = clock.now().after(ttl);
    if let Err(error) = consensus.read_index(ttl).await {
        tracing::warn!(%error, "starting without word from a leader");
        return;
    }
    while clock.now() < deadline {
        let state = consensus.state().borrow().clone();
        let ours = state.lease.holder == Some(me) && state.lease.epoch == state.epoch;
        let held = lease.belief() == LeaseBelief::Valid { epoch: state.epoch };
        if !ours || held {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Addresses, datacenter and kind follow the configuration; tags are the administrators' once the node is a member.
pub async fn tell_addresses(me: NodeId, own: Member, consensus: Handle) {
    loop {
        let known = consensus.state().borrow().members.get(&me).cloned();
        let member = known.as_ref().map(|known| Member { tags: known.tags.clone(), ..own.clone() });
        match member {
            Some(member) if known.as_ref() != Some(&member) => {
                let proposal = Proposal { expect: None, request: None, command: Command::UpdateMember { node: me, member } };
                match consensus.propose(proposal).await {
                    Ok(Ok(_)) => tracing::info!("own addresses told to the cluster"),
                    Ok(Err(refused)) => {
                        tracing::error!(%refused, "the cluster refuses this node's addresses; correct node.name");
                        tokio::time::sleep(TELL_EVERY).await;
                    }
                    Err(error) => tracing::debug!(%error, "own addresses not told yet"),
                }
                tokio::time::sleep(RETRY).await;
            }
            Some(_) => tokio::time::sleep(TELL_EVERY).await,
            // Not yet in the copy of the state here.
            None => tokio::time::sleep(RETRY).await,
        }
    }
}
