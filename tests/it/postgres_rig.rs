//! Real PostgreSQL servers for tests: free ports, own directories, everything gone afterwards, also after a panic.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot go on panics; it measures with Instant.

use crate::ports::free_port;
use rustix::process::{Pid, Signal};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use trilithon::cluster::{Secrets, SyncRule};
use trilithon::ha::{PostgresFacts, PostgresState};
use trilithon::postgres::{Instance, InstanceConfig, Upstream};
use trilithon::telemetry::Clock;
use trilithon::types::{Epoch, NodeId, Timeline};

pub const LIMIT: Duration = Duration::from_secs(20);

/// Another version's binaries, for `make test-versions`.
pub fn bin_dir() -> Option<PathBuf> {
    let named = std::env::var_os("TRILITHON_TEST_PG_BIN").or_else(|| std::env::var_os("TRILITHON_POSTGRES__BIN_DIR"));
    named.map(PathBuf::from)
}

/// Timeline n was claimed in epoch n: enough for tests of one machine.
pub fn writer(timeline: Timeline) -> Option<Epoch> {
    Some(Epoch(u64::from(timeline.0)))
}

/// One member's Postgres.
pub struct Server {
    pub instance: Instance,
    pub node: NodeId,
    pub port: u16,
    /// Dropped last: what still runs in here is killed first.
    pub dir: Dir,
}

/// The directory of one server; no process of it outlives the test.
pub struct Dir(TempDir);

impl Dir {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        for _ in 0..200 {
            let pids = processes_below(self.0.path());
            if pids.is_empty() {
                return;
            }
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Processes whose working directory lies below `dir`.
pub fn processes_below(dir: &Path) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let me = i32::try_from(std::process::id()).unwrap();
    pids.filter(|pid| *pid != me && std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))).collect()
}

/// Made once per version of PostgreSQL and of the code that initialises, kept below the target directory.
async fn template() -> PathBuf {
    let server = Server::empty(1).await;
    let code = crc32c::crc32c(include_bytes!("../../src/postgres/initdb.rs"));
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-{}-{code:08x}", server.instance.install().version));
    if !place.exists() {
        server.instance.init_db().await.unwrap();
        let fresh = place.with_extension(std::process::id().to_string());
        std::fs::create_dir_all(&fresh).unwrap();
        let made = [server.dir.path().join("pgdata"), server.dir.path().join("secrets")];
        let copied = std::process::Command::new("cp").arg("-a").args(made).arg(&fresh).status();
        assert!(copied.unwrap().success());
        // Another run may have been faster.
        if std::fs::rename(&fresh, &place).is_err() {
            std::fs::remove_dir_all(&fresh).unwrap();
        }
    }
    place
}

fn config(node: u64, dir: &Path, port: u16) -> InstanceConfig {
    let small = [("shared_buffers", "16MB"), ("max_connections", "30"), ("min_wal_size", "32MB")];
    InstanceConfig {
        node: NodeId(node),
        node_dir: dir.to_path_buf(),
        pgdata: None,
        bin_dir: bin_dir(),
        listen: "127.0.0.1".into(),
        port,
        os_user: None,
        parameters: small.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        hba: vec![],
    }
}

pub fn temp_dir() -> Dir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("tri-postgres-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    Dir(dir)
}

impl Server {
    pub async fn empty(node: u64) -> Server {
        let (dir, port) = (temp_dir(), free_port());
        let instance = Instance::open(config(node, dir.path(), port), Clock::default()).await.unwrap();
        Server { instance, node: NodeId(node), port, dir }
    }

    /// A primary of epoch 2 on timeline 2 that waits for nobody.
    pub async fn primary(node: u64) -> Server {
        let server = Server::initialised(node).await;
        server.instance.start_detached(None).await.unwrap();
        server.instance.promote(Epoch(2), Timeline(2), &server.alone(), LIMIT).await.unwrap();
        server
    }

    /// A new database, stopped. initdb runs once; what it made is copied, so all of them are of one system.
    pub async fn initialised(node: u64) -> Server {
        static TEMPLATE: tokio::sync::OnceCell<PathBuf> = tokio::sync::OnceCell::const_new();
        let template = TEMPLATE.get_or_init(template).await;
        let (dir, port) = (temp_dir(), free_port());
        let copied =
            std::process::Command::new("cp").arg("-a").args([template.join("pgdata"), template.join("secrets")]).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        let instance = Instance::open(config(node, dir.path(), port), Clock::default()).await.unwrap();
        Server { instance, node: NodeId(node), port, dir }
    }

