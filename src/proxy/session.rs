//! One client: reads its requests, decides where each transaction goes, and owns a server connection while one is open.
//!
//! ```text
//!   idle ──request──▶ acquire ──▶ relay ──everything answered, no transaction open──▶ idle
//!                        │          │
//!                 08006, 57014      └─ server lost ─▶ replayed | 40001 | 08007
//! ```
//! Here: the idle part and the end. `request` reads what the client asks, `acquire` waits for a server, `relay` moves bytes, `outcome` tells
//! the client the truth when something breaks.

use super::acquire::Want;
use super::buffers::{self, Read};
use super::cancel::{self, Slot, Stage};
use super::classify::{Access, BeginTag, Class, Kind};
use super::config::{Consistency, PoolMode};
use super::login::{Identity, put_greeting};
use super::pause::Passage;
use super::pool::Lease;
use super::protocol::{Effect, Tracker};
use super::request::{Unit, UnitKind, fingerprint};
use super::server::{Cut, Link, Parameters, Role};
use super::shared::{Greeting, Shared};
use super::statements::Statements;
use crate::bug::{self, Bug};
use crate::wire::cancel::CancelKey;
use crate::wire::frame::{HEADER_BYTES, StreamBuffer};
use crate::wire::message::{Severity, TxStatus, put, put_complete, put_error, put_query, put_ready};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::net::TcpStream;

/// Which listener the client came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Auto,
    Primary,
    Standby,
}

/// Why a session is over.
#[derive(Debug)]
pub enum End {
    /// The client left, or was told already.
    Quiet,
    /// To be told before hanging up.
    Fatal { code: &'static str, message: String },
}

/// The transaction block as the client sees it while no server is held.
#[derive(Debug, Default)]
pub enum Block {
    #[default]
    None,
    /// BEGIN was answered here; no server has seen it.
    Deferred { text: Vec<u8>, access: Access },
    /// The server was lost within the block, and the client does not know yet.
    Lost,
    /// The client knows; it must give the block up.
    Failed,
}

/// A server in use.
pub struct Held {
    pub lease: Lease,
    pub link: Arc<Link>,
    /// Counts a transaction that may be open on the primary; `None` between transactions of a pinned client.
    pub passage: Option<Passage>,
    pub inbox: StreamBuffer,
    pub out: Vec<u8>,
    /// The answer to a deferred BEGIN is still to come; the client has had it.
    pub swallow: bool,
    /// Answers to statements that are made again or closed here, which nobody asked for: their ReadyForQuery are still to come.
    pub remade: usize,
    /// Kept over the end of a transaction, because of what the session has there.
    pub kept: bool,
    /// Its transaction was answered: the next one is no longer the one that this server was chosen for.
    pub over: bool,
    /// A standby in a transaction that could have gone to the primary, had the session not been tied to it.
    pub strayed: bool,
    /// A read of which the client has seen nothing yet: it may run again elsewhere.
    pub replay: Option<Replay>,
    /// Its answer is thrown away up to ReadyForQuery, then it runs on the primary.
    pub refused: bool,
    /// The stream has ended; what is in `inbox` is the last of it.
    pub ended: bool,
    /// The server said farewell, and the client has read it.
    pub farewell: bool,
    /// As reported by the server since login, once anything changed.
    pub parameters: Option<Parameters>,
}

/// What it takes to run a read again.
pub struct Replay {
    pub bytes: Vec<u8>,
    /// The server refuses what it may write after all, so that it can run again whatever became of it. Elsewhere it may have been applied
    /// unless the server says otherwise.
    pub harmless: bool,
    /// A standby showed that it is no read: it runs on the primary, once.
    pub writes: bool,
    /// Where it was to run: another server must be as good, or the client could read older data than before.
    pub want: Want,
    pub attempts: u32,
}

/// See the module.
pub struct Session {
    pub shared: Arc<Shared>,
    pub worker: usize,
    pub door: Door,
    pub stream: TcpStream,
    pub me: Identity,
    pub slot: Arc<Slot>,
    pub inbox: StreamBuffer,
    pub out: Vec<u8>,
    pub tracker: Tracker,
    pub held: Option<Held>,
    pub block: Block,
    /// After an error of the proxy's own in an extended batch.
    pub skip_to_sync: bool,
    pub statements: Statements,
    /// Something in the server's session may be relied upon later.
    pub pinned: bool,
    /// Under `Consistency::Session` reads follow the writes from now on.
    pub wrote: bool,
    /// `standard_conforming_strings = off`.
    pub backslash_escapes: bool,
    /// The class of the first statement of the unit under way, if it was judged already.
    pub judged: Option<Class>,
}

/// Longest wait for a departing client to read its last message, and for a server to be cleaned.
const FAREWELL: Duration = Duration::from_secs(5);
/// The same for a server that its client only moves on from, which waits meanwhile.
const MOVING: Duration = Duration::from_millis(250);

impl Session {
    /// A client that has logged in.
    #[must_use]
    pub fn new(shared: Arc<Shared>, worker: usize, door: Door, stream: TcpStream, me: Identity, slot: Arc<Slot>) -> Session {
        let pinned = me.mode == PoolMode::Session;
        Session {
            shared,
            worker,
            door,
            stream,
            me,
            slot,
            inbox: StreamBuffer::default(),
            out: Vec::new(),
            tracker: Tracker::default(),
            held: None,
            block: Block::None,
            skip_to_sync: false,
            statements: Statements::default(),
            pinned,
            wrote: false,
            backslash_escapes: false,
            judged: None,
        }
    }

