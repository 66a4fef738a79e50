//! From values to the typed configuration, and the relations between them.

use super::error::ConfigErrors;
use super::reader::{Reader, Refusal, brief};
use super::types::{
    ApiConfig, Bootstrap, ClusterConfig, Config, ConsensusConfig, Consistency, NodeConfig, Peer, PoolMode, PostgresConfig, ProxyConfig,
    TelemetryConfig, TlsConfig,
};
use super::{HostPort, settings};
use crate::cluster::{Durability, MemberKind, Settings, Tags};
use crate::telemetry::LogFormat;
use crate::types::NodeName;
use std::path::PathBuf;
use std::time::Duration;
use toml::Value;

const MS: fn(u64) -> Duration = Duration::from_millis;
const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn validate(mut r: Reader) -> Result<Config, ConfigErrors> {
    let node = node(&mut r);
    let cluster = cluster(&mut r, &node.name);
    let own = cluster.peer(&node.name).map(|peer| peer.address.clone());
    // Placeholder after a recorded fault only; the configuration is then refused below.
    let own = own.unwrap_or_else(|| HostPort::new("127.0.0.1", 0));
    let consensus = consensus(&mut r);
    let config = Config {
        postgres: postgres(&mut r, &own),
        settings: settings::read(&mut r),
        proxy: proxy(&mut r, &own),
        api: api(&mut r, &own),
        telemetry: telemetry(&mut r),
        node,
        cluster,
        consensus,
    };
    relations(&mut r, &config);
    if r.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(r.errors)) }
}

fn node(r: &mut Reader) -> NodeConfig {
    let name = r.required("node.name");
    if !name.is_empty() && !is_name(&name) {
        r.refuse("node.name", name_refusal());
    }
    NodeConfig {
        datacenter: r.text("node.datacenter").unwrap_or_else(|| name.clone()),
        name: NodeName(name),
        data_dir: PathBuf::from(r.defaulted("node.data_dir")),
        kind: r.choice("node.kind", &[("data", MemberKind::Data), ("witness", MemberKind::Witness)]),
        tags: Tags {
            priority: i32::try_from(r.number("node.tags.priority", -1_000_000..=1_000_000)).unwrap_or_default(),
            nofailover: r.flag("node.tags.nofailover"),
            nosync: r.flag("node.tags.nosync"),
            noloadbalance: r.flag("node.tags.noloadbalance"),
        },
    }
}

/// Names go into slots, application_name and host names, so they keep to what all of these allow.
fn is_name(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_lowercase());
    first && name.len() <= 40 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

fn name_refusal() -> Refusal {
    ("not usable as a name".into(), "use up to 40 lower-case letters, digits, - and _, the first one a letter".into())
}

fn cluster(r: &mut Reader, me: &NodeName) -> ClusterConfig {
    let name = r.defaulted("cluster.name");
    let bootstrap = r.parsed("cluster.bootstrap", |value| match value.as_str() {
        Some("new") => Ok(Bootstrap::New),
        Some("existing") => Ok(Bootstrap::Existing),
        _ => Err(("not one of the choices".into(), "write one of \"new\", \"existing\"".into())),
    });
    let mut peers: Vec<Peer> = Vec::new();
    for entry in r.list("cluster.peers") {
        match peer(&entry) {
            Ok(peer) if peers.iter().any(|p| p.name == peer.name) => {
                r.refuse("cluster.peers", (format!("{} is there twice", peer.name), "give each member its own name".into()));
            }
            Ok(peer) if peers.iter().any(|p| p.address == peer.address) => {
                let problem = format!("{} has the same address as another member", peer.name);
                r.refuse("cluster.peers", (problem, "give each member its own host or port".into()));
            }
            Ok(peer) => peers.push(peer),
            Err(refusal) => r.refuse("cluster.peers", refusal),
        }
    }
    if !r.is_set("cluster.peers") {
        r.missing("cluster.peers");
    } else if !me.as_str().is_empty() && !peers.iter().any(|p| p.name == *me) {
        let remedy = format!("add \"{me}=host:port\" (the gRPC address of this node, as the others reach it), or correct node.name");
        r.refuse("cluster.peers", (format!("does not name this node ({me})"), remedy));
    }
    ClusterConfig { name, peers, bootstrap: bootstrap.unwrap_or(Bootstrap::New) }
}

