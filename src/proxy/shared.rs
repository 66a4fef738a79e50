//! What all sessions share, and what is done with it when the topology changes.
//!
//! The order matters (INV-11): first the gate closes or moves, then the view is replaced, so that a connection registered from now on is
//! judged by it, then every connection that it does not cover is cut.

use super::auth::Verifiers;
use super::cancel::Slots;
use super::config::Config;
use super::pause::{FreshCheck, Gate};
use super::pool::{Pool, PoolKey};
use super::server::{Cut, Link, Parameters, Role, Server};
use super::stats::{PoolStats, Stats};
use super::{Control, Inputs};
use crate::bug::{self, Bug};
use crate::cluster::{Topology, WriteGate};
use crate::telemetry::Clock;
use crate::types::{Millis, NodeId};
use rand::Rng;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Statements known to write although their text looks like a read; beyond it all are forgotten and learned again.
const LEARNED_MAX: usize = 4096;

/// How long a node that did not answer is passed over.
const SHUN: Duration = Duration::from_secs(1);

/// Greetings kept; beyond it all are forgotten.
const GREETINGS_MAX: usize = 1024;

/// See the module.
pub struct Shared {
    pub config: Config,
    pub node: NodeId,
    pub datacenter: String,
    pub clock: Clock,
    pub gate: Arc<Gate>,
    pub slots: Slots,
    pub verifiers: Verifiers,
    pub control: Control,
    topology_fresh: FreshCheck,
    /// What the node says; [`Shared::adopt`] takes it over a moment later.
    told: watch::Receiver<Arc<Topology>>,
    pub shutdown: CancellationToken,
    /// For the salt that unknown users are shown.
    pub mock_secret: [u8; 32],
    pub clients: AtomicU64,
    pub waiting: AtomicU64,
    arrivals: AtomicU64,
    sessions: AtomicU64,
    view: watch::Sender<Arc<Topology>>,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    /// Nothing new begins on the primary, and the fewer servers it has the sooner it has shut down.
    draining: Arc<AtomicBool>,
    links: Mutex<Vec<Weak<Link>>>,
    greetings: Mutex<HashMap<Greeting, Arc<Parameters>>>,
    learned: RwLock<HashSet<u64>>,
    has_learned: AtomicBool,
    shunned: Mutex<HashMap<NodeId, Millis>>,
    has_shunned: AtomicBool,
}

