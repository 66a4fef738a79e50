//! The leader admits a node that asks to join: a fresh id, and the place of a dead member of its name.
//!
//! A living member of that name is never replaced; whoever asks is told so. Deliberately absent: the change of the consensus
//! membership, which follows the replicated state by itself (`membership`).

use super::handle::propose_for_peer;
use super::links::Failure;
use super::network::timed;
use super::node::Shared;
use super::raft::EntryData;
use super::tls::Caller;
use crate::cluster::{Command, Member, Outcome, Proposal};
use crate::proto::v1;
use crate::types::NodeId;
use std::time::Duration;

const ADMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// A member that merely does not answer may be cut off; only after this long may another node take its name.
const SILENT_IS_DEAD_AFTER: Duration = Duration::from_secs(10);

/// Answer a node that asks to join.
pub async fn join(shared: &Shared, asked: v1::JoinRequest, caller: &Caller) -> v1::JoinReply {
    let refuse = |reason: String, retry| v1::JoinReply { reason, retry, ..Default::default() };
    let leadership = *shared.leadership.borrow();
    match leadership.leader {
        _ if leadership.mine => {}
        Some(leader) if !asked.forwarded && shared.identity.get().is_some_and(|me| me.node != leader) => {
            if let Err(why) = check_name(&asked, caller) {
                return refuse(why, false);
            }
            return forward(shared, leader, asked).await.unwrap_or_else(|why| refuse(why, true));
        }
        _ => return refuse("the cluster has no leader at the moment".to_owned(), true),
    }
    if !asked.forwarded
        && let Err(why) = check_name(&asked, caller)
    {
        return refuse(why, false);
    }
    let Ok(_one_at_a_time) = shared.admission.try_acquire() else {
        return refuse("another node is being admitted".to_owned(), true);
    };
    admit(shared, &asked).await.unwrap_or_else(|why| refuse(why, true))
}

/// A certificate for `dc2` admits only `dc2`.
fn check_name(asked: &v1::JoinRequest, caller: &Caller) -> Result<(), String> {
    let member: Member = serde_json::from_slice(&asked.member).map_err(|e| e.to_string())?;
    match &caller.name {
        Some(name) if name != member.name.as_str() => Err(format!("its certificate is that of {name}, not of {}", member.name)),
        _ => Ok(()),
    }
}

async fn forward(shared: &Shared, leader: NodeId, mut asked: v1::JoinRequest) -> Result<v1::JoinReply, String> {
    asked.forwarded = true;
    let peer = shared.address_of(leader).ok_or("the leader's address is not known")?;
    let mut client = shared.links.get(&peer.name, &peer.address).map_err(|e| e.to_string())?.general();
    let reply = tokio::time::timeout(ADMIT_TIMEOUT, client.join(timed(asked, ADMIT_TIMEOUT))).await;
    let reply = reply.map_err(|_| "the leader did not answer".to_owned())?;
    reply.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}

async fn admit(shared: &Shared, asked: &v1::JoinRequest) -> Result<v1::JoinReply, String> {
    if asked.cluster != shared.config.cluster {
        return Err(format!("this is cluster `{}`, not `{}`", shared.config.cluster, asked.cluster));
    }
    let me = shared.identity.get().ok_or("this node has not yet joined a cluster")?;
    if shared.state.borrow().cluster.is_none() {
        return Err("the cluster is just being formed".to_owned());
    }
    let member: Member = serde_json::from_slice(&asked.member).map_err(|e| e.to_string())?;
    let name = member.name.clone();
    let replaces = shared.state.borrow().find(name.as_str()).map(|(node, _)| node);
    if let Some(old) = replaces {
        check_dead(shared, old, name.as_str())?;
    }
    let proposal = Proposal { expect: None, request: None, command: Command::AdmitMember { member, replaces } };
    let data = EntryData::encode(&proposal).map_err(|e| e.to_string())?;
    let reply = propose_for_peer(shared, &data, ADMIT_TIMEOUT).await;
    if reply.result() != v1::propose_reply::Result::Applied {
        return Err(reply.reason);
    }
    let outcome: Outcome = serde_json::from_slice(&reply.outcome).map_err(|e| e.to_string())?;
    outcome.map_err(|rejection| rejection.to_string())?;
    let (node, _) = shared.state.borrow().find(name.as_str()).map(|(n, m)| (n, m.clone())).ok_or("it left again")?;
    tracing::info!(name = %name, node = %node, replaces = replaces.map(|n| n.0), "admitted a member");
    Ok(v1::JoinReply { node_id: node.0, cluster_id: me.cluster.to_string(), ..Default::default() })
}

/// Is the member that has this name now surely not running as that member?
fn check_dead(shared: &Shared, old: NodeId, name: &str) -> Result<(), String> {
    let alive = || Err(format!("a living member ({old}) is called `{name}`; choose another name, or stop that node first"));
    if shared.identity.get().is_some_and(|me| me.node == old) {
        return alive();
    }
    let reach = shared.reach.borrow().get(&old).cloned();
    let Some(reach) = reach else { return Err(format!("it is not yet known whether {old}, called `{name}`, lives")) };
    let silent_for = shared.config.clock.now().since(reach.since);
    match reach.state {
        Ok(()) => alive(),
        // Nobody listens there, or somebody who is not that member.
        Err(Failure::Refused | Failure::Rejected(_)) => Ok(()),
        Err(_) if silent_for >= SILENT_IS_DEAD_AFTER => Ok(()),
        Err(why) => Err(format!("{old}, called `{name}`, may be alive ({why} for {} s)", silent_for.as_secs())),
    }
}
