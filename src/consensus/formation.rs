//! How a node gets its id: it remembers it, a new cluster gives it one, or it joins.
//!
//! ```text
//!   identity stored ────────────────────────────────► take part under it
//!   none ──► ask all peers: who are you? ─┬─ one knows a cluster ──► Join: a fresh id ──► take part
//!                                         ├─ all answer, none does ─► lowest name: Form to all ──► initialise
//!                                         └─ otherwise ─────────────► wait, and say for whom
//! ```
//! Ids are 1..n by sorted name; every peer has made its id durable before the lowest one initialises openraft. A node whose disk
//! was lost remembers nothing and therefore joins: it never comes back under an id that may have voted. If all disks were lost, a
//! new cluster forms; a single peer that still knows the old one, or that does not answer, prevents it.

use super::config::{Bootstrap, Peer};
use super::handle::{Health, Progress};
use super::links::{Failure, classify_status};
use super::network::timed;
use super::node::{Identity, Shared};
use super::raft::{ENTRY_BYTES_MAX, FORMAT, PeerNode};
use crate::cluster::{Command, Member};
use crate::proto::v1;
use crate::types::{ClusterId, NodeId};
use futures::future::join_all;
use openraft::errors::{InitializeError, RaftError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Between two rounds of questions.
const ROUND_EVERY: Duration = Duration::from_millis(200);
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
const FORM_TIMEOUT: Duration = Duration::from_secs(5);
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a member asks whether it still is one, and how many times in a row the answer must be no.
const MEMBER_CHECK_EVERY: Duration = Duration::from_secs(3);
const REMOVED_AFTER: u32 = 3;

type Answers = Vec<(Peer, Result<v1::HelloReply, Failure>)>;

/// Until the node stops.
pub async fn run(shared: Arc<Shared>) -> String {
    if let Err(e) = become_member(&shared).await {
        shared.health.send_replace(Health::Fatal(e.clone()));
        return e;
    }
    watch_membership(&shared).await;
    std::future::pending().await
}

async fn become_member(shared: &Shared) -> Result<(), String> {
    let others = shared.config.others();
    let lowest = others.first().is_none_or(|first| shared.config.member.name.as_str() < first.name.as_str());
    if let Some(identity) = shared.identity.get() {
        shared.start_raft(identity).await.map_err(|e| e.to_string())?;
        // The lowest may have stopped between giving out the ids and initialising.
        if !(lowest && shared.store.is_pristine()) {
            return Ok(());
        }
    }
    loop {
        if !lowest && shared.raft().is_some() {
            return Ok(());
        }
        let answers = ask_all(shared, &others).await;
        let waiting = match next_step(shared, &answers, lowest) {
            Step::Join => join(shared, &answers).await,
            Step::Form => form(shared, &answers).await,
            Step::Wait(why) => Err(why),
        };
        match waiting {
            Ok(()) => return Ok(()),
            Err(why) => {
                let changed = shared.progress.send_if_modified(|known| {
                    let now = Progress::Waiting(why.clone());
                    shared.raft().is_none() && std::mem::replace(known, now.clone()) != now
                });
                if changed {
                    tracing::info!(reason = %why, "waiting to form or join the cluster");
                }
            }
        }
        sleep(ROUND_EVERY).await;
    }
}

enum Step {
    Join,
    Form,
    Wait(String),
}

/// What the answers allow.
fn next_step(shared: &Shared, answers: &Answers, lowest: bool) -> Step {
    let config = &shared.config;
    let me = config.member.name.as_str();
    for (peer, hello) in answers.iter().filter_map(|(peer, answer)| Some((peer, answer.as_ref().ok()?))) {
        if hello.cluster != config.cluster {
            let what = format!("{} at {} belongs to cluster `{}`, not to `{}`", peer.name, peer.address, hello.cluster, config.cluster);
            return Step::Wait(format!("{what}; correct cluster.name or cluster.peers"));
        }
        if hello.name != peer.name {
            let what = format!("the node at {} calls itself `{}`, not `{}`", peer.address, hello.name, peer.name);
            let hint = if hello.name == me { "; two nodes with one name" } else { "" };
            return Step::Wait(format!("{what}{hint}: correct node.name or cluster.peers"));
        }
    }
    if shared.identity.get().is_none() && answers.iter().any(|(_, a)| a.as_ref().is_ok_and(|hello| hello.initialised)) {
        return Step::Join;
    }
    let missing: Vec<String> = answers
        .iter()
        .filter_map(|(peer, answer)| Some(format!("{} at {} ({})", peer.name, peer.address, answer.as_ref().err()?)))
        .collect();
    match (config.bootstrap, missing.is_empty()) {
        (Bootstrap::Existing, _) => Step::Wait(format!("waiting for a member of the existing cluster `{}`", config.cluster)),
        (Bootstrap::New, false) => Step::Wait(format!("waiting for {} to form cluster `{}`", missing.join(", "), config.cluster)),
        (Bootstrap::New, true) if lowest => Step::Form,
        (Bootstrap::New, true) => Step::Wait(format!("waiting for {} to form cluster `{}`", answers[0].0.name, config.cluster)),
    }
}

/// Who asks.
pub fn greeting(shared: &Shared) -> v1::HelloRequest {
    v1::HelloRequest {
        cluster: shared.config.cluster.clone(),
        name: shared.config.member.name.to_string(),
        node_id: shared.identity.get().map_or(0, |me| me.node.0),
        format: u32::from(FORMAT),
    }
}

async fn ask_all(shared: &Shared, others: &[Peer]) -> Answers {
    let ask = async |peer: &Peer| {
        let mut client = shared.links.get(&peer.name, &peer.address)?.general();
        match timeout(HELLO_TIMEOUT, client.hello(timed(greeting(shared), HELLO_TIMEOUT))).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(classify_status(&status)),
            Err(_) => Err(Failure::TimedOut),
        }
    };
    let answers = join_all(others.iter().map(ask)).await;
    others.iter().cloned().zip(answers).collect()
}

