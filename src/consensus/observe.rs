//! Volatile facts: my observation goes to every member, a few times a second and at once on change; theirs arrive in a map.
//!
//! One task per member holds one stream. The stream's connection is also how we know whether a member can be reached: when it
//! breaks, the next attempt tells at once whether the process is gone (refused) or merely silent.

use super::config::Peer;
use super::links::{CONNECT_TIMEOUT, Failure, classify_status};
use super::node::{Reach, Shared};
use crate::ha::{NodeObservation, Seen};
use crate::proto::v1;
use crate::types::NodeId;
use futures::{Stream, stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// Silence is filled this often, so that a fresh observation means a living node.
const REPEAT_EVERY: Duration = Duration::from_millis(500);
/// Changes closer together than this travel as one.
const GAP_MIN: Duration = Duration::from_millis(15);
/// Pause between attempts. Short: a restarted member should be heard at once, and a refused connection costs next to nothing.
const RETRY: Duration = Duration::from_millis(200);
/// A connection that is silent this long is not an answer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Until the node stops.
pub async fn run(shared: Arc<Shared>, mine: watch::Receiver<NodeObservation>) -> String {
    let mut state = shared.state.clone();
    let mut streams: JoinSet<()> = JoinSet::new();
    let mut running: BTreeMap<NodeId, (Peer, CancellationToken)> = BTreeMap::new();
    // One beat for all streams: each with a timer of its own would wake the process three times as often.
    let told = watch::Sender::new(mine.borrow().clone());
    let beat = told.subscribe();
    streams.spawn(keep_telling(shared.clone(), mine, told));
    loop {
        let wanted = members(&shared);
        running.retain(|node, (peer, cancel)| {
            let keep = wanted.get(node) == Some(peer);
            if !keep {
                cancel.cancel();
                forget(&shared, *node);
            }
            keep
        });
        for (node, peer) in wanted {
            running.entry(node).or_insert_with(|| {
                let cancel = CancellationToken::new();
                let work = talk_to(shared.clone(), node, peer.clone(), beat.clone());
                let until = cancel.clone();
                streams.spawn(async move { until.run_until_cancelled(work).await.unwrap_or(()) });
                (peer, cancel)
            });
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return "no state".to_owned() },
            Some(_) = streams.join_next() => {}
        }
    }
}

/// The other members and where they are.
fn members(shared: &Shared) -> BTreeMap<NodeId, Peer> {
    let me = shared.identity.get().map(|me| me.node);
    let state = shared.state.borrow();
    let others = state.members.iter().filter(|(node, _)| Some(**node) != me);
    others.map(|(node, m)| (*node, Peer { name: m.name.to_string(), address: m.addresses.grpc.clone() })).collect()
}

fn forget(shared: &Shared, node: NodeId) {
    shared.reach.send_modify(|all| drop(Arc::make_mut(all).remove(&node)));
    shared.observations.send_modify(|all| drop(Arc::make_mut(all).remove(&node)));
}

/// The beat: what this node says of itself, when it changes and otherwise again and again. It belongs in the own map too.
async fn keep_telling(shared: Arc<Shared>, mut mine: watch::Receiver<NodeObservation>, told: watch::Sender<NodeObservation>) {
    loop {
        let observation = mine.borrow_and_update().clone();
        if let Some(me) = shared.identity.get() {
            record(&shared, me.node, observation.clone());
        }
        told.send_replace(observation);
        match timeout(REPEAT_EVERY, mine.changed()).await {
            Ok(Err(_)) => return,
            Ok(Ok(())) => sleep(GAP_MIN).await,
            Err(_) => {}
        }
    }
}

/// Note what `node` says of itself, now.
pub fn record(shared: &Shared, node: NodeId, observation: NodeObservation) {
    let seen = Seen { at: shared.config.clock.now(), observation };
    shared.observations.send_modify(|all| drop(Arc::make_mut(all).insert(node, seen)));
}

async fn talk_to(shared: Arc<Shared>, node: NodeId, peer: Peer, beat: watch::Receiver<NodeObservation>) {
    loop {
        let begun = shared.config.clock.now();
        let failure = talk(&shared, node, &peer, beat.clone()).await;
        let broke = note(&shared, node, Err(failure));
        // After a break the very next attempt tells whether the process is gone: make it at once. A process that is about to end
        // accepts and hangs up again and again.
        if !broke || shared.config.clock.now().since(begun) < RETRY {
            sleep(RETRY).await;
        }
    }
}

/// One connection, from its beginning to its end.
async fn talk(shared: &Arc<Shared>, node: NodeId, peer: &Peer, beat: watch::Receiver<NodeObservation>) -> Failure {
    let mut client = match timeout(CONNECT_TIMEOUT * 2, shared.links.connect(peer)).await {
        Ok(Ok(client)) => client,
        Ok(Err(failure)) => return failure,
        Err(_) => return Failure::TimedOut,
    };
    let messages = messages(shared.clone(), node, beat);
    // The answer's headers come when the other side has accepted us, its body never: the stream lives as long as both do.
    let mut replies = match timeout(HANDSHAKE_TIMEOUT, client.observe(Request::new(messages))).await {
        Ok(Ok(replies)) => replies.into_inner(),
        Ok(Err(status)) => return classify_status(&status),
        Err(_) => return Failure::TimedOut,
    };
    note(shared, node, Ok(()));
    match replies.message().await {
        Ok(_) => Failure::Other("it closed the connection".to_owned()),
        Err(status) => classify_status(&status),
    }
}

fn messages(shared: Arc<Shared>, to: NodeId, beat: watch::Receiver<NodeObservation>) -> impl Stream<Item = v1::ObserveMessage> {
    stream::unfold((shared, beat, true), move |(shared, mut beat, first)| async move {
        if !first && beat.changed().await.is_err() {
            return None;
        }
        let json = serde_json::to_vec(&*beat.borrow_and_update()).ok()?;
        let message = v1::ObserveMessage { header: Some(shared.identity.header(to.0)), json: json.into() };
        Some((message, (shared, beat, false)))
    })
}

/// Publish a change of reachability. Says whether a connection was there before.
fn note(shared: &Shared, node: NodeId, state: Result<(), Failure>) -> bool {
    let was_connected = shared.reach.borrow().get(&node).is_some_and(|reach| reach.state.is_ok());
    let changed = shared.reach.borrow().get(&node).is_none_or(|reach| reach.state != state);
    if changed {
        match &state {
            Ok(()) => tracing::info!(node = %node, "member reached"),
            Err(failure) => tracing::warn!(node = %node, reason = %failure, "member not reachable"),
        }
        let since = shared.config.clock.now();
        shared.reach.send_modify(|all| drop(Arc::make_mut(all).insert(node, Reach { state: state.clone(), since })));
    }
    was_connected && state.is_err()
}
