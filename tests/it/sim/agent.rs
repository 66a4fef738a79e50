//! The shell around the core: observe → converge → one action → again; the lease's timer; the controller on the leader.

use super::net::Plane;
use super::node::{Agent, Proc, Replacing, Running, Slot};
use super::world::{Event, World};
use std::collections::BTreeMap;
use trilithon::cluster::{Command, MemberKind, Outcome, Phase, Proposal};
use trilithon::ha::{Action, LeaseBelief, LocalState, NodeObservation, PostgresFacts, PostgresState, Role, Seen, StandbyView, Upstream};
use trilithon::types::{Epoch, Lsn, Millis, WalPosition};

/// Postgres that does not answer for this long is unknown, and hung after the second bound.
const PROBE: u64 = 1_000;
const HUNG: u64 = 3_000;

impl World {
    /// Start the process `trilithon node`; what was volatile is gone.
    pub fn boot_agent(&mut self, slot: Slot, delay: u64) {
        let now = self.now;
        let clock = self.nodes[slot].clock(now);
        let log = self.raft.log.len();
        let forgot = self.rng.next();
        let forget_promise = self.core.forgets_promise();
        let agent = &mut self.nodes[slot].agent;
        let snapshot = agent.snapshot.clone();
        // The applied index on disk lies anywhere between the snapshot and where the process was.
        let known = agent.applied.min(log);
        let forgotten = if self.cfg.scripted { 0 } else { forgot % ((known - snapshot.0) as u64 + 1) };
        let replay_to = known - forgotten as usize;
        let lease = agent.holder;
        let gen_ = agent.gen_ + 1;
        *agent = Agent {
            gen_,
            disk_promise: agent.disk_promise,
            durable: agent.durable,
            snapshot: snapshot.clone(),
            applied: replay_to,
            started: now,
            thawed: now,
            state: snapshot.1,
            ..Agent::new()
        };
        agent.promised = if forget_promise { agent.state.epoch } else { agent.disk_promise };
        if let Some((epoch, _)) = lease.deadline().filter(|_| self.core.keeps_lease_over_restart()) {
            agent.holder.renewed(epoch, clock, &agent.state.settings);
        }
        for entry in &self.raft.log[snapshot.0..replay_to] {
            drop(self.core.apply(&mut agent.state, entry));
        }
        agent.watch.applied(agent.state.lease, self.core.watch_begins(clock));
        agent.view.phase_since = clock;
        self.after(delay, Event::Tick { slot, gen_ });
        self.consensus_disturbed();
    }

    /// Look again soon; several causes make one look.
    pub fn wake(&mut self, slot: Slot, delay: u64) {
        let agent = &mut self.nodes[slot].agent;
        if agent.up && !agent.wake_scheduled {
            agent.wake_scheduled = true;
            let gen_ = agent.gen_;
            self.after(delay, Event::Wake { slot, gen_ });
        }
    }

    pub fn tick(&mut self, slot: Slot) {
        let node = &self.nodes[slot];
        let every = node.true_delay(self.cfg.settings.lease_ttl_ms / 4);
        let gen_ = node.agent.gen_;
        self.after(every, Event::Tick { slot, gen_ });
        self.renew(slot);
        self.look_for_the_dead(slot);
        self.schedule_apply(slot);
        self.schedule_fence(slot, every);
        self.give_up_start(slot);
        self.give_up_connections(slot);
        self.step_and_tell(slot, true);
        self.check_serving(slot);
    }

    /// The lease's own timer: it looks at nothing but the state, the belief, and whether the lease is being given back.
    fn renew(&mut self, slot: Slot) {
        let me = self.nodes[slot].id;
        let late = self.core.renews_after_release();
        let agent = &self.nodes[slot].agent;
        let believed = agent.holder.deadline().filter(|_| late).map(|(epoch, _)| epoch);
        let lease = agent.state.lease;
        let held = (lease.holder == Some(me) && lease.epoch == agent.state.epoch).then_some(lease.epoch).or(believed);
        let Some(epoch) = held else { return };
        let command = match agent.released == Some(epoch) && !late {
            true => Command::ReleaseLease { node: me, epoch },
            false if agent.ended == Some(epoch) && !late => return,
            false => Command::RenewLease { node: me, epoch },
        };
        self.propose(slot, Proposal { expect: None, request: None, command });
    }