    /// Greets and serves the client until it leaves.
    pub async fn run(mut self, key: CancelKey) {
        let end = match self.greet(key).await {
            Ok(()) => loop {
                let step = if self.held.is_some() { self.relay().await } else { self.idle().await };
                if let Err(end) = step {
                    break end;
                }
            },
            Err(end) => end,
        };
        if let End::Fatal { code, message } = end {
            put_error(&mut self.out, Severity::Fatal, code, &message, None);
            // A client that does not read is left behind.
            let _ = tokio::time::timeout(FAREWELL, self.flush_out()).await;
        }
        self.part().await;
    }

    /// Tells the settings of a real server, from memory or from one that is opened now: so a wrong database shows at login.
    async fn greet(&mut self, key: CancelKey) -> Result<(), End> {
        let role = if self.door == Door::Standby { Role::Reader } else { Role::Primary };
        let kind = Greeting {
            database: self.me.database.clone(),
            user: self.me.user.clone(),
            role,
            parameters: self.me.primary.parameters.clone(),
        };
        let parameters = match self.shared.greeting(&kind) {
            Some(parameters) => parameters,
            None => {
                let parameters = self.first_parameters(role).await?;
                self.shared.remember_greeting(kind, Arc::clone(&parameters));
                parameters
            }
        };
        self.backslash_escapes = parameters.get(&b"standard_conforming_strings"[..]).is_some_and(|value| value == b"off");
        put_greeting(&mut self.out, &parameters, key);
        Ok(())
    }

    async fn first_parameters(&mut self, role: Role) -> Result<Arc<Parameters>, End> {
        // While the primary is away a standby can tell the settings as well, all but its role.
        let away = role == Role::Primary && self.shared.gate.open().is_none() && self.reader_node().is_some();
        let want = if away || role == Role::Reader { Want::Reader } else { Want::Primary };
        let (lease, passage) = match self.acquire(want).await {
            Ok(acquired) => acquired,
            Err(error) => return Err(error.at_login()),
        };
        let mut parameters = lease.server().map(|server| Arc::clone(&server.baseline)).unwrap_or_default();
        drop(passage);
        lease.give_back();
        if away {
            let own = Arc::make_mut(&mut parameters);
            own.insert(b"in_hot_standby".to_vec(), b"off".to_vec());
            own.insert(b"default_transaction_read_only".to_vec(), b"off".to_vec());
        }
        Ok(parameters)
    }

