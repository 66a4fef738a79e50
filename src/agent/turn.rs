//! The loop: one turn observes, converges, tells the peers, and sees to it that the right step is in flight.

use super::execute::{self, Done};
use super::flight::Flight;
use super::memory::{Memory, NeedsClone};
use super::mistakes;
use super::observe::{self, Own};
use super::upkeep::Upkeep;
use super::{LeaseCell, Promise, PromiseError, ViewSource};
use crate::cluster::{ClusterState, Lease, Phase};
use crate::consensus::Handle;
use crate::ha::{Action, Entry, LocalState, NodeObservation, Role, StepReason, Upstream, converge};
use crate::postgres::{Instance, Postmaster};
use crate::telemetry::{Clock, Recorder};
use crate::types::{Epoch, NodeId, Revision};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Fallback when nothing wakes the loop: Postgres does not tell when a standby streams or a recovery ends.
const TICK: Duration = Duration::from_millis(150);
/// The same while there is nothing to do; also how often positions are told.
const CALM_TICK: Duration = Duration::from_millis(500);

/// Ends the node: going on could break a promise.
#[derive(Debug, Error)]
pub enum AgentError {
    #[error(transparent)]
    Promise(#[from] PromiseError),
}

/// The newest revision that this node's proxy obeys, and the transactions that it has open on a primary that drains. `None`: no proxy.
pub type Obeyed = Option<(Revision, u64)>;

/// What others may ask of the agent.
#[derive(Debug)]
pub enum Requests {
    /// An administrator wants this standby copied anew.
    Reinitialise,
}

/// One node's agent. All fields are handed over by `node`.
pub struct Agent {
    pub me: NodeId,
    pub clock: Clock,
    pub consensus: Handle,
    pub postgres: Arc<Instance>,
    pub promise: Promise,
    pub lease: Arc<LeaseCell>,
    pub view: Arc<ViewSource>,
    /// Told to the peers.
    pub observation: watch::Sender<NodeObservation>,
    /// What this node's proxy acts on; see [`Obeyed`].
    pub proxy: watch::Receiver<Obeyed>,
    /// Peers that refuse connections, as this node sees it, and the lease before it asked.
    pub refusals: watch::Receiver<BTreeMap<NodeId, Lease>>,
    /// This node stops soon.
    pub leaving: watch::Receiver<bool>,
    pub requests: mpsc::Receiver<Requests>,
    pub adopt_existing: bool,
    pub trace: Option<Recorder<Entry>>,
    pub stop: CancellationToken,
}

pub(super) struct Loop {
    pub(super) agent: Agent,
    pub(super) memory: Memory,
    pub(super) flight: Option<Flight>,
    pub(super) tasks: JoinSet<Result<Done, execute::ExecuteError>>,
    last_reason: Option<StepReason>,
    upkeep: Upkeep,
}

impl Agent {
    /// Until `stop`; Postgres is left running, whoever stops the node decides about it.
    ///
    /// # Errors
    /// Where the promise cannot be kept.
    pub async fn run(mut self) -> Result<(), AgentError> {
        let memory = Memory { following: self.postgres.following(), ..Memory::default() };
        let requests = std::mem::replace(&mut self.requests, mpsc::channel(1).1);
        Loop { agent: self, memory, flight: None, tasks: JoinSet::new(), last_reason: None, upkeep: Upkeep::default() }.run(requests).await
    }
}

impl Loop {
    async fn run(mut self, mut requests: mpsc::Receiver<Requests>) -> Result<(), AgentError> {
        let mut wake = Wake::new(&self.agent);
        while !self.agent.stop.is_cancelled() {
            let state = wake.states.borrow_and_update().clone();
            wake.acted_on = mark(&state);
            let now = self.agent.clock.now();
            let view = self.agent.view.view(now);
            let upstream = observe::upstream(&state, &view);
            if self.upkeep.turn(&self.agent.postgres, &state, self.agent.me, &view) {
                self.memory.settled = None;
            }
            self.hurry(&state, now.since(view.phase_since));
            let local = self.observe(&state, upstream.clone()).await;
            let step = mistakes::step(&state, &local, &view, converge(&state, &local));
            if let Some(trace) = &self.agent.trace {
                trace.record(Entry::Stepped { on: state.clone(), local: local.clone(), step: step.clone() });
            }
            self.tell(&state, &local, &step.reason);
            self.explain(&state, &step.reason);
            self.abort_if_overtaken(&state, step.action.as_ref());
            let streams = self.flight.is_some() || local.postgres.streaming_from.is_some();
            let again = self.memory.follow_again(state.epoch, &step.reason, streams, now);
            if self.flight.is_none()
                && let Some(action) = step.action.or(again).or_else(|| self.let_out(&state))
                && self.memory.backoff.allows(&action, self.agent.clock.now())
            {
                self.launch(&state, &local, action).await?;
                continue;
            }
            let tick = self.tick(&state);
            tokio::select! {
                Some(done) = self.tasks.join_next(), if self.flight.is_some() => self.landed(&state, done),
                Some(request) = requests.recv() => self.asked(request),
                () = wake.next(&self.agent, &upstream, tick) => {}
                () = self.agent.stop.cancelled() => {}
            }
        }
        self.tasks.shutdown().await;
        Ok(())
    }

