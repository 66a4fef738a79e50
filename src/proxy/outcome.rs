//! The failure contract: what a client is told when its server is lost, or when the proxy must answer for itself.
//!
//! 40001: certainly not applied, run the transaction again; the connection stays. 08006: nothing was sent anywhere. 08007: perhaps
//! applied; the connection ends, and nothing is ever sent twice on the client's behalf, except reads of which it has seen nothing, and
//! which cannot have been applied: the server refuses writes, lacks the end of the read, or has said that it cancelled it. A text does not
//! show what a view calls, so that elsewhere a read has the fate of a write.

use super::acquire::Want;
use super::classify::Kind;
use super::classify::classify;
use super::protocol::{Effect, Fate, Tracker};
use super::request::{Unit, UnitKind};
use super::server::Cut;
use super::session::{Block, End, Held, Replay, Session};
use crate::bug::{self, Bug};
use crate::wire::frame::StreamBuffer;
use crate::wire::message::{Severity, TxStatus, put, put_complete, put_error, put_ready, split_cstr};

/// Told with 40001.
pub const RETRY_HINT: &str = "Nothing of this transaction was applied. Run it again from its beginning.";
/// The drain's deadline passed.
pub const DRAINED: &str = "transaction cancelled because the primary is being switched over";
const LOST: &str = "the server connection was lost within a transaction";
const LOST_READ: &str = "the server connection was lost while the statement ran";
const FAILED_BLOCK: &str = "current transaction is aborted, commands ignored until end of transaction block";

/// A read is given up after so many servers were lost under it.
const ATTEMPTS_MAX: u32 = 3;

/// 08007.
#[must_use]
pub fn unknown() -> End {
    End::Fatal {
        code: "08007",
        message: "the outcome of the transaction is unknown: the server was lost, or its standbys did not confirm, after it was asked to commit; \
                  check whether it was applied before running it again"
            .to_owned(),
    }
}

/// 08P01 for a message that is not of the protocol.
#[must_use]
pub fn unknown_message(tag: u8) -> End {
    End::Fatal { code: "08P01", message: format!("invalid frontend message type {tag}") }
}

impl Session {
    /// The server is gone: tell the truth about what was in flight.
    pub async fn lost(&mut self) -> Result<(), End> {
        let Some(mut held) = self.held.take() else { return Ok(()) };
        self.slot.set_target(None);
        self.slot.set_effect(Effect::Nothing);
        held.ended = true;
        if held.farewell {
            // Its own FATAL is the last word.
            self.out.extend_from_slice(held.inbox.ready());
            held.inbox.discard_ready();
            self.flush_out().await?;
            return Err(End::Quiet);
        }
        // What was not sent yet of what was in flight goes nowhere. A server that lacks the end of a read has not applied it.
        let unsent = !held.out.is_empty() || !self.inbox.ready().is_empty();
        self.inbox.discard_ready();
        if let Some(replay) = held.replay.take().filter(|replay| replay.harmless || unsent) {
            self.tracker = Tracker::default();
            drop(held);
            let want = replay.want;
            return self.run_again(replay, want).await;
        }
        if held.inbox.is_mid_message() {
            // Half a message may have been forwarded: nothing can be said behind it.
            return Err(End::Quiet);
        }
        self.out.extend_from_slice(held.inbox.ready());
        let fate = match self.tracker.fate(held.link.to_primary) {
            Fate::Unknown if bug::is(Bug::UnknownSaidNotApplied) => Fate::NotApplied,
            Fate::Unknown if bug::is(Bug::UnknownSaidDone) && self.tracker.readies_due() == 1 => {
                self.tell_done();
                return Ok(());
            }
            fate => fate,
        };
        tracing::info!(node = %held.link.node, epoch = %held.link.epoch, ?fate, "server lost under a client");
        let kept = !self.pinned && !self.statements.has_named();
        match fate {
            Fate::Unknown => Err(unknown()),
            Fate::Idle if kept => {
                self.statements.clear();
                Ok(())
            }
            Fate::Idle => Err(End::Fatal {
                code: "57P01",
                message: "terminating connection because the server with this session's state was lost; connect again".to_owned(),
            }),
            Fate::NotApplied if kept => {
                self.tell_not_applied(held.link.cut_by());
                Ok(())
            }
            // The session's state went with the server.
            Fate::NotApplied => Err(End::Fatal { code: "40001", message: not_applied_message(held.link.cut_by(), true).to_owned() }),
        }
    }

