//! What Patroni and etcd say of themselves, as one state of the cluster. PURE.
//!
//! `/patroni` is each node's own view, taken from its Postgres at that moment; what etcd keeps of others may be as old as the ttl. So
//! the cluster is put together from own views: whoever does not answer is unreachable, whatever others still believe of it.

use crate::cluster::status::{Member, Rule, Status};
use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Of Patroni's answer, what is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Own {
    state: String,
    role: String,
    timeline: Option<u32>,
    server_version: Option<u32>,
    replication_state: Option<String>,
    replication: Vec<Stream>,
    pause: bool,
    cluster_unlocked: bool,
    database_system_identifier: Option<String>,
    patroni: Program,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Program {
    version: String,
}

/// A walsender, as the primary sees it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Stream {
    application_name: String,
    state: String,
    sync_state: String,
}

/// Of etcd's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Consensus {
    header: Header,
    leader: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    member_id: String,
}

/// One node's answers: a state with one member, itself. Its rule is who may confirm commits, where it is primary.
///
/// # Errors
/// Not an answer of Patroni's.
pub(super) fn of_node(node: &str, answers: &[String]) -> Result<Status> {
    let body = answers.first().context("a question was not asked")?;
    let own: Own = serde_json::from_str(body).with_context(|| format!("{node}: not an answer to /patroni"))?;
    let is_primary = own.role == "primary" && own.state == "running";
    let confirming = |s: &&Stream| s.state == "streaming" && matches!(s.sync_state.as_str(), "quorum" | "sync");
    let standbys: Vec<String> = own.replication.iter().filter(confirming).map(|s| s.application_name.clone()).collect();
    Ok(Status {
        cluster: super::files::SCOPE.to_owned(),
        phase: if own.cluster_unlocked { "electing" } else { "steady" }.to_owned(),
        epoch: own.timeline.map_or(0, u64::from),
        primary: is_primary.then(|| node.to_owned()),
        rule: is_primary.then_some(Rule { standbys, acks: 1, changing: false }),
        paused: own.pause,
        writable: is_primary,
        quorum: is_primary,
        system: own.database_system_identifier.clone(),
        answered_by: node.to_owned(),
        members: vec![member(node, &own, answers.get(1).map(String::as_str))],
        ..Status::default()
    })
}

fn member(node: &str, own: &Own, consensus: Option<&str>) -> Member {
    let is_primary = own.role == "primary";
    let running = own.state == "running";
    let state = match own.replication_state.as_deref() {
        Some(state) if running && !is_primary => state,
        None | Some(_) => &own.state,
    };
    let consensus: Consensus = consensus.and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
    let leads = !consensus.leader.is_empty() && consensus.leader == consensus.header.member_id;
    Member {
        name: node.to_owned(),
        datacenter: node.to_owned(),
        role: if is_primary { "primary" } else { "standby" }.to_owned(),
        // In Trilithon's words.
        state: if state == "creating replica" { "cloning" } else { state }.to_owned(),
        timeline: own.timeline,
        raft: (!consensus.leader.is_empty()).then(|| if leads { "leader" } else { "follower" }.to_owned()),
        version: own.patroni.version.clone(),
        postgres_version: own.server_version.map(|v| format!("{}.{}", v / 10_000, v % 10_000)),
        step: own.state.clone(),
        ..Member::default()
    }
}

/// All answers as one. Of several that call themselves primary, the newest timeline counts.
pub(super) fn of_cluster<'a>(names: impl Iterator<Item = &'a str>, answers: Vec<Status>) -> Option<Status> {
    let newest = answers.iter().max_by_key(|status| (status.primary.is_some(), status.epoch))?;
    let mut whole = newest.clone();
    if whole.primary.is_none() {
        "electing".clone_into(&mut whole.phase);
    }
    let confirming = whole.rule.as_ref().map(|rule| rule.standbys.clone()).unwrap_or_default();
    let known = answers.into_iter().flat_map(|status| status.members).collect::<Vec<_>>();
    whole.members = names
        .map(|name| {
            let mut member = known.iter().find(|m| m.name == name).cloned().unwrap_or_else(|| unreachable(name));
            member.sync = confirming.iter().any(|standby| standby == name).then(|| "sync".to_owned());
            member
        })
        .collect();
    Some(whole)
}

fn unreachable(name: &str) -> Member {
    let (role, state) = ("standby".to_owned(), "unreachable".to_owned());
    Member { name: name.to_owned(), datacenter: name.to_owned(), role, state, ..Member::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: &str = r#"{"state": "running", "role": "primary", "timeline": 3, "server_version": 150018, "replication": [
        {"application_name": "dc2", "state": "streaming", "sync_state": "quorum"},
        {"application_name": "dc3", "state": "streaming", "sync_state": "quorum"}], "patroni": {"version": "4.1.5"}}"#;
    const STANDBY: &str =
        r#"{"state": "running", "role": "replica", "timeline": 3, "replication_state": "streaming", "quorum_standby": true}"#;
    const LEADER: &str = r#"{"header": {"member_id": "7"}, "leader": "7"}"#;
    const FOLLOWER: &str = r#"{"header": {"member_id": "8"}, "leader": "7"}"#;

    fn said(node: &str, patroni: &str, etcd: &str) -> Status {
        of_node(node, &[patroni.to_owned(), etcd.to_owned()]).unwrap()
    }

    fn names() -> impl Iterator<Item = &'static str> {
        ["dc1", "dc2", "dc3"].into_iter()
    }

    #[test]
    fn a_whole_cluster_is_redundant() {
        let answers = vec![said("dc1", PRIMARY, FOLLOWER), said("dc2", STANDBY, LEADER), said("dc3", STANDBY, FOLLOWER)];
        let whole = of_cluster(names(), answers).unwrap();
        assert!(whole.is_whole(3), "{}", whole.in_words());
        assert_eq!((whole.epoch, whole.members[1].raft.as_deref()), (3, Some("leader")));
        assert_eq!(whole.members[0].postgres_version.as_deref(), Some("15.18"));
    }

    #[test]
    fn who_does_not_answer_is_unreachable_whatever_the_primary_sees() {
        let whole = of_cluster(names(), vec![said("dc1", PRIMARY, ""), said("dc2", STANDBY, "")]).unwrap();
        assert_eq!(whole.members[2].state, "unreachable");
        assert!(whole.is_writable() && !whole.is_redundant());
    }

    #[test]
    fn without_a_primary_it_is_electing() {
        let whole = of_cluster(names(), vec![said("dc2", STANDBY, "")]).unwrap();
        assert!(!whole.is_writable());
        assert_eq!(whole.phase, "electing");
        assert!(of_cluster(names(), Vec::new()).is_none());
    }

    #[test]
    fn of_two_primaries_the_newer_timeline_counts() {
        let newer = PRIMARY.replace("\"timeline\": 3", "\"timeline\": 4");
        let whole = of_cluster(names(), vec![said("dc1", PRIMARY, ""), said("dc2", &newer, ""), said("dc3", STANDBY, "")]).unwrap();
        assert_eq!(whole.primary.as_deref(), Some("dc2"));
        assert!(!whole.is_redundant());
    }
}
