//! One server: initialise, start, promote, watch, stop, adopt.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot go on panics; it measures with Instant.

use crate::postgres_rig::{LIMIT, Server, processes_below, try_sql};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};
use trilithon::ha::{PostgresState, Role};
use trilithon::postgres::{PostgresError as Error, Postmaster};
use trilithon::types::{Epoch, Timeline};

#[tokio::test]
async fn a_new_database_becomes_primary_on_the_claimed_timeline() {
    let server = Server::empty(1).await;
    assert_eq!(server.facts().await.state, PostgresState::Absent);
    let system = server.instance.init_db().await.unwrap();
    let stopped = server.facts().await;
    assert_eq!((stopped.state, stopped.system, stopped.timeline), (PostgresState::Stopped, Some(system), Some(Timeline(1))));
    assert_eq!(stopped.position.map(|p| p.lsn), stopped.shutdown_checkpoint, "a clean stop tells the end of WAL");
    server.instance.start_detached(Some(system)).await.unwrap();
    let detached = server.until("has a position", |f| f.position.is_some()).await;
    assert_eq!(detached.role, Some(Role::Standby));
    let begun = Instant::now();
    server.instance.promote(Epoch(5), Timeline(4), &server.alone(), LIMIT).await.unwrap();
    println!("promotion took {:?}", begun.elapsed());
    let primary = server.facts().await;
    assert_eq!((primary.role, primary.timeline), (Some(Role::Primary), Some(Timeline(4))));
    assert_eq!(primary.ancestry.iter().map(|(t, _)| *t).collect::<Vec<_>>(), [Timeline(1)]);
    assert_eq!(server.instance.promoted(), Some((Epoch(5), Timeline(4))));
    server.instance.apply_rule(Epoch(5), &server.alone(), LIMIT).await.unwrap();
    assert_eq!(server.sql("SELECT current_setting('data_checksums') || current_setting('server_encoding')").await.unwrap(), "onUTF8");
}

#[tokio::test]
async fn a_dead_postmaster_is_noticed_at_once_and_its_orphans_are_awaited() {
    let server = Server::primary(1).await;
    let client = server.client().await;
    // A backend that is busy does not look whether its postmaster lives.
    let busy = tokio::task::spawn(async move { try_sql(&client, "DO $$ BEGIN LOOP NULL; END LOOP; END $$").await });
    crate::postgres_rig::until("the backend is busy", || async {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%' AND state = 'active'").await.as_deref() == Some("1")
    })
    .await;
    let mut noticed = killed(&server).await;
    let facts = server.facts().await;
    assert_eq!(facts.state, PostgresState::Stopping, "a backend still works in the directory");
    assert!(matches!(server.instance.start_detached(None).await, Err(Error::Orphans { .. })));
    server.instance.demote().await.unwrap();
    assert_eq!(processes_below(server.dir.path()), [] as [i32; 0]);
    let crashed = server.facts().await;
    assert_eq!((crashed.state, crashed.position), (PostgresState::Stopped, None), "its end of WAL is unknown before recovery");
    busy.await.unwrap().unwrap_err();
    server.instance.start_detached(None).await.unwrap();
    server.until("knows its end again", |f| f.position.is_some() && f.role == Some(Role::Standby)).await;
    for _ in 0..ROUNDS {
        noticed = noticed.min(killed(&server).await);
        server.instance.demote().await.unwrap();
        server.instance.start_detached(None).await.unwrap();
    }
    assert!(noticed < AT_ONCE, "noticed after {noticed:?} at best");
}

/// What a machine that has other things to do reaches once in so many rounds, and who looks from time to time does not.
const AT_ONCE: Duration = Duration::from_millis(50);
const ROUNDS: usize = 5;

/// Kills the postmaster; how long until that is noticed.
async fn killed(server: &Server) -> Duration {
    let mut exits = server.instance.postmaster();
    let pid = Pid::from_raw(server.pid()).unwrap();
    let begun = Instant::now();
    kill_process(pid, Signal::KILL).unwrap();
    let noticed = tokio::time::timeout(LIMIT, exits.wait_for(|p| matches!(p, Postmaster::Exited { .. })));
    drop(noticed.await.expect("it is never noticed").unwrap());
    begun.elapsed()
}

