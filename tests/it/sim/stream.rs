//! Postgres: start and crash, writing, streaming, and the release of commits that wait for confirmation.
//!
//! Only flushed WAL is sent, a standby confirms only what it flushed, and each walsender releases waiting commits by the
//! names that it has itself loaded. A connection's end travels like everything else: the other side may learn it late.

use super::net::Plane;
use super::node::{Pending, Proc, Sender, Slot};
use super::wal::Tip;
use super::world::{Event, World};
use trilithon::cluster::SyncRule;
use trilithon::types::{Epoch, NodeId};

impl World {
    /// Postgres ends without ceremony: what was not flushed is gone, who waited learns nothing.
    pub fn crash_postgres(&mut self, slot: Slot) {
        if !self.nodes[slot].pg.is_up() {
            return;
        }
        self.close_receiver(slot);
        let pg = &mut self.nodes[slot].pg;
        pg.proc = Proc::Stopped;
        pg.inc += 1;
        pg.frozen = None;
        pg.inbox.clear();
        pg.pending.clear();
        let senders = std::mem::take(&mut pg.senders);
        if let Some(data) = &mut pg.data {
            data.clean = false;
            data.shutdown_checkpoint = None;
        }
        self.nodes[slot].agent.settled = None;
        for sender in senders {
            let delay = self.news_of_the_end(slot, sender.standby);
            self.after(delay, Event::ReceiverGone { slot: sender.standby, conn: sender.conn });
        }
    }

    /// A closed socket is seen at once over an open link from a machine that runs; otherwise by a timeout.
    fn news_of_the_end(&mut self, from: Slot, to: Slot) -> u64 {
        let seen = self.nodes[from].powered && self.net.open(Plane::Postgres, from, to);
        if seen { self.latency(from, to) + 1 } else { self.took(5_000, 20_000) }
    }

    pub fn close_receiver(&mut self, slot: Slot) {
        if let Some((up, conn)) = self.nodes[slot].pg.receiver.take() {
            let delay = self.news_of_the_end(slot, up);
            self.after(delay, Event::SenderGone { slot: up, conn });
        }
    }

    pub fn start_postgres(&mut self, slot: Slot, following: Option<(NodeId, Epoch)>) {
        let long = self.unlucky(30);
        let recovery = if long { self.took(5_000, 30_000) } else { self.took(100, 1_500) };
        let as_primary = self.core.restarts_as_primary();
        let pg = &mut self.nodes[slot].pg;
        let Some(data) = pg.data.as_mut().filter(|_| pg.proc == Proc::Stopped) else { return };
        data.following = following;
        data.shutdown_checkpoint = None;
        pg.proc = Proc::Starting;
        pg.started = self.now;
        pg.inc += 1;
        pg.replayed = 0;
        let inc = pg.inc;
        if let Some(epoch) = data.primary_of.filter(|_| as_primary) {
            pg.proc = Proc::Running { primary: true };
            (pg.insert, pg.visible) = (data.tip.lsn, data.tip.lsn);
            self.note(epoch.0, || "a stale primary was started as one".into());
            return;
        }
        data.primary_of = None;
        self.after(recovery, Event::Ready { slot, inc });
    }

    /// All local WAL is replayed. A backup or a rewound copy needs more before it is consistent.
    pub fn recovered(&mut self, slot: Slot, inc: u32) {
        if self.nodes[slot].pg.inc != inc || self.nodes[slot].pg.proc != Proc::Starting {
            return;
        }
        self.maybe_consistent(slot);
        self.after(1, Event::Connect { slot, inc });
    }

    fn maybe_consistent(&mut self, slot: Slot) {
        let pg = &mut self.nodes[slot].pg;
        let Some(data) = pg.data.as_ref().filter(|_| pg.proc == Proc::Starting) else { return };
        if self.wal.contains(data.tip, data.consistent_at) {
            pg.proc = Proc::Running { primary: false };
            pg.replayed = data.tip.lsn;
            self.wake(slot, 1);
        }
    }