    /// Wake exactly when the fencing margin begins.
    fn schedule_fence(&mut self, slot: Slot, until: u64) {
        let node = &self.nodes[slot];
        let Some(fencing) = node.agent.holder.fencing() else { return };
        let local = fencing.0.saturating_sub(node.clock(self.now).0);
        let delay = node.true_delay(local);
        let gen_ = node.agent.gen_;
        if delay <= until + 1 {
            self.after(delay, Event::Fence { slot, gen_ });
        }
    }

    /// A killed process and a killed postmaster refuse connections; a machine without power or a cut link is only silent.
    fn look_for_the_dead(&mut self, slot: Slot) {
        let lease = self.nodes[slot].agent.state.lease;
        let refusals = (0..self.nodes.len())
            .filter(|o| *o != slot && self.nodes[*o].powered && !self.nodes[*o].agent.up && !self.nodes[*o].pg.is_up())
            .filter(|o| self.net.both(Plane::Peer, slot, *o) && self.net.both(Plane::Postgres, slot, *o))
            .map(|o| (self.nodes[o].id, lease))
            .collect();
        self.nodes[slot].agent.refusals = refusals;
    }

    pub fn step(&mut self, slot: Slot) {
        self.step_and_tell(slot, false);
    }

    fn step_and_tell(&mut self, slot: Slot, heartbeat: bool) {
        self.fence_if_ending(slot);
        self.abandon_copy(slot);
        let local = self.observe(slot);
        let (running, stage) = self.nodes[slot].agent.action.as_ref().map(|r| (r.action.clone(), r.stage)).unzip();
        // A shutdown that has begun is seen through.
        let draining = running == Some(Action::Drain) && stage == Some(0);
        let preemptible = draining || matches!(running, Some(Action::ApplyRule { .. } | Action::Prepare { .. }));
        if running.is_none() || preemptible || local.postgres.role == Some(Role::Primary) {
            let step = self.core.converge(&self.nodes[slot].agent.state, &local);
            if self.nodes[slot].agent.last_step.as_ref() != Some(&step.reason) {
                let name = self.name(slot).to_owned();
                self.note(slot as u64, || format!("{name}: {}", step.reason));
                self.nodes[slot].agent.last_step = Some(step.reason.clone());
            }
            let differs = running.is_some() && step.action != running;
            let urgent = step.action == Some(Action::Demote) && running != Some(Action::Demote);
            if (differs && preemptible) || urgent {
                self.nodes[slot].agent.action = None;
            }
            let free = self.nodes[slot].agent.action.is_none();
            let rested = self.now >= self.nodes[slot].agent.retry_at || urgent;
            if let Some(action) = step.action.filter(|_| free && rested) {
                self.start_action(slot, action);
            }
        }
        self.tell(slot, local, heartbeat);
        if self.nodes[slot].agent.leads {
            self.control(slot);
        }
    }

    /// A copy from who is no longer primary is broken off; the directory stays poisoned.
    fn abandon_copy(&mut self, slot: Slot) {
        let node = &mut self.nodes[slot];
        let source = match node.agent.action.as_ref().map(|r| &r.action) {
            Some(Action::Clone { primary } | Action::Rewind { primary }) => Some(*primary),
            Some(_) | None => None,
        };
        if source.is_some() && source != node.agent.state.primary() {
            node.agent.action = None;
            node.pg.replacing = None;
        }
    }

    /// The lease's own thread ends a primary within the fencing margin, whatever the agent's loop does.
    fn fence_if_ending(&mut self, slot: Slot) {
        let node = &self.nodes[slot];
        let belief = self.core.belief(&node.agent.holder, node.clock(self.now));
        if let LeaseBelief::Ending { epoch } = belief {
            // A promotion that is under way would outlive the lease: it ends here too.
            let promoting = node.agent.action.as_ref().is_some_and(|r| matches!(r.action, Action::Promote { .. }));
            if node.pg.runs_as_primary() || promoting {
                let line = format!("{}: lease ends unrenewed, fencing the local primary", node.name);
                self.note(slot as u64, || line);
                self.crash_postgres(slot);
                if promoting {
                    self.nodes[slot].agent.action = None;
                }
            }
            let agent = &mut self.nodes[slot].agent;
            agent.ended = Some(epoch);
            agent.holder.drop_belief();
        }
    }

