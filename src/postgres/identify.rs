//! `IDENTIFY_SYSTEM` over a replication connection: the only place where a running standby tells the timeline of the WAL it has.
//!
//! The answer on a standby is the end of its flushed WAL where receiving and replaying are on one timeline, else the end of what is
//! replayed. tokio-postgres speaks no replication protocol; this is the little of it that is needed.

use super::error::{Error, io};
use super::session::{Host, Target};
use super::tool::within;
use crate::types::{Lsn, SystemId, Timeline};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::{backend::Message, frontend};
use std::io::{Error as IoError, ErrorKind};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What the server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub system: SystemId,
    pub timeline: Timeline,
    pub lsn: Lsn,
}

/// An open replication connection that streams nothing.
pub(super) struct Identifier {
    stream: UnixStream,
    received: BytesMut,
}

/// Longest message that is accepted: answers here have a hundred bytes, errors a few thousand.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

impl Identifier {
    pub async fn open(target: &Target, limit: Duration) -> Result<Identifier, Error> {
        within(limit, "opening a replication connection", async {
            let Host::Socket(dir) = &target.host else { return Err(Error::Answer("a replication connection over TCP")) };
            let path = dir.join(format!(".s.PGSQL.{}", target.port));
            let stream = UnixStream::connect(&path).await.map_err(io("cannot connect to", &path))?;
            let mut this = Identifier { stream, received: BytesMut::new() };
            this.start(target).await.map_err(io("cannot open a replication connection to", path))?;
            Ok(this)
        })
        .await
    }

    pub async fn identify(&mut self, limit: Duration) -> Result<Identity, Error> {
        within(limit, "IDENTIFY_SYSTEM", async {
            self.ask().await.map_err(io("cannot use the replication connection to", "PostgreSQL"))?.ok_or(Error::Answer("IDENTIFY_SYSTEM"))
        })
        .await
    }

    async fn ask(&mut self) -> Result<Option<Identity>, IoError> {
        self.send(|out| frontend::query("IDENTIFY_SYSTEM", out)).await?;
        let mut identity = None;
        loop {
            match self.message().await? {
                Message::DataRow(row) => {
                    let buffer = row.buffer_bytes().clone();
                    let ranges: Vec<Option<std::ops::Range<usize>>> = row.ranges().collect()?;
                    let text = |column: usize| {
                        let range = ranges.get(column)?.clone()?;
                        std::str::from_utf8(buffer.get(range)?).ok()
                    };
                    identity = parse(text(0), text(1), text(2));
                }
                Message::ReadyForQuery(_) => return Ok(identity),
                _ => {}
            }
        }
    }

    async fn start(&mut self, target: &Target) -> Result<(), IoError> {
        let parameters = [("user", target.user), ("replication", "true"), ("application_name", target.name)];
        self.send(|out| frontend::startup_message(parameters, out)).await?;
        let mut scram: Option<ScramSha256> = None;
        loop {
            match self.message().await? {
                Message::AuthenticationSasl(_) => {
                    let password = target.password.as_deref().unwrap_or_default();
                    let client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    self.send(|out| frontend::sasl_initial_response(SCRAM_SHA_256, client.message(), out)).await?;
                    scram = Some(client);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let client = scram.as_mut().ok_or(ErrorKind::InvalidData)?;
                    client.update(body.data())?;
                    let answer = client.message().to_vec();
                    self.send(|out| frontend::sasl_response(&answer, out)).await?;
                }
                Message::AuthenticationSaslFinal(body) => scram.as_mut().ok_or(ErrorKind::InvalidData)?.finish(body.data())?,
                Message::ReadyForQuery(_) => return Ok(()),
                _ => {}
            }
        }
    }

    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), IoError>) -> Result<(), IoError> {
        let mut out = BytesMut::new();
        write(&mut out)?;
        self.stream.write_all(&out).await
    }

    /// The next message; an error response becomes an error.
    async fn message(&mut self) -> Result<Message, IoError> {
        loop {
            if let Some(message) = Message::parse(&mut self.received)? {
                if let Message::ErrorResponse(body) = message {
                    let fields: Vec<String> = body
                        .fields()
                        .filter(|f| Ok(f.type_() == b'M'))
                        .map(|f| Ok(String::from_utf8_lossy(f.value_bytes()).into_owned()))
                        .collect()?;
                    return Err(IoError::other(fields.join(" ")));
                }
                return Ok(message);
            }
            if self.received.len() > MESSAGE_BYTES_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn parse(system: Option<&str>, timeline: Option<&str>, lsn: Option<&str>) -> Option<Identity> {
    let system = SystemId(system?.parse().ok()?);
    Some(Identity { system, timeline: Timeline(timeline?.parse().ok()?), lsn: lsn?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_read() {
        let identity = parse(Some("7312345678901234567"), Some("4"), Some("0/3000148")).unwrap();
        assert_eq!(identity, Identity { system: SystemId(7_312_345_678_901_234_567), timeline: Timeline(4), lsn: Lsn(0x300_0148) });
        assert_eq!(parse(Some("1"), None, Some("0/0")), None);
    }
}
