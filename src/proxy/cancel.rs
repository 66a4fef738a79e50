//! CancelRequest across pooled connections: the proxy's key leads to the session, the session's server has its own key.
//!
//! A request is not passed on while a COMMIT is being worked on, or while an autocommit write waits for synchronous standbys: cancelling
//! that wait would not undo the commit, only hide whether it is safe. A request that reaches a session without a server ends its wait.

use super::Control;
use super::protocol::Effect;
use super::server::{Cut, Link};
use crate::wire::cancel::CancelKey;
use crate::wire::startup;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// One attempt at reaching a server for a cancellation.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What a session's server is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing.
    None,
    /// A statement that is its own transaction.
    Single,
    /// A transaction block.
    Block,
}

/// What cancel requests see of a session.
#[derive(Default)]
pub struct Slot {
    secret: u32,
    target: Mutex<Option<Arc<Link>>>,
    effect: AtomicU8,
    stage: AtomicU8,
    /// Wakes a session that waits for a server.
    pub waiting: Notify,
}

impl Slot {
    /// The session got or lost its server.
    pub fn set_target(&self, link: Option<Arc<Link>>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// What is being worked on may, at worst, do this.
    pub fn set_effect(&self, effect: Effect) {
        self.effect.store(effect as u8, SeqCst);
    }

    /// What is under way.
    pub fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, SeqCst);
    }

    /// Takes the server for a cancellation and counts it, so that the server is not reused while a signal may be under way.
    fn aim(&self) -> Option<Arc<Link>> {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if self.effect.load(SeqCst) >= Effect::Commit as u8 {
            return None;
        }
        let link = target.as_ref().map(Arc::clone)?;
        link.cancels.fetch_add(1, SeqCst);
        Some(link)
    }
}

/// All sessions by the process id of their key.
#[derive(Default)]
pub struct Slots {
    by_pid: Mutex<HashMap<u32, Arc<Slot>>>,
}

impl Slots {
    /// Registers a session under a key that is free.
    pub fn insert(&self, mut issue: impl FnMut() -> CancelKey) -> (CancelKey, Arc<Slot>) {
        let mut by_pid = self.by_pid.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let key = issue();
            if let std::collections::hash_map::Entry::Vacant(free) = by_pid.entry(key.pid) {
                let slot = Arc::new(Slot { secret: key.secret, ..Slot::default() });
                free.insert(Arc::clone(&slot));
                return (key, slot);
            }
        }
    }

    /// The session is gone.
    pub fn remove(&self, key: CancelKey) {
        self.by_pid.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.pid);
    }

    fn find(&self, key: CancelKey) -> Option<Arc<Slot>> {
        let by_pid = self.by_pid.lock().unwrap_or_else(PoisonError::into_inner);
        by_pid.get(&key.pid).filter(|slot| slot.secret == key.secret).map(Arc::clone)
    }
}

/// Serves a client's request.
pub async fn serve(slots: &Slots, control: &Control, key: CancelKey) {
    let Some(slot) = slots.find(key) else { return };
    match slot.aim() {
        Some(link) => {
            // What is more than a write was not aimed at.
            let is_write = slot.effect.load(SeqCst) >= Effect::Read as u8;
            if !is_write || !waits_for_standbys(control, &link).await {
                send(&link).await;
            }
        }
        None => slot.waiting.notify_waiters(),
    }
}

/// Ends every transaction that is open on the primary, at a drain's deadline. Those that are being committed are left to end by themselves;
/// a block is cut and rolls back; a single statement that may write is cancelled, because only its own end tells whether it was applied. A
/// read whose server is deaf to that (it waits for its client to read on, or to send Sync) is cut when this is called again.
pub async fn end_in_flight(slots: &Slots, control: &Control) {
    let all: Vec<_> = slots.by_pid.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect();
    futures::future::join_all(all.iter().map(|slot| end_one(slot, control))).await;
}

async fn end_one(slot: &Slot, control: &Control) {
    let stage = slot.stage.load(SeqCst);
    let effect = slot.effect.load(SeqCst);
    let writes = effect >= Effect::Read as u8;
    let Some(link) = slot.aim().filter(|link| link.to_primary && stage != Stage::None as u8) else { return };
    if stage == Stage::Block as u8 || !writes {
        link.cut(Cut::Drained);
    } else if !waits_for_standbys(control, &link).await {
        if effect == Effect::Read as u8 && link.cut_by() == Cut::Drained {
            link.cut(Cut::Drained);
            return;
        }
        link.mark_drained();
        send(&link).await;
    }
}

/// Sends the server's own key and waits until it has hung up: then the signal was sent.
pub async fn send(link: &Link) {
    let request = startup::write_cancel(link.key);
    let attempt = async {
        let mut stream = TcpStream::connect(&link.address).await?;
        stream.write_all(&request).await?;
        stream.read(&mut [0u8; 1]).await
    };
    if !matches!(tokio::time::timeout(TIMEOUT, attempt).await, Ok(Ok(_))) {
        tracing::info!(node = %link.node, "cancel request could not be delivered");
    }
}

/// Asks the server whether its backend waits in `SyncRep`. Unknown is "yes": cancelling the wait shows everybody a commit that may be lost.
pub async fn waits_for_standbys(control: &Control, link: &Link) -> bool {
    let Some((host, port)) = link.address.rsplit_once(':') else { return true };
    let (Ok(port), Ok(pid)) = (port.parse(), i32::try_from(link.key.pid)) else { return true };
    let ask = async {
        let client = super::auth::Connection::open(control, host, port).await?;
        let sql =
            "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) $1 AND wait_event OPERATOR(pg_catalog.=) 'SyncRep'";
        client.with(|client| async move { client.query_opt(sql, &[&pid]).await }).await
    };
    !matches!(tokio::time::timeout(TIMEOUT, ask).await, Ok(Ok(None)))
}
