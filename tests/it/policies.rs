//! What tags, a stricter policy and an administrator's orders change: build a state, assert what is decided or refused.

use crate::decisions::{ONE, TWO, all_sealed, cluster, standby};
use trilithon::cluster::{
    ChangeKind, ClusterState, Command, ElectionCause, HistoryEntry, Lease, Phase, Proposal, SyncRule, TimelineClaim, TimelineClaims, apply,
};
use trilithon::ha::{Action, LocalState, PostgresFacts, PostgresState, Reason, Role, StepReason, Upstream, View, converge, decide};
use trilithon::types::{Epoch, Lsn, Millis, NodeId, RequestId, Timeline, WalPosition};

const THREE: NodeId = NodeId(3);

fn electing() -> ClusterState {
    cluster(Phase::Electing { preferred: None, accept_loss: false })
}

/// n1 is lost, n2 may not win and holds more than n3.
fn newest_may_not_win(s: &mut ClusterState) -> View {
    s.members.get_mut(&TWO).expect("it is a member").tags.nofailover = true;
    let mut view = all_sealed();
    view.observations.remove(&ONE);
    let seal = view.observations.get_mut(&TWO).and_then(|seen| seen.observation.seal.as_mut()).expect("it sealed");
    seal.end.lsn = Lsn(110);
    view
}

#[test]
fn a_member_that_may_not_win_keeps_nobody_else_from_winning() {
    let mut s = electing();
    let view = newest_may_not_win(&mut s);
    let decision = decide(&s, &view);
    assert_eq!(decision.reason, Reason::NewestNotEligible { node: TWO }, "INV-4: it may be the one that confirmed");
    s.rules = vec![SyncRule::new(ONE, [THREE], 1)];
    let decision = decide(&s, &view);
    assert!(matches!(decision.command, Some(Command::Elect { candidate: THREE, .. })), "{decision:?}");
}

#[test]
fn a_new_primary_under_a_strict_policy_does_not_acknowledge_alone() {
    let mut s = electing();
    s.settings.strict = true;
    s.members.remove(&THREE);
    s.members.get_mut(&ONE).expect("it is a member").tags.nofailover = true;
    s.rules = vec![SyncRule::new(ONE, [TWO], 1)];
    let decision = decide(&s, &all_sealed());
    let Some(Command::Elect { candidate, rule, .. }) = decision.command else { panic!("{decision:?}") };
    assert_eq!((candidate, rule), (TWO, SyncRule::new(TWO, [ONE], 1)), "better one that is tagged than nobody");
}

#[test]
fn a_policy_that_was_made_stricter_ends_a_weaker_rule() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    s.lease = Lease { holder: Some(ONE), epoch: s.epoch, seq: 1 };
    s.rules = vec![SyncRule::new(ONE, [], 0)];
    let mut view = all_sealed();
    view.lease_seen = view.now;
    view.observations.get_mut(&ONE).expect("heard").observation.postgres = PostgresFacts { role: Some(Role::Primary), ..standby() };
    s.settings.strict = false;
    assert_eq!(decide(&s, &view).command, None, "nobody streams, and it may go on alone");
    s.settings.strict = true;
    let all = SyncRule::new(ONE, [TWO, THREE], 1);
    assert_eq!(decide(&s, &view).command, Some(Command::ProposeRule { rule: all.clone() }));
    s.rules = vec![all];
    let decision = decide(&s, &view);
    assert_eq!((decision.command, decision.reason), (None, Reason::TooFewStandbys { have: 0, need: 1 }));
}