/// Be admitted by somebody who knows the cluster.
async fn join(shared: &Shared, answers: &Answers) -> Result<(), String> {
    let known = answers.iter().find(|(_, a)| a.as_ref().is_ok_and(|hello| hello.initialised));
    let (peer, _) = known.ok_or("nobody knows the cluster")?;
    let member = serde_json::to_vec(&shared.config.member).map_err(|e| e.to_string())?;
    let message =
        v1::JoinRequest { format: u32::from(FORMAT), cluster: shared.config.cluster.clone(), member: member.into(), forwarded: false };
    let mut client = shared.links.get(&peer.name, &peer.address).map_err(|e| e.to_string())?.general();
    let reply = timeout(JOIN_TIMEOUT, client.join(timed(message, JOIN_TIMEOUT))).await;
    let reply = reply.map_err(|_| format!("{} did not answer in time", peer.name))?;
    let reply = reply.map_err(|status| format!("{}: {}", peer.name, status.message()))?.into_inner();
    if reply.node_id == 0 {
        return Err(format!("the cluster does not admit this node: {}", reply.reason));
    }
    let identity = Identity { node: NodeId(reply.node_id), cluster: parse_cluster(&reply.cluster_id)? };
    tracing::info!(node = %identity.node, cluster = %identity.cluster, "joined the cluster under a fresh id");
    shared.assume(identity, None).await.map_err(|e| e.to_string())
}

