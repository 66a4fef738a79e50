//! Every key of the configuration file: its name, its default, what it means. The one place where a default is written.

/// What a key holds; decides how a value from the environment (always text) is read, and how `config init` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Scalar,
    List,
    /// Free names to text, as `[postgres.parameters]`.
    Map,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub shape: Shape,
    /// A TOML literal; `None` where it is required, derived from other keys, or simply absent.
    pub default: Option<&'static str>,
    /// A TOML literal that `config init` shows where there is no default.
    pub sample: &'static str,
    pub required: bool,
    pub doc: &'static str,
}

impl Key {
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// Sections in the order of the example file, each with its line of explanation.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("node", "This process, its datacenter and where it keeps its state."),
    ("node.tags", "Patroni's tags, with its meanings; `trilithon member tag` changes them later."),
    ("cluster", "Who belongs together. The same on every member."),
    ("postgres", "The PostgreSQL that this node runs (15 to 18)."),
    ("consensus", "Raft. Raise both for datacenters more than 100 ms apart."),
    ("ha", "Seeds the replicated settings when the cluster is created; afterwards `trilithon config set` changes them."),
    ("proxy", "Where applications connect: on every node, to the cluster as a whole."),
    ("api", "Administration: gRPC for `trilithon` and peers, HTTP for health checks, metrics and the dashboard."),
    ("api.tls", "Mutual TLS (`trilithon certs`). May be left out only while every address is a loopback one."),
    ("telemetry", "Logs go to stderr."),
];

const fn key(section: &'static str, name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { section, name, shape: Shape::Scalar, default: Some(default), sample: "", required: false, doc }
}

const fn optional(section: &'static str, name: &'static str, sample: &'static str, doc: &'static str) -> Key {
    Key { section, name, shape: Shape::Scalar, default: None, sample, required: false, doc }
}

const fn required(section: &'static str, name: &'static str, sample: &'static str, doc: &'static str) -> Key {
    Key { section, name, shape: Shape::Scalar, default: None, sample, required: true, doc }
}

const fn shaped(shape: Shape, key: Key) -> Key {
    Key { section: key.section, name: key.name, shape, default: key.default, sample: key.sample, required: key.required, doc: key.doc }
}

