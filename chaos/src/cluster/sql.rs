//! SQL from a datacenter, as its superuser. For looking and for faults; the workloads keep clients of their own.

use crate::world::Site;
use anyhow::{Context as _, Result, anyhow};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::{Config, Error, NoTls, SimpleQueryMessage};

/// One row, each column as text.
pub type Row = Vec<Option<String>>;

/// Whose listener is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Postgres of the client's own datacenter.
    Own,
    /// The client's own proxy, to the primary.
    Proxy,
}

/// Run `sql` at `address` from within `site`.
///
/// # Errors
/// Not reached, refused, or no answer within `limit`.
pub fn query(site: &Site, address: SocketAddr, password: &str, sql: &str, limit: Duration) -> Result<Vec<Row>> {
    let (sql, password) = (sql.to_owned(), password.to_owned());
    let shown = sql.chars().take(60).collect::<String>();
    let answer = site.runtime().spawn(move || async move { timeout(limit, run(address, &password, &sql)).await });
    let answer = answer.blocking_recv().context("the datacenter's runtime has ended")?;
    let rows = answer.with_context(|| format!("{address}: no answer to `{shown}` within {} s", limit.as_secs()))?;
    rows.map_err(|error| anyhow!("{address}: `{shown}`: {}", in_words(&error)))
}

async fn run(address: SocketAddr, password: &str, sql: &str) -> Result<Vec<Row>, Error> {
    let mut config = Config::new();
    config.host(address.ip().to_string()).port(address.port()).user("postgres").password(password).dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::pin!(connection);
    let messages = tokio::select! {
        messages = client.simple_query(sql) => messages?,
        ended = &mut connection => {
            ended?;
            // The server said goodbye before it answered; the client's own error says so best.
            client.simple_query("").await?
        }
    };
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// With the SQLSTATE, by which outcomes are told apart.
pub fn in_words(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}: {}", db.severity(), db.code().code(), db.message()),
        None => {
            use std::error::Error as _;
            error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
        }
    }
}
