//! Switchover and failover: request it, then follow the election to its end.

use super::{ActionError, Actions};
use crate::api::status::with_names;
use crate::bug::{self, Bug};
use crate::cluster::{ChangeKind, ClusterState, Command, Phase};
use crate::types::NodeId;
use std::time::Duration;

/// An election that stands still for this long will not end without help.
const STUCK_AFTER: Duration = Duration::from_secs(12);

/// Where a change of primary has come to.
enum Course {
    /// What goes on, in words.
    Going(String),
    /// No election can end as things are; holds the reason.
    Electing(String),
    Done(String),
    Failed(String),
}

impl Actions {
    /// Hand the primaryship over to `to`, or to the best candidate. No write is lost, pooled clients see no error.
    pub async fn switchover(&self, to: Option<&str>) -> Result<String, ActionError> {
        if bug::is(Bug::SwitchoverSaidDone) {
            return Ok("done".to_owned());
        }
        let chosen = match to {
            Some(name) => Some(self.member(name)?),
            // A retry must mean the member that the first try chose.
            None if self.took_effect() => self.state().change.filter(|c| c.request == self.request).map(|c| c.to),
            None => Some(self.successor()?),
        };
        if let (Some(node), Some(primary), false) = (chosen, self.steady(), self.took_effect())
            && node == primary
        {
            return Err(ActionError::Refused(format!("{} is the primary already", self.state().name_of(node))));
        }
        if let Some(node) = chosen {
            self.say(format!("switching over to {}", self.state().name_of(node)));
            self.propose(|_| Ok(Command::RequestSwitchover { to: node })).await?;
        }
        self.follow_change(chosen).await
    }

    /// Elect `to` although the primary is lost and the cluster does not go on by itself.
    pub async fn failover(&self, to: &str, accept_loss: bool) -> Result<String, ActionError> {
        let node = self.member(to)?;
        let warning = if accept_loss { ", acknowledged writes may be lost" } else { "" };
        self.say(format!("failing over to {to}{warning}"));
        self.propose(|_| Ok(Command::RequestFailover { to: node, accept_loss })).await?;
        self.follow_change(Some(node)).await
    }