    /// A server that lets nobody in tells where its WAL ends when it is stopped. One that follows its primary waits for what that will send,
    /// unless there is none: it turns away when it starts anew.
    fn let_out(&self, s: &ClusterState) -> Option<Action> {
        if !self.memory.backoff.allows(&Action::Stop, self.agent.clock.now()) {
            return None;
        }
        let why = match self.memory.following {
            None => self.agent.postgres.locked_out()?,
            Some((primary, _)) if matches!(s.phase, Phase::Electing { .. }) && self.agent.postgres.waits_for_upstream() => {
                tracing::info!(%primary, "PostgreSQL waits for WAL of a primary that is gone: stopping it, to turn away from that one");
                return Some(Action::Stop);
            }
            Some(_) => return None,
        };
        tracing::warn!("PostgreSQL lets nobody in: stopping it, {why}");
        Some(Action::Stop)
    }

    fn tick(&self, s: &ClusterState) -> Duration {
        let settled = matches!(s.phase, Phase::Steady { .. }) && s.rules.len() == 1 && self.flight.is_none();
        let content = matches!(self.last_reason, Some(StepReason::Converged | StepReason::Following(_)));
        if settled && content { CALM_TICK } else { TICK }
    }

    async fn observe(&mut self, s: &ClusterState, upstream: Option<Upstream>) -> LocalState {
        // Postgres's own configuration is the truth: a step that was broken off may have changed it.
        self.memory.following = self.agent.postgres.following();
        self.review_mark(s).await;
        let facts = self.agent.postgres.facts(&|timeline| observe::writer(s, timeline)).await;
        self.memory.review_clone(s.epoch, facts.role == Some(Role::Primary));
        self.mark_by_hand(s, &facts, upstream.as_ref()).await;
        self.count_failures(s.epoch, facts.streaming_from.is_some()).await;
        // Only where there is somebody to copy from: until then what it waits for may yet come.
        if let (Some(why), true) = (self.agent.postgres.stalled(), upstream.as_ref().is_some_and(|u| u.accepting)) {
            self.memory.need_clone(why, s.epoch);
        }
        let own = Own {
            me: self.agent.me,
            now: self.agent.clock.now(),
            promised: self.agent.promise.epoch(),
            lease: self.agent.lease.belief(),
            released: self.agent.lease.is_released(s.epoch),
            ended: self.agent.lease.ended(),
            poisoned: self.agent.postgres.poisoned(),
            stopping_ourselves: self.flight.is_some(),
            adopt_existing: self.agent.adopt_existing,
        };
        observe::local_state(s, facts, own, &mut self.memory, upstream)
    }

