//! Elections: wait until the sealed cover all rules, choose the most advanced, see its promotion through.

use super::decide::{begin, last_known, ordered_otherwise};
use super::facts::{
    awaited_rule, covers, eligible, fresh_data, is_async, lease_expired, max_age, missing, newest_writer, proved, proven_dead, rule_for,
    sealable, seals, uncovered,
};
use super::reason::{act, hold};
use super::rules::standbys_of;
use super::{Decision, NodeObservation, PostgresState, Reason, Role, Seal, View};
use crate::cluster::{ClusterState, Command, ElectionCause, SyncRule};
use crate::types::{Epoch, NodeId, WalPosition};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Once covered, how long to wait for other living members, so that the best tie-break wins and the new rule is wide.
const GRACE_ALL: Duration = Duration::from_millis(150);
/// How long to wait for the member that an administrator prefers.
const GRACE_PREFERRED: Duration = Duration::from_secs(3);

pub(super) fn elect(s: &ClusterState, v: &View, preferred: Option<NodeId>, accept_loss: bool) -> Decision {
    let sealed = seals(s, v);
    let waited = v.now.since(v.phase_since);
    if accept_loss {
        return elect_at_loss(s, v, preferred, &sealed);
    }
    let electors: BTreeSet<NodeId> = sealed.keys().copied().collect();
    // INV-4, INV-5: every rule in flight, old and new, must be covered.
    if !covers(s, &electors, newest(&sealed)) {
        return hold(Reason::WaitingForSeals { missing: missing(s, &electors) });
    }
    let expected = about_to_seal(s, v);
    if let Some(node) = preferred.filter(|n| expected.contains(n) && !electors.contains(n) && waited < GRACE_PREFERRED) {
        return hold(Reason::WaitingForPreferred { node });
    }
    if waited < GRACE_ALL && !expected.is_subset(&electors) {
        return hold(Reason::WaitingForSeals { missing: expected.difference(&electors).copied().collect() });
    }
    choose(s, v, preferred, &sealed)
}

/// Living standbys, which seal within milliseconds; a copy in crash recovery is not waited for.
fn about_to_seal(s: &ClusterState, v: &View) -> BTreeSet<NodeId> {
    let quick = |o: &NodeObservation| o.postgres.state == PostgresState::Running && o.postgres.role == Some(Role::Standby);
    fresh_data(s, v).into_iter().filter(|(_, o)| quick(o)).map(|(n, _)| n).collect()
}

/// INV-7: the winner's WAL is at least as advanced as that of every elector whom the election needs; preference only breaks ties, and one
/// that was elected just now and did not get there comes last among them.
fn choose(s: &ClusterState, v: &View, preferred: Option<NodeId>, sealed: &BTreeMap<NodeId, Seal>) -> Decision {
    // INV-4: where those who may win cover all rules, what only another holds was confirmed to nobody, and must not keep them from winning.
    let may_win = |n: &NodeId, seal: &Seal| !seal.ruined && eligible(s, *n);
    let able: BTreeMap<NodeId, Seal> = sealed.iter().filter(|(n, seal)| may_win(n, seal)).map(|(n, seal)| (*n, *seal)).collect();
    let needed = if covers(s, &able.keys().copied().collect(), newest(&able)) { &able } else { sealed };
    let Some((newest, best)) = needed.iter().max_by_key(|(_, seal)| seal.end).map(|(n, seal)| (*n, seal.end)) else {
        return hold(Reason::WaitingForSeals { missing: s.data_members().collect() });
    };
    if !within_loss_bound(s, v, needed, best) {
        return hold(Reason::LossBoundExceeded);
    }
    let priority = |n: NodeId| s.members.get(&n).map_or(0, |m| m.tags.priority);
    let tied = needed.iter().filter(|(n, seal)| seal.end == best && may_win(n, seal)).map(|(n, _)| *n);
    let failed = s.history.last().filter(|h| !h.settled).map(|h| h.to);
    let Some(node) = tied.max_by_key(|n| (Some(*n) == preferred, failed != Some(*n), priority(*n), Reverse(*n))) else {
        return hold(Reason::NewestNotEligible { node: newest });
    };
    let command = Command::Elect { candidate: node, rule: first_rule(s, node, sealed), lsn: best.lsn };
    act(command, Reason::MostAdvanced { node, position: best })
}

/// The administrator named the node and accepted the loss: only its own seal is needed.
fn elect_at_loss(s: &ClusterState, v: &View, preferred: Option<NodeId>, sealed: &BTreeMap<NodeId, Seal>) -> Decision {
    let Some(node) = preferred else {
        return hold(Reason::NotElectable { missing: missing(s, &sealable(s, v)) });
    };
    if let Some(seal) = sealed.get(&node).filter(|seal| !seal.ruined) {
        let command = Command::Elect { candidate: node, rule: first_rule(s, node, sealed), lsn: seal.end.lsn };
        return act(command, Reason::LossAccepted { node });
    }
    // The named copy may never come up (its WAL's source is gone). Where the others suffice to lose nothing, the order is moot.
    let electors: BTreeSet<NodeId> = sealed.keys().copied().collect();
    let overdue = v.now.since(v.phase_since) > Duration::from_millis(s.settings.switchover_timeout_ms);
    if overdue && covers(s, &electors, newest(sealed)) {
        return act(begin(s, None, ElectionCause::CandidateLost, false), Reason::CandidateSlow { candidate: node });
    }
    hold(Reason::WaitingForPreferred { node })
}

