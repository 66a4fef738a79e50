//! A cluster of three: state, observations, and an access fed by watch channels. Proposals are applied by the real `apply`.

use futures::future::BoxFuture;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use trilithon::agent::DecisionInfo;
use trilithon::api::grpc::{GrpcDialer, RoleSource, routes};
use trilithon::api::*;
use trilithon::cluster::*;
use trilithon::ha::{NodeObservation, PostgresFacts, PostgresState, Role, Seen, StandbyView, View};
use trilithon::proto::v1::admin_client::AdminClient;
use trilithon::telemetry::Clock;
use trilithon::types::{ClusterId, Epoch, Lsn, Millis, NodeId, NodeName, RequestId, Revision, SystemId, Timeline, WalPosition};

pub const DC1: NodeId = NodeId(1);

/// dc1 is the steady primary of epoch 1, dc2 and dc3 confirm its commits.
pub fn steady_state() -> ClusterState {
    let member = |n: u16| Member {
        name: NodeName(format!("dc{n}")),
        datacenter: format!("dc{n}"),
        kind: MemberKind::Data,
        addresses: Addresses {
            grpc: format!("127.0.0.1:{}", 7000 + n),
            http: format!("127.0.0.1:{}", 8000 + n),
            postgres: format!("127.0.0.1:{}", 5430 + n),
            proxy_auto: format!("127.0.0.1:{}", 6430 + n),
            proxy_primary: format!("127.0.0.1:{}", 6440 + n),
            proxy_standby: format!("127.0.0.1:{}", 6450 + n),
        },
        tags: Tags::default(),
    };
    ClusterState {
        name: "test".into(),
        cluster: Some(ClusterId(1)),
        system: Some(SystemId(42)),
        revision: Revision(9),
        epoch: Epoch(1),
        phase: Phase::Steady { primary: DC1 },
        rules: vec![SyncRule::new(DC1, [NodeId(2), NodeId(3)], 1)],
        members: (1..=3).map(|n| (NodeId(n.into()), member(n))).collect(),
        next_node: NodeId(4),
        lease: Lease { holder: Some(DC1), epoch: Epoch(1), seq: 5 },
        timelines: TimelineClaims(vec![TimelineClaim { timeline: Timeline(1), epoch: Epoch(1), node: DC1, settled: true }]),
        history: vec![HistoryEntry {
            epoch: Epoch(1),
            timeline: Some(Timeline(1)),
            from: None,
            to: DC1,
            lsn: Lsn(0x100),
            cause: ElectionCause::Bootstrap,
            settled: true,
            outage_ms: None,
            accept_loss: false,
        }],
        ..ClusterState::default()
    }
}

/// What each of the three says in the steady state.
pub fn observation(node: NodeId) -> NodeObservation {
    let primary = node == DC1;
    let position = WalPosition { writer: Epoch(1), lsn: Lsn(0x0300_0100) };
    let row = StandbyView { streaming: true, flushed: position.lsn, replayed: position.lsn, sync: true };
    NodeObservation {
        node,
        promised: Epoch(1),
        postgres: PostgresFacts {
            state: PostgresState::Running,
            role: Some(if primary { Role::Primary } else { Role::Standby }),
            system: Some(SystemId(42)),
            timeline: Some(Timeline(1)),
            position: Some(position),
            replayed: (!primary).then_some(Lsn(0x0300_0000)),
            streaming_from: (!primary).then_some(DC1),
            standbys: if primary { [(NodeId(2), row), (NodeId(3), row)].into() } else { Default::default() },
            version_num: 150_006,
            replay_lag_ms: (!primary).then_some(1_500),
            ..PostgresFacts::default()
        },
        settled: primary.then(|| (Epoch(1), SyncRule::new(DC1, [NodeId(2), NodeId(3)], 1))),
        step: "nothing to do".into(),
        software_version: "0.1.0".into(),
        ..NodeObservation::default()
    }
}

pub fn view(clock: &Clock) -> View {
    let now = clock.now();
    let seen = (1..=3).map(|n| (NodeId(n), Seen { at: now, observation: observation(NodeId(n)) }));
    View { now, observations: seen.collect(), lease_seen: now, ..View::default() }
}

/// Applies proposals to the state, as the log would; may lose answers.
pub struct Fake {
    pub state: watch::Sender<Arc<ClusterState>>,
    pub view: watch::Sender<Arc<View>>,
    pub decision: watch::Sender<DecisionInfo>,
    pub me: NodeId,
    pub lease: Mutex<Option<(Epoch, Duration)>>,
    /// Answers lost after the proposal took effect.
    pub lose_answers: Mutex<u32>,
    pub no_leader: Mutex<bool>,
    /// Proposals vanish.
    pub hang: Mutex<bool>,
    pub proposals: Mutex<Vec<Proposal>>,
    pub reinits: Mutex<Vec<RequestId>>,
}

