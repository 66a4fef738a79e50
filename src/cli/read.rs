//! Verbs that ask.

use super::args::{DsnArgs, EventsArgs, Listener, Output, Remote, VersionArgs};
use super::client::{Client, Failure, failure};
use super::render::{BAD, BOLD, BUSY, DIM, GOOD, PLAIN, Table, WARNING, as_json, bytes, clock, millis, state_style};
use crate::proto::v1::{
    ClusterStatus, ConfigShowRequest, Event, EventsRequest, HistoryRequest, MemberStatus, RaftStatusRequest, StatusReply, StatusRequest,
    TagsStatus, TopologyMember, TopologyReply, TopologyRequest, VersionRequest,
};
use serde::Serialize;
use std::collections::BTreeMap;

async fn fetch_status(client: &Client) -> Result<ClusterStatus, Failure> {
    // A node that is cut off answers too, with an old truth: prefer one that hears a majority.
    let informed = |reply: &StatusReply| reply.status.as_ref().is_some_and(|s| s.quorum);
    let reply = client.ask(informed, |mut admin| async move { admin.status(StatusRequest {}).await }).await?;
    Ok(reply.status.unwrap_or_default())
}

async fn fetch_topology(client: &Client) -> Result<TopologyReply, Failure> {
    client.ask(|_| true, |mut admin| async move { admin.topology(TopologyRequest {}).await }).await
}

pub(super) async fn status(remote: &Remote) -> Result<(), Failure> {
    let client = Client::new(remote)?;
    let status = fetch_status(&client).await?;
    if as_json(remote.output, &status)? {
        return Ok(());
    }
    anstream::print!("{}", render_status(&status));
    Ok(())
}

/// The whole answer of `status`.
pub(super) fn render_status(status: &ClusterStatus) -> String {
    let mut out = String::new();
    let phase = if status.writable { GOOD } else { BUSY };
    let primary = status.primary.as_deref().unwrap_or("none");
    out.push_str(&format!(
        "{BOLD}{}{BOLD:#}  {phase}{}{phase:#}  primary {BOLD}{primary}{BOLD:#}  epoch {}  revision {}\n",
        status.cluster, status.phase, status.epoch, status.revision
    ));
    let writes = match (&status.rule, status.writable) {
        (Some(rule), writable) => {
            let verb = if writable { "writes accepted" } else { "no writes accepted" };
            let waits = match rule.acks {
                0 => "no standby confirms commits".to_owned(),
                n => format!("commits wait for any {n} of {}", rule.standbys.join(", ")),
            };
            let changing = if rule.changing { " (changing)" } else { "" };
            format!("{verb}; {waits}{changing}")
        }
        (None, _) => "no database yet".to_owned(),
    };
    let lease = status.lease.as_ref().and_then(|l| Some(format!("; lease of {}: {} left", l.holder.as_ref()?, millis(l.remaining_ms?))));
    out.push_str(&format!("{writes}{}\n{DIM}reason{DIM:#} {}\n\n", lease.unwrap_or_default(), status.reason));
    out.push_str(&member_table(&status.members).render());
    if !status.warnings.is_empty() {
        out.push('\n');
    }
    for warning in &status.warnings {
        out.push_str(&format!("{WARNING}warning{WARNING:#} {warning}\n"));
    }
    out
}

fn member_table(members: &[MemberStatus]) -> Table {
    let header = ["MEMBER", "DC", "ROLE", "STATE", "TL", "LSN", "LAG", "BEHIND", "SYNC", "RAFT", "TAGS", "POSTGRES", "VERSION"];
    let mut table = Table::new(&header, &[4, 6, 7]);
    for m in members {
        let role = if m.role == "primary" { BOLD } else { PLAIN };
        let plain = |text: String| (text, PLAIN);
        let sync = if m.sync.as_deref() == Some("sync") { GOOD } else { PLAIN };
        table.row(vec![
            (m.name.clone(), BOLD),
            plain(m.datacenter.clone()),
            (m.role.clone(), role),
            (m.state.clone(), state_style(&m.state)),
            plain(m.timeline.map(|t| t.to_string()).unwrap_or_default()),
            plain(m.lsn.clone().unwrap_or_default()),
            plain(m.lag_bytes.map(bytes).unwrap_or_default()),
            plain(m.lag_seconds.map(|s| format!("{s:.1} s")).unwrap_or_default()),
            (m.sync.clone().unwrap_or_default(), sync),
            plain(m.raft.clone().unwrap_or_default()),
            plain(m.tags.as_ref().map(tags).unwrap_or_default()),
            plain(m.postgres_version.clone().unwrap_or_default()),
            plain(m.version.clone()),
        ]);
    }
    table
}