    /// A start that neither ends nor receives anything is given up: the copy lacks WAL that only its lost source had.
    pub fn give_up_start(&mut self, slot: Slot) {
        let pg = &self.nodes[slot].pg;
        let hopeless = pg.proc == Proc::Starting && pg.receiver.is_none() && pg.frozen.is_none() && self.now - pg.started > 45_000;
        if hopeless {
            self.crash_postgres(slot);
            self.nodes[slot].agent.needs_clone = Some("the copy never became consistent".into());
        }
    }

    /// wal_sender_timeout and wal_receiver_timeout.
    pub fn give_up_connections(&mut self, slot: Slot) {
        const SILENCE: u64 = 10_000;
        if self.nodes[slot].pg.frozen.is_some() {
            return;
        }
        let now = self.now;
        let mut gone = Vec::new();
        for index in 0..self.nodes[slot].pg.senders.len() {
            let standby = self.nodes[slot].pg.senders[index].standby;
            let reached = self.net.both(Plane::Postgres, slot, standby) && self.nodes[standby].pg_runs();
            let theirs = self.nodes[standby].pg.receiver;
            let sender = &mut self.nodes[slot].pg.senders[index];
            if reached && theirs != Some((slot, sender.conn)) {
                gone.push(sender.conn);
            } else if reached {
                sender.heard = now;
            } else if now - sender.heard > SILENCE {
                gone.push(sender.conn);
            }
        }
        gone.into_iter().for_each(|conn| self.sender_gone(slot, conn));
        let Some((up, conn)) = self.nodes[slot].pg.receiver else { return };
        let known = self.nodes[up].pg.senders.iter().any(|s| s.conn == conn);
        if self.net.both(Plane::Postgres, slot, up) && self.nodes[up].pg_runs() {
            self.nodes[slot].pg.heard = now;
            if !known {
                self.receiver_gone(slot, conn);
            }
        } else if now - self.nodes[slot].pg.heard > SILENCE {
            self.receiver_gone(slot, conn);
        }
    }

    /// The WAL receiver tries to connect, and tries again while it should.
    pub fn connect(&mut self, slot: Slot, inc: u32) {
        let pg = &self.nodes[slot].pg;
        let wants = pg.inc == inc && pg.receiver.is_none() && !pg.runs_as_primary();
        let Some(data) = pg.data.as_ref().filter(|_| wants) else { return };
        let Some(up) = data.following.and_then(|(id, _)| self.slot_of.get(&id).copied()) else { return };
        let (mine, system) = (data.tip, data.system);
        let theirs = self.nodes[up].pg.tip();
        let there = self.nodes[up].pg_runs() && matches!(self.nodes[up].pg.proc, Proc::Running { .. });
        let same = self.nodes[up].pg.data.as_ref().is_some_and(|d| d.system == system);
        let open = up != slot && there && same && self.net.both(Plane::Postgres, slot, up);
        let needed = data.consistent_at;
        if open && pg.proc == Proc::Starting && theirs.is_some_and(|t| !self.wal.contains(t, needed)) {
            // Postgres refuses: the copy's source went another way since.
            self.crash_postgres(slot);
            self.nodes[slot].agent.needs_clone = Some("the timeline does not contain the minimum recovery point".into());
            self.wake(slot, 1);
            return;
        }
        if open && theirs.is_some_and(|t| self.wal.contains(t, mine)) {
            if self.unlucky(5) {
                self.nodes[slot].agent.needs_clone = Some("requested WAL segment has already been removed".into());
            }
            self.connected(slot, up, mine);
            return;
        }
        let delay = self.took(300, 900);
        self.after(delay, Event::Connect { slot, inc });
    }

    fn connected(&mut self, slot: Slot, up: Slot, mine: Tip) {
        let conn = self.fresh_id();
        self.nodes[slot].pg.receiver = Some((up, conn));
        self.nodes[slot].pg.heard = self.now;
        let upstream = &mut self.nodes[up].pg;
        upstream.senders.retain(|s| s.standby != slot);
        let rule = upstream.data.as_ref().and_then(|d| d.rule.clone());
        let sender = Sender { standby: slot, conn, flushed: 0, sent: mine.lsn, in_flight: false, heard: self.now, rule };
        upstream.senders.push(sender);
        let delay = self.latency(slot, up) + 1;
        self.after(delay, Event::Ack { slot: up, conn, flushed: mine.lsn });
        self.wake(slot, 1);
        self.wake(up, 2);
    }