fn newest(sealed: &BTreeMap<NodeId, Seal>) -> Option<Epoch> {
    sealed.values().map(|seal| seal.end.writer).max()
}

/// Where an asynchronous rule is not covered, the last known end of its primary's WAL bounds what is lost.
fn within_loss_bound(s: &ClusterState, v: &View, sealed: &BTreeMap<NodeId, Seal>, best: WalPosition) -> bool {
    let electors: BTreeSet<NodeId> = sealed.keys().copied().collect();
    uncovered(s, &electors, newest(sealed))
        .filter(|rule| is_async(s, rule))
        .all(|rule| last_known(v, rule.primary).is_some_and(|end| best.lsn.behind(end) <= s.settings.max_lag_bytes))
}

/// The rule that the new primary starts with: the sealed; where they are too few for the policy, every member that may confirm.
fn first_rule(s: &ClusterState, candidate: NodeId, sealed: &BTreeMap<NodeId, Seal>) -> SyncRule {
    let live: BTreeSet<NodeId> = sealed.iter().filter(|(_, seal)| !seal.ruined).map(|(n, _)| *n).collect();
    rule_for(s, candidate, &live).unwrap_or_else(|acks| awaited_rule(s, candidate, acks))
}

/// Promoting: until the candidate has proved its rule, or is lost.
pub(super) fn confirm(s: &ClusterState, v: &View, candidate: NodeId) -> Decision {
    if let Some(reason) = candidate_lost(s, v, candidate) {
        if let Some(decision) = ordered_otherwise(s, None, false) {
            return decision;
        }
        let present = sealable(s, v);
        return match covers(s, &present, newest_writer(v, &present)) {
            true => act(begin(s, None, ElectionCause::CandidateLost, false), reason),
            false => hold(Reason::NotElectable { missing: missing(s, &present) }),
        };
    }
    let Some(o) = v.fresh(candidate, max_age(s)) else {
        return hold(Reason::PrimarySilent { primary: candidate });
    };
    if let Some(rule) = proved(s, o) {
        let outage = u64::try_from(v.now.since(v.writable_last).as_millis()).ok().filter(|_| v.writable_last.0 > 0);
        return act(Command::SettleRule { epoch: s.epoch, rule: rule.clone(), outage_ms: outage }, Reason::RuleSettled);
    }
    if s.lease.holder.is_none() {
        return hold(Reason::WaitingForLease { candidate });
    }
    if o.postgres.role == Some(Role::Primary) && o.promised == s.epoch {
        return await_proof(s, v, candidate);
    }
    hold(Reason::WaitingForPromotion { candidate })
}

fn candidate_lost(s: &ClusterState, v: &View, candidate: NodeId) -> Option<Reason> {
    let waited = v.now.since(v.phase_since);
    let never_took = s.lease.holder.is_none() && s.lease.seq == 0;
    let gave_back = s.lease.holder.is_none() && s.lease.seq > 0;
    let expired = s.lease.holder.is_some() && lease_expired(s, v);
    if gave_back || expired || proven_dead(s, v, candidate) || (never_took && waited > s.lease_wait()) {
        return Some(Reason::CandidateLost { candidate });
    }
    let promoted = v.fresh(candidate, max_age(s)).is_some_and(|o| o.postgres.role == Some(Role::Primary));
    let too_slow = waited > Duration::from_millis(s.settings.promotion_timeout_ms) && !promoted;
    // A slow candidate that holds the lease must give it back, or let it run out, before another is chosen.
    (too_slow && s.lease.holder.is_none()).then_some(Reason::CandidateSlow { candidate })
}

/// Promoted, not yet proved. When too few of the rule's standbys are left to confirm, the living ones take their place.
fn await_proof(s: &ClusterState, v: &View, candidate: NodeId) -> Decision {
    let live = standbys_of(s, v, candidate);
    let Some(rule) = s.rules.last() else {
        return hold(Reason::WaitingForPromotion { candidate });
    };
    let starved = live.intersection(&rule.standbys).count() < rule.acks;
    let absent = rule.standbys.iter().all(|n| !may_come(s, v, *n));
    match rule_for(s, candidate, &live) {
        Ok(want) if starved && want != *rule && (want.acks > 0 || absent) => {
            act(Command::ProposeRule { rule: want }, Reason::StandbysChanged)
        }
        Ok(_) | Err(_) if starved => hold(Reason::WaitingForStandby { candidate }),
        Ok(_) | Err(_) => hold(Reason::WaitingForProof),
    }
}

/// Will this standby stream soon? Then the primary need not go on alone.
fn may_come(s: &ClusterState, v: &View, node: NodeId) -> bool {
    fresh_data(s, v).get(&node).is_some_and(|o| match o.postgres.state {
        PostgresState::Running | PostgresState::Starting | PostgresState::Stopped | PostgresState::Stopping | PostgresState::Rewinding => {
            true
        }
        PostgresState::Unknown | PostgresState::Absent | PostgresState::Cloning => false,
    })
}