    /// A copy of `primary` that streams from it.
    pub async fn standby(node: u64, primary: &Server) -> Server {
        let server = Server::empty(node).await;
        server.instance.set_secrets(primary.secrets()).await.unwrap();
        server.instance.copy_from(&primary.upstream(2), None).await.unwrap();
        server.instance.follow(primary.upstream(2), None, None).await.unwrap();
        server.until("streams", |f| f.streaming_from == Some(primary.node)).await;
        server
    }

    /// The same directory under a new process's eyes: what a successor sees after kill -9 of the node.
    pub async fn reopen(self) -> Server {
        let Server { instance, node, port, dir } = self;
        drop(instance);
        let instance = Instance::open(config(node.0, dir.path(), port), Clock::default()).await.unwrap();
        Server { instance, node, port, dir }
    }

    pub fn secrets(&self) -> Secrets {
        self.instance.secrets().unwrap()
    }

    pub fn upstream(&self, epoch: u64) -> Upstream {
        Upstream { node: self.node, epoch: Epoch(epoch), host: "127.0.0.1".into(), port: self.port }
    }

    /// The rule of a primary without standbys.
    pub fn alone(&self) -> SyncRule {
        SyncRule::new(self.node, [], 0)
    }

    pub fn rule(&self, standbys: &[u64], acks: usize) -> SyncRule {
        SyncRule::new(self.node, standbys.iter().map(|n| NodeId(*n)), acks)
    }

    pub async fn facts(&self) -> PostgresFacts {
        self.instance.facts(&writer).await
    }

    /// Waits until the facts satisfy `good`.
    pub async fn until(&self, what: &str, good: impl Fn(&PostgresFacts) -> bool) -> PostgresFacts {
        let mut last = PostgresFacts::default();
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                last = self.facts().await;
                if good(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if waited.await.is_err() {
            panic!("{} never {what}: {last:?}\n{}", self.node, self.log());
        }
        last
    }

    pub async fn until_state(&self, state: PostgresState) -> PostgresFacts {
        self.until(&format!("is {state:?}"), |f| f.state == state).await
    }

    /// A client's session over TCP, with the superuser's password.
    /// A server may be starting for longer than the start of it was watched.
    pub async fn client(&self) -> Client {
        let begun = std::time::Instant::now();
        loop {
            match self.try_client().await {
                Ok(client) => return client,
                Err(error) => assert!(begun.elapsed() < LIMIT, "{} lets nobody in: {error}\n{}", self.node, self.log()),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn try_client(&self) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password(self.secrets().superuser).dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::task::spawn(connection);
        Ok(client)
    }

    pub async fn sql(&self, sql: &str) -> Option<String> {
        try_sql(&self.client().await, sql).await.unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("postgres.log")).unwrap_or_default()
    }

    pub fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.instance.pgdata().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    pub fn settings(&self) -> BTreeMap<String, String> {
        config(self.node.0, self.dir.path(), self.port).parameters
    }
}

/// A program of PostgreSQL, run as whoever owns the server's own directories.
pub fn as_owner(server: &Server, program: &Path) -> std::process::Command {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    let owner = std::fs::metadata(server.instance.socket_dir()).unwrap();
    let mut command = std::process::Command::new(program);
    command.current_dir("/").stdout(std::process::Stdio::null());
    if rustix::process::geteuid().is_root() {
        if server.instance.pgdata().exists() {
            std::os::unix::fs::chown(server.instance.pgdata(), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        command.uid(owner.uid()).gid(owner.gid());
    }
    command
}

/// First column of the first row.
pub async fn try_sql(client: &Client, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = tokio::time::timeout(LIMIT, client.simple_query(sql)).await.expect("a query hung")?;
    Ok(messages.iter().find_map(|m| if let SimpleQueryMessage::Row(r) = m { r.get(0).map(str::to_owned) } else { None }))
}

/// Awaits a condition outside of the facts.
pub async fn until<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}
