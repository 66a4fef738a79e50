//! Actions: they take time, they fail, and they are cut short.

use super::net::Plane;
use super::node::{Data, Proc, Replacing, Running, Slot};
use super::wal::Tip;
use super::world::{Event, World};
use trilithon::cluster::{Command, Proposal, SyncRule};
use trilithon::ha::Action;
use trilithon::types::{Epoch, NodeId, SystemId, Timeline};

/// Bytes of a marker, of an end-of-recovery record, of a shutdown checkpoint.
pub const RECORD: u64 = 100;

impl World {
    pub fn start_action(&mut self, slot: Slot, action: Action) {
        let name = self.name(slot).to_owned();
        self.note(7, || format!("{name}: -> {action:?}"));
        self.check_action(slot, &action);
        let token = match &action {
            Action::ReleaseLease { epoch } => return self.give_back(slot, *epoch),
            Action::AcquireLease { epoch } => self.acquire(slot, *epoch),
            _local => self.fresh_id(),
        };
        let took = self.duration(slot, &action);
        let replacing = match &action {
            Action::Clone { .. } => Some(Replacing::Clone),
            Action::Rewind { .. } => Some(Replacing::Rewind),
            _in_place => None,
        };
        if let Some(replacing) = replacing {
            self.crash_postgres(slot);
            let copied = match &action {
                Action::Clone { primary } | Action::Rewind { primary } => self.source(slot, *primary),
                _in_place => None,
            };
            let pg = &mut self.nodes[slot].pg;
            pg.replacing = Some(replacing);
            pg.copied = copied;
            // Until a rewind is through, the directory must not be started. A copy is taken beside it: broken off, it changed nothing (INV-10).
            pg.poisoned |= replacing == Replacing::Rewind;
        }
        if let Action::ApplyRule { rule, .. } = &action {
            // INV-6: the proof of another rule ends where its names leave the configuration, also if this attempt is broken off.
            if !self.core.proof_outlives_its_rule() {
                self.nodes[slot].agent.settled = None;
            }
            self.set_names(slot, rule);
        }
        self.nodes[slot].agent.action = Some(Running { token, action, since: self.now, stage: 0 });
        self.after(took, Event::ActionDone { slot, token });
    }

    /// From now on the lease's timer asks for the release until it is answered; the belief ends at once.
    fn give_back(&mut self, slot: Slot, epoch: Epoch) {
        let node = self.nodes[slot].id;
        self.nodes[slot].agent.released = Some(epoch);
        if !self.core.renews_after_release() {
            self.nodes[slot].agent.holder.drop_belief();
        }
        self.propose(slot, Proposal { expect: None, request: None, command: Command::ReleaseLease { node, epoch } });
        self.wake(slot, 1);
    }

    /// A lease that the state gives us already, from before a restart or a lost answer, is renewed.
    fn acquire(&mut self, slot: Slot, epoch: Epoch) -> u64 {
        let node = self.nodes[slot].id;
        let lease = self.nodes[slot].agent.state.lease;
        let held = lease.holder == Some(node) && lease.epoch == epoch;
        let command = if held { Command::RenewLease { node, epoch } } else { Command::AcquireLease { node, epoch } };
        self.propose(slot, Proposal { expect: None, request: None, command })
    }

    fn duration(&mut self, slot: Slot, action: &Action) -> u64 {
        let slow = self.unlucky(20);
        let base = match action {
            Action::Promise { .. } => self.took(2, 20),
            Action::Detach => self.took(20, 100),
            Action::Demote => self.took(20, 200),
            Action::AcquireLease { .. } | Action::ReleaseLease { .. } => return 1_500,
            Action::InitDb => self.took(800, 3_000),
            Action::StartDetached | Action::Follow { .. } => self.took(10, 80),
            Action::Stop => self.took(100, 1_000),
            Action::Rewind { .. } => self.took(500, 8_000),
            Action::Clone { .. } => self.took(1_000, 15_000),
            Action::Promote { .. } => self.took(100, 600),
            Action::ApplyRule { .. } => 60,
            Action::Prepare { .. } => self.took(100, 1_000),
            Action::Drain => self.took(20, 100),
        };
        // A WAL receiver of a frozen Postgres never goes; the executor gives up in the end.
        let stuck = self.nodes[slot].pg.frozen.is_some() && !matches!(action, Action::Demote | Action::Promise { .. });
        if stuck {
            5_000
        } else if slow && !matches!(action, Action::Demote) {
            base * 8
        } else {
            base
        }
    }

