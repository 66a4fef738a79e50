//! Who has which server, and for how long.

use crate::proxy_support::{
    Front, PASSWORD, PRIMARY, Pair, Raw, STANDBY, client, code, describe, eventually, killed_in, message, parse, psql, query,
    run_statement, sync, through,
};
use futures::future;
use std::collections::BTreeSet;
use std::time::Duration;
use trilithon::proxy::{Consistency, PoolMode};

async fn backend(client: &tokio_postgres::Client) -> i32 {
    let rows = client.simple_query("select pg_backend_pid()").await.expect("pid");
    let row = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.expect("one row").parse().expect("a number")
}

/// Whoever finds its only server taken is told so soon.
async fn of_one_server(pair: &Pair) -> Front {
    Front::start(pair, |config| {
        config.pool_size = 1;
        config.hold_timeout = Duration::from_millis(300);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_few_servers() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.pool_size = 3).await;
    let port = front.primary();
    psql(port, "create table counter (n int); insert into counter values (0)");
    let work = (0..30).map(|_| async move {
        let mut client = through(port).await;
        let mut pids = BTreeSet::new();
        for _ in 0..5 {
            let transaction = client.transaction().await.expect("begin");
            transaction.batch_execute("update counter set n = n + 1").await.expect("update");
            transaction.commit().await.expect("commit");
            pids.insert(backend(&client).await);
        }
        pids
    });
    let pids: BTreeSet<i32> = future::join_all(work).await.into_iter().flatten().collect();
    assert_eq!(psql(port, "select n from counter"), "150");
    assert!(pids.len() <= 3, "{pids:?}");
    let stats = front.handle.stats();
    let pool = stats.pools.iter().find(|pool| pool.node == PRIMARY).expect("a pool");
    assert!(pool.connects <= 6 && pool.checkouts >= 300, "{pool:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_state_keeps_its_server_and_leaves_nothing_behind() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.pool_size = 2).await;
    let port = front.primary();
    let setups = [
        "set search_path = pinned_schema",
        "create temp table mine (a int)",
        "select pg_advisory_lock(42)",
        "listen something",
        "prepare mine as select 1",
        "do $$ begin perform set_config('timezone', 'Asia/Tokyo', false); end $$",
    ];
    for setup in setups {
        let (pinned, other) = (through(port).await, through(port).await);
        pinned.batch_execute(setup).await.expect("set up");
        let mine = backend(&pinned).await;
        for _ in 0..5 {
            assert_ne!(backend(&other).await, mine, "{setup}");
            assert_eq!(backend(&pinned).await, mine, "{setup}");
        }
        drop(pinned);
        eventually("the pinned client has left", || front.handle.stats().clients == 1).await;
        // Two servers at most: the cleaned one is among those that these get.
        let (first, second) = (through(port).await, through(port).await);
        for client in [&first, &second] {
            client.batch_execute("begin").await.expect("begin");
            let state = "select current_setting('search_path') || current_setting('timezone') || (select count(*) from pg_catalog.pg_class where relname = 'mine') \
                         || (select count(*) from pg_catalog.pg_listening_channels()) || (select count(*) from pg_catalog.pg_prepared_statements) \
                         || (select count(*) from pg_catalog.pg_locks where locktype = 'advisory')";
            let rows = client.simple_query(state).await.expect("state");
            let text = format!("{rows:?}");
            assert!(!text.contains("pinned_schema") && !text.contains("Tokyo") && text.contains("0000"), "{setup}: {text}");
            client.batch_execute("rollback").await.expect("rollback");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_in_a_transaction_holds_no_lock() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.pool_size = 1).await;
    let port = front.primary();
    psql(port, "create table t (a int); insert into t values (1)");
    let idle = through(port).await;
    idle.batch_execute("begin").await.expect("begin");
    idle.batch_execute("update t set a = 3").await.expect("update");
    drop(idle);
    let update = async |what: &str| {
        let next = through(port).await;
        let update = tokio::time::timeout(Duration::from_secs(10), next.batch_execute("update t set a = a + 10")).await;
        update.expect(what).expect("update");
    };
    update("no lock is left by a client idle in its transaction").await;
    let killed = tokio::task::spawn_blocking(move || killed_in(port, "update t set a = 3", Duration::from_secs(1)));
    killed.await.expect("joined");
    update("no lock is left by a client killed in a statement").await;
    assert_eq!(psql(port, "select a from t"), "21");
    eventually("nothing is in flight", || front.handle.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_has_the_settings_it_asked_for() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.pool_size = 1).await;
    let port = front.primary();
    let with = |more: &str| {
        let dsn = format!("host=127.0.0.1 port={port} user=postgres password={PASSWORD} dbname=postgres {more}");
        async move { client(&dsn).await.expect("login") }
    };
    let tokyo = with("options='-c timezone=Asia/Tokyo -c extra_float_digits=0' application_name=first").await;
    let plain = with("application_name=second").await;
    // One server for all: it is opened anew for whoever differs.
    for _ in 0..3 {
        let sql = "select current_setting('timezone') || ' ' || current_setting('application_name')";
        assert_eq!(tokyo.query_one(sql, &[]).await.expect("query").get::<_, String>(0), "Asia/Tokyo first");
        assert!(plain.query_one(sql, &[]).await.expect("query").get::<_, String>(0).ends_with(" second"));
    }
    let wrong =
        client(&format!("host=127.0.0.1 port={port} user=postgres password={PASSWORD} dbname=postgres options='-c nonsense=1'")).await;
    assert_eq!(code(wrong), "42704");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_past_a_dead_standby_before_the_topology_knows() {
    let mut pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    let client = through(front.auto()).await;
    client.simple_query("select 1").await.expect("on the standby");
    pair.standby.stop(rustix::process::Signal::QUIT);
    for _ in 0..3 {
        let read = tokio::time::timeout(Duration::from_secs(5), client.simple_query("select count(*) from pg_class")).await;
        read.expect("at once").expect("on the primary");
    }
    let reader = through(front.standby()).await;
    assert_eq!(code(reader.simple_query("create table t (a int)").await), "25006", "read-only, although it is the primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_goes_on_behind_a_chained_transaction() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    for port in [front.primary(), front.auto()] {
        let client = through(port).await;
        let texts = ["begin", "select 1", "commit and chain", "select 2", "rollback", "begin", "select 3", "commit", "select 4"];
        let all = future::join_all(texts.iter().map(|text| client.simple_query(text)));
        let answers = tokio::time::timeout(Duration::from_secs(10), all).await.expect("each is answered");
        for (text, answer) in texts.iter().zip(answers) {
            answer.unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_of_a_slow_reader_goes_where_each_of_its_transactions_belongs() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.consistency = Consistency::Eventual).await;
    psql(front.primary(), "create table t (a int)");
    pair.caught_up().await;
    // Which answer it is that the sockets no longer hold depends on the kernel: for each there is a client whose write is next.
    let slow = async |reads: usize| {
        let mut raw = Raw::login_narrow(front.auto()).await;
        raw.say(&[query("select repeat('x', 7000)").repeat(reads), query("insert into t values (1)")].concat()).await;
        for read in 0..reads {
            tokio::time::sleep(Duration::from_millis(30)).await;
            assert_eq!(raw.answer().await, "TDCZ", "read {read} of {reads}");
        }
        assert_eq!(raw.answer().await, "CZ", "the write behind {reads} reads");
    };
    future::join_all((1..=40).map(slow)).await;
    assert_eq!(psql(front.primary(), "select count(*) from t"), "40");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_mode_keeps_one_server_for_each_client() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| {
        config.mode = PoolMode::Session;
        config.pool_size = 2;
        config.hold_timeout = Duration::from_millis(300);
    })
    .await;
    let (first, second) = (through(front.auto()).await, through(front.auto()).await);
    let (a, b) = (backend(&first).await, backend(&second).await);
    assert_ne!(a, b);
    assert_eq!((backend(&first).await, backend(&second).await), (a, b));
    let third = through(front.auto()).await;
    assert_eq!(code(third.simple_query("select 1").await), "08006");
    drop(first);
    eventually("a server is free", || front.handle.stats().pools.iter().any(|pool| pool.idle == 1)).await;
    third.simple_query("select 1").await.expect("the free server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_clients_are_served_in_the_order_of_their_arrival() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.pool_size = 1).await;
    let port = front.primary();
    psql(port, "create table log (id serial, who int)");
    let blocker = through(port).await;
    blocker.batch_execute("begin; select 1").await.expect("takes the only server");
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(through(port).await);
    }
    let inserts = clients.iter().enumerate().map(|(who, client)| {
        let handle = &front.handle;
        async move {
            eventually("its turn to queue", || handle.stats().waiting == who as u64).await;
            client.simple_query(&format!("insert into log (who) values ({who})")).await.expect("insert");
        }
    });
    let release = async {
        eventually("all wait", || front.handle.stats().waiting == 10).await;
        blocker.batch_execute("rollback").await.expect("rollback");
    };
    future::join(future::join_all(inserts), release).await;
    assert_eq!(psql(port, "select string_agg(who::text, ' ' order by id) from log"), "0 1 2 3 4 5 6 7 8 9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_to_a_standby_and_follow_the_clients_own_writes() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    psql(front.primary(), "create table t (a int); create sequence s; create view writes as select nextval('s') as n");
    pair.caught_up().await;
    let client = through(front.auto()).await;
    let reads = |node| front.handle.stats().pools.iter().filter(|pool| pool.node == node).map(|pool| pool.checkouts).sum::<u64>();
    let before = reads(STANDBY);
    client.simple_query("select count(*) from t").await.expect("read");
    client.simple_query("begin read only").await.expect("begin");
    client.simple_query("select count(*) from t").await.expect("read");
    client.simple_query("commit").await.expect("commit");
    assert_eq!(reads(STANDBY), before + 2);
    // It looks like a read and writes: the standby refuses, the client sees nothing of it, and the form is remembered.
    let first = client.simple_query("select n from writes where n > 0").await.expect("replayed on the primary");
    assert!(format!("{first:?}").contains("Some(\"1\")") || format!("{first:?}").contains('1'), "{first:?}");
    let learned = reads(STANDBY);
    client.simple_query("select n from writes where n > 1").await.expect("on the primary at once");
    client.query("select n from writes where n > $1", &[&0i64]).await.expect("extended protocol");
    assert_eq!(reads(STANDBY), learned);
    // After its own write the client reads from the primary.
    client.simple_query("insert into t values (1)").await.expect("write");
    let rows = client.simple_query("select count(*) from t").await.expect("read");
    assert!(format!("{rows:?}").contains('1'));
    assert_eq!(reads(STANDBY), learned);
    let eventual = Front::start(&pair, |config| config.consistency = Consistency::Primary).await;
    let client = through(eventual.auto()).await;
    client.simple_query("select 1").await.expect("read");
    assert!(eventual.handle.stats().pools.iter().all(|pool| pool.node == PRIMARY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_only_begins_with_a_read_goes_to_the_primary() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    psql(front.primary(), "create table t (a int)");
    pair.caught_up().await;
    let mut client = Raw::login(front.auto()).await;
    let both = [parse("", "select 1"), run_statement(""), parse("", "insert into t values (1)"), run_statement(""), sync()].concat();
    assert_eq!(client.ask(&both).await, "12DC12CZ");
    let mut client = Raw::login(front.auto()).await;
    assert_eq!(client.ask(&[parse("s1", "select 1"), describe("s1"), sync()].concat()).await, "1tTZ");
    assert_eq!(client.ask(&query("insert into t values (2)")).await, "CZ", "the client keeps its server, and writes");
    let mut client = Raw::login(front.auto()).await;
    assert_eq!(client.ask(&query("begin read only")).await, "CZ");
    assert_eq!(client.ask(&[parse("s1", "select 1"), run_statement("s1"), sync()].concat()).await, "12DCZ");
    assert_eq!(client.ask(&query("commit")).await, "CZ");
    assert_eq!(client.ask(&query("insert into t values (3)")).await, "CZ", "behind a block that only read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_named_in_a_block_that_only_reads_does_not_keep_a_writer_on_the_standby() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    psql(front.primary(), "create table t (a int)");
    pair.caught_up().await;
    let mut client = Raw::login(front.auto()).await;
    let standby = query("select 1 / (select count(*) from pg_stat_wal_receiver)");
    let block = async |client: &mut Raw, named: &[u8], answer: &str| {
        assert_eq!(client.ask(&query("begin read only")).await, "CZ");
        assert_eq!(client.ask(&standby).await, "TDCZ", "on the standby");
        assert_eq!(client.ask(named).await, answer);
        assert_eq!(client.ask(&query("commit")).await, "CZ");
    };
    block(&mut client, &[parse("s1", "select count(*) from t"), run_statement("s1"), sync()].concat(), "12DCZ").await;
    block(&mut client, &[parse("s2", "select 2"), parse("s3", "select 3"), sync()].concat(), "11Z").await;
    block(&mut client, &[message(b'C', &[b"Ss3\0"]), run_statement("s1"), sync()].concat(), "32DCZ").await;
    assert_eq!(client.ask(&query("insert into t values (1)")).await, "CZ", "a write goes to the primary");
    for named in ["s1", "s2"] {
        assert_eq!(client.ask(&[run_statement(named), sync()].concat()).await, "2DCZ", "{named} came along");
    }
    assert_eq!(client.ask(&[run_statement("s3"), sync()].concat()).await, "E26000Z", "it was closed");
    assert_eq!(client.ask(&[parse("s3", "insert into t values (2)"), run_statement("s3"), sync()].concat()).await, "12CZ");
    for text in ["begin", "insert into t values (3)", "commit"] {
        assert_eq!(client.ask(&query(text)).await, "CZ", "{text}");
    }
    assert_eq!(psql(front.primary(), "select count(*) from t"), "3");
    // Nor does it keep anybody there once the standby is unfit.
    let mut mover = Raw::login(front.auto()).await;
    block(&mut mover, &[parse("s1", "select count(*) from t"), run_statement("s1"), sync()].concat(), "12DCZ").await;
    front.publish(|topology| topology.backends.get_mut(&STANDBY).expect("the standby").readable = false).await;
    assert_eq!(mover.ask(&query("begin read only")).await, "CZ");
    assert_eq!(mover.ask(&query("select 1 / (1 - least(1, count(*))) from pg_stat_wal_receiver")).await, "TDCZ", "on the primary");
    assert_eq!(mover.ask(&query("commit")).await, "CZ");
    front.publish(|topology| topology.backends.get_mut(&STANDBY).expect("the standby").readable = true).await;
    // Nothing of it is left for the next client of the standby.
    let mut next = Raw::login(front.standby()).await;
    assert_eq!(next.ask(&query("select 1 / (1 - least(1, count(*))) from pg_prepared_statements")).await, "TDCZ");

    // What only a session of the standby's has cannot come along: the client is told, and not refused for ever.
    let mut client = Raw::login(front.auto()).await;
    block(&mut client, &query("prepare mine as select 1"), "CZ").await;
    assert_eq!(client.ask(&query("execute mine")).await, "TDCZ");
    block(&mut client, &query("execute mine"), "TDCZ").await;
    client.say(&query("insert into t values (4)")).await;
    let (tag, body) = client.hear().await;
    assert!(tag == b'E' && String::from_utf8_lossy(&body).contains("57P01"), "{}", String::from_utf8_lossy(&body));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_discard_all_in_the_same_flight_keeps_its_server() {
    let pair = Pair::start();
    let front = of_one_server(&pair).await;
    let setups = [[parse("_p1", "select 1"), describe("_p1"), sync()].concat(), query("set statement_timeout = '7s'")];
    for setup in setups {
        let (mut pinned, mut other) = (Raw::login(front.primary()).await, Raw::login(front.primary()).await);
        assert_eq!(pinned.ask(&query("select 1")).await, "TDCZ");
        assert_eq!(pinned.ask(&[query("discard all"), setup].concat()).await, "CZ");
        let second = pinned.answer().await;
        assert!(!second.contains('E'), "{second}");
        assert_eq!(other.ask(&query("select 1")).await, "E08006Z", "the only server is kept");
        drop(pinned);
        eventually("it has left", || front.handle.stats().clients == 1).await;
        assert_eq!(other.ask(&query("select count(*) from pg_prepared_statements")).await, "TDCZ", "cleaned");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unnamed_statement_is_never_another_clients() {
    let pair = Pair::start();
    let front = of_one_server(&pair).await;
    for port in [front.primary(), front.auto()] {
        let (mut mine, mut other) = (Raw::login(port).await, Raw::login(port).await);
        assert_eq!(mine.ask(&[parse("", "select 1, 2"), describe(""), sync()].concat()).await, "1tTZ");
        // On the auto port the other one reads from the standby.
        if port == front.primary() {
            assert_eq!(other.ask(&query("select 1")).await, "E08006Z", "the statement waits for its Bind");
        }
        assert_eq!(mine.ask(&[run_statement(""), sync()].concat()).await, "2DCZ");
        assert_eq!(other.ask(&[parse("", "select 3"), run_statement(""), sync()].concat()).await, "12DCZ");
        assert_eq!(mine.ask(&[run_statement(""), sync()].concat()).await, "E26000Z");
        assert_eq!(mine.ask(&[describe(""), sync()].concat()).await, "E26000Z");
        assert_eq!(mine.ask(&query("select 1")).await, "TDCZ", "usable");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_keeps_a_server_finds_no_unnamed_statement_of_another_client_there() {
    let pair = Pair::start();
    let front = of_one_server(&pair).await;
    let port = front.primary();
    psql(port, "create table t (a int)");
    pair.caught_up().await;
    let (flush, stray) = (message(b'H', &[]), [run_statement(""), sync()].concat());
    let named = [parse("s1", "select 1"), describe("s1"), sync()].concat();
    let insert = [parse("", "insert into t values (1)"), run_statement(""), sync()].concat();
    // FunctionCall of `pi`, whose result is a float8.
    let call = message(b'F', &[&1610u32.to_be_bytes(), &[0, 0, 0, 0, 0, 1]]);
    let flights: [(Vec<u8>, &[&str]); 4] = [
        // A named statement keeps the server.
        (named.clone(), &["1tTZ"]),
        // In one flight with one.
        ([parse("s1", "select 1"), flush, stray.clone()].concat(), &["1E26000Z"]),
        // Behind a batch, or a call, that is not answered yet.
        ([message(b'C', &[b"Sx\0"]), sync(), stray.clone()].concat(), &["3Z", "E26000Z"]),
        ([call, stray.clone()].concat(), &["VZ", "E26000Z"]),
    ];
    for (flight, answers) in flights {
        let mut other = Raw::login(port).await;
        assert_eq!(other.ask(&insert).await, "12CZ");
        let mut mine = Raw::login(port).await;
        mine.say(&flight).await;
        for answer in answers {
            assert_eq!(mine.answer().await, *answer);
        }
        assert_eq!(mine.ask(&stray).await, "E26000Z", "behind {answers:?}");
        drop((mine, other));
        eventually("both have left", || front.handle.stats().clients == 0).await;
    }
    // A session that moves from a standby takes its named statements along, and only those.
    let (mut mine, mut other) = (Raw::login(front.auto()).await, Raw::login(port).await);
    assert_eq!(mine.ask(&query("begin read only")).await, "CZ");
    assert_eq!(mine.ask(&query("select 1 / (select count(*) from pg_stat_wal_receiver)")).await, "TDCZ", "on the standby");
    assert_eq!(mine.ask(&named).await, "1tTZ");
    assert_eq!(mine.ask(&[parse("", "select 2"), run_statement(""), sync()].concat()).await, "12DCZ");
    assert_eq!(mine.ask(&query("commit")).await, "CZ");
    assert_eq!(other.ask(&insert).await, "12CZ");
    assert_eq!(mine.ask(&[parse("s2", "insert into t values (2)"), run_statement("s2"), sync()].concat()).await, "12CZ");
    assert_eq!(mine.ask(&stray).await, "E26000Z", "made on the standby");
    drop(mine);
    eventually("it has left", || front.handle.stats().clients == 1).await;
    assert_eq!(psql(port, "select count(*) from t"), "6", "one insert for each who asked for one");
}
