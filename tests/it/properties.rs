//! Properties of the pure core that hold for every input: rules, the replicated state machine, the lease's arithmetic.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use trilithon::cluster::{ClusterState, Command, ElectionCause, Member, MemberKind, Outcome, Proposal, Settings, SyncRule, Tags, apply};
use trilithon::ha::{HolderLease, LeaseBelief, LeaseWatch};
use trilithon::types::{ClusterId, Epoch, Lsn, Millis, NodeId, NodeName, RequestId, Revision, SystemId, Timeline};

const NODES: u64 = 6;

fn node() -> impl Strategy<Value = NodeId> {
    (1..=NODES).prop_map(NodeId)
}

fn nodes() -> impl Strategy<Value = BTreeSet<NodeId>> {
    proptest::collection::btree_set(node(), 0..=NODES as usize)
}

fn rule() -> impl Strategy<Value = SyncRule> {
    (node(), nodes(), 0usize..5).prop_map(|(primary, nodes, acks)| SyncRule::new(primary, nodes, acks))
}

/// Every set of holders that satisfies a commit under `rule`: the primary and `acks` standbys, or more.
fn acknowledging(rule: &SyncRule) -> Vec<BTreeSet<NodeId>> {
    let standbys: Vec<NodeId> = rule.standbys.iter().copied().collect();
    (0..1u32 << standbys.len())
        .filter(|mask| mask.count_ones() as usize >= rule.acks)
        .map(|mask| standbys.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, n)| *n).chain([rule.primary]).collect())
        .collect()
}

proptest! {
    /// INV-4, both ways: whoever covers a rule meets every acknowledgement, and whoever does not can miss one.
    #[test]
    fn a_rule_is_covered_exactly_by_who_meets_every_acknowledgement(rule in rule(), sealed in nodes()) {
        let meets_all = acknowledging(&rule).iter().all(|holders| !holders.is_disjoint(&sealed));
        prop_assert_eq!(rule.covered_by(&sealed), meets_all);
    }

    /// More seals never spoil an election.
    #[test]
    fn coverage_is_monotone(rule in rule(), sealed in nodes(), more in nodes()) {
        let both: BTreeSet<NodeId> = sealed.union(&more).copied().collect();
        prop_assert!(!rule.covered_by(&sealed) || rule.covered_by(&both));
    }

    /// INV-5: while a rule changes, whoever covers the old and the new meets acknowledgements under either, whichever walsender judged.
    #[test]
    fn joint_rules_cover_commits_of_the_old_and_of_the_new(old in rule(), next in nodes(), acks in 0usize..5, sealed in nodes()) {
        let new = SyncRule::new(old.primary, next, acks);
        prop_assume!(old.covered_by(&sealed) && new.covered_by(&sealed));
        for holders in acknowledging(&old).iter().chain(&acknowledging(&new)) {
            prop_assert!(!holders.is_disjoint(&sealed));
        }
    }

    /// A rule never asks for more confirmations than it has standbys, and never for its own primary's.
    #[test]
    fn a_rule_can_be_satisfied(rule in rule()) {
        prop_assert!(rule.acks <= rule.standbys.len());
        prop_assert!(!rule.standbys.contains(&rule.primary));
    }
}

// ---- the replicated state machine

fn member(n: u64) -> Member {
    let kind = if n == NODES { MemberKind::Witness } else { MemberKind::Data };
    Member { name: NodeName(format!("dc{n}")), datacenter: String::new(), kind, addresses: Default::default(), tags: Tags::default() }
}

fn create() -> Proposal {
    let members = (1..=NODES).map(|n| (NodeId(n), member(n))).collect();
    let command = Command::Create { cluster: ClusterId(1), name: "p".into(), members, settings: Settings::default() };
    Proposal { expect: None, request: None, command }
}

