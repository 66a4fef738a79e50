//! The replicated state machine: total, deterministic, rejecting with a reason.
//!
//! Each handler checks first and changes after, so that a rejection leaves no trace (INV-2). What a handler accepts never
//! depends on who proposes it or on the time.

use super::{
    Adopted, CalledOff, ChangeKind, ClusterState, Command, Durability, ElectionCall, ElectionCause, HistoryEntry, Lease, Member,
    MemberKind, Phase, PlannedChange, Proposal, Settings, SyncRule, TimelineClaim,
};
use crate::types::{ClusterId, Epoch, Lsn, NodeId, RequestId, Revision, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What became of a proposal; identical on every member.
pub type Outcome = Result<Revision, Rejection>;

/// Why a proposal had no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Rejection {
    #[error("the cluster has moved on (revision {actual}); read it again and decide anew")]
    StaleRevision { actual: Revision },
    #[error("{0}")]
    Refused(String),
}

/// Rules in force at once, at most; each distinct one is kept once, so a real cluster stays far below.
const RULES_MAX: usize = 16;

/// Apply one log entry. INV-2: a stale one is rejected without effect. INV-12: a request that took effect before succeeds
/// again without effect.
pub fn apply(state: &mut ClusterState, proposal: &Proposal) -> Outcome {
    if proposal.request.is_some_and(|r| state.requests.contains(&r)) {
        return Ok(state.revision);
    }
    match proposal.expect {
        Some(expect) if expect != state.revision => return Err(Rejection::StaleRevision { actual: state.revision }),
        None if needs_revision(&proposal.command) => return refuse("this command must name the revision that it was decided on"),
        Some(_) | None => {}
    }
    transition(state, proposal)?;
    if !is_lease_traffic(&proposal.command) {
        state.revision.0 += 1;
    }
    if let Some(request) = proposal.request {
        state.requests.push(request);
        let excess = state.requests.len().saturating_sub(ClusterState::REQUESTS_MAX);
        state.requests.drain(..excess);
    }
    Ok(state.revision)
}

/// Decisions about elections and rules rest on the whole state; the others guard themselves.
fn needs_revision(command: &Command) -> bool {
    match command {
        Command::Create { .. }
        | Command::AcquireLease { .. }
        | Command::RenewLease { .. }
        | Command::ReleaseLease { .. }
        | Command::SetSecrets { .. }
        | Command::Pause { .. }
        | Command::SetTags { .. }
        | Command::AdmitMember { .. }
        | Command::UpdateMember { .. } => false,
        Command::ClaimBootstrap { .. }
        | Command::AbandonBootstrap { .. }
        | Command::FinishBootstrap { .. }
        | Command::RequestSwitchover { .. }
        | Command::RequestFailover { .. }
        | Command::StartDrain { .. }
        | Command::CallOff { .. }
        | Command::BeginElection { .. }
        | Command::Elect { .. }
        | Command::ProposeRule { .. }
        | Command::SettleRule { .. }
        | Command::Configure { .. }
        | Command::Fence { .. }
        | Command::RemoveMember { .. } => true,
    }
}

/// Renewals go by several times a second; if they bumped the revision, every decision would race with them.
fn is_lease_traffic(command: &Command) -> bool {
    matches!(command, Command::RenewLease { .. } | Command::ReleaseLease { .. })
}