    /// Writes everything that is for the client and not from a server.
    pub async fn flush_out(&mut self) -> Result<(), End> {
        let mut nothing = StreamBuffer::default();
        loop {
            match buffers::write(&self.stream, &mut self.out, &mut nothing) {
                Ok(true) => return Ok(()),
                Ok(false) => self.stream.writable().await.map_err(|_| End::Quiet)?,
                Err(_) => return Err(End::Quiet),
            }
        }
    }

    /// Waits for a request and begins to serve it.
    async fn idle(&mut self) -> Result<(), End> {
        let unit = loop {
            if let Some(unit) = self.next_unit()? {
                break unit;
            }
            self.flush_out().await?;
            buffers::detach(&mut self.inbox);
            self.hear().await?;
        };
        if unit.kind == UnitKind::Terminate {
            return Err(End::Quiet);
        }
        let answered = match self.block {
            Block::Lost | Block::Failed => {
                self.answer_in_failed_block(&unit);
                true
            }
            _ if unit.kind == UnitKind::Unprepared => {
                // What the server has under no name is another client's.
                put_error(&mut self.out, Severity::Error, "26000", "unnamed prepared statement does not exist", None);
                self.skip_request();
                true
            }
            Block::Deferred { .. } => unit.kind == UnitKind::Query && self.ends_deferred_block(&unit),
            Block::None => unit.kind == UnitKind::Query && self.defers(&unit),
        };
        if answered { Ok(()) } else { self.start(unit).await }
    }

    /// Waits until the client says something.
    async fn hear(&mut self) -> Result<(), End> {
        loop {
            tokio::select! {
                biased;
                ready = self.stream.readable() => ready.map_err(|_| End::Quiet)?,
                () = self.shared.shutdown.cancelled() => return Err(shutting_down()),
            }
            match buffers::read(&self.stream, &mut self.inbox) {
                Read::Bytes => return Ok(()),
                Read::Later => buffers::detach(&mut self.inbox),
                Read::Ended => return Err(End::Quiet),
                Read::Full => {
                    let wider = self.inbox.capacity() * 2;
                    self.inbox.grow(wider);
                    return Ok(());
                }
            }
        }
    }

    /// Answers BEGIN here, so that the first statement can choose the server and wait for it.
    fn defers(&mut self, unit: &Unit) -> bool {
        let Kind::Begin { access, tag } = unit.class.kind else { return false };
        if self.me.mode == PoolMode::Session || self.pinned {
            return false;
        }
        let Some(text) = self.take_query() else { return false };
        put_complete(&mut self.out, if tag == BeginTag::Begin { "BEGIN" } else { "START TRANSACTION" });
        put_ready(&mut self.out, TxStatus::InTransaction);
        self.block = Block::Deferred { text, access };
        true
    }

    /// Ends a block of which no server knows.
    fn ends_deferred_block(&mut self, unit: &Unit) -> bool {
        let tag = match unit.class.kind {
            Kind::Commit { plain: true } => "COMMIT",
            Kind::Rollback { plain: true } => "ROLLBACK",
            _ => return false,
        };
        if self.take_query().is_none() {
            return false;
        }
        put_complete(&mut self.out, tag);
        put_ready(&mut self.out, TxStatus::Idle);
        self.block = Block::None;
        true
    }

