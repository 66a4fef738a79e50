//! Configuration files of the peer's programs, as text. PURE but for the sites' names and addresses.

use super::profile::Profile;
use super::{ETCD_PORT, PORTS};
use crate::cluster::POSTGRES_PARAMETERS;
use crate::world::Site;
use serde_json::{Map, Value, json};
use std::net::Ipv4Addr;
use std::path::Path;

/// Patroni's name for a cluster.
pub(super) const SCOPE: &str = "chaos";
/// Of every role: the network is the world's own.
pub(super) const PASSWORD: &str = "chaos-chaos";
/// HAProxy's listeners, for the local PgBouncer.
pub(super) const TO_PRIMARY: u16 = 5000;
pub(super) const TO_STANDBY: u16 = 5001;

pub(super) struct Files<'a> {
    pub profile: Profile,
    pub pg_bin: &'a Path,
    pub data: &'a Path,
    pub site: &'a Site,
    pub sites: &'a [Site],
}

impl Files<'_> {
    /// JSON is YAML.
    pub fn patroni(&self) -> String {
        let (name, address) = (self.site.name(), self.site.address());
        let hosts: Vec<String> = self.sites.iter().map(|s| format!("{}:{ETCD_PORT}", s.address())).collect();
        // From its own host too: a standby asks itself for its timeline by this way, and without an answer is never elected.
        let hba = ["host replication replicator 0.0.0.0/0 scram-sha-256", "host all all 0.0.0.0/0 scram-sha-256"];
        let role = |name: &str| json!({ "username": name, "password": PASSWORD });
        let file = json!({
            "scope": SCOPE,
            "name": name,
            "restapi": { "listen": format!("0.0.0.0:{}", PORTS.http), "connect_address": format!("{address}:{}", PORTS.http) },
            "etcd3": { "hosts": hosts },
            "bootstrap": {
                "dcs": self.dynamic(),
                "initdb": ["data-checksums", { "encoding": "UTF8" }, { "locale": "C.UTF-8" }],
            },
            "postgresql": {
                "listen": format!("0.0.0.0:{}", PORTS.postgres),
                "connect_address": format!("{address}:{}", PORTS.postgres),
                "data_dir": self.data.join("pgdata"),
                "bin_dir": self.pg_bin,
                "pgpass": self.data.join("pgpass"),
                "authentication": { "superuser": role("postgres"), "replication": role("replicator") },
                // All datacenters share one /tmp.
                "parameters": { "unix_socket_directories": self.data },
                "pg_hba": hba,
                "remove_data_directory_on_rewind_failure": true,
                "remove_data_directory_on_diverged_timelines": true,
            },
            "watchdog": { "mode": "off" },
        });
        format!("{file:#}\n")
    }

    /// What goes into etcd once.
    fn dynamic(&self) -> Value {
        let figures = self.profile.figures();
        let parameters: Map<String, Value> =
            POSTGRES_PARAMETERS.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        json!({
            "ttl": figures.ttl,
            "loop_wait": figures.loop_wait,
            "retry_timeout": figures.retry_timeout,
            "synchronous_mode": "quorum",
            "synchronous_mode_strict": true,
            "synchronous_node_count": 1,
            "postgresql": { "use_pg_rewind": true, "use_slots": true, "parameters": parameters },
        })
    }

    /// As in the template that Patroni ships, but for the figures.
    pub fn haproxy(&self) -> String {
        let figures = self.profile.figures();
        let servers: String = self
            .sites
            .iter()
            .map(|s| format!("    server {} {}:{} maxconn 100 check port {}\n", s.name(), s.address(), PORTS.postgres, PORTS.http))
            .collect();
        let listen = |name: &str, port: u16| {
            format!(
                "\nlisten {name}\n    bind 127.0.0.1:{port}\n    option httpchk OPTIONS /{name}\n    http-check expect status 200\n    \
                 default-server {} on-marked-down shutdown-sessions\n{servers}",
                figures.checks
            )
        };
        format!(
            "global\n    maxconn 1000\n\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout server 30m\n    \
             timeout connect {}s\n    timeout check {}s\n{}{}",
            figures.connect_timeout,
            figures.check_timeout,
            listen("primary", TO_PRIMARY),
            listen("replica", TO_STANDBY)
        )
    }

    pub fn pgbouncer(&self, port: u16, to: u16, users: &Path) -> String {
        let figures = self.profile.figures();
        format!(
            "[databases]\n* = host=127.0.0.1 port={to}\n\n[pgbouncer]\nlisten_addr = 0.0.0.0\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\nmax_client_conn = 1000\ndefault_pool_size = 20\n\
             max_prepared_statements = 200\nserver_login_retry = {}\nserver_connect_timeout = {}\n\
             ignore_startup_parameters = extra_float_digits\n",
            users.display(),
            figures.login_retry,
            figures.server_connect_timeout
        )
    }

    pub fn users(&self) -> String {
        format!("\"postgres\" \"{PASSWORD}\"\n")
    }
}

/// etcd's words. Its log goes to standard error, its data to `dir`.
pub(super) fn etcd(site: &Site, members: &[(String, Ipv4Addr)], dir: &Path) -> Vec<String> {
    let (own, peer) = (site.address(), PORTS.grpc);
    let members: Vec<String> = members.iter().map(|(name, address)| format!("{name}=http://{address}:{peer}")).collect();
    let pairs = [
        ("--name", site.name().to_owned()),
        ("--data-dir", dir.display().to_string()),
        ("--listen-client-urls", format!("http://0.0.0.0:{ETCD_PORT}")),
        ("--advertise-client-urls", format!("http://{own}:{ETCD_PORT}")),
        ("--listen-peer-urls", format!("http://0.0.0.0:{peer}")),
        ("--initial-advertise-peer-urls", format!("http://{own}:{peer}")),
        ("--initial-cluster", members.join(",")),
        ("--initial-cluster-state", "new".to_owned()),
        ("--logger", "zap".to_owned()),
    ];
    pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}
