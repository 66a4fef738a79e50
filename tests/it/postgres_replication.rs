//! Two and three servers: copy, stream, turn away, promote across a gap of timelines, follow across it, rewind.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot go on panics; it measures with Instant.

use crate::ports::free_port;
use crate::postgres_rig::{LIMIT, Server, as_owner, processes_below, try_sql, until};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::task::Poll;
use std::time::{Duration, Instant};
use trilithon::ha::{PostgresState, Role};
use trilithon::postgres::{Descent, PostgresError as Error, Upstream};
use trilithon::types::{Epoch, Lsn, NodeId, Timeline};

/// Commits `text` on `primary`; with a rule in force it returns once that is confirmed.
async fn write(primary: &Server, text: &str) {
    primary.sql(&format!("CREATE TABLE IF NOT EXISTS t (v text); INSERT INTO t VALUES ('{text}')")).await;
}

async fn read(server: &Server) -> Option<String> {
    server.sql("SELECT string_agg(v, ' ' ORDER BY v) FROM t").await
}

async fn until_reads(server: &Server, text: &str) {
    until("the standby has replayed it", || async {
        let Ok(client) = server.try_client().await else { return false };
        try_sql(&client, "SELECT string_agg(v, ' ' ORDER BY v) FROM t").await.ok().flatten().as_deref() == Some(text)
    })
    .await;
}

#[tokio::test]
async fn a_copy_streams_and_its_slot_waits_on_the_primary() {
    let primary = Server::primary(1).await;
    write(&primary, "a").await;
    let standby = Server::standby(2, &primary).await;
    until_reads(&standby, "a").await;
    let seen = primary.until("sees its standby", |f| f.standbys.get(&NodeId(2)).is_some_and(|s| s.streaming)).await;
    assert!(!seen.standbys[&NodeId(2)].sync, "no rule names it yet");
    let active = primary.sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'trilithon_n2'").await;
    assert_eq!(active.as_deref(), Some("t"));
    assert_eq!(standby.facts().await.role, Some(Role::Standby));
}

/// A stopped primary becomes one of `timeline`; its ancestors.
async fn begin_timeline(primary: &Server, timeline: Timeline) -> Vec<(Timeline, Lsn)> {
    let epoch = Epoch(u64::from(timeline.0));
    primary.instance.start_detached(None).await.unwrap();
    primary.instance.promote(epoch, timeline, &primary.alone(), LIMIT).await.unwrap();
    primary.instance.apply_rule(epoch, &primary.alone(), LIMIT).await.unwrap();
    primary.until("knows its ancestors", |f| f.timeline == Some(timeline) && !f.ancestry.is_empty()).await.ancestry
}

/// A stopped primary, and a sealed standby of it; the timeline and the end of its WAL.
async fn one_that_was_left() -> (Server, Server, Timeline, Lsn) {
    let primary = Server::primary(1).await;
    write(&primary, "a").await;
    let standby = Server::standby(2, &primary).await;
    until_reads(&standby, "a").await;
    primary.instance.stop(LIMIT).await.unwrap();
    standby.instance.detach(LIMIT).await.unwrap();
    let (own, end) = sealed(&standby).await;
    (primary, standby, own, end)
}

/// The timeline and the end of the WAL of a detached standby.
async fn sealed(standby: &Server) -> (Timeline, Lsn) {
    let sealed = standby.until("has its end", |f| f.position.is_some()).await;
    (sealed.timeline.unwrap(), sealed.position.unwrap().lsn)
}

fn history_of(server: &Server, timeline: Timeline) -> PathBuf {
    server.instance.pgdata().join("pg_wal").join(timeline.history_file())
}

/// It fetched the history of the timeline `lost`, and nothing of that: it begins at `fork`.
async fn aim_at_a_lost_timeline(standby: &Server, lost: Timeline, fork: (Timeline, Lsn)) {
    let before = std::fs::read_to_string(history_of(standby, fork.0)).unwrap();
    let text = format!("{before}{}\t{}\tno recovery target specified\n", fork.0, fork.1);
    std::fs::write(history_of(standby, lost), text).unwrap();
    until("the lost timeline is its target", || async { standby.log().contains(&format!("new target timeline is {lost}")) }).await;
}

/// A primary of timeline 4, and a standby that fetched the history of a candidate that was lost, timeline 3, before anything was received from it.
async fn one_that_aims_at_a_lost_timeline() -> (Server, Server, Descent) {
    let (primary, standby, own, end) = one_that_was_left().await;
    aim_at_a_lost_timeline(&standby, Timeline(3), (own, end)).await;
    let ancestry = begin_timeline(&primary, Timeline(4)).await;
    (primary, standby, Descent { own, upstream: Timeline(4), ancestry })
}

