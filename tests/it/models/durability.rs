//! INV-4, INV-5, INV-6: an acknowledged write survives every election, while rules change and nobody's clock can be trusted.
//!
//! The lease is no help here: the controller may call it expired at any moment, and its holder may believe in it for ever. A member may be
//! cut off from its peers (its word goes stale, then it is silent; it goes on with the state that it knows, and its replication goes on
//! too), its Postgres may crash, its disk may be lost. Every budget is small; within it, every order is tried.

use super::server::{Change, Postgres, Server, Wal};
use super::states::{Known, Plain, steady};
use super::{breaks, holds, large};
use crate::sim::core::Core;
use crate::sim::mutant::Mutant;
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use trilithon::cluster::{Command, Durability, Phase, Settings};
use trilithon::ha::{Action, NodeObservation, Seen, View};
use trilithon::types::{Epoch, Millis, NodeId};

/// What may still happen, each counted down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    writes: u8,
    cuts: u8,
    /// Cuts that are mended.
    heals: u8,
    crashes: u8,
    wipes: u8,
    /// Leases that end at their holder.
    leases: u8,
    /// Changes of the policy by an administrator.
    policies: u8,
    elections: u8,
}

/// How the peers hear of a member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Line {
    Open,
    /// Its last word before it was cut off.
    Stale(Box<Plain<NodeObservation>>),
    Silent,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    truth: Known,
    servers: Vec<Server>,
    lines: Vec<Line>,
    /// Longest WAL acknowledged, of which all earlier ones are beginnings; more than one only where something was lost.
    acked: Vec<Wal>,
    left: Budget,
}

#[derive(Clone, Debug, PartialEq)]
enum Act {
    Write(usize),
    Receive(usize),
    /// Its next step by `converge`.
    Step(usize, Action),
    /// All walsenders have the new names; a marker is written.
    Loaded(usize),
    /// The marker was acknowledged.
    Proved(usize),
    Cut(usize),
    Silence(usize),
    Heal(usize),
    Crash(usize),
    Wipe(usize),
    LeaseEnds(usize),
    Decide(Command),
    Policy(Durability),
}

struct Rules {
    members: u64,
    settings: Settings,
    budget: Budget,
    core: Core,
}

impl World {
    fn apply(&mut self, core: Core, command: Command) -> bool {
        let (truth, outcome) = self.truth.applied(core, command);
        self.truth = truth;
        for (server, line) in self.servers.iter_mut().zip(&self.lines) {
            if *line == Line::Open {
                server.known = self.truth.clone();
            }
        }
        outcome.is_ok()
    }

    fn hears(&self, one: usize, other: NodeId) -> bool {
        let open = |i: usize| self.lines[i] == Line::Open;
        open(one) && self.servers.iter().position(|s| s.me == other).is_some_and(open)
    }

    fn observations(&self, core: Core) -> BTreeMap<NodeId, Seen> {
        let heard = |(server, line): (&Server, &Line)| {
            let observation = match line {
                Line::Open => server.observation(core, self.truth.state(), &self.servers),
                Line::Stale(told) => told.0.clone(),
                Line::Silent => return None,
            };
            Some((server.me, Seen { at: NOW, observation }))
        };
        self.servers.iter().zip(&self.lines).filter_map(heard).collect()
    }

    /// Whatever may be acknowledged is, at once: nothing that happens later could make it safer.
    fn acknowledge(&mut self) {
        let new: Vec<Wal> = self.servers.iter().filter_map(|s| s.acknowledged(&self.servers)).collect();
        for wal in new {
            if !self.acked.iter().any(|known| known.starts_with(&wal)) {
                self.acked.retain(|known| !wal.starts_with(known));
                self.acked.push(wal);
            }
        }
    }

    fn primary(&self) -> Option<&Server> {
        let primary = self.truth.state().primary()?;
        self.servers.iter().find(|s| s.me == primary && s.postgres != Postgres::Absent)
    }

    /// P1: whoever is elected holds all that was ever acknowledged.
    fn primary_holds_what_was_acknowledged(&self) -> bool {
        self.primary().is_none_or(|p| self.acked.iter().all(|wal| p.wal.starts_with(wal)))
    }

