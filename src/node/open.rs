//! Takes hold of what the node needs from the machine: directory, certificates, ports, PostgreSQL's programs.
//!
//! Everything that a person can have got wrong is refused here, with the key to correct, before the node says a word to its peers.

use super::core_trace;
use super::data_dir::DataDir;
use crate::agent::Promise;
use crate::cluster::MemberKind;
use crate::config::{Config, HostPort};
use crate::consensus::tls::Tls;
use crate::ha::Entry;
use crate::postgres::{Instance, InstanceConfig, Postmaster};
use crate::telemetry::{Clock, Recorder};
use crate::types::NodeId;
use anyhow::{Context as _, bail};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// The predecessor's last connections, or a postmaster on its way out, may hold a port for a moment.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
const PORT_RETRY: Duration = Duration::from_millis(50);

/// The node's holdings; dropping them gives everything back.
pub struct Opened {
    pub config: Config,
    pub clock: Clock,
    pub dir: DataDir,
    pub tls: Option<Tls>,
    pub grpc: TcpListener,
    pub http: TcpListener,
    /// Content of `api.token_file`.
    pub token: Option<String>,
    /// Where the core's answers are written down, if anywhere.
    pub trace: Option<Recorder<Entry>>,
    pub local: Local,
    pub proxy: ProxyAddresses,
}

impl Opened {
    /// The local Postgres, where this member has one.
    pub fn postgres(&self) -> Option<Arc<Instance>> {
        match &self.local {
            Local::Data { postgres, .. } => Some(postgres.clone()),
            Local::Witness => None,
        }
    }
}

/// What this member is for.
pub enum Local {
    Data { postgres: Arc<Instance>, promise: Promise },
    Witness,
}

/// Where the proxy will listen, resolved.
#[derive(Clone, Debug)]
pub struct ProxyAddresses {
    pub auto: Vec<SocketAddr>,
    pub primary: Vec<SocketAddr>,
    pub standby: Vec<SocketAddr>,
}

/// Take hold of everything, or say what is in the way.
pub async fn open(config: Config, clock: Clock) -> anyhow::Result<Opened> {
    let dir = DataDir::open(&config.node.data_dir, &config.cluster.name, &config.node.name)?;
    let tls = load_tls(&config)?;
    let token = load_token(&config)?;
    let trace = core_trace::start(&config)?;
    let grpc = bind("api.grpc", &config.api.grpc, clock).await?;
    let http = bind("api.http", &config.api.http, clock).await?;
    let proxy = ProxyAddresses {
        auto: free("proxy.auto", &config.proxy.auto, clock).await?,
        primary: free("proxy.primary", &config.proxy.primary, clock).await?,
        standby: free("proxy.standby", &config.proxy.standby, clock).await?,
    };
    let local = match config.node.kind {
        MemberKind::Witness => Local::Witness,
        MemberKind::Data => open_postgres(&config, clock).await?,
    };
    Ok(Opened { config, clock, dir, tls, grpc, http, token, trace, local, proxy })
}

fn load_tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let Some(files) = &config.api.tls else { return Ok(None) };
    Ok(Some(Tls::load_member(&files.ca, &files.cert, &files.key, config.node.name.as_str())?))
}

fn load_token(config: &Config) -> anyhow::Result<Option<String>> {
    let Some(path) = &config.api.token_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read api.token_file {}", path.display()))?;
    let token = text.trim();
    if token.is_empty() {
        bail!("api.token_file {} is empty: write a long random word into it, or remove the key", path.display());
    }
    Ok(Some(token.to_owned()))
}

async fn open_postgres(config: &Config, clock: Clock) -> anyhow::Result<Local> {
    let wanted = &config.postgres;
    let instance = InstanceConfig {
        // Known once this node is a member; see Instance::set_node.
        node: NodeId(0),
        node_dir: config.node.data_dir.clone(),
        pgdata: Some(config.pgdata()),
        bin_dir: wanted.bin_dir.clone(),
        listen: wanted.listen.clone(),
        port: wanted.port,
        os_user: wanted.os_user.clone(),
        parameters: config.settings.parameters.clone(),
        hba: config.settings.hba.clone(),
    };
    let postgres = Instance::open(instance, clock).await?;
    let adopted = matches!(*postgres.postmaster().borrow(), Postmaster::Running { .. });
    if !adopted {
        free("postgres.port", &HostPort::new("127.0.0.1", wanted.port), clock).await?;
    }
    let promise = Promise::open(&config.node.data_dir)?;
    let install = postgres.install();
    tracing::info!(version = install.major, bin = %install.bin_dir.display(), adopted, "postgres found");
    Ok(Local::Data { postgres: Arc::new(postgres), promise })
}

/// Is `address` free? Whoever uses it binds it later.
async fn free(key: &str, address: &HostPort, clock: Clock) -> anyhow::Result<Vec<SocketAddr>> {
    let listener = bind(key, address, clock).await?;
    Ok(vec![listener.local_addr().with_context(|| format!("cannot use {key} {address}"))?])
}

async fn bind(key: &str, address: &HostPort, clock: Clock) -> anyhow::Result<TcpListener> {
    let deadline = clock.now().after(PORT_PATIENCE);
    loop {
        match TcpListener::bind((address.host.as_str(), address.port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse && clock.now() < deadline => tokio::time::sleep(PORT_RETRY).await,
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!("{key} {address} is in use by another program: stop that, or choose another port")
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot listen on {key} {address}; is it an address of this machine?"));
            }
        }
    }
}