/// What decides the settings that a client is told at login.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Greeting {
    pub database: String,
    pub user: String,
    pub role: Role,
    pub parameters: Vec<(String, String)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section leaves the collection sound at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Everything closed and empty; call [`Shared::adopt`] with the first topology.
    #[must_use]
    pub fn new(config: Config, inputs: &Inputs, gate: Arc<Gate>, verifiers: Verifiers) -> Shared {
        Shared {
            config,
            node: inputs.node,
            datacenter: inputs.datacenter.clone(),
            clock: inputs.clock,
            gate,
            slots: Slots::default(),
            verifiers,
            control: inputs.control.clone(),
            topology_fresh: Arc::clone(&inputs.topology_fresh),
            told: inputs.topology.clone(),
            shutdown: inputs.shutdown.clone(),
            mock_secret: rand::rng().random(),
            clients: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            arrivals: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            view: watch::Sender::new(Arc::default()),
            pools: Mutex::default(),
            draining: Arc::default(),
            links: Mutex::default(),
            greetings: Mutex::default(),
            learned: RwLock::default(),
            has_learned: AtomicBool::new(false),
            shunned: Mutex::default(),
            has_shunned: AtomicBool::new(false),
        }
    }

    /// The present topology.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.view.borrow())
    }

    /// Wakes at each new topology.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Topology>> {
        self.view.subscribe()
    }

    /// A place in the order of all who wait.
    #[must_use]
    pub fn arrival(&self) -> u64 {
        self.arrivals.fetch_add(1, Relaxed)
    }

    /// A number for a new session's cancel key.
    #[must_use]
    pub fn session_number(&self) -> u32 {
        // Only the low bits matter.
        (self.sessions.fetch_add(1, Relaxed) & 0xFFFF_FFFF) as u32
    }

    /// Takes a new topology over; see the module for the order.
    pub fn adopt(&self, topology: Arc<Topology>) {
        if bug::is(Bug::KeepOldServers) && self.clings_to_old(&topology) {
            return;
        }
        self.gate.set(&topology);
        self.view.send_replace(Arc::clone(&topology));
        for link in self.live_links() {
            if !covers(&topology, &link) {
                tracing::debug!(node = %link.node, epoch = %link.epoch, "server connection cut: the topology moved on");
                link.cut(Cut::Fenced);
            }
        }
        let draining = matches!(topology.write, WriteGate::Draining { .. });
        // Before the idle ones are looked at, whose lock orders this before every later return.
        self.draining.store(draining, Relaxed);
        for pool in self.all_pools() {
            pool.prune(|server| !covers(&topology, &server.link) || (draining && server.link.to_primary));
        }
    }

    /// Registers a new connection; `false`: the topology has moved on meanwhile, and it was cut.
    #[must_use]
    pub fn register(&self, server: &Server) -> bool {
        locked(&self.links).push(Arc::downgrade(&server.link));
        // Looked at after it was registered: whichever comes first, `adopt` or this, one of the two sees the other.
        let covered = covers(&self.topology(), &server.link);
        if !covered {
            server.link.cut(Cut::Fenced);
        }
        covered
    }

    /// A seeded bug: the old primary's connections live, and this node is not the new one.
    fn clings_to_old(&self, new: &Topology) -> bool {
        let is_mine = matches!(new.write, WriteGate::Open { primary, .. } if primary == self.node);
        let epoch = self.topology().epoch;
        !is_mine && new.epoch > epoch && self.live_links().iter().any(|link| link.to_primary && link.epoch == epoch)
    }

    fn live_links(&self) -> Vec<Arc<Link>> {
        let mut links = locked(&self.links);
        links.retain(|link| link.strong_count() > 0);
        links.iter().filter_map(Weak::upgrade).collect()
    }

    /// The pool of (database, user) on `node`.
    #[must_use]
    pub fn pool(&self, database: &str, user: &str, node: NodeId) -> Arc<Pool> {
        let key = PoolKey { database: database.to_owned(), user: user.to_owned(), node };
        let (_, size) = self.config.pool(database, user);
        let mut pools = locked(&self.pools);
        Arc::clone(pools.entry(key.clone()).or_insert_with(|| Pool::new(key, size, Arc::clone(&self.draining))))
    }

    /// Clients that have or await a server connection of this user on `node`.
    #[must_use]
    pub fn outstanding(&self, database: &str, user: &str, node: NodeId) -> u32 {
        let key = PoolKey { database: database.to_owned(), user: user.to_owned(), node };
        let pool = locked(&self.pools).get(&key).map(Arc::clone);
        pool.map_or(0, |pool| pool.outstanding())
    }

    fn all_pools(&self) -> Vec<Arc<Pool>> {
        locked(&self.pools).values().map(Arc::clone).collect()
    }

    /// Closes idle connections that are dead, too old or long unused.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for pool in self.all_pools() {
            pool.prune(|server| {
                let idle = now.since(server.released) > self.config.server_idle_timeout;
                idle || now.since(server.opened) > self.config.server_lifetime || server.has_stirred()
            });
        }
    }

    /// Settings told to earlier clients of the same kind.
    #[must_use]
    pub fn greeting(&self, kind: &Greeting) -> Option<Arc<Parameters>> {
        locked(&self.greetings).get(kind).map(Arc::clone)
    }

    /// Remembers what a server reported.
    pub fn remember_greeting(&self, kind: Greeting, parameters: Arc<Parameters>) {
        let mut greetings = locked(&self.greetings);
        if greetings.len() >= GREETINGS_MAX {
            greetings.clear();
        }
        greetings.insert(kind, parameters);
    }

    /// Whether anything was learned at all; then the fingerprint of a read is worth computing.
    #[must_use]
    pub fn has_learned(&self) -> bool {
        self.has_learned.load(Relaxed)
    }

    /// Whether a standby refused a statement of this form.
    #[must_use]
    pub fn is_learned_write(&self, fingerprint: u64) -> bool {
        self.learned.read().unwrap_or_else(PoisonError::into_inner).contains(&fingerprint)
    }

    /// A standby refused a statement of this form.
    pub fn learn_write(&self, fingerprint: u64) {
        let mut learned = self.learned.write().unwrap_or_else(PoisonError::into_inner);
        if learned.len() >= LEARNED_MAX {
            learned.clear();
        }
        learned.insert(fingerprint);
        self.has_learned.store(true, Relaxed);
    }

    /// A node refused a connection or did not answer: reads go elsewhere for a moment, until the topology knows better.
    pub fn shun(&self, node: NodeId) {
        locked(&self.shunned).insert(node, self.clock.now().after(SHUN));
        self.has_shunned.store(true, Relaxed);
    }

    /// Whether the node is shunned now.
    #[must_use]
    pub fn is_shunned(&self, node: NodeId) -> bool {
        if !self.has_shunned.load(Relaxed) {
            return false;
        }
        let mut shunned = locked(&self.shunned);
        let now = self.clock.now();
        shunned.retain(|_, until| *until > now);
        self.has_shunned.store(!shunned.is_empty(), Relaxed);
        shunned.contains_key(&node)
    }

    /// Whether a transaction may begin on this standby: the present topology names it for reads (P3).
    #[must_use]
    pub fn is_fit(&self, standby: NodeId) -> bool {
        let topology = self.topology();
        self.is_present(&topology) && topology.backends.get(&standby).is_some_and(|backend| backend.readable)
    }

    /// Whether `topology`, as it was taken over, is still what the node says now: one that was frozen wakes up with an old one, and has
    /// said a newer one before everybody here knows.
    #[must_use]
    pub fn is_present(&self, topology: &Arc<Topology>) -> bool {
        (self.topology_fresh)() && Arc::ptr_eq(topology, &self.told.borrow())
    }

    /// A snapshot.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut pools: Vec<PoolStats> = self.all_pools().iter().map(|pool| pool.stats()).collect();
        pools.sort_by(|a, b| (&a.database, &a.user, a.node).cmp(&(&b.database, &b.user, b.node)));
        Stats {
            clients: self.clients.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            servers: pools.iter().map(|pool| u64::from(pool.active + pool.idle)).sum(),
            in_flight: self.gate.drain_state().1,
            pools,
        }
    }
}