fn transition(s: &mut ClusterState, proposal: &Proposal) -> Result<(), Rejection> {
    match &proposal.command {
        Command::Create { cluster, name, members, settings } => create(s, *cluster, name, members, settings),
        Command::AcquireLease { node, epoch } => acquire_lease(s, *node, *epoch),
        Command::RenewLease { node, epoch } => {
            ensure_holder(s, *node, *epoch)?;
            s.lease.seq += 1;
            Ok(())
        }
        Command::ReleaseLease { node, epoch } => {
            ensure_holder(s, *node, *epoch)?;
            s.lease = Lease { holder: None, epoch: *epoch, seq: s.lease.seq + 1 };
            Ok(())
        }
        Command::SetSecrets { secrets } => {
            ensure(s.secrets.is_none(), || "the passwords were drawn already".into())?;
            s.secrets = Some(secrets.clone());
            Ok(())
        }
        Command::ClaimBootstrap { node } => {
            ensure(s.phase == Phase::Empty, || "another member initialises, or has initialised, the database".into())?;
            ensure_data_member(s, *node)?;
            s.phase = Phase::Bootstrapping { node: *node };
            Ok(())
        }
        Command::AbandonBootstrap { node } => abandon_bootstrap(s, *node),
        Command::FinishBootstrap { node, system, timeline, lsn: _, rule } => finish_bootstrap(s, *node, *system, *timeline, rule),
        Command::RequestSwitchover { to } => request_change(s, *to, ChangeKind::Switchover, proposal.request),
        Command::RequestFailover { to, accept_loss } => {
            request_change(s, *to, ChangeKind::Failover { accept_loss: *accept_loss }, proposal.request)
        }
        Command::StartDrain { from, to } => {
            ensure(s.phase == Phase::Steady { primary: *from }, || format!("{from} is not the steady primary"))?;
            ensure_candidate(s, *to)?;
            s.phase = Phase::Draining { from: *from, to: *to };
            Ok(())
        }
        Command::CallOff { reason } => call_off(s, reason),
        Command::BeginElection { preferred, cause, lease_seq, accept_loss } => {
            ensure_election_allowed(s, *cause, *lease_seq, *accept_loss)?;
            begin_election(s, *preferred, *cause, *accept_loss);
            Ok(())
        }
        Command::Elect { candidate, rule, lsn } => elect(s, *candidate, rule, *lsn),
        Command::ProposeRule { rule } => propose_rule(s, rule),
        Command::SettleRule { epoch, rule, outage_ms } => settle_rule(s, *epoch, rule, *outage_ms),
        Command::Pause { paused } => {
            s.paused = *paused;
            Ok(())
        }
        Command::Configure { settings } => {
            // INV-9: a lease may be held by the old length until an election ends it.
            s.lease_floor_ms = s.lease_floor_ms.max(s.settings.lease_ttl_ms);
            s.settings = (**settings).clone();
            Ok(())
        }
        Command::SetTags { node, tags } => {
            let member = s.members.get_mut(node).ok_or_else(|| unknown_member(*node))?;
            member.tags = tags.clone();
            Ok(())
        }
        Command::Fence { node, fenced } => fence(s, *node, *fenced),
        Command::AdmitMember { member, replaces } => admit(s, member, *replaces),
        Command::UpdateMember { node, member } => update_member(s, *node, member),
        Command::RemoveMember { node } => remove_member(s, *node),
    }
}

// ---- the cluster and its members

fn create(
    s: &mut ClusterState,
    cluster: ClusterId,
    name: &str,
    members: &[(NodeId, Member)],
    settings: &Settings,
) -> Result<(), Rejection> {
    ensure(s.cluster.is_none(), || "the cluster exists already".into())?;
    s.cluster = Some(cluster);
    name.clone_into(&mut s.name);
    s.members = members.iter().cloned().collect();
    s.next_node = NodeId(members.iter().map(|(n, _)| n.0).max().unwrap_or(0) + 1);
    s.settings = settings.clone();
    Ok(())
}

fn abandon_bootstrap(s: &mut ClusterState, node: NodeId) -> Result<(), Rejection> {
    ensure(s.phase == Phase::Bootstrapping { node }, || format!("{node} is not initialising the database"))?;
    s.phase = Phase::Empty;
    Ok(())
}

fn finish_bootstrap(s: &mut ClusterState, node: NodeId, system: SystemId, timeline: Timeline, rule: &SyncRule) -> Result<(), Rejection> {
    ensure(s.phase == Phase::Bootstrapping { node }, || format!("{node} is not initialising the database"))?;
    ensure(rule.primary == node, || "the first rule must name the member that initialised".into())?;
    s.system = Some(system);
    s.timelines.0 = vec![TimelineClaim { timeline, epoch: s.epoch, node, settled: true }];
    only_rule(s, rule);
    begin_election(s, Some(node), ElectionCause::Bootstrap, false);
    Ok(())
}

fn update_member(s: &mut ClusterState, node: NodeId, member: &Member) -> Result<(), Rejection> {
    let known = s.members.get_mut(&node).ok_or_else(|| unknown_member(node))?;
    ensure(known.name == member.name, || format!("{node} is called {}, not {}", known.name, member.name))?;
    // Tags are the administrators': what a starting node tells may be older than their last word.
    *known = Member { tags: known.tags.clone(), ..member.clone() };
    Ok(())
}