    /// What this node sees of itself.
    pub fn observe(&mut self, slot: Slot) -> LocalState {
        let frozen_for = self.nodes[slot].pg.frozen.map_or(0, |since| self.now - since);
        let postgres = self.facts(slot, frozen_for);
        let node = &mut self.nodes[slot];
        let clock = node.clock(self.now);
        let agent = &mut node.agent;
        agent.last_role = postgres.role;
        let lease = self.core.belief(&agent.holder, clock);
        let data = node.pg.data.as_ref();
        let is_primary = postgres.role == Some(Role::Primary);
        LocalState {
            me: node.id,
            promised: agent.promised,
            following: data.and_then(|d| d.following),
            primary_of: data.and_then(|d| d.primary_of).filter(|_| is_primary),
            settled: agent.settled.clone().filter(|_| is_primary),
            lease,
            released: agent.released == Some(agent.state.epoch),
            gave_up: agent.gave_up.max(agent.ended),
            poisoned: node.pg.poisoned && !self.core.starts_poisoned(),
            needs_clone: agent.needs_clone.clone(),
            prepared: agent.prepared,
            upstream: if is_primary { None } else { upstream_of(agent, clock) },
            hung: frozen_for >= HUNG,
            stalled: false,
            adopt_existing: false,
            postgres,
        }
    }

    fn facts(&self, slot: Slot, frozen_for: u64) -> PostgresFacts {
        let node = &self.nodes[slot];
        let pg = &node.pg;
        let state = match (pg.replacing, pg.proc, &pg.data) {
            (Some(Replacing::Clone), _, _) => PostgresState::Cloning,
            (Some(Replacing::Rewind), _, _) => PostgresState::Rewinding,
            (None, _, None) if !pg.poisoned => PostgresState::Absent,
            (None, Proc::Stopped, _) => PostgresState::Stopped,
            (None, _, _) if frozen_for >= PROBE => PostgresState::Unknown,
            (None, Proc::Starting, _) => PostgresState::Starting,
            (None, Proc::Running { .. }, _) => PostgresState::Running,
            (None, Proc::Stopping, _) => PostgresState::Stopping,
        };
        let mut facts = PostgresFacts { state, ..PostgresFacts::default() };
        let Some(data) = &pg.data else { return facts };
        facts.system = Some(data.system);
        facts.role = match (state, pg.proc) {
            // A server that does not answer does not tell its role either.
            (PostgresState::Running, Proc::Running { primary }) => Some(if primary { Role::Primary } else { Role::Standby }),
            (_, _) => None,
        };
        if state == PostgresState::Unknown || pg.replacing.is_some() {
            return facts;
        }
        let timeline = self.wal.branch(data.tip).timeline;
        facts.timeline = Some(timeline);
        facts.ancestry = self.wal.ancestry(data.tip);
        facts.position = self.position(slot, state);
        facts.shutdown_checkpoint = data.shutdown_checkpoint.filter(|_| state == PostgresState::Stopped).map(Lsn);
        facts.replayed = Some(Lsn(pg.replayed));
        let hidden = self.core.leaves_receiver_running() && data.following.is_none();
        facts.streaming_from = pg.receiver.filter(|_| !hidden).map(|(up, _)| self.nodes[up].id);
        facts.standbys = self.standby_views(slot);
        facts
    }

