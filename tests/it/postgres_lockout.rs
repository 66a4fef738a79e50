//! Crashes in the midst of a transaction with many subtransactions: PostgreSQL lets nobody into a server that starts as a standby then.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

use crate::postgres_rig::{LIMIT, Server, processes_below, until};
use rustix::process::{Pid, Signal, kill_process};
use trilithon::ha::{PostgresFacts, PostgresState, Role};
use trilithon::types::{Epoch, Lsn, NodeId, Timeline};

const STOP: std::time::Duration = std::time::Duration::from_secs(10);

/// Leaves a transaction open, since before the last checkpoint, with rows 1 to 100: more subtransactions than PostgreSQL keeps in shared
/// memory. 0 is committed behind it.
async fn many_savepoints(primary: &Server) -> tokio_postgres::Client {
    primary.sql("CREATE TABLE t (v int)").await;
    let client = primary.client().await;
    let savepoints: String = (1..=100).map(|n| format!("SAVEPOINT s{n}; INSERT INTO t VALUES ({n});")).collect();
    client.batch_execute(&format!("BEGIN; {savepoints}")).await.unwrap();
    primary.sql("CHECKPOINT").await;
    client
}

async fn until_replayed(standby: &Server, primary: &Server) -> Lsn {
    let end = primary.facts().await.position.unwrap().lsn;
    standby.until("has it", |f| f.position.is_some_and(|p| p.lsn >= end) && f.replayed >= f.position.map(|p| p.lsn)).await;
    end
}

/// A standby whose last checkpoint, too, lies in the midst of that transaction.
async fn pair_amid_savepoints() -> (Server, Server, tokio_postgres::Client) {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    let open = many_savepoints(&primary).await;
    until_replayed(&standby, &primary).await;
    standby.sql("CHECKPOINT").await;
    (primary, standby, open)
}

/// A start after a crash, until nobody was let in for its moment.
async fn until_locked_out(server: &Server) {
    server.instance.start_detached(None).await.unwrap();
    until("it has waited for its moment", || async {
        let facts = server.facts().await;
        assert!(facts.state == PostgresState::Starting && facts.position.is_none(), "{facts:?}");
        server.instance.locked_out().is_some()
    })
    .await;
}

async fn stopped(server: &Server) -> PostgresFacts {
    server.instance.stop(STOP).await.unwrap();
    server.until_state(PostgresState::Stopped).await
}

/// INV-7: without this the end of its WAL would never be known, and an election that needs it would never end.
#[tokio::test]
async fn a_crashed_primary_that_lets_nobody_in_tells_its_end_and_is_promoted() {
    let server = Server::primary(1).await;
    let own = server.facts().await.timeline;
    let _open = many_savepoints(&server).await;
    server.sql("INSERT INTO t VALUES (0)").await;
    let committed = server.facts().await.position.unwrap().lsn;
    server.instance.demote().await.unwrap();
    assert_eq!(server.facts().await.position, None);

    until_locked_out(&server).await;
    // The node, too, is another one since.
    let server = server.reopen().await;
    until("it is seen anew", || async { server.facts().await.position.is_none() && server.instance.locked_out().is_some() }).await;
    let told = stopped(&server).await;
    assert_eq!(told.timeline, own);
    assert!(told.position.unwrap().lsn >= committed, "{told:?}");

    server.instance.start_detached(None).await.unwrap();
    let waits = server.until("is known to run", |f| f.state == PostgresState::Running).await;
    assert_eq!((waits.role, waits.position, waits.timeline, waits.ancestry), (Some(Role::Standby), told.position, own, told.ancestry));
    assert!(server.instance.locked_out().is_none(), "nothing is left to ask");

    server.instance.promote(Epoch(5), Timeline(5), &server.rule(&[2], 1), LIMIT).await.unwrap();
    let facts = server.until("is a primary", |f| f.role == Some(Role::Primary)).await;
    assert_eq!((facts.state, facts.timeline), (PostgresState::Running, Some(Timeline(5))));
    assert_eq!(server.sql("SHOW synchronous_standby_names").await.as_deref(), Some("ANY 1 (trilithon_n2)"));
    assert_eq!(server.sql("SELECT string_agg(v::text, ' ') FROM t").await.as_deref(), Some("0"), "nothing of what was under way");
    assert_eq!(server.instance.lockout_end(), None);
}

