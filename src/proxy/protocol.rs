//! Where a conversation with one server stands: what was asked, what is still to be answered, and what becomes of it if the server dies now.
//!
//! ```text
//!   client's message ──sent()──▶ ┌─────────┐ ◀──received()── server's message
//!                                │ Tracker │
//!      may the server go? ◀──────┤         ├──────▶ fate(): not applied | unknown
//!                                └─────────┘
//! ```
//! One entry per request, taken off by its answer, as libpq's command queue does it. Details that the protocol hides: after an error the
//! server skips to the next Sync; while it reads COPY data it ignores Flush and Sync. Pure.

use super::classify::Kind;
use crate::wire::message::TxStatus;
use std::collections::VecDeque;

/// What a request may have done once the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Changes no data.
    Nothing,
    /// Gives the open transaction up: what follows it is decided on its own.
    GiveUp,
    /// Reads by its text; where the server does not refuse writes, what it calls may write all the same.
    Read,
    /// Changes data, which is decided when its transaction ends.
    Write,
    /// May commit on its own outside a block, before any Sync: CALL, VACUUM, COMMIT PREPARED. Within a block it is a write, or refused.
    SelfCommitting,
    /// Ends a transaction, for good or ill.
    Commit,
    /// Nobody knows: it may end transactions and begin others in its middle.
    Opaque,
}

impl Effect {
    /// Of a statement of this kind.
    #[must_use]
    pub fn of(kind: Kind) -> Effect {
        match kind {
            Kind::Empty | Kind::Begin { .. } | Kind::Control | Kind::SetReadOnly => Effect::Nothing,
            Kind::Read => Effect::Read,
            Kind::Rollback { .. } => Effect::GiveUp,
            Kind::Write => Effect::Write,
            Kind::SelfCommitting => Effect::SelfCommitting,
            Kind::Commit { .. } => Effect::Commit,
            Kind::Opaque => Effect::Opaque,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Query(Effect),
    Function,
    Parse,
    Bind,
    Describe,
    Execute(Effect),
    Close,
    Sync,
}

impl Request {
    fn answers_with_ready(self) -> bool {
        matches!(self, Request::Query(_) | Request::Function | Request::Sync)
    }

    /// A statement that, in a failed block, may do other than fail or end it: ROLLBACK TO, say.
    fn may_revive(self) -> bool {
        match self {
            Request::Query(effect) | Request::Execute(effect) => effect != Effect::Commit,
            Request::Function => true,
            Request::Parse | Request::Bind | Request::Describe | Request::Close | Request::Sync => false,
        }
    }
}

/// Data from the client to COPY … FROM STDIN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CopyIn {
    #[default]
    No,
    /// The server reads data; the client has not said that it is done.
    Open,
}

/// What is known about the requests in flight if the server is lost now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing was asked and no transaction is open.
    Idle,
    /// Certainly not applied.
    NotApplied,
    /// Perhaps applied: only the server's answer could have told.
    Unknown,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tracker {
    requests: VecDeque<Request>,
    status: TxStatus,
    /// Extended-protocol messages were sent and no Sync since.
    batch_open: bool,
    copy_in: CopyIn,
    /// The greatest effect of what was executed, answered or not, and whose Sync is not answered.
    batch_effect: Option<Effect>,
    /// After an error in the extended protocol with no Sync sent yet.
    skipping: bool,
    /// A ROLLBACK was sent since everything was last settled: what is written behind it is not protected by an open block.
    gave_up: bool,
    /// Something else than COMMIT was sent since everything was last settled: a block that has failed may not be any more.
    mixed: bool,
    /// PostgreSQL gave up waiting for its synchronous standbys.
    sync_wait_ended: bool,
}

impl Tracker {
    /// The client's message `tag` goes to the server; `effect` matters for Query and Execute. `true`: ReadyForQuery will answer it.
    pub fn sent(&mut self, tag: u8, effect: Effect) -> bool {
        let request = match tag {
            b'Q' => Request::Query(effect),
            b'F' => Request::Function,
            b'P' => Request::Parse,
            b'B' => Request::Bind,
            b'D' => Request::Describe,
            b'E' => Request::Execute(effect),
            b'C' => Request::Close,
            b'S' if self.copy_in == CopyIn::Open => return false,
            b'S' => Request::Sync,
            b'c' | b'f' => {
                self.copy_in = CopyIn::No;
                return false;
            }
            _ => return false,
        };
        if request == Request::Sync {
            self.batch_open = false;
            self.skipping = false;
        } else if !request.answers_with_ready() {
            self.batch_open = true;
        }
        self.gave_up |= matches!(request, Request::Query(Effect::GiveUp) | Request::Execute(Effect::GiveUp));
        if matches!(request, Request::Execute(_)) {
            self.batch_effect = self.batch_effect.max(Some(effect));
        }
        if self.skipping {
            return false;
        }
        self.mixed |= request.may_revive();
        self.requests.push_back(request);
        request.answers_with_ready()
    }

    /// The server's message `tag` arrived; `status` is the body of ReadyForQuery.
    pub fn received(&mut self, tag: u8, status: u8) {
        match tag {
            b'1' => self.answered(|r| r == Request::Parse),
            b'2' => self.answered(|r| r == Request::Bind),
            b'3' => self.answered(|r| r == Request::Close),
            b'T' | b'n' => self.answered(|r| r == Request::Describe),
            b'C' | b's' | b'I' => self.answered(|r| matches!(r, Request::Execute(_))),
            b'G' => self.copy_begins(),
            b'E' => self.failed(),
            b'Z' => {
                self.status = TxStatus::from_byte(status);
                self.copy_in = CopyIn::No;
                while let Some(request) = self.requests.pop_front() {
                    if request.answers_with_ready() {
                        break;
                    }
                }
                self.mixed = self.requests.iter().any(|request| request.may_revive());
                if self.requests.is_empty() && !self.batch_open {
                    self.batch_effect = None;
                    self.gave_up = false;
                }
                self.sync_wait_ended = false;
            }
            _ => {}
        }
    }

