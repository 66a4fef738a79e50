//! What a demo consists of, computed before anything starts: datacenters, ports, addresses, files and their contents.
//!
//! Every datacenter has an address of its own in 127.1.0.0/24. There the others reach it, through a relay that can delay or
//! cut ([`super::relay`]); the services themselves listen on 127.0.0.1 with the same port, where people and applications
//! connect without a detour. Deliberately absent: I/O, processes, sockets.
//!
//! Entry point: [`Plan::new`].

use super::Args;
use crate::cluster::Settings;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Distance of the first port from `--base-port`: 15400 gives 15432 for the first Postgres, which people recognise.
const FIRST_PORT: u16 = 32;
/// Ports of one datacenter lie in one block of ten.
const PORTS_PER_SITE: u16 = 10;
/// Most datacenters that fit below 127.1.0.0/24's last address and below ten times as many ports; far beyond any use.
pub const SITES_MAX: u16 = 9;
/// Default heartbeat and election timeout suffice up to this round trip.
const NEAR: Duration = Duration::from_millis(100);

/// One datacenter of the demo.
#[derive(Clone, Debug)]
pub struct Site {
    pub name: String,
    pub witness: bool,
    /// Working directory of everything that runs for it; by it [`super::source`] recognises its processes.
    pub dir: PathBuf,
    pub ports: Ports,
    /// Where the other datacenters reach it.
    pub address: Ipv4Addr,
}

/// Ports of one datacenter's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub postgres: u16,
    pub auto: u16,
    pub primary: u16,
    pub standby: u16,
    pub grpc: u16,
    pub http: u16,
}

impl Ports {
    fn of(base: u16, index: u16) -> Ports {
        let first = base + FIRST_PORT + index * PORTS_PER_SITE;
        Ports { postgres: first, auto: first + 1, primary: first + 2, standby: first + 3, grpc: first + 4, http: first + 5 }
    }
}

impl Site {
    /// State of its node: consensus log, promise, secrets, and `pgdata`.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("trilithon.toml")
    }

    /// What its node writes on stderr.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    /// Ports that its node opens.
    #[must_use]
    pub fn open_ports(&self) -> Vec<u16> {
        let ports = self.ports;
        let mut open = vec![ports.auto, ports.primary, ports.standby, ports.grpc, ports.http];
        open.extend((!self.witness).then_some(ports.postgres));
        open
    }

    /// Relays: where the others connect, and where that leads.
    #[must_use]
    pub fn relays(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let pair = |port| (SocketAddr::from((self.address, port)), SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        self.open_ports().into_iter().map(pair).collect()
    }
}

/// The whole demo.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As the user named it, made absolute.
    pub dir: PathBuf,
    pub sites: Vec<Site>,
    /// Added between two datacenters, there and back together.
    pub round_trip: Duration,
    pub pg_bin: Option<PathBuf>,
}

impl Plan {
    /// Lay out `args` below `dir`; the datacenters' own directories go below `data`, which Postgres's user can reach.
    #[must_use]
    pub fn new(args: &Args, dir: &Path, data: &Path) -> Plan {
        let site = |index: u16| {
            let name = format!("dc{}", index + 1);
            Site {
                witness: args.witness && index + 1 == args.nodes,
                dir: data.join(&name),
                ports: Ports::of(args.base_port, index),
                address: Ipv4Addr::new(127, 1, 0, u8::try_from(index + 1).unwrap_or(u8::MAX)),
                name,
            }
        };
        let sites = (0..args.nodes).map(site).collect();
        Plan { dir: dir.to_owned(), sites, round_trip: Duration::from_millis(args.wan_ms), pg_bin: args.pg_bin.clone() }
    }

