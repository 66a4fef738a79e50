//! A primary that dies in the midst of a transaction with many subtransactions: PostgreSQL lets nobody in where it comes up as a standby.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

use crate::postgres_rig::{LIMIT, Server, until};
use trilithon::ha::{PostgresState, Role};
use trilithon::types::{Epoch, NodeId, Timeline};

/// More than PostgreSQL keeps in shared memory for a transaction.
const SUBTRANSACTIONS: u32 = 100;

/// Leaves a transaction open, since before the last checkpoint, with rows 1 to 100; 0 is committed behind it.
async fn many_savepoints(primary: &Server) -> tokio_postgres::Client {
    primary.sql("CREATE TABLE t (v int)").await;
    let client = primary.client().await;
    let savepoints = (1..=SUBTRANSACTIONS).map(|n| format!("SAVEPOINT s{n}; INSERT INTO t VALUES ({n});"));
    client.batch_execute(&format!("BEGIN; {}", savepoints.collect::<String>())).await.unwrap();
    primary.sql("CHECKPOINT").await;
    primary.sql("INSERT INTO t VALUES (0)").await;
    client
}

async fn until_locked_out(server: &Server) {
    until("it has waited for its moment", || async {
        let facts = server.facts().await;
        assert!(facts.state == PostgresState::Starting && facts.position.is_none(), "{facts:?}");
        server.instance.locked_out()
    })
    .await;
}

/// INV-7: without this its end of WAL would never be known, and an election that needs it would never end.
#[tokio::test]
async fn a_crashed_primary_that_lets_nobody_in_is_recovered_alone() {
    let server = Server::primary(1).await;
    let own = server.facts().await.timeline.unwrap();
    let _open = many_savepoints(&server).await;
    server.instance.demote().await.unwrap();
    server.instance.start_detached(None).await.unwrap();
    // The node, too, is another one since.
    let server = server.reopen().await;
    until_locked_out(&server).await;
    server.instance.start_detached(None).await.unwrap();
    let facts = server.until("it tells its end", |f| f.position.is_some()).await;
    assert_eq!((facts.state, facts.role, facts.timeline), (PostgresState::Running, Some(Role::Standby), Some(own)));
    assert!(!server.instance.locked_out());
    server.instance.promote(Epoch(5), Timeline(5), &server.alone(), LIMIT).await.unwrap();
    assert_eq!(server.sql("SELECT string_agg(v::text, ' ') FROM t").await.as_deref(), Some("0"), "nothing of what was under way");
}

/// Nobody but its primary may add to a timeline: a standby waits for one that tells it.
#[tokio::test]
async fn a_standby_that_lets_nobody_in_is_left_as_it_is() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    let _open = many_savepoints(&primary).await;
    let reached = primary.facts().await.position;
    primary.until("its standby has it", |f| f.standbys.get(&NodeId(2)).is_some_and(|s| Some(s.replayed) >= reached.map(|p| p.lsn))).await;
    standby.sql("CHECKPOINT").await;
    standby.instance.demote().await.unwrap();
    standby.instance.start_detached(None).await.unwrap();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(14) {
        assert_eq!(standby.facts().await.state, PostgresState::Starting);
        assert!(!standby.instance.locked_out());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    standby.instance.demote().await.unwrap();
    standby.instance.follow(primary.upstream(3), None, None).await.unwrap();
    primary.instance.demote().await.unwrap();
}
