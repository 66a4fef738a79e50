//! Carries out one action against Postgres or consensus. Idempotent: repeated after any interruption it ends in the same place.

use super::{LeaseCell, ViewSource};
use crate::cluster::{ClusterState, Command, Phase, Proposal, Rejection};
use crate::consensus::{Handle, ProposeError};
use crate::ha::{Action, LocalState, View};
use crate::postgres::{self, Descent, Instance};
use crate::telemetry::Clock;
use crate::types::{Epoch, NodeId, Revision};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;

/// Taking the lease, or agreeing on passwords, is one round of consensus.
const LEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// A walreceiver goes within 50 ms; one that waits for a conflicting query is killed after a quarter second.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);
/// Clean stop of a standby.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where nobody is let in: it may write all that was replayed, and nobody is served by it meanwhile.
const LOCKED_OUT_STOP_TIMEOUT: Duration = Duration::from_secs(600);
/// Shutdown checkpoint and shipping of the WAL, after which lagging walsenders are ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Standbys confirm within milliseconds; one attempt is given up in time for a newer rule.
const RULE_TIMEOUT: Duration = Duration::from_secs(5);
/// A checkpoint writes every dirty page.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a drain looks whether the proxies are empty.
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// A proxy that has said nothing for so long is not waited for: news come several times a second.
const PROXY_MAX_AGE: Duration = Duration::from_secs(1);

/// What a step needs.
pub struct Deps {
    pub me: NodeId,
    pub clock: Clock,
    pub consensus: Handle,
    pub postgres: Arc<Instance>,
    pub lease: Arc<LeaseCell>,
    pub view: Arc<ViewSource>,
    /// What this node held, and what its upstream did, when the step was decided on.
    pub descent: Option<Descent>,
    /// Set when a drain passes its point of no return.
    pub committed: Arc<AtomicBool>,
}

/// The step is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done;

/// Why a step was not done.
#[derive(Debug, Error)]
pub enum ExecuteError {
    #[error(transparent)]
    Postgres(#[from] postgres::PostgresError),
    #[error("the lease was not taken: {0}")]
    LeaseRefused(Rejection),
    #[error("consensus did not answer: {0}")]
    NoConsensus(#[from] ProposeError),
    #[error("the passwords of the new cluster were refused: {0}")]
    SecretsRefused(Rejection),
    #[error("the passwords of the new cluster were not agreed on within {} ms", LEASE_TIMEOUT.as_millis())]
    SecretsTimeout,
    #[error("the lease was not taken within {} ms", LEASE_TIMEOUT.as_millis())]
    LeaseTimeout,
    #[error("{0} is not a member with an address")]
    UnknownMember(NodeId),
    #[error("only a fresh copy helps: {0}")]
    CloneNeeded(String),
}

impl ExecuteError {
    /// Trying again cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            ExecuteError::Postgres(error) => error.is_final(),
            ExecuteError::LeaseRefused(_)
            | ExecuteError::NoConsensus(_)
            | ExecuteError::LeaseTimeout
            | ExecuteError::SecretsRefused(_)
            | ExecuteError::SecretsTimeout
            | ExecuteError::UnknownMember(_)
            | ExecuteError::CloneNeeded(_) => false,
        }
    }
}

