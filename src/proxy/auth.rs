//! Password verifiers, read from Postgres itself: there is no password list to keep.
//!
//! The local Postgres is asked first; while it is down, the other members, which hold the same roles. Answers are kept for a short time, and
//! for as long as nobody can be asked: an outage of Postgres must not lock out users who are held through it.

use super::Control;
use crate::cluster::Topology;
use crate::telemetry::Clock;
use crate::types::Millis;
use crate::wire::scram::Verifier;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{Client, Config, NoTls};

/// One attempt at asking one server.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Users remembered; beyond it all are forgotten and asked for again.
const USERS_MAX: usize = 10_000;

/// Questions waiting for the one connection.
const QUEUE: usize = 256;

/// Nobody could be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no member could be asked for the user's password verifier; wait until one is up")]
pub struct Unavailable;

/// `None`: this user cannot log in.
type Answer = Option<Verifier>;

struct Ask {
    user: String,
    reply: oneshot::Sender<Result<Answer, Unavailable>>,
}

/// What sessions ask.
pub struct Verifiers {
    known: Mutex<HashMap<String, (Answer, Millis)>>,
    ask: mpsc::Sender<Ask>,
    ttl: Duration,
    clock: Clock,
}

/// The other end, run by the control thread.
pub struct Reader {
    asked: mpsc::Receiver<Ask>,
    control: Control,
    connection: Option<Connection>,
}

/// Both ends.
pub fn verifiers(control: Control, ttl: Duration, clock: Clock) -> (Verifiers, Reader) {
    let (ask, asked) = mpsc::channel(QUEUE);
    (Verifiers { known: Mutex::default(), ask, ttl, clock }, Reader { asked, control, connection: None })
}

impl Verifiers {
    /// The user's verifier.
    ///
    /// # Errors
    /// Nobody could be asked, and nothing was known.
    pub async fn get(&self, user: &str) -> Result<Answer, Unavailable> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(user).cloned();
        if let Some((answer, at)) = &known
            && self.clock.now().since(*at) < self.ttl
        {
            return Ok(answer.clone());
        }
        let (reply, answer) = oneshot::channel();
        let asked = self.ask.send(Ask { user: user.to_owned(), reply }).await;
        let answer = match asked {
            Ok(()) => answer.await.unwrap_or(Err(Unavailable)),
            Err(_) => Err(Unavailable),
        };
        match (answer, known) {
            (Ok(answer), _) => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.len() >= USERS_MAX {
                    known.clear();
                }
                known.insert(user.to_owned(), (answer.clone(), self.clock.now()));
                Ok(answer)
            }
            (Err(Unavailable), Some((answer, _))) => Ok(answer),
            (Err(Unavailable), None) => Err(Unavailable),
        }
    }

    /// A login failed: the password may have changed.
    pub fn forget(&self, user: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(user);
    }
}

impl Reader {
    /// Answers until every asker is gone.
    pub async fn run(mut self, topology: impl Fn() -> Arc<Topology>) {
        while let Some(ask) = self.asked.recv().await {
            let answer = self.lookup(&ask.user, &topology()).await;
            // The client may have left meanwhile.
            let _ = ask.reply.send(answer);
        }
    }

    async fn lookup(&mut self, user: &str, topology: &Topology) -> Result<Answer, Unavailable> {
        if let Some(connection) = &self.connection {
            match tokio::time::timeout(TIMEOUT, connection.verifier(user)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(_)) | Err(_) => self.connection = None,
            }
        }
        let local = self.control.local_host.iter().map(|host| (host.clone(), self.control.local_port));
        let members = topology.backends.values().filter_map(|backend| {
            let (host, port) = backend.address.rsplit_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        });
        for (host, port) in local.chain(members).collect::<Vec<_>>() {
            let attempt = async {
                let connection = Connection::open(&self.control, &host, port).await?;
                let answer = connection.verifier(user).await?;
                Ok::<_, tokio_postgres::Error>((connection, answer))
            };
            match tokio::time::timeout(TIMEOUT, attempt).await {
                Ok(Ok((connection, answer))) => {
                    self.connection = Some(connection);
                    return Ok(answer);
                }
                Ok(Err(error)) => tracing::debug!(host, port, %error, "verifier could not be read here"),
                Err(_) => tracing::debug!(host, port, "verifier could not be read here in time"),
            }
        }
        Err(Unavailable)
    }
}

/// A superuser's connection and the task that drives it.
pub struct Connection {
    client: Client,
    _driver: tokio::task::JoinSet<()>,
}

impl Connection {
    /// Connects with the control user. Bound it with a timeout.
    ///
    /// # Errors
    /// As tokio-postgres reports.
    pub async fn open(control: &Control, host: &str, port: u16) -> Result<Connection, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host(host).port(port).user(&control.user).dbname("postgres").application_name("trilithon proxy");
        if let Some(password) = (control.password)() {
            config.password(password);
        }
        let (client, connection) = config.connect(NoTls).await?;
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(async move {
            // Its end shows at the next question.
            let _ = connection.await;
        });
        Ok(Connection { client, _driver: driver })
    }

    /// Uses the connection once.
    pub async fn with<'a, T, F: Future<Output = T>>(&'a self, ask: impl FnOnce(&'a Client) -> F) -> T {
        ask(&self.client).await
    }

    async fn verifier(&self, user: &str) -> Result<Answer, tokio_postgres::Error> {
        let sql = "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname OPERATOR(pg_catalog.=) $1::pg_catalog.text AND rolcanlogin \
                   AND coalesce(rolvaliduntil OPERATOR(pg_catalog.>) pg_catalog.now(), true)";
        let row = self.client.query_opt(sql, &[&user]).await?;
        let text: Option<String> = row.and_then(|row| row.get(0));
        Ok(text.as_deref().and_then(Verifier::parse))
    }
}
