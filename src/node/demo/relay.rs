//! The network between the datacenters of a demo: userland TCP relays that delay and cut what flows between two of them.
//!
//! ```text
//!   dc1's Postgres, node ──► 127.1.0.2:port (relay) ──delay, cut──► 127.0.0.1:port (dc2's service)
//!   people, applications ────────────────────────────────────────► 127.0.0.1:port
//! ```
//! A cut is silent, like a broken line: nothing is refused or reset, bytes just stop, and what was on its way arrives after
//! the heal. A service that is down refuses: its relay stops listening until it is back, so that the nodes see the difference
//! between a dead process and a dead line. Deliberately absent: loss and reordering, which TCP would hide anyhow.
//!
//! Entry point: [`Network::start`].

use super::source;
use crate::telemetry::Clock;
use crate::types::Millis;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often a relay looks whether its service is back. Short beside everything the nodes measure.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// A service on this machine that has not accepted by then is frozen; the connection waits like its client would.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections through one relay at a time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 2_000;
/// One read. With [`CHUNKS_IN_FLIGHT`] it bounds what a slow line holds: 4 MiB each way, 400 Mbit/s at 80 ms.
const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_IN_FLIGHT: usize = 256;

/// Handle on the lines between the datacenters.
#[derive(Debug)]
pub struct Network {
    cuts: watch::Sender<BTreeSet<usize>>,
}

/// What all relays share.
struct Shared {
    /// Folders of the datacenters, by index.
    sites: Vec<PathBuf>,
    /// Datacenters that are cut off from all others.
    cuts: watch::Receiver<BTreeSet<usize>>,
    one_way: Duration,
    clock: Clock,
}

/// One service of datacenter `site`, and where the others reach it.
#[derive(Clone, Copy, Debug)]
pub struct Relay {
    pub site: usize,
    pub listen: SocketAddr,
    pub target: SocketAddr,
}

impl Network {
    /// Start all relays in `tasks`; they end with `stop`.
    pub fn start(
        relays: Vec<Relay>,
        sites: Vec<PathBuf>,
        round_trip: Duration,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Network {
        let (cuts, seen) = watch::channel(BTreeSet::new());
        let shared = Arc::new(Shared { sites, cuts: seen, one_way: round_trip / 2, clock: Clock::default() });
        for relay in relays {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = serve(relay, shared) => {}
                }
            });
        }
        Network { cuts }
    }

    /// Cut datacenter `site` off from all others.
    pub fn cut(&self, site: usize) {
        self.cuts.send_if_modified(|cuts| cuts.insert(site));
    }

    /// Join all lines again.
    pub fn heal(&self) {
        self.cuts.send_modify(BTreeSet::clear);
    }
}

/// Listen while the service does.
async fn serve(relay: Relay, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let doubt = Arc::new(Notify::new());
    loop {
        while !listens(relay.target).await {
            tokio::time::sleep(PROBE_EVERY).await;
        }
        // Taken only for the moment between two demos; the next turn tries again.
        let Ok(listener) = TcpListener::bind(relay.listen).await else {
            tokio::time::sleep(PROBE_EVERY).await;
            continue;
        };
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    if let Ok((client, peer)) = accepted {
                        connections.spawn(carry(client, peer, relay, Arc::clone(&shared), Arc::clone(&doubt)));
                    }
                }
                Some(_) = connections.join_next() => {}
                () = doubt.notified() => {
                    if !listens(relay.target).await {
                        break;
                    }
                }
            }
        }
    }
}

/// Does somebody listen there? A frozen process does: the kernel accepts for it.
async fn listens(target: SocketAddr) -> bool {
    TcpStream::connect(target).await.is_ok()
}

/// One connection from its acceptance to its end. `doubt` is raised when the service ended it, or refused it: it may be gone.
async fn carry(client: TcpStream, peer: SocketAddr, relay: Relay, shared: Arc<Shared>, doubt: Arc<Notify>) {
    let lookup = Arc::clone(&shared);
    let from = tokio::task::spawn_blocking(move || source::site_of(peer, relay.listen, &lookup.sites)).await.ok().flatten();
    let mut line = Line { ends: None, cuts: shared.cuts.clone(), delay: Duration::ZERO, clock: shared.clock };
    if let Some(from) = from.filter(|from| *from != relay.site) {
        line.ends = Some((from, relay.site));
        line.delay = shared.one_way;
    }
    line.open().await;
    // The handshake of a real line takes one round trip.
    tokio::time::sleep(line.delay * 2).await;
    let Ok(Ok(service)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(relay.target)).await else {
        // Reset, not closed in order: that is what a dead process gives.
        let _ = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
        doubt.notify_one();
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = service.set_nodelay(true);
    let (client_read, client_write) = client.into_split();
    let (service_read, service_write) = service.into_split();
    let there = pump(client_read, service_write, line.clone());
    let back = pump(service_read, client_write, line);
    tokio::pin!(there, back);
    // After the first end the other direction may still deliver what it holds; a broken one ends both.
    tokio::select! {
        result = &mut there => {
            if result.is_ok() {
                let _ = back.await;
            }
        }
        result = &mut back => {
            doubt.notify_one();
            if result.is_ok() {
                let _ = there.await;
            }
        }
    }
}

/// The line between two datacenters, or no line within one.
#[derive(Clone)]
struct Line {
    ends: Option<(usize, usize)>,
    cuts: watch::Receiver<BTreeSet<usize>>,
    delay: Duration,
    clock: Clock,
}

impl Line {
    /// Until no end is cut off.
    async fn open(&mut self) {
        if let Some((from, to)) = self.ends {
            // The sender lives as long as the demo; without it nothing is cut any more.
            let _ = self.cuts.wait_for(|cuts| !cuts.contains(&from) && !cuts.contains(&to)).await;
        }
    }
}

/// Carry bytes in one direction until its end; an error when the connection broke.
async fn pump(from: OwnedReadHalf, to: OwnedWriteHalf, line: Line) -> io::Result<()> {
    if line.delay.is_zero() { pump_at_once(from, to, line).await } else { pump_later(from, to, line).await }
}

async fn pump_at_once(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: Line) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        line.open().await;
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}

