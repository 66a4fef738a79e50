//! The configuration that Trilithon owns, and the settings that nobody else may change.
//!
//! Protected settings come in two kinds. What stays the same while a server runs is given on its command line, which outranks
//! every file and ALTER SYSTEM. What changes while it runs (whom to follow, who confirms a commit) is in our own file, which is
//! read after `postgresql.conf`; only `postgresql.auto.conf` comes later, so protected names are removed from that one.
//!
//! Deliberately absent: any decision about what to follow or who confirms.

use super::layout::Layout;
use super::user::own_name;
use crate::bug::{self, Bug};
use crate::cluster::SyncRule;
use crate::types::{Epoch, Lsn, NodeId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The role that standbys stream and rewind with.
pub const REPLICATION_ROLE: &str = "trilithon_replication";
/// The role that Trilithon itself uses.
pub const SUPERUSER: &str = "postgres";

/// What a standby streams from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub node: NodeId,
    /// Epoch under which it was decided to follow this node.
    pub epoch: Epoch,
    pub host: String,
    pub port: u16,
}

/// Whose confirmation a commit waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SyncNames {
    /// Nobody can confirm: a server that was promoted by anybody but us acknowledges nothing. In force on every standby. It also
    /// means that the promotion only replaces one list by another, which takes effect at once (an empty list does not).
    #[default]
    Closed,
    Members {
        acks: usize,
        standbys: BTreeSet<NodeId>,
    },
}

impl SyncNames {
    pub fn of(rule: &SyncRule) -> SyncNames {
        SyncNames::Members { acks: rule.acks, standbys: rule.standbys.clone() }
    }

    /// The value of `synchronous_standby_names`.
    pub fn value(&self) -> String {
        match self {
            SyncNames::Closed => "ANY 1 (trilithon_nobody)".to_owned(),
            SyncNames::Members { .. } if bug::is(Bug::NamesEmptied) => String::new(),
            SyncNames::Members { acks: 0, .. } => String::new(),
            SyncNames::Members { acks, standbys } => {
                let names: Vec<String> = standbys.iter().map(|n| application_name(*n)).collect();
                format!("ANY {acks} ({})", names.join(", "))
            }
        }
    }
}

/// `trilithon_n2`: under this name a member's walreceiver reports, and its slot is called so.
pub(super) fn application_name(node: NodeId) -> String {
    format!("trilithon_{node}")
}

/// The member that reports under `name`.
pub(super) fn node_of(name: &str) -> Option<NodeId> {
    name.strip_prefix("trilithon_n")?.parse().ok().map(NodeId)
}

/// A promotion that we ordered: on which timeline for which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promotion {
    pub epoch: Epoch,
    pub timeline: Timeline,
}

/// Where the WAL of a standby ended when we stopped it: proved while it still ran, since pg_control need not know it, or as `lockout` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoppedAt {
    pub timeline: Timeline,
    pub lsn: Lsn,
    /// All of it had been replayed: the data files hold what it says.
    #[serde(default)]
    pub replayed: bool,
    /// Digest of pg_control after that stop: any later start makes it differ.
    pub control: String,
}

/// It was started as a standby that follows nobody, and has followed nobody since: nothing was added to its WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Alone {
    /// Where its WAL had ended before that start, where it was known.
    pub end: Option<(Timeline, Lsn)>,
}

/// The timelines that a directory took when somebody promoted it by hand. What it holds of them is no part of the cluster, whoever claims
/// the numbers later (INV-8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ByHand {
    /// Of the directory: a copy that takes its place is another one.
    pub inode: u64,
    pub timelines: BTreeSet<Timeline>,
}

/// What Postgres was last told to be. Persisted before the files that Postgres reads are written, so that a successor of this
/// process knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Intent {
    pub upstream: Option<Upstream>,
    pub sync: SyncNames,
    pub promotion: Option<Promotion>,
    pub stopped: Option<StoppedAt>,
    pub alone: Option<Alone>,
    pub by_hand: Option<ByHand>,
}

/// PostgreSQL's settings that come from the configuration of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub parameters: BTreeMap<String, String>,
    pub hba: Vec<String>,
}

/// Settings that only Trilithon sets. A wish for one of them is ignored and reported.
pub const PROTECTED: &[&str] = &[
    "allow_alter_system",
    "archive_cleanup_command",
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "logging_collector",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restart_after_crash",
    "restore_command",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_log_hints",
];

/// Is `name` a setting that only Trilithon sets?
#[must_use]
pub fn is_protected(name: &str) -> bool {
    PROTECTED.contains(&name.to_ascii_lowercase().as_str())
}

/// May ALTER SYSTEM not have the last word on `name`? Beside the protected settings these are those that the cluster's configuration may ask
/// for within bounds: what stands in `postgresql.auto.conf` is read after our file, on this node alone, and no bound holds there. With
/// `synchronous_commit = off` clients would be acknowledged what no standby has, under a rule that was proved (P1). Not `wal_level`: a server
/// with logical slots does not start without the one that was asked for there, and what is too low says so at a start.
pub(super) fn is_overruled(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    is_protected(&name) || name == "synchronous_commit" || AT_LEAST_AS_PRIMARY.iter().any(|(n, _)| *n == name)
}

