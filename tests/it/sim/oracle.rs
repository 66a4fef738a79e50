//! Judges: they see the whole world, and nothing of them reaches the code under test.
//!
//! | oracle | what it holds to be impossible |
//! |---|---|
//! | P1 | an acknowledged write that an elected or settled primary lacks |
//! | P2 | a write begun and acknowledged after a newer epoch acknowledged one |
//! | P3 | something read through a proxy that a later primary lacks |
//! | INV-1 | a promise that goes back, or a seal beyond the promise on disk |
//! | INV-2/12 | a stale or repeated command with an effect |
//! | INV-4/5 | an acknowledgement whose holders miss a set that may elect |
//! | INV-7 | a winner that lacks what an elector of its election holds |
//! | INV-8 | a timeline number begun twice |
//! | INV-9 | a lease taken while another's runs; service without one |
//! | INV-10 | the last copy of an acknowledged write rewound or wiped |
//! | cause | an election nobody's trouble explains |

use super::node::{Node, Slot, Time};
use super::wal::Tip;
use super::world::World;
use std::collections::{BTreeMap, BTreeSet};
use trilithon::cluster::{ClusterState, Command, Durability, ElectionCause, Outcome, Phase, Proposal, SyncRule};
use trilithon::ha::{Action, NodeObservation};
use trilithon::types::{Epoch, NodeId, RequestId, Timeline};

/// What was broken, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    pub oracle: &'static str,
    pub at: Time,
    pub text: String,
}

#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// End of the newest write acknowledged under a rule with confirmations, and of the newest one read.
    pub acked: Option<Tip>,
    pub read: Option<Tip>,
    /// Writes acknowledged by their primary alone: end and time.
    pub alone: Vec<(Tip, Time)>,
    /// First acknowledgement of each epoch.
    first_ack: BTreeMap<Epoch, Time>,
    pub acks: u64,
    pub reads: u64,
    pub promotions: u64,
    pub elections: u64,
    /// The newest epoch that has a primary, and since when.
    pub newest: (Epoch, Time),
    pub initialised: u32,
    pub renewed_at: Time,
    effects: BTreeSet<RequestId>,
    unleased: BTreeMap<Slot, Time>,
    promises: BTreeMap<NodeId, Epoch>,
    /// Since when nothing has been wrong with the world, `None` while something is.
    pub healthy_since: Option<Time>,
    /// When the last fault or administrator's act struck.
    pub disturbed_at: Time,
}

impl Oracle {
    /// Two looks in a row, so that a step under way is not misjudged.
    pub fn served_without_lease(&mut self, slot: Slot, now: Time) -> bool {
        let since = *self.unleased.entry(slot).or_insert(now);
        if now - since > 6_000 {
            self.unleased.insert(slot, now);
            return false;
        }
        now - since >= 500
    }
}

