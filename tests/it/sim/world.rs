//! The world: datacenters, a network, a consensus log, an event heap, and one thread of time.
//!
//! Every event is handled to its end before the next; whatever takes time is another event. Nothing here iterates over
//! hashes or reads a clock, so that a seed replays bit for bit.

use super::config::Config;
use super::core::Core;
use super::faults::Undo;
use super::net::Net;
use super::node::{Node, Slot, Time};
use super::oracle::{Oracle, Violation};
use super::raft::Raft;
use super::rng::Rng;
use super::trace::Trace;
use super::wal::{Tip, Wal};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use trilithon::cluster::{MemberKind, Outcome};
use trilithon::ha::NodeObservation;
use trilithon::types::{Millis, NodeId};

/// What can happen.
#[derive(Clone, Debug)]
pub enum Event {
    // ---- agent
    Tick {
        slot: Slot,
        gen_: u32,
    },
    Wake {
        slot: Slot,
        gen_: u32,
    },
    /// The holder's timer: the fencing margin before its lease's deadline.
    Fence {
        slot: Slot,
        gen_: u32,
    },
    ActionDone {
        slot: Slot,
        token: u64,
    },
    Observe {
        slot: Slot,
        gen_: u32,
        observation: Box<NodeObservation>,
    },
    Apply {
        slot: Slot,
        gen_: u32,
    },
    Answer {
        slot: Slot,
        gen_: u32,
        id: u64,
        outcome: Box<Outcome>,
    },
    StepDown {
        slot: Slot,
        gen_: u32,
    },
    Propose {
        slot: Slot,
        id: u64,
    },
    // ---- consensus
    Commit,
    CheckLeader,
    // ---- Postgres
    Ready {
        slot: Slot,
        inc: u32,
    },
    Flush {
        slot: Slot,
        inc: u32,
        end: u64,
    },
    Connect {
        slot: Slot,
        inc: u32,
    },
    Deliver {
        slot: Slot,
        conn: u64,
        tip: Tip,
    },
    Ack {
        slot: Slot,
        conn: u64,
        flushed: u64,
    },
    SenderGone {
        slot: Slot,
        conn: u64,
    },
    ReceiverGone {
        slot: Slot,
        conn: u64,
    },
    // ---- outside
    Client,
    Burst {
        slot: Slot,
    },
    Admin,
    AdminRetry {
        index: usize,
    },
    Admit {
        slot: Slot,
    },
    Fault,
    Undo(Box<Undo>),
}

/// A proposal on its way, and where its answer goes.
#[derive(Clone, Debug)]
pub struct Flight {
    pub slot: Slot,
    pub gen_: u32,
    pub sent: Millis,
    pub proposal: trilithon::cluster::Proposal,
}

struct Scheduled {
    at: Time,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    pub cfg: Config,
    pub now: Time,
    pub rng: Rng,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub raft: Raft,
    pub wal: Wal,
    pub oracle: Oracle,
    pub core: Core,
    pub trace: Trace,
    pub flights: BTreeMap<u64, Flight>,
    pub slot_of: BTreeMap<NodeId, Slot>,
    pub violation: Option<Violation>,
    pub events: u64,
    pub faults_on: bool,
    pub admin: super::admin::Admin,
    heap: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    ids: u64,
}

impl World {
    /// A world at its beginning: machines on, no database, no cluster.
    pub fn new(cfg: Config, text: bool) -> World {
        let mut rng = Rng::new(cfg.seed);
        let drift = cfg.settings.clock_drift_permille;
        let nodes: Vec<Node> = (0..cfg.data + cfg.witnesses)
            .map(|slot| {
                let kind = if slot < cfg.data { MemberKind::Data } else { MemberKind::Witness };
                let rate = if cfg.scripted { 1_000 } else { rng.pick(&[1_000 - drift, 1_000, 1_000 + drift]) };
                let offset = if cfg.scripted { 0 } else { rng.range(1_000_000_000, 2_000_000_000) };
                Node::new(NodeId(slot as u64 + 1), format!("dc{}", slot + 1), kind, rate, offset)
            })
            .collect();
        let count = nodes.len();
        let mut world = World {
            core: Core { mutant: cfg.mutant },
            now: 0,
            net: Net::new(count),
            raft: Raft::new(nodes.iter().map(|n| n.id).collect()),
            slot_of: nodes.iter().enumerate().map(|(s, n)| (n.id, s)).collect(),
            nodes,
            wal: Wal::default(),
            oracle: Oracle::default(),
            trace: Trace::new(text),
            flights: BTreeMap::new(),
            violation: None,
            events: 0,
            faults_on: false,
            admin: super::admin::Admin::default(),
            heap: BinaryHeap::new(),
            order: 0,
            ids: 0,
            rng,
            cfg,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for slot in 0..self.nodes.len() {
            self.boot_agent(slot, 1 + slot as u64);
        }
        self.elect_first_leader();
        if self.cfg.write_gap > 0 {
            self.after(1_000, Event::Client);
        }
        if self.cfg.admin_gap > 0 {
            let gap = self.rng.gap(self.cfg.admin_gap);
            self.after(30_000 + gap, Event::Admin);
        }
        if self.cfg.fault_gap > 0 {
            self.faults_on = true;
            self.after(15_000, Event::Fault);
        }
    }

    /// Schedule `event` after `delay` milliseconds.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.heap.push(Reverse(Scheduled { at: self.now + delay, order: self.order, event }));
    }

