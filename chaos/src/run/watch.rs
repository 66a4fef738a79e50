//! Who is primary, as SQL sees it: each node is asked several times a second by a client in its own datacenter.
//!
//! ```text
//!   a client per datacenter ──► looks (at, node, epoch, timeline) ──► reigns        [`reigns`] is PURE
//! ```
//! Two nodes that call themselves primary at once are no fault yet: one that is cut off learns of its end only when its lease is
//! over, and nobody confirms what it commits. Whether two *acknowledged* writes is for the checkers to find in the histories.

use crate::cluster::{Cluster, Status, System, answers};
use crate::record::{At, Reign, RunClock};
use crate::world::World;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Config, NoTls};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Parts of a failover last some hundred milliseconds.
const PHASE_EVERY: Duration = Duration::from_millis(100);
/// The server is in the same datacenter: it answers soon or is in trouble.
const ANSWER_LIMIT: Duration = Duration::from_millis(1_000);
/// A reign goes on over looks that failed, where it was the same primary afterwards.
const GAP: Duration = Duration::from_millis(1_500);
/// The timeline is that of the WAL that is being written: the control file's is the last checkpoint's, and comes late.
const QUESTION: &str = "SELECT pg_is_in_recovery()::text, CASE WHEN pg_is_in_recovery() THEN NULL \
    ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int::text END";

/// At this moment this node called itself primary.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    at: At,
    node: String,
    epoch: u64,
    timeline: u32,
}

/// From this moment a node said that the cluster is in this phase of this epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub at: At,
    pub epoch: u64,
    pub phase: String,
}

#[derive(Default)]
struct Seen {
    looks: Vec<Look>,
    turns: Vec<Turn>,
}

/// Asks until it is stopped.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    ended: Vec<oneshot::Receiver<()>>,
}

impl Watch {
    pub fn start(world: &World, cluster: &Cluster, clock: RunClock) -> Watch {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::new(AtomicBool::new(false)));
        let watched = cluster.nodes().iter().filter(|n| !n.witness);
        let ended = watched.filter_map(|node| {
            let site = world.sites().iter().find(|s| s.name() == node.name)?;
            let ports = cluster.ports();
            let eye = Eye {
                node: node.name.clone(),
                postgres: SocketAddr::from((Ipv4Addr::LOCALHOST, ports.postgres)),
                system: cluster.shared_system(),
                password: cluster.password().to_owned(),
                seen: Arc::clone(&seen),
                stop: Arc::clone(&stop),
                clock,
            };
            Some(site.runtime().spawn(move || eye.watch()))
        });
        let ended = ended.collect();
        Watch { seen, stop, ended }
    }

    /// Reigns so far.
    pub fn reigns(&self) -> Vec<Reign> {
        reigns(&self.seen.lock().unwrap_or_else(PoisonError::into_inner).looks)
    }

    /// Stop asking: who reigned, and the turns that the cluster took, in order.
    pub fn stop(self) -> (Vec<Reign>, Vec<Turn>) {
        self.stop.store(true, Ordering::Relaxed);
        // Each look has a bound, so these end.
        self.ended.into_iter().for_each(|end| drop(end.blocking_recv()));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.turns.sort_by_key(|turn| turn.at);
        (reigns(&seen.looks), std::mem::take(&mut seen.turns))
    }
}

/// The client in one datacenter.
struct Eye {
    node: String,
    postgres: SocketAddr,
    system: Arc<dyn System>,
    password: String,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    clock: RunClock,
}

impl Eye {
    async fn watch(self) {
        if self.system.tells().phases {
            tokio::join!(self.who(), self.phases());
        } else {
            self.who().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node says of the cluster's phase, whenever it changes.
    async fn phases(&self) {
        let mut last = (0, String::new());
        while !self.stop.load(Ordering::Relaxed) {
            let at = self.clock.now();
            if let Some(status) = self.status().await {
                let now = (status.epoch, status.phase);
                if now != last {
                    self.lock().turns.push(Turn { at, epoch: now.0, phase: now.1.clone() });
                    last = now;
                }
            }
            sleep(PHASE_EVERY).await;
        }
    }

    async fn who(&self) {
        let mut config = Config::new();
        config.host(self.postgres.ip().to_string()).port(self.postgres.port()).user("postgres").password(&self.password);
        config.dbname("postgres").application_name("chaos-watch").connect_timeout(ANSWER_LIMIT);
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(Ok((client, connection))) = timeout(ANSWER_LIMIT, config.connect(NoTls)).await {
                tokio::select! {
                    () = self.ask(&client) => {}
                    // The server ended it: the next turn connects anew.
                    _ = connection => {}
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Until an answer fails, or the end.
    async fn ask(&self, client: &Client) {
        let mut epoch = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(Ok(rows)) = timeout(ANSWER_LIMIT, client.query(QUESTION, &[])).await else { return };
            let at = self.clock.now();
            let column = |i: usize| rows.first().and_then(|row| row.try_get::<_, String>(i).ok()).unwrap_or_default();
            if column(0) == "false" {
                let timeline = column(1).parse().unwrap_or(0);
                epoch = if self.system.tells().epochs { self.epoch().await.unwrap_or(epoch) } else { u64::from(timeline) };
                let look = Look { at, node: self.node.clone(), epoch, timeline };
                self.lock().looks.push(look);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The epoch that this node takes itself to be primary of.
    async fn epoch(&self) -> Option<u64> {
        let status = self.status().await?;
        (status.primary.as_deref() == Some(self.node.as_str())).then_some(status.epoch)
    }
}

impl Eye {
    async fn status(&self) -> Option<Status> {
        let answers = answers(self.system.questions(), ANSWER_LIMIT).await.ok()?;
        self.system.parse_status(&self.node, &answers).ok()
    }
}

/// Looks of one node and timeline, one after the other, make one reign.
fn reigns(looks: &[Look]) -> Vec<Reign> {
    let mut reigns: Vec<Reign> = Vec::new();
    for look in looks {
        let same = |r: &&mut Reign| r.node == look.node && (r.epoch == look.epoch || r.epoch == 0) && look.at.since(r.to) <= GAP;
        match reigns.iter_mut().rev().find(same) {
            Some(reign) => {
                (reign.to, reign.timeline, reign.epoch) = (look.at, look.timeline.max(reign.timeline), look.epoch);
            }
            None => {
                let Look { at, node, epoch, timeline } = look.clone();
                reigns.push(Reign { node, epoch, timeline, from: at, to: at });
            }
        }
    }
    reigns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_ms: u64, node: &str, epoch: u64, timeline: u32) -> Look {
        Look { at: At(at_ms * 1_000), node: node.into(), epoch, timeline }
    }

    #[test]
    fn looks_of_one_primary_are_one_reign() {
        let seen =
            [look(0, "dc1", 1, 1), look(200, "dc1", 1, 1), look(1_500, "dc1", 1, 1), look(1_600, "dc2", 2, 1), look(1_800, "dc2", 2, 2)];
        let found = reigns(&seen);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].from, found[0].to), (At(0), At(1_500_000)));
        assert_eq!((found[1].node.as_str(), found[1].epoch, found[1].timeline), ("dc2", 2, 2));
    }

    #[test]
    fn a_node_that_was_away_begins_a_new_reign() {
        let found = reigns(&[look(0, "dc1", 1, 1), look(5_000, "dc1", 1, 1)]);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn two_that_overlap_stay_two() {
        let found = reigns(&[look(0, "dc1", 1, 1), look(100, "dc2", 2, 2), look(200, "dc1", 1, 1), look(300, "dc2", 2, 2)]);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