    pub fn receiver_gone(&mut self, slot: Slot, conn: u64) {
        let pg = &mut self.nodes[slot].pg;
        if pg.receiver.is_some_and(|(_, c)| c == conn) {
            pg.receiver = None;
            let inc = pg.inc;
            self.after(200, Event::Connect { slot, inc });
            self.wake(slot, 1);
        }
    }

    pub fn sender_gone(&mut self, slot: Slot, conn: u64) {
        let senders = &mut self.nodes[slot].pg.senders;
        let before = senders.len();
        senders.retain(|s| s.conn != conn);
        if senders.len() < before {
            self.wake(slot, 1);
        }
    }

    /// Send what is flushed and not yet sent.
    pub fn pump(&mut self, slot: Slot) {
        let Some(tip) = self.nodes[slot].pg.tip() else { return };
        if !self.nodes[slot].pg_runs() {
            return;
        }
        for index in 0..self.nodes[slot].pg.senders.len() {
            let sender = &self.nodes[slot].pg.senders[index];
            let (to, conn) = (sender.standby, sender.conn);
            if sender.in_flight || sender.sent >= tip.lsn || !self.net.open(Plane::Postgres, slot, to) {
                continue;
            }
            let sender = &mut self.nodes[slot].pg.senders[index];
            sender.in_flight = true;
            sender.sent = tip.lsn;
            let delay = self.latency(slot, to) + 1;
            self.after(delay, Event::Deliver { slot: to, conn, tip });
        }
    }

    /// WAL arrives at a standby, is flushed and confirmed.
    pub fn deliver(&mut self, slot: Slot, conn: u64, tip: Tip) {
        let Some((up, mine)) = self.nodes[slot].pg.receiver.filter(|(_, c)| *c == conn) else { return };
        if let Some(sender) = self.nodes[up].pg.senders.iter_mut().find(|s| s.conn == conn && mine == conn) {
            sender.in_flight = false;
        }
        if !self.net.open(Plane::Postgres, up, slot) {
            self.resend(up, conn);
            return;
        }
        let pg = &mut self.nodes[slot].pg;
        let Some(data) = &mut pg.data else { return };
        if !self.wal.contains(tip, data.tip) {
            return;
        }
        data.tip = tip;
        pg.replayed = tip.lsn;
        self.maybe_consistent(slot);
        let delay = self.latency(slot, up) + self.took(1, 4);
        self.after(delay, Event::Ack { slot: up, conn, flushed: tip.lsn });
        // A standby passes on what it has to those that follow it.
        self.pump(slot);
    }

    /// What the network swallowed is sent again once it lets packets through.
    fn resend(&mut self, up: Slot, conn: u64) {
        let heard = self.nodes[up].pg.senders.iter_mut().find(|s| s.conn == conn);
        if let Some(sender) = heard {
            sender.sent = sender.flushed;
        }
    }

    pub fn acknowledged(&mut self, slot: Slot, conn: u64, flushed: u64) {
        let Some(index) = self.nodes[slot].pg.senders.iter().position(|s| s.conn == conn) else { return };
        let standby = self.nodes[slot].pg.senders[index].standby;
        if !self.net.open(Plane::Postgres, standby, slot) {
            // In flight while the link was cut: it comes late or never.
            if self.rng.chance(950) {
                self.after(400, Event::Ack { slot, conn, flushed });
            }
            return;
        }
        let sender = &mut self.nodes[slot].pg.senders[index];
        sender.flushed = sender.flushed.max(flushed);
        let rule = sender.rule.clone();
        if self.nodes[slot].pg.runs_as_primary() {
            self.release(slot, rule.as_ref());
        }
        self.pump(slot);
    }

