//! Threads and sockets: binds every address once per worker (SO_REUSEPORT) and runs a current-thread runtime on each.
//!
//! A client stays on the thread that accepted it, and so does its task: no work stealing, no wake across threads in the common path. One
//! more thread follows the topology, reads verifiers and sweeps the pools, so that a busy worker cannot delay the gate.

use super::auth::{Reader, verifiers};
use super::config::Config;
use super::login;
use super::pause::Gate;
use super::session::Door;
use super::shared::Shared;
use super::{Handle, Inputs, ProxyError};
use crate::cluster::Topology;
use crate::wire::message::{Severity, put_error};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Bound addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub auto: Vec<SocketAddr>,
    pub primary: Vec<SocketAddr>,
    pub standby: Vec<SocketAddr>,
}

/// Connections the kernel may queue for each socket.
const BACKLOG: i32 = 1024;

/// After accept failed for want of descriptors or memory: it is not the servers' fault, and trying at once would only burn a core.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Between two looks at the idle connections.
const SWEEP: Duration = Duration::from_secs(1);

type Bound = (Door, std::net::TcpListener);

/// Binds the listeners, starts the threads and returns; clients are served from then on.
///
/// # Errors
/// No address, an address that cannot be bound, or a thread that cannot be started.
pub async fn start(config: Config, inputs: Inputs) -> Result<Handle, ProxyError> {
    if config.auto.is_empty() && config.primary.is_empty() && config.standby.is_empty() {
        return Err(ProxyError::NoAddress);
    }
    let workers = config.workers.max(1);
    let (addresses, sockets) = bind_all(&config, workers)?;
    let gate = Gate::new(inputs.node, Arc::clone(&inputs.lease_valid));
    let (asking, reader) = verifiers(inputs.control.clone(), config.verifier_ttl, inputs.clock);
    let shared = Arc::new(Shared::new(config, &inputs, gate, asking));
    shared.adopt(Arc::clone(&inputs.topology.borrow()));
    let (ended_by, ended) = mpsc::channel(workers + 1);
    let following = Arc::clone(&shared);
    let topology = inputs.topology.clone();
    thread("proxy-control".to_owned(), ended_by.clone(), async move { control(following, topology, reader).await })?;
    for (worker, sockets) in sockets.into_iter().enumerate() {
        let shared = Arc::clone(&shared);
        thread(format!("proxy-{worker}"), ended_by.clone(), async move { serve(shared, worker, sockets).await })?;
    }
    tracing::info!(?addresses, workers, "proxy is listening");
    Ok(Handle { shared, addresses, ended, shutdown: inputs.shutdown })
}

fn thread(
    name: String,
    ended: mpsc::Sender<String>,
    work: impl std::future::Future<Output = ()> + Send + 'static,
) -> Result<(), ProxyError> {
    let failed = |name: &str, source| ProxyError::Thread { name: name.to_owned(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| failed(&name, source))?;
    let named = name.clone();
    let spawned = std::thread::Builder::new().name(name.clone()).spawn(move || {
        runtime.block_on(work);
        // The channel has room for each thread; nobody listening means that the handle is gone.
        let _ = ended.try_send(named);
    });
    spawned.map(drop).map_err(|source| failed(&name, source))
}

/// Binds each address once for each worker; port 0 is chosen by the system once and then shared.
fn bind_all(config: &Config, workers: usize) -> Result<(Addresses, Vec<Vec<Bound>>), ProxyError> {
    let mut addresses = Addresses::default();
    let mut sockets: Vec<Vec<Bound>> = (0..workers).map(|_| Vec::new()).collect();
    for (door, wanted) in [(Door::Auto, &config.auto), (Door::Primary, &config.primary), (Door::Standby, &config.standby)] {
        for address in wanted {
            let mut actual = *address;
            probe(*address).map_err(|source| ProxyError::Listen { address: *address, source })?;
            for worker in &mut sockets {
                let listen = |source| ProxyError::Listen { address: *address, source };
                let socket = bind(actual).map_err(listen)?;
                actual = socket.local_addr().map_err(listen)?;
                worker.push((door, socket));
            }
            match door {
                Door::Auto => addresses.auto.push(actual),
                Door::Primary => addresses.primary.push(actual),
                Door::Standby => addresses.standby.push(actual),
            }
        }
    }
    Ok((addresses, sockets))
}

/// With SO_REUSEPORT a second process of the same user could share the port unnoticed; without it the kernel says "in use".
fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    // Only listening tells: with SO_REUSEADDR alone two sockets may be bound as long as one of them does not listen.
    socket.listen(1)
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The control thread: topology first, then verifiers and sweeping beside it.
async fn control(shared: Arc<Shared>, mut topology: watch::Receiver<Arc<Topology>>, reader: Reader) {
    let mut tasks = JoinSet::new();
    let asked = Arc::clone(&shared);
    tasks.spawn(reader.run(move || asked.topology()));
    let swept = Arc::clone(&shared);
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            swept.sweep();
        }
    });
    loop {
        let next = Arc::clone(&topology.borrow_and_update());
        shared.adopt(next);
        tokio::select! {
            changed = topology.changed() => if changed.is_err() { return },
            () = shared.shutdown.cancelled() => break,
            // Neither task ends while the proxy runs.
            _ = tasks.join_next() => return,
        }
    }
    // Sessions that are ending may still need a verdict on their servers.
    tokio::time::sleep(shared.config.shutdown_grace).await;
}

/// One worker.
async fn serve(shared: Arc<Shared>, worker: usize, sockets: Vec<Bound>) {
    let mut acceptors = JoinSet::new();
    for (door, socket) in sockets {
        let shared = Arc::clone(&shared);
        acceptors.spawn(async move { accept(shared, worker, door, socket).await });
    }
    // Acceptors end at shutdown, each after its sessions.
    while acceptors.join_next().await.is_some() {}
}

async fn accept(shared: Arc<Shared>, worker: usize, door: Door, socket: std::net::TcpListener) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "proxy socket could not be watched");
            return;
        }
    };
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = sessions.join_next() => continue,
            () = shared.shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => admit(&shared, &mut sessions, worker, door, stream),
            Err(error) => {
                tracing::warn!(%error, "proxy could not accept a client");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    let grace = shared.config.shutdown_grace;
    let ended = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, ended).await.is_err() {
        sessions.abort_all();
    }
}

fn admit(shared: &Arc<Shared>, sessions: &mut JoinSet<()>, worker: usize, door: Door, stream: TcpStream) {
    if shared.clients.fetch_add(1, Relaxed) >= u64::from(shared.config.max_clients) {
        shared.clients.fetch_sub(1, Relaxed);
        let mut out = Vec::new();
        put_error(&mut out, Severity::Fatal, "53300", "sorry, too many clients already", None);
        // A fresh socket takes a short message at once, or nobody is there to read it.
        let _ = stream.try_write(&out);
        return;
    }
    let leaving = Leaving(Arc::clone(shared));
    let shared = Arc::clone(shared);
    sessions.spawn(async move {
        let _leaving = leaving;
        login::serve(shared, worker, door, stream).await;
    });
}

/// Counts a client out, however its task ends.
struct Leaving(Arc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}
