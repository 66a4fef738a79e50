//! The node's proxy: its settings, and the news it exchanges with the agent.

use super::feeds::Attested;
use super::open::ProxyAddresses;
use crate::agent::{LeaseCell, Obeyed};
use crate::cluster::{Topology, WriteGate};
use crate::config::{self, Config, PoolMode};
use crate::consensus::Handle;
use crate::postgres::{Instance, SUPERUSER};
use crate::proxy::{self, Control, Inputs};
use crate::telemetry::Clock;
use crate::types::{Millis, NodeId, Revision};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// While a topology is on its way into the proxy, or a drain goes on, its state is looked at this often.
const BUSY_POLL: Duration = Duration::from_millis(3);
/// Between two attempts at ending what a drain's deadline has overtaken.
const CANCEL_EVERY: Duration = Duration::from_millis(500);

/// The parts of the node that a proxy needs.
pub struct Parts<'a> {
    pub me: NodeId,
    pub config: &'a Config,
    pub addresses: ProxyAddresses,
    pub topology: watch::Receiver<Arc<Topology>>,
    pub attested: Attested,
    pub lease: Arc<LeaseCell>,
    pub consensus: Handle,
    pub postgres: Option<&'a Instance>,
    pub clock: Clock,
    pub stop: CancellationToken,
}

/// Start listening.
pub async fn start(parts: Parts<'_>) -> Result<proxy::Handle, proxy::ProxyError> {
    let state = parts.consensus.state();
    let inputs = Inputs {
        node: parts.me,
        datacenter: parts.config.node.datacenter.clone(),
        topology: parts.topology,
        lease_valid: Arc::new(move || parts.lease.may_serve()),
        topology_fresh: Arc::new(move || parts.attested.is_fresh(parts.clock.now())),
        control: Control {
            local_host: parts.postgres.map(|p| p.socket_dir().display().to_string()),
            local_port: parts.config.postgres.port,
            user: SUPERUSER.to_owned(),
            password: Arc::new(move || state.borrow().secrets.as_ref().map(|s| s.superuser.clone())),
        },
        clock: parts.clock,
        shutdown: parts.stop,
    };
    proxy::start(settings(parts.config, parts.addresses), inputs).await
}

fn settings(config: &Config, addresses: ProxyAddresses) -> proxy::Config {
    let wanted = &config.proxy;
    proxy::Config {
        auto: addresses.auto,
        primary: addresses.primary,
        standby: addresses.standby,
        max_clients: u32::try_from(wanted.max_clients).unwrap_or(u32::MAX),
        mode: match wanted.mode {
            PoolMode::Transaction => proxy::PoolMode::Transaction,
            PoolMode::Session => proxy::PoolMode::Session,
        },
        pool_size: u32::try_from(wanted.pool_size).unwrap_or(u32::MAX),
        consistency: match wanted.consistency {
            config::Consistency::Session => proxy::Consistency::Session,
            config::Consistency::Eventual => proxy::Consistency::Eventual,
            config::Consistency::Primary => proxy::Consistency::Primary,
        },
        hold_timeout: wanted.hold_timeout,
        connect_timeout: wanted.connect_timeout,
        server_idle_timeout: wanted.idle_timeout,
        ..proxy::Config::default()
    }
}

/// Keeps `told` true, and ends what is still open when a drain's deadline has passed. Until the proxy ends.
pub async fn follow(
    mut proxy: proxy::Handle,
    mut topology: watch::Receiver<Arc<Topology>>,
    consensus: Handle,
    clock: Clock,
    told: watch::Sender<Obeyed>,
) -> Result<(), proxy::ProxyError> {
    let mut drain: Option<(Revision, Millis)> = None;
    let mut cancelled: Option<Millis> = None;
    loop {
        let wanted = topology.borrow_and_update().clone();
        let draining = matches!(wanted.write, WriteGate::Draining { .. });
        let (revision, in_flight) = proxy.drain_state();
        // In steady times the count changes thousands of times a second and concerns nobody.
        let obeyed = Some((revision, if draining { in_flight } else { 0 }));
        told.send_if_modified(|known| std::mem::replace(known, obeyed) != obeyed);
        let now = clock.now();
        drain = drain.filter(|_| draining).or_else(|| draining.then_some((wanted.revision, now)));
        if let Some((_, since)) = drain
            && in_flight > 0
            && now.since(since) >= consensus.state().borrow().settings.drain_timeout()
            && cancelled.is_none_or(|at| now.since(at) >= CANCEL_EVERY)
        {
            tracing::warn!(in_flight, "transactions outlast the drain, ending them");
            cancelled = Some(now);
            // What could not be reached in time is tried again; the news must go on meanwhile.
            drop(tokio::time::timeout(CANCEL_EVERY, proxy.cancel_in_flight()).await);
        }
        let busy = draining || revision < wanted.revision;
        tokio::select! {
            ended = proxy.stopped() => return ended,
            changed = topology.changed() => if changed.is_err() { return proxy.stopped().await },
            () = tokio::time::sleep(BUSY_POLL), if busy => {}
        }
    }
}