    /// Gets a server for the unit and hands over to the relay.
    async fn start(&mut self, mut unit: Unit) -> Result<(), End> {
        let learned = unit.class.kind == Kind::Read && self.is_learned_write(unit.len);
        if learned {
            unit.class.kind = Kind::Write;
        }
        let want = self.want(&unit);
        self.flush_out().await?;
        let (lease, passage) = match self.acquire(want).await {
            Ok(acquired) => acquired,
            Err(error) => return self.reject(error),
        };
        let (text, deferred) = match std::mem::take(&mut self.block) {
            Block::Deferred { text, .. } => (text, true),
            Block::None | Block::Lost | Block::Failed => (Vec::new(), false),
        };
        let mut held = Held::new(lease, passage);
        if !deferred {
            held.forget_unnamed(self.inbox.unscanned());
        }
        for body in self.statements.unpack() {
            put(&mut held.out, b'P', |message| message.extend_from_slice(&body));
            // Each for itself: one that fails here, its table dropped meanwhile, leaves the others.
            put(&mut held.out, b'S', |_| {});
            held.remade += 1;
        }
        if deferred {
            put_query(&mut held.out, &text);
            held.set_unnamed(false);
            held.swallow = true;
            self.tracker.block_opened();
        } else if (unit.class.kind == Kind::Read || bug::is(Bug::ReplayUnknownWrite)) && !self.is_tied() {
            let bytes = self.inbox.unscanned().get(..unit.len).filter(|bytes| !bytes.is_empty());
            let harmless = held.refuses_writes() || bug::is(Bug::ReplayUnknownWrite) || bug::is(Bug::RereadElsewhere);
            held.replay = bytes.map(|bytes| Replay { bytes: bytes.to_vec(), harmless, writes: false, want, attempts: 0 });
        }
        // What was learned of a batch is held against its first statement.
        self.judged = (unit.kind == UnitKind::Query || learned).then_some(unit.class);
        self.hold(held);
        Ok(())
    }

    /// The session has this server now.
    pub fn hold(&mut self, held: Held) {
        if held.replay.as_ref().is_some_and(|replay| !replay.harmless) {
            // A drain that finds it before it is sent must not take it for nothing.
            self.slot.set_effect(Effect::Read);
        }
        self.slot.set_stage(if held.swallow { Stage::Block } else { Stage::Single });
        self.slot.set_target(Some(Arc::clone(&held.link)));
        self.held = Some(held);
    }

    /// Where the unit goes.
    fn want(&self, unit: &Unit) -> Want {
        match self.door {
            Door::Primary if bug::is(Bug::ReadOnStandby) && unit.class.kind == Kind::Read => return Want::Any,
            Door::Primary => return Want::Primary,
            Door::Standby => return Want::Reader,
            Door::Auto => {}
        }
        let follows_writes = match self.shared.config.consistency {
            Consistency::Eventual => false,
            Consistency::Session => self.wrote && !bug::is(Bug::ForgetOwnWrites),
            Consistency::Primary => true,
        };
        if follows_writes || self.is_tied() || unit.class.pins {
            return Want::Primary;
        }
        let reads = match &self.block {
            // A batch that leaves a statement behind would keep its server, also for the writes that follow the block.
            Block::Deferred { access: Access::ReadOnly, .. } => unit.kind != UnitKind::Batch || unit.class.kind == Kind::Read,
            Block::Deferred { access: Access::Any, .. } => unit.class.kind == Kind::SetReadOnly,
            _ => matches!(unit.class.kind, Kind::Read | Kind::Begin { access: Access::ReadOnly, .. }),
        };
        if reads && !self.is_learned_write(unit.len) { Want::Any } else { Want::Primary }
    }

    /// Whether a standby refused what is said in the next `len` bytes.
    pub fn is_learned_write(&self, len: usize) -> bool {
        let messages = self.inbox.unscanned().get(..len);
        self.shared.has_learned() && messages.is_some_and(|unit| self.shared.is_learned_write(fingerprint(unit, self.backslash_escapes)))
    }

    /// Whether its server's session has what it relies on, or the next one's will have it.
    fn is_tied(&self) -> bool {
        self.pinned || self.statements.has_named()
    }

    /// Whether the next transaction begins at a standby only because the last one left something there.
    #[must_use]
    pub fn is_astray(&self) -> bool {
        self.door == Door::Auto && self.held.as_ref().is_some_and(|held| held.kept && !held.link.to_primary)
    }

    /// Whether the next transaction would begin at a kept standby that is no longer to be read (P3).
    #[must_use]
    pub fn is_unfit(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.kept && !held.link.to_primary && !self.shared.is_fit(held.link.node))
    }

    /// Whether what it has at its standby can be made again elsewhere.
    pub fn may_move(&self) -> bool {
        self.is_astray() && !self.pinned && !self.statements.awaits_bind()
    }

