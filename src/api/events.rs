//! What happened, in order: differences between successive documents, remembered in a bounded ring and broadcast.
//!
//! `difference` is PURE. The ring forgets the oldest; a consumer that is too slow is told so with the revision to resume from,
//! and never slows anybody down. Observations (reachability, states) carry the revision at which they were seen; several events
//! may share a revision.

use super::{ClusterAccess, Snapshot, status};
use crate::cluster::{ClusterState, HistoryEntry};
use crate::proto::v1::{ClusterStatus, Event};
use crate::telemetry::wall_clock;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Events kept for those who ask later: some hours of a restless cluster.
const REMEMBERED_MAX: usize = 4_096;
/// Events a consumer may lie behind before it is dropped.
const BEHIND_MAX: usize = 256;
/// Silence is noticed by comparing at least this often; changes are noticed at once.
const TICK: Duration = Duration::from_millis(500);

/// Ring and broadcast of events.
#[derive(Debug)]
pub struct EventLog {
    ring: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
}

impl Default for EventLog {
    fn default() -> Self {
        EventLog { ring: Mutex::new(VecDeque::new()), live: broadcast::channel(BEHIND_MAX).0 }
    }
}

impl EventLog {
    /// Record an event.
    pub fn publish(&self, event: Event) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == REMEMBERED_MAX {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Sent under the lock, so that a subscriber sees each event exactly once: remembered or live. Nobody listening is fine.
        drop(self.live.send(event));
    }

    /// Remembered events after a revision (`None`: none of them), and the live ones from here on.
    pub fn subscribe(&self, after_revision: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = after_revision.map(|after| ring.iter().filter(|e| e.revision > after || after == 0).cloned().collect());
        (remembered.unwrap_or_default(), self.live.subscribe())
    }

    /// Watch the cluster and record what changes, until cancelled. Run it as one task of the node.
    pub async fn follow(&self, mut access: ClusterAccess, cancel: CancellationToken) {
        let mut before: Option<(Snapshot, ClusterStatus)> = None;
        while !cancel.is_cancelled() {
            let snapshot = access.snapshot();
            let document = status(&snapshot);
            if let Some((old, old_document)) = &before {
                let seen = difference((old, old_document), (&snapshot, &document));
                seen.into_iter().for_each(|event| self.publish(event));
            }
            before = Some((snapshot, document));
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = access.state.changed() => if changed.is_err() { return },
                changed = access.decision.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }
}

/// What happened between two snapshots.
fn difference(old: (&Snapshot, &ClusterStatus), new: (&Snapshot, &ClusterStatus)) -> Vec<Event> {
    let mut found = Found { state: &new.0.state, unix_ms: u64::try_from(wall_clock().as_millis()).unwrap_or_default(), events: Vec::new() };
    elections(&old.0.state, &mut found);
    administration(&old.0.state, &mut found);
    membership(&old.0.state, &mut found);
    observations(old.1, new.1, &mut found);
    if old.1.reason != new.1.reason && !new.1.reason.is_empty() {
        found.push("decision", None, new.1.reason.clone());
    }
    found.events
}

struct Found<'a> {
    state: &'a ClusterState,
    unix_ms: u64,
    events: Vec<Event>,
}

impl Found<'_> {
    fn push(&mut self, kind: &str, node: Option<String>, message: String) {
        let (revision, epoch) = (self.state.revision.0, self.state.epoch.0);
        self.events.push(Event { revision, epoch, kind: kind.to_owned(), message, node, unix_ms: self.unix_ms });
    }
}

fn elections(old: &ClusterState, found: &mut Found<'_>) {
    let new = found.state;
    if old.epoch != new.epoch || old.phase.word() != new.phase.word() {
        found.push("phase", new.primary().map(|n| new.name_of(n)), format!("{} (epoch {})", new.phase.word(), new.epoch));
    }
    let settled = |entry: &&HistoryEntry| entry.settled;
    let known = old.history.iter().filter(settled).map(|e| e.epoch).max().unwrap_or_default();
    for entry in new.history.iter().filter(settled).filter(|e| e.epoch > known) {
        let name = new.name_of(entry.to);
        let outage = entry.outage_ms.map_or(String::new(), |ms| format!(", writes were out for {ms} ms"));
        let loss = if entry.accept_loss { ", possible data loss accepted" } else { "" };
        let message = format!("{name} is primary ({}, epoch {}){outage}{loss}", super::documents::cause_word(entry.cause), entry.epoch);
        found.push("primary", Some(name), message);
    }
    if old.rules != new.rules
        && let Some(rule) = new.rules.last()
    {
        let names: Vec<String> = rule.standbys.iter().map(|n| new.name_of(*n)).collect();
        let settled = if new.rules.len() > 1 { "being put in force" } else { "in force" };
        let message = match rule.acks {
            0 => format!("commits wait for no standby: {settled}"),
            acks => format!("commits wait for any {acks} of {}: {settled}", names.join(", ")),
        };
        found.push("rule", None, message);
    }
}

fn administration(old: &ClusterState, found: &mut Found<'_>) {
    let new = found.state;
    if old.paused != new.paused {
        let message = if new.paused { "paused: automatic failover is off" } else { "resumed: automatic failover is on" };
        found.push("pause", None, message.to_owned());
    }
    if let Some(change) = new.change.filter(|change| old.change != Some(*change)) {
        let to = new.name_of(change.to);
        found.push("switchover", Some(to.clone()), format!("change of primary to {to} requested"));
    }
    if let Some(called_off) = new.called_off.as_ref().filter(|c| old.called_off.as_ref() != Some(c)) {
        found.push("switchover", None, super::status::with_names(&format!("called off: {}", called_off.reason), new));
    }
    if old.settings != new.settings {
        let (before, after) = (crate::config::show_settings(&old.settings), crate::config::show_settings(&new.settings));
        for (key, value) in after.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
            found.push("settings", None, format!("{key} = {value}"));
        }
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            found.push("settings", None, format!("{key} removed"));
        }
    }
}

fn membership(old: &ClusterState, found: &mut Found<'_>) {
    let new = found.state;
    for (node, member) in new.members.iter().filter(|(node, _)| !old.members.contains_key(node)) {
        found.push("member", Some(member.name.to_string()), format!("{} joined as {node}", member.name));
    }
    for (node, member) in old.members.iter().filter(|(node, _)| !new.members.contains_key(node)) {
        found.push("member", Some(member.name.to_string()), format!("{} ({node}) left", member.name));
    }
    for (node, member) in &new.members {
        if old.members.get(node).is_some_and(|before| before.tags != member.tags) {
            found.push("member", Some(member.name.to_string()), format!("tags of {} changed", member.name));
        }
        let (was, is) = (old.fences.contains(node), new.fences.contains(node));
        if was != is {
            let word = if is { "fenced" } else { "no longer fenced" };
            found.push("fence", Some(member.name.to_string()), format!("{} is {word}", member.name));
        }
    }
}

fn observations(old: &ClusterStatus, new: &ClusterStatus, found: &mut Found<'_>) {
    for member in &new.members {
        let Some(before) = old.members.iter().find(|m| m.id == member.id) else { continue };
        if (&before.state, &before.role) != (&member.state, &member.role) {
            let step = if member.step.is_empty() { String::new() } else { format!(": {}", member.step) };
            let message = format!("{} is {} ({}){step}", member.name, member.state, member.role);
            found.push("node", Some(member.name.clone()), message);
        }
    }
}
