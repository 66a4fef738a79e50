//! INV-9: nobody believes in a lease of an epoch that is over, whatever is late, lost or repeated, with clocks at the bounds of their drift.
//!
//! Two members: the primary, and one that watches it, decides, and takes over. True time goes in ticks; each member has a clock of its own
//! speed. A proposal is sent, applied and answered at any later tick, or lost; each member hears of what was applied when it likes. All of
//! it is the core's: the holder's and the watcher's arithmetic, `decide`, `converge`, `apply`.

use super::states::{Known, Plain, SYSTEM, steady};
use super::{breaks, holds, large};
use crate::sim::core::Core;
use crate::sim::mutant::Mutant;
use stateright::{Model, Property};
use trilithon::cluster::{Command, Phase, Proposal, Settings};
use trilithon::ha::{
    Action, HolderLease, LeaseBelief, LeaseWatch, LocalState, NodeObservation, PostgresFacts, PostgresState, Role, Seal, Seen, View,
};
use trilithon::types::{Epoch, Lsn, Millis, NodeId, WalPosition};

/// True milliseconds in a tick. The lease has three of them: coarse enough to try every order, fine enough for the drift to show.
const TICK: u64 = 100;
const TTL: u64 = 300;
/// ±20 %: the wait is ttl · 1.2 / 0.8 and a margin.
const DRIFT: u64 = 200;
/// Where all clocks begin.
const BEGIN: u64 = 1_000_000;

/// What may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    ticks: u8,
    sends: u8,
    restarts: u8,
    /// The lease is made shorter by an administrator.
    shorter: u8,
    elections: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Member {
    me: NodeId,
    /// Speed of its clock, in permille.
    rate: u64,
    known: Known,
    holder: HolderLease,
    watch: LeaseWatch,
    /// When it learned of the present epoch and phase.
    phase_since: Millis,
    promised: Epoch,
    serves: bool,
    following: bool,
    ended: Option<Epoch>,
    released: Option<Epoch>,
}

/// A proposal on its way, or the answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    from: usize,
    proposal: Plain<Proposal>,
    sent: Millis,
    accepted: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    truth: Known,
    members: Vec<Member>,
    flights: Vec<Flight>,
    left: Budget,
    expired: bool,
    given_back: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Act {
    Tick,
    /// The lease's timer: renew, or give back.
    Renew(usize),
    Fence(usize),
    Step(usize, Action),
    Decide(Command),
    Commit(usize),
    Answer(usize),
    Learn(usize),
    Restart(usize),
    Shorten,
}

struct Leases {
    rates: Vec<(u64, u64)>,
    budget: Budget,
    core: Core,
}

impl Member {
    fn new(me: u64, rate: u64, known: &Known) -> Member {
        let state = known.state();
        let serves = state.primary() == Some(NodeId(me));
        let mut member = Member {
            me: NodeId(me),
            rate,
            known: known.clone(),
            holder: HolderLease::default(),
            watch: LeaseWatch::default(),
            phase_since: Millis(BEGIN),
            promised: state.epoch,
            serves,
            following: !serves,
            ended: None,
            released: None,
        };
        member.watch.applied(state.lease, Millis(BEGIN));
        if serves {
            member.holder.renewed(state.epoch, Millis(BEGIN), &state.settings);
        }
        member
    }

    /// Its clock, while `left` ticks of `all` remain.
    fn now(&self, all: u8, left: u8) -> Millis {
        Millis(BEGIN + u64::from(all - left) * TICK * self.rate / 1_000)
    }

    /// The epoch of a lease that is not over by its own clock.
    fn believes(&self, now: Millis) -> Option<Epoch> {
        self.holder.deadline().filter(|(_, until)| *until > now).map(|(epoch, _)| epoch)
    }

    fn local(&self, belief: LeaseBelief) -> LocalState {
        let state = self.known.state();
        let role = if self.serves { Role::Primary } else { Role::Standby };
        // A primary that was stopped stays so: what happens to its data is the other model's matter.
        let stopped = !self.serves && !self.following;
        let postgres = PostgresFacts {
            state: if stopped && self.me == NodeId(1) { PostgresState::Stopped } else { PostgresState::Running },
            role: Some(role).filter(|_| !stopped || self.me != NodeId(1)),
            system: Some(SYSTEM),
            position: Some(END),
            ..PostgresFacts::default()
        };
        LocalState {
            me: self.me,
            promised: self.promised,
            postgres,
            following: self.following.then_some((NodeId(1), Epoch(1))),
            primary_of: self.serves.then_some(self.promised),
            settled: state.rules.last().map(|r| (state.epoch, r.clone())),
            lease: belief,
            released: self.released == Some(state.epoch),
            gave_up: self.ended,
            ..LocalState::default()
        }
    }
}