/// Only what differs from the ordinary.
fn tags(tags: &TagsStatus) -> String {
    let flags = [(tags.nofailover, "nofailover"), (tags.nosync, "nosync"), (tags.noloadbalance, "noloadbalance"), (tags.fenced, "fenced")];
    let mut shown: Vec<String> = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()).collect();
    if tags.priority != 100 {
        shown.push(format!("priority={}", tags.priority));
    }
    shown.join(" ")
}

pub(super) async fn topology(remote: &Remote) -> Result<(), Failure> {
    let client = Client::new(remote)?;
    let topology = fetch_topology(&client).await?;
    if as_json(remote.output, &topology)? {
        return Ok(());
    }
    anstream::print!("{}", render_topology(&topology));
    Ok(())
}

/// A tree: each member below the one whose WAL it receives.
pub(super) fn render_topology(topology: &TopologyReply) -> String {
    let mut out = format!("{BOLD}{}{BOLD:#}\n", topology.cluster);
    let known = |name: &Option<String>| name.as_ref().is_some_and(|n| topology.members.iter().any(|m| m.name == *n));
    let roots: Vec<&TopologyMember> = topology.members.iter().filter(|m| !known(&m.upstream)).collect();
    branches(topology, &roots, "", 0, &mut out);
    out
}

fn branches(topology: &TopologyReply, members: &[&TopologyMember], indent: &str, depth: usize, out: &mut String) {
    for (i, m) in members.iter().enumerate() {
        let last = i + 1 == members.len();
        let state = state_style(&m.state);
        let lag = m.lag_bytes.map_or(String::new(), |lag| format!("  lag {}", bytes(lag)));
        let fork = if last { "└─ " } else { "├─ " };
        let address = if m.postgres.is_empty() { String::new() } else { format!("  {DIM}{}{DIM:#}", m.postgres) };
        out.push_str(&format!("{indent}{fork}{BOLD}{}{BOLD:#} {}  {state}{}{state:#}{lag}{address}\n", m.name, m.role, m.state));
        // Two members that each claim to stream from the other would go round for ever.
        if depth < topology.members.len() {
            let below: Vec<&TopologyMember> = topology.members.iter().filter(|c| c.upstream.as_deref() == Some(&m.name)).collect();
            let next = if last { format!("{indent}   ") } else { format!("{indent}│  ") };
            branches(topology, &below, &next, depth + 1, out);
        }
    }
}

pub(super) async fn history(remote: &Remote) -> Result<(), Failure> {
    let client = Client::new(remote)?;
    let history = client.ask(|_| true, |mut admin| async move { admin.history(HistoryRequest {}).await }).await?;
    if as_json(remote.output, &history.changes)? {
        return Ok(());
    }
    let mut table = Table::new(&["EPOCH", "TL", "FROM", "TO", "AT", "CAUSE", "OUTAGE", "NOTE"], &[0, 1, 6]);
    for change in &history.changes {
        let note = match (change.settled, change.accept_loss) {
            (_, true) => ("possible data loss was accepted", BAD),
            (false, false) => ("not settled yet", BUSY),
            (true, false) => ("", PLAIN),
        };
        table.row(vec![
            (change.epoch.to_string(), PLAIN),
            (change.timeline.map(|t| t.to_string()).unwrap_or_default(), PLAIN),
            (change.from.clone().unwrap_or_default(), PLAIN),
            (change.to.clone(), BOLD),
            (change.lsn.clone(), PLAIN),
            (change.cause.clone(), PLAIN),
            (change.outage_ms.map(millis).unwrap_or_default(), PLAIN),
            (note.0.to_owned(), note.1),
        ]);
    }
    table.print();
    Ok(())
}