    /// INV-4: no set of members that may elect lacks it. A copy that is gone for good neither elects nor lacks.
    fn whoever_may_elect_holds_it(&self) -> bool {
        let state = self.truth.state();
        self.acked.iter().all(|wal| {
            let lacks = |s: &&Server| s.postgres != Postgres::Absent && !s.wal.starts_with(wal);
            let lacking: BTreeSet<NodeId> = self.servers.iter().filter(lacks).map(|s| s.me).collect();
            let newest = self.servers.iter().filter(lacks).filter_map(Server::writer).max();
            let outlived = |i: usize| state.adopted.get(i).is_some_and(|a| Some(a.epoch) < newest);
            !state.rules.iter().enumerate().all(|(i, rule)| rule.covered_by(&lacking) || outlived(i))
        })
    }
}

/// Any instant far from the beginning.
const NOW: Millis = Millis(10_000_000);

impl Rules {
    /// Whatever the controller may decide: its lease watch and its patience have run out, or have only begun.
    fn decisions(&self, world: &World) -> Vec<Command> {
        let observations = world.observations(self.core);
        let mut commands = Vec::new();
        for (lease_seen, phase_since) in [(NOW, NOW), (NOW, Millis(0)), (Millis(0), NOW), (Millis(0), Millis(0))] {
            let mut view = View { now: NOW, observations: observations.clone(), lease_seen, phase_since, writable_last: Millis(0) };
            let decided = self.core.decide(world.truth.state(), &mut view).command;
            commands.extend(decided.filter(|c| !commands.contains(c)));
        }
        let begins = |c: &Command| matches!(c, Command::BeginElection { .. });
        commands.retain(|c| world.left.elections > 0 || !begins(c));
        commands
    }

    fn steps(&self, world: &World, acts: &mut Vec<Act>) {
        for (i, server) in world.servers.iter().enumerate() {
            let local = server.local(world.truth.state(), &world.servers, |peer| world.hears(i, peer));
            let Some(action) = self.core.converge(server.known.state(), &local).action else { continue };
            let under_way = matches!((&action, &server.change),
                (Action::ApplyRule { rule, .. }, Some(Change::Loading(r) | Change::Marked(r, _))) if r == rule);
            let with_others = matches!(action, Action::AcquireLease { .. } | Action::ReleaseLease { .. });
            if !under_way && (!with_others || world.lines[i] == Line::Open) {
                acts.push(Act::Step(i, action));
            }
        }
    }

    fn troubles(&self, world: &World, acts: &mut Vec<Act>) {
        let left = world.left;
        for (i, server) in world.servers.iter().enumerate() {
            match &world.lines[i] {
                Line::Open if left.cuts > 0 => acts.push(Act::Cut(i)),
                Line::Open => {}
                Line::Stale(_) => acts.push(Act::Silence(i)),
                Line::Silent => {}
            }
            if left.heals > 0 && world.lines[i] != Line::Open {
                acts.push(Act::Heal(i));
            }
            let runs = matches!(server.postgres, Postgres::Primary | Postgres::Standby);
            if left.crashes > 0 && runs {
                acts.push(Act::Crash(i));
            }
            if left.wipes > 0 && server.postgres != Postgres::Absent {
                acts.push(Act::Wipe(i));
            }
            if left.leases > 0 && server.lease.is_some() {
                acts.push(Act::LeaseEnds(i));
            }
            if left.writes > 0 && server.postgres == Postgres::Primary {
                acts.push(Act::Write(i));
            }
        }
        if left.policies > 0 {
            let other = if world.truth.state().settings.durability == Durability::All { Durability::Quorum } else { Durability::All };
            acts.push(Act::Policy(other));
        }
    }

