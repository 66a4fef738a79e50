//! Puts the parts of a node together, in two steps: what a stranger needs to become a member, and what a member does.

use super::open::{Local, Opened};
use super::proxy::Parts;
use super::{feeds, proxy, start};
use crate::agent::{Agent, Controller, DecisionInfo, LeaseCell, LeaseKeeper, Marks, Obeyed, Requests, ViewSource, Witness};
use crate::api::{self, Attachments, ClusterAccess, http};
use crate::cluster::Topology;
use crate::config;
use crate::consensus::{self, Bootstrap, Handle, Timing};
use crate::ha::{Entry, NodeObservation};
use crate::postgres::Instance;
use crate::telemetry::{Clock, Metrics, Recorder};
use crate::types::NodeId;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How a part ended: its name, and what went wrong if anything did.
pub type Ended = (&'static str, anyhow::Result<()>);

/// Ends the parts, in the order of the fields.
#[derive(Clone, Default)]
pub struct Stops {
    pub proxy: CancellationToken,
    /// The agent's loop: from here on nobody touches Postgres but the one who stops it.
    pub agent: CancellationToken,
    pub rest: CancellationToken,
}

/// A node that runs.
pub struct Node {
    pub config: config::Config,
    pub clock: Clock,
    pub consensus: consensus::Node,
    pub handle: Handle,
    pub access: ClusterAccess,
    pub lease: Arc<LeaseCell>,
    pub postgres: Option<Arc<Instance>>,
    pub leaving: watch::Sender<bool>,
    pub stops: Stops,
    pub tasks: JoinSet<Ended>,
    /// What the second step needs; taken by it.
    pending: Option<Pending>,
    /// Dropped last: the directory's lock.
    _dir: super::data_dir::DataDir,
}

/// Made in the first step, moved into the tasks of the second.
struct Pending {
    local: Local,
    proxy: super::open::ProxyAddresses,
    view: Arc<ViewSource>,
    decision: watch::Sender<DecisionInfo>,
    observation: watch::Sender<NodeObservation>,
    requests: mpsc::Receiver<Requests>,
    trace: Option<Recorder<Entry>>,
}

impl Node {
    /// Consensus and administration: enough to be met, asked and admitted.
    pub async fn begin(opened: Opened) -> anyhow::Result<Node> {
        let postgres = opened.postgres();
        let Opened { config, clock, dir, tls, grpc, http, token, trace, local, proxy } = opened;
        let marks = Arc::new(Marks::new(clock));
        let view = Arc::new(ViewSource::new(marks.clone()));
        let lease = Arc::new(LeaseCell::new(clock));
        let (decision, decided) = watch::channel(DecisionInfo::default());
        let (observation, observed) = watch::channel(NodeObservation::default());
        let (asking, requests) = mpsc::channel(4);
        let settings = consensus::Config {
            cluster: config.cluster.name.clone(),
            member: start::member(&config),
            peers: start::peers(&config),
            // Also for `existing`: which member brings the database shows in the observations.
            bootstrap: Bootstrap::New,
            settings: config.settings.clone(),
            dir: dir.consensus(),
            timing: Timing::new(config.consensus.heartbeat, config.consensus.election_timeout),
            tls: tls.clone(),
            clock,
            on_apply: Arc::new(move |state| marks.applied(state)),
            trace: trace.clone(),
        };
        let me = config.node.name.clone();
        let (attached, watched) = (view.clone(), lease.clone());
        let mut access = None;
        let consensus = consensus::start(settings, grpc, observed, async |handle: &Handle| {
            let consensus = handle.clone();
            let parts = Attachments { me, clock, consensus, view: attached, lease: watched, decision: decided, requests: asking, tls };
            let made = parts.access();
            let (routes, _reporter) = api::grpc::routes(made.clone(), api::grpc::RoleSource::Certificate).await;
            access = Some(made);
            routes
        })
        .await?;
        let access = access.context("administration was not attached")?;
        let mut node = Node {
            handle: consensus.handle(),
            consensus,
            config,
            clock,
            access,
            lease,
            postgres,
            leaving: watch::Sender::new(false),
            stops: Stops::default(),
            tasks: JoinSet::new(),
            pending: Some(Pending { local, proxy, view, decision, observation, requests, trace }),
            _dir: dir,
        };
        node.administrate(http, token);
        Ok(node)
    }

    fn administrate(&mut self, listener: tokio::net::TcpListener, token: Option<String>) {
        let (access, stop) = (self.access.clone(), self.stops.rest.clone());
        let router = http::router(access.clone(), Metrics::default(), token);
        self.own("http", http::serve(listener, router, stop.clone()));
        self.own("events", async move {
            access.events.follow(access.clone(), stop).await;
            Ok::<_, std::convert::Infallible>(())
        });
    }

    /// This node is a member: begin to do what members do. Call it once.
    pub async fn join(&mut self, me: NodeId) -> anyhow::Result<()> {
        let Some(Pending { local, proxy, view, decision, observation, requests, trace }) = self.pending.take() else { return Ok(()) };
        self.own_plain("observations", feeds::observations(me, self.handle.clone(), view.clone()));
        let (refused, refusals) = watch::channel(BTreeMap::new());
        self.own_plain("suspects", feeds::suspects(self.handle.clone(), view.clone(), refused));
        let (topology, routed) = watch::channel(Arc::new(Topology::default()));
        let attested = feeds::Attested::default();
        self.own_plain("topology", feeds::topology(me, self.handle.clone(), view.clone(), self.clock, topology, attested.clone()));
        let obeyed = self.front(me, proxy, routed, attested).await?;
        self.own_plain("addresses", start::tell_addresses(me, start::member(&self.config), self.handle.clone()));
        // Not before everything that can fail: whoever renews must also be able to fence.
        self.keep_lease(me)?;
        start::catch_up(me, &self.handle, &self.lease, self.clock).await;
        let stop = self.stops.rest.clone();
        let (clock, consensus) = (self.clock, self.handle.clone());
        let controller = Controller { me, clock, consensus, view: view.clone(), info: decision, trace: trace.clone(), stop };
        self.own_plain("controller", controller.run());
        let (clock, consensus, stop) = (self.clock, self.handle.clone(), self.stops.agent.clone());
        let leaving = self.leaving.subscribe();
        match local {
            Local::Data { postgres, promise } => {
                postgres.set_node(me);
                let lease = self.lease.clone();
                let adopt_existing = self.config.cluster.bootstrap == config::Bootstrap::Existing;
                let agent = Agent {
                    me,
                    clock,
                    consensus,
                    postgres,
                    promise,
                    lease,
                    view,
                    observation,
                    proxy: obeyed,
                    refusals,
                    leaving,
                    requests,
                    adopt_existing,
                    trace,
                    stop,
                };
                self.own("agent", agent.run());
            }
            Local::Witness => {
                let witness = Witness { me, clock, consensus, view, observation, proxy: obeyed, refusals, leaving, stop };
                self.own_plain("agent", witness.run());
            }
        }
        Ok(())
    }

    /// The lease's own thread; its end, a panic too, is noticed like that of a task.
    fn keep_lease(&mut self, me: NodeId) -> anyhow::Result<()> {
        let Some(postgres) = &self.postgres else { return Ok(()) };
        // Strikes whatever runs: a promotion under way must not outlive the lease either (INV-9).
        let emergency = postgres.emergency();
        let keeper = LeaseKeeper {
            me,
            clock: self.clock,
            cell: self.lease.clone(),
            consensus: self.handle.clone(),
            fence: Arc::new(move || {
                emergency.immediate();
            }),
            stop: self.stops.rest.clone(),
        };
        let thread = keeper.start().context("cannot start the lease's thread")?;
        self.tasks.spawn_blocking(move || ("lease", thread.join().map_err(|_| anyhow::anyhow!("panicked"))));
        Ok(())
    }

    async fn front(
        &mut self,
        me: NodeId,
        addresses: super::open::ProxyAddresses,
        topology: watch::Receiver<Arc<Topology>>,
        attested: feeds::Attested,
    ) -> anyhow::Result<watch::Receiver<Obeyed>> {
        let parts = Parts {
            me,
            config: &self.config,
            addresses,
            topology: topology.clone(),
            attested,
            lease: self.lease.clone(),
            consensus: self.handle.clone(),
            postgres: self.postgres.as_deref(),
            clock: self.clock,
            stop: self.stops.proxy.clone(),
        };
        let handle = proxy::start(parts).await?;
        let (told, obeyed) = watch::channel(Some(handle.drain_state()));
        self.own("proxy", proxy::follow(handle, topology, self.handle.clone(), self.clock, told));
        Ok(obeyed)
    }

    fn own<E: Into<anyhow::Error>>(&mut self, name: &'static str, work: impl Future<Output = Result<(), E>> + Send + 'static) {
        self.tasks.spawn(async move { (name, work.await.map_err(Into::into)) });
    }

    fn own_plain(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            work.await;
            (name, Ok(()))
        });
    }
}
