//! openraft's calls to other members.
//!
//! A pre-vote to a member that cannot be reached is an error, never a grant; every call carries the cluster's id and both node
//! ids, so that a process which took over an address does not answer for the one that had it before. The address is looked up for
//! each call: a member that moves is heard as soon as somebody knows where it is.

use super::addresses::Addresses;
use super::codec::{self, CodecError};
use super::config::Peer;
use super::links::{self, Failure, Links};
use super::node::SharedIdentity;
use super::raft::{Entry, PeerNode, Snapshot, TypeConfig, Vote};
use crate::proto::v1;
use crate::types::NodeId;
use bytes::Bytes;
use futures::stream;
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use std::future::Future;
use std::time::Duration;
use tonic::{Request, Response, Status};

type RpcError = RPCError<TypeConfig>;

/// Snapshots travel in pieces of this size.
const CHUNK: usize = 1 << 20;

/// Makes a client for each member.
pub struct Network {
    pub links: Links,
    pub addresses: Addresses,
    pub identity: SharedIdentity,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> Client {
        let (links, addresses, identity) = (self.links.clone(), self.addresses.clone(), self.identity.clone());
        Client { target, node: node.clone(), links, addresses, identity }
    }
}

/// One member, as openraft calls it.
pub struct Client {
    target: u64,
    /// As the membership had it when this was made.
    node: PeerNode,
    links: Links,
    addresses: Addresses,
    identity: SharedIdentity,
}

impl Client {
    fn link(&self) -> Result<links::Link, RpcError> {
        let node = NodeId(self.target);
        let listed = self.addresses.listed(node).unwrap_or_else(|| Peer::from(self.node.clone()));
        let peer = self.addresses.dial(node, listed);
        self.links.get(&peer.name, &peer.address).map_err(unreachable)
    }

    fn header(&self) -> Option<v1::PeerHeader> {
        Some(self.identity.header(self.target))
    }

    async fn ask_vote(&self, rpc: VoteRequest<TypeConfig>, option: RPCOption, pre: bool) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let message = v1::RaftVoteRequest {
            header: self.header(),
            vote: Some(codec::vote(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(codec::log_id),
            leadership_transfer: rpc.leadership_transfer,
        };
        let (mut client, message) = (self.link()?.raft(), timed(message, option.hard_ttl()));
        let reply = if pre { client.pre_vote(message).await } else { client.vote(message).await };
        let reply = answered(reply)?;
        let vote = codec::vote_from(reply.vote).map_err(garbled)?;
        Ok(VoteResponse { vote, vote_granted: reply.granted, last_log_id: reply.last_log_id.map(codec::log_id_from) })
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let message = v1::RaftAppendRequest {
            header: self.header(),
            vote: Some(codec::vote(&rpc.vote)),
            prev_log_id: rpc.prev_log_id.as_ref().map(codec::log_id),
            entries: rpc.entries.iter().map(|e: &Entry| codec::entry(e)).collect(),
            leader_commit: rpc.leader_commit.as_ref().map(codec::log_id),
        };
        let reply = answered(self.link()?.raft().append(timed(message, option.hard_ttl())).await)?;
        append_reply(reply).map_err(garbled)
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(rpc, option, false).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(rpc, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let start = v1::RaftSnapshotHeader {
            header: self.header(),
            vote: Some(codec::vote(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(codec::log_id),
            membership: Some(codec::stored_membership(&snapshot.meta.last_membership)),
            length: snapshot.snapshot.len() as u64,
            crc32c: crc32c::crc32c(&snapshot.snapshot),
        };
        let data = snapshot.snapshot;
        let pieces = (0..data.len()).step_by(CHUNK).map(move |at| data.slice(at..data.len().min(at + CHUNK)));
        let pieces = pieces.map(v1::raft_snapshot_chunk::Part::Data);
        let parts = std::iter::once(v1::raft_snapshot_chunk::Part::Start(start)).chain(pieces);
        let chunks = stream::iter(parts.map(|part| v1::RaftSnapshotChunk { part: Some(part) }));
        let mut client = self.link().map_err(StreamingError::from)?.general();
        let reply = tokio::select! {
            reply = client.install_snapshot(timed(chunks, option.hard_ttl())) => answered(reply).map_err(StreamingError::from)?,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let vote = codec::vote_from(reply.vote).map_err(|e| StreamingError::from(garbled(e)))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let message = v1::RaftTransferRequest {
            header: self.header(),
            from_leader: Some(codec::vote(req.from_leader())),
            last_log_id: req.last_log_id().map(codec::log_id),
            to_node: *req.to_node_id(),
        };
        let reply = answered(self.link()?.raft().transfer_leader(timed(message, option.hard_ttl())).await)?;
        if reply.accepted {
            return Ok(Ok(()));
        }
        if reply.log_not_flushed {
            let actual = reply.actual_log_id.map(codec::log_id_from);
            return Ok(Err(TransferLeaderError::LogNotFlushed { expected: req.last_log_id().copied(), actual }));
        }
        let actual = codec::vote_from(reply.actual_vote).map_err(garbled)?;
        Ok(Err(TransferLeaderError::VoteChanged { expected: *req.from_leader(), actual }))
    }
}

fn append_reply(reply: v1::RaftAppendReply) -> Result<AppendEntriesResponse<TypeConfig>, CodecError> {
    use v1::raft_append_reply::Result as Kind;
    match reply.result() {
        Kind::Success => Ok(AppendEntriesResponse::Success),
        Kind::Partial => Ok(AppendEntriesResponse::PartialSuccess(reply.matching.map(codec::log_id_from))),
        Kind::Conflict => Ok(AppendEntriesResponse::Conflict),
        Kind::HigherVote => Ok(AppendEntriesResponse::HigherVote(codec::vote_from(reply.vote)?)),
        Kind::Unspecified => Err(CodecError::Missing("result")),
    }
}

/// With its deadline, which the other side sees too.
pub fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn answered<T>(reply: Result<Response<T>, Status>) -> Result<T, RpcError> {
    match reply {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) => match links::classify_status(&status) {
            // openraft backs off from what is unreachable, and tries again at once otherwise.
            failure @ (Failure::Refused | Failure::Rejected(_)) => Err(unreachable(failure)),
            failure => Err(RPCError::Network(NetworkError::from_string(failure))),
        },
    }
}

fn unreachable(failure: Failure) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(failure))
}

fn garbled(e: CodecError) -> RpcError {
    RPCError::Network(NetworkError::from_string(e))
}