/// INV-8: by the history of its timeline the others judge whether they fit. The third went further than the one that is promoted, and not
/// as far as that one was told that the lost primary had gone.
#[tokio::test]
async fn a_promotion_tells_of_no_fork_that_its_own_wal_never_came_to() {
    let (old, winner, third) = two_that_lost_their_primary().await;
    old.instance.start_detached(None).await.unwrap();
    old.instance.promote(Epoch(3), Timeline(3), &old.alone(), LIMIT).await.unwrap();
    for standby in [&winner, &third] {
        standby.instance.follow(old.upstream(3), None, None).await.unwrap();
    }
    old.instance.apply_rule(Epoch(3), &old.rule(&[2, 3], 2), LIMIT).await.unwrap();
    winner.instance.detach(LIMIT).await.unwrap();
    old.instance.apply_rule(Epoch(3), &old.rule(&[3], 1), LIMIT).await.unwrap();
    write(&old, "lost").await;
    third.instance.detach(LIMIT).await.unwrap();
    old.instance.demote().await.unwrap();
    let (behind, further) = (sealed(&winner).await, sealed(&third).await);
    assert!(behind.0 == further.0 && behind.1 < further.1);
    aim_at_a_lost_timeline(&winner, Timeline(4), (behind.0, Lsn(further.1.0 + 0x1000))).await;
    winner.instance.promote(Epoch(5), Timeline(5), &winner.alone(), LIMIT).await.unwrap();
    let told = winner.until("knows its ancestors", |f| f.timeline == Some(Timeline(5)) && !f.ancestry.is_empty()).await.ancestry;
    assert!(told.ends_with(&[behind, (Timeline(4), behind.1)]), "{told:?}");
    write(&winner, "b").await;
    third.instance.stop(LIMIT).await.unwrap();
    third.instance.rewind(&winner.upstream(5), None).await.unwrap();
    until_reads(&third, "a b").await;
}

/// A step that is broken off as soon as `broken` holds, which must be before its end.
async fn break_off<T>(mut step: std::pin::Pin<Box<impl Future<Output = T>>>, broken: impl Fn() -> bool) {
    std::future::poll_fn(|cx| {
        if broken() {
            return Poll::Ready(());
        }
        assert!(step.as_mut().poll(cx).is_pending(), "it came to its end");
        Poll::Pending
    })
    .await;
}

/// Each round trip that the first confirmation takes keeps clients waiting after a change of primary.
#[tokio::test]
async fn a_detached_standby_is_told_of_the_timeline_that_begins_where_its_own_wal_ends() {
    let (primary, standby, own, _) = one_that_was_left().await;
    let ancestry = begin_timeline(&primary, own.next()).await;
    let left = ancestry.last().unwrap().1;
    let history = history_of(&standby, own.next());
    let unreachable = Upstream { port: free_port(), ..primary.upstream(3) };
    for elsewhere in [left.0 - 1, left.0 + 8] {
        let descent = Descent { own, upstream: own.next(), ancestry: vec![(own, Lsn(elsewhere))] };
        standby.instance.follow(unreachable.clone(), None, Some(&descent)).await.unwrap();
        assert!(!history.exists(), "whether it may go over there is for the primary's server to say");
        standby.instance.detach(LIMIT).await.unwrap();
    }
    let descent = Descent { own, upstream: own.next(), ancestry };
    standby.instance.follow(unreachable, None, Some(&descent)).await.unwrap();
    assert!(std::fs::read_to_string(&history).unwrap().ends_with("told by the primary\n"));
    until("it is the target, from nobody", || async { standby.log().contains(&format!("new target timeline is {}", own.next())) }).await;
    standby.instance.follow(primary.upstream(3), None, Some(&descent)).await.unwrap();
    write(&primary, "b").await;
    until_reads(&standby, "a b").await;
    let log = standby.log();
    let begun = log.rfind(" started streaming WAL").map(|at| log[at..].lines().next().unwrap_or_default());
    assert!(begun.is_some_and(|line| line.ends_with(&format!("on timeline {}", own.next()))), "{log}");
}

#[tokio::test]
async fn a_standby_whose_target_was_lost_follows_the_one_that_lasted() {
    let (primary, standby, descent) = one_that_aims_at_a_lost_timeline().await;
    standby.instance.follow(primary.upstream(4), None, Some(&descent)).await.unwrap();
    write(&primary, "b").await;
    until_reads(&standby, "a b").await;
    let pid = standby.pid();
    standby.instance.follow(primary.upstream(4), None, Some(&Descent { own: Timeline(4), ..descent })).await.unwrap();
    assert_eq!(standby.pid(), pid, "once is enough");
}

/// The step that stops it to forget the lost timeline is broken off when it has stopped.
#[tokio::test]
async fn a_standby_that_was_stopped_to_forget_a_lost_target_forgets_it_in_the_next_step() {
    let (primary, standby, descent) = one_that_aims_at_a_lost_timeline().await;
    let lost = history_of(&standby, Timeline(3));
    let pidfile = standby.instance.pgdata().join("postmaster.pid");
    break_off(Box::pin(standby.instance.follow(primary.upstream(4), None, Some(&descent))), || !pidfile.exists()).await;
    let stopped = standby.until_state(PostgresState::Stopped).await;
    assert!(lost.exists() && stopped.position.is_none(), "broken off in the middle: {stopped:?}");
    standby.instance.follow(primary.upstream(4), None, Some(&descent)).await.unwrap();
    write(&primary, "b").await;
    until_reads(&standby, "a b").await;
}