fn remove_member(s: &mut ClusterState, node: NodeId) -> Result<(), Rejection> {
    ensure(s.primary() != Some(node), || format!("{} is the primary; switch over first", s.name_of(node)))?;
    if !s.members.contains_key(&node) {
        return Err(unknown_member(node));
    }
    // The rule could not do without it, and its Postgres may go on confirming what no election counts any more.
    let strict = s.settings.strict && s.settings.durability != Durability::Async;
    let without_it = |rule: &SyncRule| rule.standbys.iter().filter(|n| **n != node).count();
    let needs_it = |rule: &SyncRule| rule.acks > 0 && rule.standbys.contains(&node) && without_it(rule) < s.settings.acks.max(1);
    ensure(!(strict && s.rules.iter().any(needs_it)), || {
        format!("commits cannot be confirmed without {}: let another standby catch up first, or set ha.strict = false", s.name_of(node))
    })?;
    s.members.remove(&node);
    s.fences.remove(&node);
    Ok(())
}

// ---- the lease (INV-9) and the timeline (INV-8)

fn ensure_holder(s: &ClusterState, node: NodeId, epoch: Epoch) -> Result<(), Rejection> {
    ensure(s.lease.holder == Some(node) && s.lease.epoch == epoch && s.epoch == epoch, || {
        format!("{} does not hold the lease of epoch {epoch}", s.name_of(node))
    })
}

fn acquire_lease(s: &mut ClusterState, node: NodeId, epoch: Epoch) -> Result<(), Rejection> {
    let chosen = s.phase == Phase::Promoting { candidate: node } && s.epoch == epoch;
    ensure(chosen, || format!("{} is not the chosen candidate of epoch {epoch}", s.name_of(node)))?;
    // A lease that was given back in this epoch is never taken again: others may act on its end already.
    let untouched = s.lease == Lease { holder: None, epoch, seq: 0 };
    ensure(untouched, || format!("the lease of epoch {epoch} was taken before"))?;
    s.lease = Lease { holder: Some(node), epoch, seq: 1 };
    let timeline = s.timelines.next_free();
    s.timelines.0.push(TimelineClaim { timeline, epoch, node, settled: false });
    if let Some(entry) = s.history.last_mut().filter(|h| h.epoch == epoch) {
        entry.timeline = Some(timeline);
    }
    Ok(())
}

// ---- planned changes

fn request_change(s: &mut ClusterState, to: NodeId, kind: ChangeKind, request: Option<RequestId>) -> Result<(), Rejection> {
    let request = request.ok_or_else(|| Rejection::Refused("a planned change needs a request id".into()))?;
    // A failover is the last resort: nothing that was asked for before stands in its way, itself included.
    let supersedes = matches!(kind, ChangeKind::Failover { .. });
    ensure(s.change.is_none() || supersedes, || "another planned change is under way; wait for it".into())?;
    ensure_candidate(s, to)?;
    match (kind, s.phase) {
        (ChangeKind::Switchover, Phase::Steady { primary }) => {
            ensure(primary != to, || format!("{} is the primary already", s.name_of(to)))?;
        }
        (ChangeKind::Failover { .. }, Phase::Steady { .. } | Phase::Draining { .. } | Phase::Electing { .. } | Phase::Promoting { .. }) => {
        }
        (ChangeKind::Switchover, Phase::Draining { .. } | Phase::Electing { .. } | Phase::Promoting { .. })
        | (ChangeKind::Switchover | ChangeKind::Failover { .. }, Phase::Empty | Phase::Bootstrapping { .. }) => {
            return refuse(&format!("the cluster is {}; wait until it is steady", s.phase.word()));
        }
    }
    if let Some(before) = s.change {
        s.called_off = Some(CalledOff { request: before.request, reason: "a failover was ordered instead".to_owned() });
    }
    s.change = Some(PlannedChange { request, from: s.primary(), to, kind });
    Ok(())
}

fn call_off(s: &mut ClusterState, reason: &str) -> Result<(), Rejection> {
    let change = s.change.ok_or_else(|| Rejection::Refused("no planned change is under way".into()))?;
    if let Phase::Draining { from, .. } = s.phase {
        s.phase = Phase::Steady { primary: from };
    }
    s.change = None;
    s.called_off = Some(CalledOff { request: change.request, reason: reason.to_owned() });
    Ok(())
}

// ---- elections