impl Proposer for Fake {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(async move {
            if *self.no_leader.lock().unwrap() {
                return Err(ProposeError::NoLeader);
            }
            if *self.hang.lock().unwrap() {
                return Err(ProposeError::Unknown("the leader did not answer".into()));
            }
            self.proposals.lock().unwrap().push(proposal.clone());
            let mut state = (**self.state.borrow()).clone();
            let outcome = apply(&mut state, &proposal);
            self.state.send_replace(Arc::new(state));
            let mut lose = self.lose_answers.lock().unwrap();
            if *lose > 0 {
                *lose -= 1;
                return Err(ProposeError::Unknown("the answer was lost".into()));
            }
            Ok(outcome)
        })
    }
}

impl ViewProvider for Fake {
    /// It does not age, however long a test takes: who is silent is what the test says.
    fn view(&self, _now: Millis) -> View {
        (**self.view.borrow()).clone()
    }
}

impl RaftView for Fake {
    fn info(&self) -> RaftInfo {
        let peer = |n| RaftPeer { id: NodeId(n), voter: true, address: format!("127.0.0.1:{}", 7000 + n), matched: Some(11) };
        RaftInfo {
            id: self.me,
            role: if self.me == DC1 { RaftRole::Leader } else { RaftRole::Follower },
            term: 3,
            leader: (!*self.no_leader.lock().unwrap()).then_some(DC1),
            last_log: Some(11),
            committed: Some(11),
            applied: Some(11),
            snapshot: None,
            quorum_acked: Some(Duration::from_millis(40)),
            peers: (1..=3).map(peer).collect(),
        }
    }
}

impl LocalControl for Fake {
    fn reinit(&self, request: RequestId) -> BoxFuture<'_, Result<(), String>> {
        self.reinits.lock().unwrap().push(request);
        Box::pin(async { Ok(()) })
    }

    fn lease(&self) -> Option<(Epoch, Duration)> {
        *self.lease.lock().unwrap()
    }
}

impl PeerDialer for Fake {
    fn connect<'a>(&'a self, _name: &'a str, _address: &'a str) -> BoxFuture<'a, Result<Channel, String>> {
        Box::pin(async { Err("connection refused".to_owned()) })
    }
}

/// An access of node `me`, and the hand that feeds it.
pub fn access(me: NodeId) -> (ClusterAccess, Arc<Fake>) {
    let clock = Clock::default();
    let fake = Arc::new(Fake {
        state: watch::Sender::new(Arc::new(steady_state())),
        view: watch::Sender::new(Arc::new(view(&clock))),
        decision: watch::Sender::new(DecisionInfo { reason: "all well".into(), deciding: true }),
        me,
        lease: Mutex::new((me == DC1).then_some((Epoch(1), Duration::from_secs(2)))),
        lose_answers: Mutex::default(),
        no_leader: Mutex::default(),
        hang: Mutex::default(),
        proposals: Mutex::default(),
        reinits: Mutex::default(),
    });
    let access = ClusterAccess {
        me: NodeName(format!("dc{}", me.0)),
        clock,
        state: fake.state.subscribe(),
        view: fake.clone(),
        decision: fake.decision.subscribe(),
        events: Arc::new(EventLog::default()),
        proposer: fake.clone(),
        raft: fake.clone(),
        local: fake.clone(),
        peers: fake.clone(),
    };
    (access, fake)
}

impl Fake {
    /// Wait, for a bounded time, until a change of primary was asked for.
    pub async fn change_requested(&self) -> PlannedChange {
        let mut state = self.state.subscribe();
        let asked = tokio::time::timeout(Duration::from_secs(20), state.wait_for(|s| s.change.is_some())).await;
        asked.expect("a change is asked for in time").unwrap().change.unwrap()
    }
}

/// A node's Admin service on loopback.
pub struct Served {
    pub fake: Arc<Fake>,
    pub client: AdminClient<Channel>,
    pub address: String,
    _tasks: JoinSet<()>,
}

pub async fn serve(me: NodeId, roles: RoleSource) -> Served {
    let (access, fake) = access(me);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    let (log, following) = (access.events.clone(), access.clone());
    tasks.spawn(async move { log.follow(following, CancellationToken::new()).await });
    let (routes, _reporter) = routes(access, roles).await;
    tasks.spawn(async move {
        let server = tonic::transport::Server::builder().add_routes(routes);
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    let client = AdminClient::new(GrpcDialer::default().connect("dc1", &address).await.unwrap());
    Served { fake, client, address, _tasks: tasks }
}