    /// The action's time has come. A child process goes on where its agent is stopped.
    pub fn action_due(&mut self, slot: Slot, token: u64) {
        let node = &mut self.nodes[slot];
        if !node.powered || !node.agent.up || node.agent.action.as_ref().is_none_or(|r| r.token != token) {
            return;
        }
        if node.agent.frozen.is_some() {
            node.agent.inbox.push(Event::ActionDone { slot, token });
            return;
        }
        let Some(running) = node.agent.action.clone() else { return };
        let done = self.perform(slot, &running);
        self.check_promise(slot);
        if done {
            self.nodes[slot].agent.action = None;
            self.wake(slot, 1);
        }
    }

    fn failed(&mut self, slot: Slot) -> bool {
        let pause = self.took(300, 1_500);
        self.nodes[slot].agent.retry_at = self.now + pause;
        true
    }

    /// Carry out one action; true when it is over.
    fn perform(&mut self, slot: Slot, running: &Running) -> bool {
        let stuck = self.nodes[slot].pg.frozen.is_some();
        match &running.action {
            Action::Promise { epoch } => self.promise(slot, *epoch),
            Action::Demote => {
                self.crash_postgres(slot);
                true
            }
            Action::AcquireLease { .. } | Action::ReleaseLease { .. } => self.failed(slot),
            // A shutdown goes on when Postgres wakes, or is cut short.
            Action::Drain if stuck && self.now - running.since < 30_000 => {
                self.after(500, Event::ActionDone { slot, token: running.token });
                false
            }
            Action::Drain if stuck => {
                self.crash_postgres(slot);
                true
            }
            _postgres if stuck => self.failed(slot),
            Action::Detach => self.detach(slot),
            Action::InitDb => self.initdb(slot),
            Action::StartDetached => {
                self.start_postgres(slot, None);
                true
            }
            Action::Follow { primary, epoch } => self.follow(slot, *primary, *epoch),
            Action::Stop => self.stop_postgres(slot),
            Action::Rewind { primary } => self.rewind(slot, *primary),
            Action::Clone { primary } => self.clone_from(slot, *primary),
            Action::Promote { epoch, timeline, rule } => self.promote(slot, *epoch, *timeline, rule),
            Action::ApplyRule { epoch, rule } => self.apply_rule(slot, running, *epoch, rule),
            Action::Prepare { request } => {
                self.nodes[slot].agent.prepared = Some(*request);
                true
            }
            Action::Drain => self.drain(slot, running),
        }
    }

    fn promise(&mut self, slot: Slot, epoch: Epoch) -> bool {
        let persists = self.core.persists_promise();
        let agent = &mut self.nodes[slot].agent;
        agent.promised = self.core.promised(agent.promised, epoch);
        if persists {
            agent.disk_promise = agent.promised;
        }
        agent.gave_up = None;
        agent.promote_failures = 0;
        true
    }

    fn detach(&mut self, slot: Slot) -> bool {
        if !self.core.leaves_receiver_running() {
            self.close_receiver(slot);
        }
        if let Some(data) = &mut self.nodes[slot].pg.data {
            data.following = None;
        }
        true
    }

    fn initdb(&mut self, slot: Slot) -> bool {
        if self.unlucky(50) {
            return self.failed(slot);
        }
        let tip = self.wal.fork(None, Timeline(1), Epoch(0));
        let data = Data {
            system: SystemId(1_000 + slot as u64),
            tip,
            clean: true,
            shutdown_checkpoint: None,
            consistent_at: tip,
            following: None,
            primary_of: None,
            rule: None,
        };
        self.nodes[slot].pg.data = Some(data);
        self.oracle.initialised += 1;
        if self.oracle.initialised > 1 {
            self.violate("bootstrap", || "two databases were initialised for one cluster".into());
        }
        true
    }

    fn follow(&mut self, slot: Slot, primary: NodeId, epoch: Epoch) -> bool {
        let upstream = self.slot_of.get(&primary).copied();
        let pg = &mut self.nodes[slot].pg;
        if pg.receiver.is_some_and(|(up, _)| Some(up) != upstream) {
            self.close_receiver(slot);
        }
        let pg = &mut self.nodes[slot].pg;
        match pg.proc {
            Proc::Stopped => self.start_postgres(slot, Some((primary, epoch))),
            Proc::Starting | Proc::Running { .. } | Proc::Stopping => {
                if let Some(data) = &mut pg.data {
                    data.following = Some((primary, epoch));
                }
                let inc = pg.inc;
                self.after(5, Event::Connect { slot, inc });
            }
        }
        true
    }

