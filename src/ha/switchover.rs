//! A planned change: prepare while the primary serves, drain it, then one ordinary election.

use super::decide::{begin, loss, ordered_otherwise, unheard};
use super::facts::{covers, eligible, max_age, missing, newest_writer, sealable};
use super::reason::{CandidateLack, act, hold};
use super::{Decision, Reason, Role, View};
use crate::cluster::{ClusterState, Command, ElectionCause, PlannedChange};
use crate::types::NodeId;
use std::time::Duration;

/// Steady with a wish: the candidate must be near and the primary checkpointed before anybody is made to wait.
pub(super) fn prepare(s: &ClusterState, v: &View, primary: NodeId, change: PlannedChange) -> Decision {
    let to = change.to;
    if change.from != Some(primary) {
        return call_off(format!("{} became primary meanwhile", s.name_of(primary)));
    }
    if !eligible(s, to) {
        return call_off(format!("{} is fenced, a witness, or tagged nofailover", s.name_of(to)));
    }
    if v.fresh(to, max_age(s)).is_some_and(|o| o.leaving) {
        return call_off(format!("{} is stopping", s.name_of(to)));
    }
    let lack = lack_of(s, v, primary, to);
    if let (Some(why), true) = (lack, late(s, v)) {
        return call_off(format!("{} was not ready in time: {why}", s.name_of(to)));
    }
    if let Some(why) = lack {
        return hold(Reason::WaitingForCandidate { to, why });
    }
    let prepared = v.fresh(primary, max_age(s)).is_some_and(|o| o.prepared == Some(change.request));
    match (prepared, s.rules.len()) {
        (true, 1) => act(Command::StartDrain { from: primary, to }, Reason::Prepared { to }),
        (true | false, _) if late(s, v) => call_off("the primary's checkpoint took too long".to_owned()),
        (true | false, _) => super::rules::tend_rule(s, v, primary).or_hold(Reason::Preparing { to }),
    }
}

/// The primary shuts down. Until that has begun the change can be called off, and the old primary resumes.
pub(super) fn draining(s: &ClusterState, v: &View, from: NodeId, to: NodeId) -> Decision {
    if let Some((cause, reason)) = loss(s, v, from) {
        let present = sealable(s, v);
        let covered = covers(s, &present, newest_writer(v, &present));
        if let Some(decision) = ordered_otherwise(s, None, false) {
            // A loss was accepted for the case that the drain fails. It ended in order, and nothing need be lost.
            let to = s.change.map(|change| change.to);
            let spared = covered && cause == ElectionCause::PrimaryDown;
            return if spared { act(begin(s, to, ElectionCause::Manual, false), decision.reason) } else { decision };
        }
        if !covered {
            return hold(Reason::NotElectable { missing: missing(s, &present) });
        }
        return match cause {
            ElectionCause::PrimaryDown => act(begin(s, Some(to), ElectionCause::Switchover, false), Reason::Drained { to }),
            ElectionCause::Bootstrap
            | ElectionCause::LeaseExpired
            | ElectionCause::ProvenDead
            | ElectionCause::Switchover
            | ElectionCause::Manual
            | ElectionCause::CandidateLost => act(begin(s, Some(to), cause, false), reason),
        };
    }
    let Some(o) = v.fresh(from, max_age(s)) else {
        return hold(unheard(s, v, from));
    };
    let in_flight = s.members.keys().filter_map(|n| v.fresh(*n, max_age(s))).map(|o| o.proxy_in_flight).sum();
    if o.drain_committed {
        return hold(Reason::WaitingForDrain { in_flight });
    }
    if v.fresh(to, max_age(s)).is_none() {
        return call_off(format!("{} was lost during the drain", s.name_of(to)));
    }
    if late(s, v) {
        return call_off("the drain took too long".to_owned());
    }
    hold(Reason::WaitingForDrain { in_flight })
}

fn lack_of(s: &ClusterState, v: &View, primary: NodeId, to: NodeId) -> Option<CandidateLack> {
    if v.fresh(to, max_age(s)).is_none() {
        return Some(CandidateLack::Unreachable);
    }
    let o = v.fresh(primary, max_age(s))?;
    let seen = o.postgres.standbys.get(&to).filter(|x| x.streaming && o.postgres.role == Some(Role::Primary));
    let Some(standby) = seen else {
        return Some(CandidateLack::NotStreaming);
    };
    let end = o.postgres.position.map(|p| p.lsn).unwrap_or_default();
    let bytes = standby.replayed.behind(end);
    (bytes > s.settings.max_lag_bytes).then_some(CandidateLack::Behind { bytes })
}

fn late(s: &ClusterState, v: &View) -> bool {
    v.now.since(v.phase_since) > Duration::from_millis(s.settings.switchover_timeout_ms)
}

fn call_off(why: String) -> Decision {
    act(Command::CallOff { reason: why.clone() }, Reason::ChangeImpossible { why })
}

impl Decision {
    /// This decision if it acts, otherwise a hold with the more telling reason.
    fn or_hold(self, reason: Reason) -> Decision {
        match self.command {
            Some(_) => self,
            None => hold(reason),
        }
    }
}