/// The node dies when the file says whom to follow, and before Postgres was told to read it.
#[tokio::test]
async fn a_standby_that_was_never_told_whom_to_follow_is_told_by_the_upkeep() {
    let primary = Server::primary(1).await;
    write(&primary, "a").await;
    let standby = Server::standby(2, &primary).await;
    until_reads(&standby, "a").await;
    standby.instance.detach(LIMIT).await.unwrap();
    let config = standby.dir.path().join("postgres/postgresql.conf");
    let says = || std::fs::read_to_string(&config).unwrap().contains("upstream-n1-e2");
    break_off(Box::pin(standby.instance.follow(primary.upstream(2), None, None)), says).await;
    assert_eq!(standby.instance.following(), Some((NodeId(1), Epoch(2))));
    let drift = standby.instance.tend(&BTreeMap::new()).await.unwrap();
    assert!(drift.iter().any(|d| d.name == "primary_conninfo" && d.found.is_empty()), "{drift:?}");
    standby.until("streams", |f| f.streaming_from == Some(NodeId(1))).await;
    assert_eq!(standby.instance.tend(&BTreeMap::new()).await.unwrap(), []);
}

/// A standby asks for the history of every timeline between its own and the primary's.
#[tokio::test]
async fn a_primary_whose_promotion_nobody_saw_to_its_end_tells_the_histories_all_the_same() {
    let server = Server::primary(1).await;
    server.instance.demote().await.unwrap();
    server.instance.start_detached(None).await.unwrap();
    server.instance.promote(Epoch(5), Timeline(5), &server.alone(), LIMIT).await.unwrap();
    let files = [2, 3, 4].map(|n| history_of(&server, Timeline(n)));
    for file in &files {
        std::fs::remove_file(file).unwrap();
    }
    let server = server.reopen().await;
    server.instance.tend(&BTreeMap::new()).await.unwrap();
    assert!(files.iter().all(|file| file.exists()), "{files:?}");
}

#[tokio::test]
async fn turning_away_is_fast_and_final() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    primary.instance.apply_rule(Epoch(2), &primary.rule(&[2], 1), LIMIT).await.unwrap();
    write(&primary, "a").await;
    let begun = Instant::now();
    standby.instance.detach(LIMIT).await.unwrap();
    println!("detach took {:?}", begun.elapsed());
    let sealed = standby.until("has its end", |f| f.position.is_some()).await;
    assert_eq!((sealed.streaming_from, standby.instance.following()), (None, None));
    // From now on the old primary gets no confirmation.
    let client = primary.client().await;
    let waiting = tokio::task::spawn(async move { try_sql(&client, "INSERT INTO t VALUES ('lost')").await });
    until("the commit waits", || async {
        primary.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await.as_deref() == Some("1")
    })
    .await;
    let flushed = primary.facts().await.position.unwrap().lsn;
    let after = standby.facts().await.position.unwrap();
    assert_eq!(after, sealed.position.unwrap(), "the sealed end stays");
    assert!(after.lsn < flushed);
    assert!(!waiting.is_finished(), "nobody confirms to the old primary");
    primary.instance.demote().await.unwrap();
    waiting.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_walreceiver_with_old_configuration_cannot_connect_again() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    standby.instance.detach(LIMIT).await.unwrap();
    // Somebody brings the old connection string back, without the password file.
    let conninfo = format!("host=127.0.0.1 port={} user=trilithon_replication application_name=trilithon_n2", primary.port);
    std::fs::write(standby.instance.pgdata().join("postgresql.auto.conf"), format!("primary_conninfo = '{conninfo}'\n")).unwrap();
    standby.sql("SELECT pg_reload_conf()").await;
    until("its connection is refused", || async { standby.log().contains("no password supplied") }).await;
    assert_eq!(standby.facts().await.streaming_from, None);
    let drift = standby.instance.drift().await.unwrap();
    assert_eq!(drift.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["primary_conninfo"]);
}

/// The lost primary, which both hold all of, and two sealed standbys.
async fn two_that_lost_their_primary() -> (Server, Server, Server) {
    let old = Server::primary(1).await;
    let winner = Server::standby(2, &old).await;
    let third = Server::standby(3, &old).await;
    old.instance.apply_rule(Epoch(2), &old.rule(&[2, 3], 2), LIMIT).await.unwrap();
    write(&old, "a").await;
    old.instance.demote().await.unwrap();
    for standby in [&winner, &third] {
        standby.instance.detach(LIMIT).await.unwrap();
        standby.until("has its end", |f| f.position.is_some()).await;
    }
    (old, winner, third)
}

#[tokio::test]
async fn a_promotion_skips_claimed_timelines_and_others_follow_across_the_gap() {
    let (_old, winner, third) = two_that_lost_their_primary().await;
    let begun = Instant::now();
    winner.instance.promote(Epoch(6), Timeline(6), &winner.rule(&[3], 1), LIMIT).await.unwrap();
    println!("promotion took {:?}", begun.elapsed());
    let promoted = winner.facts().await;
    assert_eq!(promoted.timeline, Some(Timeline(6)));
    assert_eq!(promoted.ancestry.iter().map(|(t, _)| t.0).collect::<Vec<_>>(), [1, 2]);
    third.instance.follow(winner.upstream(6), None, None).await.unwrap();
    third.until("streams from the winner", |f| f.streaming_from == Some(NodeId(2))).await;
    winner.instance.apply_rule(Epoch(6), &winner.rule(&[3], 1), LIMIT).await.unwrap();
    write(&winner, "b").await;
    until_reads(&third, "a b").await;
    third.until("is on the new timeline", |f| f.timeline == Some(Timeline(6)) && f.position.is_some()).await;
    // A restart of the follower finds its timeline again, with the gap's placeholders beside it.
    third.instance.stop(LIMIT).await.unwrap();
    third.instance.start_detached(None).await.unwrap();
    third.until("is on the new timeline after a restart", |f| f.timeline == Some(Timeline(6)) && f.position.is_some()).await;
}