/// All keys.
pub(super) const KEYS: &[Key] = &[
    required("node", "name", "\"dc1\"", "Unique among the members; also what Postgres calls this standby."),
    optional("node", "datacenter", "\"dc1\"", "Reads prefer the same datacenter. Default: the name."),
    key("node", "data_dir", "\"/var/lib/trilithon\"", "Consensus log, promise, secrets, and PGDATA in its `pgdata`."),
    key("node", "kind", "\"data\"", "\"data\" runs Postgres; \"witness\" only votes."),
    key("node.tags", "priority", "100", "Among equally advanced candidates the highest becomes primary."),
    key("node.tags", "nofailover", "false", "Never becomes primary by itself."),
    key("node.tags", "nosync", "false", "Never confirms commits."),
    key("node.tags", "noloadbalance", "false", "Gets no reads from the proxies."),
    key("cluster", "name", "\"main\"", "Members of another cluster are refused."),
    shaped(
        Shape::List,
        required(
            "cluster",
            "peers",
            "[\"dc1=10.0.1.1:7432\", \"dc2=10.0.2.1:7432\", \"dc3=10.0.3.1:7432\"]",
            "Every member, this one too: name=host:port of its gRPC address, as the others reach it.",
        ),
    ),
    key(
        "cluster",
        "bootstrap",
        "\"new\"",
        "For a cluster that does not exist yet. \"new\": initdb; \"existing\": this node's data directory becomes the database.",
    ),
    optional("postgres", "bin_dir", "\"/usr/lib/postgresql/17/bin\"", "Found by itself: PATH, /usr/lib/postgresql/*, pg_config."),
    key("postgres", "port", "5432", "Port of Postgres itself; applications use the proxy's."),
    optional("postgres", "listen", "\"*\"", "listen_addresses. Default: everywhere, or loopback if all peers are loopback."),
    optional("postgres", "advertise", "\"10.0.1.1:5432\"", "How other members reach it. Default: the host of this node's entry in peers."),
    optional("postgres", "os_user", "\"postgres\"", "Owner of Postgres's processes and files. Default: \"postgres\" when started as root."),
    shaped(Shape::Map, key("postgres", "parameters", "{}", "Seeds the cluster-wide parameters, as in { shared_buffers = \"2GB\" }.")),
    shaped(Shape::List, key("postgres", "hba", "[]", "Seeds lines of pg_hba.conf, as in [\"host all all 10.0.0.0/8 scram-sha-256\"].")),
    key("consensus", "heartbeat", "\"250ms\"", "Must exceed the round trip between datacenters plus one fsync."),
    key("consensus", "election_timeout", "\"600ms\"", "At least twice the heartbeat."),
    key("ha", "lease_ttl", "\"3s\"", "How long a primary may serve without renewing: the main part of a failover's duration."),
    key("ha", "clock_drift_permille", "50", "Bound on the relative speed of two clocks, in 1/1000."),
    key(
        "ha",
        "durability",
        "\"quorum\"",
        "What COMMIT waits for: \"quorum\" (any `acks` standbys), \"all\", \"async\" (nobody: may lose up to max_lag).",
    ),
    key("ha", "acks", "1", "Standbys that confirm each commit under \"quorum\"."),
    key(
        "ha",
        "trust_refusals",
        "true",
        "Process and Postgres that refuse all connections are dead. Set false where a firewall between datacenters may refuse in their place (REJECT), so that it causes no failover: each then waits for the lease.",
    ),
    key("ha", "strict", "true", "Without enough standbys writes wait; false: the primary goes on alone, with a warning."),
    key(
        "ha",
        "max_lag",
        "\"1MiB\"",
        "A candidate further behind is not elected under \"async\"; also how near a switchover's candidate must be.",
    ),
    key("ha", "drain_timeout", "\"5s\"", "Transactions still open this long into a switchover are cancelled."),
    key("ha", "switchover_timeout", "\"20s\"", "A switchover that is not through by then is called off."),
    key("ha", "promotion_timeout", "\"30s\"", "A candidate that does not accept writes by then is replaced."),
    optional("proxy", "auto", "\"0.0.0.0:6432\"", "Reads go to a near standby, writes to the primary."),
    optional("proxy", "primary", "\"0.0.0.0:6433\"", "Always the primary."),
    optional("proxy", "standby", "\"0.0.0.0:6434\"", "Always a standby, read-only."),
    key(
        "proxy",
        "mode",
        "\"transaction\"",
        "\"transaction\": servers are shared between transactions; \"session\": one server per client.",
    ),
    key("proxy", "consistency", "\"session\"", "Of reads on standbys: \"session\" (own writes are seen), \"eventual\", \"primary\"."),
    key("proxy", "pool_size", "20", "Server connections per database, user and node."),
    key("proxy", "max_clients", "1000", "Client connections in all; further ones are refused with 53300."),
    key("proxy", "hold_timeout", "\"30s\"", "How long a transaction waits for a primary before it fails with 08006."),
    key("proxy", "connect_timeout", "\"2s\"", "To one server."),
    key("proxy", "idle_timeout", "\"10m\"", "Unused server connections are closed after it."),
    optional("api", "grpc", "\"0.0.0.0:7432\"", "Default: the port of this node's entry in peers."),
    optional("api", "http", "\"0.0.0.0:8008\"", "Health checks as Patroni's, metrics, dashboard."),
    optional(
        "api",
        "token_file",
        "\"/etc/trilithon/token\"",
        "Actions over HTTP need `Authorization: Bearer <its content>`; without it they are off.",
    ),
    optional("api.tls", "ca", "\"/etc/trilithon/ca.pem\"", "Signs every member's and operator's certificate."),
    optional("api.tls", "cert", "\"/etc/trilithon/dc1.pem\"", "This node's; its OU is \"peer\"."),
    optional("api.tls", "key", "\"/etc/trilithon/dc1.key\"", "Private key of `cert`, mode 0600."),
    key("telemetry", "format", "\"auto\"", "\"text\", \"json\"; \"auto\" is text, coloured on a terminal."),
    optional(
        "telemetry",
        "core_trace",
        "\"/var/log/trilithon/core\"",
        "Folder for every input and answer of the core, which `trilithon replay` checks; up to 4 GiB for each start. Default: none.",
    ),
    key("telemetry", "level", "\"info\"", "error, warn, info, debug, trace, or a filter like \"info,trilithon::proxy=debug\"."),
];

/// The key of a dotted path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let (section, name) = path.rsplit_once('.')?;
    KEYS.iter().find(|k| k.section == section && k.name == name)
}

/// Is `path` a section?
pub(super) fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|(name, _)| *name == path)
}

/// The known key most like `path`, or the section where `is_table`; `None` when nothing is near.
pub(super) fn nearest(path: &str, is_table: bool) -> Option<String> {
    let known: Vec<String> = match is_table {
        true => SECTIONS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        false => KEYS.iter().map(Key::path).collect(),
    };
    let scored = known.into_iter().map(|known| (likeness(path, &known), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    // 0.8 admits typing errors and words left out, and keeps out names that merely share a section.
    (best.0 >= 0.8).then_some(best.1)
}

/// The name weighs more than the section: a right name in the wrong section is nearer than any look-alike.
fn likeness(path: &str, known: &str) -> f64 {
    let split = |text: &str| text.rsplit_once('.').map_or((String::new(), text.to_owned()), |(s, n)| (s.to_owned(), n.to_owned()));
    let ((section, name), (known_section, known_name)) = (split(path), split(known));
    let exact = if name == known_name { 0.1 } else { 0.0 };
    0.75 * strsim::jaro_winkler(&name, &known_name) + 0.25 * strsim::jaro_winkler(&section, &known_section) + exact
}