    /// Which datacenter is called `name`?
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.sites.iter().position(|s| s.name == name)
    }

    /// `dc1, dc2, dc3`
    #[must_use]
    pub fn names(&self) -> String {
        self.sites.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// A node's configuration, as a person would write it.
    #[must_use]
    pub fn config(&self, site: &Site) -> String {
        let Ports { postgres, auto, primary, standby, grpc, http } = site.ports;
        let (name, address) = (&site.name, site.address);
        let peers: Vec<String> = self.sites.iter().map(|s| format!("\"{}={}:{}\"", s.name, s.address, s.ports.grpc)).collect();
        let mut text = format!(
            "# Written by `trilithon demo`.\n\n[node]\nname = \"{name}\"\ndatacenter = \"{name}\"\ndata_dir = {data:?}\nkind = \"{kind}\"\n\n\
             [cluster]\nname = \"demo\"\npeers = [{peers}]\nbootstrap = \"new\"\n\n",
            data = site.data_dir().display().to_string(),
            kind = if site.witness { "witness" } else { "data" },
            peers = peers.join(", "),
        );
        if !site.witness {
            let _ = writeln!(text, "[postgres]\nport = {postgres}\nlisten = \"127.0.0.1\"\nadvertise = \"{address}:{postgres}\"");
            if let Some(bin) = &self.pg_bin {
                let _ = writeln!(text, "bin_dir = {:?}", bin.display().to_string());
            }
            text.push('\n');
        }
        let _ =
            writeln!(text, "[proxy]\nauto = \"127.0.0.1:{auto}\"\nprimary = \"127.0.0.1:{primary}\"\nstandby = \"127.0.0.1:{standby}\"\n");
        let _ = writeln!(text, "[api]\ngrpc = \"127.0.0.1:{grpc}\"\nhttp = \"127.0.0.1:{http}\"\n");
        // The loss of one of two would leave no standby to confirm a commit: the survivor is to go on alone, visibly.
        let strict = if self.data_sites().count() < 3 { "strict = false\n" } else { "" };
        // Three election timeouts at least, which the validation demands.
        let lease_ttl = self.round_trip * 15;
        let lease = if lease_ttl > Settings::default().lease_ttl() {
            format!("lease_ttl = \"{}ms\"\n", lease_ttl.as_millis())
        } else {
            String::new()
        };
        if !(strict.is_empty() && lease.is_empty()) {
            let _ = writeln!(text, "[ha]\n{strict}{lease}");
        }
        if self.round_trip > NEAR {
            let heartbeat = self.round_trip.as_millis() * 2;
            let _ = writeln!(text, "[consensus]\nheartbeat = \"{heartbeat}ms\"\nelection_timeout = \"{}ms\"\n", heartbeat * 5 / 2);
        }
        text.push_str("[telemetry]\nformat = \"text\"\n");
        text
    }

    /// What `<dir>/cluster.json` says.
    #[must_use]
    pub fn cluster_file(&self, password: &str, pids: &[Option<u32>]) -> ClusterFile {
        let node = |(site, pid): (&Site, &Option<u32>)| NodeEntry {
            name: site.name.clone(),
            dc: site.name.clone(),
            pid: pid.unwrap_or(0),
            data_dir: site.data_dir(),
            postgres: (!site.witness).then(|| PostgresEntry { host: "127.0.0.1".into(), port: site.ports.postgres }),
            proxy: ProxyEntry { auto: site.ports.auto, primary: site.ports.primary, standby: site.ports.standby },
            grpc: site.ports.grpc,
            http: site.ports.http,
        };
        ClusterFile {
            cluster: "demo".into(),
            superuser: "postgres".into(),
            password: password.to_owned(),
            cli_config: self.dir.join("trilithon-cli.toml"),
            supervisor: std::process::id(),
            nodes: self.sites.iter().zip(pids).map(node).collect(),
        }
    }

    /// How the command line reaches the cluster: any node answers.
    #[must_use]
    pub fn cli_config(&self) -> String {
        let nodes: Vec<String> = self.sites.iter().map(|s| format!("\"127.0.0.1:{}\"", s.ports.grpc)).collect();
        let mut text =
            format!("# Written by `trilithon demo`.\ncluster = \"demo\"\nendpoints = [{}]\nuser = \"postgres\"\n", nodes.join(", "));
        if let Some(file) = self.password_file() {
            let _ = writeln!(text, "password_file = {:?}", file.display().to_string());
        }
        text
    }

    /// Where a node keeps the superuser's password, once there is one.
    #[must_use]
    pub fn password_file(&self) -> Option<PathBuf> {
        Some(self.data_sites().next()?.data_dir().join("secrets/superuser"))
    }

    /// Datacenters that hold data.
    pub fn data_sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(|s| !s.witness)
    }
}