/// Where everybody's WAL ends.
const END: WalPosition = WalPosition { writer: Epoch(1), lsn: Lsn(2) };

impl Leases {
    fn now(&self, world: &World, i: usize) -> Millis {
        world.members[i].now(self.budget.ticks, world.left.ticks)
    }

    fn belief(&self, world: &World, i: usize) -> LeaseBelief {
        let member = &world.members[i];
        self.core.belief(&member.holder, self.now(world, i))
    }

    /// What the watcher would propose now. It hears no word of the primary, and both standbys have sealed whatever epoch it is.
    fn decision(&self, world: &World) -> Option<Command> {
        let watcher = &world.members[1];
        let state = watcher.known.state();
        let now = self.now(world, 1);
        let seen = |n: u64| {
            let postgres = PostgresFacts {
                state: PostgresState::Running,
                role: Some(Role::Standby),
                system: Some(SYSTEM),
                position: Some(END),
                ..PostgresFacts::default()
            };
            let seal = Some(Seal { epoch: state.epoch, end: END, ruined: false });
            let observation = NodeObservation { node: NodeId(n), promised: state.epoch, postgres, seal, ..NodeObservation::default() };
            (NodeId(n), Seen { at: now, observation })
        };
        let mut view = View {
            now,
            observations: [seen(2), seen(3)].into(),
            lease_seen: watcher.watch.since(now),
            phase_since: watcher.phase_since,
            writable_last: Millis(0),
        };
        let command = self.core.decide(state, &mut view).command?;
        let begins = matches!(command, Command::BeginElection { .. });
        (world.left.elections > 0 || !begins).then_some(command)
    }

    /// What the lease's own thread would send: it looks at the state, the belief, and whether the lease is being given back.
    fn renewal(&self, world: &World, i: usize) -> Option<Command> {
        let member = &world.members[i];
        let state = member.known.state();
        let (node, epoch) = (member.me, state.lease.epoch);
        let held = state.lease.holder == Some(node) && epoch == state.epoch;
        let released = member.released == Some(epoch) && !self.core.renews_after_release();
        match (held, released) {
            (true, true) => Some(Command::ReleaseLease { node, epoch }),
            (true, false) if member.ended == Some(epoch) && !self.core.renews_after_release() => None,
            (true, false) => Some(Command::RenewLease { node, epoch }),
            (false, true | false) => None,
        }
    }

    fn send(&self, world: &mut World, from: usize, command: Command, expect: bool) -> Option<()> {
        let revision = world.members[from].known.state().revision;
        let proposal = Plain(Proposal { expect: expect.then_some(revision), request: None, command });
        // Of a decision the moment does not matter: the revision does.
        let sent = if expect { Millis(0) } else { self.now(world, from) };
        let flight = Flight { from, proposal, sent, accepted: None };
        // The same thing said twice in one instant is said once.
        if world.flights.contains(&flight) {
            return None;
        }
        world.flights.push(flight);
        world.flights.sort_by_key(|f| (f.from, f.sent));
        Some(())
    }

    fn commit(&self, world: &mut World, flight: usize) {
        let proposal = world.flights[flight].proposal.0.clone();
        let before = world.truth.state();
        let holder = before.lease.holder;
        let (truth, outcome) = world.truth.proposed(self.core, &proposal);
        if outcome.is_ok() && matches!(proposal.command, Command::BeginElection { .. }) {
            world.left.elections = world.left.elections.saturating_sub(1);
            world.expired |= holder.is_some();
            world.given_back |= holder.is_none();
        }
        world.truth = truth;
        world.flights[flight].accepted = Some(outcome.is_ok());
        // Nobody waits for the word on a decision: the next one looks at the state.
        if proposal.expect.is_some() {
            world.flights.remove(flight);
        }
    }