fn peer(entry: &str) -> Result<Peer, Refusal> {
    let form = || "write each as name=host:port, like \"dc2=10.0.2.1:7432\"".to_owned();
    let (name, address) = entry.split_once('=').ok_or_else(|| (format!("{entry:?} has no name"), form()))?;
    if !is_name(name.trim()) {
        let (problem, remedy) = name_refusal();
        return Err((format!("{:?} is {problem}", name.trim()), remedy));
    }
    let address: HostPort = address.parse().map_err(|problem| (format!("{address:?} {problem}"), form()))?;
    if address.is_unspecified() || address.port == 0 {
        return Err((format!("{address} cannot be reached by others"), "write the address under which the other members reach it".into()));
    }
    Ok(Peer { name: NodeName::from(name.trim()), address })
}

/// An address to listen on, or the default: loopback for a loopback cluster, else every interface.
fn listen(r: &mut Reader, key: &str, own: &HostPort, port: u16) -> HostPort {
    let parse = |value: &Value| {
        let text = value.as_str().ok_or_else(|| ("not text".to_owned(), "write it as \"host:port\"".to_owned()))?;
        text.parse::<HostPort>().map_err(|problem| (problem.to_owned(), format!("write it as host:port, like \"0.0.0.0:{port}\"")))
    };
    let host = if own.is_loopback() { own.host.clone() } else { "0.0.0.0".to_owned() };
    r.parsed(key, parse).unwrap_or_else(|| HostPort::new(host, port))
}

fn postgres(r: &mut Reader, own: &HostPort) -> PostgresConfig {
    let port = port(r, "postgres.port");
    let everywhere = if own.is_loopback() { own.host.clone() } else { "*".to_owned() };
    let advertise =
        if r.is_set("postgres.advertise") { listen(r, "postgres.advertise", own, port) } else { HostPort::new(own.host.clone(), port) };
    if advertise.is_unspecified() {
        r.refuse("postgres.advertise", ("cannot be reached by others".into(), "write the address under which others reach it".into()));
    }
    let root = rustix::process::geteuid().is_root();
    PostgresConfig {
        bin_dir: r.text("postgres.bin_dir").map(PathBuf::from),
        port,
        listen: r.text("postgres.listen").unwrap_or(everywhere),
        advertise,
        os_user: r.text("postgres.os_user").or_else(|| root.then(|| "postgres".to_owned())),
    }
}

fn port(r: &mut Reader, key: &str) -> u16 {
    u16::try_from(r.number(key, 1..=65_535)).unwrap_or_default()
}

fn consensus(r: &mut Reader) -> ConsensusConfig {
    let heartbeat = r.duration("consensus.heartbeat", MS(10)..=MS(10_000));
    let election_timeout = r.duration("consensus.election_timeout", MS(20)..=MS(60_000));
    if election_timeout < 2 * heartbeat {
        let remedy = format!("write at least {}, twice consensus.heartbeat", brief(2 * heartbeat));
        r.refuse("consensus.election_timeout", ("one late heartbeat would start an election".into(), remedy));
    }
    ConsensusConfig { heartbeat, election_timeout }
}

fn proxy(r: &mut Reader, own: &HostPort) -> ProxyConfig {
    let modes = [("transaction", PoolMode::Transaction), ("session", PoolMode::Session)];
    let levels = [("session", Consistency::Session), ("eventual", Consistency::Eventual), ("primary", Consistency::Primary)];
    ProxyConfig {
        auto: listen(r, "proxy.auto", own, 6432),
        primary: listen(r, "proxy.primary", own, 6433),
        standby: listen(r, "proxy.standby", own, 6434),
        mode: r.choice("proxy.mode", &modes),
        consistency: r.choice("proxy.consistency", &levels),
        pool_size: usize::try_from(r.number("proxy.pool_size", 1..=10_000)).unwrap_or_default(),
        max_clients: usize::try_from(r.number("proxy.max_clients", 1..=1_000_000)).unwrap_or_default(),
        hold_timeout: r.duration("proxy.hold_timeout", MS(0)..=HOUR),
        connect_timeout: r.duration("proxy.connect_timeout", MS(50)..=MS(60_000)),
        idle_timeout: r.duration("proxy.idle_timeout", MS(1_000)..=24 * HOUR),
    }
}

