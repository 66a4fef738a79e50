//! Writers that keep a ledger, and the audit of it: every acknowledged row on every node exactly once, no row that was
//! certainly refused on any (P1, P6).
//!
//! A writer inserts one row at a time and never repeats one: what it was told decides in which column of the ledger the row
//! goes. Sent and acknowledged times give the write outage as clients saw it.
//! Deliberately absent: retries. A client library that retries hides what this is to measure.
//!
//! Entry points: [`Load::start`], [`audit`].

use crate::cluster_harness::{ANSWER_TIMEOUT, Cluster, LOOK_EVERY};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use trilithon::telemetry::Clock;
use trilithon::types::Millis;

/// Between two rows of one writer: enough rows to see every gap, few enough to leave the machine to the cluster.
const PAUSE: Duration = Duration::from_millis(3);
/// Between two attempts to connect.
const RECONNECT_EVERY: Duration = Duration::from_millis(20);
/// Longer than the proxies hold a transaction back.
const WRITE_TIMEOUT: Duration = Duration::from_secs(45);

/// What became of one writer's rows.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Row and when its acknowledgement came, in order.
    pub acknowledged: Vec<(i64, Millis)>,
    /// Certainly not applied: 08006, 40001.
    pub refused: Vec<i64>,
    /// 08007, a broken connection, no answer.
    pub unknown: Vec<i64>,
    /// Every error as the client saw it.
    pub errors: BTreeMap<String, u64>,
}

/// Writers at work.
pub struct Load {
    pub table: String,
    stop: CancellationToken,
    writers: JoinSet<Ledger>,
    counts: Arc<Vec<AtomicU64>>,
    clock: Clock,
}

/// What all writers saw together.
#[derive(Clone, Debug)]
pub struct Report {
    pub table: String,
    pub ledgers: Vec<Ledger>,
}

impl Load {
    /// `per_port` writers on each of `ports`, into a new table; half of them speak the simple, half the extended protocol.
    pub async fn start(cluster: &Cluster, table: &str, ports: &[u16], per_port: usize) -> Load {
        let password = cluster.file().password;
        let deadline = cluster.now().after(ANSWER_TIMEOUT);
        let create = format!("CREATE TABLE {table} (id bigint NOT NULL, writer int NOT NULL)");
        let client = cluster.connect(ports[0], &password).await.expect("the proxy accepts connections");
        if let Err(error) = client.batch_execute(&create).await {
            panic!("cannot create the table: {error:?} (at {:?} of {deadline:?})\n{}", cluster.now(), cluster.log());
        }
        let writers = ports.len() * per_port;
        let counts: Arc<Vec<AtomicU64>> = Arc::new((0..writers).map(|_| AtomicU64::new(0)).collect());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for index in 0..writers {
            let writer = Writer {
                index,
                port: ports[index % ports.len()],
                password: password.clone(),
                table: table.to_owned(),
                extended: (index / ports.len()) % 2 == 1,
                counts: Arc::clone(&counts),
                clock: Clock::default(),
            };
            tasks.spawn(writer.run(stop.clone()));
        }
        let load = Load { table: table.to_owned(), stop, writers: tasks, counts, clock: Clock::default() };
        load.wait_progress(cluster, 20, Duration::from_secs(30)).await;
        load
    }

