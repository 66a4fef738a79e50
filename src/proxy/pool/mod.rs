//! Pools of server connections: one for each (database, user, node), shared by all workers.
//!
//! `inner` decides, this file moves connections and wakes waiters. A [`Lease`] is the right to one connection: dropping it closes
//! the connection and passes the right on, so that none can leak; only [`Lease::give_back`] makes it idle again.

pub mod inner;

use super::server::{Server, Variant};
use super::stats::PoolStats;
use crate::types::NodeId;
use inner::{Grant, Inner, Turn};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// What distinguishes pools.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub database: String,
    pub user: String,
    pub node: NodeId,
}

type Wake = oneshot::Sender<Granted>;

/// See the module.
pub struct Pool {
    key: PoolKey,
    inner: Mutex<Inner<Server, Arc<Variant>, Wake>>,
    /// The primary drains: what comes back from it is of no use any more.
    draining: Arc<AtomicBool>,
    checkouts: AtomicU64,
    connects: AtomicU64,
}

/// The right to one connection of a pool.
pub struct Lease {
    pool: Arc<Pool>,
    server: Option<Server>,
    /// The right went back with the connection; nothing is left to return.
    spent: bool,
}

/// What a waiter receives. A grant nobody takes goes to the next one.
pub struct Granted(Lease);

/// The answer to `acquire`.
pub enum Acquired {
    /// With a connection, or with the right to open one.
    Lease(Lease),
    Wait(Waiting),
}

/// A place in the queue; dropping it leaves the queue.
pub struct Waiting {
    pool: Arc<Pool>,
    arrival: u64,
    granted: oneshot::Receiver<Granted>,
}

impl Waiting {
    /// Resolves with the lease.
    pub async fn granted(&mut self) -> Lease {
        match (&mut self.granted).await {
            Ok(Granted(lease)) => lease,
            // The pool keeps the sender until it grants, and this value keeps the pool.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.lock().leave(self.arrival);
    }
}

impl Pool {
    /// An empty pool of at most `size` connections.
    #[must_use]
    pub fn new(key: PoolKey, size: u32, draining: Arc<AtomicBool>) -> Arc<Pool> {
        let inner = Mutex::new(Inner::new(size));
        Arc::new(Pool { key, inner, draining, checkouts: AtomicU64::new(0), connects: AtomicU64::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner<Server, Arc<Variant>, Wake>> {
        // The arithmetic does not panic between two of its steps; a poisoned lock guards sound data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection, the right to open one, or a place in the queue.
    pub fn acquire(self: &Arc<Self>, variant: &Arc<Variant>, home: usize, arrival: u64) -> Acquired {
        let mut inner = self.lock();
        let lease = |server| Acquired::Lease(Lease { pool: Arc::clone(self), server, spent: false });
        match inner.acquire(variant, home, arrival) {
            Turn::Reuse(server) => {
                self.checkouts.fetch_add(1, Relaxed);
                lease(Some(server))
            }
            Turn::Open { evicted } => {
                drop(inner);
                drop(evicted);
                lease(None)
            }
            Turn::Wait => {
                let (wake, granted) = oneshot::channel();
                inner.enqueue(Arc::clone(variant), arrival, wake);
                Acquired::Wait(Waiting { pool: Arc::clone(self), arrival, granted })
            }
        }
    }

    /// Closes the idle connections that `unfit` names.
    pub fn prune(self: &Arc<Self>, unfit: impl FnMut(&Server) -> bool) {
        let pruned = self.lock().prune(unfit);
        for server in pruned {
            drop(server);
            self.closed();
        }
    }

    /// Counts for the statistics.
    pub fn stats(&self) -> PoolStats {
        let (active, idle, waiting, size) = self.lock().counts();
        PoolStats {
            database: self.key.database.clone(),
            user: self.key.user.clone(),
            node: self.key.node,
            active,
            idle,
            waiting,
            size,
            checkouts: self.checkouts.load(Relaxed),
            connects: self.connects.load(Relaxed),
        }
    }

    /// Clients that have or await a connection.
    pub fn outstanding(&self) -> u32 {
        let (active, _, waiting, _) = self.lock().counts();
        active + waiting
    }

    fn closed(self: &Arc<Self>) {
        let woken = self.lock().closed();
        self.wake(woken);
    }

    fn wake(self: &Arc<Self>, woken: Option<(Wake, Grant<Server>)>) {
        let Some((wake, grant)) = woken else { return };
        let server = match grant {
            Grant::Reuse(server) => {
                self.checkouts.fetch_add(1, Relaxed);
                Some(server)
            }
            Grant::Open => None,
        };
        // A waiter that has just left drops the grant, and the lease in it passes the right on.
        if let Err(Granted(lease)) = wake.send(Granted(Lease { pool: Arc::clone(self), server, spent: false })) {
            lease.give_back();
        }
    }
}

impl Lease {
    /// The node the connection leads to.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.pool.key.node
    }

    /// The connection, if there is one already.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// The connection, for use.
    pub fn server_mut(&mut self) -> Option<&mut Server> {
        self.server.as_mut()
    }

    /// The connection this lease gives the right to was opened.
    pub fn opened(&mut self, server: Server) {
        self.pool.connects.fetch_add(1, Relaxed);
        self.pool.checkouts.fetch_add(1, Relaxed);
        self.server = Some(server);
    }

    /// Returns a clean connection to the pool.
    pub fn give_back(mut self) {
        let Some(server) = self.server.take() else { return };
        self.spent = true;
        let (variant, home) = (Arc::clone(&server.variant), server.home);
        let (woken, close) = self.pool.lock().release(server, variant, home);
        drop(close);
        self.pool.wake(woken);
        // Looked at after it came back: whichever comes first, the drain's own look or this, one of the two sees the other.
        if self.pool.draining.load(Relaxed) {
            self.pool.prune(|server| server.link.to_primary);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.server.take());
        if !self.spent {
            self.pool.closed();
        }
    }
}
