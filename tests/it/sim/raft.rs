//! Consensus, abstract but honest: one linearizable log.
//!
//! An entry commits only while its leader reaches a majority of voters both ways; a majority then holds it on disk, and only
//! a node whose disk holds every committed entry may lead. What was pending on a lost leader is inherited by the next one or
//! lost, by chance; whoever proposed it learns neither. Each node applies in order, when news of the commit reaches it. A
//! deposed leader goes on believing in itself for a while.

use super::net::Plane;
use super::node::Slot;
use super::world::{Event, Flight, World};
use std::collections::BTreeSet;
use trilithon::cluster::{ClusterState, Command, Member, Proposal};
use trilithon::types::{ClusterId, NodeId, NodeName};

/// An entry that its leader has appended.
#[derive(Clone, Debug)]
pub struct Appended {
    pub id: u64,
    pub proposal: Proposal,
    /// Who may have received it, by slot.
    holders: BTreeSet<Slot>,
}

pub struct Raft {
    pub log: Vec<Proposal>,
    /// The state after the whole log.
    pub truth: ClusterState,
    pub leader: Option<Slot>,
    pub voters: BTreeSet<NodeId>,
    pending: Vec<Appended>,
    commit_scheduled: bool,
    check_scheduled: bool,
}

impl Raft {
    pub fn new(voters: BTreeSet<NodeId>) -> Raft {
        Raft {
            log: Vec::new(),
            truth: ClusterState::default(),
            leader: None,
            voters,
            pending: Vec::new(),
            commit_scheduled: false,
            check_scheduled: false,
        }
    }
}

impl World {
    pub fn elect_first_leader(&mut self) {
        let leader = if self.cfg.scripted { 0 } else { self.rng.below(self.nodes.len() as u64) as Slot };
        self.raft.leader = Some(leader);
        self.nodes[leader].agent.leads = true;
        let members = self.nodes.iter().map(|n| (n.id, self.member_of(n.name.clone(), n.kind))).collect();
        let settings = self.cfg.settings.clone();
        let command = Command::Create { cluster: ClusterId(7), name: "sim".into(), members, settings };
        self.propose(leader, Proposal { expect: None, request: None, command });
    }

    pub fn member_of(&self, name: String, kind: trilithon::cluster::MemberKind) -> Member {
        Member { datacenter: String::new(), name: NodeName(name), kind, addresses: Default::default(), tags: Default::default() }
    }

    /// Send `proposal` to whom `slot` believes to lead. Returns the id under which an answer may come.
    pub fn propose(&mut self, slot: Slot, proposal: Proposal) -> u64 {
        let id = self.fresh_id();
        let node = &self.nodes[slot];
        let to = if node.agent.leads { Some(slot) } else { self.raft.leader.filter(|l| self.net.open(Plane::Peer, *l, slot)) };
        let flight = Flight { slot, gen_: node.agent.gen_, sent: node.clock(self.now), proposal };
        if let Some(to) = to.filter(|to| self.net.open(Plane::Peer, slot, *to)) {
            self.flights.insert(id, flight);
            let delay = self.latency(slot, to);
            self.after(delay, Event::Propose { slot: to, id });
        }
        id
    }

    pub fn proposal_arrived(&mut self, slot: Slot, id: u64) {
        let Some(flight) = self.flights.get(&id) else { return };
        if !self.nodes[slot].agent_runs() || !self.net.open(Plane::Peer, flight.slot, slot) || self.raft.leader != Some(slot) {
            self.flights.remove(&id);
            return;
        }
        let proposal = flight.proposal.clone();
        let holders = self.reach(slot).into_iter().collect();
        self.raft.pending.push(Appended { id, proposal, holders });
        let round_trip = self.cfg.latency.1 * 2 + 2;
        self.schedule_commit(round_trip);
    }

    fn schedule_commit(&mut self, delay: u64) {
        if !self.raft.commit_scheduled {
            self.raft.commit_scheduled = true;
            self.after(delay, Event::Commit);
        }
    }

    fn is_voter(&self, slot: Slot) -> bool {
        self.raft.voters.contains(&self.nodes[slot].id)
    }

    /// Running voters that `leader` reaches both ways, itself included.
    fn reach(&self, leader: Slot) -> Vec<Slot> {
        (0..self.nodes.len())
            .filter(|s| self.is_voter(*s) && self.nodes[*s].agent_runs() && self.net.both(Plane::Peer, leader, *s))
            .collect()
    }

    pub fn leads_majority(&self, slot: Slot) -> bool {
        self.is_voter(slot) && self.nodes[slot].agent_runs() && self.reach(slot).len() > self.raft.voters.len() / 2
    }

    pub fn try_commit(&mut self) {
        self.raft.commit_scheduled = false;
        let Some(leader) = self.raft.leader else { return };
        if self.raft.pending.is_empty() {
            return;
        }
        if !self.leads_majority(leader) {
            self.schedule_commit(300);
            return;
        }
        let reach = self.reach(leader);
        let end = self.raft.log.len() + self.raft.pending.len();
        let mut spare = reach.len() - (self.raft.voters.len() / 2 + 1);
        for slot in &reach {
            if *slot != leader && spare > 0 && self.unlucky(150) {
                spare -= 1;
            } else {
                self.nodes[*slot].agent.durable = end;
            }
        }
        for entry in std::mem::take(&mut self.raft.pending) {
            self.commit(leader, entry);
        }
        for slot in 0..self.nodes.len() {
            self.schedule_apply(slot);
        }
    }