    /// A BEGIN that cannot fail goes ahead of the next message; its answer is not reported here.
    pub fn block_opened(&mut self) {
        self.status = TxStatus::InTransaction;
    }

    /// PostgreSQL warned that the commit was not confirmed by a standby.
    pub fn sync_wait_ended(&mut self) {
        self.sync_wait_ended = true;
    }

    /// Whether the success that comes next must not be passed on as one.
    #[must_use]
    pub fn is_commit_unconfirmed(&self) -> bool {
        self.sync_wait_ended
    }

    fn answered(&mut self, fits: impl Fn(Request) -> bool) {
        if self.requests.front().is_some_and(|front| fits(*front)) {
            self.requests.pop_front();
        }
    }

    /// The front request reads data: what the client has already sent after it up to its CopyDone is not in the queue; Syncs that are
    /// there were sent before the client knew, and the server ignores them.
    fn copy_begins(&mut self) {
        self.copy_in = CopyIn::Open;
        let mut seen_front = false;
        self.requests.retain(|request| !std::mem::replace(&mut seen_front, true) || *request != Request::Sync);
        self.batch_open |= matches!(self.requests.front(), Some(Request::Execute(_)));
    }

    fn failed(&mut self) {
        self.copy_in = CopyIn::No;
        while let Some(front) = self.requests.front() {
            if front.answers_with_ready() {
                return;
            }
            self.requests.pop_front();
        }
        self.skipping = self.batch_open;
    }

    /// State of the transaction as of the last ReadyForQuery.
    #[must_use]
    pub fn status(&self) -> TxStatus {
        self.status
    }

    /// Everything was answered.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.requests.is_empty() && !self.batch_open && self.copy_in == CopyIn::No
    }

    /// Everything was answered and no transaction is open.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_settled() && self.status == TxStatus::Idle
    }

    /// Whether the client is in the middle of an extended-protocol batch (it owes a Sync) or of COPY data.
    #[must_use]
    pub fn owes_sync(&self) -> bool {
        self.batch_open
    }

    /// Whether the client sends COPY data now.
    #[must_use]
    pub fn is_copying_in(&self) -> bool {
        self.copy_in == CopyIn::Open
    }

    /// Whether a request in flight may end the open transaction: what is sent behind it belongs to another one.
    #[must_use]
    pub fn may_be_ending(&self) -> bool {
        self.gave_up || self.greatest_effect() >= Effect::Commit
    }

    /// Whether what may be a write in flight is decided by its own end, because no block is open around it.
    #[must_use]
    pub fn decides_writes(&self) -> bool {
        self.greatest_effect() >= Effect::Read && (self.status == TxStatus::Idle || self.gave_up)
    }

    /// Whether something was sent behind the statement that is being answered.
    #[must_use]
    pub fn has_more_behind(&self) -> bool {
        self.batch_open || self.requests.iter().skip(1).any(|request| *request != Request::Sync)
    }

    /// ReadyForQuery messages that are still to come.
    #[must_use]
    pub fn readies_due(&self) -> usize {
        self.requests.iter().filter(|request| request.answers_with_ready()).count()
    }

    /// Whether a message that ends a transaction, or an autocommit write, is being worked on: it may be waiting for standbys.
    #[must_use]
    pub fn greatest_effect(&self) -> Effect {
        let queue = self.requests.iter().map(|request| match request {
            Request::Query(effect) | Request::Execute(effect) => *effect,
            Request::Function => Effect::Write,
            _ => Effect::Nothing,
        });
        queue.chain(self.batch_effect).max().unwrap_or(Effect::Nothing)
    }

    /// What is known if the server is lost now. `can_write` is false for a standby.
    #[must_use]
    pub fn fate(&self, can_write: bool) -> Fate {
        if self.is_idle() {
            return Fate::Idle;
        }
        // A write without an open transaction block is decided by its own end: by a Query, or by the Sync behind an Execute. While
        // COPY data is still to come, or no Sync was sent, the server has not begun to commit; but for statements that do so by themselves.
        let unprotected = self.status == TxStatus::Idle || self.gave_up;
        let sync_sent = self.requests.iter().any(|request| *request == Request::Sync);
        let decided_now = |request: &Request| match request {
            // It may have committed before its COPY began.
            Request::Query(Effect::Opaque) => true,
            Request::Query(effect) if unprotected => *effect >= Effect::Read && self.copy_in == CopyIn::No,
            Request::Query(effect) | Request::Execute(effect) => *effect >= Effect::Commit,
            Request::Function => unprotected,
            _ => false,
        };
        let batch = match self.batch_effect {
            Some(Effect::Commit | Effect::Opaque) => true,
            Some(Effect::Read | Effect::Write) => unprotected && sync_sent,
            Some(Effect::SelfCommitting) => unprotected,
            Some(Effect::Nothing | Effect::GiveUp) | None => false,
        };
        // COMMIT gives up a block that has failed; behind anything else it may be another one.
        let gives_up = self.status == TxStatus::Failed && !self.gave_up && !self.mixed;
        if can_write && !gives_up && (batch || self.requests.iter().any(decided_now)) { Fate::Unknown } else { Fate::NotApplied }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