    /// A seeded bug.
    fn tell_done(&mut self) {
        self.tracker = Tracker::default();
        put_complete(&mut self.out, "COMMIT");
        put_ready(&mut self.out, TxStatus::Idle);
    }

    /// One error, and one ReadyForQuery for each request that awaits one.
    fn tell_not_applied(&mut self, cut: Cut) {
        let tracker = std::mem::take(&mut self.tracker);
        let in_block = tracker.status() != TxStatus::Idle;
        let (readies, owes_sync) = (tracker.readies_due(), tracker.owes_sync());
        self.statements.clear();
        if readies == 0 && !owes_sync && !tracker.is_copying_in() {
            self.block = Block::Lost;
            return;
        }
        self.block = if in_block { Block::Failed } else { Block::None };
        let message = not_applied_message(cut, in_block);
        for answer in 0..readies + usize::from(owes_sync) {
            let (code, message) = if answer > 0 && in_block { ("25P02", FAILED_BLOCK) } else { ("40001", message) };
            put_error(&mut self.out, Severity::Error, code, message, Some(RETRY_HINT));
            if answer < readies {
                let status = self.own_status();
                put_ready(&mut self.out, status);
            }
        }
        self.skip_to_sync = owes_sync;
    }

    /// Runs a read again, of which the client has seen nothing; or, on the primary, what a standby refused as a write.
    pub async fn run_again(&mut self, mut replay: Replay, want: Want) -> Result<(), End> {
        replay.attempts += 1;
        self.tracker = Tracker::default();
        if replay.attempts > ATTEMPTS_MAX {
            put_error(&mut self.out, Severity::Error, "40001", LOST_READ, Some(RETRY_HINT));
            put_ready(&mut self.out, TxStatus::Idle);
            return Ok(());
        }
        let want = match self.door {
            super::session::Door::Standby => Want::Reader,
            super::session::Door::Primary if bug::is(Bug::RereadElsewhere) => Want::Any,
            super::session::Door::Auto | super::session::Door::Primary => want,
        };
        let (lease, passage) = match self.acquire(want).await {
            Ok(acquired) => acquired,
            Err(error) => {
                // The request itself is no longer in the stream: only its answer is due.
                let skip = std::mem::replace(&mut self.skip_to_sync, true);
                let rejected = self.reject(error);
                self.skip_to_sync = skip;
                // Where the session ends here its last word is an error: ready before it would make an empty answer of the read.
                if rejected.is_ok() {
                    put_ready(&mut self.out, TxStatus::Idle);
                }
                return rejected;
            }
        };
        let mut held = Held::new(lease, passage);
        held.forget_unnamed(&replay.bytes);
        // A batch makes the unnamed statement, a Query takes it away.
        held.set_unnamed(replay.bytes.first() != Some(&b'Q'));
        held.out.extend_from_slice(&replay.bytes);
        let mut messages = StreamBuffer::default();
        messages.feed(&replay.bytes);
        let effect = match held.refuses_writes() {
            _ if replay.writes => Effect::Write,
            true => Effect::Nothing,
            false => Effect::Read,
        };
        while let Ok(Some(frame)) = messages.frame() {
            self.tracker.sent(frame.tag, effect);
            messages.drop_frame(&frame);
        }
        if replay.writes {
            // If this server is lost as well, it may have been applied.
            self.wrote = true;
            self.slot.set_effect(effect);
        } else {
            let harmless = effect == Effect::Nothing || bug::is(Bug::ReplayUnknownWrite) || bug::is(Bug::RereadElsewhere);
            held.replay = Some(Replay { harmless, ..replay });
        }
        self.hold(held);
        Ok(())
    }