/// Carry out `action`, decided on `state`.
///
/// # Errors
/// The step was not, or not wholly, done; it may be tried again.
pub async fn execute(deps: Deps, state: Arc<ClusterState>, action: Action) -> Result<Done, ExecuteError> {
    let pg = &deps.postgres;
    match action {
        // The loop does these itself, in order.
        Action::Promise { .. } | Action::ReleaseLease { .. } => {}
        Action::Detach => pg.detach(DETACH_TIMEOUT).await?,
        Action::Demote => pg.demote().await?,
        Action::AcquireLease { epoch } => acquire(&deps, &state, epoch).await?,
        Action::InitDb => init_db(&deps, &state).await?,
        Action::StartDetached => start_detached(&deps, &state).await?,
        Action::Stop if pg.locked_out().is_some() => pg.stop(LOCKED_OUT_STOP_TIMEOUT).await?,
        Action::Stop => pg.stop(STOP_TIMEOUT).await?,
        Action::Follow { primary, epoch } => {
            or_clone(pg.follow(upstream(&state, primary, epoch)?, state.system, deps.descent.as_ref()).await)?;
        }
        Action::Clone { primary } => pg.copy_from(&upstream(&state, primary, state.epoch)?, state.system).await?,
        Action::Rewind { primary } => rewind(&deps, &state, primary).await?,
        Action::Promote { epoch, timeline, rule } => {
            pg.promote(epoch, timeline, &rule, Duration::from_millis(state.settings.promotion_timeout_ms)).await?;
        }
        // INV-6: returns only once a marker write was acknowledged under `rule`.
        Action::ApplyRule { epoch, rule } => pg.apply_rule(epoch, &rule, RULE_TIMEOUT).await?,
        Action::Prepare { request: _ } => pg.prepare(CHECKPOINT_TIMEOUT).await?,
        Action::Drain => drain(&deps, &state).await?,
    }
    Ok(Done)
}

/// INV-9: counts from before the command was sent. A lease that the state gives us already, from before a restart, is renewed.
async fn acquire(deps: &Deps, state: &ClusterState, epoch: Epoch) -> Result<(), ExecuteError> {
    let node = deps.me;
    let held = state.lease.holder == Some(node) && state.lease.epoch == epoch;
    let command = if held { Command::RenewLease { node, epoch } } else { Command::AcquireLease { node, epoch } };
    let sent = deps.clock.now();
    let proposal = Proposal { expect: None, request: None, command };
    let answer = tokio::time::timeout(LEASE_TIMEOUT, deps.consensus.propose(proposal)).await.map_err(|_| ExecuteError::LeaseTimeout)?;
    answer?.map_err(ExecuteError::LeaseRefused)?;
    deps.lease.renewed(epoch, sent, &state.settings);
    Ok(())
}

/// A directory that was not shut down cleanly, or in the middle of its recovery, recovers to the end first, whatever timeline it is on.
async fn rewind(deps: &Deps, state: &ClusterState, primary: NodeId) -> Result<(), ExecuteError> {
    let source = upstream(state, primary, state.epoch)?;
    let pg = &deps.postgres;
    match pg.rewind(&source, state.system).await {
        Err(postgres::PostgresError::NotReplayed(_)) => {
            or_clone(pg.start_detached(state.system).await)?;
            or_clone(pg.replay_all().await)?;
            pg.stop(STOP_TIMEOUT).await?;
            or_clone(pg.rewind(&source, state.system).await)
        }
        other => or_clone(other),
    }
}

/// The one failure that another kind of step repairs.
fn or_clone(result: Result<(), postgres::PostgresError>) -> Result<(), ExecuteError> {
    result.map_err(|error| if error.needs_clone() { ExecuteError::CloneNeeded(error.to_string()) } else { error.into() })
}

