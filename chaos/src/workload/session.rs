//! One client connection on which every statement has a deadline, and every error a stage.
//!
//! A session that timed out or lost its connection is dropped, which closes the socket; it is never used again. The driver of the
//! connection watches for the warning that a wait for standbys was cancelled: a commit told so is not an acknowledgement.
//!
//! Known limit: tokio-postgres hides the command tag, so a COMMIT answered with ROLLBACK would count as done. No session here sends
//! COMMIT after an error, so only a proxy that forgot to tell of one could bring it about, and the checkers would call that a lost write.

use super::history::{Attempt, Door, Fate, Origin};
use super::outcome::{Stage, Trouble};
use super::place::{Login, Ports};
use crate::record::{At, RunClock};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, SimpleQueryMessage, SimpleQueryRow};

/// Where a session goes, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub host: String,
    pub ports: Ports,
    pub door: Door,
    pub login: Login,
}

/// A connection.
pub struct Session {
    client: Client,
    origin: Origin,
    deadline: Duration,
    clock: RunClock,
    warnings: Rc<Cell<u32>>,
    /// Holds the connection's driver; dropping it closes the socket.
    _driver: JoinSet<()>,
}

impl Session {
    /// Opens one.
    ///
    /// # Errors
    /// [`Stage::Connecting`]: refused, no answer within the deadline, or the login failed.
    pub async fn open(target: &Target, origin: Origin, clock: RunClock, deadline: Duration) -> Result<Session, Trouble> {
        let port = match target.door {
            Door::Auto => target.ports.auto,
            Door::Primary => target.ports.primary,
            Door::Standby => target.ports.standby,
            Door::Direct => target.ports.postgres,
        };
        let mut config = Config::new();
        config.host(&target.host).port(port).user(&target.login.user).dbname(&target.login.database).application_name("chaos");
        if let Some(password) = &target.login.password {
            config.password(password);
        }
        let connected = within(deadline, Stage::Connecting, config.connect(NoTls)).await;
        let (client, connection) = connected.map_err(|t| if t.why == "lost" { Trouble { why: "connect".to_owned(), ..t } } else { t })?;
        let warnings = Rc::new(Cell::new(0));
        let mut driver = JoinSet::new();
        driver.spawn_local(drive(connection, Rc::clone(&warnings)));
        Ok(Session { client, origin, deadline, clock, warnings, _driver: driver })
    }

    /// For statements that need more than text.
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    pub fn now(&self) -> At {
        self.clock.now()
    }

    /// `false`: the other side has closed it.
    pub fn is_open(&self) -> bool {
        !self.client.is_closed()
    }

    /// Simple protocol; returns the rows of all statements.
    ///
    /// # Errors
    /// With the given stage.
    pub async fn text(&self, stage: Stage, sql: &str) -> Result<Vec<SimpleQueryRow>, Trouble> {
        let before = self.warnings.get();
        let messages = self.bounded(stage, self.client.simple_query(sql)).await?;
        self.unless_warned(stage, before)?;
        Ok(messages.into_iter().filter_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None }).collect())
    }

    /// Runs a future of [`Session::client`] under the deadline.
    ///
    /// # Errors
    /// With the given stage.
    pub async fn bounded<T>(&self, stage: Stage, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Trouble> {
        let mut result = within(self.deadline, stage, work).await;
        if let Err(trouble) = &mut result {
            trouble.is_usable &= self.is_open();
        }
        result
    }

    /// For writes made through [`Session::client`]: how many cancelled waits this session was warned of so far.
    pub fn warnings(&self) -> u32 {
        self.warnings.get()
    }

    /// An acknowledgement that came with the warning is none.
    ///
    /// # Errors
    /// `warned`, when the count has risen since `before`.
    pub fn unless_warned(&self, stage: Stage, before: u32) -> Result<(), Trouble> {
        if self.warnings.get() == before {
            return Ok(());
        }
        Err(Trouble { stage, why: "warned".to_owned(), is_usable: self.is_open() })
    }

    /// Ends a failed transaction. `false`: the session is of no use any more.
    pub async fn rollback(&self) -> bool {
        self.text(Stage::Body, "ROLLBACK").await.is_ok()
    }

    /// An operation that began at `from` and ends now.
    pub fn attempt<T>(&self, from: At, result: &Result<T, Trouble>, timeline: Option<u32>) -> Attempt {
        let (fate, why) = match result {
            Ok(_) => (Fate::Done, None),
            Err(trouble) => (trouble.fate(), Some(trouble.why.clone())),
        };
        Attempt { origin: self.origin, from, to: self.clock.now(), fate, why, timeline }
    }
}

async fn drive<S, T>(mut connection: Connection<S, T>, warnings: Rc<Cell<u32>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
        if let AsyncMessage::Notice(notice) = message
            && notice.message().contains("synchronous replication")
        {
            warnings.set(warnings.get() + 1);
        }
    }
}

/// Bounds a call of the driver, and names what went wrong.
async fn within<T>(deadline: Duration, stage: Stage, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let code = error.code().map(|code| code.code().to_owned());
            Err(Trouble { stage, is_usable: code.is_some(), why: code.unwrap_or_else(|| "lost".to_owned()) })
        }
        Err(_) => Err(Trouble { stage, why: "timeout".to_owned(), is_usable: false }),
    }
}

/// A column of a text row as a number; `None` where it is NULL, absent or no number.
pub fn number<N: std::str::FromStr>(row: &SimpleQueryRow, column: usize) -> Option<N> {
    row.try_get(column).ok().flatten().and_then(|text| text.parse().ok())
}

/// PostgreSQL's text form of a `bigint[]` without NULLs.
pub fn numbers(text: &str) -> Vec<i64> {
    text.trim_matches(['{', '}']).split(',').filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_read_from_text() {
        assert_eq!(numbers("{1,-2,30}"), vec![1, -2, 30]);
        assert!(numbers("{}").is_empty());
    }
}
