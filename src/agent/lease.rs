//! The primary's lease: renewed on its own thread, watched on its own thread (INV-9).
//!
//! Nothing here touches Postgres, DNS, PGDATA or a lock that another task holds across work: a lease must be hard to lose by
//! accident. The one exception ends a primary: within the fencing margin of the deadline the [`Fence`] is struck at once, from
//! this thread, even when the agent's loop hangs in some other step.

use crate::bug::{self, Bug};
use crate::cluster::{ClusterState, Command, Proposal, Settings};
use crate::consensus::Handle;
use crate::ha::{HolderLease, LeaseBelief};
use crate::telemetry::Clock;
use crate::types::{Epoch, Millis, NodeId};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Ends the local primary at once: an immediate shutdown signal, no waiting. Does nothing where no primary runs.
pub type Fence = Arc<dyn Fn() + Send + Sync>;

/// This node's belief about its lease, shared between the lease's thread, the agent and the proxy.
#[derive(Debug)]
pub struct LeaseCell {
    clock: Clock,
    inner: Mutex<Inner>,
    /// Milliseconds on [`Clock`] until which the proxy of this node may begin transactions on the primary; 0: not at all.
    serve_until_ms: AtomicU64,
    /// Bumped when the belief changed other than by time.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    holder: HolderLease,
    /// The lease of this epoch is being given back.
    released: Option<Epoch>,
    /// The lease of this epoch came near its deadline: it is renewed no more, and given back once Postgres is seen to be down.
    ended: Option<Epoch>,
}

impl LeaseCell {
    /// No lease.
    #[must_use]
    pub fn new(clock: Clock) -> LeaseCell {
        LeaseCell { clock, inner: Mutex::default(), serve_until_ms: AtomicU64::new(0), version: watch::Sender::new(0) }
    }

    /// A renewal or acquisition sent at `sent` was committed.
    pub fn renewed(&self, epoch: Epoch, sent: Millis, settings: &Settings) {
        let mut inner = self.lock();
        if inner.released == Some(epoch) || inner.ended == Some(epoch) {
            return;
        }
        inner.holder.renewed(epoch, sent, settings);
        // INV-9: a later answer to an earlier renewal takes nothing back; all who store hold the lock.
        let until = self.serve_until_ms.load(Ordering::Relaxed).max(sent.after(settings.serving_ttl()).0);
        self.serve_until_ms.store(until, Ordering::Release);
        drop(inner);
        self.version.send_modify(|v| *v += 1);
    }

    /// Stop renewing and give the lease of `epoch` back; belief ends now.
    pub fn release(&self, epoch: Epoch) {
        let mut inner = self.lock();
        inner.released = Some(epoch);
        inner.holder.drop_belief();
        self.serve_until_ms.store(0, Ordering::Release);
        drop(inner);
        self.version.send_modify(|v| *v += 1);
    }

    /// Stop serving and renewing for good in `epoch`. INV-9: not yet a release; a postmaster takes its time to die, and a promotion may be
    /// under way. The agent orders the release when it has seen that Postgres is no primary.
    pub(super) fn end(&self, epoch: Epoch) {
        let mut inner = self.lock();
        inner.ended = Some(epoch);
        inner.holder.drop_belief();
        self.serve_until_ms.store(0, Ordering::Release);
        drop(inner);
        self.version.send_modify(|v| *v += 1);
    }

    /// The epoch whose lease came near its deadline here.
    #[must_use]
    pub fn ended(&self) -> Option<Epoch> {
        self.lock().ended
    }

    /// Somebody else's turn: the state machine refused a renewal for `epoch`. It may be late news: a lease of a later epoch stands.
    fn lost(&self, epoch: Epoch) {
        let mut inner = self.lock();
        if inner.holder.deadline().is_some_and(|(held, _)| held > epoch) {
            return;
        }
        inner.holder.drop_belief();
        self.serve_until_ms.store(0, Ordering::Release);
    }

    /// Epoch of the lease believed in and the instant at which serving must have stopped, for `status`.
    #[must_use]
    pub fn deadline(&self) -> Option<(Epoch, Millis)> {
        self.lock().holder.deadline()
    }

    /// The belief now.
    #[must_use]
    pub fn belief(&self) -> LeaseBelief {
        match self.lock().holder.belief(self.clock.now()) {
            LeaseBelief::Ending { epoch } if bug::is(Bug::IgnoreLease) => LeaseBelief::Valid { epoch },
            belief => belief,
        }
    }

    /// Is the lease of `epoch` being given back?
    #[must_use]
    pub fn is_released(&self, epoch: Epoch) -> bool {
        self.lock().released == Some(epoch)
    }

    /// May the proxy of this node begin a transaction on the local primary now? Only for a part of the lease, see
    /// [`Settings::serving_ttl`]: Postgres goes on until the fencing moment, but a read of it is no longer sure to be current. One atomic
    /// load and one clock reading.
    #[must_use]
    pub fn may_serve(&self) -> bool {
        self.clock.now().0 < self.serve_until_ms.load(Ordering::Acquire) || bug::is(Bug::IgnoreLease)
    }

