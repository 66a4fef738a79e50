//! Settings of the proxy, validated, with every default in one place.

use std::net::SocketAddr;
use std::time::Duration;

/// How long a server connection stays with a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    /// Until the transaction ends (longer for a client with session state: see `classify`).
    #[default]
    Transaction,
    /// Until the client leaves.
    Session,
}

/// What a read on the `auto` listener may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Any standby within `max_lag_bytes`.
    Eventual,
    /// Read your own writes: after its first write a client reads from the primary.
    #[default]
    Session,
    /// Reads go to the primary too.
    Primary,
}

/// An exception for one database, one user, or one pair; the last that matches wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolOverride {
    /// `None` matches each database.
    pub database: Option<String>,
    /// `None` matches each user.
    pub user: Option<String>,
    /// Instead of `Config::mode`.
    pub mode: Option<PoolMode>,
    /// Instead of `Config::pool_size`.
    pub pool_size: Option<u32>,
}

/// Everything that can be set. `Config::default()` listens nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Listeners that split reads from writes.
    pub auto: Vec<SocketAddr>,
    /// Listeners that lead to the primary.
    pub primary: Vec<SocketAddr>,
    /// Listeners that lead to standbys, or read-only to the primary while no standby is fit.
    pub standby: Vec<SocketAddr>,
    /// Threads, each with its own runtime and its own sockets on every address.
    pub workers: usize,
    /// Clients at once; one more is refused with 53300.
    pub max_clients: u32,
    pub mode: PoolMode,
    /// Server connections for one (database, user, node).
    pub pool_size: u32,
    pub overrides: Vec<PoolOverride>,
    pub consistency: Consistency,
    /// A standby that is known to lag more serves no reads.
    pub max_lag_bytes: u64,
    /// Longest wait for a server: a failover, a drain, a full pool. After it 08006.
    pub hold_timeout: Duration,
    /// A client that has not logged in by then is dropped.
    pub login_timeout: Duration,
    /// One attempt at connecting and logging in to a server.
    pub connect_timeout: Duration,
    /// A pooled server connection unused for this long is closed.
    pub server_idle_timeout: Duration,
    /// A pooled server connection of this age is not used again.
    pub server_lifetime: Duration,
    /// A password verifier is asked for again after this.
    pub verifier_ttl: Duration,
    /// Largest message whose text is looked at; a larger one is streamed and treated as a write that changes the session.
    pub inspect_bytes_max: usize,
    /// At a clean stop, transactions get this long to end.
    pub shutdown_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            auto: Vec::new(),
            primary: Vec::new(),
            standby: Vec::new(),
            workers: std::thread::available_parallelism().map_or(1, usize::from).min(16),
            max_clients: 10_000,
            mode: PoolMode::Transaction,
            // Three proxies share the primary's 97 ordinary connections (max_connections 100 less 3 reserved).
            pool_size: 30,
            overrides: Vec::new(),
            consistency: Consistency::Session,
            max_lag_bytes: 16 << 20,
            hold_timeout: Duration::from_secs(30),
            login_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            server_idle_timeout: Duration::from_secs(600),
            server_lifetime: Duration::from_secs(3600),
            verifier_ttl: Duration::from_secs(10),
            inspect_bytes_max: 256 << 10,
            shutdown_grace: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Mode and size of the pool of one (database, user).
    #[must_use]
    pub fn pool(&self, database: &str, user: &str) -> (PoolMode, u32) {
        let mut chosen = (self.mode, self.pool_size);
        for rule in &self.overrides {
            let fits = |want: &Option<String>, have: &str| want.as_deref().is_none_or(|want| want == have);
            if fits(&rule.database, database) && fits(&rule.user, user) {
                chosen = (rule.mode.unwrap_or(chosen.0), rule.pool_size.unwrap_or(chosen.1));
            }
        }
        (chosen.0, chosen.1.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_matching_override_wins() {
        let config = Config {
            overrides: vec![
                PoolOverride { database: Some("app".into()), pool_size: Some(5), ..PoolOverride::default() },
                PoolOverride { user: Some("batch".into()), mode: Some(PoolMode::Session), ..PoolOverride::default() },
            ],
            ..Config::default()
        };
        assert_eq!(config.pool("app", "web"), (PoolMode::Transaction, 5));
        assert_eq!(config.pool("app", "batch"), (PoolMode::Session, 5));
        assert_eq!(config.pool("other", "web"), (PoolMode::Transaction, 30));
    }
}
