//! The routing, pooling proxy: three listeners in front of whatever Postgres is primary or standby now.
//!
//! It sees the cluster only as `watch<Topology>` and belongs to the safety argument: a transaction begins on the primary only through
//! [`pause::Gate`], over a connection opened in the epoch the topology names (INV-11), on the primary's own node only under a valid
//! lease (INV-9). A client always learns the truth: 08006 and 40001 mean "not applied", 08007 means "unknown".
//!
//! Built as N worker threads, each with a current-thread runtime and its own sockets (SO_REUSEPORT), and one task per client that owns
//! its server connection for the time of a transaction. `protocol`, `classify`, `route` and `pool::inner` are pure.
//!
//! Deliberately absent: knowledge of Raft, of roles as Postgres sees them, of passwords (the verifier comes from Postgres, the key
//! from the client's own proof).
//!
//! Entry point: [`start`].

mod acquire;
mod auth;
mod buffers;
mod cancel;
mod classify;
mod config;
mod lexer;
mod listener;
mod login;
mod outcome;
mod pause;
mod pool;
mod protocol;
mod relay;
mod request;
mod route;
mod server;
mod session;
mod shared;
mod statements;
mod stats;

pub use config::{Config, Consistency, PoolMode, PoolOverride};
pub use listener::{Addresses, start};
pub use pause::{FreshCheck, LeaseCheck};
pub use stats::{PoolStats, Stats};

use crate::cluster::Topology;
use crate::telemetry::Clock;
use crate::types::{NodeId, Revision};
use std::net::SocketAddr;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the node hands to its proxy.
#[derive(Clone)]
pub struct Inputs {
    /// This node.
    pub node: NodeId,
    /// Its datacenter: reads stay near.
    pub datacenter: String,
    /// The proxy's whole view of the cluster.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// Whether this node's own lease is valid now. Asked at each transaction that begins on this node as the primary; must not block.
    pub lease_valid: LeaseCheck,
    /// Whether the topology is of the present: a node that was frozen wakes with an old one, in which a standby may look sound that has
    /// been a primary since, and shows what nobody confirmed. Asked for each read that a standby may serve; must not block.
    pub topology_fresh: FreshCheck,
    /// How to read password verifiers.
    pub control: Control,
    pub clock: Clock,
    /// Ends the proxy.
    pub shutdown: CancellationToken,
}

/// A superuser's way in, for `pg_authid` only. The local Postgres is asked first, then the members of the topology.
#[derive(Clone)]
pub struct Control {
    /// A directory with the socket, or a host; `None` on a witness.
    pub local_host: Option<String>,
    pub local_port: u16,
    pub user: String,
    /// Asked at each connection: a new cluster agrees on its passwords while its proxies listen already.
    pub password: Password,
}

/// The control user's password, once it is known. Must not block.
pub type Password = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Why the proxy did not start, or stopped by itself.
#[derive(Debug, Error)]
pub enum ProxyError {
    #[error("the proxy cannot listen on {address}: {source}; free the port or choose another one under [proxy]")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the proxy has no address to listen on; set at least one of auto, primary, standby under [proxy]")]
    NoAddress,
    #[error("the proxy cannot start its thread {name}: {source}; raise the limit of processes for this user")]
    Thread { name: String, source: std::io::Error },
    #[error("the proxy's thread {name} ended by itself; restart the node and report the log above this line")]
    Ended { name: String },
}

/// The running proxy.
pub struct Handle {
    shared: Arc<shared::Shared>,
    addresses: Addresses,
    ended: tokio::sync::mpsc::Receiver<String>,
    shutdown: CancellationToken,
}

impl Handle {
    /// Where it listens, with the ports the system chose.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The revision of the topology that new transactions obey, and the number of transactions that may be open on the primary through
    /// this proxy. `(revision of the drain, 0)` means: drained here.
    #[must_use]
    pub fn drain_state(&self) -> (Revision, u64) {
        self.shared.gate.drain_state()
    }

    /// Resolves when new transactions obey a topology of at least `revision` and none is open on the primary. Bound it with a timeout.
    pub async fn drained(&self, revision: Revision) {
        self.shared.gate.drained(revision).await;
    }

    /// The drain's deadline has passed: ends the transactions still open on the primary. Their clients read 40001, or 08007 where a
    /// COMMIT was on its way.
    pub async fn cancel_in_flight(&self) {
        cancel::end_in_flight(&self.shared.slots, &self.shared.control).await;
    }

    /// Counts of clients, servers and pools.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Holds every new transaction (bounded by `hold_timeout`).
    pub fn pause(&self) {
        self.shared.gate.pause(true);
    }

    /// Ends `pause`.
    pub fn resume(&self) {
        self.shared.gate.pause(false);
    }

    /// Resolves when the proxy has ended: `Ok` after a shutdown, else the cause.
    ///
    /// # Errors
    /// A thread ended although no shutdown was asked for.
    pub async fn stopped(&mut self) -> Result<(), ProxyError> {
        while let Some(name) = self.ended.recv().await {
            if !self.shutdown.is_cancelled() {
                return Err(ProxyError::Ended { name });
            }
        }
        Ok(())
    }
}