/// `<dir>/cluster.json`: how programs find a running demo.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterFile {
    pub cluster: String,
    pub superuser: String,
    pub password: String,
    pub cli_config: PathBuf,
    /// Process that started the nodes and carries the traffic between them.
    pub supervisor: u32,
    pub nodes: Vec<NodeEntry>,
}

/// One datacenter of [`ClusterFile`]; a witness has no Postgres, but a proxy like every other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    pub name: String,
    pub dc: String,
    /// Zero while it does not run.
    pub pid: u32,
    pub data_dir: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresEntry>,
    pub proxy: ProxyEntry,
    pub grpc: u16,
    pub http: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PostgresEntry {
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ProxyEntry {
    pub auto: u16,
    pub primary: u16,
    pub standby: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn plan(words: &[&str]) -> Plan {
        let args = Cli::parse_from(["demo"].iter().chain(words)).args;
        Plan::new(&args, Path::new("/x"), Path::new("/y"))
    }

    #[test]
    fn ports_are_those_that_the_interface_promises() {
        let plan = plan(&[]);
        assert_eq!(plan.sites[0].ports, Ports { postgres: 15432, auto: 15433, primary: 15434, standby: 15435, grpc: 15436, http: 15437 });
        assert_eq!(plan.sites[2].ports.postgres, 15452);
        assert_eq!(plan.names(), "dc1, dc2, dc3");
    }

    #[test]
    fn a_node_listens_where_people_connect_and_is_known_by_its_relay() {
        let plan = plan(&[]);
        let config = plan.config(&plan.sites[1]);
        assert!(config.contains("\"dc2=127.1.0.2:15446\""), "{config}");
        assert!(config.contains("grpc = \"127.0.0.1:15446\""), "{config}");
        assert!(config.contains("advertise = \"127.1.0.2:15442\""), "{config}");
    }

    #[test]
    fn every_node_accepts_its_configuration() {
        for words in
            [&["--witness", "--pg-bin", "/opt/pg/bin"][..], &["--nodes", "5", "--wan-ms", "150"], &["--wan-ms", "2000"], &["--nodes", "1"]]
        {
            let plan = plan(words);
            for site in &plan.sites {
                let text = plan.config(site);
                let parsed = Config::parse(Path::new("demo.toml"), &text, std::iter::empty());
                let config = parsed.unwrap_or_else(|e| panic!("{e}\n{text}"));
                assert_eq!(config.node.name.as_str(), site.name);
                assert_eq!(config.pgdata(), site.data_dir().join("pgdata"));
            }
        }
    }

    #[test]
    fn the_last_datacenter_is_the_witness_and_opens_no_database_ports() {
        let plan = plan(&["--witness"]);
        let kinds: Vec<bool> = plan.sites.iter().map(|s| s.witness).collect();
        assert_eq!(kinds, [false, false, true]);
        assert!(!plan.sites[2].open_ports().contains(&15452));
        assert!(!plan.config(&plan.sites[2]).contains("[postgres]"));
        let file = serde_json::to_value(plan.cluster_file("secret", &[Some(1), Some(2), None])).expect("JSON");
        assert_eq!(file["nodes"][0]["postgres"]["port"], 15432);
        assert_eq!(file["nodes"][2]["pid"], 0);
        assert!(file["nodes"][2].get("postgres").is_none());
    }

    #[test]
    fn far_datacenters_get_longer_timeouts() {
        assert!(!plan(&["--wan-ms", "40"]).config(&plan(&[]).sites[0]).contains("heartbeat"));
        assert!(plan(&["--wan-ms", "150"]).config(&plan(&[]).sites[0]).contains("heartbeat = \"300ms\""));
    }
}