pub(super) async fn events(args: &EventsArgs) -> Result<(), Failure> {
    let client = Client::new(&args.remote)?;
    let request = EventsRequest { after_revision: Some(args.after), no_follow: !args.follow };
    let mut stream = client.open(move |mut admin| async move { admin.events(request).await }).await?;
    loop {
        match stream.message().await {
            Ok(Some(event)) => print_event(args.remote.output, &event)?,
            Ok(None) => return Ok(()),
            Err(status) => return Err(failure(&status)),
        }
    }
}

fn print_event(output: Output, event: &Event) -> Result<(), Failure> {
    if output == Output::Json {
        let line = serde_json::to_string(event).unwrap_or_default();
        anstream::println!("{line}");
        return Ok(());
    }
    let style = match event.kind.as_str() {
        "primary" => GOOD,
        "phase" => BUSY,
        _ => PLAIN,
    };
    anstream::println!("{DIM}{}{DIM:#}  {style}{:<10}{style:#} {}", clock(event.unix_ms), event.kind, event.message);
    Ok(())
}

#[derive(Serialize)]
struct Dsns {
    auto: String,
    primary: String,
    standby: String,
    direct: String,
}

pub(super) async fn dsn(args: &DsnArgs) -> Result<(), Failure> {
    let client = Client::new(&args.remote)?;
    let topology = fetch_topology(&client).await?;
    let tail = |attributes: &str| format!("/{}{attributes}", args.database);
    let uri = |address: fn(&TopologyMember) -> &String, attributes: &str| {
        let hosts: Vec<&str> = topology.members.iter().map(|m| address(m).as_str()).filter(|a| !a.is_empty()).collect();
        format!("postgresql://{}@{}{}", args.user, hosts.join(","), tail(attributes))
    };
    let dsns = Dsns {
        auto: uri(|m| &m.proxy_auto, ""),
        primary: uri(|m| &m.proxy_primary, ""),
        standby: uri(|m| &m.proxy_standby, ""),
        direct: uri(|m| &m.postgres, "?target_session_attrs=read-write"),
    };
    match args.listener {
        Some(Listener::Auto) => anstream::println!("{}", dsns.auto),
        Some(Listener::Primary) => anstream::println!("{}", dsns.primary),
        Some(Listener::Standby) => anstream::println!("{}", dsns.standby),
        None if as_json(args.remote.output, &dsns)? => {}
        None => {
            let mut table = Table::new(&["FOR", "CONNECTION STRING", "MEANING"], &[]);
            let rows = [
                ("auto", &dsns.auto, "reads to a near standby, writes to the primary"),
                ("primary", &dsns.primary, "always the primary"),
                ("standby", &dsns.standby, "always a standby"),
                ("direct", &dsns.direct, "Postgres itself, past the proxies"),
            ];
            for (name, uri, meaning) in rows {
                table.row(vec![(name.to_owned(), BOLD), (uri.clone(), PLAIN), (meaning.to_owned(), DIM)]);
            }
            table.print();
        }
    }
    Ok(())
}

pub(super) async fn raft_status(remote: &Remote) -> Result<(), Failure> {
    let client = Client::new(remote)?;
    let raft = client.ask(|_| true, |mut admin| async move { admin.raft_status(RaftStatusRequest {}).await }).await?;
    if as_json(remote.output, &raft)? {
        return Ok(());
    }
    let number = |n: Option<u64>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
    let quorum = if raft.has_quorum { (GOOD, "quorum") } else { (BAD, "no quorum") };
    let leader = raft.leader.as_deref().unwrap_or("none");
    let age = raft.quorum_acked_ms.map_or(String::new(), |ms| format!(", a majority answered {} ago", millis(ms)));
    anstream::println!(
        "{BOLD}{}{BOLD:#} (n{}) is {}  term {}  leader {BOLD}{leader}{BOLD:#}  {}{}{:#}{age}",
        raft.node,
        raft.id,
        raft.role,
        raft.term,
        quorum.0,
        quorum.1,
        quorum.0
    );
    let (last, committed) = (number(raft.last_log), number(raft.committed));
    anstream::println!("log {last}  committed {committed}  applied {}  snapshot {}\n", number(raft.applied), number(raft.snapshot));
    let mut table = Table::new(&["MEMBER", "ID", "VOTES", "ADDRESS", "MATCHED"], &[4]);
    for member in &raft.members {
        let votes = if member.voter { "yes" } else { "no (learner)" };
        table.row(vec![
            (member.name.clone(), BOLD),
            (format!("n{}", member.id), PLAIN),
            (votes.to_owned(), PLAIN),
            (member.address.clone(), PLAIN),
            (member.matched.map(|m| m.to_string()).unwrap_or_default(), PLAIN),
        ]);
    }
    table.print();
    Ok(())
}

