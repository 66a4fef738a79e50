//! Single decisions of the core that no transcript comes across: build a state, assert what is decided.

use std::collections::BTreeMap;
use std::time::Duration;
use trilithon::cluster::{
    Adopted, ClusterState, Command, ElectionCause, HistoryEntry, Lease, Member, MemberKind, Phase, Settings, SyncRule, Tags,
};
use trilithon::ha::{
    Action, LeaseBelief, LocalState, NodeObservation, PostgresFacts, PostgresState, Role, Seal, Seen, StandbyView, StepReason, View,
    converge, decide,
};
use trilithon::types::{Epoch, Lsn, Millis, NodeId, NodeName, WalPosition};

pub(crate) const ONE: NodeId = NodeId(1);
pub(crate) const TWO: NodeId = NodeId(2);

/// Three data members in epoch 3, n1 its candidate or its primary that was; a rule that any one of the others confirms.
pub(crate) fn cluster(phase: Phase) -> ClusterState {
    let member = |n: u64| {
        let name = NodeName(format!("dc{n}"));
        (
            NodeId(n),
            Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses: Default::default(), tags: Tags::default() },
        )
    };
    ClusterState {
        epoch: Epoch(3),
        phase,
        members: (1..=3).map(member).collect(),
        rules: vec![SyncRule::new(ONE, [TWO, NodeId(3)], 1)],
        adopted: vec![Adopted { epoch: Epoch(2), ..Adopted::default() }],
        ..ClusterState::default()
    }
}

fn elected(to: NodeId, settled: bool) -> HistoryEntry {
    let cause = ElectionCause::LeaseExpired;
    HistoryEntry { epoch: Epoch(2), timeline: None, from: None, to, lsn: Lsn(100), cause, settled, outage_ms: None, accept_loss: false }
}

pub(crate) fn standby() -> PostgresFacts {
    let position = Some(WalPosition { writer: Epoch(1), lsn: Lsn(100) });
    PostgresFacts { state: PostgresState::Running, role: Some(Role::Standby), position, ..PostgresFacts::default() }
}

/// All three sealed at the same position.
pub(crate) fn all_sealed() -> View {
    let seen = |n: u64| {
        let postgres = standby();
        let seal = postgres.position.map(|end| Seal { epoch: Epoch(3), end, ruined: false });
        let observation = NodeObservation { node: NodeId(n), promised: Epoch(3), postgres, seal, ..NodeObservation::default() };
        (NodeId(n), Seen { at: Millis(1000), observation })
    };
    View { now: Millis(1000), observations: (1..=3).map(seen).collect::<BTreeMap<_, _>>(), ..View::default() }
}

fn winner(s: &ClusterState) -> Option<NodeId> {
    match decide(s, &all_sealed()).command {
        Some(Command::Elect { candidate, .. }) => Some(candidate),
        _ => None,
    }
}

#[test]
fn among_equals_the_candidate_that_failed_just_now_comes_last() {
    let mut s = cluster(Phase::Electing { preferred: None, accept_loss: false });
    assert_eq!(winner(&s), Some(ONE), "lowest id first");
    s.history.push(elected(ONE, false));
    assert_eq!(winner(&s), Some(TWO));
    s.history.push(elected(TWO, true));
    assert_eq!(winner(&s), Some(ONE), "a settled election is no failure");
}

/// INV-7: a node that starts again knows its promise before its copy of the state has caught up, and who wrote its last WAL is in there.
#[test]
fn no_seal_is_given_by_an_older_copy_of_the_state_than_the_promise() {
    let now = cluster(Phase::Electing { preferred: None, accept_loss: false });
    let local = LocalState { me: ONE, promised: now.epoch, postgres: standby(), ..LocalState::default() };
    assert_eq!(local.seal(&now).map(|seal| seal.epoch), Some(now.epoch));
    let old = ClusterState { epoch: Epoch(now.epoch.0 - 1), ..now };
    assert_eq!(local.seal(&old), None);
    assert_eq!(local.seal(&ClusterState::default()), None, "nothing applied yet");
}

/// Steady, with everybody heard but n1, which n2 and n3 found refusing when they knew these leases.
fn refused(s: &ClusterState, known: [Lease; 2]) -> Option<ElectionCause> {
    refused_after(s, known, s.serving_wait())
}

