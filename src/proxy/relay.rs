//! Moves bytes between a client and its server while a transaction is open, in bounded memory both ways.
//!
//! Each round judges what has arrived (headers only, but for the few messages that decide something), forwards it, and waits for
//! whichever socket can go on. A direction is read only when its own sink has room, so that neither side can fill the proxy. A further
//! transaction of a pipeline passes the gate like the first (INV-11).

use super::acquire::{NoServer, Want};
use super::buffers::{self, Read};
use super::cancel::Stage;
use super::classify::{Class, Kind};
use super::outcome;
use super::protocol::Effect;
use super::server::{Cut, Role};
use super::session::{Door, End, Held, Session};
use crate::bug::{self, Bug};
use crate::wire::frame::Frame;
use crate::wire::message::{Fields, Severity, TxStatus, put_complete, put_error, split_cstr};
use std::future::poll_fn;

use std::task::Poll;

/// What stops the client's next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Nothing is there.
    Empty,
    /// It belongs to another transaction, which must not begin before this one's answer.
    Unsettled,
    /// It begins a transaction and the gate must be passed.
    Gate,
    /// The client says goodbye.
    Goodbye,
}

/// What the server's messages led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Go,
    /// The stream ended, or the server said that it ends it.
    Lost,
    /// A standby refused a read, or a drain cancelled it; everything of it was thrown away.
    Refused,
}

#[derive(Clone, Copy, Default)]
struct Interest {
    client_read: bool,
    client_write: bool,
    server_read: bool,
    server_write: bool,
}

impl Session {
    /// Runs until the server goes back to its pool (`Ok`), or the session is over.
    pub async fn relay(&mut self) -> Result<(), End> {
        loop {
            let mut stop = self.pump_client()?;
            // What was judged before goes first: it may be the rest of a COPY that failed. So does what is on its way to the client: whoever
            // waits at the gate reads nothing meanwhile, and an error of the proxy's own must not come before an answer.
            let sent = stop == Stop::Gate && self.flush_server() && self.inbox.ready().is_empty();
            let begins = sent && self.flush_client()? && self.is_quiet();
            if begins {
                match self.begin_next().await? {
                    Some(next) => stop = next,
                    None => return Ok(()),
                }
            }
            let server_done = self.flush_server();
            match self.pump_server()? {
                Flow::Go => {}
                Flow::Lost => return self.lost().await,
                Flow::Refused => return self.run_elsewhere().await,
            }
            let client_done = self.flush_client()?;
            let may_part = self.tracker.is_idle() || (bug::is(Bug::ReleaseInTransaction) && self.tracker.is_settled());
            if may_part && client_done && server_done && self.is_quiet() {
                if stop == Stop::Goodbye {
                    return Err(End::Quiet);
                }
                if self.release() {
                    return Ok(());
                }
                if !self.inbox.unscanned().is_empty() && stop != Stop::Empty {
                    continue;
                }
                buffers::detach(&mut self.inbox);
            } else if stop == Stop::Goodbye && self.tracker.is_settled() {
                return Err(End::Quiet);
            } else if stop == Stop::Unsettled && self.tracker.is_settled() {
                // What it waited for has come, and the transaction goes on.
                continue;
            }
            let interest = Interest {
                client_read: server_done && stop == Stop::Empty,
                client_write: !client_done,
                server_read: client_done,
                server_write: !server_done,
            };
            let woken = self.wait(interest).await?;
            self.take_in(woken)?;
        }
    }

    /// The next transaction of a client that keeps its server: where it may begin, and when. `None`: not here, and the server is gone.
    async fn begin_next(&mut self) -> Result<Option<Stop>, End> {
        let held = self.holding();
        if !held.link.to_primary && !held.kept {
            // Nothing ties the next transaction to this standby: it goes where it belongs once this server was given back.
            return Ok(Some(Stop::Gate));
        }
        // Who can take along what it has there, does.
        if self.is_unfit() && !self.may_move() {
            match self.await_fit().await {
                Ok(true) if self.is_astray() => {}
                Ok(true) => return self.pump_client().map(Some),
                Ok(false) => return self.lost().await.map(|()| None),
                Err(error) => return self.turn_away(error).map(Some),
            }
        }
        if self.is_astray() {
            return match self.may_stay()? {
                Some(true) => self.pump_client().map(Some),
                Some(false) => {
                    self.move_on().await;
                    Ok(None)
                }
                None => Ok(Some(Stop::Empty)),
            };
        }
        if !self.holding().link.to_primary {
            // It has become fit again since it was asked.
            return self.pump_client().map(Some);
        }
        match self.pass_again().await {
            Ok(Some(passage)) => {
                self.slot.set_stage(Stage::Single);
                self.holding().passage = Some(passage);
                self.pump_client().map(Some)
            }
            Ok(None) => self.lost().await.map(|()| None),
            Err(error) => self.turn_away(error).map(Some),
        }
    }