    fn commit(&mut self, leader: Slot, entry: Appended) {
        let renewal = matches!(entry.proposal.command, Command::RenewLease { .. });
        let before = (!renewal).then(|| self.raft.truth.clone());
        let outcome = self.core.apply(&mut self.raft.truth, &entry.proposal);
        self.trace.mix(self.raft.log.len() as u64);
        self.trace.mix(u64::from(outcome.is_ok()));
        if self.trace.lines.is_some() && !matches!(entry.proposal.command, Command::RenewLease { .. }) {
            let verdict = outcome.as_ref().err().map(|why| format!(" (refused: {why})")).unwrap_or_default();
            let line = format!("log: {}{verdict}", super::text::command(&entry.proposal.command));
            self.trace.note(self.now, || line);
        }
        self.raft.log.push(entry.proposal.clone());
        match before {
            Some(before) => self.committed(&before, &entry.proposal, &outcome),
            None if outcome.is_ok() => self.oracle.renewed_at = self.now,
            None => {}
        }
        if let Some(flight) = self.flights.get(&entry.id) {
            let (slot, gen_) = (flight.slot, flight.gen_);
            if self.net.open(Plane::Peer, leader, slot) {
                let delay = self.latency(leader, slot) + 1;
                self.after(delay, Event::Answer { slot, gen_, id: entry.id, outcome: Box::new(outcome) });
                if renewal {
                    self.freeze_before_the_answer(slot);
                }
            }
        }
    }

    /// News of a commit travels to `slot`.
    pub fn schedule_apply(&mut self, slot: Slot) {
        let Some(leader) = self.raft.leader else { return };
        let node = &self.nodes[slot];
        let behind = node.agent.applied < self.raft.log.len();
        if !behind || node.agent.apply_scheduled || !self.net.open(Plane::Peer, leader, slot) || !node.agent.up {
            return;
        }
        let (gen_, lag) = (node.agent.gen_, node.apply_lag);
        self.nodes[slot].agent.apply_scheduled = true;
        // A leader answers only after it has applied.
        let delay = if slot == leader { lag } else { self.latency(leader, slot) + self.took(0, 8) + lag };
        self.after(delay, Event::Apply { slot, gen_ });
    }

    pub fn apply_committed(&mut self, slot: Slot) {
        self.nodes[slot].agent.apply_scheduled = false;
        let reachable = self.raft.leader.is_some_and(|l| l == slot || (self.nodes[l].agent_runs() && self.net.open(Plane::Peer, l, slot)));
        if !reachable {
            return;
        }
        let now = self.nodes[slot].clock(self.now);
        let agent = &mut self.nodes[slot].agent;
        let (epoch, phase, change) = (agent.state.epoch, agent.state.phase, agent.state.change);
        for entry in &self.raft.log[agent.applied..] {
            // The outcome was judged at the commit; every member computes the same.
            drop(self.core.apply(&mut agent.state, entry));
            agent.watch.applied(agent.state.lease, now);
        }
        agent.applied = self.raft.log.len();
        agent.durable = agent.durable.max(agent.applied);
        if (agent.state.epoch, agent.state.phase, agent.state.change) != (epoch, phase, change) {
            agent.view.phase_since = now;
        }
        if agent.applied - agent.snapshot.0 > 60 {
            agent.snapshot = (agent.applied, agent.state.clone());
        }
        let agent = &self.nodes[slot].agent;
        let differs = agent.applied.is_multiple_of(16) && agent.state != self.raft.truth;
        if differs {
            self.violate("apply", || "two members computed different states from one log".into());
        }
        self.wake(slot, 0);
    }

    /// A leader that restarts is a follower.
    pub fn leader_died(&mut self, slot: Slot) {
        if self.raft.leader == Some(slot) {
            self.raft.leader = None;
        }
        self.consensus_disturbed();
    }

    /// Somebody died, froze, or lost a link: is the leader still one?
    pub fn consensus_disturbed(&mut self) {
        if !self.raft.check_scheduled {
            self.raft.check_scheduled = true;
            let delay = self.took(800, 2_000);
            self.after(delay, Event::CheckLeader);
        }
    }

    pub fn check_leader(&mut self) {
        self.raft.check_scheduled = false;
        let old = self.raft.leader;
        if old.is_some_and(|l| self.leads_majority(l)) {
            return;
        }
        let able: Vec<Slot> =
            (0..self.nodes.len()).filter(|s| self.leads_majority(*s) && self.nodes[*s].agent.durable == self.raft.log.len()).collect();
        if able.is_empty() {
            self.raft.check_scheduled = true;
            self.after(500, Event::CheckLeader);
            return;
        }
        let new = if self.cfg.scripted { able[0] } else { self.rng.pick(&able) };
        self.install_leader(new);
    }

    /// `new` won an election of the consensus group.
    pub fn install_leader(&mut self, new: Slot) {
        if let Some(old) = self.raft.leader.filter(|old| *old != new) {
            let (gen_, delay) = (self.nodes[old].agent.gen_, self.took(300, 3_000));
            self.after(delay, Event::StepDown { slot: old, gen_ });
        }
        let pending = std::mem::take(&mut self.raft.pending);
        for entry in pending {
            if !entry.holders.contains(&new) || self.rng.chance(400) {
                break;
            }
            self.raft.pending.push(entry);
        }
        self.raft.leader = Some(new);
        self.nodes[new].agent.leads = true;
        let line = format!("{} leads the consensus group", self.name(new));
        self.note(new as u64, || line);
        self.schedule_commit(10);
        for slot in 0..self.nodes.len() {
            self.schedule_apply(slot);
        }
        self.wake(new, 5);
    }
}
