//! Getting a server: through the gate (or past it, to a standby), in the order of arrival, within `hold_timeout`.
//!
//! While the gate is closed, while no standby is fit, while the pool is full and while a server refuses for the moment, the client
//! simply waits. What may interrupt it: its own departure, a cancel request, the deadline.

use super::buffers::{self, Read};
use super::login::nonce;
use super::pause::Passage;
use super::pool::{Acquired, Lease, Waiting};
use super::route::{Place, choose};
use super::server::{ConnectError, Link, Target, Variant, connect};
use super::session::{End, Session, shutting_down};
use super::shared::Shared;
use crate::types::{Epoch, Millis, NodeId};
use crate::wire::frame::StreamBuffer;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::TcpStream;

/// What a unit needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The primary, for writing.
    Primary,
    /// A standby; while none is fit, the primary over a read-only connection.
    Reader,
    /// A proved read: the nearest standby, or the primary if that is nearer.
    Any,
}

/// Why there is none.
#[derive(Debug)]
pub enum NoServer {
    /// `hold_timeout` passed; nothing was sent anywhere.
    Held {
        last: Option<String>,
    },
    Cancelled,
    ClientGone,
    Shutdown,
    /// A server's own refusal: no such database, no privilege, another password.
    Refused {
        code: String,
        message: String,
    },
}

/// Whether an attempt failed for good.
enum Attempt {
    Got(Lease, Option<Passage>),
    /// Not now; try again after a change, or in a moment.
    Again {
        reason: String,
    },
    Full(Waiting),
    Refused {
        code: String,
        message: String,
    },
}

struct Goal {
    node: NodeId,
    address: String,
    epoch: Epoch,
    is_primary: bool,
    /// The transaction passes the gate.
    gated: bool,
    variant: Arc<Variant>,
}

/// Between attempts at a server that is not ready, and for noticing that the lease is valid again.
const RETRY: Duration = Duration::from_millis(50);

impl Session {
    /// See the module.
    pub async fn acquire(&mut self, want: Want) -> Result<(Lease, Option<Passage>), NoServer> {
        let arrival = self.shared.arrival();
        // The common case: a connection is there.
        let first = self.attempt(want, arrival).await;
        if let Attempt::Got(lease, passage) = first {
            return Ok((lease, passage));
        }
        self.shared.waiting.fetch_add(1, Relaxed);
        let waited = self.acquire_waiting(want, arrival, first).await;
        self.shared.waiting.fetch_sub(1, Relaxed);
        waited
    }

    async fn acquire_waiting(&mut self, want: Want, arrival: u64, first: Attempt) -> Result<(Lease, Option<Passage>), NoServer> {
        let deadline = self.shared.clock.now().after(self.shared.config.hold_timeout);
        let slot = Arc::clone(&self.slot);
        let mut cancelled = std::pin::pin!(slot.waiting.notified());
        cancelled.as_mut().enable();
        let (mut attempt, mut last) = (first, None);
        loop {
            let mut view = self.shared.watch();
            view.mark_unchanged();
            let mut lease = None;
            let again = async {
                match &mut attempt {
                    Attempt::Full(waiting) => tokio::select! {
                        granted = waiting.granted() => lease = Some(granted),
                        // The view's sender lives in `shared`.
                        _ = view.changed() => {}
                    },
                    _ => {
                        let _ = tokio::time::timeout(RETRY, view.changed()).await;
                    }
                }
            };
            let left = self.left(deadline);
            let event = tokio::select! {
                () = again => Ok(()),
                () = &mut cancelled => Err(NoServer::Cancelled),
                () = tokio::time::sleep(left) => Err(NoServer::Held { last: last.clone() }),
                gone = client_leaves(&self.stream, &mut self.inbox) => Err(gone),
                () = self.shared.shutdown.cancelled() => Err(NoServer::Shutdown),
            };
            event?;
            // The old place in the queue is given up before a new one is taken under the same number.
            drop(attempt);
            attempt = match lease {
                Some(lease) => self.use_lease(want, lease).await,
                None => self.attempt(want, arrival).await,
            };
            match attempt {
                Attempt::Got(lease, passage) => return Ok((lease, passage)),
                Attempt::Refused { code, message } => return Err(NoServer::Refused { code, message }),
                Attempt::Again { ref reason } => last = Some(reason.clone()),
                Attempt::Full(_) => last = Some("the pool's connections are all in use".to_owned()),
            }
        }
    }

    fn left(&self, deadline: Millis) -> Duration {
        deadline.since(self.shared.clock.now())
    }