    /// The rest of the request may be here already, and nothing else would wake us for it.
    fn turn_away(&mut self, error: NoServer) -> Result<Stop, End> {
        self.reject(error)?;
        self.pump_client()
    }

    fn holding(&mut self) -> &mut Held {
        self.held.as_mut().expect("relay runs only while a server is held")
    }

    /// Nothing of the server's is left to pass on, and it does not wait for the rest of a message: data of a COPY that failed may still
    /// be on its way when everything was answered.
    fn is_quiet(&self) -> bool {
        let whole = !self.inbox.is_mid_message();
        whole
            && self
                .held
                .as_ref()
                .is_some_and(|held| held.inbox.is_empty() && !held.swallow && held.remade == 0 && !held.refused && !held.ended)
    }

    async fn wait(&mut self, interest: Interest) -> Result<Interest, End> {
        let shutdown = self.shared.shutdown.clone();
        let idle = self.tracker.is_idle();
        let server = &self.held.as_ref().expect("relay runs only while a server is held").link.stream;
        let client = &self.stream;
        let ready = poll_fn(|cx| {
            let woken = Interest {
                server_read: interest.server_read && server.poll_read_ready(cx).is_ready(),
                client_read: interest.client_read && client.poll_read_ready(cx).is_ready(),
                client_write: interest.client_write && client.poll_write_ready(cx).is_ready(),
                server_write: interest.server_write && server.poll_write_ready(cx).is_ready(),
            };
            let any = woken.server_read || woken.client_read || woken.client_write || woken.server_write;
            if any { Poll::Ready(woken) } else { Poll::Pending }
        });
        if !idle {
            return Ok(ready.await);
        }
        // Between transactions of a client that keeps its server a stop of the node ends the session.
        tokio::select! {
            biased;
            woken = ready => Ok(woken),
            () = shutdown.cancelled() => Err(super::session::shutting_down()),
        }
    }

    fn take_in(&mut self, woken: Interest) -> Result<(), End> {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        if woken.server_read {
            match buffers::read(&held.link.stream, &mut held.inbox) {
                Read::Ended => held.ended = true,
                // The answer is too long to be kept back.
                Read::Full => held.replay = None,
                Read::Bytes | Read::Later => {}
            }
        }
        if woken.client_read {
            match buffers::read(&self.stream, &mut self.inbox) {
                Read::Ended => return Err(End::Quiet),
                Read::Full if self.inbox.ready().is_empty() => {
                    // A message worth reading that is longer than the window; `is_legible` bounds it.
                    let wider = self.inbox.capacity() * 2;
                    self.inbox.grow(wider.min(2 * self.shared.config.inspect_bytes_max));
                }
                Read::Full | Read::Bytes | Read::Later => {}
            }
        }
        Ok(())
    }

    /// `true`: everything went. A broken server shows when it is read.
    fn flush_server(&mut self) -> bool {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        match buffers::write(&held.link.stream, &mut held.out, &mut self.inbox) {
            Ok(done) => done,
            Err(_) => {
                held.ended = true;
                true
            }
        }
    }

    fn flush_client(&mut self) -> Result<bool, End> {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        let mut nothing = crate::wire::frame::StreamBuffer::default();
        let source = if held.replay.is_some() { &mut nothing } else { &mut held.inbox };
        buffers::write(&self.stream, &mut self.out, source).map_err(|_| End::Quiet)
    }

    /// Judges the client's messages up to the first that must wait.
    fn pump_client(&mut self) -> Result<Stop, End> {
        while !self.inbox.is_mid_message() {
            let Some(frame) = self.inbox.frame()? else { break };
            if let Some(stop) = self.stops(&frame) {
                return Ok(stop);
            }
            if self.skip_to_sync && self.held.as_ref().is_some_and(|held| held.out.is_empty()) && self.inbox.ready().is_empty() {
                self.inbox.drop_frame(&frame);
                if frame.tag == b'S' {
                    self.skip_to_sync = false;
                    crate::wire::message::put_ready(&mut self.out, self.tracker.status());
                }
                continue;
            }
            if matches!(frame.tag, b'Q' | b'P' | b'B' | b'E' | b'C') && !self.is_legible(0, &frame) {
                break;
            }
            self.note_sent(&frame)?;
            self.inbox.pass(&frame);
        }
        Ok(Stop::Empty)
    }