#[test]
fn who_may_not_be_elected_does_not_initialise_the_database() {
    let mut s = cluster(Phase::Empty);
    s.members.get_mut(&ONE).expect("it is a member").tags.nofailover = true;
    let mut view = all_sealed();
    view.observations
        .values_mut()
        .for_each(|seen| seen.observation.postgres = PostgresFacts { state: PostgresState::Absent, ..PostgresFacts::default() });
    assert_eq!(decide(&s, &view).command, Some(Command::ClaimBootstrap { node: TWO }));
    s.members.values_mut().for_each(|member| member.tags.nofailover = true);
    let decision = decide(&s, &view);
    assert_eq!((decision.command, &decision.reason), (None, &Reason::NobodyMayInitialise { members: [ONE, TWO, THREE].into() }));
    let told = decision.reason.to_string();
    assert!(told.contains("n1, n2, n3") && told.contains("nofailover=false"), "{told}");
}

#[test]
fn a_reason_names_somebody_or_says_what_is_waited_for() {
    let told = decide(&ClusterState::default(), &View::default()).reason.to_string();
    assert!(told.contains("form the cluster"), "{told}");
}

fn order(s: &mut ClusterState, number: u128, command: Command) -> Result<(), String> {
    let proposal = Proposal { expect: Some(s.revision), request: Some(RequestId(number)), command };
    apply(s, &proposal).map(drop).map_err(|refused| refused.to_string())
}

#[test]
fn a_failover_takes_the_place_of_whatever_was_ordered_before() {
    let failover = |to| Command::RequestFailover { to, accept_loss: true };
    let mut s = cluster(Phase::Steady { primary: ONE });
    order(&mut s, 1, Command::RequestSwitchover { to: TWO }).unwrap();
    assert!(order(&mut s, 2, Command::RequestSwitchover { to: THREE }).is_err());
    order(&mut s, 3, failover(THREE)).unwrap();
    assert_eq!(s.called_off.as_ref().map(|c| c.request), Some(RequestId(1)), "who asked is told");
    order(&mut s, 4, failover(TWO)).unwrap();
    let change = s.change.expect("ordered");
    assert_eq!((change.to, change.kind), (TWO, ChangeKind::Failover { accept_loss: true }));
    s.phase = Phase::Draining { from: ONE, to: THREE };
    order(&mut s, 5, failover(THREE)).unwrap();
}

#[test]
fn a_failover_that_is_ordered_while_the_lost_primary_still_has_its_lease_waits_for_its_end() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    s.lease = Lease { holder: Some(ONE), epoch: s.epoch, seq: 1 };
    order(&mut s, 1, Command::RequestFailover { to: TWO, accept_loss: false }).unwrap();
    let mut view = all_sealed();
    view.lease_seen = view.now;
    view.observations.remove(&ONE);
    let decision = decide(&s, &view);
    assert_eq!((decision.command, decision.reason), (None, Reason::PrimarySilent { primary: ONE }));
    view.now = view.now.after(s.lease_wait());
    view.observations.values_mut().for_each(|seen| seen.at = view.now);
    let decision = decide(&s, &view);
    assert!(matches!(decision.command, Some(Command::BeginElection { preferred: Some(TWO), .. })), "{decision:?}");
}

#[test]
fn the_last_member_that_confirms_is_not_removed() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    s.settings.strict = true;
    s.rules = vec![SyncRule::new(ONE, [THREE], 1)];
    let refused = order(&mut s, 1, Command::RemoveMember { node: THREE }).unwrap_err();
    assert!(refused.contains("dc3") && refused.contains("ha.strict"), "{refused}");
    order(&mut s, 2, Command::RemoveMember { node: TWO }).unwrap();
    s.settings.strict = false;
    order(&mut s, 3, Command::RemoveMember { node: THREE }).unwrap();
}