fn ensure_election_allowed(s: &ClusterState, cause: ElectionCause, lease_seq: u64, accept_loss: bool) -> Result<(), Rejection> {
    // INV-9: the decision saw the lease end; a renewal since then proves it wrong.
    ensure(lease_seq == s.lease.seq, || "the lease was renewed meanwhile".into())?;
    let confirmed = s.change.is_some_and(|c| c.kind == ChangeKind::Failover { accept_loss: true });
    ensure(!accept_loss || confirmed, || "only an administrator's failover may accept loss".into())?;
    let automatic = match cause {
        ElectionCause::LeaseExpired | ElectionCause::PrimaryDown | ElectionCause::ProvenDead => true,
        ElectionCause::Bootstrap | ElectionCause::Switchover | ElectionCause::Manual | ElectionCause::CandidateLost => false,
    };
    let from_steady = matches!(s.phase, Phase::Steady { .. });
    ensure(!(s.paused && automatic && from_steady), || "paused: automatic elections are off".into())?;
    match s.phase {
        Phase::Steady { .. } | Phase::Draining { .. } | Phase::Promoting { .. } | Phase::Electing { .. } => Ok(()),
        Phase::Empty | Phase::Bootstrapping { .. } => refuse("there is no database yet"),
    }
}

fn begin_election(s: &mut ClusterState, preferred: Option<NodeId>, cause: ElectionCause, accept_loss: bool) {
    // A second try keeps the first one's story: who was primary, and why it was lost.
    let before = s.primary().or(s.election.and_then(|e| e.from));
    let retry = matches!(s.phase, Phase::Electing { .. } | Phase::Promoting { .. });
    s.election = Some(match (retry, s.election) {
        (true, Some(first)) => first,
        (true | false, _) => ElectionCall { from: before, cause },
    });
    s.epoch = s.epoch.next();
    s.lease = Lease { holder: None, epoch: s.epoch, seq: 0 };
    // Whoever takes the lease of the new epoch has applied the settings of now.
    s.lease_floor_ms = 0;
    s.phase = Phase::Electing { preferred, accept_loss };
    s.change = None;
}

fn elect(s: &mut ClusterState, candidate: NodeId, rule: &SyncRule, lsn: Lsn) -> Result<(), Rejection> {
    let Phase::Electing { accept_loss, .. } = s.phase else {
        return refuse("no election is under way");
    };
    ensure_candidate(s, candidate)?;
    ensure_rule(s, rule, candidate)?;
    if accept_loss {
        // The administrator's word replaces coverage: what the old rules protected may be gone, and waiting for it would block for ever.
        s.rules.clear();
        s.adopted.clear();
    }
    push_rule(s, rule)?;
    s.phase = Phase::Promoting { candidate };
    let call = s.election.unwrap_or(ElectionCall { from: None, cause: ElectionCause::Manual });
    // The next try of an election in which a loss was accepted: the rules that it gave up stay given up.
    let before = s.history.pop_if(|h| !h.settled).is_some_and(|h| h.accept_loss);
    let entry = HistoryEntry {
        epoch: s.epoch,
        timeline: None,
        from: call.from,
        to: candidate,
        lsn,
        cause: call.cause,
        settled: false,
        outage_ms: None,
        accept_loss: accept_loss || before,
    };
    s.history.push(entry);
    let excess = s.history.len().saturating_sub(ClusterState::HISTORY_MAX);
    s.history.drain(..excess);
    Ok(())
}

// ---- rules (INV-5, INV-6)

fn push_rule(s: &mut ClusterState, rule: &SyncRule) -> Result<(), Rejection> {
    // A rule that is in flight already moves to the end and counts as adopted now.
    let marks = s.adopted.iter().copied().map(Some).chain(std::iter::repeat(None));
    let others: Vec<(SyncRule, Adopted)> =
        s.rules.iter().cloned().zip(marks).filter(|(r, _)| r != rule).map(|(r, mark)| (r, mark.unwrap_or(now(s)))).collect();
    ensure(others.len() < RULES_MAX, || format!("{RULES_MAX} rules are in flight; settle one first"))?;
    (s.rules, s.adopted) = others.into_iter().unzip();
    s.rules.push(rule.clone());
    s.adopted.push(now(s));
    Ok(())
}

fn only_rule(s: &mut ClusterState, rule: &SyncRule) {
    s.rules = vec![rule.clone()];
    s.adopted = vec![now(s)];
}

/// This command's mark: it will have made the next revision.
fn now(s: &ClusterState) -> Adopted {
    Adopted { epoch: s.epoch, revision: Revision(s.revision.0 + 1) }
}

fn propose_rule(s: &mut ClusterState, rule: &SyncRule) -> Result<(), Rejection> {
    let primary = rule_owner(s)?;
    ensure_rule(s, rule, primary)?;
    ensure(s.rules.last() != Some(rule), || "that rule is the newest already".into())?;
    push_rule(s, rule)
}