    /// Until each writer had `rows` more rows acknowledged.
    pub async fn wait_progress(&self, cluster: &Cluster, rows: u64, timeout: Duration) {
        let before: Vec<u64> = self.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let deadline = self.clock.now().after(timeout);
        while self.counts.iter().zip(&before).any(|(now, then)| now.load(Ordering::Relaxed) < then + rows) {
            if self.clock.now() > deadline {
                let now: Vec<u64> = self.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
                panic!("writers stand still for {timeout:?}: {before:?} rows, then {now:?}\n{}", cluster.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// End all writers; rows under way become unknown.
    pub async fn finish(mut self) -> Report {
        self.stop.cancel();
        let mut ledgers = Vec::new();
        while let Some(ledger) = self.writers.join_next().await {
            ledgers.push(ledger.expect("a writer does not panic"));
        }
        Report { table: self.table, ledgers }
    }
}

impl Report {
    /// Longest time without an acknowledgement that any one writer saw and that ended after `from`.
    pub fn outage(&self, from: Millis) -> Duration {
        let gaps = self.ledgers.iter().flat_map(|l| l.acknowledged.windows(2)).filter(|w| w[1].1 > from);
        gaps.map(|w| w[1].1.since(w[0].1)).max().unwrap_or_default()
    }

    /// Rows acknowledged to all writers.
    pub fn acknowledged(&self) -> usize {
        self.ledgers.iter().map(|l| l.acknowledged.len()).sum()
    }

    /// Rows whose fate the writers do not know.
    pub fn unknown(&self) -> usize {
        self.ledgers.iter().map(|l| l.unknown.len()).sum()
    }

    /// All errors that clients saw, by code.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (code, count) in self.ledgers.iter().flat_map(|l| &l.errors) {
            *all.entry(code.clone()).or_default() += count;
        }
        all
    }
}

struct Writer {
    index: usize,
    port: u16,
    password: String,
    table: String,
    extended: bool,
    counts: Arc<Vec<AtomicU64>>,
    clock: Clock,
}

impl Writer {
    async fn run(self, stop: CancellationToken) -> Ledger {
        let mut ledger = Ledger::default();
        let mut next = i64::try_from(self.index).expect("few writers") * 1_000_000_000;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.session(&mut ledger, &mut next, &stop) => {}
            }
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
        ledger
    }

    /// One connection, until it breaks.
    async fn session(&self, ledger: &mut Ledger, next: &mut i64, stop: &CancellationToken) {
        let config =
            format!("host=127.0.0.1 port={} user=postgres dbname=postgres password={} connect_timeout=5", self.port, self.password);
        let (client, connection) = match tokio_postgres::connect(&config, tokio_postgres::NoTls).await {
            Ok(connected) => connected,
            Err(error) => return note(ledger, &format!("connect: {}", word(&error))),
        };
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        while !client.is_closed() && !stop.is_cancelled() {
            *next += 1;
            // Unknown until told otherwise, also when this session is dropped in the middle.
            ledger.unknown.push(*next);
            match tokio::time::timeout(WRITE_TIMEOUT, self.write(&client, *next)).await {
                Ok(Ok(())) => {
                    ledger.unknown.pop();
                    ledger.acknowledged.push((*next, self.clock.now()));
                    self.counts[self.index].fetch_add(1, Ordering::Relaxed);
                }
                Ok(Err(error)) => {
                    note(ledger, &word(&error));
                    let code = error.code();
                    if code == Some(&SqlState::CONNECTION_FAILURE) || code == Some(&SqlState::T_R_SERIALIZATION_FAILURE) {
                        ledger.refused.extend(ledger.unknown.pop());
                    }
                }
                Err(_) => return note(ledger, "no answer"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write(&self, client: &tokio_postgres::Client, id: i64) -> Result<(), tokio_postgres::Error> {
        let writer = i32::try_from(self.index).expect("few writers");
        if self.extended {
            let sql = format!("INSERT INTO {} (id, writer) VALUES ($1, $2)", self.table);
            client.execute_typed(&sql, &[(&id, Type::INT8), (&writer, Type::INT4)]).await.map(|_| ())
        } else {
            client.batch_execute(&format!("INSERT INTO {} (id, writer) VALUES ({id}, {writer})", self.table)).await
        }
    }
}

fn note(ledger: &mut Ledger, error: &str) {
    *ledger.errors.entry(error.to_owned()).or_default() += 1;
}

/// SQLSTATE and message, or what happened to the connection.
fn word(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| format!("{} {}", db.code().code(), db.message()))
}

/// Every acknowledged row is on every node once, no row twice, no refused row anywhere. Call it on a whole cluster.
pub async fn audit(cluster: &Cluster, primary: &str, report: &Report) {
    let file = cluster.file();
    let end = ask(cluster, primary, "SELECT pg_current_wal_lsn()::text").await;
    for name in cluster.data_nodes() {
        if name != primary {
            wait_replayed(cluster, &name, &end).await;
        }
        let port = file.nodes.iter().find(|n| n.name == name).and_then(|n| n.postgres.as_ref()).expect("it holds data").port;
        let client = cluster.connect(port, &file.password).await.expect("Postgres accepts direct connections");
        let rows = client.query(&format!("SELECT id, count(*) FROM {} GROUP BY id", report.table), &[]).await.expect("readable");
        let found: BTreeMap<i64, i64> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        let twice: Vec<_> = found.iter().filter(|(_, n)| **n > 1).take(10).collect();
        assert!(twice.is_empty(), "{name} holds rows twice: {twice:?}\n{}", cluster.log());
        let all = || report.ledgers.iter();
        let lost: Vec<_> = all().flat_map(|l| &l.acknowledged).filter(|(id, _)| !found.contains_key(id)).collect();
        assert!(
            lost.is_empty(),
            "P1: {name} lost {} acknowledged rows, as {:?}\n{}",
            lost.len(),
            &lost[..lost.len().min(10)],
            cluster.log()
        );
        let ghosts: BTreeSet<_> = all().flat_map(|l| &l.refused).filter(|id| found.contains_key(id)).collect();
        assert!(ghosts.is_empty(), "P6: {name} holds rows whose writers were told `not applied`: {ghosts:?}\n{}", cluster.log());
    }
}

/// One value from a node's own Postgres, as text.
pub async fn ask(cluster: &Cluster, name: &str, sql: &str) -> String {
    let port = cluster.node(name).postgres.expect("it holds data").port;
    let client = cluster.connect(port, &cluster.file().password).await.expect("Postgres accepts direct connections");
    client.query_one(sql, &[]).await.expect("a row").get(0)
}

async fn wait_replayed(cluster: &Cluster, name: &str, lsn: &str) {
    let deadline = cluster.now().after(Duration::from_secs(20));
    let sql = format!("SELECT COALESCE(pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn, false)::text");
    while ask(cluster, name, &sql).await != "true" {
        assert!(cluster.now() < deadline, "{name} does not replay up to {lsn}\n{}", cluster.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
