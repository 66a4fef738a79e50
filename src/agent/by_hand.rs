//! A server that somebody promoted by hand. It acknowledges nothing and is stopped; but the timeline that it took may have the number that is claimed
//! for another, so that its end of WAL would count in elections, and it would follow its namesake.

use super::observe;
use super::turn::Loop;
use crate::cluster::ClusterState;
use crate::ha::{PostgresFacts, Role, Upstream};
use crate::postgres::PostgresError;
use crate::types::{Epoch, Lsn, NodeId, Timeline};
use std::collections::BTreeSet;
use std::time::Duration;

/// For writing the mark down, which the server's stop must not wait for where a disk hangs.
const MARK_LIMIT: Duration = Duration::from_millis(500);
/// A mark that may not be on disk is written again after so long.
const MARK_AGAIN: Duration = Duration::from_secs(5);

impl Loop {
    /// Before the facts are gathered: does the mark still hold?
    pub(super) async fn review_mark(&self, s: &ClusterState) {
        let own = own_after_all(s, self.agent.me, &self.agent.postgres.by_hand());
        if !own.is_empty() && !self.written(self.agent.postgres.own(&own)).await {
            tracing::warn!(timelines = names(&own), "that these timelines belong to the cluster is not on disk yet");
        }
    }

    /// Is it on disk? It counts from now on, whatever the disk does.
    async fn written(&self, change: impl Future<Output = Result<(), PostgresError>>) -> bool {
        matches!(tokio::time::timeout(MARK_LIMIT, change).await, Ok(Ok(())))
    }

    /// Marks a server that somebody promoted, and has it copied where its namesake is the primary.
    pub(super) async fn mark_by_hand(&mut self, s: &ClusterState, facts: &PostgresFacts, upstream: Option<&Upstream>) {
        let postgres = &self.agent.postgres;
        let taken = made_by_hand(s, self.agent.me, facts, postgres.promoted());
        let news = !taken.is_subset(&postgres.by_hand());
        if news {
            tracing::warn!(
                timelines = names(&taken),
                "somebody promoted PostgreSQL by hand: what it holds of these timelines is no part of the cluster"
            );
        }
        let now = self.agent.clock.now();
        if news || self.memory.unmarked.is_some_and(|again| now >= again) {
            let marked = self.written(postgres.disown(taken)).await;
            self.memory.unmarked = (!marked).then(|| now.after(MARK_AGAIN));
        }
        if let Some(why) = upstream.and_then(|upstream| impostor(facts, &postgres.by_hand(), upstream)) {
            self.memory.need_clone(why, s.epoch);
        }
    }
}

/// The timelines of a running primary that nobody ordered: neither this node nor the cluster knows of them. A cluster without claims, or a
/// node that has not heard of them yet, knows nothing.
fn made_by_hand(s: &ClusterState, me: NodeId, facts: &PostgresFacts, promoted: Option<(Epoch, Timeline)>) -> BTreeSet<Timeline> {
    let Some(timeline) = facts.timeline.filter(|_| facts.role == Some(Role::Primary) && !s.timelines.0.is_empty()) else {
        return BTreeSet::new();
    };
    if promoted.is_some_and(|(_, ordered)| ordered == timeline) || observe::primary_of(s, me, facts).is_some() {
        return BTreeSet::new();
    }
    // Somebody may have done it more than once, too quickly to be seen.
    let before = facts.ancestry.iter().rev().map(|(timeline, _)| *timeline).take_while(|timeline| s.timelines.get(*timeline).is_none());
    let since_claimed: BTreeSet<Timeline> = before.collect();
    let all_unclaimed = since_claimed.len() == facts.ancestry.len();
    // Those of an adopted database, which were there before any claim, are everybody's.
    if all_unclaimed { [timeline].into() } else { since_claimed.into_iter().chain([timeline]).collect() }
}

/// The numbers that were claimed for this very node, after somebody had taken them: it was elected for what it held before, so all of it counts.
fn own_after_all(s: &ClusterState, me: NodeId, by_hand: &BTreeSet<Timeline>) -> BTreeSet<Timeline> {
    by_hand.iter().copied().filter(|timeline| s.timelines.get(*timeline).is_some_and(|claim| claim.node == me)).collect()
}

