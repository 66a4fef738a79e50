//! Verbs and their arguments. Each `--help` ends with an example.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// What an administrator can say.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Members, their roles and states, and why the cluster does what it does.
    #[command(alias = "list", after_help = "Example:\n  trilithon status\n  trilithon status -o json | jq -r .primary")]
    Status(Remote),
    /// Who streams from whom.
    #[command(after_help = "Example:\n  trilithon topology")]
    Topology(Remote),
    /// Each change of primary: when in the WAL, why, and how long writes were out.
    #[command(after_help = "Example:\n  trilithon history -o json")]
    History(Remote),
    /// What happened lately; with --follow, what happens from now on.
    #[command(after_help = "Example:\n  trilithon events --follow")]
    Events(EventsArgs),
    /// Hand the primaryship over in an orderly way; no write is lost, pooled clients see no error.
    #[command(after_help = "Example:\n  trilithon switchover --to dc2")]
    Switchover(SwitchoverArgs),
    /// Elect a primary although the old one is lost and the cluster does not go on by itself.
    #[command(after_help = "Example:\n  trilithon failover --to dc2\n  trilithon failover --to dc2 --allow-data-loss")]
    Failover(FailoverArgs),
    /// Switch automatic failover off, for maintenance.
    #[command(after_help = "Example:\n  trilithon pause\n  trilithon resume")]
    Pause(Remote),
    /// Switch automatic failover on again.
    #[command(after_help = "Example:\n  trilithon resume")]
    Resume(Remote),
    /// Stop a standby's Postgres and keep it down.
    #[command(after_help = "Example:\n  trilithon fence dc3")]
    Fence(NodeArgs),
    /// Let a fenced member run Postgres again.
    #[command(after_help = "Example:\n  trilithon unfence dc3")]
    Unfence(NodeArgs),
    /// Replace a standby's data by a fresh copy of the primary's.
    #[command(after_help = "Example:\n  trilithon reinit dc3")]
    Reinit(NodeArgs),
    /// A node's configuration file, and the settings of the whole cluster.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Members of the cluster.
    Member {
        #[command(subcommand)]
        verb: MemberVerb,
    },
    /// Consensus.
    Raft {
        #[command(subcommand)]
        verb: RaftVerb,
    },
    /// Connection strings for applications.
    #[command(after_help = "Example:\n  psql \"$(trilithon dsn primary)\"")]
    Dsn(DsnArgs),
    /// Run SQL through the proxies, or on one member.
    #[command(
        after_help = "Example:\n  trilithon query \"SELECT now()\"\n  trilithon query --on dc2 \"SELECT pg_is_in_recovery()\" -o json"
    )]
    Query(QueryArgs),
    /// Certificates for members and operators, from a small authority of the cluster's own.
    Certs {
        #[command(subcommand)]
        verb: CertsVerb,
    },
    /// Version of this program and of the nodes.
    #[command(after_help = "Example:\n  trilithon version")]
    Version(VersionArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

/// How to reach the cluster, and how to answer.
#[derive(Clone, Debug, Default, Args)]
pub struct Remote {
    /// File with endpoints and certificates. Default: ./.demo/trilithon-cli.toml, ./trilithon-cli.toml, ~/.config/trilithon/cli.toml.
    #[arg(short, long, value_name = "FILE", env = "TRILITHON_CLI_CONFIG")]
    pub config: Option<PathBuf>,
    /// A node's gRPC address, in place of those in the file; may be given several times.
    #[arg(short, long = "endpoint", value_name = "HOST:PORT")]
    pub endpoints: Vec<String>,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with new events until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// Begin after this revision. Default: all that are remembered.
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    pub after: u64,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The next primary. Default: the best candidate.
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// The next primary.
    #[arg(long, value_name = "NODE")]
    pub to: String,
    /// Elect it even where no reachable member is known to hold every acknowledged write.
    #[arg(long)]
    pub allow_data_loss: bool,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Name of the member.
    pub node: String,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Write a commented example of a node's configuration file.
    #[command(after_help = "Example:\n  trilithon config init --name dc1 /etc/trilithon/trilithon.toml")]
    Init(ConfigInitArgs),
    /// Check a node's configuration file.
    #[command(after_help = "Example:\n  trilithon config check /etc/trilithon/trilithon.toml")]
    Check(ConfigCheckArgs),
    /// Show the settings of the whole cluster.
    #[command(after_help = "Example:\n  trilithon config show")]
    Show(Remote),
    /// Change one setting of the whole cluster; without a value, put its default back.
    #[command(
        after_help = "Example:\n  trilithon config set ha.lease_ttl 5s\n  trilithon config set postgres.parameters.work_mem 16MB\n  trilithon config set ha.lease_ttl"
    )]
    Set(ConfigSetArgs),
}

