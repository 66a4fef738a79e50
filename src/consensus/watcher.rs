//! Turns openraft's metrics into what others watch: who leads, and whether consensus still works here.
//!
//! openraft's metrics are a watch whose borrow blocks its core, so they are copied out at once and never held.

use super::handle::{Health, Leadership};
use super::node::Shared;
use super::raft::{Raft, StoredMembership, TypeConfig};
use crate::types::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant as _, RaftMetrics, ServerState};
use std::sync::Arc;
use std::time::Duration;

/// While nothing happens a leader looks at the age of its last quorum this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A copy of the metrics.
pub fn metrics(raft: &Raft) -> RaftMetrics<TypeConfig> {
    raft.metrics().borrow_watched().clone()
}

/// The membership in effect, committed or not.
pub fn membership(raft: &Raft) -> Arc<StoredMembership> {
    raft.metrics().borrow_watched().membership_config.clone()
}

/// Until consensus stops.
pub async fn run(shared: Arc<Shared>) -> String {
    let mut progress = shared.progress.subscribe();
    // The sender lives in `shared`.
    drop(progress.wait_for(|_| shared.raft().is_some()).await);
    let Some(raft) = shared.raft() else { return "no consensus".to_owned() };
    let mut changes = raft.metrics();
    let mut store = shared.store.failed();
    loop {
        let seen = metrics(raft);
        let leads = seen.state == ServerState::Leader;
        if let Err(fatal) = publish(&shared, &seen) {
            let why = store.borrow_and_update().clone().unwrap_or(fatal);
            return stopped(&shared, why);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return stopped(&shared, "it has ended".to_owned());
            },
            // openraft hears of it with its next write, which may never come on a node that only listens.
            _ = store.changed() => {
                let why = store.borrow().clone().unwrap_or_else(|| "its writer has ended".to_owned());
                return stopped(&shared, format!("the consensus log cannot be written: {why}"));
            },
            // Elsewhere nothing changes by age alone.
            () = tokio::time::sleep(LOOK_EVERY), if leads => {}
        }
    }
}

/// For good: whoever watches must not go on by what was true before.
fn stopped(shared: &Shared, why: String) -> String {
    tracing::error!(reason = %why, "consensus has stopped on this node");
    shared.leadership.send_replace(Leadership::default());
    shared.mine.send_replace(false);
    shared.health.send_replace(Health::Fatal(why.clone()));
    why
}

fn publish(shared: &Shared, metrics: &RaftMetrics<TypeConfig>) -> Result<(), String> {
    metrics.running_state.as_ref().map_err(ToString::to_string)?;
    // Two nodes may both call themselves leader; one of them has no quorum.
    let trusted = shared.config.timing.election_max * 2;
    // A sole voter has nobody to hear from, and openraft then never moves the mark.
    let alone = metrics.membership_config.voter_ids().count() == 1;
    let confirmed = alone || metrics.last_quorum_acked.is_some_and(|at| at.elapsed() <= trusted);
    let now = Leadership {
        leader: metrics.current_leader.map(NodeId),
        mine: metrics.state == ServerState::Leader && confirmed,
        term: metrics.current_term,
    };
    let changed = shared.leadership.send_if_modified(|known| std::mem::replace(known, now) != now);
    shared.mine.send_if_modified(|known| std::mem::replace(known, now.mine) != now.mine);
    if changed {
        tracing::info!(leader = now.leader.map(|n| n.0), mine = now.mine, term = now.term, "leadership");
    }
    Ok(())
}