    async fn attempt(&mut self, want: Want, arrival: u64) -> Attempt {
        // More than once only when idle connections turn out dead; each round closes one.
        loop {
            let Some(goal) = self.goal(want) else {
                return Attempt::Again { reason: "no primary is open for writes, or no standby is fit for reads".to_owned() };
            };
            let pool = self.shared.pool(&self.me.database, &self.me.user, goal.node);
            match pool.acquire(&goal.variant, self.worker, arrival) {
                Acquired::Lease(lease) if lease.server().is_some_and(|server| server.has_stirred()) => drop(lease),
                Acquired::Lease(lease) => return self.complete(goal, lease).await,
                Acquired::Wait(waiting) => return Attempt::Full(waiting),
            }
        }
    }

    /// A waiter's lease may be for a node that is no longer wanted.
    async fn use_lease(&mut self, want: Want, lease: Lease) -> Attempt {
        let stirred = lease.server().is_some_and(|server| server.has_stirred());
        match self.goal(want) {
            Some(goal) if goal.node == lease.node() && !stirred => self.complete(goal, lease).await,
            _ => {
                if !stirred {
                    lease.give_back();
                }
                Attempt::Again { reason: "the topology changed".to_owned() }
            }
        }
    }

    /// Where to go now.
    fn goal(&self, want: Want) -> Option<Goal> {
        let open = self.shared.gate.open();
        let topology = self.shared.topology();
        let place = Place { me: self.shared.node, datacenter: &self.shared.datacenter, max_lag_bytes: self.shared.config.max_lag_bytes };
        let busy = |node| self.shared.outstanding(&self.me.database, &self.me.user, node);
        let shunned = |node| self.shared.is_shunned(node);
        let primary = open.map(|(node, _)| node);
        // P3: of an old topology no standby is taken.
        let near = match want {
            Want::Primary => primary,
            Want::Any if !self.shared.is_present(&topology) => primary,
            Want::Reader if !self.shared.is_present(&topology) => return None,
            Want::Reader => choose(&topology, place, None, shunned, busy),
            Want::Any => choose(&topology, place, primary, shunned, busy),
        };
        // Rather the primary than a standby that does not answer.
        let node = near.filter(|node| !shunned(*node)).or(primary).or(near)?;
        let is_primary = Some(node) == primary;
        let writes = is_primary && want != Want::Reader;
        Some(Goal {
            node,
            address: topology.backends.get(&node)?.address.clone(),
            epoch: open.filter(|_| is_primary).map_or(topology.epoch, |(_, epoch)| epoch),
            is_primary,
            gated: is_primary,
            variant: Arc::clone(if writes { &self.me.primary } else { &self.me.reader }),
        })
    }

    /// A standby that could serve this client.
    pub fn reader_node(&self) -> Option<NodeId> {
        let place = Place { me: self.shared.node, datacenter: &self.shared.datacenter, max_lag_bytes: self.shared.config.max_lag_bytes };
        choose(&self.shared.topology(), place, None, |_| false, |_| 0)
    }

    /// Opens the connection if need be, and passes the gate last, so that nobody is counted as open who only waits.
    async fn complete(&mut self, goal: Goal, mut lease: Lease) -> Attempt {
        if lease.server().is_none()
            && let Err(failed) = self.open(&goal, &mut lease).await
        {
            return failed;
        }
        if !goal.gated {
            // P3: while the connection was opened the standby may have become one that is not to be read.
            if self.shared.is_fit(goal.node) {
                return Attempt::Got(lease, None);
            }
            lease.give_back();
            return Attempt::Again { reason: "the standby is no longer fit for reads".to_owned() };
        }
        // INV-11: one comparison, of the epoch the gate stands in with the epoch the connection was opened in.
        let passage = self.shared.gate.enter();
        let opened_in = lease.server().map(|server| server.link.epoch);
        match passage {
            Some(passage) if Some(passage.epoch) == opened_in => Attempt::Got(lease, Some(passage)),
            Some(_) => Attempt::Again { reason: "the connection was opened in an older epoch".to_owned() },
            None => {
                lease.give_back();
                Attempt::Again { reason: "the primary is not open for new transactions".to_owned() }
            }
        }
    }

    async fn open(&mut self, goal: &Goal, lease: &mut Lease) -> Result<(), Attempt> {
        let target = Target {
            address: &goal.address,
            node: goal.node,
            epoch: goal.epoch,
            is_primary: goal.is_primary,
            user: &self.me.user,
            database: &self.me.database,
            keys: &self.me.keys,
            variant: &goal.variant,
            home: self.worker,
            nonce: nonce(),
        };
        let timeout = self.shared.config.connect_timeout;
        let connected = tokio::time::timeout(timeout, connect(target, self.shared.clock)).await;
        let connected = connected.unwrap_or_else(|_| Err(ConnectError::Timeout { address: goal.address.clone() }));
        match connected {
            Ok(server) if self.shared.register(&server) => {
                lease.opened(server);
                Ok(())
            }
            Ok(_) => Err(Attempt::Again { reason: "the topology changed".to_owned() }),
            Err(ConnectError::Refused { code, message, .. }) => {
                if code == "28P01" {
                    // The password was changed since the client proved the old one.
                    self.shared.verifiers.forget(&self.me.user);
                }
                Err(Attempt::Refused { code, message })
            }
            Err(ConnectError::Protocol { address, what }) => {
                Err(Attempt::Refused { code: "08001".to_owned(), message: format!("{address} does not speak as expected: {what}") })
            }
            Err(error) => {
                self.shared.shun(goal.node);
                Err(Attempt::Again { reason: error.to_string() })
            }
        }
    }