/// INV-8: PostgreSQL had written the history of its new timeline, and nothing else of it, when it died.
#[tokio::test]
async fn a_promotion_that_was_broken_off_is_not_begun_again_onto_another_number() {
    let (_old, winner, _third) = two_that_lost_their_primary().await;
    let begun = history_of(&winner, Timeline(4));
    std::fs::write(&begun, "1\t0/3000000\tno recovery target specified\n").unwrap();
    let end = winner.facts().await.position;
    let again = winner.instance.promote(Epoch(4), Timeline(4), &winner.alone(), LIMIT).await.unwrap_err();
    assert!(matches!(again, Error::TimelineBegun { claimed: Timeline(4) }) && again.is_final(), "{again}");
    let left = winner.facts().await;
    assert_eq!((left.role, left.position), (Some(Role::Standby), end), "it can seal as it is");
    winner.instance.promote(Epoch(5), Timeline(5), &winner.alone(), LIMIT).await.unwrap();
    assert_eq!(winner.facts().await.timeline, Some(Timeline(5)));
}

/// INV-7: pg_control still names the timeline below the gap, and PostgreSQL looks for newer ones number by number.
#[tokio::test]
async fn the_end_of_wal_on_a_timeline_behind_a_gap_is_told_after_a_crash() {
    let (_old, winner, third) = two_that_lost_their_primary().await;
    winner.instance.promote(Epoch(6), Timeline(6), &winner.rule(&[3], 1), LIMIT).await.unwrap();
    third.instance.follow(winner.upstream(6), None, None).await.unwrap();
    winner.instance.apply_rule(Epoch(6), &winner.rule(&[3], 1), LIMIT).await.unwrap();
    write(&winner, "b").await;
    let confirmed = third.until("received on the new timeline", |f| f.timeline == Some(Timeline(6)) && f.position.is_some()).await;
    for server in [&winner, &third] {
        server.instance.demote().await.unwrap();
        server.instance.start_detached(None).await.unwrap();
        let found = server.until("has its end again", |f| f.position.is_some()).await;
        assert_eq!(found.timeline, Some(Timeline(6)));
        assert!(found.position >= confirmed.position, "{:?} < {:?}", found.position, confirmed.position);
    }
}

#[tokio::test]
async fn a_diverged_primary_is_rewound_and_follows() {
    let old = Server::primary(1).await;
    let winner = Server::standby(2, &old).await;
    write(&old, "a").await;
    until_reads(&winner, "a").await;
    winner.instance.detach(LIMIT).await.unwrap();
    write(&old, "lost").await;
    old.instance.demote().await.unwrap();
    winner.instance.promote(Epoch(4), Timeline(4), &winner.alone(), LIMIT).await.unwrap();
    write(&winner, "b").await;
    assert!(matches!(old.instance.rewind(&winner.upstream(4), None).await, Err(Error::NotReplayed(_))));
    old.instance.start_detached(None).await.unwrap();
    let recovered = old.until("knows its end", |f| f.position.is_some()).await;
    old.instance.stop(LIMIT).await.unwrap();
    let stopped = old.facts().await;
    assert_eq!((stopped.state, stopped.position), (PostgresState::Stopped, recovered.position), "a clean stop remembers the end of WAL");
    old.instance.rewind(&winner.upstream(4), None).await.unwrap();
    assert!(!old.instance.poisoned());
    assert_eq!(old.instance.following(), Some((NodeId(2), Epoch(4))));
    until_reads(&old, "a b").await;
    old.until("streams on the new timeline", |f| f.streaming_from == Some(NodeId(2)) && f.timeline == Some(Timeline(4))).await;
}

/// INV-10: pg_rewind takes the files to hold all before the last checkpoint that it finds in the WAL, also where that was never replayed.
#[tokio::test]
async fn a_standby_replays_what_it_holds_before_it_is_rewound() {
    let old = Server::primary(1).await;
    let winner = Server::standby(2, &old).await;
    let lagging = Server::standby(3, &old).await;
    write(&old, "a").await;
    until_reads(&lagging, "a").await;
    lagging.sql("SELECT pg_wal_replay_pause()").await;
    until("replay is paused", || async { lagging.sql("SELECT pg_get_wal_replay_pause_state()").await.as_deref() == Some("paused") }).await;
    old.sql("SET synchronous_commit = local; CREATE TABLE many AS SELECT g AS n FROM generate_series(1, 20000) g").await;
    old.sql("CHECKPOINT").await;
    write(&old, "b").await;
    until_reads(&winner, "a b").await;
    winner.instance.detach(LIMIT).await.unwrap();
    write(&old, "lost").await;
    let end = old.facts().await.position.unwrap().lsn;
    lagging.until("has received all of it", |f| f.position.is_some_and(|p| p.lsn >= end)).await;
    old.instance.demote().await.unwrap();
    lagging.instance.stop(LIMIT).await.unwrap();
    winner.instance.promote(Epoch(4), Timeline(4), &winner.alone(), LIMIT).await.unwrap();
    let source = winner.upstream(4);
    if let Err(refused) = lagging.instance.rewind(&source, None).await {
        assert!(matches!(refused, Error::NotReplayed(_)), "{refused}");
        lagging.instance.start_detached(None).await.unwrap();
        lagging.instance.replay_all().await.unwrap();
        lagging.instance.stop(LIMIT).await.unwrap();
        lagging.instance.rewind(&source, None).await.unwrap();
    }
    until_reads(&lagging, "a b").await;
    assert_eq!(lagging.sql("SELECT count(*) FROM many").await.as_deref(), Some("20000"), "nothing before the divergence is missing");
}