    fn stops(&self, frame: &Frame) -> Option<Stop> {
        if frame.tag == b'X' {
            return Some(if self.tracker.is_settled() { Stop::Goodbye } else { Stop::Unsettled });
        }
        let within = self.tracker.owes_sync() || self.tracker.is_copying_in();
        let held = self.held.as_ref()?;
        let strays = matches!(frame.tag, b'd' | b'c' | b'f' | b'H');
        // Behind a read that may be run again nothing is sent: were it left unsent, the read would seem to be.
        if within || self.skip_to_sync || (strays && held.replay.is_none()) {
            return None;
        }
        if strays {
            return Some(Stop::Unsettled);
        }
        if self.tracker.is_settled() {
            let begins = self.tracker.status() == TxStatus::Idle;
            let fit = if held.kept { !self.is_astray() && !self.is_unfit() } else { !held.over };
            let passed = held.passage.is_some() || (!held.link.to_primary && fit);
            return (begins && !passed).then_some(Stop::Gate);
        }
        let free = held.link.role == Role::Primary
            && held.replay.is_none()
            && !self.tracker.may_be_ending()
            && (self.tracker.status() != TxStatus::Idle || self.shared.gate.still_open(held.link.epoch));
        (!free).then_some(Stop::Unsettled)
    }

    /// Takes note of a message that goes to the server.
    fn note_sent(&mut self, frame: &Frame) -> Result<(), End> {
        let effect = match frame.tag {
            b'Q' => {
                let class = self.class_of(frame, 0);
                self.pinned |= class.pins;
                self.statements.query_sent();
                // Behind an error the server skips it as everything else up to Sync.
                if !self.tracker.owes_sync() {
                    self.holding().set_unnamed(false);
                }
                Effect::of(class.kind)
            }
            b'P' => {
                let class = self.class_of(frame, 1);
                self.pinned |= class.pins;
                let body = self.inbox.body(frame);
                let name = split_cstr(body).map_or(&b""[..], |(name, _)| name);
                let stays = name.is_empty() || self.door != Door::Auto || self.held.as_ref().is_none_or(|held| held.link.to_primary);
                let portable = Some(body).filter(|body| frame.is_complete() && self.statements.has_room_for(body.len()));
                self.pinned |= !stays && portable.is_none();
                let unnamed = name.is_empty();
                self.statements.parse_sent(name, class, portable.filter(|_| !stays));
                if unnamed {
                    self.holding().set_unnamed(true);
                }
                Effect::Nothing
            }
            b'B' => {
                let (portal, rest) = split_cstr(self.inbox.body(frame)).unwrap_or((b"", b""));
                let statement = split_cstr(rest).map_or(&b""[..], |(name, _)| name);
                self.statements.bind_sent(portal, statement);
                Effect::Nothing
            }
            b'E' => {
                let portal = split_cstr(self.inbox.body(frame)).map_or(&b""[..], |(name, _)| name);
                self.statements.executed(portal)
            }
            b'C' => {
                self.statements.close_sent(self.inbox.body(frame));
                Effect::Nothing
            }
            b'F' => Effect::Write,
            b'D' | b'H' | b'S' | b'd' | b'c' | b'f' => Effect::Nothing,
            tag => return Err(outcome::unknown_message(tag)),
        };
        // Nothing is written on a standby, whatever is said there; nor by a read where the server refuses it.
        let effect = if effect == Effect::Read && self.holding().refuses_writes() { Effect::Nothing } else { effect };
        self.wrote |= effect >= Effect::Write && self.holding().link.to_primary;
        if self.tracker.sent(frame.tag, effect) {
            self.statements.sync_sent();
        }
        if effect > Effect::Nothing {
            self.slot.set_effect(self.tracker.greatest_effect());
        }
        Ok(())
    }

    fn class_of(&mut self, frame: &Frame, names_before: usize) -> Class {
        if let Some(judged) = self.judged.take() {
            return judged;
        }
        let mut text = self.inbox.body(frame);
        for _ in 0..names_before {
            text = split_cstr(text).map_or(&b""[..], |(_, rest)| rest);
        }
        let class = self.judge(frame, split_cstr(text).map_or(text, |(text, _)| text));
        let learned = class.kind == Kind::Read && frame.is_complete() && self.is_learned_write(frame.total());
        if learned { Class { kind: Kind::Write, ..class } } else { class }
    }

