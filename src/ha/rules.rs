//! Keeping the rule in step with the standbys that really stream (INV-5, INV-6).

use super::facts::{awaited_rule, fresh_data, max_age, proved, rule_for};
use super::reason::{act, hold};
use super::{Decision, PostgresState, Reason, Role, View};
use crate::cluster::{ClusterState, Command};
use crate::types::NodeId;
use std::collections::BTreeSet;

/// A standby further behind than this is still catching up; commits should not wait for it.
const CAUGHT_UP_BYTES: u64 = 16 << 20;

/// Steady, nothing else to do: settle the rule in flight, or propose the one that fits the living standbys.
pub(super) fn tend_rule(s: &ClusterState, v: &View, primary: NodeId) -> Decision {
    let calm = if s.paused { Reason::Paused } else { Reason::AllWell };
    let Some(o) = v.fresh(primary, max_age(s)) else {
        return hold(Reason::PrimarySilent { primary });
    };
    let Some(rule) = s.rules.last() else {
        return hold(calm);
    };
    // INV-6: only a marker write acknowledged under the newest rule settles it.
    let in_flight = s.rules.len() > 1;
    if in_flight && proved(s, o).is_some() {
        return act(Command::SettleRule { epoch: s.epoch, rule: rule.clone(), outage_ms: None }, Reason::RuleSettled);
    }
    let live = standbys_of(s, v, primary);
    match rule_for(s, primary, &live) {
        Ok(want) if want != *rule => act(Command::ProposeRule { rule: want }, Reason::StandbysChanged),
        Ok(_) if in_flight => hold(Reason::WaitingForProof),
        Ok(_) => hold(calm),
        // A weaker rule, from before the policy forbade it, must not go on acknowledging.
        Err(need) => {
            let want = awaited_rule(s, primary, need);
            if want.acks > rule.acks {
                act(Command::ProposeRule { rule: want }, Reason::StandbysChanged)
            } else {
                hold(Reason::TooFewStandbys { have: live.len(), need })
            }
        }
    }
}

/// Standbys that the primary sees streaming, near enough, and that we hear ourselves. A copy in the making streams, too, before it is
/// consistent: were it to break off then it could never tell what it had confirmed (INV-4).
pub(super) fn standbys_of(s: &ClusterState, v: &View, primary: NodeId) -> BTreeSet<NodeId> {
    let fresh = fresh_data(s, v);
    let Some(o) = fresh.get(&primary).filter(|o| o.postgres.role == Some(Role::Primary)) else {
        return BTreeSet::new();
    };
    let end = o.postgres.position.map(|p| p.lsn).unwrap_or_default();
    o.postgres
        .standbys
        .iter()
        .filter(|(n, standby)| {
            **n != primary
                && fresh.get(n).is_some_and(|o| !o.leaving && can_keep(o.postgres.state))
                && standby.streaming
                && standby.flushed.behind(end) <= CAUGHT_UP_BYTES
        })
        .map(|(n, _)| *n)
        .collect()
}

/// A server that hangs for a moment still has what it confirmed.
fn can_keep(state: PostgresState) -> bool {
    match state {
        PostgresState::Running | PostgresState::Unknown => true,
        PostgresState::Absent
        | PostgresState::Stopped
        | PostgresState::Starting
        | PostgresState::Stopping
        | PostgresState::Cloning
        | PostgresState::Rewinding => false,
    }
}