/// The same, so long after the last renewal.
fn refused_after(s: &ClusterState, known: [Lease; 2], waited: Duration) -> Option<ElectionCause> {
    let mut view = all_sealed();
    view.now = Millis(100_000).after(waited);
    view.lease_seen = Millis(100_000);
    view.observations.values_mut().for_each(|seen| seen.at = view.now);
    view.observations.remove(&ONE);
    for (node, lease) in [TWO, NodeId(3)].into_iter().zip(known) {
        view.observations.get_mut(&node).expect("heard").observation.refusals = [(ONE, lease)].into();
    }
    match decide(s, &view).command {
        Some(Command::BeginElection { cause, .. }) => Some(cause),
        _ => None,
    }
}

#[test]
fn a_refusal_from_before_the_newest_renewal_proves_no_death() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    let lease = Lease { holder: Some(ONE), epoch: Epoch(3), seq: 7 };
    s.lease = lease;
    assert_eq!(refused(&s, [lease, lease]), Some(ElectionCause::ProvenDead));
    let renewed_since = Lease { seq: 6, ..lease };
    assert_eq!(refused(&s, [lease, renewed_since]), None, "INV-9: it lived when the lease was renewed");
    let of_the_epoch_before = Lease { epoch: Epoch(2), ..lease };
    assert_eq!(refused(&s, [of_the_epoch_before; 2]), None, "INV-9: it came back and was elected again");
}

/// It may sit beside the primary behind the firewall that refuses, and its proxy reach the primary for as long as that lives.
#[test]
fn a_refusal_proves_no_death_while_another_member_is_silent() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    let lease = Lease { holder: Some(ONE), epoch: Epoch(3), seq: 7 };
    s.lease = lease;
    let beside = Member { name: NodeName("dc1b".to_owned()), ..s.members[&ONE].clone() };
    s.members.insert(NodeId(4), beside);
    assert_eq!(refused(&s, [lease, lease]), None, "n4 was not heard");
    s.members.remove(&NodeId(4));
    assert_eq!(refused(&s, [lease, lease]), Some(ElectionCause::ProvenDead));
}

#[test]
fn a_refusal_proves_no_death_while_the_holders_proxy_may_begin_reads() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    s.lease = Lease { holder: Some(ONE), epoch: Epoch(3), seq: 7 };
    let known = [s.lease; 2];
    let moment = Duration::from_millis(1);
    assert_eq!(refused_after(&s, known, s.serving_wait() - moment), None, "INV-9: a firewall may refuse in its place");
    assert_eq!(refused_after(&s, known, s.serving_wait()), Some(ElectionCause::ProvenDead));
    assert!(s.settings.serving_ttl() < s.serving_wait() && s.serving_wait() < s.lease_wait());
    // It may serve by the length that its lease was taken with.
    s.lease_floor_ms = 2 * s.settings.lease_ttl_ms;
    assert_eq!(refused_after(&s, known, Settings::default().serving_ttl()), None);
}

/// Before a client waits, each renewal has the time that it takes where round trips take 200 ms: two of them.
#[test]
fn a_renewal_of_two_long_round_trips_comes_before_the_holders_proxy_stops() {
    let settings = Settings::default();
    let long = 2 * Duration::from_millis(200);
    assert!(settings.renewal_interval() + long < settings.serving_ttl());
    assert!(settings.renewal_interval() * 5 <= settings.lease_ttl(), "five in a lease");
}

#[test]
fn an_elected_candidate_whose_start_never_ends_gives_the_lease_back() {
    let mut s = cluster(Phase::Promoting { candidate: ONE });
    s.lease = Lease { holder: Some(ONE), epoch: Epoch(3), seq: 1 };
    let postgres = PostgresFacts { state: PostgresState::Starting, ..PostgresFacts::default() };
    let lease = LeaseBelief::Valid { epoch: Epoch(3) };
    let mut local = LocalState { me: ONE, promised: Epoch(3), postgres, lease, ..LocalState::default() };
    assert_eq!(converge(&s, &local).action, None, "a start takes its time");
    local.gave_up = Some(Epoch(3));
    let step = converge(&s, &local);
    assert_eq!((step.action, step.reason), (Some(Action::Demote), StepReason::LeaseUnused));
    local.postgres.state = PostgresState::Stopped;
    assert_eq!(converge(&s, &local).action, Some(Action::ReleaseLease { epoch: Epoch(3) }));
    // Nobody hears the release: it is cut off. Its Postgres starts all the same, to learn where its WAL ends, and is left in peace.
    local.released = true;
    local.postgres.state = PostgresState::Starting;
    assert_eq!(converge(&s, &local).action, None);
}