fn cause() -> impl Strategy<Value = ElectionCause> {
    prop_oneof![
        Just(ElectionCause::LeaseExpired),
        Just(ElectionCause::PrimaryDown),
        Just(ElectionCause::ProvenDead),
        Just(ElectionCause::Switchover),
        Just(ElectionCause::Manual),
        Just(ElectionCause::CandidateLost),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let epoch = (0u64..6).prop_map(Epoch);
    let (epoch2, epoch3, epoch4) = (epoch.clone(), epoch.clone(), epoch.clone());
    prop_oneof![
        (node(), epoch).prop_map(|(node, epoch)| Command::AcquireLease { node, epoch }),
        (node(), epoch2).prop_map(|(node, epoch)| Command::RenewLease { node, epoch }),
        (node(), epoch3).prop_map(|(node, epoch)| Command::ReleaseLease { node, epoch }),
        node().prop_map(|node| Command::ClaimBootstrap { node }),
        node().prop_map(|node| Command::AbandonBootstrap { node }),
        (node(), rule()).prop_map(|(node, rule)| Command::FinishBootstrap {
            node,
            system: SystemId(9),
            timeline: Timeline(1),
            lsn: Lsn(1),
            rule
        }),
        node().prop_map(|to| Command::RequestSwitchover { to }),
        (node(), any::<bool>()).prop_map(|(to, accept_loss)| Command::RequestFailover { to, accept_loss }),
        (node(), node()).prop_map(|(from, to)| Command::StartDrain { from, to }),
        Just(Command::CallOff { reason: "no".into() }),
        (proptest::option::of(node()), cause(), 0u64..4, any::<bool>())
            .prop_map(|(preferred, cause, lease_seq, accept_loss)| Command::BeginElection { preferred, cause, lease_seq, accept_loss }),
        (node(), rule()).prop_map(|(candidate, rule)| Command::Elect { candidate, rule, lsn: Lsn(5) }),
        rule().prop_map(|rule| Command::ProposeRule { rule }),
        (epoch4, rule()).prop_map(|(epoch, rule)| Command::SettleRule { epoch, rule, outage_ms: None }),
        any::<bool>().prop_map(|paused| Command::Pause { paused }),
        (node(), any::<bool>()).prop_map(|(node, fenced)| Command::Fence { node, fenced }),
        node().prop_map(|node| Command::RemoveMember { node }),
    ]
}

/// What a proposal is decided on, relative to the state that it meets.
#[derive(Clone, Debug)]
struct Act {
    stale: bool,
    request: Option<u8>,
    /// Bend the command to the state, so that long histories are reached.
    apt: bool,
    command: Command,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = (proptest::bool::weighted(0.1), proptest::option::weighted(0.3, 0u8..12), proptest::bool::weighted(0.8), command())
        .prop_map(|(stale, request, apt, command)| Act { stale, request, apt, command });
    proptest::collection::vec(act, 1..120)
}

/// The same command with the names, epochs and counts that the state asks for.
fn bent(s: &ClusterState, command: &Command) -> Command {
    let primary = s.primary().unwrap_or(NodeId(1));
    match command.clone() {
        Command::AcquireLease { .. } => Command::AcquireLease { node: primary, epoch: s.epoch },
        Command::RenewLease { .. } => Command::RenewLease { node: primary, epoch: s.epoch },
        Command::ReleaseLease { .. } => Command::ReleaseLease { node: primary, epoch: s.epoch },
        Command::FinishBootstrap { system, timeline, lsn, rule, node } => {
            let node = s.members.keys().copied().find(|n| s.phase == trilithon::cluster::Phase::Bootstrapping { node: *n }).unwrap_or(node);
            Command::FinishBootstrap { node, system, timeline, lsn, rule: SyncRule { primary: node, ..own(node, &rule) } }
        }
        Command::StartDrain { to, .. } => Command::StartDrain { from: primary, to },
        Command::BeginElection { preferred, cause, accept_loss, .. } => {
            Command::BeginElection { preferred, cause, lease_seq: s.lease.seq, accept_loss }
        }
        Command::Elect { candidate, rule, lsn } => Command::Elect { candidate, rule: own(candidate, &rule), lsn },
        Command::ProposeRule { rule } => Command::ProposeRule { rule: own(primary, &rule) },
        Command::SettleRule { outage_ms, rule, .. } => {
            Command::SettleRule { epoch: s.epoch, rule: s.rules.last().cloned().unwrap_or(rule), outage_ms }
        }
        other => other,
    }
}

fn own(primary: NodeId, rule: &SyncRule) -> SyncRule {
    SyncRule::new(primary, rule.standbys.iter().copied().filter(|n| n.0 != NODES), rule.acks)
}

fn proposal(s: &ClusterState, act: &Act) -> Proposal {
    let command = if act.apt { bent(s, &act.command) } else { act.command.clone() };
    let expect = if act.stale { Revision(s.revision.0.wrapping_sub(1)) } else { s.revision };
    Proposal { expect: Some(expect), request: act.request.map(|r| RequestId(u128::from(r))), command }
}

/// What may never happen between two neighbouring states.
fn check_step(before: &ClusterState, after: &ClusterState, p: &Proposal, outcome: &Outcome) -> Result<(), TestCaseError> {
    if outcome.is_err() {
        prop_assert_eq!(before, after, "INV-2: a refusal leaves no trace");
        return Ok(());
    }
    let repeated = p.request.is_some_and(|r| before.requests.contains(&r));
    if repeated || p.expect.is_some_and(|e| e != before.revision) {
        prop_assert_eq!(before, after, "INV-12, INV-2: repeated or stale, without effect");
        return Ok(());
    }
    prop_assert!(after.epoch >= before.epoch && after.epoch.0 <= before.epoch.0 + 1, "INV-1");
    prop_assert!(after.revision >= before.revision && after.revision.0 <= before.revision.0 + 1);
    prop_assert_eq!(after.rules.len(), after.adopted.len());
    let numbers: BTreeSet<Timeline> = after.timelines.0.iter().map(|c| c.timeline).collect();
    prop_assert_eq!(numbers.len(), after.timelines.0.len(), "INV-8: a number is claimed once");
    let gone = before.rules.iter().any(|r| !after.rules.contains(r));
    let may_go = matches!(p.command, Command::SettleRule { .. } | Command::Elect { .. } | Command::FinishBootstrap { .. });
    prop_assert!(!gone || may_go, "INV-5: a rule leaves only when another is settled");
    if after.lease.holder != before.lease.holder && after.lease.holder.is_some() {
        prop_assert!(before.lease.holder.is_none() && before.lease.seq == 0, "INV-9: a lease is taken once in an epoch");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// `apply` never panics, and every pair of neighbouring states keeps the invariants.
    #[test]
    fn apply_is_total_and_keeps_the_invariants(acts in acts()) {
        let mut state = ClusterState::default();
        apply(&mut state, &create()).expect("the first command of a cluster");
        for act in &acts {
            let before = state.clone();
            let p = proposal(&state, act);
            let outcome = apply(&mut state, &p);
            check_step(&before, &state, &p, &outcome)?;
        }
    }

    /// Two members that apply one log agree, also where one of them begins from a stored state in the middle.
    #[test]
    fn apply_is_deterministic_and_survives_a_snapshot(acts in acts(), cut in 0usize..120) {
        let mut state = ClusterState::default();
        let mut log = vec![create()];
        apply(&mut state, &log[0]).expect("the first command of a cluster");
        for act in &acts {
            let p = proposal(&state, act);
            drop(apply(&mut state, &p));
            log.push(p);
        }
        let cut = cut.min(log.len());
        let mut other = ClusterState::default();
        log[..cut].iter().for_each(|p| drop(apply(&mut other, p)));
        let stored = serde_json::to_string(&other).expect("the state is plain data");
        let mut other: ClusterState = serde_json::from_str(&stored).expect("it reads what it wrote");
        log[cut..].iter().for_each(|p| drop(apply(&mut other, p)));
        prop_assert_eq!(state, other);
    }
}

// ---- the lease (INV-9)

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// For all drifts within the bound: whoever has waited finds that the holder's deadline has passed, whenever its renewals were
    /// sent, committed, answered and applied.
    #[test]
    fn no_wait_ends_before_the_lease(
        ttl in 1_000u64..60_000,
        drift in 0u64..200,
        holder_fast in -1.0f64..=1.0,
        other_fast in -1.0f64..=1.0,
        renewals in proptest::collection::vec((0u64..3_000, 0u64..2_000, 0u64..5_000, 0u64..5_000), 1..12),
    ) {
        let settings = Settings { lease_ttl_ms: ttl, clock_drift_permille: drift, ..Settings::default() };
        let rate = |fast: f64| 1.0 + fast * drift as f64 / 1_000.0;
        let clock = |true_ms: u64, fast: f64, offset: u64| Millis(offset + (true_ms as f64 * rate(fast)) as u64);
        let (mut holder, mut watch) = (HolderLease::default(), LeaseWatch::default());
        let mut now = 10_000u64;
        let (mut applied_at, mut answers) = (0, Vec::new());
        for (seq, (gap, until_commit, until_answer, until_applied)) in renewals.iter().enumerate() {
            now += gap;
            let sent = clock(now, holder_fast, 77);
            let committed = now + until_commit;
            answers.push((committed + until_answer, sent));
            applied_at = applied_at.max(committed + until_applied);
            let lease = trilithon::cluster::Lease { holder: Some(NodeId(1)), epoch: Epoch(1), seq: seq as u64 };
            watch.applied(lease, clock(applied_at, other_fast, 500_000));
        }
        answers.iter().for_each(|(_, sent)| holder.renewed(Epoch(1), *sent, &settings));
        // The earliest true moment at which the other may act.
        let since = watch.since(Millis(0));
        let mut act = applied_at + settings.lease_wait().as_millis() as u64 * 8 / 10;
        while clock(act, other_fast, 500_000).since(since) < settings.lease_wait() {
            act += 1;
        }
        let (_, deadline) = holder.deadline().expect("it was renewed");
        prop_assert!(clock(act, holder_fast, 77) >= deadline, "deadline {deadline:?}, clock {:?}", clock(act, holder_fast, 77));
        let belief = holder.belief(clock(act, holder_fast, 77));
        prop_assert_eq!(belief, LeaseBelief::Ending { epoch: Epoch(1) });
    }

    /// A longer lease that is ordered while one is held takes none of its time: it would end a primary that is well.
    #[test]
    fn a_longer_lease_begins_with_its_first_renewal(ttl in 1_000u64..60_000, longer in 1u64..30, passed in 0u64..60_000) {
        let settings = Settings { lease_ttl_ms: ttl, ..Settings::default() };
        let (mut holder, sent) = (HolderLease::default(), Millis(10_000));
        holder.renewed(Epoch(1), sent, &settings);
        let now = Millis(sent.0 + passed.min(ttl * 5 / 6 - 1));
        prop_assert_eq!(holder.belief(now), LeaseBelief::Valid { epoch: Epoch(1) });
        let settings = Settings { lease_ttl_ms: ttl * longer, ..settings };
        holder.renewed(Epoch(1), now, &settings);
        prop_assert_eq!(holder.fencing(), Some(now.after(settings.lease_ttl() - settings.fencing_margin())));
    }

    /// A late or repeated answer never shortens a lease, and one of an older epoch never revives it.
    #[test]
    fn a_lease_only_grows_within_its_epoch(sents in proptest::collection::vec((1u64..4, 0u64..100_000), 1..20)) {
        let settings = Settings::default();
        let mut holder = HolderLease::default();
        let mut newest: BTreeMap<Epoch, u64> = BTreeMap::new();
        for (epoch, sent) in sents {
            let before = holder.deadline();
            holder.renewed(Epoch(epoch), Millis(sent), &settings);
            let longest = newest.entry(Epoch(epoch)).or_insert(sent);
            *longest = sent.max(*longest);
            let (held, deadline) = holder.deadline().expect("it was renewed");
            prop_assert!(before.is_none_or(|(e, d)| held > e || (held == e && deadline >= d)));
            prop_assert_eq!(held, *newest.keys().next_back().expect("one at least"));
        }
    }
}