#[test]
fn what_was_accepted_as_lost_is_kept_aside_also_after_the_next_election() {
    let mut s = cluster(Phase::Steady { primary: TWO });
    let claim = |timeline, epoch, node| TimelineClaim { timeline: Timeline(timeline), epoch: Epoch(epoch), node, settled: true };
    s.timelines = TimelineClaims(vec![claim(1, 1, ONE), claim(2, 2, TWO), claim(3, 3, TWO)]);
    let election = |epoch, accept_loss| HistoryEntry {
        epoch: Epoch(epoch),
        timeline: None,
        from: None,
        to: TWO,
        lsn: Lsn(100),
        cause: ElectionCause::Manual,
        settled: true,
        outage_ms: None,
        accept_loss,
    };
    let position = Some(WalPosition { writer: Epoch(1), lsn: Lsn(200) });
    let postgres = PostgresFacts { timeline: Some(Timeline(1)), position, ..standby() };
    let ancestry = vec![(Timeline(1), Lsn(100)), (Timeline(2), Lsn(150))];
    let upstream = Some(Upstream { node: TWO, accepting: true, timeline: Timeline(3), ancestry });
    let local = LocalState { me: ONE, promised: Epoch(3), postgres, upstream, ..LocalState::default() };
    s.history = vec![election(2, false), election(3, false)];
    let step = converge(&s, &local);
    assert!(matches!(step.reason, StepReason::Diverged { .. }), "{step:?}");
    s.history = vec![election(2, true), election(3, false)];
    let step = converge(&s, &local);
    assert_eq!(step.action, Some(Action::Stop));
    assert!(matches!(step.reason, StepReason::CloneNeeded(_)), "{step:?}");
}

#[test]
fn a_loss_that_was_accepted_in_a_drain_is_not_taken_where_the_drain_ends_in_order() {
    let mut s = cluster(Phase::Draining { from: ONE, to: TWO });
    s.lease = Lease { holder: Some(ONE), epoch: s.epoch, seq: 1 };
    order(&mut s, 1, Command::RequestFailover { to: THREE, accept_loss: true }).unwrap();
    let mut view = all_sealed();
    view.lease_seen = view.now;
    let begun = |s: &ClusterState, view: &View| match decide(s, view).command {
        Some(Command::BeginElection { preferred, accept_loss, .. }) => Some((preferred, accept_loss)),
        _ => None,
    };
    assert_eq!(begun(&s, &view), None, "it drains");
    let mut drained = s.clone();
    drained.lease.holder = None;
    assert_eq!(begun(&drained, &view), Some((Some(THREE), false)));
    // The drain failed: the primary is lost with its lease.
    let mut lost = view.clone();
    lost.lease_seen = Millis(0);
    lost.now = lost.now.after(s.lease_wait());
    lost.observations.values_mut().for_each(|seen| seen.at = lost.now);
    assert_eq!(begun(&s, &lost), Some((Some(THREE), true)), "as it was ordered");
    // It ended in order, and so few are left that nobody could be elected without a loss.
    view.observations.retain(|node, _| *node == THREE);
    assert_eq!(begun(&drained, &view), Some((Some(THREE), true)), "as it was ordered");
}

/// A member that was away for more elections than claims are kept.
#[test]
fn wal_of_a_forgotten_claim_is_older_than_all_and_keeps_its_order() {
    let mut s = cluster(Phase::Promoting { candidate: TWO });
    s.epoch = Epoch(2002);
    s.rules = vec![SyncRule::new(TWO, [ONE, THREE], 1)];
    s.lease = Lease { holder: None, epoch: s.epoch, seq: 0 };
    let claim = |n: u32| TimelineClaim { timeline: Timeline(n), epoch: Epoch(u64::from(n) * 2), node: TWO, settled: true };
    s.timelines = TimelineClaims((1..=1000).map(claim).collect());
    let (epoch, rule) = (s.epoch, s.rules[0].clone());
    order(&mut s, 1, Command::AcquireLease { node: TWO, epoch }).unwrap();
    order(&mut s, 2, Command::SettleRule { epoch, rule, outage_ms: None }).unwrap();
    let oldest = s.timelines.0[0];
    assert_eq!((oldest.timeline, s.timelines.get(Timeline(1))), (Timeline(2), None), "forgotten");
    let wrote = s.timelines.writer(Timeline(1)).expect("it is older than all, and that is known");
    assert!(wrote < oldest.epoch && wrote >= Epoch(2), "no earlier than it was");
    assert_eq!(s.timelines.writer(Timeline(1002)), None, "nobody claimed that");
    let forgotten = TimelineClaims(s.timelines.0.split_off(500));
    let writers: Vec<Epoch> = (1..=1001).map(|n| forgotten.writer(Timeline(n)).expect("known")).collect();
    assert!(writers.is_sorted_by(|a, b| a < b), "positions are compared as before (INV-7)");
}

