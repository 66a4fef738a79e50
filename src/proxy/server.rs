//! One connection to a Postgres: opened with the key that the client's own proof revealed, remembered with the epoch it was opened in.
//!
//! A [`Link`] is the part that others may reach: when the topology changes, every link of an older epoch is shut down at the socket
//! (INV-11), and the session that owns it reads the end of the stream. So no session need watch a second source while it works.

use crate::telemetry::Clock;
use crate::types::{Epoch, Millis, NodeId};
use crate::wire::cancel::CancelKey;
use crate::wire::frame::{Frame, StreamBuffer};
use crate::wire::message::{Fields, put, split_cstr};
use crate::wire::scram::{ClientExchange, ClientKeys, MECHANISM};
use crate::wire::startup;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Settings the server reports, by name.
pub type Parameters = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a connection is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Transactions that may write, in the epoch of the connection.
    Primary,
    /// Reads: the server is a standby, or it is the primary and the connection is read-only.
    Reader,
}

/// Connections of one pool that differ here are not interchangeable.
#[derive(Debug, PartialEq, Eq)]
pub struct Variant {
    pub role: Role,
    /// Of the client's start-up message.
    pub parameters: Vec<(String, String)>,
}

/// Why a link was shut down from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    No,
    /// The topology moved on.
    Fenced,
    /// The drain's deadline passed.
    Drained,
}

/// See the module.
pub struct Link {
    pub stream: TcpStream,
    pub node: NodeId,
    pub epoch: Epoch,
    pub role: Role,
    /// The node was the primary when this was opened.
    pub to_primary: bool,
    /// The server's own key.
    pub key: CancelKey,
    pub address: String,
    cut: AtomicU8,
    /// Cancel requests sent or about to be sent for whoever has it now.
    pub cancels: AtomicU32,
}

impl Link {
    /// Ends the connection under its owner.
    pub fn cut(&self, why: Cut) {
        self.cut.store(why as u8, SeqCst);
        // An error means that it has ended already.
        let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Both);
    }

    /// Marks it for the drain without ending it: a cancel request is on its way.
    pub fn mark_drained(&self) {
        self.cut.store(Cut::Drained as u8, SeqCst);
    }

    /// Whether and why it was cut.
    #[must_use]
    pub fn cut_by(&self) -> Cut {
        match self.cut.load(SeqCst) {
            0 => Cut::No,
            1 => Cut::Fenced,
            _ => Cut::Drained,
        }
    }
}

/// A connection that is logged in and idle, or owned by a session.
pub struct Server {
    pub link: Arc<Link>,
    pub variant: Arc<Variant>,
    /// The worker whose reactor watches the socket.
    pub home: usize,
    /// As reported at login.
    pub baseline: Arc<Parameters>,
    pub opened: Millis,
    pub released: Millis,
    /// Its session may hold an unnamed statement, of whoever made it.
    pub unnamed: bool,
}

impl Server {
    /// Whether something arrived while nobody asked: the server is about to end the connection, or a notice that the next client must
    /// not see. Either way it is not used again.
    #[must_use]
    pub fn has_stirred(&self) -> bool {
        let mut byte = [0u8; 1];
        !matches!(self.link.stream.try_read(&mut byte), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Why no connection came about.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("{address} cannot be reached: {source}")]
    Unreachable { address: String, source: io::Error },
    #[error("{address} did not answer in time")]
    Timeout { address: String },
    /// Starting up, shutting down, too many clients, or not in the role the topology gives it: it may be ready in a moment.
    #[error("{address} is not ready: {reason}")]
    NotYet { address: String, reason: String },
    /// The server's own words, for the client.
    #[error("{address} refused the login: {message} ({code})")]
    Refused { address: String, code: String, message: String },
    #[error("{address} does not speak as expected: {what}")]
    Protocol { address: String, what: &'static str },
}

/// Everything a login needs.
pub struct Target<'a> {
    pub address: &'a str,
    pub node: NodeId,
    pub epoch: Epoch,
    pub is_primary: bool,
    pub user: &'a str,
    pub database: &'a str,
    pub keys: &'a ClientKeys,
    pub variant: &'a Arc<Variant>,
    pub home: usize,
    /// Fresh and printable.
    pub nonce: String,
}

/// A server whose node is gone without a word is noticed after 11 s, also while nothing is being sent to it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

/// Has the kernel ask a silent peer whether it is still there. No TCP_USER_TIMEOUT: it would also end connections to peers that are well
/// and only do not read for a while, as a pager or a COPY that waits for a lock.
///
/// # Errors
/// The socket is broken.
pub fn keep_alive(stream: &TcpStream, idle: Duration, interval: Duration) -> io::Result<()> {
    let asking = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(KEEPALIVE_PROBES);
    socket2::SockRef::from(stream).set_tcp_keepalive(&asking)
}

/// Connects and logs in. Bound it with a timeout.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(target: Target<'_>, clock: Clock) -> Result<Server, ConnectError> {
    let unreachable = |source| ConnectError::Unreachable { address: target.address.to_owned(), source };
    let mut stream = TcpStream::connect(target.address).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    keep_alive(&stream, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL).map_err(unreachable)?;
    // A standby's session must not write even when the node is promoted before the topology says so.
    let read_only = (target.variant.role == Role::Reader).then_some(("default_transaction_read_only", "on"));
    let parameters = target.variant.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).chain(read_only);
    stream.write_all(&startup::write(target.user, target.database, parameters)).await.map_err(unreachable)?;
    let mut login = Login { target: &target, exchange: None, parameters: Parameters::new(), key: CancelKey::default() };
    let mut buffer = StreamBuffer::with_capacity(8 << 10);
    let mut out = Vec::new();
    while !login.run(&mut buffer, &mut out)? {
        stream.write_all(&out).await.map_err(unreachable)?;
        out.clear();
        let space = buffer.space();
        if space.is_empty() {
            return Err(login.protocol("a message of its login is too long"));
        }
        match stream.read(space).await.map_err(unreachable)? {
            0 => return Err(login.not_yet("it closed the connection")),
            n => buffer.received(n),
        }
    }
    let Login { parameters, key, .. } = login;
    let link = Link {
        stream,
        node: target.node,
        epoch: target.epoch,
        role: target.variant.role,
        to_primary: target.is_primary,
        key,
        address: target.address.to_owned(),
        cut: AtomicU8::new(0),
        cancels: AtomicU32::new(0),
    };
    let now = clock.now();
    let (variant, home) = (Arc::clone(target.variant), target.home);
    Ok(Server { link: Arc::new(link), variant, home, baseline: Arc::new(parameters), opened: now, released: now, unnamed: false })
}

