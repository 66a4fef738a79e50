//! What the proxy tells about itself: a snapshot, taken without stopping anybody.

use crate::types::NodeId;

/// One moment of the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connected clients.
    pub clients: u64,
    /// Clients that wait for a server now, held ones included.
    pub waiting: u64,
    /// Open server connections.
    pub servers: u64,
    /// Transactions that may be open on the primary through this proxy.
    pub in_flight: u64,
    pub pools: Vec<PoolStats>,
}

/// One pool: a database and user on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStats {
    pub database: String,
    pub user: String,
    pub node: NodeId,
    /// Server connections with a client.
    pub active: u32,
    /// Server connections without one.
    pub idle: u32,
    /// Clients in the queue.
    pub waiting: u32,
    /// Limit of server connections.
    pub size: u32,
    /// Times a client was given a server, since the start.
    pub checkouts: u64,
    /// Server connections opened, since the start.
    pub connects: u64,
}