    fn stop_postgres(&mut self, slot: Slot) -> bool {
        let pg = &self.nodes[slot].pg;
        let clean = pg.runs_as_standby();
        self.crash_postgres(slot);
        if let Some(data) = self.nodes[slot].pg.data.as_mut().filter(|_| clean) {
            data.clean = true;
        }
        true
    }

    /// A primary from which data can be copied now.
    fn source(&self, slot: Slot, primary: NodeId) -> Option<Tip> {
        let from = *self.slot_of.get(&primary)?;
        let usable = self.nodes[from].pg_runs() && self.nodes[from].pg.runs_as_primary() && self.net.both(Plane::Postgres, slot, from);
        usable.then(|| self.nodes[from].pg.tip()).flatten()
    }

    fn rewind(&mut self, slot: Slot, primary: NodeId) -> bool {
        self.nodes[slot].pg.replacing = None;
        let source = self.source(slot, primary);
        let (refused, broke) = (self.unlucky(80), self.unlucky(80));
        let Some(theirs) = source.filter(|_| !broke) else {
            // Half of the failures come before the first change.
            let poisoned = self.unlucky(500);
            self.nodes[slot].pg.poisoned = poisoned;
            return self.failed(slot);
        };
        self.nodes[slot].pg.poisoned = false;
        if refused {
            self.nodes[slot].agent.needs_clone = Some("could not find previous WAL record".into());
            return self.failed(slot);
        }
        let Some(mine) = self.nodes[slot].pg.tip() else { return self.failed(slot) };
        // The source's WAL files come along as they were when the copy began; the rest must be streamed.
        let begun = self.nodes[slot].pg.copied.filter(|t| self.wal.contains(theirs, *t) && t.branch == theirs.branch);
        if self.wal.contains(theirs, mine) {
            return true;
        }
        if let Some(data) = &mut self.nodes[slot].pg.data {
            data.tip = begun.unwrap_or(theirs);
            data.consistent_at = theirs;
            data.clean = false;
            data.shutdown_checkpoint = None;
            data.following = None;
            data.primary_of = None;
        }
        true
    }

    fn clone_from(&mut self, slot: Slot, primary: NodeId) -> bool {
        self.nodes[slot].pg.replacing = None;
        let source = self.source(slot, primary);
        let broke = self.unlucky(100);
        let (Some(theirs), Some(from), false) = (source, self.slot_of.get(&primary).copied(), broke) else {
            return self.failed(slot);
        };
        let system = self.nodes[from].pg.data.as_ref().map(|d| d.system).unwrap_or(SystemId(0));
        self.check_last_copy(slot);
        let pg = &mut self.nodes[slot].pg;
        let begun = pg.copied.filter(|t| self.wal.contains(theirs, *t) && t.branch == theirs.branch);
        pg.poisoned = false;
        pg.data = Some(Data {
            system,
            tip: begun.unwrap_or(theirs),
            clean: false,
            shutdown_checkpoint: None,
            consistent_at: theirs,
            following: None,
            primary_of: None,
            rule: None,
        });
        self.nodes[slot].agent.needs_clone = None;
        true
    }

    fn promote(&mut self, slot: Slot, epoch: Epoch, timeline: Timeline, rule: &SyncRule) -> bool {
        let detached = self.nodes[slot].pg.receiver.is_none() || self.core.leaves_receiver_running();
        let able = self.nodes[slot].pg.runs_as_standby() && detached;
        let unlucky = able && self.unlucky(60);
        if unlucky {
            // A promotion that fails for good explains the election after it, also where nothing else is wrong.
            self.disturb();
        }
        if !able || unlucky {
            let agent = &mut self.nodes[slot].agent;
            agent.promote_failures += 1;
            if agent.promote_failures >= 2 {
                agent.gave_up = Some(epoch);
            }
            return self.failed(slot);
        }
        self.become_primary(slot, epoch, timeline, rule);
        true
    }