#[tokio::test]
async fn a_standby_whose_wal_was_removed_says_so() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    standby.instance.stop(LIMIT).await.unwrap();
    primary.sql("SELECT pg_drop_replication_slot('trilithon_n2')").await;
    let held = primary.sql("SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'").await;
    for n in 0..12 {
        write(&primary, &n.to_string()).await;
        primary.sql("SELECT pg_switch_wal()").await;
    }
    primary.sql("CHECKPOINT").await;
    let kept = primary.sql("SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'").await;
    assert!(kept > held, "more than wal_keep_size was written");
    primary.sql("SELECT pg_create_physical_replication_slot('trilithon_n2')").await;
    standby.instance.follow(primary.upstream(1), None, None).await.unwrap();
    until("the primary refuses", || async { standby.log().contains("has already been removed") }).await;
    assert_eq!(standby.instance.stalled(), None, "it is given time");
    let begun = Instant::now();
    while standby.instance.stalled().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never says that its WAL is gone");
        standby.facts().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(standby.instance.stalled().as_deref(), Some("the primary has not kept the WAL that this copy needs next"));
    standby.instance.stop(LIMIT).await.unwrap();
    standby.facts().await;
    assert_eq!(standby.instance.stalled(), None, "a copy takes its place");
    standby.instance.copy_from(&primary.upstream(1), None).await.unwrap();
}

/// pg_rewind takes away WAL that the new primary has not kept. It leaves what was written since the record of the last common checkpoint, but
/// the rewound server needs what was written since that checkpoint began, and would wait for it.
#[tokio::test]
async fn a_rewound_server_whose_wal_was_removed_is_copied_soon() {
    let old = Server::primary(1).await;
    let winner = Server::standby(2, &old).await;
    old.sql("CREATE TABLE many AS SELECT generate_series(1, 2000)").await;
    let client = old.client().await;
    let slow = tokio::spawn(async move { try_sql(&client, "SELECT pg_backup_start('slow checkpoint', false)").await });
    until("it has begun", || async { old.log().contains("checkpoint starting: force wait") }).await;
    // However long the machine takes for what follows.
    let checkpointer = old.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await.unwrap();
    let checkpointer = Pid::from_raw(checkpointer.parse().unwrap()).unwrap();
    kill_process(checkpointer, Signal::STOP).unwrap();
    write(&old, "a").await;
    old.sql("SELECT pg_switch_wal()").await;
    write(&old, "b").await;
    assert!(!slow.is_finished(), "it is over before the next segment");
    kill_process(checkpointer, Signal::CONT).unwrap();
    slow.await.unwrap().unwrap();
    until_reads(&winner, "a b").await;
    winner.instance.detach(LIMIT).await.unwrap();
    write(&old, "lost").await;
    old.instance.demote().await.unwrap();
    old.instance.start_detached(None).await.unwrap();
    old.instance.replay_all().await.unwrap();
    old.instance.stop(LIMIT).await.unwrap();
    winner.instance.promote(Epoch(4), Timeline(4), &winner.alone(), LIMIT).await.unwrap();
    winner.sql("CHECKPOINT").await;
    let files = std::fs::read_dir(winner.instance.pgdata().join("pg_wal")).unwrap().flatten();
    let earlier = files.filter(|f| f.file_name().to_string_lossy().starts_with("00000002") && f.file_name().len() == 24);
    let removed = earlier.map(|f| std::fs::remove_file(f.path()).unwrap()).count();
    assert!(removed > 1, "{removed}");
    let begun = Instant::now();
    let refused = old.instance.rewind(&winner.upstream(4), None).await.unwrap_err();
    assert!(matches!(&refused, Error::NeedsClone(why) if why.contains("has not kept the WAL")), "{refused}");
    assert!(old.instance.poisoned() && begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    old.instance.copy_from(&winner.upstream(4), None).await.unwrap();
    old.instance.follow(winner.upstream(4), None, None).await.unwrap();
    old.until("streams", |f| f.streaming_from == Some(NodeId(2)) && f.timeline == Some(Timeline(4))).await;
}

/// Somebody promotes a standby by hand while another is elected: both write a timeline of one number, and no rewind could tell them apart.
#[tokio::test]
async fn a_standby_with_another_timeline_of_the_same_number_says_so() {
    let primary = Server::primary(1).await;
    let (winner, standby) = (Server::standby(2, &primary).await, Server::standby(3, &primary).await);
    write(&primary, "a").await;
    until_reads(&winner, "a").await;
    until_reads(&standby, "a").await;
    winner.instance.detach(LIMIT).await.unwrap();
    standby.instance.detach(LIMIT).await.unwrap();
    primary.instance.stop(LIMIT).await.unwrap();
    let own = standby.until("has its end", |f| f.position.is_some()).await.timeline.unwrap();
    let both = Timeline(own.0 + 1);
    standby.sql("SELECT pg_promote()").await;
    standby.until("took the number", |f| f.timeline == Some(both)).await;
    standby.sql("SET synchronous_commit = local; CREATE TABLE mine AS SELECT repeat('m', 777) AS m FROM generate_series(1, 9)").await;
    standby.instance.stop(LIMIT).await.unwrap();
    winner.instance.promote(Epoch(4), both, &winner.alone(), LIMIT).await.unwrap();
    winner.sql("SET synchronous_commit = local; CREATE TABLE filler AS SELECT repeat('x', 900) AS x FROM generate_series(1, 2000)").await;
    winner.sql("SELECT pg_create_physical_replication_slot('trilithon_n3')").await;
    standby.instance.start_detached(None).await.unwrap();
    standby.instance.follow(winner.upstream(4), None, None).await.unwrap();
    let begun = Instant::now();
    while standby.instance.stalled().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(75), "it never says that it cannot go on: {}", standby.log());
        standby.facts().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(standby.instance.stalled().as_deref(), Some("what the primary streams does not continue what this copy holds"));
    standby.instance.stop(LIMIT).await.unwrap();
    standby.instance.copy_from(&winner.upstream(4), None).await.unwrap();
}