    fn answered(&self, world: &mut World, flight: usize) {
        let Flight { from, proposal, sent, accepted } = world.flights.remove(flight);
        let now = self.now(world, from);
        let member = &mut world.members[from];
        let settings = member.known.state().settings.clone();
        let (renewed, epoch) = match proposal.0.command {
            Command::RenewLease { epoch, .. } | Command::AcquireLease { epoch, .. } => (true, epoch),
            Command::ReleaseLease { epoch, .. } => (false, epoch),
            _decisions => return,
        };
        let silent = member.released == Some(epoch) || member.ended == Some(epoch);
        if accepted == Some(true) && renewed && (!silent || self.core.renews_after_release()) {
            member.holder.renewed(epoch, self.core.lease_base(sent, now), &settings);
        }
    }

    fn learn(&self, world: &mut World, i: usize) {
        let now = self.now(world, i);
        let truth = world.truth.clone();
        let member = &mut world.members[i];
        let (before, after) = (member.known.state(), truth.state());
        if (before.epoch, before.phase) != (after.epoch, after.phase) {
            member.phase_since = now;
        }
        member.watch.applied(after.lease, now);
        member.known = truth;
    }

    fn step(&self, world: &mut World, i: usize, action: Action) -> Option<()> {
        let node = world.members[i].me;
        let member = &mut world.members[i];
        match action {
            Action::Promise { epoch } => member.promised = epoch,
            Action::Detach => member.following = false,
            Action::Promote { .. } => member.serves = true,
            Action::Demote => {
                member.serves = false;
                member.ended = member.ended.max(member.holder.deadline().map(|(epoch, _)| epoch));
                member.holder.drop_belief();
            }
            Action::ReleaseLease { epoch } => {
                member.released = Some(epoch);
                if !self.core.renews_after_release() {
                    member.holder.drop_belief();
                }
            }
            Action::AcquireLease { epoch } => {
                let lease = member.known.state().lease;
                let held = lease.holder == Some(node) && lease.epoch == epoch;
                let command = if held { Command::RenewLease { node, epoch } } else { Command::AcquireLease { node, epoch } };
                world.left.sends = world.left.sends.checked_sub(1)?;
                self.send(world, i, command, false)?;
            }
            _on_data => return None,
        }
        Some(())
    }

    fn restart(&self, world: &mut World, i: usize) {
        let now = self.now(world, i);
        let member = &mut world.members[i];
        member.watch = LeaseWatch::default();
        member.watch.applied(member.known.state().lease, self.core.watch_begins(now));
        member.phase_since = now;
        (member.ended, member.released) = (None, None);
        if !self.core.keeps_lease_over_restart() {
            member.holder = HolderLease::default();
        }
    }
}