struct Login<'a> {
    target: &'a Target<'a>,
    exchange: Option<ClientExchange>,
    parameters: Parameters,
    key: CancelKey,
}

impl Login<'_> {
    /// Works off what arrived. `true`: ready for queries.
    fn run(&mut self, buffer: &mut StreamBuffer, out: &mut Vec<u8>) -> Result<bool, ConnectError> {
        loop {
            let frame = buffer.frame().map_err(|_| self.protocol("a malformed message"))?;
            let Some(frame) = frame.filter(Frame::is_complete) else { return Ok(false) };
            let ready = self.message(frame.tag, buffer.body(&frame), out)?;
            buffer.drop_frame(&frame);
            if ready {
                return Ok(true);
            }
        }
    }

    fn message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Result<bool, ConnectError> {
        match tag {
            b'R' => self.authentication(body, out)?,
            b'S' => {
                if let Some((name, rest)) = split_cstr(body)
                    && let Some((value, _)) = split_cstr(rest)
                {
                    self.parameters.insert(name.to_vec(), value.to_vec());
                }
            }
            b'K' => self.key = CancelKey::read(body).unwrap_or_default(),
            b'E' => return Err(self.refused(&Fields::read(body))),
            b'Z' => return self.check_role().map(|()| true),
            _ => {}
        }
        Ok(false)
    }

    fn authentication(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), ConnectError> {
        let (code, rest) = body.split_first_chunk::<4>().ok_or_else(|| self.protocol("a short authentication request"))?;
        match u32::from_be_bytes(*code) {
            0 => Ok(()),
            10 => {
                let mut offered = rest.split(|b| *b == 0);
                if !offered.any(|name| name == MECHANISM.as_bytes()) {
                    return Err(self.protocol("it does not offer SCRAM-SHA-256"));
                }
                let exchange = ClientExchange::begin(self.target.keys.clone(), &self.target.nonce);
                let first = exchange.client_first();
                put(out, b'p', |body| {
                    body.extend_from_slice(MECHANISM.as_bytes());
                    body.push(0);
                    body.extend_from_slice(&u32::try_from(first.len()).unwrap_or(0).to_be_bytes());
                    body.extend_from_slice(first.as_bytes());
                });
                self.exchange = Some(exchange);
                Ok(())
            }
            11 => {
                let answer = self.exchange.as_mut().and_then(|exchange| exchange.client_final(rest).ok());
                let answer = answer.ok_or_else(|| self.protocol("a malformed SCRAM challenge"))?;
                put(out, b'p', |body| body.extend_from_slice(answer.as_bytes()));
                Ok(())
            }
            12 => match &self.exchange {
                Some(exchange) if exchange.finish(rest).is_ok() => Ok(()),
                _ => Err(self.protocol("its SCRAM signature is wrong: another cluster's server?")),
            },
            _ => Err(self.protocol("pg_hba.conf asks for a password method other than scram-sha-256; change that line to scram-sha-256")),
        }
    }

    /// The topology may be ahead of the server or behind it; writing waits until both agree (INV-11).
    fn check_role(&self) -> Result<(), ConnectError> {
        let in_recovery = self.parameters.get(&b"in_hot_standby"[..]).is_some_and(|value| value == b"on");
        // P3: one that was the primary and starts again shows what nobody had confirmed. Reads that fell back to the primary wait, too.
        let as_primary = self.target.is_primary || self.target.variant.role == Role::Primary;
        if as_primary && in_recovery { Err(self.not_yet("it is still in recovery")) } else { Ok(()) }
    }

    fn refused(&self, fields: &Fields<'_>) -> ConnectError {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match fields.code {
            // Shutting down, crashed, starting up; too many connections.
            b"57P01" | b"57P02" | b"57P03" | b"53300" => self.not_yet(&text(fields.message)),
            code => ConnectError::Refused { address: self.target.address.to_owned(), code: text(code), message: text(fields.message) },
        }
    }

    fn not_yet(&self, reason: &str) -> ConnectError {
        ConnectError::NotYet { address: self.target.address.to_owned(), reason: reason.to_owned() }
    }

    fn protocol(&self, what: &'static str) -> ConnectError {
        ConnectError::Protocol { address: self.target.address.to_owned(), what }
    }
}