impl World {
    pub fn violate(&mut self, oracle: &'static str, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let text = text();
            let line = format!("VIOLATION {oracle}: {text}");
            self.violation = Some(Violation { oracle, at: self.now, text });
            self.note(99, || line);
        }
    }

    // ---- clients

    /// A commit returned to its client. `acks`: how many confirmations its rule asked for.
    pub fn acked(&mut self, slot: Slot, end: Tip, begun: Time, acks: usize) {
        self.oracle.acks += 1;
        self.trace.mix(end.lsn);
        let epoch = self.wal.branch(end).writer;
        if self.cfg.scripted {
            let line = format!("client: {} acknowledges a write in epoch {epoch}", self.name(slot));
            self.trace.note(self.now, || line);
        }
        let newer = self.oracle.first_ack.range(epoch.next()..).next().map(|(e, t)| (*e, *t));
        // Alone and with a stopped agent, only the lease could speak, and nobody is there to hear it, nor within the moment in which it or
        // its Postgres wakes.
        let node = &self.nodes[slot];
        let unheard = !node.agent_runs() || self.now - node.awake_since() < 1_500;
        // The administrator who accepts a loss elects without the seal of a standby that nobody hears: it goes on confirming.
        let given_away = self.raft.truth.history.iter().any(|h| h.accept_loss && h.epoch > epoch);
        let excused = (acks == 0 || given_away) && (unheard || self.cfg.unseen_pauses);
        if let Some((later, _)) = newer.filter(|(_, at)| begun > *at && !excused) {
            self.violate("P2", || format!("epoch {epoch} acknowledged a write begun after epoch {later} did"));
        }
        self.oracle.first_ack.entry(epoch).or_insert(self.now);
        // A primary that goes on alone promises what its own disk holds; only asynchronous mode promises less.
        if acks == 0 && self.raft.truth.settings.durability == Durability::Async {
            self.oracle.alone.push((end, self.now));
            return;
        }
        // He has accepted to lose this, too; whether it may go on at all was asked above.
        let given_up = given_away && (acks == 0 || unheard);
        if given_up {
            return;
        }
        if let Some(before) = self.oracle.acked {
            let kept = self.wal.contains(end, before);
            if !kept && !self.wal.contains(before, end) {
                self.violate("P1", || format!("acknowledged {end:?} and {before:?} lie on different branches"));
            }
        }
        if self.oracle.acked.is_none_or(|before| self.wal.contains(end, before)) {
            self.oracle.acked = Some(end);
        }
        self.check_holders(end);
    }

    /// INV-4, INV-5: whoever may elect meets a holder of what was just acknowledged.
    fn check_holders(&mut self, end: Tip) {
        // Without data nobody seals; once copied, it holds what the primary held. A directory ruined by a rewind still elects.
        let lacking: BTreeSet<NodeId> = self
            .nodes
            .iter()
            .filter(|n| n.pg.tip().is_some_and(|t| !self.wal.contains(t, end)))
            .map(|n| n.id)
            .filter(|id| self.raft.truth.members.contains_key(id))
            .collect();
        let state = &self.raft.truth;
        let accepting_loss = matches!(state.phase, Phase::Electing { accept_loss: true, .. })
            || state.history.last().is_some_and(|h| h.accept_loss && !h.settled);
        let writer = |id: &NodeId| self.slot_of.get(id).and_then(|s| self.nodes[*s].pg.tip()).map(|t| self.wal.branch(t).writer);
        let newest = lacking.iter().filter_map(writer).max();
        let outlived = |i: usize| state.adopted.get(i).is_some_and(|a| Some(a.epoch) < newest);
        let elects = state.rules.iter().enumerate().all(|(i, r)| r.covered_by(&lacking) || outlived(i));
        if !accepting_loss && !state.rules.is_empty() && elects {
            let rules: Vec<String> = state.rules.iter().map(SyncRule::to_string).collect();
            self.violate("INV-4", || format!("{lacking:?} may elect and lack acknowledged {end:?}; rules {rules:?}"));
        }
    }

    /// A proxy let a client read everything visible up to `end`.
    pub fn was_read(&mut self, end: Tip) {
        self.oracle.reads += 1;
        // Asynchronous mode promises a bound, not this.
        if self.cfg.settings.durability == Durability::Async {
            return;
        }
        if let Some(before) = self.oracle.read
            && !self.wal.contains(end, before)
            && !self.wal.contains(before, end)
        {
            self.violate("P3", || format!("read {end:?} after {before:?}, which it lacks"));
        }
        if self.oracle.read.is_none_or(|before| self.wal.contains(end, before)) {
            self.oracle.read = Some(end);
        }
    }

    // ---- the log

    /// An entry took effect, or was refused.
    pub fn committed(&mut self, before: &ClusterState, proposal: &Proposal, outcome: &Outcome) {
        let changed = *before != self.raft.truth;
        if let Some(request) = proposal.request.filter(|_| changed)
            && !self.oracle.effects.insert(request)
        {
            self.violate("INV-12", || format!("request {request} took effect twice"));
        }
        if outcome.is_err() {
            if changed {
                self.violate("INV-2", || "a refused command left a trace".into());
            }
            return;
        }
        if proposal.expect.is_some_and(|e| e != before.revision) && changed {
            self.violate("INV-2", || "a stale command took effect".into());
        }
        let epoch = self.raft.truth.epoch;
        if epoch < before.epoch || epoch.0 > before.epoch.0 + 1 {
            self.violate("INV-1", || format!("the epoch went from {} to {epoch}", before.epoch));
        }
        self.judge_command(before, &proposal.command);
        self.aim(&proposal.command);
        self.members_changed(&proposal.command);
    }

    fn judge_command(&mut self, before: &ClusterState, command: &Command) {
        match command {
            Command::BeginElection { cause, .. } => self.judge_cause(before, *cause),
            Command::Elect { candidate, .. } => self.judge_winner(*candidate),
            Command::SettleRule { rule, .. } => self.judge_settled(before, rule),
            Command::AcquireLease { node, .. } => self.judge_acquisition(*node),
            Command::ReleaseLease { node, .. } => {
                let serving = self.slot_of.get(node).is_some_and(|s| self.nodes[*s].pg.runs_as_primary());
                if serving && !self.cfg.unseen_pauses {
                    self.violate("INV-9", || format!("{node} gave its lease back while it serves"));
                }
            }
            _administration => {}
        }
    }

    /// No failover without a cause.
    fn judge_cause(&mut self, before: &ClusterState, cause: ElectionCause) {
        self.oracle.elections += 1;
        let planned =
            before.change.is_some() || matches!(cause, ElectionCause::Switchover | ElectionCause::Manual | ElectionCause::Bootstrap);
        let quiet = self.oracle.healthy_since.is_some_and(|since| self.now > since + 5_000);
        if quiet && !planned {
            self.violate("cause", || format!("an election ({cause:?}) although nothing was wrong"));
        }
        if cause == ElectionCause::LeaseExpired {
            self.judge_expiry(before);
        }
    }

    /// INV-9: a lease is called expired only when its holder, by its own clock, has ended it.
    fn judge_expiry(&mut self, before: &ClusterState) {
        let Some(slot) = before.lease.holder.and_then(|h| self.slot_of.get(&h).copied()) else { return };
        let node = &self.nodes[slot];
        let clock = node.clock(self.now);
        let held = node.agent.up && node.agent.holder.deadline().is_some_and(|(e, until)| e == before.lease.epoch && until > clock);
        if held && node.agent.released != Some(before.lease.epoch) && !self.cfg.unseen_pauses {
            let waited = self.now - self.oracle.renewed_at;
            self.violate("INV-9", || format!("slot {slot} holds its lease, renewed {waited} ms ago, and it is called expired"));
        }
    }

    /// P1, P3, INV-7 at the moment of the choice.
    fn judge_winner(&mut self, candidate: NodeId) {
        let accepted = self.raft.truth.history.last().is_some_and(|h| h.accept_loss);
        let Some(tip) = self.slot_of.get(&candidate).and_then(|s| self.nodes[*s].pg.tip()) else {
            return self.violate("INV-7", || format!("{candidate} was elected and holds no data"));
        };
        if accepted {
            self.accept_loss(tip);
            return;
        }
        self.judge_alone(tip);
        for (what, point) in [("P1", self.oracle.acked), ("P3", self.oracle.read)] {
            if let Some(point) = point.filter(|p| !self.wal.contains(tip, *p)) {
                self.violate(what, || format!("{candidate} was elected at {tip:?} and lacks {point:?}"));
            }
        }
    }

    /// The administrator accepted a loss in words: what the winner lacks is no longer promised.
    fn accept_loss(&mut self, tip: Tip) {
        let cap = |w: &super::wal::Wal, point: Option<Tip>| point.map(|p| if w.contains(tip, p) { p } else { w.common(tip, p) });
        self.oracle.acked = cap(&self.wal, self.oracle.acked);
        self.oracle.read = cap(&self.wal, self.oracle.read);
        self.oracle.alone.clear();
    }

    /// Asynchronous mode: what is lost is bounded by `max_lag_bytes` and by what was written since the primary was last heard.
    fn judge_alone(&mut self, tip: Tip) {
        let blind = self.cfg.settings.lease_wait().as_millis() as u64 * 2 + self.cfg.settings.lease_ttl_ms;
        let bound = self.cfg.settings.max_lag_bytes;
        let alone = std::mem::take(&mut self.oracle.alone);
        for (end, at) in &alone {
            let lost = !self.wal.contains(tip, *end);
            let heard = self.now.saturating_sub(*at) > blind.max(self.now.saturating_sub(self.oracle.disturbed_at) + blind);
            let fork = self.wal.common(tip, *end).lsn;
            if lost && heard && end.lsn.saturating_sub(fork) > bound {
                self.violate("loss bound", || format!("{} bytes lost, bound {bound}", end.lsn - fork));
            }
        }
        self.oracle.alone = alone.into_iter().filter(|(end, _)| self.wal.contains(tip, *end)).collect();
    }

    /// P1 again, at the moment the new primary takes over for good; INV-6: it holds what it was proved with.
    fn judge_settled(&mut self, before: &ClusterState, rule: &SyncRule) {
        let Some(slot) = self.slot_of.get(&rule.primary).copied() else { return };
        let Some(tip) = self.nodes[slot].pg.tip() else { return };
        if let Some(point) = self.oracle.acked.filter(|p| !self.wal.contains(tip, *p)) {
            self.violate("P1", || format!("settled primary at {tip:?} lacks acknowledged {point:?}"));
        }
        // The old rules protect nothing any more: what they acknowledged must be where the new rule looks.
        if let Some(point) = self.oracle.acked.filter(|_| before.rules.len() > 1) {
            self.check_holders(point);
        }
        let writer = self.wal.branch(tip).writer;
        if writer != self.raft.truth.epoch && self.nodes[slot].pg.runs_as_primary() {
            let epoch = self.raft.truth.epoch;
            self.violate("INV-6", || format!("settled for {epoch}, but the primary writes as {writer}"));
        }
    }

    /// INV-9: when a lease is taken, no other's belief is alive.
    fn judge_acquisition(&mut self, node: NodeId) {
        if self.cfg.unseen_pauses {
            return;
        }
        let now = self.now;
        let alive = self.nodes.iter().filter(|n| n.id != node && n.powered && n.agent.up && n.agent.frozen.is_none()).find(|n| {
            let runs = n.agent.holder.deadline().is_some_and(|(_, until)| until > n.clock(now));
            runs && n.agent.released.is_none() && n.pg.runs_as_primary()
        });
        if let Some(other) = alive.map(|n| n.name.clone()) {
            self.violate("INV-9", || format!("{node} took the lease while that of {other} still ran"));
        }
    }

    // ---- nodes

    /// INV-1 and INV-10, before an action starts; INV-9 before one serves.
    pub fn check_action(&mut self, slot: Slot, action: &Action) {
        let disk = self.nodes[slot].agent.disk_promise;
        match action {
            Action::Follow { epoch, .. } | Action::Promote { epoch, .. } if *epoch != disk => {
                self.violate("INV-1", || format!("acts on epoch {epoch}, promised on disk is {disk}"));
            }
            Action::Rewind { primary } | Action::Clone { primary } if self.nodes[slot].agent.state.primary() != Some(*primary) => {
                self.violate("INV-10", || format!("replaces its data from {primary}, which is no primary"));
            }
            // A copy is judged when it takes the old one's place.
            Action::Rewind { .. } => self.check_last_copy(slot),
            Action::StartDetached | Action::Follow { .. } if self.nodes[slot].pg.poisoned => {
                self.violate("INV-10", || "an interrupted copy was started".into());
            }
            _harmless => {}
        }
        if matches!(action, Action::ReleaseLease { .. }) && self.nodes[slot].pg.runs_as_primary() {
            self.violate("INV-9", || "the lease is given back while Postgres serves".into());
        }
    }

    /// INV-10: what is rewound now, or replaced.
    pub fn check_last_copy(&mut self, slot: Slot) {
        let Some(acked) = self.oracle.acked else { return };
        let holds = |tip: Option<Tip>| tip.is_some_and(|t| self.wal.contains(t, acked));
        let elsewhere = self.nodes.iter().enumerate().any(|(s, n)| s != slot && holds(self.whole_copy(n)));
        if holds(self.nodes[slot].pg.tip()) && !elsewhere {
            self.violate("INV-10", || format!("slot {slot} holds the only copy of acknowledged {acked:?}"));
        }
    }

    /// Where a copy ends that can be started by itself. Of one that is not consistent yet, the rest is only with its source.
    pub fn whole_copy(&self, node: &Node) -> Option<Tip> {
        let data = node.pg.data.as_ref().filter(|d| !node.pg.poisoned && self.wal.contains(d.tip, d.consistent_at));
        data.map(|d| d.tip)
    }

    pub fn check_promise(&mut self, slot: Slot) {
        let (id, disk, volatile) = (self.nodes[slot].id, self.nodes[slot].agent.disk_promise, self.nodes[slot].agent.promised);
        let before = self.oracle.promises.insert(id, volatile);
        if before.is_some_and(|b| b > volatile) {
            self.violate("INV-1", || format!("{id} went back from a promise"));
        }
        if volatile != disk {
            self.violate("INV-1", || format!("{id} acts on promise {volatile}, on disk is {disk}"));
        }
    }

    /// A seal speaks of what is on disk, and of a receiver that has gone.
    pub fn check_seal(&mut self, slot: Slot, o: &NodeObservation) {
        let Some(seal) = o.seal else { return };
        let node = &self.nodes[slot];
        if seal.epoch > node.agent.disk_promise {
            self.violate("INV-1", || format!("{} seals {} beyond its promise", o.node, seal.epoch));
        } else if node.pg.receiver.is_some() {
            self.violate("INV-1", || format!("{} seals while its WAL receiver runs", o.node));
        } else if node.pg.runs_as_primary() {
            self.violate("INV-1", || format!("{} seals while it is primary", o.node));
        }
    }

    /// INV-8 and INV-9 when a promotion happens.
    pub fn check_promotion(&mut self, slot: Slot, epoch: Epoch, timeline: Timeline) {
        if self.wal.has_timeline(timeline) {
            self.violate("INV-8", || format!("timeline {timeline} was begun twice"));
        }
        let claimed = self.raft.truth.timelines.get(timeline).is_some_and(|c| c.epoch == epoch);
        if !claimed {
            self.violate("INV-8", || format!("timeline {timeline} was begun without a claim of epoch {epoch}"));
        }
        let lease = self.raft.truth.lease;
        let node = &self.nodes[slot];
        let long_frozen = self.now - node.agent.thawed < 1_000;
        if lease.epoch == epoch && lease.holder != Some(node.id) && !long_frozen {
            self.violate("INV-9", || format!("promoted for epoch {epoch} without its lease"));
        }
        if self.cfg.unseen_pauses {
            return;
        }
        let other = (0..self.nodes.len()).find(|o| {
            let n = &self.nodes[*o];
            let awake = n.agent_runs() && n.pg_runs() && self.now - n.awake_since() > 1_500;
            *o != slot && awake && n.pg.runs_as_primary() && self.wal.branch(n.pg.tip().unwrap_or_default()).writer < epoch
        });
        if let Some(other) = other {
            self.violate("INV-9", || format!("promoted while slot {other} still serves writes"));
        }
    }
}