/// Whether a loss was accepted in an election that the history has forgotten, nobody can tell (INV-10).
#[test]
fn what_may_have_been_accepted_as_lost_before_the_history_begins_is_kept_aside() {
    let mut s = cluster(Phase::Steady { primary: TWO });
    s.epoch = Epoch(300);
    let election = |epoch| HistoryEntry {
        epoch: Epoch(epoch),
        timeline: None,
        from: None,
        to: TWO,
        lsn: Lsn(100),
        cause: ElectionCause::LeaseExpired,
        settled: true,
        outage_ms: None,
        accept_loss: false,
    };
    s.history = (101..=300).map(election).collect();
    let wrote = |writer| {
        let postgres = PostgresFacts {
            timeline: Some(Timeline(1)),
            position: Some(WalPosition { writer: Epoch(writer), lsn: Lsn(200) }),
            ..standby()
        };
        let upstream = Some(Upstream { node: TWO, accepting: true, timeline: Timeline(9), ancestry: vec![(Timeline(1), Lsn(100))] });
        LocalState { me: ONE, promised: Epoch(300), postgres, upstream, ..LocalState::default() }
    };
    assert!(matches!(converge(&s, &wrote(99)).reason, StepReason::CloneNeeded(_)), "election 100 is forgotten");
    assert!(matches!(converge(&s, &wrote(100)).reason, StepReason::Diverged { .. }), "no election since is");
}

/// A replica of an adopted database that missed some of its promotions: only the latest timeline was ever claimed.
#[test]
fn wal_from_before_an_adopted_database_is_copied_anew() {
    let mut s = cluster(Phase::Steady { primary: TWO });
    let claim = |timeline, epoch| TimelineClaim { timeline: Timeline(timeline), epoch: Epoch(epoch), node: TWO, settled: true };
    s.timelines = TimelineClaims(vec![claim(7, 0), claim(8, 1)]);
    let on = |timeline, position| {
        let postgres = PostgresFacts { timeline: Some(Timeline(timeline)), position, ..standby() };
        let ancestry = vec![(Timeline(5), Lsn(50)), (Timeline(7), Lsn(100))];
        let upstream = Some(Upstream { node: TWO, accepting: true, timeline: Timeline(8), ancestry });
        LocalState { me: ONE, promised: s.epoch, postgres, upstream, ..LocalState::default() }
    };
    let step = converge(&s, &on(5, None));
    assert!(matches!(step.reason, StepReason::CloneNeeded(_)), "nobody can say where it stands: {step:?}");
    assert_eq!(converge(&s, &on(7, None)).reason, StepReason::UnknownPosition, "its end will be known");
    let adopted = converge(&s, &on(7, Some(WalPosition { writer: Epoch(0), lsn: Lsn(90) })));
    assert!(matches!(adopted.action, Some(Action::Follow { .. })), "{adopted:?}");
}

/// Its walreceiver goes on while its postmaster hangs, so that the rule still counts on it.
#[test]
fn a_standby_that_hangs_is_stopped_when_an_election_waits_for_its_seal() {
    let mut s = cluster(Phase::Steady { primary: ONE });
    let postgres = PostgresFacts { state: PostgresState::Unknown, ..PostgresFacts::default() };
    let hangs = LocalState { me: TWO, promised: s.epoch, postgres, hung: true, following: Some((ONE, s.epoch)), ..LocalState::default() };
    assert_eq!(converge(&s, &hangs).action, None, "it may only be busy");
    s.phase = Phase::Electing { preferred: None, accept_loss: false };
    assert_eq!(converge(&s, &hangs).action, Some(Action::Demote));
}