/// A standby that held all of a lost primary's WAL, and the winner of the election after it, whose timeline begins in the midst of a segment.
struct Heirs {
    winner: Server,
    standby: Server,
    /// Of the lost primary's timeline.
    end: Lsn,
    next: Timeline,
}

/// `crossing`: the last record of all begins in the segment before.
async fn leave_heirs(crossing: bool) -> Heirs {
    let primary = Server::primary(1).await;
    let (winner, standby) = (Server::standby(2, &primary).await, Server::standby(3, &primary).await);
    primary.sql("SELECT pg_switch_wal()").await;
    write(&primary, "a").await;
    primary.sql("CREATE TABLE filler AS SELECT repeat('x', 900) AS x FROM generate_series(1, 2000)").await;
    write(&primary, "b").await;
    until_reads(&winner, "a b").await;
    until_reads(&standby, "a b").await;
    if crossing {
        // 80 kB, most of them behind the boundary.
        primary.sql("CREATE TABLE many (v int)").await;
        const MANY: &str = "DO $$ BEGIN FOR i IN 1..20000 LOOP BEGIN INSERT INTO many VALUES (i); EXCEPTION WHEN OTHERS THEN NULL; END; \
                            END LOOP; END $$";
        const ROOM: &str = "(16777216 - (pg_current_wal_insert_lsn() - '0/0'::pg_lsn) % 16777216 - 25000) * 8168 / 8192";
        primary.sql(&format!("{MANY}; SELECT pg_logical_emit_message(true, 'x', repeat('x', ({ROOM})::int))")).await;
        let end = primary.sql("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse::<Lsn>().unwrap();
        for server in [&winner, &standby] {
            server.until("has it", |f| f.position.is_some_and(|p| p.lsn >= end)).await;
        }
        primary.instance.demote().await.unwrap();
    } else {
        primary.instance.stop(LIMIT).await.unwrap();
    }
    for server in [&winner, &standby] {
        server.instance.detach(LIMIT).await.unwrap();
    }
    let held = standby.until("has its end", |f| f.position.is_some()).await;
    let next = Timeline(held.timeline.unwrap().0 + 1);
    winner.instance.promote(Epoch(4), next, &winner.alone(), LIMIT).await.unwrap();
    winner.sql("SELECT pg_create_physical_replication_slot('trilithon_n3')").await;
    Heirs { winner, standby, end: held.position.unwrap().lsn, next }
}

impl Heirs {
    /// Does no record begin in that segment before the winner's timeline does?
    async fn begins_behind_one_record(&self) -> bool {
        let begins = self.winner.facts().await.ancestry.last().unwrap().1;
        let segment = format!("{:08X}00000000{:08X}", self.next.0, begins.0 >> 24);
        let from = Lsn(begins.0 >> 24 << 24);
        let mut waldump = as_owner(&self.winner, &self.winner.instance.install().program("pg_waldump"));
        waldump.args(["-t", &self.next.to_string(), "-s", &from.to_string(), "-e", &begins.to_string()]);
        let said = waldump.arg(self.winner.instance.pgdata().join("pg_wal").join(segment)).output().unwrap();
        String::from_utf8_lossy(&said.stderr).contains("could not find a valid record")
    }

    /// As a crash leaves it that came when this much had been received of the segment in which the winner's timeline begins.
    async fn leave_stump(&self, received: u64) {
        let begins = self.winner.facts().await.ancestry.last().unwrap().1;
        assert!(begins.0 % (16 << 20) > received + 8192, "{begins}: much is left");
        let wal = |server: &Server, name: &str| server.dir.path().join("pgdata/pg_wal").join(name);
        let (history, segment) = (format!("{:08X}.history", self.next.0), format!("{:08X}00000000{:08X}", self.next.0, begins.0 >> 24));
        std::fs::copy(wal(&self.winner, &history), wal(&self.standby, &history)).unwrap();
        let mut bytes = std::fs::read(wal(&self.winner, &segment)).unwrap();
        bytes[usize::try_from(received).unwrap()..].fill(0);
        std::fs::write(wal(&self.standby, &segment), bytes).unwrap();
        let owner = std::fs::metadata(self.standby.instance.pgdata()).unwrap();
        for name in [history, segment] {
            std::os::unix::fs::chown(wal(&self.standby, &name), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }
}

/// INV-7: it had begun to receive the segment in which the next timeline begins when it crashed. PostgreSQL reads that file first, and it says
/// less than the parent's own does.
#[tokio::test]
async fn a_segment_that_breaks_off_before_its_timeline_begins_hides_nothing() {
    for crossing in [false, true] {
        let mut heirs = leave_heirs(crossing).await;
        // PostgreSQL writes records of its own, fifteen seconds after its start for the first time.
        for _ in 0..5 {
            if heirs.begins_behind_one_record().await == crossing {
                break;
            }
            heirs = leave_heirs(crossing).await;
        }
        assert_eq!(heirs.begins_behind_one_record().await, crossing);
        hides_nothing(&heirs).await;
    }
}

async fn hides_nothing(heirs: &Heirs) {
    let standby = &heirs.standby;
    for received in [0, 3 * 8192] {
        standby.instance.demote().await.unwrap();
        heirs.leave_stump(received).await;
        standby.instance.start_detached(None).await.unwrap();
        let told = standby.until("tells its end", |f| f.position.is_some()).await;
        assert!(told.position.unwrap().lsn >= heirs.end, "{told:?}, and it held WAL up to {}", heirs.end);
    }
    standby.instance.follow(heirs.winner.upstream(4), None, None).await.unwrap();
    standby.until("streams", |f| f.streaming_from == Some(NodeId(2)) && f.timeline == Some(heirs.next)).await;
    write(&heirs.winner, "c").await;
    until_reads(standby, "a b c").await;
    // What was received of the timeline itself stays.
    let end = standby.facts().await.position.unwrap().lsn;
    standby.instance.demote().await.unwrap();
    heirs.winner.instance.demote().await.unwrap();
    standby.instance.start_detached(None).await.unwrap();
    let told = standby.until("tells its end", |f| f.position.is_some()).await;
    assert!(told.timeline == Some(heirs.next) && told.position.unwrap().lsn >= end, "{told:?}, and it held WAL up to {end}");
}

/// The primary that it had begun to follow is lost in that moment, and it is elected.
#[tokio::test]
async fn a_standby_is_promoted_beside_a_segment_that_breaks_off() {
    let heirs = leave_heirs(false).await;
    heirs.leave_stump(3 * 8192).await;
    let third = Timeline(heirs.next.0 + 1);
    heirs.standby.instance.promote(Epoch(5), third, &heirs.standby.alone(), LIMIT).await.unwrap();
    assert_eq!(read(&heirs.standby).await.as_deref(), Some("a b"));
}

/// INV-7, INV-8: the number may be claimed for another, whose WAL is as long.
#[tokio::test]
async fn what_was_promoted_by_hand_is_told_to_no_election_until_it_is_replaced() {
    let primary = Server::primary(1).await;
    let (winner, standby) = (Server::standby(2, &primary).await, Server::standby(3, &primary).await);
    write(&primary, "a").await;
    until_reads(&winner, "a").await;
    until_reads(&standby, "a").await;
    winner.instance.detach(LIMIT).await.unwrap();
    standby.instance.detach(LIMIT).await.unwrap();
    primary.instance.stop(LIMIT).await.unwrap();
    standby.sql("SELECT pg_promote()").await;
    let made = standby.until("is a primary", |f| f.role == Some(Role::Primary)).await.timeline.unwrap();
    standby.instance.disown([made].into()).await.unwrap();
    standby.instance.demote().await.unwrap();
    let standby = standby.reopen().await;
    assert_eq!(standby.instance.by_hand(), [made].into(), "its process was restarted");
    standby.instance.start_detached(None).await.unwrap();
    let replayed = standby.until("has replayed", |f| f.timeline == Some(made)).await;
    assert_eq!(replayed.position, None);
    standby.instance.stop(LIMIT).await.unwrap();
    let stopped = standby.facts().await;
    assert_eq!((stopped.timeline, stopped.position), (Some(made), None));

    winner.instance.promote(Epoch(4), made, &winner.alone(), LIMIT).await.unwrap();
    standby.instance.copy_from(&winner.upstream(4), None).await.unwrap();
    standby.instance.follow(winner.upstream(4), None, None).await.unwrap();
    let follows = standby.until("streams", |f| f.streaming_from == Some(NodeId(2)) && f.position.is_some()).await;
    assert_eq!((follows.timeline, standby.instance.by_hand()), (Some(made), BTreeSet::new()));
}

/// One whose number nobody else has is rewound, and belongs to the cluster again.
#[tokio::test]
async fn what_was_promoted_by_hand_is_rewound_where_its_number_is_its_own() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    write(&primary, "a").await;
    until_reads(&standby, "a").await;
    primary.sql("SELECT pg_create_physical_replication_slot('trilithon_n3', true)").await;
    standby.instance.detach(LIMIT).await.unwrap();
    standby.sql("SELECT pg_promote()").await;
    let made = standby.until("is a primary", |f| f.role == Some(Role::Primary)).await.timeline.unwrap();
    standby.instance.disown([made].into()).await.unwrap();
    standby.instance.stop(LIMIT).await.unwrap();
    standby.instance.rewind(&primary.upstream(2), None).await.unwrap();
    assert_eq!(standby.instance.by_hand(), BTreeSet::new());
    standby.until("streams", |f| f.streaming_from == Some(NodeId(1)) && f.position.is_some()).await;
}

#[tokio::test]
async fn a_killed_rewind_poisons_the_directory_until_it_is_copied_anew() {
    let old = Server::primary(1).await;
    let winner = Server::standby(2, &old).await;
    write(&old, "a").await;
    until_reads(&winner, "a").await;
    winner.instance.detach(LIMIT).await.unwrap();
    write(&old, "lost").await;
    old.instance.stop(LIMIT).await.unwrap();
    winner.instance.promote(Epoch(4), Timeline(4), &winner.alone(), LIMIT).await.unwrap();
    winner.sql("CREATE TABLE filler AS SELECT repeat('x', 900) AS x FROM generate_series(1, 20000)").await;
    let pgdata = old.dir.path().join("pgdata");
    let inode = std::fs::metadata(&pgdata).unwrap().ino();
    let swap = format!("what a swap that could not be finished leaves\nits inode is {inode}\n");
    std::fs::write(old.dir.path().join("pgdata.SWAPPING"), swap).unwrap();
    {
        let source = winner.upstream(4);
        let mut rewind = Box::pin(old.instance.rewind(&source, None));
        tokio::select! {
            biased;
            () = until("the rewind has begun", || async { old.instance.poisoned() }) => {}
            ended = &mut rewind => panic!("it ended first: {ended:?}"),
        }
    }
    assert!(old.instance.poisoned());
    until("the tool is killed with its caller", || async { processes_below(old.dir.path()).is_empty() }).await;
    let old = old.reopen().await;
    let started = old.instance.start_detached(None).await;
    assert!(matches!(started, Err(Error::Poisoned { .. })), "what the swap left does not lift the rewind's mark: {started:?}");
    assert!(matches!(old.instance.rewind(&winner.upstream(4), None).await, Err(Error::Poisoned { .. })));
    old.instance.copy_from(&winner.upstream(4), None).await.unwrap();
    assert!(!old.instance.poisoned());
    old.instance.follow(winner.upstream(4), None, None).await.unwrap();
    until_reads(&old, "a").await;
    assert!(old.dir.path().join("pgdata.previous/PG_VERSION").exists(), "the old directory is kept aside");
}

#[tokio::test]
async fn a_drained_primary_ends_where_its_standby_does_and_follows_without_a_rewind() {
    let old = Server::primary(1).await;
    let winner = Server::standby(2, &old).await;
    old.instance.apply_rule(Epoch(2), &old.rule(&[2], 1), LIMIT).await.unwrap();
    write(&old, "a").await;
    old.instance.prepare(LIMIT).await.unwrap();
    let open = old.client().await;
    try_sql(&open, "BEGIN; INSERT INTO t VALUES ('open')").await.unwrap();
    let begun = Instant::now();
    old.instance.drain(Duration::from_millis(300), LIMIT).await.unwrap();
    println!("drain took {:?}", begun.elapsed());
    let drained = old.facts().await;
    let checkpoint = drained.shutdown_checkpoint.unwrap();
    let held = winner.until("holds everything", |f| f.position.is_some_and(|p| p.lsn > checkpoint)).await;
    assert_eq!(drained.position.unwrap().lsn, checkpoint);
    assert!(held.position > drained.position);
    assert!(try_sql(&open, "COMMIT").await.is_err());
    winner.instance.detach(LIMIT).await.unwrap();
    winner.instance.promote(Epoch(3), Timeline(3), &winner.rule(&[1], 1), LIMIT).await.unwrap();
    old.instance.follow(winner.upstream(3), None, None).await.unwrap();
    old.until("streams from the winner", |f| f.streaming_from == Some(NodeId(2))).await;
    winner.instance.apply_rule(Epoch(3), &winner.rule(&[1], 1), LIMIT).await.unwrap();
    write(&winner, "b").await;
    until_reads(&old, "a b").await;
    assert_eq!(read(&winner).await.as_deref(), Some("a b"), "the open transaction did not happen");
}

#[tokio::test]
async fn slots_exist_on_standbys_and_are_advanced_and_dropped() {
    let primary = Server::primary(1).await;
    let standby = Server::standby(2, &primary).await;
    standby.instance.sync_slots(&BTreeMap::from([(NodeId(1), None), (NodeId(2), None), (NodeId(3), None)])).await.unwrap();
    let slots = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE restart_lsn IS NOT NULL";
    assert_eq!(standby.sql(slots).await.as_deref(), Some("trilithon_n1 trilithon_n3"));
    write(&primary, "a").await;
    primary.sql("SELECT pg_switch_wal()").await;
    write(&primary, "b").await;
    until_reads(&standby, "a b").await;
    let flushed = standby.facts().await.position.unwrap().lsn;
    standby.instance.sync_slots(&BTreeMap::from([(NodeId(1), None), (NodeId(3), Some(flushed))])).await.unwrap();
    let restart = standby.sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'trilithon_n3'").await.unwrap();
    assert!(restart.parse::<trilithon::types::Lsn>().unwrap() <= flushed);
    let moved = "SELECT pg_wal_lsn_diff(max(restart_lsn), min(restart_lsn)) > 0 FROM pg_replication_slots";
    assert_eq!(standby.sql(moved).await.as_deref(), Some("t"), "only the one whose member is known to be further moved");
    standby.instance.sync_slots(&BTreeMap::from([(NodeId(1), None)])).await.unwrap();
    assert_eq!(standby.sql(slots).await.as_deref(), Some("trilithon_n1"));
}
