//! What other members ask of this node. Every call checks who asks (certificate), which cluster (header), and that we are the node
//! that is meant: an address may have changed hands.

use super::codec::{self, CodecError};
use super::formation;
use super::handle::{propose_for_peer, read_index_here};
use super::links::MESSAGE_BYTES_MAX;
use super::node::Shared;
use super::raft::{EntryData, FORMAT, Raft, Snapshot, SnapshotMeta, TypeConfig};
use super::snapshot::SNAPSHOT_BYTES_MAX;
use super::tls::{self, Caller, Role};
use super::{admission, observe};
use crate::ha::NodeObservation;
use crate::proto::v1;
use crate::proto::v1::peer_server::{Peer, PeerServer};
use crate::proto::v1::raft_append_reply::Result as AppendResult;
use crate::types::NodeId;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Longest that a forwarded proposal may take, whatever its sender says.
const PROPOSE_MAX: Duration = Duration::from_secs(30);
const READ_INDEX_MAX: Duration = Duration::from_secs(5);
/// Longest silence in a snapshot's stream, or in a stream of observations.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

/// The Peer service of one node.
pub struct PeerService {
    shared: Arc<Shared>,
}

impl PeerService {
    pub fn server(shared: Arc<Shared>) -> PeerServer<PeerService> {
        PeerServer::new(PeerService { shared }).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Is this a call from a member of our cluster, meant for us? The sender's id.
    fn check(&self, header: Option<&v1::PeerHeader>) -> Result<NodeId, Status> {
        let header = header.ok_or_else(|| Status::invalid_argument("the message has no header"))?;
        check_format(header.format)?;
        let Some(me) = self.shared.identity.get() else {
            return Err(Status::failed_precondition("this node has not yet joined a cluster"));
        };
        if header.cluster_id != me.cluster.to_string() {
            tracing::warn!(theirs = %header.cluster_id, mine = %me.cluster, "refused a message of another cluster");
            let why = format!("{} belongs to cluster {}, not to {}", self.shared.config.member.name, me.cluster, header.cluster_id);
            return Err(Status::failed_precondition(why));
        }
        if header.to != me.node.0 {
            let why = format!("the node at this address is {}, not {}", me.node, NodeId(header.to));
            return Err(Status::failed_precondition(why));
        }
        Ok(NodeId(header.from))
    }

    fn raft(&self, header: Option<&v1::PeerHeader>) -> Result<&Raft, Status> {
        self.check(header)?;
        self.shared.raft().ok_or_else(|| Status::failed_precondition("this node is still starting"))
    }
}

/// Only peers may speak here.
fn peer<T>(request: Request<T>) -> Result<(T, Caller), Status> {
    let caller = tls::caller(&request).map_err(|e| Status::permission_denied(e.to_string()))?;
    if caller.role < Role::Peer {
        let name = caller.name.unwrap_or_default();
        return Err(Status::permission_denied(format!(
            "the certificate of {name} says {}, and only peers may ask this",
            caller.role.word()
        )));
    }
    Ok((request.into_inner(), caller))
}

fn check_format(format: u32) -> Result<(), Status> {
    if format <= u32::from(FORMAT) {
        return Ok(());
    }
    Err(Status::failed_precondition(format!("messages of format {format}; this node reads up to {FORMAT}: upgrade it")))
}

fn garbled(e: CodecError) -> Status {
    Status::invalid_argument(e.to_string())
}

fn stopped(e: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("consensus on this node: {e}"))
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloReply>, Status> {
        let (asked, _) = peer(request)?;
        Ok(Response::new(formation::hello(&self.shared, &asked)))
    }

    async fn form(&self, request: Request<v1::FormRequest>) -> Result<Response<v1::FormReply>, Status> {
        let (asked, _) = peer(request)?;
        check_format(asked.format)?;
        Ok(Response::new(formation::accept(&self.shared, asked).await))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let (asked, caller) = peer(request)?;
        check_format(asked.format)?;
        Ok(Response::new(admission::join(&self.shared, asked, &caller).await))
    }

    async fn vote(&self, request: Request<v1::RaftVoteRequest>) -> Result<Response<v1::RaftVoteReply>, Status> {
        let (asked, _) = peer(request)?;
        let raft = self.raft(asked.header.as_ref())?;
        let reply = raft.vote(vote_request(asked).map_err(garbled)?).await.map_err(stopped)?;
        Ok(Response::new(vote_reply(&reply)))
    }