    /// A transaction begins astray: one that only reads may, any other takes its named statements along to where it belongs. What a
    /// session set, or named by PREPARE, cannot be taken along; there the standby itself tells what is a write (see `note_error`).
    /// `None` until enough has arrived to judge it.
    pub fn may_stay(&mut self) -> Result<Option<bool>, End> {
        let Some(unit) = self.next_unit()? else { return Ok(None) };
        let only_reads = matches!(unit.class.kind, Kind::Begin { access: Access::ReadOnly, .. });
        let stays = (only_reads && !self.is_unfit()) || !self.may_move();
        if let Some(held) = self.held.as_mut().filter(|_| stays) {
            held.kept = false;
            held.over = false;
            held.strayed = !only_reads;
            self.slot.set_stage(Stage::Single);
        }
        Ok(Some(stays))
    }

    /// Gives the server back between transactions, clean, and keeps what is made again on the next one.
    pub async fn move_on(&mut self) {
        self.slot.set_target(None);
        if let Some(held) = self.held.take() {
            held.part_clean(TxStatus::Idle, MOVING, self.shared.clock.now()).await;
        }
        self.statements.moved();
    }

    /// After everything was answered outside a transaction: `true` when the server went back to its pool.
    pub fn release(&mut self) -> bool {
        let Some(held) = &mut self.held else { return true };
        held.passage = None;
        held.replay = None;
        self.slot.set_effect(Effect::Nothing);
        self.slot.set_stage(Stage::None);
        if let Some(now) = &held.parameters
            && held.lease.server().is_some_and(|server| *server.baseline != *now)
        {
            // A SET that no text showed (in a function, say): the next client must not inherit it, nor this one lose it.
            self.pinned = true;
        }
        if self.pinned || self.statements.has_named() || self.statements.awaits_bind() {
            buffers::detach(&mut held.inbox);
            held.kept = true;
            return false;
        }
        self.slot.set_target(None);
        self.statements.clear();
        if let Some(held) = self.held.take() {
            held.part(self.shared.clock.now());
        }
        true
    }

    /// A statement nobody waits for any more is stopped; a commit is left to end by itself, also the one behind a single write: cancelling
    /// its wait for standbys would show others what may yet be lost.
    async fn abandon(&self, link: &Link) {
        if self.tracker.is_settled() || self.tracker.greatest_effect() >= Effect::Commit {
            return;
        }
        let may_be_ending = link.to_primary && self.tracker.decides_writes();
        if !may_be_ending || !cancel::waits_for_standbys(&self.shared.control, link).await {
            cancel::send(link).await;
        }
    }

    /// The client is gone: leave its server as the next one expects it, or close it.
    async fn part(&mut self) {
        self.slot.set_target(None);
        let Some(held) = self.held.take() else { return };
        let sent = held.out.is_empty() && self.inbox.ready().is_empty() && !self.inbox.is_mid_message();
        let settled = self.tracker.is_settled() && sent && held.inbox.is_empty() && !held.ended;
        if !settled {
            self.abandon(&held.link).await;
            return;
        }
        if bug::is(Bug::LeakTransaction) {
            held.part(self.shared.clock.now());
            return;
        }
        held.part_clean(self.tracker.status(), FAREWELL, self.shared.clock.now()).await;
    }
}

/// What a client reads whose session cannot leave its standby, and whose write that one has refused.
#[must_use]
pub fn tied_to_a_standby() -> End {
    let message = "what this session set or prepared is on a standby, since a block that only reads began there: \
                   nothing of this transaction was applied; connect again";
    End::Fatal { code: "57P01", message: message.to_owned() }
}

/// What a client reads when the node stops.
#[must_use]
pub fn shutting_down() -> End {
    End::Fatal { code: "57P01", message: "terminating connection because the proxy is shutting down; connect to another member".to_owned() }
}

impl Held {
    /// A server from the pool.
    #[must_use]
    pub fn new(lease: Lease, passage: Option<Passage>) -> Held {
        let link = Arc::clone(&lease.server().expect("acquire gives leases with a server").link);
        Held {
            lease,
            link,
            passage,
            inbox: StreamBuffer::default(),
            out: Vec::new(),
            swallow: false,
            remade: 0,
            kept: false,
            over: false,
            strayed: false,
            replay: None,
            refused: false,
            ended: false,
            farewell: false,
            parameters: None,
        }
    }

