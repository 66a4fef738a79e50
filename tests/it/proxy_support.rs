//! A real primary and a streaming standby with a proxy in front, for the tests of the proxy. The topology is driven by the test.

use crate::ports::free_port;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;
use trilithon::cluster::{Backend, Topology, WriteGate};
use trilithon::proxy::{Config, Control, Handle, Inputs, start};
use trilithon::telemetry::Clock;
use trilithon::types::{Epoch, NodeId, Revision};
use trilithon::wire::frame::StreamBuffer;
use trilithon::wire::message::{Fields, put};
use trilithon::wire::startup;

pub const PASSWORD: &str = "s3cret";
pub const PRIMARY: NodeId = NodeId(1);
pub const STANDBY: NodeId = NodeId(2);

fn bin(name: &str) -> PathBuf {
    let newest = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin")).max();
    newest.unwrap_or_default().join(name)
}

/// PostgreSQL refuses to run as root.
fn as_postgres(command: &mut Command) -> &mut Command {
    if rustix::process::geteuid().is_root() {
        let id = |flag: &str| {
            let out = Command::new("id").args([flag, "postgres"]).output().expect("id runs");
            String::from_utf8_lossy(&out.stdout).trim().parse().expect("user postgres exists")
        };
        command.uid(id("-u")).gid(id("-g"));
    }
    command.env("PGPASSWORD", PASSWORD).env("LC_ALL", "C.UTF-8").current_dir("/")
}

