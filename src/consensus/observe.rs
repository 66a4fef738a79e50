//! Volatile facts: my observation goes to every member, a few times a second and at once on change; theirs arrive in a map.
//!
//! One task per member holds one stream. The stream's connection is also how we know whether a member can be reached: when it
//! breaks, the next attempt tells at once whether the process is gone (refused) or merely silent. And it finds members that moved:
//! each attempt goes to all addresses that are known of one, and where it answers as itself all other calls go too.

use super::config::Peer;
use super::links::{CONNECT_TIMEOUT, Failure, classify_status};
use super::node::{Reach, Shared};
use super::watcher;
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
use tonic::{Request, Streaming};

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
    let mut progress = shared.progress.subscribe();
    let mut streams: JoinSet<()> = JoinSet::new();
    let mut running: BTreeMap<NodeId, (Peer, CancellationToken)> = BTreeMap::new();
    // One beat for all streams: each with a timer of its own would wake the process three times as often.
    let told = watch::Sender::new(mine.borrow().clone());
    let beat = told.subscribe();
    streams.spawn(keep_telling(shared.clone(), mine, told));
    loop {
        let wanted = members(&shared);
        running.retain(|node, (peer, cancel)| {
            // A member that tells the cluster of its move has been found there already.
            let keep = wanted.get(node).is_some_and(|listed| listed == peer || shared.addresses.is_at(*node, &listed.address));
            if !keep {
                cancel.cancel();
                forget(&shared, *node);
            }
            keep
        });
        for (node, peer) in wanted {
            let (known, _) = running.entry(node).or_insert_with(|| {
                let cancel = CancellationToken::new();
                let work = talk_to(shared.clone(), node, beat.clone());
                let until = cancel.clone();
                streams.spawn(async move { until.run_until_cancelled(work).await.unwrap_or(()) });
                (peer.clone(), cancel)
            });
            *known = peer;
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return "no state".to_owned() },
            // Its sender lives in `shared`.
            _ = progress.changed() => {}
            Some(_) = streams.join_next() => {}
        }
    }
}

/// The other members and where they are listed.
fn members(shared: &Shared) -> BTreeMap<NodeId, Peer> {
    let me = shared.identity.get().map(|me| me.node);
    let mut nodes: Vec<NodeId> = shared.state.borrow().members.keys().copied().collect();
    if let (true, Some(raft)) = (nodes.is_empty(), shared.raft()) {
        // The state is applied no further than a commit is known of, and for that somebody must lead.
        nodes.extend(watcher::membership(raft).membership().nodes().map(|(node, _)| NodeId(*node)));
    }
    nodes.into_iter().filter(|node| Some(*node) != me).filter_map(|node| Some((node, shared.listed(node)?))).collect()
}

fn forget(shared: &Shared, node: NodeId) {
    shared.addresses.forget(node);
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

async fn talk_to(shared: Arc<Shared>, node: NodeId, beat: watch::Receiver<NodeObservation>) {
    loop {
        let begun = shared.config.clock.now();
        let failure = match find(&shared, node, &beat).await {
            Ok(replies) => {
                note(&shared, node, Ok(()));
                broken(replies).await
            }
            Err(failure) => failure,
        };
        let broke = note(&shared, node, Err(failure));
        // After a break the very next attempt tells whether the process is gone: make it at once. A process that is about to end
        // accepts and hangs up again and again.
        if !broke || shared.config.clock.now().since(begun) < RETRY {
            sleep(RETRY).await;
        }
    }
}

/// Try the addresses that the member may have, until it answers at one of them.
async fn find(shared: &Arc<Shared>, node: NodeId, beat: &watch::Receiver<NodeObservation>) -> Result<Replies, Failure> {
    let candidates = shared.listed(node).map(|listed| shared.addresses.candidates(node, &listed)).unwrap_or_default();
    let mut failures = Vec::new();
    for peer in candidates {
        match greet(shared, node, &peer, beat.clone()).await {
            Ok(replies) => {
                shared.addresses.reached(node, &peer.address);
                return Ok(replies);
            }
            Err(failure) => failures.push(failure),
        }
    }
    // A refusal is taken for a sign of death, so one address that may yet be the right one outweighs any number that refuse.
    Err(failures.into_iter().max_by_key(doubt).unwrap_or_else(|| Failure::Other("its address is not known".to_owned())))
}

/// How far a failure leaves it open whether the member lives.
fn doubt(failure: &Failure) -> u8 {
    match failure {
        Failure::Refused => 0,
        Failure::Rejected(_) => 1,
        Failure::Other(_) => 2,
        Failure::TimedOut => 3,
    }
}

type Replies = Streaming<v1::ObserveReply>;

/// One connection, up to the answer that it is the member that is meant.
async fn greet(shared: &Arc<Shared>, node: NodeId, peer: &Peer, beat: watch::Receiver<NodeObservation>) -> Result<Replies, Failure> {
    let client = timeout(CONNECT_TIMEOUT * 2, shared.links.connect(peer)).await;
    let mut client = client.unwrap_or(Err(Failure::TimedOut))?;
    let messages = messages(shared.clone(), node, beat);
    // The answer's headers come when the other side has accepted us, its body never: the stream lives as long as both do.
    match timeout(HANDSHAKE_TIMEOUT, client.observe(Request::new(messages))).await {
        Ok(Ok(replies)) => Ok(replies.into_inner()),
        Ok(Err(status)) => Err(classify_status(&status)),
        Err(_) => Err(Failure::TimedOut),
    }
}

/// Until the connection ends.
async fn broken(mut replies: Replies) -> Failure {
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
        let address = shared.config.member.addresses.grpc.clone();
        let message = v1::ObserveMessage { header: Some(shared.identity.header(to.0)), json: json.into(), address };
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