    async fn follow_change(&self, to: Option<NodeId>) -> Result<String, ActionError> {
        let settings = self.state().settings.clone();
        let patience = Duration::from_millis(settings.switchover_timeout_ms + settings.promotion_timeout_ms) + Duration::from_secs(10);
        let clock = self.access.clock;
        let deadline = clock.now().after(patience);
        let (mut state, mut decision) = (self.access.state.clone(), self.access.decision.clone());
        let mut told = String::new();
        let mut electing_since = None;
        loop {
            let now_at = self.state();
            let reason = with_names(&self.access.snapshot().reason, &now_at);
            let line = match course(&now_at, self.request, to, &reason) {
                Course::Done(line) => return Ok(line),
                Course::Failed(why) => return Err(ActionError::Failed(why)),
                Course::Going(line) => {
                    electing_since = None;
                    line
                }
                Course::Electing(line) => {
                    let since = *electing_since.get_or_insert(clock.now());
                    if clock.now().since(since) >= STUCK_AFTER {
                        return Err(ActionError::Failed(stuck(&now_at, to, &reason)));
                    }
                    line
                }
            };
            if line != told {
                self.say(line.clone());
                told = line;
            }
            if clock.now() >= deadline {
                let seconds = patience.as_secs();
                return Err(ActionError::Unknown(format!(
                    "not finished after {seconds} s: {told}; `trilithon status` shows how it goes on"
                )));
            }
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| stopping())?,
                changed = decision.changed() => changed.map_err(|_| stopping())?,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}

/// PURE: what the state says about the change requested by `request`.
fn course(state: &ClusterState, request: crate::types::RequestId, to: Option<NodeId>, reason: &str) -> Course {
    if let Some(called_off) = state.called_off.as_ref().filter(|c| c.request == request) {
        return Course::Failed(format!("called off: {}", with_names(&called_off.reason, state)));
    }
    let name = |node: NodeId| state.name_of(node);
    let ours = state.change.filter(|change| change.request == request);
    match state.phase {
        Phase::Steady { .. } if ours.is_some() => {
            let waits_for_lease = ours.is_some_and(|c| matches!(c.kind, ChangeKind::Failover { .. }));
            let what = if waits_for_lease { "waiting for the old primary's lease to end" } else { "preparing" };
            Course::Going(format!("{what}: {reason}"))
        }
        Phase::Steady { primary } if to.is_none_or(|to| to == primary) => Course::Done(done(state, primary)),
        Phase::Steady { primary } => Course::Failed(format!("{} is primary, not the one asked for: {reason}", name(primary))),
        Phase::Draining { from, to } => Course::Going(format!("draining {}, then {}: {reason}", name(from), name(to))),
        Phase::Electing { .. } => Course::Electing(format!("electing (epoch {}): {reason}", state.epoch)),
        Phase::Promoting { candidate } => Course::Going(format!("promoting {}: {reason}", name(candidate))),
        Phase::Empty | Phase::Bootstrapping { .. } => Course::Failed("the cluster has no database yet".into()),
    }
}

fn done(state: &ClusterState, primary: NodeId) -> String {
    let entry = state.history.iter().rev().find(|entry| entry.to == primary && entry.settled);
    let timeline = entry.and_then(|e| e.timeline).map_or(String::new(), |t| format!(", timeline {t}"));
    let outage = entry.and_then(|e| e.outage_ms).map_or(String::new(), |ms| format!(", writes were out for {ms} ms"));
    format!("{} is primary (epoch {}{timeline}{outage})", state.name_of(primary), state.epoch)
}

fn stuck(state: &ClusterState, to: Option<NodeId>, reason: &str) -> String {
    let to = to.map_or_else(|| "NAME".to_owned(), |node| state.name_of(node));
    format!(
        "the election does not end: {reason}; it goes on by itself when those members return; where they never will, \
         `trilithon failover --to {to} --allow-data-loss` elects {to} now and may lose acknowledged writes"
    )
}

fn stopping() -> ActionError {
    ActionError::Unknown("this node is stopping; ask another endpoint with `trilithon status`".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Addresses, CalledOff, Member, MemberKind, PlannedChange, Tags};
    use crate::types::{Epoch, NodeName, RequestId};

    const MINE: RequestId = RequestId(7);

    /// dc1 is the steady primary of dc1, dc2 and dc3.
    fn steady_state() -> ClusterState {
        let member = |n: u64| Member {
            name: NodeName(format!("dc{n}")),
            datacenter: format!("dc{n}"),
            kind: MemberKind::Data,
            addresses: Addresses::default(),
            tags: Tags::default(),
        };
        ClusterState {
            epoch: Epoch(1),
            phase: Phase::Steady { primary: NodeId(1) },
            members: (1..=3).map(|n| (NodeId(n), member(n))).collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn a_change_ends_when_the_cluster_is_steady_under_the_one_asked_for() {
        let mut state = steady_state();
        let (dc1, dc2) = (NodeId(1), NodeId(2));
        state.change = Some(PlannedChange { request: MINE, from: Some(dc1), to: dc2, kind: ChangeKind::Switchover });
        assert!(matches!(course(&state, MINE, Some(dc2), "r"), Course::Going(line) if line == "preparing: r"));
        state.change = None;
        state.epoch = Epoch(2);
        state.phase = Phase::Electing { preferred: Some(dc2), accept_loss: false };
        assert!(matches!(course(&state, MINE, Some(dc2), "r"), Course::Electing(_)));
        state.phase = Phase::Steady { primary: dc2 };
        assert!(matches!(course(&state, MINE, Some(dc2), "r"), Course::Done(line) if line.starts_with("dc2 is primary (epoch 2")));
        assert!(matches!(course(&state, MINE, Some(NodeId(3)), "r"), Course::Failed(_)));
    }

    #[test]
    fn a_change_that_was_called_off_fails_with_the_reason() {
        let mut state = steady_state();
        state.called_off = Some(CalledOff { request: MINE, reason: "n2 is behind".into() });
        assert!(matches!(course(&state, MINE, None, ""), Course::Failed(why) if why == "called off: dc2 is behind"));
        assert!(matches!(course(&state, RequestId(8), None, ""), Course::Done(_)), "another request's end is not ours");
    }
}