    /// Judges the server's messages.
    fn pump_server(&mut self) -> Result<Flow, End> {
        loop {
            let held = self.held.as_mut().expect("relay runs only while a server is held");
            let frame = match held.inbox.frame() {
                Ok(frame) => frame,
                // Nothing sensible can follow; what is in flight has the fate of a lost server.
                Err(_) => return Ok(Flow::Lost),
            };
            let Some(frame) = frame.filter(|_| !held.inbox.is_mid_message()) else {
                return Ok(if held.ended { Flow::Lost } else { Flow::Go });
            };
            // Passed on whole, so that a server lost within it leaves room for an error behind what the client has had.
            if !frame.is_complete() && frame.total() <= held.inbox.capacity() {
                return Ok(if held.ended { Flow::Lost } else { Flow::Go });
            }
            let flow = if held.swallow || held.remade > 0 || held.refused { self.throw_away(&frame)? } else { self.note_received(&frame)? };
            if let Some(flow) = flow {
                return Ok(flow);
            }
        }
    }

    /// The answer to a statement made again or closed, to a BEGIN that the client has had, or the rest of one that a standby refused.
    fn throw_away(&mut self, frame: &Frame) -> Result<Option<Flow>, End> {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        let fatal = frame.tag == b'E' && Fields::read(held.inbox.body(frame)).is_fatal();
        held.inbox.discard_ready();
        held.inbox.drop_frame(frame);
        if fatal {
            return Ok(Some(Flow::Lost));
        }
        if held.remade > 0 {
            // One that failed is missed when the client uses it.
            held.remade -= usize::from(frame.tag == b'Z');
            return Ok(None);
        }
        if held.swallow && frame.tag == b'E' {
            // BEGIN in its plain forms cannot fail; if it did, the next statement ran outside the block.
            return Err(outcome::unknown());
        }
        if frame.tag == b'Z' {
            held.swallow = false;
            if held.refused {
                return Ok(Some(Flow::Refused));
            }
        }
        Ok(None)
    }

    /// `Some`: the conversation with this server is over.
    fn note_received(&mut self, frame: &Frame) -> Result<Option<Flow>, End> {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        let status = held.inbox.body(frame).first().copied().unwrap_or(b'I');
        match frame.tag {
            b'E' => return self.note_error(frame),
            b'N' => {
                if Fields::read(held.inbox.body(frame)).ends_sync_wait() {
                    if bug::is(Bug::CancelledWaitAcknowledged) {
                        held.inbox.discard_ready();
                        held.inbox.drop_frame(frame);
                        return Ok(None);
                    }
                    self.tracker.sync_wait_ended();
                }
            }
            b'S' => self.note_parameter(frame),
            b'C' => {
                if self.tracker.is_commit_unconfirmed() {
                    return Err(outcome::unknown());
                }
                let tag = split_cstr(held.inbox.body(frame)).map_or(&b""[..], |(tag, _)| tag);
                if tag == b"DISCARD ALL" {
                    self.statements.deallocated();
                    // What was sent behind it may have pinned the session anew.
                    self.pinned = self.me.mode == super::config::PoolMode::Session || (self.pinned && self.tracker.has_more_behind());
                    held.parameters = None;
                } else if tag == b"DEALLOCATE ALL" {
                    self.statements.deallocated();
                } else if tag == b"DEALLOCATE" {
                    // Which one it was is not followed up, so nothing can be taken along from a standby.
                    self.pinned |= !held.link.to_primary;
                }
                held.replay = None;
            }
            b'Z' => {
                if self.tracker.is_commit_unconfirmed() {
                    return Err(outcome::unknown());
                }
                held.replay = None;
            }
            b'1' => self.statements.parse_answered(),
            b'3' => self.statements.close_answered(),
            b'2' | b't' | b'T' | b'n' | b'A' => {}
            _ => held.replay = None,
        }
        let due = if frame.tag == b'G' { self.tracker.readies_due() } else { 0 };
        self.tracker.received(frame.tag, status);
        match frame.tag {
            b'Z' => self.note_ready(),
            b'G' => self.statements.syncs_ignored(due - self.tracker.readies_due()),
            _ => {}
        }
        self.holding().inbox.pass(frame);
        Ok(None)
    }

    fn note_ready(&mut self) {
        self.statements.batches_answered(self.tracker.readies_due());
        self.slot.set_effect(self.tracker.greatest_effect());
        self.slot.set_stage(if self.tracker.status() == TxStatus::Idle { Stage::Single } else { Stage::Block });
        if self.tracker.is_idle() {
            self.statements.transaction_ended();
            // The transaction is over; one that follows on this connection passes the gate anew (INV-11), even if the client has not
            // read all of this answer yet.
            let held = self.holding();
            held.passage = None;
            held.over = true;
        }
    }