    /// Whether nothing can be written here, whatever a read calls: the text of a statement does not show that. In a read-only transaction
    /// PostgreSQL lets nobody make it another one; for the next one only a setting could, which is reported.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        let reported = self.parameters.as_ref().or_else(|| self.lease.server().map(|server| &*server.baseline));
        let is_on = |parameters: &Parameters| parameters.get(&b"default_transaction_read_only"[..]).is_some_and(|value| value == b"on");
        !self.link.to_primary || (self.link.role == Role::Reader && reported.is_some_and(is_on))
    }

    /// Takes away the unnamed statement that another client may have left, so that PostgreSQL itself answers 26000 to a Bind that means it.
    /// Not needed where the first of `messages` does so: a Query, or a Parse of the unnamed statement, even if it fails.
    pub fn forget_unnamed(&mut self, messages: &[u8]) {
        let replaced = messages.first() == Some(&b'Q') || (messages.first() == Some(&b'P') && messages.get(HEADER_BYTES) == Some(&0));
        if let Some(server) = self.lease.server_mut().filter(|server| server.unnamed && !replaced) {
            server.unnamed = false;
            put(&mut self.out, b'C', |message| message.extend_from_slice(b"S\0"));
            put(&mut self.out, b'S', |_| {});
            self.remade += 1;
        }
    }

    /// What the next client may find in its session under no name.
    pub fn set_unnamed(&mut self, unnamed: bool) {
        if let Some(server) = self.lease.server_mut() {
            server.unnamed = unnamed;
        }
    }

    /// Back to the pool if nothing speaks against it, else closed.
    pub fn part(mut self, now: crate::types::Millis) {
        self.passage = None;
        buffers::detach(&mut self.inbox);
        let clean = !self.ended && self.link.cut_by() == Cut::No && self.link.cancels.load(SeqCst) == 0 && self.parameters.is_none();
        if let Some(server) = self.lease.server_mut() {
            server.released = now;
        }
        if clean {
            self.lease.give_back();
        }
    }

    /// Back to the pool without a trace of its session; closed where that fails.
    async fn part_clean(mut self, status: TxStatus, patience: Duration, now: crate::types::Millis) {
        let (mut cleaning, mut readies) = (Vec::new(), 1);
        if status != TxStatus::Idle {
            put_query(&mut cleaning, b"ROLLBACK");
            readies += 1;
        }
        put_query(&mut cleaning, b"DISCARD ALL");
        if matches!(tokio::time::timeout(patience, self.clean(cleaning, readies)).await, Ok(true)) {
            self.parameters = None;
            self.set_unnamed(false);
            self.part(now);
        }
    }

    /// Sends `queries` and reads up to the last ReadyForQuery. `true`: no error, no transaction.
    async fn clean(&mut self, mut queries: Vec<u8>, mut readies: usize) -> bool {
        let mut nothing = StreamBuffer::default();
        while !matches!(buffers::write(&self.link.stream, &mut queries, &mut nothing), Ok(true)) {
            if self.link.stream.writable().await.is_err() {
                return false;
            }
        }
        loop {
            match buffers::read(&self.link.stream, &mut self.inbox) {
                Read::Later => {
                    if self.link.stream.readable().await.is_err() {
                        return false;
                    }
                }
                Read::Bytes => {}
                Read::Full | Read::Ended => return false,
            }
            while let Ok(Some(frame)) = self.inbox.frame() {
                if !frame.is_complete() {
                    break;
                }
                let status = self.inbox.body(&frame).first().copied();
                self.inbox.drop_frame(&frame);
                match frame.tag {
                    b'E' => return false,
                    b'Z' if readies == 1 => return status == Some(b'I') && self.inbox.is_empty(),
                    b'Z' => readies -= 1,
                    _ => {}
                }
            }
        }
    }
}