    /// Carry out a step of `converge`, whole. What needs a source that is not there fails without effect.
    fn step(&self, world: &mut World, i: usize, action: Action) -> Option<()> {
        let source = |node: NodeId| {
            let found = world.servers.iter().find(|s| s.me == node && s.postgres == Postgres::Primary);
            found.map(|s| s.wal.clone())
        };
        let copied = match &action {
            Action::Rewind { primary } | Action::Clone { primary } => Some(source(*primary)?),
            _others => None,
        };
        let me = world.servers[i].me;
        let server = &mut world.servers[i];
        match action {
            Action::Promise { epoch } => server.promised = self.core.promised(server.promised, epoch),
            Action::Detach => server.following = None,
            Action::Demote => server.put(Postgres::Crashed),
            Action::Stop => server.put(Postgres::Stopped),
            Action::StartDetached => {
                server.following = None;
                server.put(Postgres::Standby);
            }
            Action::Follow { primary, epoch } => {
                server.following = Some((primary, epoch));
                server.put(Postgres::Standby);
            }
            Action::Rewind { .. } | Action::Clone { .. } => {
                server.wal = copied?;
                server.following = None;
                server.put(Postgres::Stopped);
            }
            Action::Promote { epoch, rule, .. } => {
                server.wal.push(epoch.0);
                server.following = None;
                server.put(Postgres::Primary);
                server.names = vec![rule];
            }
            Action::ApplyRule { rule, .. } => {
                if !self.core.proof_outlives_its_rule() {
                    server.settled = None;
                }
                server.names.push(rule.clone());
                server.change = Some(Change::Loading(rule));
            }
            Action::AcquireLease { epoch } => {
                let lease = world.truth.state().lease;
                let held = lease.holder == Some(me) && lease.epoch == epoch;
                let command = if held { Command::RenewLease { node: me, epoch } } else { Command::AcquireLease { node: me, epoch } };
                if world.apply(self.core, command) {
                    world.servers[i].lease = Some(epoch);
                }
            }
            Action::ReleaseLease { epoch } => {
                (server.lease, server.released) = (None, Some(epoch));
                world.apply(self.core, Command::ReleaseLease { node: me, epoch });
            }
            Action::InitDb | Action::Prepare { .. } | Action::Drain => return None,
        }
        Some(())
    }

    /// The names of a change are loaded, or its marker is acknowledged.
    fn change_rule(&self, world: &mut World, i: usize) {
        let server = &mut world.servers[i];
        let epoch = server.writer().unwrap_or_default();
        match server.change.take() {
            Some(Change::Loading(rule)) => {
                server.names = vec![rule.clone()];
                server.wal.push(epoch.0);
                if self.core.settles_without_marker() {
                    server.settled = Some((epoch, rule));
                } else {
                    server.change = Some(Change::Marked(rule, server.wal.len()));
                }
            }
            Some(Change::Marked(rule, _)) => server.settled = Some((epoch, rule)),
            None => {}
        }
    }

    fn strike(&self, world: &mut World, act: Act) {
        match act {
            Act::Cut(i) => {
                let told = world.servers[i].observation(self.core, world.truth.state(), &world.servers);
                world.lines[i] = Line::Stale(Box::new(Plain(told)));
                world.left.cuts -= 1;
            }
            Act::Silence(i) => world.lines[i] = Line::Silent,
            Act::Heal(i) => {
                world.left.heals -= 1;
                world.lines[i] = Line::Open;
                world.servers[i].known = world.truth.clone();
            }
            Act::Crash(i) => {
                world.servers[i].put(Postgres::Crashed);
                world.left.crashes -= 1;
            }
            Act::Wipe(i) => {
                let server = &mut world.servers[i];
                server.put(Postgres::Absent);
                (server.wal, server.following) = (Vec::new(), None);
                world.left.wipes -= 1;
            }
            Act::LeaseEnds(i) => {
                world.servers[i].lease = None;
                world.left.leases -= 1;
            }
            Act::Write(i) => {
                let writer = world.servers[i].writer().unwrap_or_default();
                world.servers[i].wal.push(writer.0);
                world.left.writes -= 1;
            }
            Act::Policy(durability) => {
                let settings = Settings { durability, ..world.truth.state().settings.clone() };
                world.apply(self.core, Command::Configure { settings: Box::new(settings) });
                world.left.policies -= 1;
            }
            Act::Receive(_) | Act::Step(..) | Act::Loaded(_) | Act::Proved(_) | Act::Decide(_) => {}
        }
    }
}

