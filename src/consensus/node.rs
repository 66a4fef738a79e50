//! One member's consensus, put together: the store, openraft, the peer service and the tasks around them.
//!
//! ```text
//!   start ──► store ──► listener + peer service ──► formation (id, cluster id) ──► openraft
//!                                                                                   │
//!             tasks: watcher (leader, health) · membership (leader only) · observe  ┘
//! ```
//! Everything shared lives in [`Shared`]; whoever needs an answer gets a [`Handle`]. Nothing here decides about Postgres.

use super::addresses::Addresses;
use super::config::{Config, Peer};
use super::distance::{self, RoundTrips};
use super::formation;
use super::handle::{Handle, Health, Leadership, Progress, RaftRole};
use super::links::{Failure, KEEPALIVE, Links};
use super::listener;
use super::network::Network;
use super::observe;
use super::raft::{FORMAT, Raft};
use super::service::PeerService;
use super::snapshot::{SnapshotDir, SnapshotError};
use super::state_machine::StateMachine;
use super::store::{LogStore, StoreError};
use super::tls::{self, TlsError};
use super::{membership, watcher};
use crate::cluster::ClusterState;
use crate::ha::{NodeObservation, Observations};
use crate::proto::v1;
use crate::types::{ClusterId, Millis, NodeId};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

/// How long an orderly end may take before tasks are dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for a successor to lead.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(700);
/// A connection that has not proven by then who it is gives its place back.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that one peer may have open at a time; a peer needs fewer than ten.
const STREAMS_PER_CONNECTION: u32 = 256;

pub(super) const META_NODE: &str = "node_id";
pub(super) const META_CLUSTER: &str = "cluster_id";
pub(super) const META_CREATE: &str = "create";

/// Why consensus cannot start on this node.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the snapshot in {dir} is damaged: {source}. Move the directory aside and start the node again: it rejoins the cluster empty, under a new id"
    )]
    Snapshot { dir: String, source: SnapshotError },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("certificates cannot be used: {0}")]
    Certificates(#[from] tonic::transport::Error),
    #[error("consensus timing cannot work: {0}; raise the election timeout or lower the heartbeat")]
    Timing(String),
    #[error(
        "the directory {dir} belongs to cluster `{found}`, but the configuration names `{expected}`; correct cluster.name or node.data_dir"
    )]
    OtherCluster { dir: String, found: String, expected: String },
    #[error("cannot use the gRPC listener: {0}")]
    Listener(io::Error),
}

/// Which node of which cluster this is; persistent, and never changed once it has voted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub node: NodeId,
    pub cluster: ClusterId,
}

/// The identity, once there is one.
#[derive(Clone, Default)]
pub struct SharedIdentity(Arc<RwLock<Option<Identity>>>);

impl SharedIdentity {
    pub fn get(&self) -> Option<Identity> {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, identity: Identity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(identity);
    }

    /// The beginning of each message to `to`.
    pub fn header(&self, to: u64) -> v1::PeerHeader {
        let (from, cluster_id) = self.get().map_or((0, String::new()), |me| (me.node.0, me.cluster.to_string()));
        v1::PeerHeader { format: u32::from(FORMAT), cluster_id, from, to }
    }
}

/// What this node last learned about reaching a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `Ok`: connected, and it answers as that node.
    pub state: Result<(), Failure>,
    /// Since when.
    pub since: Millis,
}

/// Everything that the parts of consensus share.
pub(super) struct Shared {
    pub config: Config,
    pub store: LogStore,
    pub identity: SharedIdentity,
    pub links: Links,
    pub addresses: Addresses,
    pub raft: OnceLock<Raft>,
    /// Consumed by the start of openraft.
    machine: Mutex<Option<StateMachine>>,
    pub state: watch::Receiver<Arc<ClusterState>>,
    pub leadership: watch::Sender<Leadership>,
    /// `leadership.mine` alone.
    pub mine: watch::Sender<bool>,
    pub health: watch::Sender<Health>,
    pub progress: watch::Sender<Progress>,
    pub observations: watch::Sender<Arc<Observations>>,
    pub reach: watch::Sender<Arc<BTreeMap<NodeId, Reach>>>,
    pub round_trips: watch::Sender<RoundTrips>,
    /// One admission at a time.
    pub admission: Semaphore,
    pub cancel: CancellationToken,
}

impl Shared {
    /// Make `identity` persistent and begin to take part.
    pub async fn assume(&self, identity: Identity, create: Option<Vec<u8>>) -> io::Result<()> {
        let mut pairs =
            vec![(META_NODE, identity.node.0.to_be_bytes().to_vec()), (META_CLUSTER, identity.cluster.0.to_be_bytes().to_vec())];
        pairs.extend(create.map(|json| (META_CREATE, json)));
        self.store.put_meta(pairs).await?;
        self.identity.set(identity);
        self.start_raft(identity).await
    }