    /// Drops the request that is next, or as much of it as there is, and answers ReadyForQuery where it is due.
    pub fn skip_request(&mut self) {
        if self.skip_to_sync {
            return;
        }
        if matches!(self.block, Block::Deferred { .. }) {
            self.block = Block::Failed;
        }
        let status = if self.held.is_some() { self.tracker.status() } else { self.own_status() };
        match self.inbox.frame() {
            Ok(Some(frame)) if matches!(frame.tag, b'Q' | b'F') => {
                self.inbox.drop_frame(&frame);
                put_ready(&mut self.out, status);
            }
            // Up to its Sync, which may be still to come.
            _ => self.skip_to_sync = true,
        }
    }

    /// The server was lost within the block: only its end is accepted.
    pub fn answer_in_failed_block(&mut self, unit: &Unit) {
        let is_lost = matches!(self.block, Block::Lost);
        let ends = !is_lost || matches!(unit.class.kind, Kind::Rollback { .. });
        match unit.kind {
            UnitKind::Query if ends && is_plain_end(unit.class.kind) => {
                self.take_query();
                put_complete(&mut self.out, "ROLLBACK");
                self.block = Block::None;
                put_ready(&mut self.out, TxStatus::Idle);
            }
            UnitKind::Batch if ends && self.answer_end_in_batch() => {}
            _ => {
                let (code, message) = if is_lost { ("40001", LOST) } else { ("25P02", FAILED_BLOCK) };
                put_error(&mut self.out, Severity::Error, code, message, Some(RETRY_HINT));
                self.block = Block::Failed;
                self.skip_request();
            }
        }
    }

    /// A batch that holds nothing but an unnamed ROLLBACK or COMMIT is answered message by message.
    fn answer_end_in_batch(&mut self) -> bool {
        let (mut ahead, mut answers, mut frames) = (0, Vec::new(), Vec::new());
        let mut ends = false;
        while let Ok(Some(frame)) = self.inbox.frame_ahead(ahead) {
            let body = self.inbox.body_ahead(ahead, &frame);
            match frame.tag {
                b'P' => {
                    let text = split_cstr(body).map_or(&b""[..], |(_, rest)| rest);
                    let text = split_cstr(text).map_or(text, |(text, _)| text);
                    if !is_plain_end(classify(text, self.backslash_escapes).kind) {
                        return false;
                    }
                    ends = true;
                    put(&mut answers, b'1', |_| {});
                }
                b'B' => put(&mut answers, b'2', |_| {}),
                b'D' => {
                    if body.first() == Some(&b'S') {
                        put(&mut answers, b't', |body| body.extend_from_slice(&[0, 0]));
                    }
                    put(&mut answers, b'n', |_| {});
                }
                b'E' => put_complete(&mut answers, "ROLLBACK"),
                b'C' => put(&mut answers, b'3', |_| {}),
                b'S' => {
                    frames.push(frame);
                    break;
                }
                _ => return false,
            }
            ahead += frame.total();
            frames.push(frame);
        }
        if !ends || frames.last().is_none_or(|frame| frame.tag != b'S') {
            return false;
        }
        for frame in frames {
            self.inbox.drop_frame(&frame);
        }
        self.block = Block::None;
        self.out.extend_from_slice(&answers);
        put_ready(&mut self.out, TxStatus::Idle);
        true
    }
}

fn is_plain_end(kind: Kind) -> bool {
    matches!(kind, Kind::Commit { plain: true } | Kind::Rollback { plain: true })
}

fn not_applied_message(cut: Cut, in_block: bool) -> &'static str {
    match cut {
        Cut::Drained => DRAINED,
        Cut::No | Cut::Fenced if in_block => LOST,
        Cut::No | Cut::Fenced => LOST_READ,
    }
}
