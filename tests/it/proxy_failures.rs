//! The failure contract: what a client is told when the cluster changes under it.

use crate::proxy_support::{
    Front, HeldLine, PRIMARY, Pair, Raw, STANDBY, code, eventually, message, parse, psql, query, run_statement, sync, through,
};
use futures::future;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use trilithon::cluster::WriteGate;
use trilithon::types::Epoch;

/// The standby becomes the primary of the next epoch, as the proxy sees it.
async fn flip(front: &Front) {
    front
        .publish(|topology| {
            topology.epoch = Epoch(topology.epoch.0 + 1);
            topology.write = WriteGate::Open { primary: STANDBY, epoch: topology.epoch };
            topology.backends.remove(&PRIMARY);
            topology.backends.get_mut(&STANDBY).expect("present").readable = false;
        })
        .await;
}

async fn hold(front: &Front) {
    front
        .publish(|topology| {
            topology.epoch = Epoch(topology.epoch.0 + 1);
            topology.write = WriteGate::Held;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inv_11_new_transactions_wait_through_a_failover_and_are_served_by_the_new_primary() {
    let mut pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    psql(front.primary(), "create table t (id serial, who int)");
    pair.caught_up().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(through(front.auto()).await);
    }
    for client in &clients {
        client.simple_query("insert into t (who) values (-1)").await.expect("before");
    }
    pair.caught_up().await;
    hold(&front).await;
    pair.primary.stop(rustix::process::Signal::KILL);
    let inserts = clients.iter().enumerate().map(|(who, client)| {
        let front = &front;
        async move {
            eventually("its turn to queue", || front.handle.stats().waiting == who as u64).await;
            // A block is held at its first statement, a single statement at once.
            if who % 2 == 0 {
                client.simple_query("begin").await?;
            }
            client.simple_query(&format!("insert into t (who) values ({who})")).await?;
            if who % 2 == 0 {
                client.simple_query("commit").await?;
            }
            Ok::<_, tokio_postgres::Error>(())
        }
    });
    let failover = async {
        eventually("all are held", || front.handle.stats().waiting == 5).await;
        // Reads go on meanwhile.
        let reader = through(front.standby()).await;
        reader.simple_query("select count(*) from t").await.expect("read during the failover");
        pair.standby.promote();
        flip(&front).await;
    };
    let (results, ()) = future::join(future::join_all(inserts), failover).await;
    for result in results {
        result.expect("held, then served");
    }
    assert_eq!(psql(front.primary(), "select count(*) from t where who >= 0"), "5");
    assert_eq!(psql(front.primary(), "select pg_is_in_recovery()"), "f");
}

/// `select n from nap` is a read of so many seconds, by its text.
async fn view_that_sleeps(pair: &Pair, seconds: u32) {
    let sql = format!("create view nap as select count(*) as n from pg_sleep({seconds})");
    pair.primary.direct().await.batch_execute(&sql).await.expect("view");
    pair.caught_up().await;
}

/// Found by a run of chaos: the answer of such a read was an empty one, as if there were no such row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_waits_for_another_server_when_the_node_stops_fails() {
    let mut pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    view_that_sleeps(&pair, 60).await;
    let reader = through(front.standby()).await;
    let read = reader.simple_query("select n from nap");
    let stop = async {
        pair.standby.until_waiting("PgSleep", 1).await;
        hold(&front).await;
        pair.standby.stop(rustix::process::Signal::QUIT);
        eventually("it waits for another server", || front.handle.stats().waiting == 1).await;
        front.shutdown.cancel();
    };
    let (answer, ()) = tokio::time::timeout(Duration::from_secs(20), future::join(read, stop)).await.expect("at once");
    assert_eq!(code(answer), "57P01");
}

/// An error of the proxy's own comes behind what a server has said already, however slowly its client reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_the_gate_comes_behind_the_answers_that_a_slow_client_has_not_read() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| (config.hold_timeout, config.pool_size) = (Duration::from_secs(3), 64)).await;
    let asked = async |rows: usize| {
        let mut raw = Raw::login_narrow(front.primary()).await;
        raw.say(&query(&format!("select repeat('x', 6000) from generate_series(1, {rows})"))).await;
        assert_eq!(raw.hear().await.0, b'T', "the server answers");
        raw
    };
    // How much of an answer the sockets take depends on the kernel: of some only the end is left.
    let mut clients = future::join_all((1..=60).map(|n| asked(2 * n))).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    front.publish(|topology| topology.write = WriteGate::Held).await;
    for client in &mut clients {
        client.say(&query("select 1")).await;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let read = async |(n, mut client): (usize, Raw)| {
        let whole = format!("{}CZ", "D".repeat(2 * n));
        assert_eq!((client.answer().await, client.answer().await.as_str()), (whole, "E08006Z"), "{n}");
    };
    future::join_all((1..).zip(clients).map(read)).await;
}

/// A node that was frozen wakes with a topology in which a standby may look sound that is not any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_standby_is_read_by_an_old_topology() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_millis(300)).await;
    let (standby, auto) = (through(front.standby()).await, through(front.auto()).await);
    standby.simple_query("select 1").await.expect("a sound standby");
    front.fresh.store(false, SeqCst);
    assert_eq!(code(standby.simple_query("select 1").await), "08006");
    auto.simple_query("select 1").await.expect("rather the primary, which a gate of its own guards");
    front.fresh.store(true, SeqCst);
    standby.simple_query("select 1").await.expect("the present again");
}