fn names(timelines: &BTreeSet<Timeline>) -> String {
    timelines.iter().map(Timeline::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a server that was promoted by hand must not follow `upstream` as it is: the number of its timeline was claimed for another, and neither
/// pg_rewind nor a history tells the two apart (INV-8).
fn impostor(facts: &PostgresFacts, by_hand: &BTreeSet<Timeline>, upstream: &Upstream) -> Option<String> {
    let own = facts.timeline.filter(|_| facts.role != Some(Role::Primary) && upstream.accepting)?;
    let past = |timeline: Timeline, ancestry: &[(Timeline, Lsn)]| -> BTreeSet<Timeline> {
        ancestry.iter().map(|(ancestor, _)| *ancestor).chain([timeline]).collect()
    };
    let (mine, theirs) = (past(own, &facts.ancestry), past(upstream.timeline, &upstream.ancestry));
    let taken = by_hand.iter().find(|timeline| mine.contains(timeline) && theirs.contains(timeline))?;
    Some(format!("somebody promoted it by hand onto timeline {taken}, which is another's"))
}

#[cfg(test)]
mod tests {
    use super::super::observe::tests::{facts, state};
    use super::*;

    #[test]
    fn a_primary_that_nobody_ordered_is_made_by_hand_and_follows_no_namesake() {
        let (s, mut primary) = (state(), facts(Role::Primary, 110));
        primary.ancestry = vec![(Timeline(1), Lsn(50)), (Timeline(2), Lsn(90))];
        let found =
            |s: &ClusterState, me, promoted| made_by_hand(s, NodeId(me), &primary, promoted).into_iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(found(&s, 2, None), [3], "claimed for another");
        assert_eq!(found(&s, 2, Some((Epoch(1), Timeline(2)))), [3]);
        assert_eq!(found(&s, 1, None), [] as [u32; 0], "claimed for this node");
        assert_eq!(found(&s, 2, Some((Epoch(3), Timeline(3)))), [] as [u32; 0], "ordered, and the state is old");
        assert_eq!(found(&ClusterState::default(), 2, None), [] as [u32; 0], "no state yet");
        assert_eq!(made_by_hand(&s, NodeId(2), &facts(Role::Standby, 110), None), BTreeSet::new());
        let twice =
            PostgresFacts { timeline: Some(Timeline(5)), ancestry: vec![(Timeline(3), Lsn(1)), (Timeline(4), Lsn(2))], ..primary.clone() };
        assert_eq!(made_by_hand(&s, NodeId(2), &twice, None), [Timeline(4), Timeline(5)].into(), "twice");
        let both = BTreeSet::from([Timeline(3), Timeline(4)]);
        assert_eq!(own_after_all(&s, NodeId(1), &both), [Timeline(3)].into());
        assert_eq!(own_after_all(&s, NodeId(2), &both), BTreeSet::new());

        let standby = facts(Role::Standby, 110);
        let upstream = |timeline, ancestry: &[(u32, u64)]| {
            let ancestry = ancestry.iter().map(|(timeline, lsn)| (Timeline(*timeline), Lsn(*lsn))).collect();
            Upstream { node: NodeId(1), accepting: true, timeline: Timeline(timeline), ancestry }
        };
        let third = BTreeSet::from([Timeline(3)]);
        assert!(impostor(&standby, &third, &upstream(3, &[(2, 90)])).is_some());
        assert!(impostor(&standby, &third, &upstream(4, &[(2, 90), (3, 120)])).is_some(), "the namesake has a successor");
        let again = PostgresFacts { timeline: Some(Timeline(4)), ancestry: vec![(Timeline(3), Lsn(100))], ..standby.clone() };
        assert!(impostor(&again, &third, &upstream(3, &[(2, 90)])).is_some(), "it was promoted once more");
        assert_eq!(impostor(&standby, &third, &upstream(4, &[(2, 90)])), None, "a rewind tells them apart");
        assert_eq!(impostor(&standby, &BTreeSet::new(), &upstream(3, &[(2, 90)])), None);
        assert_eq!(impostor(&standby, &[Timeline(2)].into(), &upstream(3, &[(2, 90)])), None, "it has left that timeline");
        assert_eq!(impostor(&standby, &third, &Upstream { accepting: false, ..upstream(3, &[(2, 90)]) }), None, "nobody to copy from");
    }
}