/// INV-7: a stop that makes a restartpoint does not say how far replay had come; what it says would be too little.
#[tokio::test]
async fn a_standby_that_lets_nobody_in_tells_all_of_its_wal_and_follows_whoever_is_promoted() {
    let (primary, standby, open) = pair_amid_savepoints().await;
    primary.sql("CHECKPOINT").await;
    primary.sql("INSERT INTO t SELECT 0 FROM generate_series(1, 10000)").await;
    let end = until_replayed(&standby, &primary).await;
    standby.instance.demote().await.unwrap();
    primary.instance.demote().await.unwrap();
    drop(open);

    until_locked_out(&standby).await;
    assert_eq!(stopped(&standby).await.position, None, "its checkpoint has moved");
    until_locked_out(&standby).await;
    let told = stopped(&standby).await.position.unwrap().lsn;
    assert!(told >= end, "{told} of {end}");

    // It runs again when there is a primary: it follows without a session, and is let in by what that sends.
    standby.instance.start_detached(None).await.unwrap();
    standby.until("is known to run", |f| f.state == PostgresState::Running).await;
    until_locked_out(&primary).await;
    assert!(stopped(&primary).await.position.unwrap().lsn >= told);
    primary.instance.start_detached(None).await.unwrap();
    primary.until("is known to run", |f| f.state == PostgresState::Running).await;
    primary.instance.promote(Epoch(5), Timeline(5), &primary.rule(&[2], 1), LIMIT).await.unwrap();
    standby.instance.follow(primary.upstream(5), None, None).await.unwrap();
    assert_eq!(standby.instance.lockout_end(), None, "what it receives lies beyond");
    standby.until("streams", |f| f.streaming_from == Some(NodeId(1)) && f.timeline == Some(Timeline(5))).await;
    primary.sql("INSERT INTO t VALUES (1)").await;
    until_replayed(&standby, &primary).await;
    assert_eq!(standby.sql("SELECT count(*) FROM t").await.as_deref(), Some("10001"));
}

/// What it received since its start may lie beyond what it has replayed when it is stopped (INV-7).
#[tokio::test]
async fn one_that_has_followed_somebody_since_its_start_tells_nothing_by_its_stop() {
    let (primary, standby, _open) = pair_amid_savepoints().await;
    standby.instance.demote().await.unwrap();
    until_locked_out(&standby).await;
    let before = stopped(&standby).await.position.unwrap();
    standby.instance.start_detached(None).await.unwrap();
    standby.until("is known to run", |f| f.position == Some(before)).await;
    standby.instance.follow(primary.upstream(3), None, None).await.unwrap();
    primary.sql("INSERT INTO t SELECT 0 FROM generate_series(1, 1000)").await;
    until("it lets nobody in, though it streams", || async {
        let facts = standby.facts().await;
        assert!(facts.state == PostgresState::Starting && facts.position.is_none(), "{facts:?}");
        standby.instance.waits_for_upstream()
    })
    .await;
    // An election turns it away; nobody is let in to be asked whether it has.
    let _ = standby.instance.detach(STOP).await;
    until("it is to be stopped", || async {
        let facts = standby.facts().await;
        assert!(facts.state == PostgresState::Starting && facts.position.is_none(), "it ended at {before:?} before its start: {facts:?}");
        standby.instance.locked_out().is_some()
    })
    .await;
    assert_eq!(stopped(&standby).await.position, None);
}

fn startup_process(server: &Server) -> Pid {
    let title = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let startup = processes_below(server.dir.path()).into_iter().find(|pid| String::from_utf8_lossy(&title(pid)).contains("startup"));
    Pid::from_raw(startup.expect("it replays")).unwrap()
}

/// Does SIGTERM wait for it?
fn is_told_to_end(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() & (1 << (Signal::TERM.as_raw() - 1)) != 0
}

/// Whatever made a server wait, an end behind which WAL goes on is none (INV-7): here the last segment is out of sight until it is stopped.
#[tokio::test]
async fn a_stop_before_the_end_of_the_wal_tells_no_end() {
    let server = Server::primary(1).await;
    let _open = many_savepoints(&server).await;
    server.sql("SELECT pg_switch_wal()").await;
    let switched = server.facts().await.position.unwrap().lsn;
    server.sql("INSERT INTO t SELECT 0 FROM generate_series(1, 1000)").await;
    let last = server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").await.unwrap();
    server.instance.demote().await.unwrap();
    let pgdata = server.instance.pgdata().to_owned();
    let (segment, aside) = (pgdata.join("pg_wal").join(&last), pgdata.join(&last));
    std::fs::rename(&segment, &aside).unwrap();

    until_locked_out(&server).await;
    // It comes back while the process that replays is held, and goes on only to end: it reads none of it.
    let replays = startup_process(&server);
    kill_process(replays, Signal::STOP).unwrap();
    std::fs::rename(&aside, &segment).unwrap();
    let (stopped_at, ()) = tokio::join!(stopped(&server), async {
        until("it is told to end", || async { is_told_to_end(replays) }).await;
        kill_process(replays, Signal::CONT).unwrap();
    });
    assert_eq!(stopped_at.position, None);

    until_locked_out(&server).await;
    let told = stopped(&server).await.position.unwrap().lsn;
    assert!(told > switched, "{told}, which is not behind {switched}");
}