/// Every configured peer is there and fresh, and this node has the lowest name.
async fn form(shared: &Shared, answers: &Answers) -> Result<(), String> {
    let cluster = shared.identity.get().map_or_else(|| ClusterId(rand::random()), |me| me.cluster);
    let mut members = vec![shared.config.member.clone()];
    for (peer, answer) in answers {
        let hello = answer.as_ref().map_err(ToString::to_string)?;
        let member: Member = serde_json::from_slice(&hello.member).map_err(|e| format!("{}: {e}", peer.name))?;
        members.push(member);
    }
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let members: Vec<(NodeId, Member)> = (1..).map(NodeId).zip(members).collect();
    let create = Command::Create {
        cluster,
        name: shared.config.cluster.clone(),
        members: members.clone(),
        settings: shared.config.settings.clone(),
    };
    let create = serde_json::to_vec(&create).map_err(|e| e.to_string())?;
    if create.len() > ENTRY_BYTES_MAX {
        let max = ENTRY_BYTES_MAX;
        return Err(format!(
            "the settings of the new cluster have {} bytes, more than {max}: shorten postgres.parameters or hba",
            create.len()
        ));
    }
    tracing::info!(cluster = %cluster, members = members.len(), "forming a new cluster");
    // The own id first: should this process stop now, it goes on with the same cluster id.
    shared.assume(Identity { node: NodeId(1), cluster }, Some(create.clone())).await.map_err(|e| e.to_string())?;
    for (node, member) in members.iter().skip(1) {
        give_id(shared, cluster, *node, member, &create).await?;
    }
    let raft = shared.raft().ok_or("consensus did not start")?;
    let nodes: BTreeMap<u64, PeerNode> = members.iter().map(|(id, m)| (id.0, node_of(m))).collect();
    match raft.initialize(nodes).await {
        // NotAllowed: a vote has already happened, so it is initialised.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

async fn give_id(shared: &Shared, cluster: ClusterId, node: NodeId, member: &Member, create: &[u8]) -> Result<(), String> {
    let message = v1::FormRequest {
        format: u32::from(FORMAT),
        cluster: shared.config.cluster.clone(),
        cluster_id: cluster.to_string(),
        node_id: node.0,
        create: create.to_vec().into(),
    };
    let name = &member.name;
    let configured = shared.config.others().into_iter().find(|p| p.name == name.as_str());
    let peer = configured.ok_or_else(|| format!("{name} is not configured"))?;
    let mut client = shared.links.get(&peer.name, &peer.address).map_err(|e| format!("{name}: {e}"))?.general();
    let reply = timeout(FORM_TIMEOUT, client.form(timed(message, FORM_TIMEOUT))).await.map_err(|_| format!("{name}: no answer"))?;
    let reply = reply.map_err(|status| format!("{name}: {}", status.message()))?.into_inner();
    if reply.accepted { Ok(()) } else { Err(format!("{name} refused its id: {}", reply.reason)) }
}

/// The other side of [`form`].
pub async fn accept(shared: &Shared, asked: v1::FormRequest) -> v1::FormReply {
    match try_accept(shared, asked).await {
        Ok(()) => v1::FormReply { accepted: true, reason: String::new() },
        Err(reason) => v1::FormReply { accepted: false, reason },
    }
}

async fn try_accept(shared: &Shared, asked: v1::FormRequest) -> Result<(), String> {
    if asked.cluster != shared.config.cluster {
        return Err(format!("it is configured for cluster `{}`", shared.config.cluster));
    }
    if shared.config.bootstrap == Bootstrap::Existing {
        return Err("it is configured to join an existing cluster".to_owned());
    }
    let identity = Identity { node: NodeId(asked.node_id), cluster: parse_cluster(&asked.cluster_id)? };
    match shared.identity.get() {
        Some(mine) if mine == identity => return Ok(()),
        // Whoever gave out the first id lost its disk before anything was initialised.
        Some(mine) if mine.node == identity.node && shared.store.is_pristine() => {}
        Some(mine) => return Err(format!("it is {} of cluster {} already", mine.node, mine.cluster)),
        None => {}
    }
    shared.assume(identity, Some(asked.create.to_vec())).await.map_err(|e| e.to_string())
}

/// Who I am, and what I know.
pub fn hello(shared: &Shared, asked: &v1::HelloRequest) -> v1::HelloReply {
    let identity = shared.identity.get();
    let state = shared.state.borrow().clone();
    // A state that has not been replayed yet knows nobody; that must not look like a removal.
    let knows_you = state.cluster.is_none() || state.members.contains_key(&NodeId(asked.node_id));
    v1::HelloReply {
        cluster: shared.config.cluster.clone(),
        name: shared.config.member.name.to_string(),
        cluster_id: identity.map_or_else(String::new, |me| me.cluster.to_string()),
        node_id: identity.map_or(0, |me| me.node.0),
        initialised: identity.is_some() && !shared.store.is_pristine(),
        knows_you,
        format: u32::from(FORMAT),
        member: serde_json::to_vec(&shared.config.member).unwrap_or_default().into(),
        members: state.members.keys().filter_map(|node| whereabouts(shared, *node)).collect(),
    }
}

fn whereabouts(shared: &Shared, node: NodeId) -> Option<v1::Whereabouts> {
    Some(v1::Whereabouts { node_id: node.0, address: shared.address_of(node)?.address })
}

/// What others know of members that this node does not reach: of two that move at once neither may know where the other is.
fn learn(shared: &Shared, hello: &v1::HelloReply) {
    for known in &hello.members {
        let node = NodeId(known.node_id);
        if shared.reach.borrow().get(&node).is_some_and(|reach| reach.state.is_err()) {
            shared.addresses.tell(node, &known.address);
        }
    }
}

/// Notice that the cluster has gone on without this node: it was removed, or its name was given to a successor. On the way, learn
/// where the others are.
async fn watch_membership(shared: &Shared) {
    let others = shared.config.others();
    let mut denied = 0;
    loop {
        sleep(MEMBER_CHECK_EVERY).await;
        let Some(me) = shared.identity.get() else { continue };
        let answers = ask_all(shared, &others).await;
        let ours = |hello: &&v1::HelloReply| hello.initialised && hello.cluster_id == me.cluster.to_string();
        let answers: Vec<&v1::HelloReply> = answers.iter().filter_map(|(_, a)| a.as_ref().ok()).filter(ours).collect();
        answers.iter().for_each(|hello| learn(shared, hello));
        let known: Vec<bool> = answers.iter().map(|h| h.knows_you).collect();
        denied = if known.is_empty() || known.contains(&true) { 0 } else { denied + 1 };
        if denied == REMOVED_AFTER {
            let what = format!("the cluster no longer knows {} as {}", shared.config.member.name, me.node);
            let dir = shared.config.dir.display();
            let why = format!("{what}; to join again under a fresh id, stop the node and move {dir} aside");
            tracing::error!(reason = %why, "this node was removed from the cluster");
            shared.health.send_replace(Health::Removed(why));
        }
    }
}

fn parse_cluster(text: &str) -> Result<ClusterId, String> {
    u128::from_str_radix(text, 16).map(ClusterId).map_err(|_| format!("`{text}` is not a cluster id"))
}

fn node_of(member: &Member) -> PeerNode {
    PeerNode { name: member.name.to_string(), address: member.addresses.grpc.clone() }
}