    /// Changes when the belief changed other than by time.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the lease's thread works with.
pub struct LeaseKeeper {
    pub me: NodeId,
    pub clock: Clock,
    pub cell: Arc<LeaseCell>,
    pub consensus: Handle,
    pub fence: Fence,
    pub stop: CancellationToken,
}

impl LeaseKeeper {
    /// Start the thread. It ends with `stop`.
    ///
    /// # Errors
    /// When the operating system refuses a thread or its runtime.
    pub fn start(self) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new().name("lease".to_owned()).spawn(move || runtime.block_on(self.run()))
    }

    async fn run(self) {
        let mut states = self.consensus.state();
        let mut cell = self.cell.subscribe();
        while !self.stop.is_cancelled() {
            let state = states.borrow_and_update().clone();
            let settings = state.settings.clone();
            self.fence_if_ending();
            let held = self.held_epoch(&state);
            let attempt = async {
                match held {
                    Some(epoch) => self.renew_or_release(epoch, &settings).await,
                    None => std::future::pending().await,
                }
            };
            // One event ends the turn: an answered attempt and the pause after it, a change, or the fencing moment.
            tokio::select! {
                () = attempt => {}
                _ = states.changed(), if held.is_none() => {}
                _ = cell.changed(), if held.is_none() => {}
                () = tokio::time::sleep(self.until_fencing()) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// The epoch of the lease that the state says is ours, and for which there is something to say: renew it, or give it back.
    fn held_epoch(&self, state: &ClusterState) -> Option<Epoch> {
        let ours = state.lease.holder == Some(self.me) && state.lease.epoch == state.epoch;
        let silent = self.cell.ended() == Some(state.epoch) && !self.cell.is_released(state.epoch);
        (ours && !silent).then_some(state.epoch)
    }

    async fn renew_or_release(&self, epoch: Epoch, settings: &Settings) {
        let released = self.cell.is_released(epoch);
        let command = if released { Command::ReleaseLease { node: self.me, epoch } } else { Command::RenewLease { node: self.me, epoch } };
        // INV-9: the lease counts from before the renewal was sent.
        let sent = self.clock.now();
        let proposal = Proposal { expect: None, request: None, command };
        let answer = tokio::select! {
            answer = tokio::time::timeout(settings.lease_ttl() / 2, self.consensus.propose(proposal)) => answer,
            // Said again to the new leader at once: either command may be repeated.
            () = self.leader_replaced() => return,
        };
        match answer {
            Ok(Ok(Ok(_))) if !released => self.cell.renewed(epoch, sent, settings),
            Ok(Ok(Err(_refused))) => self.cell.lost(epoch),
            // No leader, a lost answer or silence: the deadline stands, the next turn tries again.
            Ok(Ok(Ok(_)) | Err(_)) | Err(_) => {}
        }
        let spent = self.clock.now().since(sent);
        let pause = settings.renewal_interval().saturating_sub(spent).max(Duration::from_millis(20));
        let mut cell = self.cell.subscribe();
        let urgent = async {
            // A release asked for during the pause must not wait for its end.
            while (released || !self.cell.is_released(epoch)) && cell.changed().await.is_ok() {}
        };
        let mut states = self.consensus.state();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = urgent => {}
            // A lease of another length begins with its first renewal.
            _ = states.wait_for(|state| state.settings.lease_ttl_ms != settings.lease_ttl_ms) => {}
        }
    }

    fn fence_if_ending(&self) {
        match self.cell.belief() {
            LeaseBelief::Ending { epoch } => {
                // First of all: a line of the log may wait for a disk that hangs (INV-9).
                (self.fence)();
                self.cell.end(epoch);
                tracing::warn!(%epoch, "lease ended unrenewed, the local primary was fenced");
            }
            LeaseBelief::Valid { .. } | LeaseBelief::None => {}
        }
    }

    /// Time until the fencing moment; a minute where there is nothing to fence.
    fn until_fencing(&self) -> Duration {
        let fencing = self.cell.lock().holder.fencing().filter(|_| !bug::is(Bug::IgnoreLease));
        fencing.map_or(Duration::from_secs(60), |fencing| fencing.since(self.clock.now()))
    }

    /// Another member leads than when this was called: what the one before was asked may never be answered.
    async fn leader_replaced(&self) {
        let mut leadership = self.consensus.leadership();
        let before = leadership.borrow_and_update().leader;
        let replaced = leadership.wait_for(|now| before.is_some() && now.leader.is_some() && now.leader != before).await.is_ok();
        if !replaced {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inv_9_transactions_begin_for_a_part_of_the_lease_only() {
        let (clock, settings) = (Clock::default(), Settings { lease_ttl_ms: 80_000, ..Settings::default() });
        let epoch = Epoch(3);
        let ago = |time: Duration| Millis(clock.now().0.saturating_sub(u64::try_from(time.as_millis()).unwrap_or_default()));
        let cell = LeaseCell::new(clock);
        assert!(!cell.may_serve(), "no lease");
        cell.renewed(epoch, ago(settings.serving_ttl()), &settings);
        assert!(!cell.may_serve(), "a firewall may refuse in its place, and another be elected");
        assert_eq!(cell.belief(), LeaseBelief::Valid { epoch }, "Postgres goes on");
        cell.renewed(epoch, ago(Duration::ZERO), &settings);
        assert!(cell.may_serve());
        cell.renewed(epoch, ago(settings.lease_ttl() / 2), &settings);
        assert!(cell.may_serve(), "a late answer takes nothing back");
        cell.release(epoch);
        assert!(!cell.may_serve());
    }
}