/// Whether `link` may go on under `topology` (INV-11).
fn covers(topology: &Topology, link: &Link) -> bool {
    let known = topology.backends.get(&link.node).is_some_and(|backend| backend.address == link.address);
    let primary = match topology.write {
        WriteGate::Open { primary, epoch } | WriteGate::Draining { primary, epoch } => Some((primary, epoch)),
        WriteGate::Held => None,
    };
    if !link.to_primary {
        // A standby that became the primary is entered anew, through the gate.
        return known && primary.is_none_or(|(node, _)| node != link.node);
    }
    match primary {
        Some((node, epoch)) => known && node == link.node && epoch == link.epoch,
        // Held within the epoch: what is under way may end.
        None => known && topology.epoch == link.epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Backend;
    use crate::proxy::auth::verifiers;

    #[test]
    fn a_topology_that_was_told_and_not_taken_over_yet_makes_the_old_one_a_past_one() {
        let standby = NodeId(2);
        let readable = |readable| {
            let (name, address) = (String::new(), String::new());
            let backend = Backend { name, datacenter: "dc".into(), address, readable, lag_bytes: None, noloadbalance: false };
            Arc::new(Topology { backends: [(standby, backend)].into(), ..Topology::default() })
        };
        let (told, topology) = watch::channel(readable(true));
        let inputs = Inputs {
            node: NodeId(1),
            datacenter: "dc".into(),
            topology,
            lease_valid: Arc::new(|| true),
            topology_fresh: Arc::new(|| true),
            control: Control { local_host: None, local_port: 0, user: String::new(), password: Arc::new(|| None) },
            clock: Clock::default(),
            shutdown: CancellationToken::new(),
        };
        let (asking, _reader) = verifiers(inputs.control.clone(), Duration::ZERO, inputs.clock);
        let shared = Shared::new(Config::default(), &inputs, Gate::new(inputs.node, Arc::clone(&inputs.lease_valid)), asking);
        assert!(!shared.is_fit(standby), "nothing was taken over");
        shared.adopt(Arc::clone(&told.borrow()));
        assert!(shared.is_fit(standby));
        told.send_replace(readable(false));
        assert!(!shared.is_fit(standby));
        told.send_replace(readable(true));
        assert!(!shared.is_fit(standby), "what is taken over is of the past, whatever the present says");
        shared.adopt(Arc::clone(&told.borrow()));
        assert!(shared.is_fit(standby));
    }
}