    /// Begin to take part under an identity that is already persistent. Does nothing when openraft runs.
    pub async fn start_raft(&self, identity: Identity) -> io::Result<()> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(machine) = machine else { return Ok(()) };
        let config = self.config.timing.raft_config(&self.config.cluster).map_err(io::Error::other)?;
        let network = Network { links: self.links.clone(), addresses: self.addresses.clone(), identity: self.identity.clone() };
        let raft = Raft::new(identity.node.0, config, network, self.store.clone(), machine).await.map_err(io::Error::other)?;
        tracing::info!(node = %identity.node, cluster = %identity.cluster, "consensus started");
        // Set only here, and only by whoever took the machine.
        drop(self.raft.set(raft));
        self.progress.send_replace(Progress::Member { node: identity.node });
        Ok(())
    }

    /// How to reach a member.
    pub fn address_of(&self, node: NodeId) -> Option<Peer> {
        Some(self.addresses.dial(node, self.listed(node)?))
    }

    /// A member's place in the replicated state, or in the membership while the state is younger than that.
    pub fn listed(&self, node: NodeId) -> Option<Peer> {
        self.addresses.listed(node).or_else(|| Some(watcher::membership(self.raft()?).get_node(&node.0)?.clone().into()))
    }

    /// openraft, once this node has an identity.
    pub fn raft(&self) -> Option<&Raft> {
        self.raft.get()
    }
}

/// Which task ended, and why. Each of them should live as long as the node.
#[derive(Debug)]
pub struct TaskEnd {
    pub task: &'static str,
    pub why: String,
}

/// Running consensus. Dropping it ends everything at once; [`Node::shutdown`] does it in order.
pub struct Node {
    shared: Arc<Shared>,
    tasks: JoinSet<TaskEnd>,
}

/// Open the store, listen, and begin to form or join the cluster; does not wait for that. `observation` is what this node sees of
/// itself; it is streamed to all members. `routes` adds the services that share the listener, such as Admin.
pub async fn start(
    config: Config,
    listener: TcpListener,
    observation: watch::Receiver<NodeObservation>,
    routes: impl AsyncFnOnce(&Handle) -> Routes,
) -> Result<Node, StartError> {
    let shared = Arc::new(open(config, &listener).await?);
    let handle = Handle::new(shared.clone());
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION));
    if let Some(tls) = &shared.config.tls {
        server = server.tls_config(tls.server().timeout(HANDSHAKE_TIMEOUT))?;
    }
    let router = server.add_routes(routes(&handle).await).add_service(PeerService::server(shared.clone()));
    let incoming = listener::connections(listener, shared.config.clock);
    let stop = shared.cancel.clone().cancelled_owned();

    let mut tasks = JoinSet::new();
    // Not dropped on cancellation like the others: its connections are tasks of their own, and only an orderly end closes them.
    tasks.spawn(async move {
        let served = router.serve_with_incoming_shutdown(incoming, stop).await;
        TaskEnd { task: "grpc listener", why: served.map_or_else(|e| e.to_string(), |()| "closed".to_owned()) }
    });
    own(&mut tasks, "formation", &shared, formation::run(shared.clone()));
    own(&mut tasks, "watcher", &shared, watcher::run(shared.clone()));
    own(&mut tasks, "membership", &shared, membership::run(shared.clone()));
    own(&mut tasks, "observations", &shared, observe::run(shared.clone(), observation));
    own(&mut tasks, "distances", &shared, distance::run(shared.clone()));
    Ok(Node { shared, tasks })
}

fn own(tasks: &mut JoinSet<TaskEnd>, task: &'static str, shared: &Shared, work: impl Future<Output = String> + Send + 'static) {
    let cancel = shared.cancel.clone();
    tasks.spawn(async move {
        let why = cancel.run_until_cancelled(work).await.unwrap_or_else(|| "cancelled".to_owned());
        TaskEnd { task, why }
    });
}