    fn note_parameter(&mut self, frame: &Frame) {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        let (name, rest) = split_cstr(held.inbox.body(frame)).unwrap_or((b"", b""));
        let value = split_cstr(rest).map_or(&b""[..], |(value, _)| value);
        if name == b"standard_conforming_strings" {
            self.backslash_escapes = value == b"off";
        }
        let (name, value) = (name.to_vec(), value.to_vec());
        let baseline = held.lease.server().map(|server| (*server.baseline).clone()).unwrap_or_default();
        held.parameters.get_or_insert(baseline).insert(name, value);
    }

    fn note_error(&mut self, frame: &Frame) -> Result<Option<Flow>, End> {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        let fields = Fields::read(held.inbox.body(frame));
        if fields.is_fatal() {
            if matches!(fields.code, b"57P01" | b"57P02" | b"57P03") {
                return Ok(Some(Flow::Lost));
            }
            held.farewell = true;
        }
        // A read that a standby cannot serve: it writes after all, wants what standbys lack (where the client asked for a standby it gets
        // that error), or was in the way of replay.
        let unfit = self.door != Door::Standby && matches!(fields.code, b"25006" | b"0A000" | b"55000");
        let refused = (unfit || fields.code == b"40001") && !held.link.to_primary;
        if let Some(replay) = held.replay.as_mut().filter(|_| refused) {
            if unfit {
                replay.writes = true;
                self.shared.learn_write(super::request::fingerprint(&replay.bytes, self.backslash_escapes));
            }
            held.refused = true;
            held.inbox.discard_ready();
            held.inbox.drop_frame(frame);
            return Ok(None);
        }
        if held.strayed && fields.code == b"25006" {
            return Err(super::session::tied_to_a_standby());
        }
        if bug::is(Bug::CommitErrorSwallowed) && !fields.is_fatal() && self.tracker.greatest_effect() >= Effect::Commit {
            return self.swallow_commit_error(frame);
        }
        // What commits by itself may have done so before: its error says no more than without a proxy.
        let undone = self.tracker.greatest_effect() < Effect::SelfCommitting;
        let drained = undone && fields.code == b"57014" && held.link.cut_by() == Cut::Drained;
        if drained && held.replay.is_some() {
            // The server says itself that nothing of it was applied, so it waits for the next primary.
            held.refused = true;
            held.inbox.discard_ready();
            held.inbox.drop_frame(frame);
            return Ok(None);
        }
        held.replay = None;
        self.tracker.received(b'E', 0);
        if drained {
            self.out.extend_from_slice(held.inbox.ready());
            held.inbox.discard_ready();
            held.inbox.drop_frame(frame);
            put_error(&mut self.out, Severity::Error, "40001", outcome::DRAINED, Some(outcome::RETRY_HINT));
        } else {
            held.inbox.pass(frame);
        }
        Ok(None)
    }

    /// A seeded bug.
    fn swallow_commit_error(&mut self, frame: &Frame) -> Result<Option<Flow>, End> {
        let held = self.held.as_mut().expect("relay runs only while a server is held");
        self.out.extend_from_slice(held.inbox.ready());
        held.inbox.discard_ready();
        held.inbox.drop_frame(frame);
        put_complete(&mut self.out, "COMMIT");
        Ok(None)
    }

    /// A read that a standby refused runs on the primary, one that a drain cancelled where it was to run.
    async fn run_elsewhere(&mut self) -> Result<(), End> {
        let Some(mut held) = self.held.take() else { return Ok(()) };
        self.slot.set_target(None);
        self.slot.set_effect(Effect::Nothing);
        let (replay, drained) = (held.replay.take(), held.link.to_primary);
        held.part(self.shared.clock.now());
        match replay {
            Some(replay) => {
                let want = if drained { replay.want } else { Want::Primary };
                self.run_again(replay, want).await
            }
            None => Ok(()),
        }
    }

    /// The request that is next gets this for an answer.
    pub fn reject(&mut self, error: NoServer) -> Result<(), End> {
        let (code, message) = match error {
            NoServer::Held { last } => ("08006", super::acquire::held_message(last)),
            NoServer::Cancelled => ("57014", "canceling statement due to user request".to_owned()),
            refused @ NoServer::Refused { .. } => return Err(refused.at_login()),
            NoServer::ClientGone => return Err(End::Quiet),
            NoServer::Shutdown => return Err(super::session::shutting_down()),
        };
        // Behind what the server has said already.
        if let Some(held) = &mut self.held {
            self.out.extend_from_slice(held.inbox.ready());
            held.inbox.discard_ready();
        }
        put_error(&mut self.out, Severity::Error, code, &message, None);
        self.skip_request();
        Ok(())
    }
}