    /// A number nobody else has: proposals, connections, actions.
    pub fn fresh_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// A duration: random, or a fixed point of the range in transcripts.
    pub fn took(&mut self, low: u64, high: u64) -> u64 {
        if self.cfg.scripted { low + (high - low) / 4 } else { self.rng.range(low, high) }
    }

    /// Something fails by chance; never in transcripts.
    pub fn unlucky(&mut self, permille: u64) -> bool {
        !self.cfg.scripted && self.rng.chance(permille)
    }

    /// One way through the network.
    pub fn latency(&mut self, from: Slot, to: Slot) -> u64 {
        if from == to {
            return 0;
        }
        let (low, high) = self.cfg.latency;
        self.took(low, high)
    }

    /// Handle everything up to `until`, or up to the first violation.
    pub fn run_until(&mut self, until: Time) {
        while self.violation.is_none() {
            match self.heap.peek() {
                Some(Reverse(next)) if next.at <= until => {}
                Some(_) | None => break,
            }
            let Some(Reverse(next)) = self.heap.pop() else { break };
            self.now = next.at;
            self.events += 1;
            self.handle(next.event);
        }
        self.now = self.now.max(until);
    }

    /// An event for a stopped process waits in its inbox; one for a dead process is void.
    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { slot, gen_ }
            | Event::Wake { slot, gen_ }
            | Event::Fence { slot, gen_ }
            | Event::Observe { slot, gen_, .. }
            | Event::Apply { slot, gen_ }
            | Event::Answer { slot, gen_, .. }
            | Event::StepDown { slot, gen_ } => {
                let node = &mut self.nodes[slot];
                if !node.powered || !node.agent.up || node.agent.gen_ != gen_ {
                    return;
                }
                if node.agent.frozen.is_some() {
                    node.agent.inbox.push(event);
                    return;
                }
                self.handle_agent(slot, event);
            }
            Event::Propose { slot, .. } if self.nodes[slot].agent.frozen.is_some() => self.nodes[slot].agent.inbox.push(event),
            Event::Propose { slot, id } => self.proposal_arrived(slot, id),
            Event::ActionDone { slot, token } => self.action_due(slot, token),
            Event::Ready { slot, .. }
            | Event::Flush { slot, .. }
            | Event::Connect { slot, .. }
            | Event::Deliver { slot, .. }
            | Event::Ack { slot, .. }
            | Event::SenderGone { slot, .. }
            | Event::ReceiverGone { slot, .. } => {
                let node = &mut self.nodes[slot];
                if !node.powered || !node.pg.is_up() {
                    return;
                }
                if node.pg.frozen.is_some() {
                    node.pg.inbox.push(event);
                    return;
                }
                self.handle_postgres(event);
            }
            Event::Commit => self.try_commit(),
            Event::CheckLeader => self.check_leader(),
            Event::Client => self.client(),
            Event::Burst { slot } => self.burst(slot),
            Event::Admin => self.administrator(),
            Event::AdminRetry { index } => self.admin_send(index),
            Event::Admit { slot } => self.ask_admission(slot),
            Event::Fault => self.next_fault(),
            Event::Undo(undo) => self.undo(*undo),
        }
    }

    fn handle_agent(&mut self, slot: Slot, event: Event) {
        match event {
            Event::Tick { .. } => self.tick(slot),
            Event::Wake { .. } => {
                self.nodes[slot].agent.wake_scheduled = false;
                self.step(slot);
            }
            Event::Fence { .. } => self.step(slot),
            Event::Observe { observation, .. } => self.observed(slot, *observation),
            Event::Apply { .. } => self.apply_committed(slot),
            Event::Answer { id, outcome, .. } => self.answered(slot, id, *outcome),
            Event::StepDown { .. } => self.nodes[slot].agent.leads &= self.raft.leader == Some(slot),
            _other => {}
        }
    }

    fn handle_postgres(&mut self, event: Event) {
        match event {
            Event::Ready { slot, inc } => self.recovered(slot, inc),
            Event::Flush { slot, inc, end } => self.flushed(slot, inc, end),
            Event::Connect { slot, inc } => self.connect(slot, inc),
            Event::Deliver { slot, conn, tip } => self.deliver(slot, conn, tip),
            Event::Ack { slot, conn, flushed } => self.acknowledged(slot, conn, flushed),
            Event::SenderGone { slot, conn } => self.sender_gone(slot, conn),
            Event::ReceiverGone { slot, conn } => self.receiver_gone(slot, conn),
            _other => {}
        }
    }

    /// A line for people, and a number for the hash.
    pub fn note(&mut self, mix: u64, line: impl FnOnce() -> String) {
        self.trace.mix(self.now);
        self.trace.mix(mix);
        self.trace.note(self.now, line);
    }

    pub fn name(&self, slot: Slot) -> &str {
        &self.nodes[slot].name
    }
}