#[derive(Debug, Args)]
pub struct ConfigInitArgs {
    /// Where to write it; an existing file is never overwritten. Default: standard output.
    pub file: Option<PathBuf>,
    /// Name of the node.
    #[arg(long, default_value = "dc1")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// The file.
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct ConfigSetArgs {
    /// As `config show` lists it.
    pub key: String,
    /// Left out: back to the default, or the parameter removed.
    #[arg(allow_hyphen_values = true)]
    pub value: Option<String>,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Subcommand)]
pub enum MemberVerb {
    /// Members with their addresses and tags.
    #[command(after_help = "Example:\n  trilithon member list")]
    List(Remote),
    /// Take a member out for good; its data directory is left as it is.
    #[command(after_help = "Example:\n  trilithon member remove dc3")]
    Remove(NodeArgs),
    /// Change a member's tags: priority, nofailover, nosync, noloadbalance.
    #[command(after_help = "Example:\n  trilithon member tag dc3 nofailover=true priority=50")]
    Tag(TagArgs),
}

#[derive(Debug, Args)]
pub struct TagArgs {
    /// Name of the member.
    pub node: String,
    /// What to change.
    #[arg(required = true, value_name = "TAG=VALUE", value_parser = pair)]
    pub tags: Vec<(String, String)>,
    #[command(flatten)]
    pub remote: Remote,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (tag, value) = text.split_once('=').ok_or("write it as TAG=VALUE, as in nofailover=true")?;
    Ok((tag.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub enum RaftVerb {
    /// Role, term, leader and log positions of the node that answers.
    #[command(after_help = "Example:\n  trilithon raft status --endpoint 127.0.0.1:7432")]
    Status(Remote),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Listener {
    /// Reads to a near standby, writes to the primary.
    Auto,
    /// Always the primary.
    Primary,
    /// Always a standby.
    Standby,
}

#[derive(Debug, Args)]
pub struct DsnArgs {
    /// Print only this one.
    pub listener: Option<Listener>,
    /// Name of the database.
    #[arg(short, long, default_value = "postgres")]
    pub database: String,
    /// Name of the user.
    #[arg(short, long, default_value = "postgres")]
    pub user: String,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
pub struct QueryArgs {
    /// One or more statements.
    pub sql: String,
    /// Which of the proxies' listeners.
    #[arg(long, value_enum, default_value = "auto", conflicts_with = "on")]
    pub listener: Listener,
    /// This member's own Postgres, past the proxies.
    #[arg(long, value_name = "NODE")]
    pub on: Option<String>,
    /// Name of the database.
    #[arg(short, long, default_value = "postgres")]
    pub database: String,
    /// Name of the user. Default: as in the file, else postgres.
    #[arg(short, long)]
    pub user: Option<String>,
    /// File that holds the password. Default: as in the file; PGPASSWORD wins over both.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Only of this program.
    #[arg(long)]
    pub client: bool,
    /// The seeded bugs that were built into this program.
    #[cfg(feature = "bugs")]
    #[arg(long)]
    pub bugs: bool,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Subcommand)]
pub enum CertsVerb {
    /// Create the authority: ca.pem and ca.key.
    #[command(after_help = "Example:\n  trilithon certs init --dir certs")]
    Init(CertsInitArgs),
    /// Issue a certificate: NAME.pem and NAME.key.
    #[command(
        after_help = "Example:\n  trilithon certs issue dc1 --san 10.0.1.1 --dir certs\n  trilithon certs issue alice --role operator --dir certs"
    )]
    Issue(CertsIssueArgs),
}

#[derive(Debug, Args)]
pub struct CertsInitArgs {
    /// Folder of the authority.
    #[arg(long, default_value = "certs")]
    pub dir: PathBuf,
    /// Days until it ends.
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CertificateRole {
    /// A member of the cluster.
    Peer,
    /// May change the cluster.
    Operator,
    /// May only ask.
    Reader,
}

#[derive(Debug, Args)]
pub struct CertsIssueArgs {
    /// For a member, its node.name; otherwise whose it is.
    pub name: String,
    /// What its bearer may do.
    #[arg(long, value_enum, default_value = "peer")]
    pub role: CertificateRole,
    /// Host names and addresses under which others reach this member; may be given several times.
    #[arg(long = "san", value_name = "HOST", value_delimiter = ',')]
    pub sans: Vec<String>,
    /// Folder of the authority.
    #[arg(long, default_value = "certs")]
    pub dir: PathBuf,
    /// Days until it ends.
    #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}
