//! The configuration as the rest of the program reads it: checked, typed, complete.

use super::HostPort;
use crate::cluster::{MemberKind, Settings, Tags};
use crate::telemetry::LogFormat;
use crate::types::NodeName;
use std::path::PathBuf;
use std::time::Duration;

/// All of one node's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: NodeConfig,
    pub cluster: ClusterConfig,
    pub postgres: PostgresConfig,
    pub consensus: ConsensusConfig,
    /// Seeds the replicated settings at the creation of the cluster; `postgres.parameters` and `postgres.hba` are in it.
    pub settings: Settings,
    pub proxy: ProxyConfig,
    pub api: ApiConfig,
    pub telemetry: TelemetryConfig,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    pub name: NodeName,
    pub datacenter: String,
    pub data_dir: PathBuf,
    pub kind: MemberKind,
    pub tags: Tags,
}

/// Where the database of a new cluster comes from; of no effect once the peers know a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// One member runs initdb.
    New,
    /// This node's data directory becomes the database; the other members copy it.
    Existing,
}

/// A member's gRPC address, as others reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: NodeName,
    pub address: HostPort,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    pub name: String,
    /// All members, this node too, in the order of the file.
    pub peers: Vec<Peer>,
    pub bootstrap: Bootstrap,
}

impl ClusterConfig {
    /// The peer called `name`.
    #[must_use]
    pub fn peer(&self, name: &NodeName) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == *name)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct PostgresConfig {
    /// `None`: look for it.
    pub bin_dir: Option<PathBuf>,
    pub port: u16,
    /// Value of listen_addresses.
    pub listen: String,
    /// As other members reach it.
    pub advertise: HostPort,
    /// System user that runs Postgres; `None`: the one that runs this process.
    pub os_user: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConsensusConfig {
    pub heartbeat: Duration,
    /// Lower end of the randomised election timeout.
    pub election_timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    #[default]
    Transaction,
    Session,
}

/// What a read on a standby may miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Nothing that the same session wrote.
    #[default]
    Session,
    /// Anything not yet replayed.
    Eventual,
    /// Nothing: reads go to the primary.
    Primary,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    pub auto: HostPort,
    pub primary: HostPort,
    pub standby: HostPort,
    pub mode: PoolMode,
    pub consistency: Consistency,
    /// Server connections per database, user and node.
    pub pool_size: usize,
    pub max_clients: usize,
    pub hold_timeout: Duration,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TlsConfig {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    pub grpc: HostPort,
    pub http: HostPort,
    /// `None` only while every address is a loopback one.
    pub tls: Option<TlsConfig>,
    /// Content is the bearer token for actions over HTTP; `None`: no actions over HTTP.
    pub token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    pub format: LogFormat,
    /// A filter as tracing-subscriber reads it.
    pub level: String,
    /// Folder for what the core was asked and answered; `None`: it is not written down.
    pub core_trace: Option<PathBuf>,
}

impl Config {
    /// Host under which the other members reach this node.
    #[must_use]
    pub fn advertise_host(&self) -> &str {
        &self.postgres.advertise.host
    }

    /// `listen` as others reach it: a bind-all host replaced by the advertised one.
    #[must_use]
    pub fn advertised(&self, listen: &HostPort) -> HostPort {
        let host = self.cluster.peer(&self.node.name).map_or("127.0.0.1", |peer| peer.address.host.as_str());
        if listen.is_unspecified() { HostPort::new(host, listen.port) } else { listen.clone() }
    }

    /// PGDATA.
    #[must_use]
    pub fn pgdata(&self) -> PathBuf {
        self.node.data_dir.join("pgdata")
    }
}