    /// The links healed: connections that survived go on.
    pub fn network_healed(&mut self) {
        for slot in 0..self.nodes.len() {
            for index in 0..self.nodes[slot].pg.senders.len() {
                let sender = &mut self.nodes[slot].pg.senders[index];
                sender.sent = sender.flushed;
                sender.in_flight = false;
            }
            self.pump(slot);
            self.schedule_apply(slot);
        }
    }

    // ---- writing

    /// A transaction writes `bytes` and asks to commit.
    pub fn write(&mut self, slot: Slot, bytes: u64, marker: bool) -> bool {
        let node = &mut self.nodes[slot];
        if !node.pg_runs() || !node.pg.runs_as_primary() {
            return false;
        }
        node.pg.insert += bytes;
        let (end, inc) = (node.pg.insert, node.pg.inc);
        node.pg.pending.push_back(Pending { end, begun: self.now, marker });
        let delay = self.took(1, 8);
        self.after(delay, Event::Flush { slot, inc, end });
        true
    }

    pub fn flushed(&mut self, slot: Slot, inc: u32, end: u64) {
        let pg = &mut self.nodes[slot].pg;
        if pg.inc != inc || !pg.runs_as_primary() {
            return;
        }
        let Some(data) = &mut pg.data else { return };
        data.tip.lsn = data.tip.lsn.max(end);
        let rule = data.rule.clone();
        if rule.as_ref().is_none_or(|r| r.acks == 0) {
            self.release(slot, rule.as_ref());
        }
        self.pump(slot);
    }

    /// Release the commits that `rule` confirms.
    fn release(&mut self, slot: Slot, rule: Option<&SyncRule>) {
        let pg = &self.nodes[slot].pg;
        let Some(tip) = pg.tip() else { return };
        let acks = rule.map_or(0, |r| r.acks);
        let confirmed = match rule.filter(|_| acks > 0) {
            None => tip.lsn,
            Some(rule) => {
                let named = pg.senders.iter().filter(|s| rule.standbys.contains(&self.nodes[s.standby].id));
                let mut positions: Vec<u64> = named.map(|s| s.flushed).collect();
                positions.sort_unstable_by(|a, b| b.cmp(a));
                positions.get(acks - 1).copied().unwrap_or(0)
            }
        };
        self.force_acknowledge_as(slot, confirmed.min(tip.lsn), acks);
    }

    /// Commits up to `end` return to their clients.
    pub fn force_acknowledge(&mut self, slot: Slot, end: u64) {
        self.force_acknowledge_as(slot, end, 1);
    }

    fn force_acknowledge_as(&mut self, slot: Slot, end: u64, acks: usize) {
        let Some(branch) = self.nodes[slot].pg.tip().map(|t| t.branch) else { return };
        let pg = &mut self.nodes[slot].pg;
        if end <= pg.visible {
            return;
        }
        pg.visible = end;
        let mut marker = false;
        while let Some(commit) = self.nodes[slot].pg.pending.front().copied().filter(|p| p.end <= end) {
            self.nodes[slot].pg.pending.pop_front();
            if commit.marker {
                marker = true;
            } else {
                self.acked(slot, Tip { branch, lsn: commit.end }, commit.begun, acks);
            }
        }
        if marker {
            self.marker_acknowledged(slot);
        }
    }

    // ---- synchronous_standby_names

    /// The names are in the configuration: walsenders that start from now on load them.
    pub fn set_names(&mut self, slot: Slot, rule: &SyncRule) {
        if let Some(data) = &mut self.nodes[slot].pg.data {
            data.rule = Some(rule.clone());
        }
    }

    /// Walsenders load the names: some, or all.
    pub fn load_names(&mut self, slot: Slot, rule: &SyncRule, all: bool) {
        for index in 0..self.nodes[slot].pg.senders.len() {
            if all || self.rng.chance(500) {
                self.nodes[slot].pg.senders[index].rule = Some(rule.clone());
            }
        }
        let waiting = self.nodes[slot].pg.runs_as_primary();
        if waiting && all {
            // Narrowed names may satisfy who waits already.
            self.release(slot, Some(&rule.clone()));
        }
    }
}