impl Model for Rules {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let truth = steady(self.members, self.settings.clone());
        let mut servers: Vec<Server> = (1..=self.members).map(|n| Server::new(NodeId(n), &truth)).collect();
        servers.iter_mut().for_each(|s| s.known = truth.clone());
        let lines = servers.iter().map(|_| Line::Open).collect();
        let mut world = World { truth, servers, lines, acked: Vec::new(), left: self.budget };
        world.acknowledge();
        vec![world]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        for (i, server) in world.servers.iter().enumerate() {
            let source = server.following.and_then(|(p, _)| world.servers.iter().find(|s| s.me == p));
            if source.is_some_and(|p| server.streams_from(p) && p.wal.len() > server.wal.len()) {
                acts.push(Act::Receive(i));
            }
            match &server.change {
                Some(Change::Loading(_)) => acts.push(Act::Loaded(i)),
                Some(Change::Marked(rule, length)) if server.confirmed(rule, *length, &world.servers) => acts.push(Act::Proved(i)),
                Some(Change::Marked(..)) | None => {}
            }
        }
        self.steps(world, acts);
        acts.extend(self.decisions(world).into_iter().map(Act::Decide));
        self.troubles(world, acts);
    }

    fn next_state(&self, last: &World, act: Act) -> Option<World> {
        let mut world = last.clone();
        match act {
            Act::Receive(i) => {
                let (primary, _) = world.servers[i].following?;
                let record = world.servers.iter().find(|s| s.me == primary)?.wal[world.servers[i].wal.len()];
                world.servers[i].wal.push(record);
            }
            Act::Step(i, action) => self.step(&mut world, i, action)?,
            Act::Loaded(i) | Act::Proved(i) => self.change_rule(&mut world, i),
            Act::Decide(command) => {
                world.left.elections -= u8::from(matches!(command, Command::BeginElection { .. }));
                world.apply(self.core, command);
            }
            trouble => self.strike(&mut world, trouble),
        }
        world.acknowledge();
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Rules>> {
        let mut properties = vec![
            Property::always("P1: the primary holds what was acknowledged", |_, w: &World| w.primary_holds_what_was_acknowledged()),
            Property::always("INV-4: whoever may elect holds it", |_, w: &World| w.whoever_may_elect_holds_it()),
            Property::sometimes(
                "another is elected and proves its rule",
                |_, w: &World| matches!(w.truth.state().phase, Phase::Steady { primary } if primary != NodeId(1)),
            ),
            Property::sometimes("two rules are in force at once", |_, w: &World| w.truth.state().rules.len() > 1),
            Property::sometimes("the second epoch acknowledges", |_, w: &World| {
                w.acked.iter().any(|wal| wal.last().is_some_and(|e| Epoch(*e) > Epoch(1)))
            }),
        ];
        if self.budget.wipes > 0 {
            properties.push(Property::sometimes("a lost disk is copied anew", |m: &Rules, w: &World| {
                w.left.wipes < m.budget.wipes && w.servers.iter().all(|s| s.postgres != Postgres::Absent)
            }));
        }
        properties
    }
}

fn model(budget: Budget, mutant: Option<Mutant>) -> Rules {
    Rules { members: 3, settings: Settings::default(), budget, core: Core { mutant } }
}

const NONE: Budget = Budget { writes: 0, cuts: 0, heals: 0, crashes: 0, wipes: 0, leases: 0, policies: 0, elections: 1 };
const WRITE: Budget = Budget { writes: 1, ..NONE };
const CUT: Budget = Budget { cuts: 1, ..NONE };
const POLICY: Budget = Budget { policies: 1, ..NONE };

/// A promotion and each change of a rule write records too, so that there is something to lose also without a client's write.
#[test]
fn an_acknowledged_write_survives_every_election_in_every_order() {
    holds("durability", "1 write, 1 election", model(WRITE, None));
    holds("durability", "1 cut, 1 election", model(CUT, None));
    holds("durability", "1 change of the policy, 1 election", model(POLICY, None));
    if large() {
        holds("durability", "1 cut that may be mended, 1 election", model(Budget { heals: 1, ..CUT }, None));
        holds("durability", "1 write, 1 cut, 1 election", model(Budget { writes: 1, ..CUT }, None));
        holds("durability", "1 write, 1 crash, 1 lease that ends, 1 election", model(Budget { crashes: 1, leases: 1, ..WRITE }, None));
        holds("durability", "1 write, 1 disk lost, 1 election", model(Budget { wipes: 1, ..WRITE }, None));
        holds("durability", "1 write, 2 elections", model(Budget { elections: 2, ..WRITE }, None));
    }
}

/// The negative control: each of these loses a write somewhere within bounds as small.
#[test]
fn seeded_bugs_of_durability_have_a_counterexample() {
    let small = Budget { writes: 1, ..CUT };
    let policy = Budget { writes: 1, ..POLICY };
    let hunts = [
        (Mutant::SkipTheSeal, small),
        (Mutant::CountAnyAsSealed, small),
        (Mutant::ReplaceRuleAtOnce, small),
        (Mutant::SettleWithoutMarker, small),
        (Mutant::CoverOnlyNewestRule, policy),
        (Mutant::WidenBeforeJoint, policy),
        (Mutant::NarrowBeforeJoint, small),
    ];
    for (mutant, budget) in hunts {
        let broken = breaks(model(budget, Some(mutant)));
        println!("{mutant:?}: {broken:?}");
        assert!(!broken.is_empty(), "{mutant:?} has no counterexample within {budget:?}");
    }
}