fn api(r: &mut Reader, own: &HostPort) -> ApiConfig {
    let parts = ["api.tls.ca", "api.tls.cert", "api.tls.key"];
    let given = parts.iter().filter(|key| r.is_set(key)).count();
    if given != 0 && given != parts.len() {
        parts.iter().for_each(|key| {
            if !r.is_set(key) {
                r.missing(key);
            }
        });
    }
    let mut path = |key| r.text(key).map(PathBuf::from);
    let tls = match (path(parts[0]), path(parts[1]), path(parts[2])) {
        (Some(ca), Some(cert), Some(key)) => Some(TlsConfig { ca, cert, key }),
        _ => None,
    };
    let token_file = path("api.token_file");
    ApiConfig { grpc: listen(r, "api.grpc", own, own.port), http: listen(r, "api.http", own, 8008), tls, token_file }
}

fn telemetry(r: &mut Reader) -> TelemetryConfig {
    let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let level = r.parsed("telemetry.level", |value| {
        let text = value.as_str().unwrap_or_default();
        match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err((
                "not a level or filter".to_owned(),
                "write error, warn, info, debug or trace, or a filter like \"info,trilithon::proxy=debug\"".to_owned(),
            )),
        }
    });
    let core_trace = r.text("telemetry.core_trace").map(PathBuf::from);
    TelemetryConfig { format: r.choice("telemetry.format", &formats), level: level.unwrap_or_default(), core_trace }
}

/// What must hold between keys of different sections.
fn relations(r: &mut Reader, config: &Config) {
    plaintext_only_on_loopback(r, config);
    let Settings { acks, durability, .. } = &config.settings;
    let others = config.cluster.peers.len().saturating_sub(1);
    if *durability == Durability::Quorum && others > 0 && *acks > others {
        let remedy = format!("write at most {others}, the number of other members");
        r.refuse("ha.acks", ("more standbys than there can be".into(), remedy));
    }
    let shortest = 3 * config.consensus.election_timeout;
    if config.settings.lease_ttl() < shortest {
        let remedy = format!("write at least {}, three times consensus.election_timeout", brief(shortest));
        r.refuse("ha.lease_ttl", ("would end whenever the Raft leader changes".into(), remedy));
    }
    one_port_each(r, config);
}

fn plaintext_only_on_loopback(r: &mut Reader, config: &Config) {
    let open = config.cluster.peers.iter().map(|p| &p.address).chain([&config.api.grpc]).find(|a| !a.is_loopback());
    if let (Some(address), None) = (open, &config.api.tls)
        && r.errors.is_empty()
    {
        let remedy = format!(
            "{address} is reachable from other machines, so members must know each other by certificate: run `trilithon certs init`, \
             then `trilithon certs issue {}`, and write ca, cert and key under [api.tls]; only loopback addresses may go without",
            config.node.name
        );
        r.errors.push(super::ConfigError::Missing { key: "api.tls".into(), remedy });
    }
}

fn one_port_each(r: &mut Reader, config: &Config) {
    let mut used = vec![("postgres.port", config.postgres.port)];
    let listeners = [
        ("api.grpc", &config.api.grpc),
        ("api.http", &config.api.http),
        ("proxy.auto", &config.proxy.auto),
        ("proxy.primary", &config.proxy.primary),
        ("proxy.standby", &config.proxy.standby),
    ];
    for (key, address) in listeners {
        match used.iter().find(|(_, port)| *port == address.port && *port != 0) {
            Some((other, _)) => {
                let problem = format!("port {} is also that of {other}", address.port);
                let remedy = format!("give {key} a port of its own");
                if r.is_set(key) {
                    r.refuse(key, (problem, remedy));
                } else {
                    r.errors.push(super::ConfigError::Missing {
                        key: key.into(),
                        remedy: format!("its default {address} clashes: {problem}; {remedy}"),
                    });
                }
            }
            None => used.push((key, address.port)),
        }
    }
}
