//! Rules in force: proved by a marker, never by a wait that was cancelled, and restored when somebody changes the setting.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot go on panics; it measures with Instant.

use crate::postgres_rig::{LIMIT, Server, try_sql, until};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use trilithon::ha::Role;
use trilithon::postgres::PostgresError as Error;
use trilithon::types::{Epoch, NodeId, Timeline};

const SHORT: Duration = Duration::from_millis(1500);

/// Backends that wait for a standby's confirmation.
async fn waiting(server: &Server) -> Vec<i32> {
    let client = server.client().await;
    let pids = try_sql(&client, "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await.unwrap();
    pids.unwrap_or_default().split_whitespace().filter_map(|p| p.parse().ok()).collect()
}

#[tokio::test]
async fn a_rule_is_in_force_once_its_marker_is_confirmed() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    let begun = Instant::now();
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2], 1), LIMIT).await.unwrap();
    println!("applying a rule took {:?}", begun.elapsed());
    let seen = primary.facts().await;
    assert!(seen.standbys[&NodeId(2)].sync);
    assert_eq!(primary.sql("SHOW synchronous_standby_names").await.as_deref(), Some("ANY 1 (trilithon_n2)"));
    // A commit waits now, because the only standby is frozen out.
    standby.instance.detach(LIMIT).await.unwrap();
    let client = primary.client().await;
    let commit = tokio::task::spawn(async move { try_sql(&client, "CREATE TABLE t ()").await });
    until("the commit waits", || async { waiting(&primary).await.len() == 1 }).await;
    standby.instance.follow(primary.upstream(3), None, None).await.unwrap();
    commit.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_rule_that_nobody_can_confirm_fails_and_leaves_no_waiting_marker() {
    let primary = Server::primary(1).await;
    let refused = primary.instance.apply_rule(Epoch(2), &primary.rule(&[2], 1), SHORT).await;
    assert!(matches!(refused, Err(Error::RuleUnproved { confirmed: 0, needed: 1, .. } | Error::Timeout { .. })), "{refused:?}");
    until("the marker's session has ended", || async { waiting(&primary).await.is_empty() }).await;
    // Fewer confirmations than the rule asks for prove nothing.
    let _standby = Server::standby(2, &primary).await;
    let refused = primary.instance.apply_rule(Epoch(2), &primary.rule(&[2, 3], 2), SHORT).await;
    assert!(matches!(refused, Err(Error::RuleUnproved { .. } | Error::Timeout { .. })), "{refused:?}");
    {
        let rule = primary.rule(&[2, 3], 2);
        let mut broken_off = Box::pin(primary.instance.apply_rule(Epoch(2), &rule, LIMIT));
        tokio::select! {
            biased;
            () = until("the marker waits", || async { !waiting(&primary).await.is_empty() }) => {}
            ended = &mut broken_off => panic!("it ended first: {ended:?}"),
        }
    }
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2, 3], 1), LIMIT).await.unwrap();
    assert_eq!(waiting(&primary).await, [] as [i32; 0], "an attempt that was broken off leaves nothing waiting");
}

#[tokio::test]
async fn a_cancelled_wait_is_no_confirmation() {
    let primary = Server::primary(1).await;
    let rule = primary.rule(&[2], 1);
    let applied = primary.instance.apply_rule(Epoch(2), &rule, LIMIT);
    let cancelled = async {
        until("the marker waits", || async { waiting(&primary).await.len() == 1 }).await;
        let pid = waiting(&primary).await[0];
        primary.sql(&format!("SELECT pg_cancel_backend({pid})")).await;
    };
    let (applied, ()) = tokio::join!(applied, cancelled);
    assert!(matches!(applied, Err(Error::MarkerCancelled(_))), "{applied:?}");
}

#[tokio::test]
async fn narrowing_and_widening_are_seen_by_every_walsender() {
    let primary = Server::primary(1).await;
    let second = Server::standby(2, &primary).await;
    let third = Server::standby(3, &primary).await;
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2, 3], 2), LIMIT).await.unwrap();
    third.instance.detach(LIMIT).await.unwrap();
    let client = primary.client().await;
    let commit = tokio::task::spawn(async move { try_sql(&client, "CREATE TABLE t ()").await });
    until("the commit waits for both", || async { waiting(&primary).await.len() == 1 }).await;
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2], 1), LIMIT).await.unwrap();
    commit.await.unwrap().unwrap();
    assert!(primary.facts().await.standbys[&NodeId(2)].sync);
    drop(second);
}