pub(super) async fn members(remote: &Remote) -> Result<(), Failure> {
    let client = Client::new(remote)?;
    let (topology, status) = (fetch_topology(&client).await?, fetch_status(&client).await?);
    if as_json(remote.output, &topology.members)? {
        return Ok(());
    }
    let header = ["MEMBER", "ID", "DC", "ROLE", "STATE", "POSTGRES", "AUTO", "PRIMARY", "STANDBY", "GRPC", "HTTP", "TAGS"];
    let mut table = Table::new(&header, &[]);
    for m in &topology.members {
        let known = status.members.iter().find(|s| s.name == m.name);
        let plain = |text: &str| (text.to_owned(), PLAIN);
        table.row(vec![
            (m.name.clone(), BOLD),
            (known.map(|s| format!("n{}", s.id)).unwrap_or_default(), PLAIN),
            plain(&m.datacenter),
            plain(&m.role),
            (m.state.clone(), state_style(&m.state)),
            plain(&m.postgres),
            plain(&m.proxy_auto),
            plain(&m.proxy_primary),
            plain(&m.proxy_standby),
            plain(&m.grpc),
            plain(&m.http),
            (known.and_then(|s| s.tags.as_ref()).map(tags).unwrap_or_default(), PLAIN),
        ]);
    }
    table.print();
    Ok(())
}

pub(super) async fn config_show(remote: &Remote) -> Result<(), Failure> {
    let client = Client::new(remote)?;
    let shown = client.ask(|_| true, |mut admin| async move { admin.config_show(ConfigShowRequest {}).await }).await?;
    if remote.output == Output::Json {
        // TOML literals of strings, numbers, truth values and lists are JSON too.
        let value = |text: &String| serde_json::from_str(text).unwrap_or(serde_json::Value::String(text.clone()));
        let values: BTreeMap<&String, serde_json::Value> = shown.settings.iter().map(|(key, text)| (key, value(text))).collect();
        as_json(remote.output, &values)?;
        return Ok(());
    }
    for (key, value) in &shown.settings {
        anstream::println!("{key} = {BOLD}{value}{BOLD:#}");
    }
    Ok(())
}

#[derive(Serialize)]
struct Versions {
    client: String,
    nodes: BTreeMap<String, String>,
}

pub(super) async fn version(args: &VersionArgs) -> Result<(), Failure> {
    #[cfg(feature = "bugs")]
    if args.bugs {
        crate::bug::Bug::ALL.iter().for_each(|bug| anstream::println!("{:<28} {}", bug.name(), bug.about()));
        return Ok(());
    }
    let mut versions = Versions { client: env!("CARGO_PKG_VERSION").to_owned(), nodes: BTreeMap::new() };
    // Without a cluster at hand the program still has a version.
    if !args.client
        && let Ok(client) = Client::new(&args.remote)
    {
        let reply = client.ask(|_| true, |mut admin| async move { admin.version(VersionRequest {}).await }).await;
        if reply.is_ok() {
            let members = fetch_status(&client).await?.members;
            versions.nodes = members.into_iter().map(|m| (m.name, m.version)).collect();
        }
    }
    if as_json(args.remote.output, &versions)? {
        return Ok(());
    }
    anstream::println!("trilithon {}", versions.client);
    for (node, version) in &versions.nodes {
        let version = if version.is_empty() { "unreachable" } else { version };
        anstream::println!("{node} {version}");
    }
    Ok(())
}
