//! Clusters of real consensus nodes in this process: real sled, real gRPC over loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tonic::service::Routes;
use trilithon::cluster::{Addresses, ClusterState, Command, Member, MemberKind, Proposal, Settings, Tags};
use trilithon::consensus::{self, Bootstrap, Config, Handle, Node, Peer, Timing};
use trilithon::ha::NodeObservation;
use trilithon::telemetry::Clock;
use trilithon::types::NodeId;

const LONG: Duration = Duration::from_secs(20);

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(128).unwrap()
}

/// One member's place: its directory and its port outlive its process.
struct Site {
    name: String,
    dir: tempfile::TempDir,
    address: SocketAddr,
    node: Option<Node>,
    observation: watch::Sender<NodeObservation>,
}

struct Cluster {
    sites: Vec<Site>,
    peers: Vec<Peer>,
}

impl Cluster {
    /// Places for `n` members, none of them running.
    fn new(n: usize) -> Cluster {
        let sites: Vec<Site> = (1..=n).map(|i| Site::new(&format!("dc{i}"))).collect();
        let peers = sites.iter().map(Site::peer).collect();
        Cluster { sites, peers }
    }

    async fn formed(n: usize) -> Cluster {
        let mut cluster = Cluster::new(n);
        for i in 0..n {
            cluster.start(i).await;
        }
        for site in &cluster.sites {
            site.until(|s| s.members.len() == n).await;
        }
        cluster
    }

    async fn start(&mut self, i: usize) {
        let config = self.config(i, Bootstrap::New);
        let site = &mut self.sites[i];
        let listener = listen(site.address);
        let node = consensus::start(config, listener, site.observation.subscribe(), |_| Routes::default()).await.unwrap();
        site.node = Some(node);
    }

    fn config(&self, i: usize, bootstrap: Bootstrap) -> Config {
        let site = &self.sites[i];
        Config {
            cluster: "demo".into(),
            member: member(&site.name, site.address),
            peers: self.peers.clone(),
            bootstrap,
            settings: Settings::default(),
            dir: site.dir.path().join("consensus"),
            timing: Timing::default(),
            tls: None,
            clock: Clock::default(),
            on_apply: Arc::new(|_| {}),
        }
    }

    /// The running node that leads with a quorum, once all running ones agree on it.
    async fn leader(&self) -> usize {
        let deadline = Clock::default().now().after(LONG);
        loop {
            let views: Vec<_> = self.running().map(|(i, h)| (i, *h.leadership().borrow())).collect();
            let first = views.first().and_then(|(_, v)| v.leader);
            let agreed = first.is_some() && views.iter().all(|(_, v)| v.leader == first);
            if let Some((i, _)) = views.iter().find(|(_, v)| v.mine).filter(|_| agreed) {
                return *i;
            }
            assert!(Clock::default().now() < deadline, "no leader: {views:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn running(&self) -> impl Iterator<Item = (usize, Handle)> {
        self.sites.iter().enumerate().filter_map(|(i, site)| Some((i, site.node.as_ref()?.handle())))
    }
}

impl Site {
    fn new(name: &str) -> Site {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::Builder::new().prefix("tri-consensus-").tempdir().unwrap();
        Site { name: name.into(), dir, address: probe.local_addr().unwrap(), node: None, observation: watch::Sender::default() }
    }

    fn peer(&self) -> Peer {
        Peer { name: self.name.clone(), address: self.address.to_string() }
    }

    fn handle(&self) -> Handle {
        self.node.as_ref().unwrap().handle()
    }

    /// Stop without a word, as a kill would; the disk stays.
    async fn kill(&mut self) {
        self.node.take().unwrap().shutdown().await;
    }

    fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("consensus")).unwrap();
    }

    async fn until(&self, holds: impl Fn(&ClusterState) -> bool) {
        let mut state = self.handle().state();
        let waited = tokio::time::timeout(LONG, state.wait_for(|s| holds(s))).await.map(drop);
        assert!(waited.is_ok(), "{}: {:?}", self.name, self.handle().state().borrow());
    }
}

fn member(name: &str, address: SocketAddr) -> Member {
    Member {
        name: name.into(),
        datacenter: name.to_owned(),
        kind: MemberKind::Data,
        addresses: Addresses { grpc: address.to_string(), ..Addresses::default() },
        tags: Tags::default(),
    }
}

/// Something harmless to replicate: the priority of a member.
fn set_priority(node: NodeId, priority: i32) -> Proposal {
    Proposal { expect: None, request: None, command: Command::SetTags { node, tags: Tags { priority, ..Tags::default() } } }
}

async fn write(handle: &Handle, priority: i32) {
    let mut proposal = set_priority(NodeId(1), priority);
    proposal.expect = Some(handle.state().borrow().revision);
    handle.propose_within(&proposal, LONG).await.unwrap().unwrap();
}

fn priority(state: &ClusterState) -> i32 {
    state.members.get(&NodeId(1)).map_or(0, |m| m.tags.priority)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_fresh_nodes_form_a_cluster_and_replicate_what_any_of_them_proposes() {
    let cluster = Cluster::formed(3).await;
    let ids: BTreeMap<&str, NodeId> = cluster.sites.iter().map(|s| (s.name.as_str(), s.handle().node_id().unwrap())).collect();
    assert_eq!(ids, [("dc1", NodeId(1)), ("dc2", NodeId(2)), ("dc3", NodeId(3))].into());
    for (i, site) in cluster.sites.iter().enumerate() {
        write(&site.handle(), 10 + i as i32).await;
        for other in &cluster.sites {
            other.until(|s| priority(s) == 10 + i as i32).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_takes_over_and_the_old_one_catches_up() {
    let mut cluster = Cluster::formed(3).await;
    let old = cluster.leader().await;
    cluster.sites[old].kill().await;
    let began = Clock::default().now();
    let new = cluster.leader().await;
    assert_ne!(new, old);
    write(&cluster.sites[new].handle(), 33).await;
    println!("first write {:?} after the loss", Clock::default().now().since(began));
    cluster.start(old).await;
    cluster.sites[old].until(|s| priority(s) == 33).await;
}