impl Model for Leases {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let settings = Settings { lease_ttl_ms: TTL, clock_drift_permille: DRIFT, ..Settings::default() };
        let truth = steady(3, settings);
        let world = |(primary, watcher): &(u64, u64)| World {
            truth: truth.clone(),
            members: vec![Member::new(1, *primary, &truth), Member::new(2, *watcher, &truth)],
            flights: Vec::new(),
            left: self.budget,
            expired: false,
            given_back: false,
        };
        self.rates.iter().map(world).collect()
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if world.left.ticks > 0 {
            acts.push(Act::Tick);
        }
        for i in 0..world.members.len() {
            let member = &world.members[i];
            let belief = self.belief(world, i);
            if world.left.sends > 0 && self.renewal(world, i).is_some() {
                acts.push(Act::Renew(i));
            }
            if matches!(belief, LeaseBelief::Ending { .. }) {
                acts.push(Act::Fence(i));
            }
            if member.known != world.truth {
                acts.push(Act::Learn(i));
            }
            if world.left.restarts > 0 {
                acts.push(Act::Restart(i));
            }
            acts.extend(self.core.converge(member.known.state(), &member.local(belief)).action.map(|a| Act::Step(i, a)));
        }
        acts.extend(self.decision(world).map(Act::Decide));
        for (i, flight) in world.flights.iter().enumerate() {
            // One that is lost is one that never arrives.
            acts.push(if flight.accepted.is_none() { Act::Commit(i) } else { Act::Answer(i) });
        }
        if world.left.shorter > 0 {
            acts.push(Act::Shorten);
        }
    }

    fn next_state(&self, last: &World, act: Act) -> Option<World> {
        let mut world = last.clone();
        match act {
            Act::Tick => world.left.ticks -= 1,
            Act::Renew(i) => {
                world.left.sends -= 1;
                let command = self.renewal(&world, i)?;
                self.send(&mut world, i, command, false)?;
            }
            Act::Fence(i) => {
                let member = &mut world.members[i];
                member.ended = member.holder.deadline().map(|(epoch, _)| epoch);
                member.holder.drop_belief();
            }
            Act::Step(i, action) => self.step(&mut world, i, action)?,
            Act::Decide(command) => self.send(&mut world, 1, command, true)?,
            Act::Commit(i) => self.commit(&mut world, i),
            Act::Answer(i) => self.answered(&mut world, i),
            Act::Learn(i) => self.learn(&mut world, i),
            Act::Restart(i) => {
                world.left.restarts -= 1;
                self.restart(&mut world, i);
            }
            Act::Shorten => {
                world.left.shorter -= 1;
                let settings = Settings { lease_ttl_ms: TTL / 3, ..world.truth.state().settings.clone() };
                world.truth = world.truth.applied(self.core, Command::Configure { settings: Box::new(settings) }).0;
            }
        }
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Leases>> {
        vec![
            Property::always("INV-9: nobody believes in a lease that is over", |m, w: &World| {
                let epoch = w.truth.state().epoch;
                (0..w.members.len()).all(|i| w.members[i].believes(m.now(w, i)).is_none_or(|e| e == epoch))
            }),
            Property::always("P2: one at a time serves with a lease", |m, w: &World| {
                (0..w.members.len()).filter(|i| w.members[*i].serves && w.members[*i].believes(m.now(w, *i)).is_some()).count() <= 1
            }),
            Property::sometimes("a lease runs out and an election begins", |_, w: &World| w.expired),
            Property::sometimes("a lease is given back and an election begins", |_, w: &World| w.given_back),
            Property::sometimes("the next one serves with its lease", |m, w: &World| {
                let next = &w.members[1];
                next.serves && next.believes(m.now(w, 1)).is_some() && matches!(w.truth.state().phase, Phase::Promoting { .. })
            }),
        ]
    }
}

fn model(budget: Budget, mutant: Option<Mutant>) -> Leases {
    // The worst that the bound on drift allows: who holds the lease is slow, who waits for its end is fast.
    let (slow, fast) = (1_000 - DRIFT, 1_000 + DRIFT);
    let rates = if large() { vec![(slow, fast), (1_000, 1_000), (fast, slow)] } else { vec![(slow, fast)] };
    Leases { rates, budget, core: Core { mutant } }
}

const SMALL: Budget = Budget { ticks: 6, sends: 1, restarts: 0, shorter: 0, elections: 1 };
const RENEWED: Budget = Budget { sends: 2, ..SMALL };

#[test]
fn no_lease_outlives_its_epoch_in_any_order_of_late_words() {
    holds("lease", "6 ticks, 1 proposal of the lease, 1 election", model(SMALL, None));
    holds("lease", "5 ticks, 2 proposals of the lease, 1 election", model(Budget { ticks: 5, ..RENEWED }, None));
    if large() {
        holds("lease", "6 ticks, 2 proposals of the lease, 1 election", model(RENEWED, None));
        holds("lease", "7 ticks, 1 proposal of the lease, 1 restart, 1 election", model(Budget { ticks: 7, restarts: 1, ..SMALL }, None));
        holds("lease", "6 ticks, 2 proposals of the lease, made shorter once, 1 election", model(Budget { shorter: 1, ..RENEWED }, None));
        holds("lease", "10 ticks, 1 proposal of the lease, 2 elections", model(Budget { ticks: 10, elections: 2, ..SMALL }, None));
    }
}

/// The negative control: each of these lets two serve, or one too long, somewhere within small bounds.
#[test]
fn seeded_bugs_of_the_lease_have_a_counterexample() {
    let restart = Budget { restarts: 1, ..SMALL };
    let hunts = [
        (Mutant::LeaseFromAnswer, RENEWED),
        (Mutant::IgnoreDrift, SMALL),
        (Mutant::IgnoreLeaseSeq, RENEWED),
        (Mutant::WatchForgetsRestart, restart),
    ];
    for (mutant, budget) in hunts {
        let broken = breaks(model(budget, Some(mutant)));
        println!("{mutant:?}: {broken:?}");
        assert!(!broken.is_empty(), "{mutant:?} has no counterexample within {budget:?}");
    }
}