fn run(command: &mut Command) -> Output {
    let out = as_postgres(command).stdin(Stdio::null()).output().expect("the program starts");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// One server, our own child.
pub struct Pg {
    pub port: u16,
    pub data: PathBuf,
    sockets: PathBuf,
    child: Option<Child>,
}

impl Pg {
    fn at(dir: &Path, name: &str) -> Pg {
        Pg { port: free_port(), data: dir.join(name), sockets: dir.to_owned(), child: None }
    }

    pub fn start(&mut self) {
        let log = std::fs::File::create(self.data.with_extension("log")).expect("log file");
        let mut command = Command::new(bin("postgres"));
        command.arg("-D").arg(&self.data).args(["-p", &self.port.to_string(), "-k"]).arg(&self.sockets);
        for setting in
            ["fsync=off", "listen_addresses=127.0.0.1", "max_connections=120", "wal_level=replica", "max_prepared_transactions=5"]
        {
            command.args(["-c", setting]);
        }
        self.child = Some(as_postgres(&mut command).stderr(log).stdin(Stdio::null()).spawn().expect("postgres starts"));
        let ready = |port: u16| {
            Command::new(bin("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status().is_ok_and(|s| s.success())
        };
        for _ in 0..300 {
            if ready(self.port) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("postgres on {} did not start: {}", self.port, std::fs::read_to_string(self.data.with_extension("log")).unwrap_or_default());
    }

    pub fn stop(&mut self, signal: rustix::process::Signal) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, signal).expect("our own child");
            child.wait().expect("our own child");
        }
    }

    pub fn promote(&self) {
        run(Command::new(bin("pg_ctl")).arg("promote").arg("-w").arg("-s").arg("-D").arg(&self.data));
    }

    /// A superuser's connection past the proxy.
    pub async fn direct(&self) -> tokio_postgres::Client {
        client(&format!("host=127.0.0.1 port={} user=postgres password={PASSWORD} dbname=postgres", self.port))
            .await
            .expect("direct connection")
    }

    /// The number of backends that wait for `event`: "PgSleep", or "SyncRep" for a standby's confirmation.
    pub async fn waiting(&self, event: &str) -> i64 {
        let sql = "select count(*) from pg_stat_activity where wait_event = $1";
        self.direct().await.query_one(sql, &[&event]).await.expect("activity").get(0)
    }

    /// Until so many backends wait for `event`.
    pub async fn until_waiting(&self, event: &str, backends: i64) {
        for _ in 0..500 {
            if self.waiting(event).await == backends {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not {backends} backends wait for {event}");
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        self.stop(rustix::process::Signal::QUIT);
    }
}

/// A primary with one streaming standby.
pub struct Pair {
    pub primary: Pg,
    pub standby: Pg,
    dir: tempfile::TempDir,
}

impl Pair {
    pub fn start() -> Pair {
        let dir = tempfile::Builder::new().prefix("tri-proxy-").tempdir().expect("temporary directory");
        if rustix::process::geteuid().is_root() {
            assert!(Command::new("chown").arg("postgres").arg(dir.path()).status().is_ok_and(|s| s.success()));
        }
        let password = dir.path().join("password");
        std::fs::write(&password, PASSWORD).expect("password file");
        let (mut primary, mut standby) = (Pg::at(dir.path(), "primary"), Pg::at(dir.path(), "standby"));
        run(Command::new(bin("initdb"))
            .args(["-N", "-U", "postgres", "-A", "scram-sha-256", "--locale=C", "-E", "UTF8", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(&primary.data));
        primary.start();
        let port = primary.port.to_string();
        run(Command::new(bin("pg_basebackup"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-R", "-c", "fast", "-X", "stream", "--no-sync", "-D"])
            .arg(&standby.data));
        standby.start();
        Pair { primary, standby, dir }
    }

    /// Until the standby streams and has replayed everything the primary has written.
    pub async fn caught_up(&self) {
        let (primary, standby) = (self.primary.direct().await, self.standby.direct().await);
        let end: String = primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("lsn").get(0);
        let sql = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{end}', false) AND EXISTS (SELECT FROM pg_stat_wal_receiver)");
        // One whose first connection failed tries again after five seconds.
        for _ in 0..2000 {
            if standby.query_one(&sql, &[]).await.expect("replay lsn").get(0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the standby did not catch up");
    }
}

/// A proxy in front of a pair.
pub struct Front {
    pub handle: Handle,
    pub topology: watch::Sender<Arc<Topology>>,
    pub lease: Arc<AtomicBool>,
    /// The topology is of the present.
    pub fresh: Arc<AtomicBool>,
    pub shutdown: CancellationToken,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What a proxy sees of `pair` while it is healthy.
pub fn healthy(pair: &Pair, epoch: u64) -> Topology {
    let backend = |port: u16, readable| Backend {
        name: port.to_string(),
        datacenter: "dc".into(),
        address: format!("127.0.0.1:{port}"),
        readable,
        lag_bytes: Some(0),
        noloadbalance: false,
    };
    Topology {
        revision: Revision(epoch * 10),
        epoch: Epoch(epoch),
        write: WriteGate::Open { primary: PRIMARY, epoch: Epoch(epoch) },
        backends: BTreeMap::from([(PRIMARY, backend(pair.primary.port, false)), (STANDBY, backend(pair.standby.port, true))]),
    }
}

impl Front {
    /// The proxy of a third node, in the standby's datacenter.
    pub async fn start(pair: &Pair, change: impl FnOnce(&mut Config)) -> Front {
        let any = "127.0.0.1:0".parse().expect("an address");
        let mut config = Config { auto: vec![any], primary: vec![any], standby: vec![any], workers: 2, ..Config::default() };
        change(&mut config);
        let (topology, seen) = watch::channel(Arc::new(healthy(pair, 1)));
        let lease = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&lease);
        let fresh = Arc::new(AtomicBool::new(true));
        let looked = Arc::clone(&fresh);
        let shutdown = CancellationToken::new();
        let inputs = Inputs {
            node: STANDBY,
            datacenter: "dc".into(),
            topology: seen,
            lease_valid: Arc::new(move || asked.load(SeqCst)),
            topology_fresh: Arc::new(move || looked.load(SeqCst)),
            control: Control {
                local_host: Some(pair.dir.path().display().to_string()),
                local_port: pair.standby.port,
                user: "postgres".into(),
                password: Arc::new(|| Some(PASSWORD.into())),
            },
            clock: Clock::default(),
            shutdown: shutdown.clone(),
        };
        let handle = start(config, inputs).await.expect("the proxy starts");
        Front { handle, topology, lease, fresh, shutdown }
    }

    pub fn auto(&self) -> u16 {
        self.handle.addresses().auto[0].port()
    }

    pub fn primary(&self) -> u16 {
        self.handle.addresses().primary[0].port()
    }

    pub fn standby(&self) -> u16 {
        self.handle.addresses().standby[0].port()
    }

    /// The cluster moved on, and the proxy knows.
    pub async fn publish(&self, change: impl FnOnce(&mut Topology)) {
        self.topology.send_modify(|topology| {
            let topology = Arc::make_mut(topology);
            topology.revision.0 += 1;
            change(topology);
        });
        let revision = self.topology.borrow().revision;
        eventually("the gate follows", || self.handle.drain_state().0 == revision).await;
    }
}

/// A line to a server on which no connection comes about until it is opened.
pub struct HeldLine {
    pub port: u16,
    pub begun: Arc<Notify>,
    pub open: watch::Sender<bool>,
}

impl HeldLine {
    pub async fn to(port: u16) -> HeldLine {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (open, opened) = watch::channel(false);
        let line = HeldLine { port: listener.local_addr().expect("bound").port(), begun: Arc::default(), open };
        let begun = Arc::clone(&line.begun);
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                begun.notify_one();
                let mut opened = opened.clone();
                #[allow(clippy::disallowed_methods)]
                tokio::spawn(async move {
                    if opened.wait_for(|is_open| *is_open).await.is_err() {
                        return;
                    }
                    let mut far = TcpStream::connect(("127.0.0.1", port)).await.expect("the server listens");
                    // Either end may break it off.
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        line
    }
}

/// A client of the proxy (or of anything else).
pub async fn client(dsn: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(connection);
    Ok(client)
}

/// As the superuser through the proxy.
pub async fn through(port: u16) -> tokio_postgres::Client {
    client(&format!("host=127.0.0.1 port={port} user=postgres password={PASSWORD} dbname=postgres")).await.expect("login through the proxy")
}

/// The SQLSTATE of a failure.
pub fn code<T>(result: Result<T, tokio_postgres::Error>) -> String {
    match result {
        Ok(_) => "00000".to_owned(),
        Err(error) => error.code().map_or_else(|| format!("{error:?}"), |code| code.code().to_owned()),
    }
}

/// Runs a client program against `port`.
pub fn program(name: &str, port: u16, args: &[&str]) -> Output {
    let mut command = Command::new(bin(name));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]).args(args);
    as_postgres(&mut command).stdin(Stdio::null()).output().expect("the program starts")
}

/// A client that is killed in the middle of `sql`.
pub fn killed_in(port: u16, sql: &str, after: Duration) {
    let mut command = Command::new(bin("psql"));
    command.args([
        "-X",
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-U",
        "postgres",
        "-c",
        "begin",
        "-c",
        sql,
        "-c",
        "select pg_sleep(60)",
    ]);
    let mut child = as_postgres(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("psql starts");
    std::thread::sleep(after);
    child.kill().expect("our own child");
    child.wait().expect("our own child");
}

/// psql, its output, trimmed.
pub fn psql(port: u16, sql: &str) -> String {
    let out = program("psql", port, &["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"]);
    assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Waits for a fact, at most ten seconds.
pub async fn eventually(what: &str, mut fact: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if fact() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}

/// A client that says exactly what the test tells it to.
pub struct Raw {
    stream: TcpStream,
    inbox: StreamBuffer,
    /// What a cancel request names it by.
    key: Vec<u8>,
}

/// One message; the parts make its body.
pub fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, tag, |body| parts.iter().for_each(|part| body.extend_from_slice(part)));
    out
}

/// A Query.
pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"])
}

/// A Parse.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

/// A Bind of `statement` without parameters to the unnamed portal, and its Execute.
pub fn run_statement(statement: &str) -> Vec<u8> {
    [message(b'B', &[b"\0", statement.as_bytes(), b"\0\0\0\0\0\0\0"]), message(b'E', &[b"\0\0\0\0\0"])].concat()
}

/// A Describe of `statement`.
pub fn describe(statement: &str) -> Vec<u8> {
    message(b'D', &[b"S", statement.as_bytes(), b"\0"])
}

/// A Sync.
pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

impl Raw {
    /// As the superuser through the proxy.
    pub async fn login(port: u16) -> Raw {
        Raw::over(TcpStream::connect(("127.0.0.1", port)).await.expect("connect")).await
    }

    /// The same, and the kernel takes little in advance of what is on its way to it: small segments make small buffers at both ends.
    pub async fn login_narrow(port: u16) -> Raw {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket2::SockRef::from(&socket).set_tcp_mss(1400).expect("segments of 1400 bytes");
        socket.set_recv_buffer_size(16 << 10).expect("a receive buffer of 16 KiB");
        Raw::over(socket.connect(([127, 0, 0, 1], port).into()).await.expect("connect")).await
    }

    async fn over(stream: TcpStream) -> Raw {
        let mut raw = Raw { stream, inbox: StreamBuffer::with_capacity(64 << 10), key: Vec::new() };
        raw.say(&startup::write("postgres", "postgres", std::iter::empty())).await;
        let mut scram = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
        loop {
            let (tag, body) = raw.hear().await;
            match (tag, body.get(3)) {
                (b'R', Some(10)) => {
                    let first = scram.message().to_vec();
                    let length = u32::try_from(first.len()).expect("short").to_be_bytes();
                    raw.say(&message(b'p', &[b"SCRAM-SHA-256\0", &length, &first])).await;
                }
                (b'R', Some(11)) => {
                    scram.update(&body[4..]).expect("a challenge");
                    let last = scram.message().to_vec();
                    raw.say(&message(b'p', &[&last])).await;
                }
                (b'E', _) => panic!("{}", String::from_utf8_lossy(&body)),
                (b'K', _) => raw.key = body,
                (b'Z', _) => return raw,
                _ => {}
            }
        }
    }

    /// A cancel request, as its driver sends one.
    pub async fn cancel(&self, port: u16) {
        let mut other = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        let request = [&16u32.to_be_bytes()[..], &80_877_102u32.to_be_bytes(), &self.key].concat();
        other.write_all(&request).await.expect("the proxy reads");
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the proxy reads");
    }

    /// The next message; it must come within ten seconds.
    pub async fn hear(&mut self) -> (u8, Vec<u8>) {
        loop {
            if let Some(frame) = self.inbox.frame().expect("well formed").filter(trilithon::wire::frame::Frame::is_complete) {
                let body = self.inbox.body(&frame).to_vec();
                self.inbox.drop_frame(&frame);
                return (frame.tag, body);
            }
            let read = tokio::time::timeout(Duration::from_secs(10), self.stream.read(self.inbox.space()));
            let n = read.await.expect("an answer in time").expect("a sound connection");
            assert!(n > 0, "the proxy hung up");
            self.inbox.received(n);
        }
    }

    /// The answer up to ReadyForQuery: its tags, with the code behind an error.
    pub async fn answer(&mut self) -> String {
        let mut tags = String::new();
        loop {
            let (tag, body) = self.hear().await;
            if tag != b'N' && tag != b'S' {
                tags.push(char::from(tag));
            }
            if tag == b'E' {
                // Shown where the test fails.
                println!("{tags} {}", String::from_utf8_lossy(&body));
                tags.push_str(&String::from_utf8_lossy(Fields::read(&body).code));
            }
            if tag == b'Z' {
                return tags;
            }
        }
    }

    /// Says it and gives the answer to it.
    pub async fn ask(&mut self, bytes: &[u8]) -> String {
        self.say(bytes).await;
        self.answer().await
    }
}