/// P3: what was fit when its connection was begun may not be when it stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_begins_on_a_standby_that_became_unfit_while_its_connection_was_opened() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    pair.caught_up().await;
    let line = HeldLine::to(pair.standby.port).await;
    let mut client = Raw::login(front.auto()).await;
    assert_eq!(client.ask(&query("begin read only")).await, "CZ");
    assert_eq!(client.ask(&query("select 1 / (select count(*) from pg_stat_wal_receiver)")).await, "TDCZ", "on the standby");
    assert_eq!(client.ask(&query("commit")).await, "CZ");
    front.publish(|topology| topology.backends.get_mut(&STANDBY).expect("the standby").address = format!("127.0.0.1:{}", line.port)).await;
    assert_eq!(client.ask(&query("begin read only")).await, "CZ");
    client.say(&query("select 1 / (1 - least(1, count(*))) from pg_stat_wal_receiver")).await;
    tokio::time::timeout(Duration::from_secs(10), line.begun.notified()).await.expect("a connection is begun");
    readable(&front, false).await;
    line.open.send_replace(true);
    assert_eq!(client.answer().await, "TDCZ", "on the primary");
}

/// What the proxy is told of the standby.
async fn readable(front: &Front, is: bool) {
    front.publish(|topology| topology.backends.get_mut(&STANDBY).expect("the standby").readable = is).await;
}

/// P3: what it keeps there does not keep a session on a standby that shows what nobody may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_keeps_its_standby_reads_nothing_there_once_it_is_unfit() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_secs(30)).await;
    let kept = through(front.standby()).await;
    let statement = kept.prepare("select 1").await.expect("a statement that stays on the standby");
    kept.query(&statement, &[]).await.expect("a sound standby");
    readable(&front, false).await;
    let (asked, ()) = future::join(kept.query(&statement, &[]), async {
        eventually("it waits", || front.handle.stats().waiting == 1).await;
        readable(&front, true).await;
    })
    .await;
    asked.expect("it waits for a moment");

    // Who cancels the wait has his answer to the end, and to what he had sent behind it.
    let mut kept = Raw::login(front.standby()).await;
    assert_eq!(kept.ask(&[parse("mine", "select 1"), sync()].concat()).await, "1Z");
    readable(&front, false).await;
    kept.say(&[run_statement("mine"), sync(), run_statement("mine"), sync()].concat()).await;
    for answered in 0..2 {
        eventually("it waits", || front.handle.stats().waiting == 1).await;
        kept.cancel(front.standby()).await;
        assert_eq!(kept.answer().await, "E57014Z", "{answered}");
    }

    let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_millis(300)).await;
    let kept = through(front.standby()).await;
    let statement = kept.prepare("select 1").await.expect("a statement that stays on the standby");
    readable(&front, false).await;
    assert_eq!(code(kept.query(&statement, &[]).await), "57P01");
}