async fn pump_later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut line: Line) -> io::Result<()> {
    let (send, mut receive) = mpsc::channel::<(Millis, Vec<u8>)>(CHUNKS_IN_FLIGHT);
    let (clock, delay) = (line.clock, line.delay);
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = from.read(&mut buffer).await?;
            let due = clock.now().after(delay);
            // An empty chunk is the end of the stream; it takes its time like every other.
            if send.send((due, buffer[..n].to_vec())).await.is_err() || n == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = receive.recv().await {
            tokio::time::sleep(due.since(clock.now())).await;
            line.open().await;
            if chunk.is_empty() {
                break;
            }
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddrV4};
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);
    const NEVER: Duration = Duration::from_millis(300);

    struct Bench {
        network: Network,
        listen: SocketAddr,
        target: SocketAddr,
        _tasks: JoinSet<()>,
    }

    /// A relay of datacenter 1; this process is datacenter 0.
    async fn bench(round_trip: Duration) -> (Bench, TcpListener) {
        let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let target = service.local_addr().expect("bound");
        let listen = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 1, 0, 2), target.port()));
        let sites = vec![std::env::current_dir().expect("a working directory"), PathBuf::from("/nonexistent")];
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        let network = Network::start(vec![Relay { site: 1, listen, target }], sites, round_trip, &mut tasks, &stop);
        (Bench { network, listen, target, _tasks: tasks }, service)
    }

    async fn connect(to: SocketAddr) -> TcpStream {
        let tries = async {
            loop {
                match TcpStream::connect(to).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        timeout(SOON, tries).await.expect("the relay listens soon")
    }

    /// The service's end of the connection that says hello; probes close at once.
    async fn accept(service: &TcpListener) -> TcpStream {
        loop {
            let (mut stream, _) = timeout(SOON, service.accept()).await.expect("in time").expect("accepted");
            let mut hello = [0; 1];
            if timeout(SOON, stream.read(&mut hello)).await.expect("in time").expect("readable") == 1 {
                return stream;
            }
        }
    }

    #[tokio::test]
    async fn a_cut_holds_bytes_back_and_the_heal_delivers_them() {
        let (bench, service) = bench(Duration::ZERO).await;
        let mut client = connect(bench.listen).await;
        client.write_all(b"!").await.expect("sent");
        let mut server = accept(&service).await;
        bench.network.cut(1);
        client.write_all(b"held").await.expect("sent");
        let mut got = [0; 4];
        assert!(timeout(NEVER, server.read_exact(&mut got)).await.is_err(), "nothing passes a cut");
        bench.network.heal();
        timeout(SOON, server.read_exact(&mut got)).await.expect("in time").expect("delivered");
        assert_eq!(&got, b"held");
    }

    #[tokio::test]
    async fn distance_delays_each_direction() {
        let (bench, service) = bench(Duration::from_millis(80)).await;
        let mut client = connect(bench.listen).await;
        client.write_all(b"!").await.expect("sent");
        let mut server = accept(&service).await;
        let clock = Clock::default();
        let before = clock.now();
        client.write_all(b"ping").await.expect("sent");
        let mut got = [0; 4];
        timeout(SOON, server.read_exact(&mut got)).await.expect("in time").expect("delivered");
        server.write_all(b"pong").await.expect("sent");
        timeout(SOON, client.read_exact(&mut got)).await.expect("in time").expect("delivered");
        assert!(clock.now().since(before) >= Duration::from_millis(79), "{:?}", clock.now().since(before));
    }

    #[tokio::test]
    async fn a_dead_service_is_refused_and_served_again_after_its_return() {
        let (bench, service) = bench(Duration::ZERO).await;
        let mut client = connect(bench.listen).await;
        client.write_all(b"!").await.expect("sent");
        let server = accept(&service).await;
        drop((server, service));
        let mut rest = Vec::new();
        let _ = timeout(SOON, client.read_to_end(&mut rest)).await.expect("the client learns of it");
        let refused = async {
            while TcpStream::connect(bench.listen).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, refused).await.expect("the relay refuses soon");
        let _service = TcpListener::bind(bench.target).await.expect("the port is free again");
        drop(connect(bench.listen).await);
    }
}