    /// End of flushed WAL, where it is known; its writer comes from the claims that this node has applied.
    fn position(&self, slot: Slot, state: PostgresState) -> Option<WalPosition> {
        let node = &self.nodes[slot];
        let data = node.pg.data.as_ref()?;
        let known = match state {
            PostgresState::Running => true,
            PostgresState::Stopped => data.clean || self.core.underreports_after_crash(),
            PostgresState::Unknown
            | PostgresState::Absent
            | PostgresState::Starting
            | PostgresState::Stopping
            | PostgresState::Cloning
            | PostgresState::Rewinding => false,
        };
        let claims = &node.agent.state.timelines;
        let bare = claims.0.is_empty().then_some(Epoch(0));
        let writer = claims.writer(self.wal.branch(data.tip).timeline).or(bare)?;
        let stopped_at = data.shutdown_checkpoint.filter(|_| state == PostgresState::Stopped);
        let end = if known && !data.clean && state == PostgresState::Stopped { data.tip.lsn.saturating_sub(900) } else { data.tip.lsn };
        known.then_some(WalPosition { writer, lsn: Lsn(stopped_at.unwrap_or(end)) })
    }

    fn standby_views(&self, slot: Slot) -> BTreeMap<trilithon::types::NodeId, StandbyView> {
        let pg = &self.nodes[slot].pg;
        let loaded = |s: &super::node::Sender, id| s.rule.as_ref().is_some_and(|r| r.standbys.contains(&id));
        let view = |s: &super::node::Sender| {
            let standby = &self.nodes[s.standby];
            let flushed = Lsn(s.flushed);
            (standby.id, StandbyView { streaming: true, flushed, replayed: flushed, sync: loaded(s, standby.id) })
        };
        pg.senders.iter().map(view).collect()
    }

    /// Tell the others, where something changed or a heartbeat is due.
    fn tell(&mut self, slot: Slot, local: LocalState, heartbeat: bool) {
        let agent = &self.nodes[slot].agent;
        let seal = self.core.seal(&agent.state, &local);
        let mut observation = NodeObservation {
            node: local.me,
            promised: local.promised,
            revision: agent.state.revision,
            seal,
            settled: local.settled,
            prepared: local.prepared,
            drain_committed: agent.drain_committed == Some(agent.state.epoch),
            refusals: agent.refusals.clone(),
            postgres: local.postgres,
            ..NodeObservation::default()
        };
        self.core.report(&mut observation, &agent.state);
        let changed = observation != agent.last_sent;
        if !changed && !heartbeat {
            return;
        }
        self.check_seal(slot, &observation);
        let to_all = observation.postgres.role == Some(Role::Primary);
        for other in 0..self.nodes.len() {
            let wanted = other != slot && (to_all || self.nodes[other].agent.leads) && self.net.open(Plane::Peer, slot, other);
            if wanted {
                let gen_ = self.nodes[other].agent.gen_;
                let delay = self.latency(slot, other) + 1;
                self.after(delay, Event::Observe { slot: other, gen_, observation: Box::new(observation.clone()) });
            }
        }
        let at = self.nodes[slot].clock(self.now);
        let agent = &mut self.nodes[slot].agent;
        if changed {
            agent.last_sent = observation.clone();
        }
        agent.view.observations.insert(observation.node, Seen { at, observation });
    }

    pub fn observed(&mut self, slot: Slot, mut observation: NodeObservation) {
        let at = self.nodes[slot].clock(self.now);
        let agent = &mut self.nodes[slot].agent;
        let from = observation.node;
        if let Some(before) = agent.view.observations.get(&from).filter(|_| self.core.keeps_old_seals()) {
            observation.seal = observation.seal.or(before.observation.seal);
        }
        let news = agent.view.observations.get(&from).is_none_or(|s| s.observation.postgres.role != observation.postgres.role);
        agent.view.observations.insert(from, Seen { at, observation });
        if agent.leads {
            self.control(slot);
        }
        if news {
            self.wake(slot, 1);
        }
    }