#[tokio::test]
async fn a_running_server_outlives_its_process_and_is_adopted() {
    let server = Server::primary(1).await;
    let pid = server.pid();
    let mut server = server.reopen().await;
    assert_eq!(*server.instance.postmaster().borrow(), Postmaster::Running { pid });
    let facts = server.facts().await;
    assert_eq!((facts.state, facts.role), (PostgresState::Running, Some(Role::Primary)));
    assert_eq!(server.instance.promoted(), Some((Epoch(2), Timeline(2))), "the successor knows for which epoch it was promoted");
    let mut noticed = killed(&server).await;
    for _ in 0..ROUNDS {
        server.instance.demote().await.unwrap();
        server.instance.start_detached(None).await.unwrap();
        server = server.reopen().await;
        noticed = noticed.min(killed(&server).await);
    }
    assert!(noticed < AT_ONCE, "an adopted one's end is noticed as fast: after {noticed:?} at best");
}

#[tokio::test]
async fn a_hung_server_is_unknown_and_never_stopped() {
    let server = Server::primary(1).await;
    assert_eq!(server.facts().await.state, PostgresState::Running);
    let pid = Pid::from_raw(server.pid()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // The kept connection still works; only a new one shows that the postmaster hangs.
    let facts = server.until("is no longer running", |f| f.state != PostgresState::Running).await;
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(facts.state, PostgresState::Unknown);
    server.until_state(PostgresState::Running).await;
    kill_process(pid, Signal::STOP).unwrap();
    server.instance.demote().await.unwrap();
    assert_eq!(server.facts().await.state, PostgresState::Stopped, "a frozen one is killed");
}

#[tokio::test]
async fn an_emergency_stop_works_from_any_thread() {
    let server = Server::primary(1).await;
    let emergency = server.instance.emergency();
    let client = server.client().await;
    std::thread::Builder::new().spawn(move || assert!(emergency.immediate())).unwrap().join().unwrap();
    server.until_state(PostgresState::Stopped).await;
    assert!(client.simple_query("SELECT 1").await.is_err());
    assert!(!server.instance.emergency().immediate());
}

/// A bootstrap whose first start fails begins it again, and makes sure of its roles before.
#[tokio::test]
async fn a_directory_is_prepared_again_after_a_start_that_failed() {
    let server = Server::initialised(1).await;
    server.instance.start_detached(None).await.unwrap();
    server.instance.demote().await.unwrap();
    server.instance.adopt_directory().await.unwrap();
    server.instance.start_detached(None).await.unwrap();
}

/// Whoever wrote it was ended before it was given away.
#[tokio::test]
async fn a_configuration_that_the_server_may_not_read_is_given_to_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let server = Server::primary(1).await;
    server.instance.demote().await.unwrap();
    let config = server.dir.path().join("postgres/postgresql.conf");
    std::os::unix::fs::lchown(&config, Some(0), Some(0)).unwrap();
    server.instance.start_detached(None).await.unwrap();
}

/// SIGHUP ends a process that has not yet said what is to become of it.
#[tokio::test]
async fn settings_may_change_while_the_server_starts() {
    let server = Server::primary(1).await;
    for round in 0..8 {
        server.instance.demote().await.unwrap();
        let change = async {
            let mut postmaster = server.instance.postmaster();
            postmaster.wait_for(|p| matches!(p, Postmaster::Running { .. })).await.unwrap();
            server.instance.configure([("work_mem".to_owned(), format!("{}MB", 4 + round))].into(), Vec::new()).await.unwrap();
        };
        let (started, ()) = tokio::join!(server.instance.start_detached(None), change);
        started.unwrap();
        let expected = format!("{}MB", 4 + round);
        crate::postgres_rig::until("the setting is in force", || async {
            server.sql("SHOW work_mem").await.as_deref() == Some(expected.as_str())
        })
        .await;
    }
}
