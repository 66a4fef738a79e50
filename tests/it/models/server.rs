//! One member of the durability model: a Postgres reduced to what its WAL holds, whom it follows and which names are in force.
//!
//! WAL is a list of records, each known by the epoch that wrote it. One epoch has one writer, which goes on from where it was elected, so
//! that two lists that begin alike hold the same records. Steps take effect at once and whole; between any two of them anything may happen.

use super::states::{Known, SYSTEM};
use crate::sim::core::Core;
use trilithon::cluster::{ClusterState, SyncRule};
use trilithon::ha::{LeaseBelief, LocalState, NodeObservation, PostgresFacts, PostgresState, Role, StandbyView, Upstream};
use trilithon::types::{Epoch, Lsn, NodeId, Timeline, WalPosition};

/// The epochs of the records, oldest first.
pub type Wal = Vec<u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Postgres {
    Primary,
    Standby,
    /// Cleanly, its end is known.
    Stopped,
    /// Only recovery tells where its WAL ends.
    Crashed,
    /// Its disk was lost.
    Absent,
}

/// How far a change of the names in `synchronous_standby_names` has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Some walsenders go by the new names, some by older ones.
    Loading(SyncRule),
    /// All go by the new names; the marker is the record before this length.
    Marked(SyncRule, usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub me: NodeId,
    /// Its copy of the replicated state.
    pub known: Known,
    pub promised: Epoch,
    pub postgres: Postgres,
    pub wal: Wal,
    pub following: Option<(NodeId, Epoch)>,
    /// Rules by which a commit may be acknowledged now: several while walsenders load new names.
    pub names: Vec<SyncRule>,
    pub change: Option<Change>,
    pub settled: Option<(Epoch, SyncRule)>,
    /// The lease that it believes in. The model ends it whenever it likes, or never.
    pub lease: Option<Epoch>,
    pub released: Option<Epoch>,
}

impl Server {
    pub fn new(me: NodeId, known: &Known) -> Server {
        let state = known.state();
        let primary = state.primary() == Some(me);
        let rule = state.rules.last().filter(|_| primary);
        Server {
            me,
            known: known.clone(),
            promised: state.epoch,
            postgres: if primary { Postgres::Primary } else { Postgres::Standby },
            wal: vec![0, state.epoch.0],
            following: state.primary().filter(|_| !primary).map(|p| (p, state.epoch)),
            names: rule.cloned().into_iter().collect(),
            change: None,
            settled: rule.map(|r| (state.epoch, r.clone())),
            lease: primary.then_some(state.epoch),
            released: None,
        }
    }

    /// The epoch that wrote the newest record.
    pub fn writer(&self) -> Option<Epoch> {
        self.wal.last().map(|e| Epoch(*e))
    }

    /// Does it receive WAL from `primary`, or could it at once?
    pub fn streams_from(&self, primary: &Server) -> bool {
        let follows = self.following.is_some_and(|(p, _)| p == primary.me);
        follows && self.postgres == Postgres::Standby && primary.postgres == Postgres::Primary && primary.wal.starts_with(&self.wal)
    }

    /// Longest part of this primary's own WAL that some rule in force lets it acknowledge.
    pub fn acknowledged(&self, all: &[Server]) -> Option<Wal> {
        if self.postgres != Postgres::Primary {
            return None;
        }
        let length = (1..=self.wal.len()).rev().find(|n| self.names.iter().any(|rule| self.confirmed(rule, *n, all)))?;
        Some(self.wal[..length].to_vec())
    }

    /// Do enough standbys of `rule` hold the first `length` records?
    pub fn confirmed(&self, rule: &SyncRule, length: usize, all: &[Server]) -> bool {
        let holds = |s: &&Server| rule.standbys.contains(&s.me) && s.wal.starts_with(&self.wal[..length]);
        all.iter().filter(holds).count() >= rule.acks
    }

    fn facts(&self, truth: &ClusterState, all: &[Server]) -> PostgresFacts {
        let (state, role) = match self.postgres {
            Postgres::Primary => (PostgresState::Running, Some(Role::Primary)),
            Postgres::Standby => (PostgresState::Running, Some(Role::Standby)),
            Postgres::Stopped | Postgres::Crashed => (PostgresState::Stopped, None),
            Postgres::Absent => return PostgresFacts { state: PostgresState::Absent, ..PostgresFacts::default() },
        };
        let end = self.writer().map(|writer| WalPosition { writer, lsn: Lsn(self.wal.len() as u64) });
        let standbys = all.iter().filter(|s| s.streams_from(self)).map(|s| {
            let flushed = Lsn(s.wal.len() as u64);
            (s.me, StandbyView { streaming: true, flushed, replayed: flushed, sync: true })
        });
        PostgresFacts {
            state,
            role,
            system: Some(SYSTEM),
            timeline: self.writer().and_then(|e| timeline(truth, e)),
            position: end.filter(|_| self.postgres != Postgres::Crashed),
            ancestry: self.ancestry(truth),
            streaming_from: self.following.map(|(p, _)| p),
            standbys: if role == Some(Role::Primary) { standbys.collect() } else { Default::default() },
            ..PostgresFacts::default()
        }
    }

    fn ancestry(&self, truth: &ClusterState) -> Vec<(Timeline, Lsn)> {
        let turns = self.wal.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]);
        turns.filter_map(|(at, pair)| Some((timeline(truth, Epoch(pair[0]))?, Lsn(at as u64 + 1)))).collect()
    }

    /// What `converge` reads. `hears`: the peers' news reaches it.
    pub fn local(&self, truth: &ClusterState, all: &[Server], hears: impl Fn(NodeId) -> bool) -> LocalState {
        let state = self.known.state();
        let primary = state.primary().filter(|p| *p != self.me && hears(*p)).and_then(|p| all.iter().find(|s| s.me == p));
        let upstream = primary.map(|p| Upstream {
            node: p.me,
            accepting: p.promised == state.epoch && p.postgres == Postgres::Primary && p.writer() == Some(state.epoch),
            timeline: p.writer().and_then(|e| timeline(truth, e)).unwrap_or_default(),
            ancestry: p.ancestry(truth),
        });
        LocalState {
            me: self.me,
            promised: self.promised,
            postgres: self.facts(truth, all),
            following: self.following,
            primary_of: self.writer().filter(|_| self.postgres == Postgres::Primary),
            settled: self.settled.clone(),
            lease: self.lease.map_or(LeaseBelief::None, |epoch| LeaseBelief::Valid { epoch }),
            released: self.released == Some(state.epoch),
            upstream,
            ..LocalState::default()
        }
    }

    /// What it tells the controller.
    pub fn observation(&self, core: Core, truth: &ClusterState, all: &[Server]) -> NodeObservation {
        let local = self.local(truth, all, |_| true);
        NodeObservation {
            node: self.me,
            promised: self.promised,
            seal: core.seal(self.known.state(), &local),
            postgres: local.postgres,
            settled: self.settled.clone(),
            revision: self.known.state().revision,
            ..NodeObservation::default()
        }
    }

    /// Its Postgres is no primary any more: what was proved about it is void.
    pub fn put(&mut self, postgres: Postgres) {
        self.postgres = postgres;
        if postgres != Postgres::Primary {
            self.names.clear();
            (self.change, self.settled) = (None, None);
        }
    }
}

fn timeline(truth: &ClusterState, writer: Epoch) -> Option<Timeline> {
    truth.timelines.of_epoch(writer).map(|c| c.timeline)
}