/// A primary that lost power and starts again is in recovery, with commits that nobody had confirmed (P3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_in_recovery_is_not_read_in_place_of_a_standby() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_millis(300)).await;
    let (reader, auto, writer) = (through(front.standby()).await, through(front.auto()).await, through(front.primary()).await);
    flip(&front).await;
    for client in [&reader, &auto, &writer] {
        assert_eq!(code(client.simple_query("select 1").await), "08006");
    }
    pair.standby.promote();
    for client in [&reader, &auto, &writer] {
        client.simple_query("select 1").await.expect("it is the primary, and there is no standby");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inv_11_a_demoted_primary_is_left_at_once_with_the_right_code() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    psql(front.primary(), "create table t (a int); insert into t values (1)");
    let idle = through(front.primary()).await;
    idle.simple_query("select 1").await.expect("idle client");
    let in_block = through(front.primary()).await;
    in_block.batch_execute("begin").await.expect("begin");
    in_block.batch_execute("update t set a = 2").await.expect("update");
    let active = through(front.primary()).await;
    active.batch_execute("begin").await.expect("begin");
    active.batch_execute("select 1").await.expect("first statement");
    let single = through(front.primary()).await;
    let pinned = through(front.primary()).await;
    pinned.batch_execute("create temp table mine (a int)").await.expect("pin");
    let busy = future::join(active.simple_query("select pg_sleep(60)"), single.simple_query("insert into t select 5 from pg_sleep(60)"));
    let fence = async {
        pair.primary.until_waiting("PgSleep", 2).await;
        hold(&front).await;
        flip(&front).await;
        pair.standby.promote();
    };
    let ((active_end, single_end), ()) = tokio::time::timeout(Duration::from_secs(20), future::join(busy, fence)).await.expect("at once");
    assert_eq!(code(active_end), "40001", "within a block, not committing");
    assert_eq!(code(single_end), "08007", "a write of its own may have been applied");
    assert!(single.is_closed());
    // The block's connection stays: error, failed block, rollback, and on to the new primary.
    assert_eq!(code(active.simple_query("select 1").await), "25P02");
    active.simple_query("rollback").await.expect("rollback");
    active.simple_query("select 1").await.expect("the new primary");
    // A block without a statement in flight learns at its next one; its COMMIT must not succeed.
    assert_eq!(code(in_block.simple_query("commit").await), "40001");
    in_block.simple_query("rollback").await.expect("rollback");
    in_block.simple_query("select 1").await.expect("the new primary");
    idle.simple_query("select 1").await.expect("idle clients notice nothing");
    eventually("the session whose temporary table is gone ends", || pinned.is_closed()).await;
    let left = pair.primary.direct().await;
    let count = "select count(*) from pg_stat_activity where backend_type = 'client backend' and application_name not like '%walreceiver%' and pid <> pg_backend_pid() and state <> 'active'";
    for attempt in 0.. {
        let n: i64 = left.query_one(count, &[]).await.expect("activity").get(0);
        // The control connection of the proxy may remain.
        if n <= 1 {
            break;
        }
        assert!(attempt < 500, "{n} connections to the demoted node are left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_told_apart_by_what_was_in_flight() {
    let mut pair = Pair::start();
    let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_secs(20)).await;
    psql(front.primary(), "create table t (a int); insert into t values (1)");
    view_that_sleeps(&pair, 60).await;
    let read = through(front.primary()).await;
    let write = through(front.primary()).await;
    let block = through(front.primary()).await;
    let extended = through(front.primary()).await;
    block.batch_execute("begin").await.expect("begin");
    block.batch_execute("insert into t values (2)").await.expect("insert");
    let crash = async {
        pair.primary.until_waiting("PgSleep", 3).await;
        pair.primary.stop(rustix::process::Signal::QUIT);
        pair.primary.start();
    };
    let statements = future::join3(
        read.simple_query("select n from nap"),
        write.simple_query("insert into t select 3 from pg_sleep(60)"),
        extended.query("insert into t select 4 from pg_sleep(60) returning a", &[]),
    );
    let ((read_end, write_end, extended_end), ()) = future::join(statements, crash).await;
    assert_eq!(code(read_end), "08007", "what a text does not show may write");
    assert_eq!(code(write_end), "08007");
    assert_eq!(code(extended_end), "08007");
    assert_eq!(code(block.simple_query("insert into t values (5)").await), "40001");
    block.simple_query("rollback").await.expect("rollback");
    assert_eq!(psql(front.primary(), "select string_agg(a::text, ' ') from t"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_client_learns_that_nothing_was_sent() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_millis(400)).await;
    let client = through(front.auto()).await;
    hold(&front).await;
    assert_eq!(code(client.simple_query("create table t (a int)").await), "08006");
    assert_eq!(code(client.execute("create table t (a int)", &[]).await), "08006");
    client.simple_query("begin").await.expect("a block begins without a server");
    assert_eq!(code(client.simple_query("create table t (a int)").await), "08006");
    assert_eq!(code(client.simple_query("select 1").await), "25P02");
    client.simple_query("rollback").await.expect("rollback");
    client.simple_query("select 1").await.expect("reads go on");
    front.publish(|topology| topology.write = WriteGate::Open { primary: PRIMARY, epoch: topology.epoch }).await;
    client.simple_query("create table t (a int)").await.expect("open again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_transactions_end_and_cancels_the_rest_at_its_deadline() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    psql(front.primary(), "create table t (a int)");
    let (ending, staying, single, new) =
        (through(front.primary()).await, through(front.primary()).await, through(front.primary()).await, through(front.primary()).await);
    for client in [&ending, &staying] {
        client.simple_query("begin").await.expect("begin");
        client.simple_query("insert into t values (1)").await.expect("insert");
    }
    let drain = async {
        eventually("three are in flight", || front.handle.stats().in_flight == 3).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        new.simple_query("select 1").await.expect("opens another server");
        let idle = || front.handle.stats().pools.iter().filter(|pool| pool.node == PRIMARY).map(|pool| pool.idle).sum::<u32>();
        eventually("one is idle", || idle() >= 1).await;
        front.publish(|topology| topology.write = WriteGate::Draining { primary: PRIMARY, epoch: topology.epoch }).await;
        let revision = front.topology.borrow().revision;
        eventually("an idle server is in the way of a shutdown only", || idle() == 0).await;
        let insert = new.simple_query("insert into t values (9)");
        let rest = async {
            eventually("a new transaction waits", || front.handle.stats().waiting == 1).await;
            ending.simple_query("insert into t values (2)").await.expect("in flight");
            ending.simple_query("commit").await.expect("may end");
            eventually("it is counted out", || front.handle.drain_state() == (revision, 2)).await;
            eventually("so is a server that comes back meanwhile", || idle() == 0).await;
            front.handle.cancel_in_flight().await;
            tokio::time::timeout(Duration::from_secs(5), front.handle.drained(revision)).await.expect("drained");
            // The switchover is called off: the same primary goes on.
            front.publish(|topology| topology.write = WriteGate::Open { primary: PRIMARY, epoch: topology.epoch }).await;
        };
        future::join(insert, rest).await.0.expect("held, then served");
    };
    let (single_end, ()) = future::join(single.simple_query("insert into t select 7 from pg_sleep(60)"), drain).await;
    assert_eq!(code(single_end), "40001");
    assert_eq!(code(staying.simple_query("commit").await), "40001");
    staying.simple_query("rollback").await.expect("rollback");
    assert_eq!(psql(front.primary(), "select string_agg(a::text, ' ' order by a) from t"), "1 2 9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_no_standby_confirmed_is_not_reported_as_done() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    let direct = table_that_nobody_confirms(&pair).await;
    for (begins, statement) in [(true, "commit"), (false, "insert into t values (2)")] {
        let client = through(front.primary()).await;
        if begins {
            client.simple_query("begin").await.expect("begin");
            client.simple_query("insert into t values (1)").await.expect("insert");
        }
        let token = client.cancel_token();
        let break_wait = async {
            let pid = loop {
                let waiting =
                    direct.query_opt("select pid from pg_stat_activity where wait_event = 'SyncRep'", &[]).await.expect("activity");
                if let Some(row) = waiting {
                    break row.get::<_, i32>(0);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            // The client's own request is not passed on: the wait goes on.
            token.cancel_query(tokio_postgres::NoTls).await.expect("cancel request");
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(pair.primary.waiting("SyncRep").await, 1, "a cancel request must not end the wait");
            // An administrator's does.
            direct.query("select pg_cancel_backend($1)", &[&pid]).await.expect("cancel");
        };
        let (end, ()) =
            tokio::time::timeout(Duration::from_secs(20), future::join(client.simple_query(statement), break_wait)).await.expect("in time");
        assert_eq!(code(end), "08007", "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inv_9_the_primarys_own_proxy_serves_only_under_its_lease() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_secs(10)).await;
    // The proxy runs on the node that is the primary now.
    pair.standby.promote();
    flip(&front).await;
    let client = through(front.auto()).await;
    client.simple_query("create table t (a int)").await.expect("leased");
    front.lease.store(false, SeqCst);
    let renew = async {
        eventually("it is held", || front.handle.stats().waiting == 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        front.lease.store(true, SeqCst);
    };
    let (insert, ()) = future::join(client.simple_query("insert into t values (1)"), renew).await;
    insert.expect("served once the lease is valid again");
}

/// A table `t`, and commits that wait for a standby that does not exist. Gives a session of the server itself.
async fn table_that_nobody_confirms(pair: &Pair) -> tokio_postgres::Client {
    let direct = pair.primary.direct().await;
    direct.batch_execute("create table t (a int); create table probe ()").await.expect("table");
    for sql in ["alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"] {
        direct.simple_query(sql).await.expect("synchronous");
    }
    // Commits wait as soon as the checkpointer has read it.
    let probe = pair.primary.direct().await;
    let commits = async {
        loop {
            probe.batch_execute("insert into probe default values").await.expect("nothing to wait for yet");
        }
    };
    tokio::select! {
        () = pair.primary.until_waiting("SyncRep", 1) => {}
        () = commits => {}
    }
    probe.cancel_token().cancel_query(tokio_postgres::NoTls).await.expect("cancel request");
    pair.primary.until_waiting("SyncRep", 0).await;
    direct
}

/// Cancelled, the wait would end and show a row to others that may yet be lost (P3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_does_not_end_the_wait_for_standbys() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    let direct = table_that_nobody_confirms(&pair).await;
    let mut client = Raw::login(front.primary()).await;
    client.say(&query("insert into t values (1)")).await;
    pair.primary.until_waiting("SyncRep", 1).await;
    drop(client);
    eventually("the client has left", || front.handle.stats().clients == 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(pair.primary.waiting("SyncRep").await, 1);
    assert_eq!(direct.query_one("select count(*) from t", &[]).await.expect("read").get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_looked_like_a_read_runs_once() {
    // The second client's statement is known as a write where the first one's was refused by a standby, and not where it never met one.
    for primary_first in [false, true] {
        let mut pair = Pair::start();
        let front = Front::start(&pair, |config| config.hold_timeout = Duration::from_secs(20)).await;
        psql(front.primary(), "create sequence s; create view slow as select nextval('s') + length(pg_sleep(60)::text) as n");
        pair.caught_up().await;
        let mut ports = [front.auto(), front.primary()];
        if primary_first {
            ports.reverse();
        }
        for port in ports {
            let client = through(port).await;
            let crash = async {
                eventually("it runs on the primary", || front.handle.stats().in_flight == 1).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                pair.primary.stop(rustix::process::Signal::QUIT);
                pair.primary.start();
            };
            let both = future::join(client.simple_query("select n from slow"), crash);
            let (end, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("at once");
            assert_eq!(code(end), "08007");
        }
    }
}

/// Its answer is sent only behind its commit, so that nothing of it was seen when it is applied already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_writes_is_not_run_again_behind_its_commit() {
    let mut pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    let body = "begin insert into t values (1); return 1; end";
    psql(front.primary(), &format!("create function f() returns int language plpgsql as $${body}$$; create view v as select f() as n"));
    let direct = table_that_nobody_confirms(&pair).await;
    let mut client = Raw::login(front.primary()).await;
    for unit in [query("select n from v"), [parse("", "select n from v"), run_statement(""), sync()].concat()] {
        let before: i64 = pair.primary.direct().await.query_one("select count(*) from t", &[]).await.expect("count").get(0);
        client.say(&unit).await;
        pair.primary.until_waiting("SyncRep", 1).await;
        pair.primary.stop(rustix::process::Signal::QUIT);
        pair.primary.start();
        // Whatever PostgreSQL says in its last moment, which may be the row.
        let (mut tag, mut body) = client.hear().await;
        while tag != b'E' {
            (tag, body) = client.hear().await;
        }
        assert!(String::from_utf8_lossy(&body).contains("08007"), "{}", String::from_utf8_lossy(&body));
        let after: i64 = pair.primary.direct().await.query_one("select count(*) from t", &[]).await.expect("count").get(0);
        assert_eq!(after, before + 1);
        client = Raw::login(front.primary()).await;
    }
    drop(direct);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_whose_standby_is_lost_runs_again() {
    let mut pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    // For longer than a lost standby is shunned: the second round finds it again.
    view_that_sleeps(&pair, 5).await;
    for port in [front.auto(), front.standby()] {
        let client = through(port).await;
        let read = client.simple_query("select n from nap");
        let crash = async {
            pair.standby.until_waiting("PgSleep", 1).await;
            pair.standby.stop(rustix::process::Signal::QUIT);
            pair.standby.start();
        };
        let both = tokio::time::timeout(Duration::from_secs(30), future::join(read, crash)).await;
        both.expect("in time").0.expect("a read of which nothing was seen runs again where nothing can be written");
    }
}

/// The server's own error tells that nothing of it was applied; the client of a switchover sees none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_a_drain_cancelled_runs_again() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    psql(front.primary(), "create table t (a int)");
    let mut direct = pair.primary.direct().await;
    for unit in [query("select count(*) from t"), [parse("", "select count(*) from t"), run_statement(""), sync()].concat()] {
        let lock = direct.transaction().await.expect("begin");
        lock.batch_execute("lock table t in access exclusive mode").await.expect("lock");
        let mut client = Raw::login(front.primary()).await;
        client.say(&unit).await;
        let blocked = "select count(*) from pg_locks where not granted";
        for attempt in 0.. {
            assert!(attempt < 1000, "the read is not blocked");
            if lock.query_one(blocked, &[]).await.expect("locks").get::<_, i64>(0) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        front.publish(|topology| topology.write = WriteGate::Draining { primary: PRIMARY, epoch: topology.epoch }).await;
        let revision = front.topology.borrow().revision;
        front.handle.cancel_in_flight().await;
        tokio::time::timeout(Duration::from_secs(5), front.handle.drained(revision)).await.expect("drained");
        eventually("it waits for the primary", || front.handle.stats().waiting == 1).await;
        lock.rollback().await.expect("unlock");
        front.publish(|topology| topology.write = WriteGate::Open { primary: PRIMARY, epoch: topology.epoch }).await;
        let answer = client.answer().await;
        assert!(answer == "TDCZ" || answer == "12DCZ", "{answer}");
    }
    let elsewhere = front.handle.stats().pools.iter().any(|pool| pool.node == STANDBY && pool.checkouts > 0);
    assert!(!elsewhere, "a standby may be behind what this client has read from the primary");
}

/// As drivers do that ask for the answer while a pipeline is open: the Flush waits behind a read that may be run again, and stops nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_behind_a_read_waits_for_its_answer() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    for port in [front.primary(), front.auto(), front.standby()] {
        let mut client = Raw::login(port).await;
        let read = [parse("", "select 1"), run_statement(""), sync(), message(b'H', &[])].concat();
        client.say(&[read.clone(), read].concat()).await;
        assert_eq!((client.answer().await, client.answer().await), ("12DCZ".to_owned(), "12DCZ".to_owned()));
        client.say(&message(b'H', &[])).await;
        client.say(&query("select 2")).await;
        assert_eq!(client.answer().await, "TDCZ");
    }
}