#[test]
fn a_primary_whose_storage_stalls_gives_way_where_another_can_take_over() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    s.lease = Lease { holder: Some(ONE), epoch: Epoch(3), seq: 1 };
    s.rules = vec![SyncRule::new(ONE, [TWO], 1)];
    let standbys = [(TWO, StandbyView { streaming: true, ..StandbyView::default() })].into();
    let postgres = PostgresFacts { role: Some(Role::Primary), standbys, ..standby() };
    let (lease, primary_of) = (LeaseBelief::Valid { epoch: Epoch(3) }, Some(Epoch(3)));
    let mut local = LocalState { me: ONE, promised: Epoch(3), postgres, lease, primary_of, ..LocalState::default() };
    assert_ne!(converge(&s, &local).action, Some(Action::Demote));
    local.stalled = true;
    let step = converge(&s, &local);
    assert_eq!((step.action, step.reason), (Some(Action::Demote), StepReason::StorageStalls));
    s.paused = true;
    assert_ne!(converge(&s, &local).action, Some(Action::Demote), "nobody would be elected");
    s.paused = false;
    local.postgres.standbys.clear();
    assert_ne!(converge(&s, &local).action, Some(Action::Demote), "nobody could be elected");
}

#[test]
fn a_promotion_that_came_about_late_is_made_use_of() {
    let mut s = cluster(Phase::Promoting { candidate: ONE });
    s.lease = Lease { holder: Some(ONE), epoch: Epoch(3), seq: 1 };
    let postgres = PostgresFacts { role: Some(Role::Primary), ..standby() };
    let lease = LeaseBelief::Valid { epoch: Epoch(3) };
    let (primary_of, gave_up) = (Some(Epoch(3)), Some(Epoch(3)));
    let local = LocalState { me: ONE, promised: Epoch(3), postgres, lease, primary_of, gave_up, ..LocalState::default() };
    assert!(matches!(converge(&s, &local).action, Some(Action::ApplyRule { .. })));
}

/// A copy in the making streams before it is consistent. Were it to break off then, nobody could tell what it had confirmed (INV-4).
#[test]
fn a_standby_that_is_still_being_made_confirms_nothing() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    s.lease = Lease { holder: Some(ONE), epoch: Epoch(3), seq: 1 };
    s.rules = vec![SyncRule::new(ONE, [TWO], 1)];
    let mut view = all_sealed();
    let standbys = [TWO, NodeId(3)].map(|node| (node, StandbyView { streaming: true, flushed: Lsn(100), ..StandbyView::default() }));
    let primary = &mut view.observations.get_mut(&ONE).unwrap().observation;
    primary.postgres = PostgresFacts { role: Some(Role::Primary), standbys: standbys.into(), ..standby() };
    primary.settled = Some((Epoch(3), s.rules[0].clone()));
    let proposed = |view: &View| match decide(&s, view).command {
        Some(Command::ProposeRule { rule }) => Some(rule.standbys),
        _ => None,
    };
    assert_eq!(proposed(&view), Some([TWO, NodeId(3)].into()));
    for state in [PostgresState::Rewinding, PostgresState::Starting, PostgresState::Cloning] {
        view.observations.get_mut(&NodeId(3)).unwrap().observation.postgres.state = state;
        assert_eq!(proposed(&view), None, "{state:?}");
    }
    view.observations.get_mut(&NodeId(3)).unwrap().observation.postgres.state = PostgresState::Unknown;
    assert_eq!(proposed(&view), Some([TWO, NodeId(3)].into()), "one that hangs for a moment has what it confirmed");
}

/// What it has initialised by then, this new cluster would take for a stranger's when it comes back.
#[test]
fn a_member_that_initialises_is_waited_for_as_long_as_it_is_one() {
    let mut s = cluster(Phase::Bootstrapping { node: ONE });
    let mut view = all_sealed();
    view.observations.remove(&ONE);
    view.now = Millis(1_000_000);
    assert_eq!(decide(&s, &view).command, None);
    s.members.remove(&ONE);
    assert_eq!(decide(&s, &view).command, Some(Command::AbandonBootstrap { node: ONE }));
}