#[tokio::test]
async fn a_frozen_standby_is_no_obstacle_to_a_rule_that_does_not_need_it() {
    let primary = Server::primary(1).await;
    let _second = Server::standby(2, &primary).await;
    let third = Server::standby(3, &primary).await;
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2, 3], 2), LIMIT).await.unwrap();
    let frozen: Vec<_> =
        crate::postgres_rig::processes_below(third.dir.path()).into_iter().filter_map(rustix::process::Pid::from_raw).collect();
    for pid in &frozen {
        rustix::process::kill_process(*pid, rustix::process::Signal::STOP).unwrap();
    }
    // Its walsender may still go by the old list: it is ended rather than trusted.
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2, 3], 1), LIMIT).await.unwrap();
    let seen = primary.facts().await;
    assert!(!seen.standbys.contains_key(&NodeId(3)), "{:?}", seen.standbys);
}

#[tokio::test]
async fn a_hand_made_primary_acknowledges_nothing() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    standby.sql("SELECT pg_promote(true)").await;
    let facts = standby.until("is a primary", |f| f.role == Some(Role::Primary)).await;
    assert_eq!(facts.timeline, Some(Timeline(3)));
    assert_eq!(standby.instance.promoted(), None, "nobody ordered it");
    let client = standby.client().await;
    let commit = tokio::task::spawn(async move { try_sql(&client, "CREATE TABLE t ()").await });
    until("its commit waits", || async { waiting(&standby).await.len() == 1 }).await;
    standby.instance.demote().await.unwrap();
    commit.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn protected_settings_are_restored_and_reported() {
    let primary = Server::primary(1).await;
    let _standby = Server::standby(2, &primary).await;
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2], 1), LIMIT).await.unwrap();
    assert_eq!(primary.instance.drift().await.unwrap(), []);
    // PostgreSQL 17 refuses ALTER SYSTEM outright; the file can still be edited.
    let auto = primary.instance.pgdata().join("postgresql.auto.conf");
    std::fs::write(&auto, "work_mem = '5MB'\nsynchronous_standby_names = ''\nfsync = 'off'\n").unwrap();
    primary.sql("SELECT pg_reload_conf()").await;
    until("the edit is in force", || async { primary.sql("SHOW synchronous_standby_names").await.as_deref() == Some("") }).await;
    let found = primary.instance.drift().await.unwrap();
    assert_eq!(found.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["synchronous_standby_names", "fsync"]);
    assert_eq!(found[0].expected, "ANY 1 (trilithon_n2)");
    until("the rule is back", || async { primary.sql("SHOW synchronous_standby_names").await.as_deref() == Some("ANY 1 (trilithon_n2)") })
        .await;
    assert_eq!(primary.sql("SHOW fsync").await.as_deref(), Some("on"));
    assert_eq!(primary.sql("SHOW work_mem").await.as_deref(), Some("5MB"), "what is not ours stays");
    assert_eq!(primary.instance.drift().await.unwrap(), []);
    let hba = primary.dir.path().join("postgres/pg_hba.conf");
    std::fs::write(&hba, "host all all all trust\n").unwrap();
    assert_eq!(primary.instance.drift().await.unwrap()[0].name, "pg_hba.conf");
    assert!(std::fs::read_to_string(&hba).unwrap().contains("scram-sha-256"));
}

/// INV-6: who must prove the rule anew learns it, though the rest of the upkeep fails in that moment.
#[tokio::test]
async fn a_changed_rule_is_told_also_where_no_slot_can_be_made() {
    let primary = Server::primary(1).await;
    primary.sql("SELECT pg_create_physical_replication_slot('other' || n) FROM generate_series(1, 16) n").await;
    std::fs::write(primary.instance.pgdata().join("postgresql.auto.conf"), "synchronous_standby_names = 'nobody'\n").unwrap();
    let members = BTreeMap::from([(NodeId(2), None)]);
    let found = primary.instance.tend(&members).await.unwrap();
    assert_eq!(found.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["synchronous_standby_names"]);
    let said = primary.instance.tend(&members).await.unwrap_err().to_string();
    assert!(said.contains("replication slots are in use"), "{said}");
}

#[tokio::test]
async fn remote_connections_need_the_password() {
    let primary = Server::primary(1).await;
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(primary.port).user("postgres").dbname("postgres").password("wrong");
    let refused = config.connect(tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::INVALID_PASSWORD));
    assert_eq!(primary.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'trilithon_replication'").await.as_deref(), Some("f"));
}