fn settle_rule(s: &mut ClusterState, epoch: Epoch, rule: &SyncRule, outage_ms: Option<u64>) -> Result<(), Rejection> {
    let primary = rule_owner(s)?;
    ensure(epoch == s.epoch, || format!("proved in epoch {epoch}, the cluster is in {}", s.epoch))?;
    ensure(s.rules.last() == Some(rule) && rule.primary == primary, || "that is not the rule in flight".into())?;
    only_rule(s, rule);
    if matches!(s.phase, Phase::Promoting { .. }) {
        // Whatever failover was ordered meanwhile has its answer.
        s.change = None;
    }
    s.phase = Phase::Steady { primary };
    settle_timeline(s, epoch);
    if let Some(entry) = s.history.last_mut().filter(|h| h.epoch == epoch && !h.settled) {
        entry.settled = true;
        entry.outage_ms = outage_ms;
    }
    Ok(())
}

/// Claims are kept while a disk may still carry them. Those of a member that was away for more elections than this are forgotten; it still
/// seals, as older than all that are kept, and it follows, is rewound or is copied like any other (see `TimelineClaims::writer`).
const CLAIMS_MAX: usize = 1_000;

fn settle_timeline(s: &mut ClusterState, epoch: Epoch) {
    if let Some(claim) = s.timelines.0.iter_mut().find(|c| c.epoch == epoch) {
        claim.settled = true;
    }
    let excess = s.timelines.0.len().saturating_sub(CLAIMS_MAX);
    s.timelines.0.drain(..excess);
}

/// Whose rules may change now.
fn rule_owner(s: &ClusterState) -> Result<NodeId, Rejection> {
    match s.phase {
        Phase::Steady { primary } | Phase::Promoting { candidate: primary } => Ok(primary),
        Phase::Empty | Phase::Bootstrapping { .. } | Phase::Draining { .. } | Phase::Electing { .. } => {
            refuse(&format!("rules do not change while the cluster is {}", s.phase.word()))
        }
    }
}

fn ensure_rule(s: &ClusterState, rule: &SyncRule, primary: NodeId) -> Result<(), Rejection> {
    ensure(rule.primary == primary, || format!("the rule must name {} as its primary", s.name_of(primary)))?;
    ensure(rule.acks <= rule.standbys.len(), || "the rule asks for more confirmations than it has standbys".into())?;
    ensure(!rule.standbys.contains(&primary), || "the primary cannot confirm its own commits".into())?;
    rule.standbys.iter().try_for_each(|n| ensure_data_member(s, *n))
}

// ---- members

fn fence(s: &mut ClusterState, node: NodeId, fenced: bool) -> Result<(), Rejection> {
    ensure_data_member(s, node)?;
    ensure(!fenced || s.primary() != Some(node), || format!("{} is the primary; switch over first", s.name_of(node)))?;
    if fenced {
        s.fences.insert(node);
    } else {
        s.fences.remove(&node);
    }
    Ok(())
}

fn admit(s: &mut ClusterState, member: &Member, replaces: Option<NodeId>) -> Result<(), Rejection> {
    let holder = s.find(member.name.as_str()).map(|(n, _)| n);
    ensure(holder == replaces, || format!("the name {} is taken by {holder:?}; choose another, or replace that member", member.name))?;
    if let Some(old) = replaces {
        s.members.remove(&old);
        s.fences.remove(&old);
    }
    let node = s.next_node;
    s.next_node = NodeId(node.0 + 1);
    s.members.insert(node, member.clone());
    Ok(())
}

fn ensure_candidate(s: &ClusterState, node: NodeId) -> Result<(), Rejection> {
    ensure_data_member(s, node)?;
    ensure(!s.fences.contains(&node), || format!("{} is fenced", s.name_of(node)))
}

fn ensure_data_member(s: &ClusterState, node: NodeId) -> Result<(), Rejection> {
    let member = s.members.get(&node).ok_or_else(|| unknown_member(node))?;
    ensure(member.kind == MemberKind::Data, || format!("{} is a witness and holds no data", member.name))
}

fn unknown_member(node: NodeId) -> Rejection {
    Rejection::Refused(format!("{node} is not a member"))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), Rejection> {
    if holds { Ok(()) } else { Err(Rejection::Refused(why())) }
}

fn refuse<T>(why: &str) -> Result<T, Rejection> {
    Err(Rejection::Refused(why.to_owned()))
}
