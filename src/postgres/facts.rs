//! What the agent observes: [`PostgresFacts`], read cheaply and never better than they are.
//!
//! The position of a standby is what an election believes (INV-7), so it is reported only when nothing can lie beyond it: the
//! walreceiver is looked at before the position is read, and after a restart the position counts only once replay has come to the
//! end of the local WAL. An unresponsive server is `Unknown`, never `Stopped`.

use super::conf::{StoppedAt, node_of, upstream_of};
use super::control::{ControlData, LastState};
use super::error::Error;
use super::history;
use super::identify::{Identifier, Identity};
use super::instance::{Activity, Instance, Probe, QUERY_LIMIT, data_major};
use super::process::lock;
use super::procfs::PidFile;
use super::session::Session;
use super::tool::blocking;
use crate::ha::{PostgresFacts, PostgresState, Role, StandbyView};
use crate::types::{Epoch, Lsn, NodeId, Timeline, WalPosition};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// How often a new connection is tried beside the kept one: a stopped postmaster answers on neither, a hung one on old ones only.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Statements in this order: first who streams, then positions. PostgreSQL 17 writes its wait events another way (`WalSync`).
const SURVEY: &str = "\
SELECT 'r', pg_is_in_recovery(), current_setting('server_version_num'), \
  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver'), \
  (SELECT conninfo FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
  (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'), \
  (SELECT count(*) FROM pg_stat_activity WHERE lower(wait_event) IN ('walsync', 'walwrite', 'walinitsync', 'walinitwrite')); \
SELECT 'p', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END, \
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
  CASE WHEN pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS DISTINCT FROM pg_last_wal_replay_lsn() \
    THEN floor(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::bigint \
    WHEN pg_is_in_recovery() THEN 0 END; \
SELECT 's', application_name, state, coalesce(flush_lsn, '0/0'), coalesce(replay_lsn, '0/0'), coalesce(sync_priority, 0) \
  FROM pg_stat_replication WHERE application_name LIKE 'trilithon\\_n%'";

/// Where the WAL of a detached standby ends, and whether it has replayed all of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalEnd {
    pub timeline: Timeline,
    pub lsn: Lsn,
    pub replayed: bool,
}

/// The rows of [`SURVEY`].
#[derive(Debug, Default)]
pub(super) struct Survey {
    in_recovery: bool,
    version_num: u32,
    walreceivers: u32,
    conninfo: Option<String>,
    startup_waits: bool,
    flush_waits: bool,
    received: Option<Lsn>,
    replayed: Option<Lsn>,
    lag_ms: Option<u64>,
    standbys: BTreeMap<NodeId, StandbyView>,
}

impl Survey {
    async fn take(session: &Session) -> Result<Survey, Error> {
        let mut survey = Survey::default();
        for row in session.rows(SURVEY, QUERY_LIMIT).await? {
            let text = |column: usize| row.try_get(column).ok().flatten();
            let number = |column: usize| text(column).and_then(|t| t.parse::<u64>().ok());
            let lsn = |column: usize| text(column).and_then(|t| t.parse::<Lsn>().ok());
            match text(0) {
                Some("r") => {
                    survey.in_recovery = text(1) == Some("t");
                    survey.version_num = text(2).and_then(|t| t.parse().ok()).unwrap_or(0);
                    survey.walreceivers = text(3).and_then(|t| t.parse().ok()).unwrap_or(u32::MAX);
                    survey.conninfo = text(4).map(str::to_owned);
                    // It has read everything that is here, and waits for more. `RecoveryWalStream`: a walreceiver was asked for.
                    survey.startup_waits = matches!(text(5), Some("RecoveryRetrieveRetryInterval" | "RecoveryWalStream"));
                    survey.flush_waits = number(6).is_some_and(|processes| processes > 0);
                }
                Some("p") => {
                    survey.received = lsn(1);
                    survey.replayed = lsn(2);
                    survey.lag_ms = number(3);
                }
                Some("s") => {
                    let Some(node) = text(1).and_then(node_of) else { continue };
                    let view = StandbyView {
                        streaming: text(2) == Some("streaming"),
                        flushed: lsn(3).unwrap_or_default(),
                        replayed: lsn(4).unwrap_or_default(),
                        sync: number(5).is_some_and(|p| p > 0),
                    };
                    // A stale connection of the same member says less than its new one.
                    let known = survey.standbys.entry(node).or_insert(view);
                    if (view.streaming, view.flushed) > (known.streaming, known.flushed) {
                        *known = view;
                    }
                }
                Some(_) | None => {}
            }
        }
        Ok(survey)
    }

    /// Was all local WAL read before the positions were? A walreceiver is asked for only at the end of the local WAL, and its
    /// position exists only from then on.
    fn local_wal_read(&self) -> bool {
        self.received.is_some() || self.startup_waits
    }

    /// Has a server without a walreceiver replayed all WAL that is here? One that received nothing since its start waits only at the end of
    /// what it can read; one that did waits for a moment as soon as its walreceiver goes, whatever it has not read yet.
    fn all_replayed(&self) -> bool {
        match self.received {
            Some(received) => self.replayed >= Some(received),
            None => self.startup_waits,
        }
    }

    /// The end that `identity`, read after this, proves. Where receiving went on to another timeline than replay, the server tells
    /// the end of the replayed WAL only, and more may be there.
    fn end(&self, identity: &Identity) -> Option<Lsn> {
        if !self.in_recovery {
            return Some(identity.lsn);
        }
        (self.local_wal_read() && Some(identity.lsn) >= self.received).then_some(identity.lsn)
    }
}

impl Instance {
    /// The facts of this moment. `writers` tells which epoch writes a timeline (the claims in the replicated state); a position whose
    /// timeline nobody claimed, or that was made by hand here, is withheld. Bounded by about two seconds.
    pub async fn facts(&self, writers: &(dyn Fn(Timeline) -> Option<Epoch> + Sync)) -> PostgresFacts {
        let by_hand = self.by_hand();
        let writers = &|timeline| if by_hand.contains(&timeline) { None } else { writers(timeline) };
        let activity = *self.activity.borrow();
        let blank = |state| PostgresFacts { state, ..PostgresFacts::default() };
        match activity {
            Activity::Cloning { .. } => return blank(PostgresState::Cloning),
            Activity::Rewinding => return blank(PostgresState::Rewinding),
            Activity::Initialising => return blank(PostgresState::Starting),
            Activity::Idle
            | Activity::Starting
            | Activity::Stopping
            | Activity::Draining { .. }
            | Activity::Configuring
            | Activity::Promoting => {}
        }
        if self.supervisor.pid().is_some() {
            let facts = self.running_facts(writers).await.unwrap_or_else(|_| blank(PostgresState::Unknown));
            match facts.state {
                PostgresState::Starting => {
                    self.watch_recovery().await;
                    return self.lockout_facts(writers).await.unwrap_or(facts);
                }
                PostgresState::Running => self.watch_stream(&facts).await,
                _answered_or_ended => self.forget_recovery(),
            }
            return facts;
        }
        self.forget_recovery();
        if matches!(activity, Activity::Starting) {
            return blank(PostgresState::Starting);
        }
        let layout = self.layout.clone();
        match blocking(move || data_major(&layout)).await {
            Ok(None) => return blank(PostgresState::Absent),
            Err(_) => return blank(PostgresState::Unknown),
            Ok(Some(_)) => {}
        }
        if !self.leftovers().await.is_empty() {
            return blank(PostgresState::Stopping);
        }
        // Nothing runs there. What its pg_control does not tell is not known; that it is down is, and that a copy may take its place.
        self.stopped_facts(writers).await.unwrap_or_else(|_| blank(PostgresState::Stopped))
    }

    async fn running_facts(&self, writers: &(dyn Fn(Timeline) -> Option<Epoch> + Sync)) -> Result<PostgresFacts, Error> {
        let surveyed = async { Survey::take(&*self.session().await?).await };
        let (survey, answered) = tokio::join!(surveyed, self.probe());
        let survey = match survey {
            Ok(survey) if answered => survey,
            Ok(_) | Err(_) => {
                self.forget_connections();
                return Ok(PostgresFacts { state: self.unanswered().await, ..PostgresFacts::default() });
            }
        };
        let identity = self.identify().await?;
        let gone_over = lock(&self.ancestry).as_ref().is_none_or(|(known, _)| *known != identity.timeline);
        if survey.in_recovery && gone_over && !self.recovers().await? {
            // Promoted in between: what a primary is on would be told as a standby's.
            return Err(Error::NotStandby);
        }
        let end = survey.end(&identity);
        let following = self.following();
        // While a walreceiver starts or ends it is not shown. Detached, the end of WAL is not final then.
        let unsettled = survey.walreceivers > 0 && following.is_none();
        let position = end.filter(|_| !unsettled).zip(writers(identity.timeline)).map(|(lsn, writer)| WalPosition { writer, lsn });
        // Without its history a timeline cannot be judged: it is withheld, so that nobody takes it for a diverged one.
        let ancestry = self.known_ancestry(identity.timeline).await;
        self.lift_poison().await?;
        Ok(PostgresFacts {
            state: PostgresState::Running,
            role: Some(if survey.in_recovery { Role::Standby } else { Role::Primary }),
            system: Some(identity.system),
            timeline: ancestry.is_some().then_some(identity.timeline),
            position: position.filter(|_| ancestry.is_some()),
            replayed: survey.replayed,
            shutdown_checkpoint: None,
            ancestry: ancestry.unwrap_or_default(),
            streaming_from: survey.conninfo.as_deref().and_then(upstream_of).map(|(node, _)| node),
            standbys: survey.standbys,
            version_num: survey.version_num,
            flush_waits: survey.flush_waits && !survey.in_recovery,
            replay_lag_ms: survey.lag_ms,
        })
    }

    /// Read once per timeline and server: a history file does not change while a server uses it.
    pub(super) async fn known_ancestry(&self, timeline: Timeline) -> Option<history::Ancestry> {
        if let Some((_, ancestry)) = lock(&self.ancestry).as_ref().filter(|(known, _)| *known == timeline) {
            return Some(ancestry.clone());
        }
        let wal = self.layout.wal();
        let ancestry = blocking(move || history::ancestry(&wal, timeline)).await.ok()?;
        *lock(&self.ancestry) = Some((timeline, ancestry.clone()));
        Some(ancestry)
    }

    /// What a server that does not answer is doing, as its pid file says.
    async fn unanswered(&self) -> PostgresState {
        let pgdata = self.layout.pgdata.clone();
        let status = blocking(move || PidFile::read(&pgdata)).await.and_then(|f| f.status);
        match (*self.activity.borrow(), status.as_deref()) {
            (Activity::Stopping | Activity::Draining { committed: true }, _) | (_, Some("stopping")) => PostgresState::Stopping,
            (_, Some("starting") | None) => PostgresState::Starting,
            (_, Some(_)) => PostgresState::Unknown,
        }
    }

    /// Does a new connection answer? Tried once a second, remembered in between.
    async fn probe(&self) -> bool {
        let now = self.clock.now();
        let last = *lock(&self.probe);
        if last.answered && last.at.is_some_and(|at| now.since(at) < PROBE_EVERY) {
            return true;
        }
        let answered = match async { self.connect().await?.value("SELECT 1", QUERY_LIMIT).await }.await {
            Ok(_) => true,
            // Every connection is taken: the server is busy, not hung.
            Err(Error::Connect { source, .. }) => source.code() == Some(&SqlState::TOO_MANY_CONNECTIONS),
            Err(_) => false,
        };
        *lock(&self.probe) = Probe { at: Some(now), answered };
        answered
    }

    /// `IDENTIFY_SYSTEM` over the kept replication connection.
    pub(super) async fn identify(&self) -> Result<Identity, Error> {
        let kept = lock(&self.identifier).take();
        if let Some(mut kept) = kept
            && let Ok(identity) = kept.identify(QUERY_LIMIT).await
        {
            *lock(&self.identifier) = Some(kept);
            return Ok(identity);
        }
        let mut fresh = Identifier::open(&self.target(), QUERY_LIMIT).await?;
        let identity = fresh.identify(QUERY_LIMIT).await?;
        *lock(&self.identifier) = Some(fresh);
        Ok(identity)
    }

    /// End of the WAL of a running standby without a walreceiver, `None` while more may be there.
    pub(super) async fn flushed_end(&self) -> Result<Option<LocalEnd>, Error> {
        let survey = Survey::take(&*self.session().await?).await?;
        if !survey.in_recovery || survey.walreceivers > 0 {
            return Ok(None);
        }
        let identity = self.identify().await?;
        Ok(survey.end(&identity).map(|lsn| LocalEnd { timeline: identity.timeline, lsn, replayed: survey.all_replayed() }))
    }

    /// How far a detached standby has replayed, and whether that is all it has.
    pub(super) async fn replayed(&self) -> Result<(Option<Lsn>, bool), Error> {
        let survey = Survey::take(&*self.session().await?).await?;
        if !survey.in_recovery {
            return Err(Error::NotStandby);
        }
        Ok((survey.replayed, survey.walreceivers == 0 && survey.all_replayed()))
    }

    /// Where the standby ended whose stop left this pg_control.
    pub(super) fn remembered(&self, control: &ControlData) -> Option<StoppedAt> {
        lock(&self.model).intent.stopped.clone().filter(|stopped| stopped.control == control.digest)
    }

    /// Where the WAL of a stopped directory ends; `None` where only a start tells.
    pub(super) async fn stopped_end(&self) -> Result<Option<(Timeline, Lsn)>, Error> {
        let control = self.cached_control().await?;
        let remembered = self.remembered(&control);
        Ok(match (control.state, remembered) {
            (LastState::ShutDown, _) => Some((control.checkpoint_timeline, control.checkpoint)),
            (LastState::ShutDownInRecovery, Some(stopped)) => Some((stopped.timeline, stopped.lsn)),
            // Received WAL may lie beyond what pg_control knows.
            (LastState::ShutDownInRecovery, None) | (LastState::Unclean, _) => None,
        })
    }

    /// Do the data files of a stopped directory hold all that its WAL says?
    pub(super) async fn stopped_replayed(&self) -> Result<bool, Error> {
        let control = self.cached_control().await?;
        let remembered = self.remembered(&control);
        Ok(match control.state {
            LastState::ShutDown => true,
            LastState::ShutDownInRecovery => remembered.is_some_and(|stopped| stopped.replayed),
            LastState::Unclean => false,
        })
    }

    /// A directory that a rewind has ruined: what it ever confirmed is all that can be said of it.
    async fn ruined_facts(&self, writers: &(dyn Fn(Timeline) -> Option<Epoch> + Sync)) -> Result<PostgresFacts, Error> {
        let layout = self.layout.clone();
        let end = blocking(move || super::rewind::marked_end(&layout)).await;
        let system = self.cached_control().await.ok().map(|control| control.system);
        let position = end.and_then(|(timeline, lsn)| Some(WalPosition { writer: writers(timeline)?, lsn }));
        Ok(PostgresFacts { state: PostgresState::Stopped, system, position, ..PostgresFacts::default() })
    }

    async fn stopped_facts(&self, writers: &(dyn Fn(Timeline) -> Option<Epoch> + Sync)) -> Result<PostgresFacts, Error> {
        if self.poisoned() {
            return self.ruined_facts(writers).await;
        }
        let control = self.cached_control().await?;
        let end = self.stopped_end().await?;
        let timeline = end.map_or_else(|| control.timeline(), |(timeline, _)| timeline);
        let position = end.and_then(|(timeline, lsn)| Some(WalPosition { writer: writers(timeline)?, lsn }));
        let shutdown_checkpoint = (control.state == LastState::ShutDown).then_some(control.checkpoint);
        let wal = self.layout.wal();
        let ancestry = blocking(move || history::ancestry(&wal, timeline)).await.ok();
        Ok(PostgresFacts {
            state: PostgresState::Stopped,
            system: Some(control.system),
            timeline: ancestry.is_some().then_some(timeline),
            position: position.filter(|_| ancestry.is_some()),
            shutdown_checkpoint,
            ancestry: ancestry.unwrap_or_default(),
            ..PostgresFacts::default()
        })
    }

    /// pg_controldata is run again only when the file has changed.
    pub(super) async fn cached_control(&self) -> Result<ControlData, Error> {
        let path = self.layout.pgdata.join("global/pg_control");
        let modified = blocking(move || std::fs::metadata(path).and_then(|m| m.modified()).ok()).await;
        let cached = lock(&self.stopped).clone();
        if let (Some((at, control)), Some(modified)) = (cached, modified)
            && at == modified
        {
            return Ok(control);
        }
        let control = self.control_data().await?;
        *lock(&self.stopped) = modified.map(|at| (at, control.clone()));
        Ok(control)
    }
}