/// Settings that a standby must have at least as large as the server that wrote its WAL, with PostgreSQL's default.
pub(super) const AT_LEAST_AS_PRIMARY: &[(&str, u64)] = &[
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// What a configuration may override. The rest of PostgreSQL's defaults stay.
const DEFAULTS: &[(&str, &str)] = &[
    ("password_encryption", "scram-sha-256"),
    ("max_replication_slots", "16"),
    // Trilithon holds one connection and opens up to three more; clients must not be able to take them away.
    ("superuser_reserved_connections", "6"),
    // A dead member's slot may hold back this much WAL, then it is given up, so that it cannot fill the primary's disk.
    ("max_slot_wal_keep_size", "8GB"),
    ("wal_keep_size", "128MB"),
    // How soon a standby tries again after its stream broke; PostgreSQL's 5 s would dominate a failover.
    ("wal_retrieve_retry_interval", "500ms"),
    ("wal_receiver_timeout", "10s"),
    ("wal_sender_timeout", "10s"),
    ("wal_receiver_status_interval", "1s"),
    ("hot_standby_feedback", "on"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "3"),
    ("tcp_keepalives_count", "3"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
];

/// The command line's settings: they outrank every file, so ALTER SYSTEM cannot touch them.
pub(super) fn command_line(layout: &Layout, listen: &str, port: u16, node: NodeId, major: u32) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> = [
        ("config_file", layout.config_file().display().to_string()),
        ("hba_file", layout.hba_file().display().to_string()),
        ("ident_file", layout.ident_file().display().to_string()),
        ("external_pid_file", String::new()),
        ("listen_addresses", listen.to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", layout.run.display().to_string()),
        ("cluster_name", application_name(node)),
        ("hot_standby", "on".to_owned()),
        ("wal_log_hints", "on".to_owned()),
        ("full_page_writes", "on".to_owned()),
        ("fsync", if bug::is(Bug::FsyncOff) { "off" } else { "on" }.to_owned()),
        ("recovery_target_timeline", "latest".to_owned()),
        ("recovery_min_apply_delay", "0".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("archive_mode", "off".to_owned()),
        // A primary that restarted itself would show commits that no standby has confirmed, and could lose them later (P3).
        ("restart_after_crash", "off".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    if major >= 17 {
        settings.push(("allow_alter_system".to_owned(), "off".to_owned()));
    }
    settings
}

/// Our configuration file. `control` holds the sizes that pg_control demands of a standby.
pub(super) fn render(
    layout: &Layout,
    me: NodeId,
    wishes: &Wishes,
    intent: &Intent,
    passfile: Option<&str>,
    control: &BTreeMap<String, u64>,
) -> String {
    let mut settings: BTreeMap<String, String> = DEFAULTS.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    for (name, value) in &wishes.parameters {
        if !is_protected(name) {
            settings.insert(name.to_ascii_lowercase(), value.clone());
        }
    }
    for (name, default) in AT_LEAST_AS_PRIMARY {
        let wished = settings.get(*name).and_then(|v| v.trim().parse::<u64>().ok());
        let needed = control.get(*name).copied().unwrap_or(0).max(wished.unwrap_or(*default));
        settings.insert((*name).to_owned(), needed.to_string());
    }
    // Replication needs more than `minimal`; `logical` may be wished for.
    let wal_level = if settings.get("wal_level").is_some_and(|v| v == "logical") { "logical" } else { "replica" };
    settings.insert("wal_level".to_owned(), wal_level.to_owned());
    if !matches!(settings.get("synchronous_commit").map(String::as_str), Some("remote_apply")) {
        settings.insert("synchronous_commit".to_owned(), "on".to_owned());
    }
    if bug::is(Bug::CommitLocal) {
        settings.insert("synchronous_commit".to_owned(), "local".to_owned());
    }
    settings.insert("synchronous_standby_names".to_owned(), intent.sync.value());
    settings.insert("restore_command".to_owned(), String::new());
    settings.insert("primary_conninfo".to_owned(), intent.upstream.as_ref().map_or_else(String::new, |u| conninfo(me, u, passfile)));
    let slot = intent.upstream.as_ref().map_or_else(String::new, |_| application_name(me));
    settings.insert("primary_slot_name".to_owned(), slot);

    let mut text = String::from("# Written by Trilithon. Changes made here are undone; use `trilithon config set`.\n");
    let included = layout.pgdata.join("postgresql.conf").display().to_string();
    let _ = writeln!(text, "include_if_exists {}", quote(&included));
    for (name, value) in &settings {
        let _ = writeln!(text, "{name} = {}", quote(value));
    }
    text
}

/// How a standby reaches its upstream. The name of the password file tells for whom and for which epoch it was written, so the
/// running walreceiver's own words say whom it really follows; without the file it cannot connect again.
pub(super) fn conninfo(me: NodeId, upstream: &Upstream, passfile: Option<&str>) -> String {
    let mut text = format!(
        "host={} port={} user={REPLICATION_ROLE} dbname=replication application_name={} connect_timeout=3 \
         keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000",
        conninfo_quote(&upstream.host),
        upstream.port,
        application_name(me)
    );
    if let Some(path) = passfile {
        let _ = write!(text, " passfile={}", conninfo_quote(path));
    }
    text
}

/// `upstream-n2-e7.pgpass`
pub(super) fn passfile_name(upstream: &Upstream) -> String {
    format!("upstream-{}-e{}.pgpass", upstream.node, upstream.epoch)
}

/// The node and epoch that a walreceiver's conninfo names through its password file.
pub(super) fn upstream_of(conninfo: &str) -> Option<(NodeId, Epoch)> {
    let name = conninfo.split("upstream-n").nth(1)?.split(".pgpass").next()?;
    let (node, epoch) = name.split_once("-e")?;
    Some((NodeId(node.parse().ok()?), Epoch(epoch.parse().ok()?)))
}

fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', " "))
}

fn conninfo_quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Which operating system users are the superuser: the one that Postgres runs as, and the one that this process runs as.
pub(super) fn render_ident(postgres_user: &str) -> String {
    let mut users = BTreeSet::from([postgres_user.to_owned()]);
    users.extend(own_name());
    users.iter().map(|user| format!("trilithon {user} {SUPERUSER}\n")).collect()
}

/// A protected setting was found changed; it has been restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    pub name: String,
    pub found: String,
    pub expected: String,
}

/// Takes what ALTER SYSTEM must not decide out of `postgresql.auto.conf`. Returns the new text and what was taken out, `None` when nothing was.
pub(super) fn strip_auto_conf(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let mut kept = String::new();
    let mut taken = Vec::new();
    for line in text.lines() {
        let setting = line.split_once('=').filter(|_| !line.trim_start().starts_with('#'));
        match setting {
            Some((name, value)) if is_overruled(name.trim()) => {
                taken.push((name.trim().to_ascii_lowercase(), value.trim().trim_matches('\'').replace("''", "'")));
            }
            Some(_) | None => {
                kept.push_str(line);
                kept.push('\n');
            }
        }
    }
    (!taken.is_empty()).then_some((kept, taken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn upstream() -> Upstream {
        Upstream { node: NodeId(2), epoch: Epoch(7), host: "10.0.0.2".into(), port: 5432 }
    }

    #[test]
    fn sync_names_say_any_k_of_the_members() {
        let rule = SyncRule::new(NodeId(1), [NodeId(1), NodeId(2), NodeId(3)], 1);
        assert_eq!(SyncNames::of(&rule).value(), "ANY 1 (trilithon_n2, trilithon_n3)");
        assert_eq!(SyncNames::of(&SyncRule::new(NodeId(1), [], 1)).value(), "");
        assert!(!SyncNames::Closed.value().is_empty(), "a standby's list is never empty");
    }

    #[test]
    fn the_walreceivers_words_name_node_and_epoch() {
        let u = upstream();
        let text = conninfo(NodeId(1), &u, Some(&format!("/var/lib/x/{}", passfile_name(&u))));
        assert_eq!(upstream_of(&text), Some((NodeId(2), Epoch(7))));
        assert_eq!(upstream_of("host=elsewhere"), None);
    }

    #[test]
    fn wishes_cannot_touch_protected_settings_and_never_shrink_what_the_wal_needs() {
        let layout = Layout::new(Path::new("/n"), None);
        let parameters = [
            ("fsync", "off"),
            ("Synchronous_Standby_Names", "x"),
            ("max_connections", "20"),
            ("work_mem", "1'MB"),
            ("synchronous_commit", "off"),
            ("wal_level", "minimal"),
        ];
        let wishes = Wishes { parameters: parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(), hba: vec![] };
        let control = BTreeMap::from([("max_connections".to_owned(), 250)]);
        let text = render(&layout, NodeId(1), &wishes, &Intent::default(), None, &control);
        assert!(!text.contains("fsync"));
        assert!(text.contains("synchronous_standby_names = 'ANY 1 (trilithon_nobody)'"));
        assert!(text.contains("max_connections = '250'"));
        assert!(text.contains("work_mem = '1''MB'"));
        assert!(text.contains("synchronous_commit = 'on'") && text.contains("wal_level = 'replica'"));
    }

    #[test]
    fn auto_conf_loses_only_protected_names() {
        let text = "# Do not edit\nwork_mem = '8MB'\nsynchronous_standby_names = 'a''b'\n";
        let (kept, taken) = strip_auto_conf(text).unwrap();
        assert_eq!(kept, "# Do not edit\nwork_mem = '8MB'\n");
        assert_eq!(taken, vec![("synchronous_standby_names".to_owned(), "a'b".to_owned())]);
        assert_eq!(strip_auto_conf(&kept), None);
        let (_, taken) = strip_auto_conf("synchronous_commit = 'off'\nwal_level = 'logical'\nMax_WAL_Senders = '0'\n").unwrap();
        assert_eq!(taken, [("synchronous_commit".into(), "off".into()), ("max_wal_senders".into(), "0".into())], "P1: read after our file");
    }
}