    fn tell(&self, s: &ClusterState, local: &LocalState, reason: &StepReason) {
        let proxy = *self.agent.proxy.borrow();
        let rest = NodeObservation {
            drain_committed: self.flight.as_ref().is_some_and(|f| f.committed.load(Ordering::Acquire)),
            leaving: *self.agent.leaving.borrow(),
            proxy_in_flight: proxy.map_or(0, |(_, in_flight)| in_flight),
            refusals: self.agent.refusals.borrow().clone(),
            round_trips: self.agent.consensus.round_trips(),
            doubtful: observe::doubtful(s, self.agent.me, &local.postgres, &self.memory)
                || self.agent.postgres.lockout_end().is_some()
                || local.postgres.timeline.is_some_and(|timeline| self.agent.postgres.by_hand().contains(&timeline)),
            ..NodeObservation::default()
        };
        let mut observation = observe::observation(s, local, reason.to_string(), rest);
        // What a step under way is about to change proves nothing: a Detach forgets the upstream before the WAL receiver is gone.
        if self.flight.is_some() {
            observation.seal = None;
        }
        mistakes::seal(s, &mut observation);
        // A drain must not end before the proxy has heard of it (INV-11).
        observation.revision = proxy.map_or(s.revision, |(obeyed, _)| obeyed.min(s.revision));
        self.agent.view.seen(observation.clone(), self.agent.clock.now());
        self.agent.observation.send_if_modified(|known| {
            let news = *known != observation;
            *known = observation;
            news
        });
    }

    /// One INFO line per changed reason.
    fn explain(&mut self, s: &ClusterState, reason: &StepReason) {
        if self.last_reason.as_ref() != Some(reason) {
            tracing::info!(epoch = %s.epoch, revision = %s.revision, %reason, "step");
            self.last_reason = Some(reason.clone());
        }
    }

    fn asked(&mut self, request: Requests) {
        match request {
            Requests::Reinitialise => {
                self.memory.needs_clone = Some(NeedsClone { why: "an administrator asked for it".to_owned(), epoch: None });
            }
        }
    }
}

/// Changes whenever the state does, but for a lease that was merely renewed.
type Mark = (Revision, Epoch, Option<NodeId>);

fn mark(s: &ClusterState) -> Mark {
    (s.revision, s.lease.epoch, s.lease.holder)
}

/// Everything that can wake the loop.
struct Wake {
    states: watch::Receiver<Arc<ClusterState>>,
    /// Of the state that the last turn saw.
    acted_on: Mark,
    observed: watch::Receiver<u64>,
    lease: watch::Receiver<u64>,
    exits: watch::Receiver<Postmaster>,
    proxy: watch::Receiver<Obeyed>,
    refusals: watch::Receiver<BTreeMap<NodeId, Lease>>,
    leaving: watch::Receiver<bool>,
}

impl Wake {
    fn new(agent: &Agent) -> Wake {
        Wake {
            states: agent.consensus.state(),
            acted_on: Mark::default(),
            observed: agent.view.subscribe(),
            lease: agent.lease.subscribe(),
            exits: agent.postgres.postmaster(),
            proxy: agent.proxy.clone(),
            refusals: agent.refusals.clone(),
            leaving: agent.leaving.clone(),
        }
    }

    async fn next(&mut self, agent: &Agent, upstream: &Option<Upstream>, tick: Duration) {
        let tick = tokio::time::sleep(tick);
        tokio::pin!(tick);
        loop {
            tokio::select! {
                () = &mut tick => return,
                // Renewals change the state several times a second and mean nothing here.
                _ = self.states.changed() => if mark(&self.states.borrow_and_update()) != self.acted_on { return },
                _ = self.lease.changed() => return,
                _ = self.exits.changed() => return,
                _ = self.proxy.changed() => return,
                _ = self.refusals.changed() => return,
                _ = self.leaving.changed() => return,
                // Of the peers' news only the primary's own story concerns this node's next step.
                _ = self.observed.changed() => {
                    let news = observe::upstream(&agent.consensus.state().borrow(), &agent.view.view(agent.clock.now()));
                    if news != *upstream {
                        return;
                    }
                }
            }
        }
    }
}