    /// The promotion itself: a new branch, an end-of-recovery record, the names already in place.
    pub fn become_primary(&mut self, slot: Slot, epoch: Epoch, timeline: Timeline, rule: &SyncRule) {
        let Some(parent) = self.nodes[slot].pg.tip() else { return };
        let timeline = self.core.chosen_timeline(timeline, self.wal.branch(parent).timeline);
        self.check_promotion(slot, epoch, timeline);
        self.close_receiver(slot);
        let tip = self.wal.fork(Some(parent), timeline, epoch);
        let tip = Tip { lsn: tip.lsn + RECORD, ..tip };
        let pg = &mut self.nodes[slot].pg;
        pg.proc = Proc::Running { primary: true };
        pg.insert = tip.lsn;
        pg.visible = tip.lsn;
        let cascaded = std::mem::take(&mut pg.senders);
        pg.pending.clear();
        if let Some(data) = &mut pg.data {
            data.tip = tip;
            data.rule = Some(rule.clone());
            data.primary_of = Some(epoch);
            data.following = None;
            data.shutdown_checkpoint = None;
        }
        for sender in cascaded {
            self.after(1, Event::ReceiverGone { slot: sender.standby, conn: sender.conn });
        }
        self.nodes[slot].agent.settled = None;
        self.oracle.promotions += 1;
        if epoch > self.oracle.newest.0 {
            self.oracle.newest = (epoch, self.now);
        }
    }

    /// Stage 0 and 1: the walsenders load the new names at different instants. Then a marker is written and waited for.
    fn apply_rule(&mut self, slot: Slot, running: &Running, epoch: Epoch, rule: &SyncRule) -> bool {
        if !self.nodes[slot].pg.runs_as_primary() {
            return self.failed(slot);
        }
        match running.stage {
            0 => self.load_names(slot, rule, false),
            1 => {
                self.load_names(slot, rule, true);
                if self.core.settles_without_marker() {
                    self.nodes[slot].agent.settled = Some((epoch, rule.clone()));
                    return true;
                }
                self.write(slot, RECORD, true);
            }
            _waited => return self.failed(slot),
        }
        let delay = if running.stage == 0 { 120 } else { 10_000 };
        if let Some(r) = &mut self.nodes[slot].agent.action {
            r.stage += 1;
        }
        self.after(delay, Event::ActionDone { slot, token: running.token });
        false
    }

    /// The marker was acknowledged under the names that every walsender has loaded.
    pub fn marker_acknowledged(&mut self, slot: Slot) {
        let agent = &mut self.nodes[slot].agent;
        let proof = match agent.action.as_ref().map(|r| (&r.action, r.stage)) {
            Some((Action::ApplyRule { epoch, rule }, 2)) => Some((*epoch, rule.clone())),
            Some(_) | None => None,
        };
        if proof.is_some() {
            agent.settled = proof;
            agent.action = None;
            self.wake(slot, 1);
        }
    }

    /// Wait for transactions, then a fast shutdown that ships all WAL.
    fn drain(&mut self, slot: Slot, running: &Running) -> bool {
        let waited = self.now - running.since;
        if self.core.acknowledges_while_draining() && running.stage == 0 {
            let end = self.nodes[slot].pg.insert;
            self.force_acknowledge(slot, end);
        }
        let pg = &mut self.nodes[slot].pg;
        match running.stage {
            0 if pg.pending.is_empty() || waited > self.cfg.settings.drain_timeout_ms => {
                self.begin_shutdown(slot);
            }
            0 => {}
            _shutting => {
                let end = pg.tip().map_or(0, |t| t.lsn);
                let shipped = pg.senders.iter().all(|s| s.flushed >= end);
                if shipped || waited > self.cfg.settings.drain_timeout_ms + 5_000 {
                    self.finish_shutdown(slot, shipped, end);
                    return true;
                }
            }
        }
        self.after(40, Event::ActionDone { slot, token: running.token });
        false
    }

    fn begin_shutdown(&mut self, slot: Slot) {
        let agent = &mut self.nodes[slot].agent;
        agent.drain_committed = Some(agent.state.epoch);
        if let Some(r) = &mut agent.action {
            r.stage = 1;
        }
        let pg = &mut self.nodes[slot].pg;
        pg.proc = Proc::Stopping;
        pg.pending.clear();
        pg.insert += RECORD;
        let end = pg.insert;
        if let Some(data) = &mut pg.data {
            data.tip.lsn = end;
        }
        self.pump(slot);
        self.wake(slot, 0);
    }

    fn finish_shutdown(&mut self, slot: Slot, shipped: bool, end: u64) {
        self.crash_postgres(slot);
        if let Some(data) = self.nodes[slot].pg.data.as_mut().filter(|_| shipped) {
            data.clean = true;
            data.shutdown_checkpoint = Some(end - RECORD);
        }
    }
}