    async fn pre_vote(&self, request: Request<v1::RaftVoteRequest>) -> Result<Response<v1::RaftVoteReply>, Status> {
        let (asked, _) = peer(request)?;
        let raft = self.raft(asked.header.as_ref())?;
        let reply = raft.pre_vote(vote_request(asked).map_err(garbled)?).await.map_err(stopped)?;
        Ok(Response::new(vote_reply(&reply)))
    }

    async fn append(&self, request: Request<v1::RaftAppendRequest>) -> Result<Response<v1::RaftAppendReply>, Status> {
        let (asked, _) = peer(request)?;
        let raft = self.raft(asked.header.as_ref())?;
        let entries = asked.entries.into_iter().map(codec::entry_from).collect::<Result<Vec<_>, _>>().map_err(garbled)?;
        let rpc = AppendEntriesRequest {
            vote: codec::vote_from(asked.vote).map_err(garbled)?,
            prev_log_id: asked.prev_log_id.map(codec::log_id_from),
            entries,
            leader_commit: asked.leader_commit.map(codec::log_id_from),
        };
        let reply = raft.append_entries(rpc).await.map_err(stopped)?;
        Ok(Response::new(append_reply(&reply)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotChunk>>,
    ) -> Result<Response<v1::RaftSnapshotReply>, Status> {
        let (mut chunks, _) = peer(request)?;
        let start = match next(&mut chunks).await?.and_then(|chunk| chunk.part) {
            Some(v1::raft_snapshot_chunk::Part::Start(start)) => start,
            _ => return Err(Status::invalid_argument("a snapshot begins with its header")),
        };
        let raft = self.raft(start.header.as_ref())?;
        let data = receive(&mut chunks, &start).await?;
        let meta = SnapshotMeta {
            last_log_id: start.last_log_id.map(codec::log_id_from),
            last_membership: codec::stored_membership_from(start.membership).map_err(garbled)?,
        };
        let vote = codec::vote_from(start.vote).map_err(garbled)?;
        let reply = raft.install_full_snapshot(vote, Snapshot { meta, snapshot: data.into() }).await.map_err(stopped)?;
        Ok(Response::new(v1::RaftSnapshotReply { vote: Some(codec::vote(&reply.vote)) }))
    }

    async fn transfer_leader(&self, request: Request<v1::RaftTransferRequest>) -> Result<Response<v1::RaftTransferReply>, Status> {
        let (asked, _) = peer(request)?;
        let raft = self.raft(asked.header.as_ref())?;
        let from = codec::vote_from(asked.from_leader).map_err(garbled)?;
        let rpc = TransferLeaderRequest::new(from, asked.to_node, asked.last_log_id.map(codec::log_id_from));
        let reply = raft.handle_transfer_leader(rpc).await.map_err(stopped)?;
        Ok(Response::new(match reply {
            Ok(()) => v1::RaftTransferReply { accepted: true, ..Default::default() },
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                v1::RaftTransferReply { actual_vote: Some(codec::vote(&actual)), ..Default::default() }
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                let actual_log_id = actual.as_ref().map(codec::log_id);
                v1::RaftTransferReply { log_not_flushed: true, actual_log_id, ..Default::default() }
            }
        }))
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Result<Response<v1::ProposeReply>, Status> {
        let (asked, _) = peer(request)?;
        self.check(asked.header.as_ref())?;
        let proposal = asked.proposal.ok_or_else(|| Status::invalid_argument("no proposal"))?;
        let data = EntryData { format: proposal.format, json: proposal.json };
        let within = Duration::from_millis(asked.deadline_ms).min(PROPOSE_MAX);
        Ok(Response::new(propose_for_peer(&self.shared, &data, within).await))
    }

    async fn read_index(&self, request: Request<v1::ReadIndexRequest>) -> Result<Response<v1::ReadIndexReply>, Status> {
        let (asked, _) = peer(request)?;
        self.check(asked.header.as_ref())?;
        let leader = self.shared.leadership.borrow().leader.map_or(0, |n| n.0);
        Ok(Response::new(match read_index_here(&self.shared, READ_INDEX_MAX).await {
            Ok(index) => v1::ReadIndexReply { ready: true, index, leader, ..Default::default() },
            Err(reason) => v1::ReadIndexReply { leader, reason, ..Default::default() },
        }))
    }

    type ObserveStream = Pin<Box<dyn futures::Stream<Item = Result<v1::ObserveReply, Status>> + Send>>;

    async fn observe(&self, request: Request<Streaming<v1::ObserveMessage>>) -> Result<Response<Self::ObserveStream>, Status> {
        let (mut messages, _) = peer(request)?;
        let first = next(&mut messages).await?.ok_or_else(|| Status::invalid_argument("no observation"))?;
        let from = self.check(first.header.as_ref())?;
        accept_observation(&self.shared, from, &first)?;
        // The answer carries nothing; its end tells the other side that we are gone.
        let (tx, rx) = tokio::sync::mpsc::channel(1);
        let shared = self.shared.clone();
        let read = async move {
            // A node that stops lets go of its connections.
            while let Some(Ok(Some(message))) = shared.cancel.run_until_cancelled(next(&mut messages)).await {
                if let Err(status) = accept_observation(&shared, from, &message) {
                    drop(tx.send(Err(status)).await);
                    return;
                }
            }
        };
        // Driven by the stream itself, so that it ends with the connection and needs no task.
        let replies = ReceiverStream::new(rx);
        let driven = futures::stream::select(replies, futures::StreamExt::filter_map(futures::stream::once(read), |()| async { None }));
        Ok(Response::new(Box::pin(driven)))
    }
}

fn accept_observation(shared: &Shared, from: NodeId, message: &v1::ObserveMessage) -> Result<(), Status> {
    let observation: NodeObservation =
        serde_json::from_slice(&message.json).map_err(|e| Status::invalid_argument(format!("unreadable observation: {e}")))?;
    observe::record(shared, from, observation);
    shared.addresses.tell(from, &message.address);
    Ok(())
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let silent = |_| Status::deadline_exceeded("the stream was silent for too long");
    tokio::time::timeout(CHUNK_TIMEOUT, stream.message()).await.map_err(silent)?
}

async fn receive(chunks: &mut Streaming<v1::RaftSnapshotChunk>, start: &v1::RaftSnapshotHeader) -> Result<Vec<u8>, Status> {
    let length = usize::try_from(start.length).ok().filter(|n| *n <= SNAPSHOT_BYTES_MAX);
    let length = length.ok_or_else(|| Status::invalid_argument(format!("a snapshot of {} bytes", start.length)))?;
    let mut data = Vec::new();
    while let Some(chunk) = next(chunks).await? {
        if let Some(v1::raft_snapshot_chunk::Part::Data(piece)) = chunk.part {
            if data.len() + piece.len() > length {
                return Err(Status::invalid_argument("the snapshot is longer than its header says"));
            }
            data.extend_from_slice(&piece);
        }
    }
    if data.len() == length && crc32c::crc32c(&data) == start.crc32c {
        return Ok(data);
    }
    Err(Status::data_loss("the snapshot was damaged on its way"))
}

fn vote_request(asked: v1::RaftVoteRequest) -> Result<VoteRequest<TypeConfig>, CodecError> {
    let mut rpc = VoteRequest::new(codec::vote_from(asked.vote)?, asked.last_log_id.map(codec::log_id_from));
    rpc.leadership_transfer = asked.leadership_transfer;
    Ok(rpc)
}

fn vote_reply(reply: &VoteResponse<TypeConfig>) -> v1::RaftVoteReply {
    v1::RaftVoteReply {
        vote: Some(codec::vote(&reply.vote)),
        granted: reply.vote_granted,
        last_log_id: reply.last_log_id.as_ref().map(codec::log_id),
    }
}

fn append_reply(reply: &AppendEntriesResponse<TypeConfig>) -> v1::RaftAppendReply {
    let (result, matching, vote) = match reply {
        AppendEntriesResponse::Success => (AppendResult::Success, None, None),
        AppendEntriesResponse::PartialSuccess(at) => (AppendResult::Partial, at.as_ref().map(codec::log_id), None),
        AppendEntriesResponse::Conflict => (AppendResult::Conflict, None, None),
        AppendEntriesResponse::HigherVote(vote) => (AppendResult::HigherVote, None, Some(codec::vote(vote))),
    };
    v1::RaftAppendReply { result: result.into(), matching, vote }
}
