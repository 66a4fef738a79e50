//! What goes wrong: a fault, a target, and the moment it ends.

use super::net::Plane;
use super::node::{Node, Slot};
use super::world::{Event, World};
use std::collections::BTreeSet;
use trilithon::cluster::{Command, MemberKind, Proposal};
use trilithon::types::{Epoch, NodeId};

/// How a fault ends.
#[derive(Clone, Debug)]
pub enum Undo {
    Mend(Vec<(Plane, Slot, Slot)>),
    StartAgent(Slot),
    PowerOn(Slot),
    Thaw { slot: Slot, agent: bool, postgres: bool, unseen: bool },
    Lag(Slot),
    CrashOthers(Slot),
    PowerOff(Slot),
    Strike(Slot),
}

const BOTH: [Plane; 2] = [Plane::Peer, Plane::Postgres];

impl World {
    pub fn next_fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let gap = self.rng.gap(self.cfg.fault_gap);
        self.after(gap, Event::Fault);
        if self.raft.truth.history.iter().all(|h| !h.settled) {
            return;
        }
        let slot = self.target();
        let wipe = self.cfg.wipes && self.rng.chance(60);
        let unseen = self.cfg.unseen_pauses && self.rng.chance(300);
        self.disturb();
        if wipe && self.wipe_is_survivable(slot) {
            return self.wipe(slot);
        }
        match self.rng.below(25) {
            0 | 1 => self.kill_postgres(slot),
            2 => self.kill_agent_for_a_while(slot),
            3 => {
                self.kill_postgres(slot);
                self.kill_agent_for_a_while(slot);
            }
            4 | 5 => self.power_cycle(slot),
            6 => {
                // Everything at once, returning one at a time.
                for other in 0..self.nodes.len() {
                    self.power_cycle(other);
                }
            }
            7 => self.freeze_for_a_while(slot, true, false, false),
            8 => self.freeze_for_a_while(slot, false, true, false),
            9 | 10 => self.freeze_for_a_while(slot, true, true, unseen),
            11 | 12 => self.isolate_for_a_while(slot, &BOTH),
            13 => self.isolate_for_a_while(slot, &[Plane::Peer]),
            14 => self.isolate_for_a_while(slot, &[Plane::Postgres]),
            15 => self.one_way(slot),
            16 => self.cut_one_link(slot),
            17 => self.split(),
            18 => {
                self.nodes[slot].apply_lag = self.rng.range(500, 12_000);
                let length = self.fault_length();
                self.after(length, Event::Undo(Box::new(Undo::Lag(slot))));
            }
            19 => self.deaf_standby(),
            20 => self.lag_then_crash(),
            21 => self.restart_others(),
            22 => self.long_tail_returns(),
            23 => self.restart_isolated(),
            _transfer => {
                if self.leads_majority(slot) && self.nodes[slot].agent.durable == self.raft.log.len() {
                    self.install_leader(slot);
                }
            }
        }
    }

    /// The primary, the consensus leader, or anybody.
    fn target(&mut self) -> Slot {
        let primary = self.raft.truth.primary().and_then(|p| self.slot_of.get(&p).copied());
        match (self.rng.below(10), primary, self.raft.leader) {
            (0..4, Some(slot), _) | (4..6, _, Some(slot)) => slot,
            (_, _, _) => self.rng.below(self.nodes.len() as u64) as Slot,
        }
    }

    fn fault_length(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.range(50, 1_000),
            1 | 2 => self.rng.range(1_000, 15_000),
            _long => self.rng.range(15_000, 60_000),
        }
    }

    pub fn disturb(&mut self) {
        self.oracle.healthy_since = None;
        self.oracle.disturbed_at = self.now;
    }

    fn say(&mut self, slot: Slot, what: &str) {
        let line = format!("FAULT {} {what}", self.name(slot));
        self.note(slot as u64 + 500, || line);
    }

    // ---- processes and machines

    pub fn kill_postgres(&mut self, slot: Slot) {
        self.say(slot, "postgres is killed");
        self.crash_postgres(slot);
        self.wake(slot, 5);
    }

    fn kill_agent_for_a_while(&mut self, slot: Slot) {
        self.kill_agent(slot);
        let length = self.fault_length().min(20_000);
        self.after(length, Event::Undo(Box::new(Undo::StartAgent(slot))));
    }

    pub fn kill_agent(&mut self, slot: Slot) {
        if !self.nodes[slot].agent.up {
            return;
        }
        self.say(slot, "agent is killed");
        self.break_off(slot);
        let node = &mut self.nodes[slot];
        node.agent.forget();
        // A copy or a rewind is the agent's child and ends with it; the directory stays poisoned.
        node.pg.replacing = None;
        self.leader_died(slot);
    }

    /// An action is cut short. A promotion may have begun on disk.
    fn break_off(&mut self, slot: Slot) {
        use trilithon::ha::Action;
        let Some(running) = self.nodes[slot].agent.action.take() else { return };
        let ready = self.nodes[slot].pg.runs_as_standby() && self.nodes[slot].pg.receiver.is_none();
        if let Action::Promote { epoch, timeline, rule } = running.action
            && ready
            && self.rng.chance(500)
        {
            self.become_primary(slot, epoch, timeline, &rule);
        }
        if self.nodes[slot].pg.proc == super::node::Proc::Stopping {
            self.crash_postgres(slot);
        }
    }

    fn power_cycle(&mut self, slot: Slot) {
        self.power_off(slot);
        let length = self.fault_length();
        self.after(length, Event::Undo(Box::new(Undo::PowerOn(slot))));
    }

    pub fn power_off(&mut self, slot: Slot) {
        if !self.nodes[slot].powered {
            return;
        }
        self.say(slot, "loses power");
        self.break_off(slot);
        self.nodes[slot].powered = false;
        self.crash_postgres(slot);
        let node = &mut self.nodes[slot];
        node.agent.forget();
        node.pg.replacing = None;
        self.leader_died(slot);
    }

    pub fn power_on(&mut self, slot: Slot) {
        let node = &mut self.nodes[slot];
        if !node.powered {
            node.powered = true;
            node.booted = self.now;
        }
    }

    fn freeze_for_a_while(&mut self, slot: Slot, agent: bool, postgres: bool, unseen: bool) {
        self.freeze(slot, agent, postgres);
        // About as long as a lease is where it hurts most.
        let ttl = self.cfg.settings.lease_ttl_ms;
        let length = if self.rng.chance(400) { self.rng.range(ttl * 7 / 10, ttl * 16 / 10) } else { self.fault_length() };
        self.after(length, Event::Undo(Box::new(Undo::Thaw { slot, agent, postgres, unseen })));
    }

    pub fn freeze(&mut self, slot: Slot, agent: bool, postgres: bool) {
        self.say(
            slot,
            match (agent, postgres) {
                (true, true) => "is frozen",
                (true, false) => "agent is frozen",
                (false, _) => "postgres is frozen",
            },
        );
        let now = self.now;
        let node = &mut self.nodes[slot];
        if agent && node.agent.up {
            node.agent.frozen.get_or_insert(now);
            self.consensus_disturbed();
        }
        let node = &mut self.nodes[slot];
        if postgres && node.pg.is_up() {
            node.pg.frozen.get_or_insert(now);
        }
    }

    // ---- several at once

    /// The primary's agent stops while its Postgres goes on, and one standby hears of nothing.
    fn deaf_standby(&mut self) {
        let Some((primary, standby)) = self.primary_and_another() else { return };
        self.freeze(primary, true, false);
        let links: Vec<_> = (0..self.nodes.len()).filter(|o| *o != standby).map(|o| (Plane::Peer, o, standby)).collect();
        self.cut(&links);
        let length = self.cfg.settings.lease_wait().as_millis() as u64 + self.rng.range(1_000, 6_000);
        self.after(length, Event::Undo(Box::new(Undo::Thaw { slot: primary, agent: true, postgres: false, unseen: false })));
        self.after(length, Event::Undo(Box::new(Undo::Mend(links))));
    }

    /// The holder's process stops just before it reads that its lease was renewed, and wakes alone.
    pub fn freeze_before_the_answer(&mut self, slot: Slot) {
        if !self.faults_on || self.cfg.fault_gap == 0 || !self.rng.chance(2) {
            return;
        }
        self.disturb();
        self.freeze(slot, true, false);
        self.isolate_for_a_while(slot, &[Plane::Peer]);
        let length = self.rng.range(100, self.cfg.settings.lease_ttl_ms * 12 / 10);
        self.after(length, Event::Undo(Box::new(Undo::Thaw { slot, agent: true, postgres: false, unseen: false })));
    }

    /// One standby falls behind, then every other Postgres crashes.
    fn lag_then_crash(&mut self) {
        let Some((primary, standby)) = self.primary_and_another() else { return };
        self.cut_for_a_while(vec![(Plane::Postgres, primary, standby), (Plane::Postgres, standby, primary)], "lag");
        let delay = self.rng.range(500, 4_000);
        self.after(delay, Event::Undo(Box::new(Undo::CrashOthers(standby))));
    }

    /// A primary writes a tail that nobody confirms, dies, and comes back into the election after the next.
    fn long_tail_returns(&mut self) {
        let Some((primary, _)) = self.primary_and_another() else { return };
        let others = (0..self.nodes.len()).filter(|o| *o != primary);
        let links: Vec<_> = others.flat_map(|o| [(Plane::Postgres, primary, o), (Plane::Postgres, o, primary)]).collect();
        self.cut(&links);
        let (tail, away) = (self.rng.range(1_000, 8_000), self.cfg.settings.lease_ttl_ms + self.rng.range(500, 4_000));
        self.after(tail, Event::Undo(Box::new(Undo::PowerOff(primary))));
        self.after(tail + 1, Event::Undo(Box::new(Undo::Mend(links))));
        self.after(tail + away, Event::Undo(Box::new(Undo::PowerOn(primary))));
        let again = tail + away + self.rng.range(50, 1_500);
        self.after(again, Event::Undo(Box::new(Undo::CrashOthers(primary))));
    }

    /// The primary's process starts anew while nobody hears it.
    fn restart_isolated(&mut self) {
        let Some((primary, _)) = self.primary_and_another() else { return };
        self.isolate_for_a_while(primary, &[Plane::Peer]);
        self.kill_agent(primary);
        let length = self.rng.range(20, self.cfg.settings.lease_ttl_ms);
        self.after(length, Event::Undo(Box::new(Undo::StartAgent(primary))));
    }

    /// Trouble aimed at a change that is under way: at the new primary, at the old one.
    pub fn aim(&mut self, command: &Command) {
        let at = match command {
            Command::Elect { candidate, .. } => Some(*candidate),
            Command::StartDrain { from, to } => Some(if self.rng.chance(500) { *from } else { *to }),
            Command::ProposeRule { rule } | Command::SettleRule { rule, .. } => Some(rule.primary),
            Command::BeginElection { .. } => self.raft.truth.election.and_then(|e| e.from),
            _calm => None,
        };
        let Some(slot) = at.and_then(|n| self.slot_of.get(&n).copied()) else { return };
        if matches!(command, Command::StartDrain { .. }) && self.cfg.write_gap > 0 {
            let length = self.cfg.latency.1 * 2;
            for delay in [0, length / 2, length, length * 2] {
                self.after(delay, Event::Burst { slot });
            }
        }
        if self.faults_on && self.cfg.fault_gap < 20_000 && self.rng.chance(150) {
            let delay = self.rng.range(0, 1_500);
            self.after(delay, Event::Undo(Box::new(Undo::Strike(slot))));
        }
    }

    fn strike(&mut self, slot: Slot) {
        self.disturb();
        match self.rng.below(5) {
            0 => self.kill_postgres(slot),
            1 => self.power_cycle(slot),
            2 => self.kill_agent_for_a_while(slot),
            3 => self.freeze_for_a_while(slot, true, true, false),
            _cut => self.isolate_for_a_while(slot, &BOTH),
        }
    }

    /// Impolite clients do not wait for the end of a drain.
    pub fn burst(&mut self, slot: Slot) {
        for _write in 0..3 {
            self.write(slot, 80, false);
        }
    }

    /// Every process but the primary's starts anew.
    fn restart_others(&mut self) {
        let Some((primary, _)) = self.primary_and_another() else { return };
        for slot in (0..self.nodes.len()).filter(|s| *s != primary) {
            self.kill_agent(slot);
            let length = self.rng.range(20, 600);
            self.after(length, Event::Undo(Box::new(Undo::StartAgent(slot))));
        }
    }

    fn primary_and_another(&mut self) -> Option<(Slot, Slot)> {
        let primary = self.raft.truth.primary().and_then(|p| self.slot_of.get(&p).copied())?;
        let others: Vec<Slot> = (0..self.nodes.len()).filter(|s| *s != primary && self.nodes[*s].kind == MemberKind::Data).collect();
        Some((primary, self.rng.pick(&others)))
    }

    // ---- links

    fn isolate_for_a_while(&mut self, slot: Slot, planes: &[Plane]) {
        let others = (0..self.nodes.len()).filter(|o| *o != slot);
        let links = others.flat_map(|o| planes.iter().flat_map(move |p| [(*p, slot, o), (*p, o, slot)])).collect();
        self.cut_for_a_while(links, "isolate");
    }

    fn one_way(&mut self, slot: Slot) {
        let outward = self.rng.chance(500);
        let others = (0..self.nodes.len()).filter(|o| *o != slot);
        let links = others.flat_map(|o| BOTH.map(|p| if outward { (p, slot, o) } else { (p, o, slot) })).collect();
        self.cut_for_a_while(links, "one way");
    }

    fn cut_one_link(&mut self, slot: Slot) {
        let other = self.rng.below(self.nodes.len() as u64) as Slot;
        let links = BOTH.iter().flat_map(|p| [(*p, slot, other), (*p, other, slot)]).collect();
        self.cut_for_a_while(links, "one link");
    }

    fn split(&mut self) {
        let side: Vec<bool> = (0..self.nodes.len()).map(|_| self.rng.chance(500)).collect();
        let mut links = Vec::new();
        for a in 0..side.len() {
            for b in (0..side.len()).filter(|b| side[a] != side[*b]) {
                links.extend(BOTH.map(|p| (p, a, b)));
            }
        }
        self.cut_for_a_while(links, "split");
    }

    fn cut_for_a_while(&mut self, links: Vec<(Plane, Slot, Slot)>, what: &str) {
        let length = self.fault_length();
        let line = format!("FAULT cut ({what}) for {length} ms: {links:?}");
        self.note(length, || line);
        self.cut(&links);
        self.after(length, Event::Undo(Box::new(Undo::Mend(links))));
    }

    pub fn cut(&mut self, links: &[(Plane, Slot, Slot)]) {
        for (plane, from, to) in links {
            self.net.cut(*plane, *from, *to);
        }
        self.consensus_disturbed();
    }

    // ---- disks

    /// Would what is left hold every acknowledged write, and be able to elect and to agree?
    fn wipe_is_survivable(&self, slot: Slot) -> bool {
        let others = || self.nodes.iter().enumerate().filter(|(s, _)| *s != slot);
        let good = |n: &Node| self.whole_copy(n).is_some_and(|t| self.oracle.acked.is_none_or(|a| self.wal.contains(t, a)));
        let whole = others().all(|(_, n)| n.powered && n.agent.up && n.agent.durable == self.raft.log.len());
        let left: BTreeSet<NodeId> = others().filter(|(_, n)| n.kind == MemberKind::Witness || good(n)).map(|(_, n)| n.id).collect();
        let known = self.nodes.iter().all(|n| self.raft.voters.contains(&n.id));
        let steady = matches!(self.raft.truth.phase, trilithon::cluster::Phase::Steady { .. });
        whole && known && steady && left.len() + 1 == self.nodes.len() && self.raft.truth.rules.iter().all(|r| r.covered_by(&left))
    }

    /// The disk is lost; the datacenter comes back empty, with its old name, and asks to be admitted under a new id.
    pub fn wipe(&mut self, slot: Slot) {
        self.power_off(slot);
        self.say(slot, "has lost its disk");
        let node = &mut self.nodes[slot];
        let id = node.id;
        *node = Node {
            powered: false,
            clock_rate: node.clock_rate,
            ..Node::new(NodeId(0), node.name.clone(), node.kind, 1_000, node.clock_offset)
        };
        node.agent.up = false;
        // Timers of the process that is gone must stay void.
        node.agent.gen_ = 1_000_000 + self.now as u32;
        node.pg.inc = 1_000_000 + self.now as u32;
        node.agent.disk_promise = Epoch(0);
        self.slot_of.remove(&id);
        let length = self.fault_length();
        self.after(length, Event::Admit { slot });
    }

    /// The empty datacenter asks whoever leads to admit it.
    pub fn ask_admission(&mut self, slot: Slot) {
        if self.nodes[slot].id != NodeId(0) {
            return;
        }
        self.power_on(slot);
        self.after(5_000, Event::Admit { slot });
        let Some(leader) = self.raft.leader.filter(|l| self.leads_majority(*l)) else { return };
        let member = self.member_of(self.nodes[slot].name.clone(), self.nodes[slot].kind);
        let replaces = self.raft.truth.find(member.name.as_str()).map(|(n, _)| n);
        self.propose(leader, Proposal { expect: None, request: None, command: Command::AdmitMember { member, replaces } });
    }

    // ---- ends

    pub fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Mend(links) => {
                for (plane, from, to) in links {
                    self.net.mend(plane, from, to);
                }
                self.note(1, || "links mended".into());
                self.network_healed();
                self.consensus_disturbed();
            }
            Undo::StartAgent(slot) => self.start_agent(slot),
            Undo::PowerOn(slot) => {
                self.power_on(slot);
                self.start_agent(slot);
            }
            Undo::Thaw { slot, agent, postgres, unseen } => self.thaw(slot, agent, postgres, unseen),
            Undo::Lag(slot) => self.nodes[slot].apply_lag = 0,
            Undo::CrashOthers(_) | Undo::PowerOff(_) | Undo::Strike(_) if !self.faults_on => {}
            Undo::CrashOthers(spared) => (0..self.nodes.len()).filter(|s| *s != spared).for_each(|slot| self.kill_postgres(slot)),
            Undo::PowerOff(slot) => self.power_off(slot),
            Undo::Strike(slot) => self.strike(slot),
        }
    }

    pub fn start_agent(&mut self, slot: Slot) {
        let node = &self.nodes[slot];
        if node.powered && !node.agent.up && node.id != NodeId(0) {
            let line = format!("{} starts", node.name);
            self.note(slot as u64, || line);
            self.boot_agent(slot, 20);
        }
    }

    pub fn thaw(&mut self, slot: Slot, agent: bool, postgres: bool, unseen: bool) {
        let now = self.now;
        let line = format!("{} thaws", self.name(slot));
        self.note(slot as u64, || line);
        let node = &mut self.nodes[slot];
        let mut events = Vec::new();
        if let Some(since) = node.agent.frozen.filter(|_| agent) {
            if unseen {
                node.booted += now - since;
            }
            node.agent.frozen = None;
            node.agent.thawed = now;
            events.append(&mut node.agent.inbox);
        }
        if postgres {
            if node.pg.frozen.is_some() {
                node.pg.thawed = now;
            }
            node.pg.frozen = None;
            events.append(&mut node.pg.inbox);
        }
        // Sockets and timers keep their order.
        for (index, event) in events.into_iter().enumerate() {
            self.after(index as u64 / 2, event);
        }
        let gen_ = self.nodes[slot].agent.gen_;
        let delay = self.took(0, 500);
        self.after(delay, Event::StepDown { slot, gen_ });
        self.pump(slot);
        self.wake(slot, 10);
    }

    /// Everything is repaired: links, power, processes. What is left to do, the cluster must do itself.
    pub fn heal(&mut self) {
        self.faults_on = false;
        self.note(2, || "HEAL".into());
        self.net.mend_all();
        for slot in 0..self.nodes.len() {
            self.nodes[slot].apply_lag = 0;
            self.thaw(slot, true, true, false);
            if self.nodes[slot].id == NodeId(0) {
                self.after(10, Event::Admit { slot });
            } else {
                self.power_on(slot);
                self.start_agent(slot);
            }
        }
        self.network_healed();
        self.consensus_disturbed();
    }
}