async fn open(config: Config, listener: &TcpListener) -> Result<Shared, StartError> {
    config.timing.raft_config(&config.cluster).map_err(|e| StartError::Timing(e.to_string()))?;
    let listen = listener.local_addr().map_err(StartError::Listener)?.to_string();
    let opening = tokio::task::spawn_blocking(move || -> Result<_, StartError> {
        let addresses = config.peers.iter().map(|p| p.address.as_str()).chain([listen.as_str(), config.member.addresses.grpc.as_str()]);
        tls::require_tls(config.tls.as_ref(), addresses)?;
        let (store, cut) = LogStore::open(&config.dir, config.clock)?;
        if let Some(cut) = cut {
            tracing::warn!(dir = %config.dir.display(), what = %cut, "the end of the consensus log was cut off");
        }
        let snapshots = SnapshotDir::new(&config.dir);
        let dir = config.dir.display().to_string();
        let loaded = snapshots.load().map_err(|source| StartError::Snapshot { dir: dir.clone(), source })?;
        check_snapshot(&config, &store, loaded.as_ref().map(|(decoded, _)| &decoded.state))?;
        Ok((config, store, snapshots, loaded))
    });
    let (config, store, snapshots, loaded) = opening.await.map_err(|e| StartError::Listener(io::Error::other(e)))??;
    let (published, state) = watch::channel(Arc::new(ClusterState::default()));
    let machine = StateMachine::new(snapshots, loaded, published, config.on_apply.clone(), config.trace.clone());
    let identity = SharedIdentity::default();
    if let Some(found) = stored_identity(&store) {
        identity.set(found);
    }
    Ok(Shared {
        links: Links::new(config.tls.clone()),
        addresses: Addresses::new(&config.peers, state.clone()),
        config,
        store,
        identity,
        raft: OnceLock::new(),
        machine: Mutex::new(Some(machine)),
        state,
        leadership: watch::Sender::new(Leadership::default()),
        mine: watch::Sender::new(false),
        health: watch::Sender::new(Health::Ok),
        progress: watch::Sender::new(Progress::Starting),
        observations: watch::Sender::default(),
        reach: watch::Sender::default(),
        round_trips: watch::Sender::default(),
        admission: Semaphore::new(1),
        cancel: CancellationToken::new(),
    })
}

/// A purged log without the snapshot that covers it is a lost state.
fn check_snapshot(config: &Config, store: &LogStore, state: Option<&ClusterState>) -> Result<(), StartError> {
    let dir = || config.dir.display().to_string();
    match state {
        None if store.purged().is_some() => {
            let what = "the snapshot that its beginning was purged for is missing".to_owned();
            Err(StoreError::Corrupt { path: config.dir.clone(), what }.into())
        }
        Some(state) if !state.name.is_empty() && state.name != config.cluster => {
            Err(StartError::OtherCluster { dir: dir(), found: state.name.clone(), expected: config.cluster.clone() })
        }
        _ => Ok(()),
    }
}

fn stored_identity(store: &LogStore) -> Option<Identity> {
    let node = store.meta(META_NODE)?.try_into().map(u64::from_be_bytes).ok()?;
    let cluster = store.meta(META_CLUSTER)?.try_into().map(u128::from_be_bytes).ok()?;
    Some(Identity { node: NodeId(node), cluster: ClusterId(cluster) })
}

impl Node {
    /// For the rest of the program.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone())
    }

    /// Until a task ends that should not. Cancel-safe.
    pub async fn ended(&mut self) -> TaskEnd {
        match self.tasks.join_next().await {
            Some(Ok(end)) => end,
            Some(Err(e)) => TaskEnd { task: "a consensus task", why: e.to_string() },
            None => TaskEnd { task: "consensus", why: "shut down".to_owned() },
        }
    }

    /// Hand over leadership, stop taking part and close the listener. What was acknowledged is on disk already.
    pub async fn shutdown(mut self) {
        let orderly = async {
            self.hand_over().await;
            // Tasks first: the end of openraft is then no failure that anybody reports.
            self.shared.cancel.cancel();
            while self.tasks.join_next().await.is_some() {}
            if let Some(raft) = self.shared.raft()
                && let Err(e) = raft.shutdown().await
            {
                tracing::warn!(error = %e, "consensus did not stop in order");
            }
            self.shared.store.close().await;
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, orderly).await.is_err() {
            tracing::warn!("consensus did not stop in time; its tasks are dropped");
        }
    }

    /// A leader that goes without a word costs the others an election timeout.
    async fn hand_over(&self) {
        let handle = self.handle();
        let (Some(status), Some(me)) = (handle.status(), handle.node_id()) else { return };
        let best = status.voters.iter().filter(|n| **n != me).max_by_key(|n| status.matched.get(n).copied().flatten());
        let (true, Some(to)) = (status.role == RaftRole::Leader, best) else { return };
        if handle.transfer_leader(*to).await.is_ok() {
            let mut leadership = handle.leadership();
            // Without an answer the others elect after their timeout.
            drop(tokio::time::timeout(HAND_OVER_TIMEOUT, leadership.wait_for(|l| l.leader.is_some_and(|n| n != me))).await);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}