    /// Waits, between transactions of a client that keeps its server, until the gate lets the next one begin on it. `None`: the
    /// server was cut meanwhile.
    pub async fn pass_again(&mut self) -> Result<Option<Passage>, NoServer> {
        let Some(link) = self.held.as_ref().map(|held| Arc::clone(&held.link)) else { return Ok(None) };
        if link.cut_by() == super::server::Cut::No
            && let Some(passage) = self.shared.gate.enter().filter(|passage| passage.epoch == link.epoch)
        {
            return Ok(Some(passage));
        }
        self.wait_with(link, |shared, link| shared.gate.enter().filter(|passage| passage.epoch == link.epoch)).await
    }

    /// Waits, between transactions of a client that keeps its standby, until that may be read again. `false`: not in time, or it was cut.
    pub async fn await_fit(&mut self) -> Result<bool, NoServer> {
        let Some(link) = self.held.as_ref().map(|held| Arc::clone(&held.link)) else { return Ok(false) };
        match self.wait_with(link, |shared, link| shared.is_fit(link.node).then_some(())).await {
            Ok(fit) => Ok(fit.is_some()),
            Err(NoServer::Held { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Until `ready` gives something. A cancel request is for the wait meanwhile: its server has nothing to cancel.
    async fn wait_with<T>(&mut self, link: Arc<Link>, ready: impl Fn(&Shared, &Link) -> Option<T>) -> Result<Option<T>, NoServer> {
        self.slot.set_target(None);
        self.shared.waiting.fetch_add(1, Relaxed);
        let waited = self.wait_until(&link, ready).await;
        self.shared.waiting.fetch_sub(1, Relaxed);
        self.slot.set_target(Some(link));
        waited
    }

    /// `None`: the server was cut meanwhile.
    async fn wait_until<T>(&mut self, link: &Link, ready: impl Fn(&Shared, &Link) -> Option<T>) -> Result<Option<T>, NoServer> {
        let deadline = self.shared.clock.now().after(self.shared.config.hold_timeout);
        let slot = Arc::clone(&self.slot);
        let mut cancelled = std::pin::pin!(slot.waiting.notified());
        cancelled.as_mut().enable();
        loop {
            let mut view = self.shared.watch();
            view.mark_unchanged();
            if link.cut_by() != super::server::Cut::No {
                return Ok(None);
            }
            // Of a gate that opens in another epoch `adopt` cuts the link in a moment.
            if let Some(found) = ready(&self.shared, link) {
                return Ok(Some(found));
            }
            let left = self.left(deadline);
            tokio::select! {
                _ = tokio::time::timeout(RETRY, view.changed()) => {}
                () = &mut cancelled => return Err(NoServer::Cancelled),
                () = tokio::time::sleep(left) => return Err(NoServer::Held { last: None }),
                gone = client_leaves(&self.stream, &mut self.inbox) => return Err(gone),
                () = self.shared.shutdown.cancelled() => return Err(NoServer::Shutdown),
            }
        }
    }
}

/// Resolves when the client hangs up; what it says meanwhile is kept, up to the window.
async fn client_leaves(stream: &TcpStream, inbox: &mut StreamBuffer) -> NoServer {
    loop {
        match buffers::read(stream, inbox) {
            Read::Ended => return NoServer::ClientGone,
            Read::Full => std::future::pending().await,
            Read::Bytes => {}
            Read::Later => {
                if stream.readable().await.is_err() {
                    return NoServer::ClientGone;
                }
            }
        }
    }
}

impl NoServer {
    /// What it means for a client that is only logging in.
    #[must_use]
    pub fn at_login(self) -> End {
        match self {
            NoServer::Held { last } => End::Fatal { code: "08006", message: held_message(last) },
            NoServer::Refused { code, message } => End::Fatal { code: known_code(&code), message },
            NoServer::Cancelled => End::Fatal { code: "57014", message: "canceling login due to user request".to_owned() },
            NoServer::Shutdown => shutting_down(),
            NoServer::ClientGone => End::Quiet,
        }
    }
}

/// For 08006.
#[must_use]
pub fn held_message(last: Option<String>) -> String {
    let why = last.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("no server could be given within hold_timeout; nothing was sent to any, so try again{why}")
}

/// The codes with which Postgres refuses a login; any other becomes 08001.
#[must_use]
pub fn known_code(code: &str) -> &'static str {
    ["28P01", "28000", "3D000", "42501", "55000", "57P04", "22023", "42704"].into_iter().find(|known| *known == code).unwrap_or("08001")
}
