//! Connections of Trilithon to its own server: over the unix socket, as superuser, each wait bounded.

use super::error::Error;
use super::process::lock;
use super::tool::within;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

/// Where and as whom to connect.
#[derive(Clone)]
pub(super) struct Target {
    pub host: Host,
    pub port: u16,
    pub user: &'static str,
    pub password: Option<String>,
    /// Server settings of the session, as `-c` options.
    pub options: String,
    pub name: &'static str,
}

#[derive(Clone)]
pub(super) enum Host {
    Socket(PathBuf),
    Tcp(String),
}

impl Target {
    /// Our own server. Nothing that users create can shadow what we call, and no commit of ours waits for a standby unless it says so.
    pub fn local(run: &Path, port: u16, password: Option<String>, major: u32) -> Target {
        let mut options = String::from(
            "-c search_path=pg_catalog -c synchronous_commit=local -c statement_timeout=0 -c lock_timeout=0 -c log_statement=none",
        );
        options.push_str(" -c log_min_duration_statement=-1 -c default_transaction_read_only=off -c client_min_messages=warning");
        if major >= 17 {
            // A user's login trigger must not be able to hold up high availability.
            options.push_str(" -c event_triggers=off");
        }
        Target { host: Host::Socket(run.to_path_buf()), port, user: super::conf::SUPERUSER, password, options, name: "trilithon_control" }
    }

    fn describe(&self) -> String {
        match &self.host {
            Host::Socket(dir) => format!("{}/.s.PGSQL.{}", dir.display(), self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
        }
    }

    fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        match &self.host {
            Host::Socket(dir) => config.host_path(dir),
            Host::Tcp(host) => config.host(host),
        };
        config.port(self.port).user(self.user).dbname("postgres").application_name(self.name).options(&self.options);
        if let Some(password) = &self.password {
            config.password(password);
        }
        config
    }
}

/// One open connection. Dropping it closes it.
pub(super) struct Session {
    client: Client,
    warnings: Arc<Mutex<Vec<String>>>,
    _driver: JoinSet<()>,
}

/// Warnings kept per session: one is enough to distrust it.
const WARNINGS_MAX: usize = 8;

impl Session {
    pub async fn open(target: &Target, limit: Duration) -> Result<Session, Error> {
        within(limit, "connecting to PostgreSQL", async {
            let refused = |source| Error::Connect { target: target.describe(), source };
            let (client, mut connection) = target.config().connect(NoTls).await.map_err(refused)?;
            let warnings = Arc::new(Mutex::new(Vec::new()));
            let heard = Arc::clone(&warnings);
            let mut driver = JoinSet::new();
            driver.spawn(async move {
                while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    if let AsyncMessage::Notice(notice) = message {
                        let mut heard = lock(&heard);
                        if heard.len() < WARNINGS_MAX {
                            heard.push(notice.message().to_owned());
                        }
                    }
                }
            });
            Ok(Session { client, warnings, _driver: driver })
        })
        .await
    }

    /// Has the connection ended?
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// What the server warned of in this session.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    /// The rows of all statements in `sql`, in order, through one round trip.
    pub async fn rows(&self, sql: &str, limit: Duration) -> Result<Vec<SimpleQueryRow>, Error> {
        within(limit, "a query to PostgreSQL", async {
            let messages = self.client.simple_query(sql).await?;
            Ok(messages.into_iter().filter_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None }).collect())
        })
        .await
    }

    /// The first column of the first row.
    pub async fn value(&self, sql: &str, limit: Duration) -> Result<Option<String>, Error> {
        let rows = self.rows(sql, limit).await?;
        Ok(rows.first().and_then(|r| r.try_get(0).ok().flatten()).map(str::to_owned))
    }

    pub async fn run(&self, sql: &str, limit: Duration) -> Result<(), Error> {
        self.rows(sql, limit).await.map(drop)
    }
}

/// A SQL string literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