/// Initialises once: an attempt that broke off after initdb left a database, and the next step is to start it.
async fn init_db(deps: &Deps, state: &ClusterState) -> Result<(), ExecuteError> {
    agree_on_secrets(deps, state).await?;
    match deps.postgres.init_db().await {
        Err(postgres::PostgresError::AlreadyInitialised { .. }) => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// A member that bootstraps makes sure that the roles and passwords of the cluster are in its database, also in one that existed.
async fn start_detached(deps: &Deps, state: &ClusterState) -> Result<(), ExecuteError> {
    if state.phase == (Phase::Bootstrapping { node: deps.me }) {
        agree_on_secrets(deps, state).await?;
        deps.postgres.adopt_directory().await?;
    }
    or_clone(deps.postgres.start_detached(state.system).await)
}

/// The passwords are part of the replicated state before any database knows them: whoever takes over finds them there.
async fn agree_on_secrets(deps: &Deps, state: &ClusterState) -> Result<(), ExecuteError> {
    if let Some(agreed) = &state.secrets {
        return Ok(deps.postgres.set_secrets(agreed.clone()).await?);
    }
    let secrets = deps.postgres.secrets().unwrap_or_else(postgres::generate_secrets);
    let proposal = Proposal { expect: None, request: None, command: Command::SetSecrets { secrets: secrets.clone() } };
    let answer = tokio::time::timeout(LEASE_TIMEOUT, deps.consensus.propose(proposal)).await.map_err(|_| ExecuteError::SecretsTimeout)?;
    answer?.map_err(ExecuteError::SecretsRefused)?;
    Ok(deps.postgres.set_secrets(secrets).await?)
}

/// New transactions are held by every proxy that has seen the drain; those in flight end or are cancelled; then fast shutdown.
async fn drain(deps: &Deps, state: &ClusterState) -> Result<(), ExecuteError> {
    let begun = deps.clock.now();
    // The proxies cancel at the deadline; half a second later the shutdown ends whatever is left.
    let patience = state.settings.drain_timeout() + Duration::from_millis(500);
    let empty = || proxies_empty(&deps.consensus.state().borrow(), &deps.view.view(deps.clock.now()), state.revision);
    while deps.clock.now().since(begun) < patience && !empty() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    let still = matches!(deps.consensus.state().borrow().phase, Phase::Draining { from, .. } if from == deps.me);
    if !still {
        return Ok(());
    }
    deps.committed.store(true, Ordering::Release);
    Ok(deps.postgres.drain(Duration::ZERO, SHUTDOWN_TIMEOUT).await?)
}

/// Every member that we hear has seen the drain and has nothing open on the primary. One that was removed and still runs never hears of it:
/// what its proxy has open ends with the server, which is shut down before anybody is elected, as it would behind the drain's deadline.
fn proxies_empty(s: &ClusterState, view: &View, drain: Revision) -> bool {
    let heard = s.members.keys().filter_map(|node| view.fresh(*node, PROXY_MAX_AGE));
    heard.into_iter().all(|o| o.revision >= drain && o.proxy_in_flight == 0)
}

/// What this node holds and what its upstream does, as far as that is known. To be asked before the step begins: what the server says of
/// itself while it stops and starts is less.
pub fn descent(local: &LocalState) -> Option<Descent> {
    let (own, upstream) = (local.postgres.timeline?, local.upstream.as_ref()?);
    Some(Descent { own, upstream: upstream.timeline, ancestry: upstream.ancestry.clone() })
}

fn upstream(state: &ClusterState, node: NodeId, epoch: Epoch) -> Result<postgres::Upstream, ExecuteError> {
    let address = state.members.get(&node).map(|m| m.addresses.postgres.as_str()).and_then(|a| a.rsplit_once(':'));
    let (host, port) = address.ok_or(ExecuteError::UnknownMember(node))?;
    let port = port.parse().map_err(|_| ExecuteError::UnknownMember(node))?;
    // An IPv6 address is written in brackets where a port follows.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(postgres::Upstream { node, epoch, host, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Member, MemberKind, Tags};
    use crate::ha::{NodeObservation, Seen};
    use crate::types::{Millis, NodeName};

    #[test]
    fn a_drain_waits_for_the_proxies_of_members_only() {
        let member = |n| {
            let name = NodeName(format!("dc{n}"));
            let member =
                Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses: Default::default(), tags: Tags::default() };
            (NodeId(n), member)
        };
        let mut s = ClusterState { members: (1..=3).map(member).collect(), ..ClusterState::default() };
        let seen = |n, revision, proxy_in_flight| {
            let observation =
                NodeObservation { node: NodeId(n), revision: Revision(revision), proxy_in_flight, ..NodeObservation::default() };
            (NodeId(n), Seen { at: Millis(5000), observation })
        };
        let view = |third| View { now: Millis(5500), observations: [seen(1, 7, 0), seen(2, 8, 0), third].into(), ..View::default() };
        let drain = Revision(7);
        assert!(proxies_empty(&s, &view(seen(3, 7, 0)), drain));
        for third in [seen(3, 7, 1), seen(3, 6, 0)] {
            assert!(!proxies_empty(&s, &view(third), drain), "a member's");
        }
        s.members.remove(&NodeId(3));
        for third in [seen(3, 7, 1), seen(3, 6, 0)] {
            assert!(proxies_empty(&s, &view(third), drain), "it was removed, and still runs");
        }
    }
}
