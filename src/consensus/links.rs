//! Connections to other members. Each has two: one for votes, heartbeats and appends, which must never queue behind anything, and
//! one for the rest. Channels connect by themselves and reconnect; addresses come from whoever asks (see `addresses`).

use super::config::Peer;
use super::tls::Tls;
use crate::proto::v1::peer_client::PeerClient;
use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Longer than any round trip, short enough to notice a lost host.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Ping an idle connection this often, and give it up when no answer comes within the same time.
pub const KEEPALIVE: Duration = Duration::from_secs(2);
/// Both sides refuse longer messages.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Addresses remembered; far more than a cluster has members.
const LINKS_MAX: usize = 64;

/// How the last attempt to reach a peer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there: the process is gone, the host lives.
    Refused,
    /// No answer: host down, network cut, or process frozen.
    TimedOut,
    /// It answered that it will not have us.
    Rejected(String),
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused => f.write_str("connection refused"),
            Failure::TimedOut => f.write_str("no answer"),
            Failure::Rejected(why) | Failure::Other(why) => f.write_str(why),
        }
    }
}

/// The channels to one member.
#[derive(Clone)]
pub struct Link {
    raft: Channel,
    general: Channel,
}

impl Link {
    pub fn raft(&self) -> PeerClient<Channel> {
        limited(self.raft.clone())
    }

    pub fn general(&self) -> PeerClient<Channel> {
        limited(self.general.clone())
    }
}

/// All channels, by name and address. They are driven by the runtime in which this was made, whoever asks for one first: the lease's
/// thread has a runtime of its own, which drives nothing.
#[derive(Clone)]
pub struct Links {
    tls: Option<Tls>,
    runtime: tokio::runtime::Handle,
    table: Arc<Mutex<BTreeMap<Peer, Link>>>,
}

impl Links {
    /// Must be called within the runtime that is to drive the channels.
    pub fn new(tls: Option<Tls>) -> Links {
        Links { tls, runtime: tokio::runtime::Handle::current(), table: Arc::default() }
    }

    /// The channels to `name` at `address`.
    pub fn get(&self, name: &str, address: &str) -> Result<Link, Failure> {
        let peer = Peer { name: name.to_owned(), address: address.to_owned() };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = table.get(&peer) {
            return Ok(link.clone());
        }
        let _driver = self.runtime.enter();
        let link = Link { raft: self.endpoint(&peer)?.connect_lazy(), general: self.endpoint(&peer)?.connect_lazy() };
        if table.len() >= LINKS_MAX {
            table.clear();
        }
        table.insert(peer, link.clone());
        Ok(link)
    }

    /// One connection, made now, so that the way it fails can be told.
    pub async fn connect(&self, peer: &Peer) -> Result<PeerClient<Channel>, Failure> {
        let channel = self.endpoint(peer)?.connect().await.map_err(|e| classify(&e))?;
        Ok(limited(channel))
    }

    fn endpoint(&self, peer: &Peer) -> Result<Endpoint, Failure> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let bad = |e: tonic::transport::Error| Failure::Other(format!("address {}: {e}", peer.address));
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", peer.address)).map_err(bad)?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        match &self.tls {
            Some(tls) => endpoint.tls_config(tls.client(&peer.name)).map_err(bad),
            None => Ok(endpoint),
        }
    }
}

fn limited(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Find what lies at the root of an error.
pub fn classify(error: &(dyn Error + 'static)) -> Failure {
    let mut at = Some(error);
    while let Some(e) = at {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return Failure::Refused,
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => return Failure::TimedOut,
                _ => {}
            }
        }
        at = e.source();
    }
    let text = chain(error);
    let tells = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if tells(&["deadline has elapsed", "timed out"]) {
        return Failure::TimedOut;
    }
    // HTTP/2's own story of it is three errors deep, and tells no more.
    let broke = tells(&["h2 protocol error", "connection reset", "broken pipe", "stream closed"]);
    Failure::Other(if broke { "the connection broke".to_owned() } else { text })
}

/// The same for an RPC's status.
pub fn classify_status(status: &Status) -> Failure {
    match status.code() {
        Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated => Failure::Rejected(status.message().to_owned()),
        Code::DeadlineExceeded | Code::Cancelled => Failure::TimedOut,
        _ => classify(status),
    }
}

/// Did this RPC certainly never reach the other side?
pub fn never_sent(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition || classify_status(status) == Failure::Refused || {
        let text = chain(status);
        text.contains("tcp connect error") || text.contains("dns error")
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(e) = at {
        text = format!("{text}: {e}");
        at = e.source();
    }
    text
}
