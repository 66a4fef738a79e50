//! Which standbys the proxy may read: those that show nothing that an election could still take away (P3). Pure.
//!
//! What a standby shows it has flushed, and where its own word suffices for every rule in force, that confirms it. Which rules are in
//! force a node knows only while it hears whoever leads: behind a cut line the others may have narrowed the rule, and a standby whose
//! stream still comes in would show what they decide without it. From then on it is read only as far as it was known to be confirmed.

use crate::bug::{self, Bug};
use crate::cluster::{ClusterState, SyncRule};
use crate::consensus::Leadership;
use crate::ha::{NodeObservation, PostgresState, Role, View};
use crate::types::{Lsn, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// A standby that has been silent for this long gets no reads.
const READABLE_MAX_AGE: Duration = Duration::from_secs(2);

/// What one node's proxy may read.
#[derive(Debug)]
pub struct Reads {
    me: NodeId,
    /// How far each member's WAL reached when this node last knew the rules in force.
    ends: BTreeMap<NodeId, Lsn>,
}

impl Reads {
    #[must_use]
    pub fn of(me: NodeId) -> Reads {
        Reads { me, ends: BTreeMap::new() }
    }

    /// Standbys that run and are heard, with the bytes that each has yet to replay. An isolated one still serves its own datacenter. One
    /// on another timeline may hold commits that nobody confirmed, and that a rewind will take away; so may one that was the primary.
    pub fn readable(&mut self, state: &ClusterState, view: &View, leads: Leadership) -> BTreeMap<NodeId, Option<u64>> {
        let heard: Vec<(NodeId, &NodeObservation)> =
            state.data_members().filter_map(|node| Some((node, view.fresh(node, READABLE_MAX_AGE)?))).collect();
        let is_informed = self.is_informed(state, view, leads);
        if is_informed {
            self.ends = heard.iter().filter_map(|(node, o)| Some((*node, o.postgres.position?.lsn))).collect();
        }
        let ahead = state.primary().and_then(|primary| view.fresh(primary, READABLE_MAX_AGE)).map(|o| &o.postgres);
        let current = state.timelines.newest_settled().map(|claim| claim.timeline);
        let standby = |(node, o): (NodeId, &NodeObservation)| {
            let facts = &o.postgres;
            let standby = facts.state == PostgresState::Running && facts.role == Some(Role::Standby);
            let known = is_informed || facts.position.zip(self.ends.get(&node)).is_some_and(|(end, known)| end.lsn <= *known);
            let serves = standby && facts.timeline == current && !o.doubtful && known && shows_what_is_confirmed(state, node);
            let comparable = ahead.filter(|ahead| ahead.timeline == facts.timeline);
            let replayed = facts.replayed.or(facts.position.map(|p| p.lsn));
            let lag = comparable.and_then(|ahead| Some(replayed?.behind(ahead.position?.lsn)));
            serves.then_some((node, lag))
        };
        heard.into_iter().filter_map(standby).collect()
    }

    /// Is the state at least as new as it was with the leader a moment ago? A rule does without a member that was silent for two thirds of
    /// the lease: half of that is early enough.
    fn is_informed(&self, state: &ClusterState, view: &View, leads: Leadership) -> bool {
        if bug::is(Bug::DoubtfulRead) {
            return true;
        }
        let age = state.settings.lease_ttl() / 3;
        // A leader without a majority knows no more than who hears it.
        let heard = state.members.keys().filter(|node| **node == self.me || view.fresh(**node, age).is_some()).count();
        let told = match leads.leader {
            Some(leader) if leader == self.me => leads.mine,
            Some(leader) => view.fresh(leader, age).is_some_and(|o| o.revision <= state.revision),
            None => false,
        };
        told && heard * 2 > state.members.len()
    }
}

/// One that joins shows what nobody else may have yet, and an election that is decided without it loses that. Whoever never confirms was
/// tagged so, and is read all the same.
fn shows_what_is_confirmed(state: &ClusterState, node: NodeId) -> bool {
    let never = state.members.get(&node).is_some_and(|m| m.tags.nosync || m.tags.nofailover);
    let suffices = |rule: &SyncRule| rule.acks == 0 || rule.primary == node || rule.standbys.contains(&node);
    never || state.rules.iter().all(suffices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Addresses, Member, MemberKind, Phase, Tags};
    use crate::ha::{PostgresFacts, Seen};
    use crate::types::{Epoch, Millis, NodeName, Revision, WalPosition};

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);
    const THREE: NodeId = NodeId(3);

    fn member(tags: Tags) -> Member {
        let (name, addresses) = (NodeName("dc".to_owned()), Addresses::default());
        Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses, tags }
    }

    #[test]
    fn a_standby_is_read_once_its_word_confirms_what_it_shows() {
        let mut state = ClusterState { rules: vec![SyncRule::new(ONE, [THREE], 1)], ..ClusterState::default() };
        let shown = |state: &ClusterState| [ONE, TWO, THREE].map(|node| shows_what_is_confirmed(state, node));
        assert_eq!(shown(&state), [true, false, true], "two streams, and the election may be decided by three alone");
        state.rules.push(SyncRule::new(ONE, [TWO, THREE], 1));
        assert_eq!(shown(&state), [true, false, true], "the narrow rule is in force still");
        state.rules.remove(0);
        assert_eq!(shown(&state), [true; 3]);
        state.rules = vec![SyncRule::new(ONE, [], 0)];
        assert_eq!(shown(&state), [true; 3], "commits wait for nobody");
        state.rules = vec![SyncRule::new(ONE, [THREE], 1)];
        state.members.insert(TWO, member(Tags { nosync: true, ..Tags::default() }));
        assert_eq!(shown(&state), [true; 3], "it never confirms, as its tag says");
    }

    /// One is primary and leads; two and three confirm.
    struct Scene {
        state: ClusterState,
        view: View,
    }

    impl Scene {
        fn new() -> Scene {
            let state = ClusterState {
                revision: Revision(7),
                phase: Phase::Steady { primary: ONE },
                members: [ONE, TWO, THREE].map(|node| (node, member(Tags::default()))).into(),
                rules: vec![SyncRule::new(ONE, [TWO, THREE], 1)],
                ..ClusterState::default()
            };
            let mut scene = Scene { state, view: View::default() };
            for node in [ONE, TWO, THREE] {
                scene.says(node, 0, 100);
            }
            scene
        }

        fn says(&mut self, node: NodeId, at: u64, end: u64) {
            let role = Some(if node == ONE { Role::Primary } else { Role::Standby });
            let position = Some(WalPosition { writer: Epoch(1), lsn: Lsn(end) });
            let postgres = PostgresFacts { state: PostgresState::Running, role, position, ..PostgresFacts::default() };
            let observation = NodeObservation { node, postgres, revision: self.state.revision, ..NodeObservation::default() };
            self.view.observations.insert(node, Seen { at: Millis(at), observation });
        }

        fn read(&mut self, reads: &mut Reads, now: u64, leader: NodeId) -> Vec<NodeId> {
            self.view.now = Millis(now);
            let leads = Leadership { leader: Some(leader), mine: leader == reads.me, ..Leadership::default() };
            reads.readable(&self.state, &self.view, leads).into_keys().collect()
        }
    }

    #[test]
    fn a_standby_that_does_not_hear_the_leader_is_read_no_further_than_it_was_confirmed() {
        let (mut scene, mut reads) = (Scene::new(), Reads::of(TWO));
        assert_eq!(scene.read(&mut reads, 100, ONE), [TWO, THREE]);
        let lease = u64::try_from(scene.state.settings.lease_ttl().as_millis()).unwrap();
        let later = lease / 3 + 1;
        scene.says(TWO, later, 100);
        assert_eq!(scene.read(&mut reads, later, ONE), [TWO, THREE], "cut off, and nothing comes in: as stale as it is");
        scene.says(TWO, later, 101);
        assert_eq!(scene.read(&mut reads, later, ONE), [THREE], "its stream comes in: others may decide without it");
        scene.says(ONE, later, 120);
        assert_eq!(scene.read(&mut reads, later, ONE), [TWO, THREE]);
        scene.view.observations.get_mut(&ONE).unwrap().observation.revision = Revision(8);
        scene.says(TWO, later, 110);
        assert_eq!(scene.read(&mut reads, later, ONE), [THREE], "the leader knows more than we do");
    }

    #[test]
    fn a_leader_that_hears_nobody_knows_no_more_than_another_that_is_cut_off() {
        let (mut scene, mut reads) = (Scene::new(), Reads::of(TWO));
        let later = 10_000;
        scene.says(TWO, later, 100);
        assert!(scene.read(&mut reads, later, TWO).is_empty(), "after a start nothing is known");
        scene.says(THREE, later, 100);
        assert_eq!(scene.read(&mut reads, later, TWO), [TWO, THREE], "a majority hears it");
        scene.state.members.extend([4, 5].map(|n| (NodeId(n), member(Tags { nosync: true, ..Tags::default() }))));
        scene.says(TWO, later, 101);
        assert_eq!(scene.read(&mut reads, later, THREE), [THREE], "two of five, of whom one once led");
    }
}
