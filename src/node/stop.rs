//! The end of a node: in order after a signal, at once when a part broke.
//!
//! ```text
//!   hand over the primaryship, or leave the rule ─► proxy ─► agent ─► Postgres ─► lease given back ─► consensus
//! ```
//! Each step is bounded, so that the whole ends within fifteen seconds whatever hangs.

use super::assemble::Node;
use crate::api::Actions;
use crate::postgres::{Instance, Postmaster};
use crate::types::RequestId;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// A switchover takes a second; one that has not happened by then would find the service manager's patience at its end.
const HAND_OVER: Duration = Duration::from_secs(6);
/// The primary replaces a standby that leaves within two rounds of consensus; where it cannot, it goes on waiting for it anyhow.
const LEAVE_RULE: Duration = Duration::from_secs(2);
/// The proxy's own grace for transactions, and a little more.
const PROXY: Duration = Duration::from_millis(2_500);
/// A clean shutdown; whoever is left then is killed.
const POSTGRES: Duration = Duration::from_secs(4);
const AGENT: Duration = Duration::from_secs(1);
/// All of it but consensus, which takes at most three seconds more: within the fifteen that people wait.
const ALL: Duration = Duration::from_secs(11);
const LEASE: Duration = Duration::from_millis(700);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A signal asked for it.
pub async fn in_order(mut node: Node) {
    tracing::info!("node stops");
    if timeout(ALL, wind_down(&mut node)).await.is_err() {
        tracing::warn!("the node did not stop in order in time");
        if let Some(postgres) = &node.postgres {
            postgres.emergency().immediate();
        }
    }
    node.stops.rest.cancel();
    node.consensus.shutdown().await;
}

async fn wind_down(node: &mut Node) {
    node.leaving.send_replace(true);
    if let Some(me) = node.handle.node_id() {
        if node.handle.state().borrow().primary() == Some(me) {
            hand_over(node).await;
        } else {
            leave_rule(node, me).await;
        }
    }
    node.stops.proxy.cancel();
    ended(node, "proxy", PROXY).await;
    node.stops.agent.cancel();
    ended(node, "agent", AGENT).await;
    if stop_postgres(node).await {
        give_lease_back(node).await;
    }
}

/// A part broke. A primary must not go on without the parts that watch over its right to serve (INV-9); a standby may.
pub async fn at_once(node: Node, postgres_in_doubt: bool) {
    if postgres_in_doubt && node.lease.deadline().is_some() && node.postgres.as_ref().is_some_and(|p| p.emergency().immediate()) {
        tracing::warn!("the local primary was stopped at once");
    }
    for stop in [&node.stops.proxy, &node.stops.agent, &node.stops.rest] {
        stop.cancel();
    }
    node.consensus.shutdown().await;
}

/// The node ends before anybody watches over an adopted Postgres: it may be a primary, so it goes too (INV-9).
pub fn abandoned(postgres: Option<&Instance>) {
    if postgres.is_some_and(|p| p.emergency().immediate()) {
        tracing::warn!("the local postgres was stopped at once: nobody watches over it");
    }
}

async fn hand_over(node: &Node) {
    let (progress, mut told) = mpsc::channel(16);
    let actions = Actions::new(node.access.clone(), RequestId(rand::random()), progress);
    let changing = timeout(HAND_OVER, actions.switchover(None));
    tokio::pin!(changing);
    loop {
        tokio::select! {
            ended = &mut changing => {
                match ended {
                    Ok(Ok(done)) => tracing::info!(%done, "primaryship handed over"),
                    Ok(Err(error)) => tracing::warn!(%error, "primaryship not handed over: the cluster elects when this node is gone"),
                    Err(_) => tracing::warn!("primaryship not handed over in time: the cluster elects when this node is gone"),
                }
                return;
            }
            Some(line) = told.recv() => tracing::info!(step = %line, "handing over"),
        }
    }
}

/// Commits should not wait for a standby that is about to go.
async fn leave_rule(node: &Node, me: crate::types::NodeId) {
    let mut states = node.handle.state();
    let left = states.wait_for(|s| s.rules.iter().all(|rule| !rule.standbys.contains(&me)));
    if !matches!(timeout(LEAVE_RULE, left).await, Ok(Ok(_))) {
        tracing::info!("commits still wait for this standby: the others do not suffice without it");
    }
}

async fn ended(node: &mut Node, name: &str, within: Duration) {
    let waiting = async {
        while let Some(end) = node.tasks.join_next().await {
            if end.is_ok_and(|(ended, _)| ended == name) {
                return;
            }
        }
    };
    if timeout(within, waiting).await.is_err() {
        tracing::debug!(name, "did not end in time");
    }
}

/// True when Postgres is certainly down.
async fn stop_postgres(node: &Node) -> bool {
    let Some(postgres) = &node.postgres else { return true };
    if !matches!(*postgres.postmaster().borrow(), Postmaster::Running { .. }) {
        // A dead postmaster may have left backends that still write.
        return postgres.demote().await.is_ok();
    }
    match postgres.stop(POSTGRES).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "postgres did not stop in order, stopping it at once");
            postgres.demote().await.is_ok()
        }
    }
}

/// Nobody need wait for a lease whose Postgres is down (INV-9: only then).
async fn give_lease_back(node: &Node) {
    let states = node.handle.state();
    let held = || {
        let state = states.borrow();
        (state.lease.holder.is_some() && state.lease.holder == node.handle.node_id()).then_some(state.lease.epoch)
    };
    let Some(epoch) = held() else { return };
    node.lease.release(epoch);
    let returned = async {
        while held().is_some() {
            sleep(LOOK_EVERY).await;
        }
    };
    if timeout(LEASE, returned).await.is_err() {
        tracing::info!("the lease was not given back: it runs out by itself");
    }
}