    /// The controller: decide on this node's copy of the state, propose on its revision.
    fn control(&mut self, slot: Slot) {
        let clock = self.nodes[slot].clock(self.now);
        let now = self.now;
        let agent = &mut self.nodes[slot].agent;
        if agent.deciding.is_some_and(|(_, until)| now < until) {
            return;
        }
        agent.view.now = clock;
        agent.view.lease_seen = agent.watch.since(clock);
        if let Phase::Steady { primary } = agent.state.phase
            && agent.view.fresh(primary, std::time::Duration::from_secs(2)).is_some_and(|o| o.postgres.role == Some(Role::Primary))
        {
            agent.view.writable_last = clock;
        }
        let decision = self.core.decide(&agent.state, &mut agent.view);
        let expect = Some(agent.state.revision);
        if agent.last_reason.as_ref() != Some(&decision.reason) {
            agent.last_reason = Some(decision.reason.clone());
            let name = self.name(slot).to_owned();
            self.note(slot as u64 + 100, || format!("controller on {name}: {}", decision.reason));
        }
        if let Some(command) = decision.command {
            let request = None;
            let id = self.propose(slot, Proposal { expect, request, command });
            self.nodes[slot].agent.deciding = Some((id, now + 1_500));
        }
    }

    /// The answer to a proposal of this process.
    pub fn answered(&mut self, slot: Slot, id: u64, outcome: Outcome) {
        let Some(flight) = self.flights.remove(&id) else { return };
        let clock = self.nodes[slot].clock(self.now);
        let sent = self.core.lease_base(flight.sent, clock);
        let agent = &mut self.nodes[slot].agent;
        if agent.deciding.is_some_and(|(d, _)| d == id) {
            agent.deciding = None;
        }
        let answers_action = agent.action.as_ref().is_some_and(|r: &Running| r.token == id);
        match (&flight.proposal.command, outcome.is_ok()) {
            (Command::RenewLease { epoch, .. } | Command::AcquireLease { epoch, .. }, true)
                if agent.released != Some(*epoch) && agent.ended != Some(*epoch) =>
            {
                agent.holder.renewed(*epoch, sent, &agent.state.settings);
            }
            (Command::RenewLease { epoch, .. }, false) if agent.holder.deadline().is_some_and(|(e, _)| e == *epoch) => {
                agent.holder.drop_belief();
            }
            (_, _) => {}
        }
        if answers_action {
            agent.action = None;
            if outcome.is_err() {
                agent.retry_at = self.now + 400;
            }
        }
        let every = self.nodes[slot].true_delay(self.cfg.settings.lease_ttl_ms / 4);
        self.schedule_fence(slot, every);
        self.wake(slot, 0);
    }

    /// INV-9, from outside: a process that runs serves only with a lease, give or take the time to stop.
    fn check_serving(&mut self, slot: Slot) {
        let node = &self.nodes[slot];
        let exempt = node.kind == MemberKind::Witness || node.pg.frozen.is_some() || self.now - node.agent.thawed < 1_500;
        if exempt || !node.pg.runs_as_primary() {
            return;
        }
        let (newest, since) = self.oracle.newest;
        let writer = node.pg.tip().map(|t| self.wal.branch(t).writer);
        let woken = self.now - node.awake_since() > 1_500;
        if writer < Some(newest) && self.now - since > 1_000 && woken && !self.cfg.unseen_pauses {
            self.violate("INV-9", || format!("slot {slot} serves writes of an older epoch although one of epoch {newest} serves"));
            return;
        }
        let clock = node.clock(self.now);
        let late = node.agent.holder.deadline().is_none_or(|(_, until)| until.0 + 1_000 < clock.0);
        if late && self.oracle.served_without_lease(slot, self.now) {
            self.violate("INV-9", || format!("slot {slot} serves long after its lease ended"));
        }
    }
}

/// The primary of this epoch as it last described itself.
fn upstream_of(agent: &Agent, clock: Millis) -> Option<Upstream> {
    let primary = agent.state.primary()?;
    let o = agent.view.observations.get(&primary)?;
    if clock.since(o.at) > agent.state.settings.lease_ttl() * 2 / 3 {
        return None;
    }
    let facts = &o.observation.postgres;
    Some(Upstream {
        node: primary,
        accepting: facts.role == Some(Role::Primary)
            && facts.state == PostgresState::Running
            && o.observation.promised == agent.state.epoch,
        timeline: facts.timeline.unwrap_or_default(),
        ancestry: facts.ancestry.clone(),
    })
}
