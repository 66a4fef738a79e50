//! Ordinary clients through the proxy: psql, pgbench, tokio-postgres; each protocol, COPY, pipelines, cancellation, logins.

use crate::proxy_support::{Front, Pair, Raw, client, code, eventually, message, program, psql, query, through};
use futures::{SinkExt, StreamExt, future};
use std::io::{Read, Write};
use std::time::Duration;
use tokio_postgres::NoTls;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_and_pgbench_work_through_the_proxy_in_every_protocol() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    assert_eq!(psql(front.primary(), "select pg_is_in_recovery()"), "f");
    assert_eq!(psql(front.standby(), "select pg_is_in_recovery()"), "t");
    assert_eq!(psql(front.auto(), "select 40 + 2"), "42");
    let init = program("pgbench", front.primary(), &["-i", "-q", "-s", "1", "postgres"]);
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    pair.caught_up().await;
    for mode in
        [&["-M", "simple"][..], &["-M", "extended"], &["-M", "prepared"], &["-C", "-M", "simple"], &["-S"], &["-S", "-M", "extended"]]
    {
        for port in [front.auto(), front.primary()] {
            let mut args = mode.to_vec();
            args.extend(["-n", "-c", "4", "-j", "2", "-t", "20", "postgres"]);
            let out = program("pgbench", port, &args);
            let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success(), "{mode:?}: {errors}");
            assert!(text.contains("processed: 80/80"), "{mode:?}: {text} {errors}");
        }
    }
    assert_eq!(psql(front.primary(), "select count(*) = 4 * 2 * 20 * 4 from pgbench_history"), "t");
    eventually("every client has left", || front.handle.stats().clients == 0).await;
    eventually("nothing is in flight", || front.handle.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_sees_what_it_would_see_without_a_proxy() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    let mut client = through(front.auto()).await;
    client.batch_execute("create table t (id int primary key, body text)").await.expect("ddl");
    // Extended protocol with parameters; a duplicate; the session goes on.
    for id in 0..5 {
        assert_eq!(client.execute("insert into t values ($1, $2)", &[&id, &"x"]).await.expect("insert"), 1);
    }
    assert_eq!(code(client.execute("insert into t values (1, 'y')", &[]).await), "23505");
    assert_eq!(code(client.simple_query("select nonsense").await), "42703");
    let transaction = client.transaction().await.expect("begin");
    transaction.execute("update t set body = 'z' where id = 1", &[]).await.expect("update");
    assert_eq!(code(transaction.execute("insert into t values (1, 'y')", &[]).await), "23505");
    assert_eq!(code(transaction.query("select 1", &[]).await), "25P02");
    transaction.rollback().await.expect("rollback");
    let row = client.query_one("select body from t where id = 1", &[]).await.expect("read");
    assert_eq!(row.get::<_, String>(0), "x", "rolled back");
    // A pipeline of many queries, each with its own Sync.
    let statement = client.prepare("select $1::int + 1").await.expect("prepare");
    let inputs: Vec<i32> = (0..200).collect();
    let (asked, statement_ref) = (&client, &statement);
    let answers = future::join_all(inputs.iter().map(|n| async move { asked.query_one(statement_ref, &[n]).await })).await;
    for (n, row) in inputs.iter().zip(answers) {
        assert_eq!(row.expect("pipelined").get::<_, i32>(0), n + 1);
    }
    drop(statement);
    // One megabyte there and back.
    let long = "é".repeat(500_000);
    client.execute("update t set body = $1 where id = 2", &[&long]).await.expect("long value");
    let row = client.query_one("select body from t where id = 2", &[]).await.expect("long row");
    assert_eq!(row.get::<_, String>(0), long);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_streams_both_ways_and_a_failed_copy_leaves_the_session_usable() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    let client = through(front.primary()).await;
    client.batch_execute("create table c (id int primary key, body text)").await.expect("ddl");
    for extended in [false, true] {
        client.batch_execute("truncate c").await.expect("truncate");
        if extended {
            let sink = client.copy_in("copy c from stdin").await.expect("copy in");
            let mut sink = std::pin::pin!(sink);
            for id in 0..20_000 {
                sink.send(bytes::Bytes::from(format!("{id}\t{}\n", "x".repeat(100)))).await.expect("copy data");
            }
            assert_eq!(sink.finish().await.expect("copy done"), 20_000);
        } else {
            let dir = tempfile::tempdir().expect("temporary directory");
            let file = dir.path().join("data");
            std::fs::write(&file, (0..20_000).map(|id| format!("{id}\t{}\n", "x".repeat(100))).collect::<String>()).expect("data file");
            let sql = format!("\\copy c from '{}'", file.display());
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(dir.path(), mode).expect("permissions");
            psql(front.primary(), &sql);
        }
        let mut rows = std::pin::pin!(client.copy_out("copy c to stdout").await.expect("copy out"));
        let mut bytes = 0;
        while let Some(chunk) = rows.next().await {
            bytes += chunk.expect("copy data").len();
        }
        assert!(bytes > 20_000 * 100);
    }
    // A duplicate key in mid-stream, with data still coming.
    let sink = client.copy_in("copy c from stdin").await.expect("copy in");
    let mut sink = std::pin::pin!(sink);
    for _ in 0..2_000 {
        if sink.send(bytes::Bytes::from(format!("1\t{}\n", "x".repeat(1000)))).await.is_err() {
            break;
        }
    }
    assert_eq!(code(sink.finish().await), "23505");
    assert_eq!(client.query_one("select count(*) from c", &[]).await.expect("usable").get::<_, i64>(0), 20_000);
    // The client has its answer a moment before its passage is given back.
    eventually("nothing is in flight", || front.handle.stats().in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_reaches_the_pooled_server() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.pool_size = 1).await;
    let client = through(front.primary()).await;
    let token = client.cancel_token();
    let sleeping = client.query("select pg_sleep(30)", &[]);
    let cancel = async {
        pair.primary.until_waiting("PgSleep", 1).await;
        token.cancel_query(NoTls).await.expect("cancel request");
    };
    let (slept, ()) = future::join(sleeping, cancel).await;
    assert_eq!(code(slept), "57014");
    assert_eq!(client.query_one("select 1", &[]).await.expect("usable").get::<_, i32>(0), 1);
    // A client that waits for a server is cancelled too.
    let waiting = through(front.primary()).await;
    let blocker = through(front.primary()).await;
    blocker.batch_execute("begin; select 1").await.expect("takes the only server");
    let token = waiting.cancel_token();
    let cancel = async {
        eventually("it waits", || front.handle.stats().waiting == 1).await;
        token.cancel_query(NoTls).await.expect("cancel request");
    };
    let (waited, ()) = future::join(waiting.simple_query("select 1"), cancel).await;
    assert_eq!(code(waited), "57014");
    blocker.batch_execute("rollback").await.expect("rollback");
    waiting.simple_query("select 1").await.expect("usable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_keeps_its_server_can_cancel_its_wait_for_the_gate() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    let client = through(front.primary()).await;
    client.batch_execute("set search_path = pinned_schema").await.expect("keeps its server");
    front.handle.pause();
    let token = client.cancel_token();
    let cancel = async {
        // Again and again: the first may come before it waits.
        loop {
            token.cancel_query(NoTls).await.expect("cancel request");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = async { tokio::time::timeout(Duration::from_secs(10), client.simple_query("select 1")).await.expect("soon") };
    tokio::select! {
        waited = waited => assert_eq!(code(waited), "57014"),
        () = cancel => {}
    }
    front.handle.resume();
    client.simple_query("select 1").await.expect("usable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_password_opens_the_proxy() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.verifier_ttl = Duration::from_millis(100)).await;
    let port = front.primary();
    let direct = pair.primary.direct().await;
    for sql in ["create role app login password 'one'", "create role nologin_user password 'one'", "create database shop owner app"] {
        direct.batch_execute(sql).await.expect("roles");
    }
    pair.caught_up().await;
    let login = |user: &str, password: &str, database: &str| {
        let dsn = format!("host=127.0.0.1 port={port} user={user} password={password} dbname={database}");
        async move { client(&dsn).await }
    };
    for (user, password) in [("app", "two"), ("nobody", "one"), ("nologin_user", "one"), ("postgres", "one")] {
        assert_eq!(code(login(user, password, "postgres").await), "28P01", "{user}");
    }
    assert_eq!(code(login("app", "one", "missing").await), "3D000");
    let shop = login("app", "one", "shop").await.expect("login");
    assert_eq!(
        shop.query_one("select current_user || '@' || current_database()", &[]).await.expect("query").get::<_, String>(0),
        "app@shop"
    );
    // The password changes: the old one ends, the new one works.
    direct.batch_execute("alter role app password 'two'").await.expect("alter role");
    pair.caught_up().await;
    let mut renewed = false;
    for _ in 0..100 {
        renewed = login("app", "two", "shop").await.is_ok();
        if renewed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(renewed);
    assert_eq!(code(login("app", "one", "shop").await), "28P01");
    // Logins go on while the Postgres that is asked for verifiers is down: another member is asked.
    let mut pair = pair;
    pair.standby.stop(rustix::process::Signal::QUIT);
    tokio::time::sleep(Duration::from_millis(150)).await;
    login("app", "two", "shop").await.expect("login without the local Postgres");
    assert_eq!(code(login("nobody", "two", "shop").await), "28P01");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_harms_nobody() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.login_timeout = Duration::from_secs(2)).await;
    let port = front.primary();
    let good = through(port).await;
    let say = move |bytes: Vec<u8>| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.write_all(&bytes).expect("write");
        let mut answer = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    let answers = tokio::task::spawn_blocking(move || {
        [
            say(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            say(vec![0, 0, 0, 3]),
            say(vec![0, 0, 0, 8, 4, 210, 22, 47]),
            say([&[0, 0, 0, 9][..], &[0, 2, 0, 0, 0]].concat()),
            say([&[0, 0, 0, 16][..], &[0, 3, 0, 0], b"user\0a\0\0"].concat()),
        ]
    })
    .await
    .expect("joined");
    assert!(answers[0].starts_with(b"E") && answers[1].starts_with(b"E") && answers[3].starts_with(b"E"));
    assert_eq!(answers[2], b"N", "TLS is declined, then the login times out");
    assert!(answers[4].starts_with(b"R"), "asked for SCRAM");
    assert_eq!(good.query_one("select 1", &[]).await.expect("unharmed").get::<_, i32>(0), 1);
    eventually("every other client is gone", || front.handle.stats().clients == 1).await;
}

/// The next client's first bytes would be taken for the rest of a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_not_passed_on_in_the_middle_of_a_row_of_a_failed_copy() {
    let pair = Pair::start();
    let front = Front::start(&pair, |config| config.pool_size = 1).await;
    let (mut copying, mut other) = (Raw::login(front.primary()).await, Raw::login(front.primary()).await);
    assert_eq!(copying.ask(&query("create table c (id int)")).await, "CZ");
    for finishes in [true, false] {
        copying.say(&query("copy c from stdin")).await;
        assert_eq!(copying.hear().await.0, b'G');
        let row = message(b'd', &[&[b'1'; 1000], b"\n"]);
        let (begin, rest) = row.split_at(500);
        copying.say(&[&message(b'd', &[b"no number\n"])[..], begin].concat()).await;
        assert_eq!(copying.answer().await, "E22P02Z");
        let go_on = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if finishes {
                copying.say(&[rest, &row[..], &message(b'c', &[])].concat()).await;
                assert_eq!(copying.ask(&query("select 1")).await, "TDCZ");
            } else {
                // Gone in the middle of the row.
                copying = Raw::login(front.primary()).await;
            }
        };
        let (sound, ()) = future::join(other.ask(&query("select 2")), go_on).await;
        assert_eq!(sound, "TDCZ", "a sound server");
    }
}
