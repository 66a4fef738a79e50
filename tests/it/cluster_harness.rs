//! A whole cluster for a test: `trilithon demo` as a child process, with its own ports and folder, gone when the test ends,
//! also when it panics.
//!
//! Everything here sees the cluster from outside: the program's commands, its gRPC status, SQL, and signals to processes.
//! Deliberately absent: any shortcut into the program under test.
//!
//! Entry point: [`Cluster::start`].

use serde::Deserialize;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tokio_postgres::{Client, NoTls};
use trilithon::proto::v1::{ClusterStatus as Status, StatusRequest, admin_client::AdminClient};
use trilithon::telemetry::Clock;
use trilithon::types::Millis;

/// A cluster is ready in seconds; slow machines under load get this long.
const START_TIMEOUT: Duration = Duration::from_secs(150);
/// Every look at a condition is repeated this often.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);
/// One SQL statement or one status of a healthy node.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// `cluster.json`, whose names people and programs hold on to.
#[derive(Clone, Debug, Deserialize)]
pub struct ClusterFile {
    pub password: String,
    pub cli_config: PathBuf,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub name: String,
    pub pid: u32,
    pub data_dir: PathBuf,
    pub postgres: Option<Postgres>,
    pub proxy: Proxy,
    pub grpc: u16,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Postgres {
    pub port: u16,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Proxy {
    pub primary: u16,
}

/// A running demo.
pub struct Cluster {
    pub dir: PathBuf,
    /// How long the start took, from the command to the greeting.
    pub started_in: Duration,
    demo: Child,
    program: PathBuf,
    clock: Clock,
}

impl Cluster {
    /// Start one with `program`, and further words for `trilithon demo`.
    pub async fn start(program: &Path, name: &str, words: &[&str]) -> Cluster {
        Cluster::start_in(program, name, words, &[]).await
    }

    /// The same, with `environment` for the demo and its nodes.
    pub async fn start_in(program: &Path, name: &str, words: &[&str], environment: &[(&str, &Path)]) -> Cluster {
        let dir = std::env::temp_dir().join(format!("tri-it-{}-{name}", std::process::id()));
        let log_dir = std::env::temp_dir();
        let log = fs::File::create(log_dir.join(format!("tri-it-{}-{name}.log", std::process::id()))).expect("a log file");
        let base = free_base_port();
        let clock = Clock::default();
        let began = clock.now();
        let demo = Command::new(program)
            .args(["demo", "--base-port", &base.to_string(), "--dir"])
            .arg(&dir)
            .args(words)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a shared log"))
            .stderr(log)
            .spawn()
            .expect("the program under test starts");
        let mut cluster = Cluster { dir, started_in: Duration::ZERO, demo, program: program.to_owned(), clock };
        let deadline = began.after(START_TIMEOUT);
        while !cluster.dir.join("cluster.json").exists() {
            let ended = cluster.demo.try_wait().expect("the demo is our child");
            assert!(ended.is_none() && clock.now() < deadline, "the demo did not start ({ended:?}):\n{}", cluster.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        cluster.started_in = clock.now().since(began);
        cluster
    }

    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.with_extension("log")
    }

    /// What the demo said, and how each node's log ends.
    pub fn log(&self) -> String {
        let mut text = fs::read_to_string(self.log_file()).unwrap_or_default();
        for site in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            for file in ["node.log", "data/postgres.log"] {
                let log = fs::read_to_string(site.path().join(file)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(60)..].join("\n");
                if !end.is_empty() {
                    text.push_str(&format!("\n--- {}/{file}\n{end}\n", site.path().display()));
                }
            }
        }
        text
    }

    /// As the demo describes itself at this moment.
    pub fn file(&self) -> ClusterFile {
        let text = fs::read_to_string(self.dir.join("cluster.json")).expect("a running demo has its cluster.json");
        serde_json::from_str(&text).expect("cluster.json has the names that are fixed")
    }

    pub fn node(&self, name: &str) -> Node {
        self.file().nodes.into_iter().find(|n| n.name == name).expect("a known name")
    }

    /// Names of those that hold data.
    pub fn data_nodes(&self) -> Vec<String> {
        self.file().nodes.into_iter().filter(|n| n.postgres.is_some()).map(|n| n.name).collect()
    }

    /// Run one of the program's commands against this cluster.
    pub async fn cli(&self, words: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(words).env("TRILITHON_CLI_CONFIG", self.file().cli_config).stdin(Stdio::null()).kill_on_drop(true);
        tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("a command ends").expect("the program starts")
    }

    /// Tell the demo something, as in `--kill dc1`.
    pub async fn demo(&self, words: &[&str]) {
        let mut command = tokio::process::Command::new(&self.program);
        let output = command.args(["demo", "--dir"]).arg(&self.dir).args(words).stdin(Stdio::null()).output().await;
        let output = output.expect("the program starts");
        assert!(output.status.success(), "demo {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What the node called `name` says; `None` while it does not answer.
    pub async fn status_of(&self, name: &str) -> Option<Status> {
        let endpoint = format!("http://127.0.0.1:{}", self.node(name).grpc);
        let asking = async {
            let mut client = AdminClient::connect(endpoint).await.ok()?;
            let reply = client.status(StatusRequest {}).await.ok()?;
            reply.into_inner().status
        };
        tokio::time::timeout(Duration::from_secs(2), asking).await.ok().flatten()
    }

    /// The newest that any node says.
    pub async fn status(&self) -> Option<Status> {
        let mut newest: Option<Status> = None;
        for node in self.file().nodes {
            if let Some(status) = self.status_of(&node.name).await
                && newest.as_ref().is_none_or(|known| (known.epoch, reachable(known)) < (status.epoch, reachable(&status)))
            {
                newest = Some(status);
            }
        }
        newest
    }

    /// Until `wanted` holds of the status; panics with the logs when it does not in time.
    pub async fn wait_for(&self, what: &str, timeout: Duration, wanted: impl Fn(&Status) -> bool) -> Status {
        let deadline = self.now().after(timeout);
        let mut last = None;
        while self.now() < deadline {
            last = self.status().await;
            if let Some(status) = last.as_ref().filter(|s| wanted(s)) {
                return status.clone();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        panic!("not within {timeout:?}: {what}; last status {last:#?}\n{}", self.log());
    }

    /// Until there is a primary, every other data member streams from it, and all of them may confirm; gives the primary's name.
    pub async fn wait_whole(&self, timeout: Duration) -> String {
        let names = self.data_nodes();
        let fits = |s: &Status, name: &String| {
            let member = s.members.iter().find(|m| m.name == *name);
            member.is_some_and(|m| if s.primary.as_ref() == Some(name) { m.state == "running" } else { m.state == "streaming" })
        };
        let full = |s: &Status| s.rule.as_ref().is_some_and(|r| !r.changing && r.standbys.len() + 1 >= names.len());
        let whole = |s: &Status| s.writable && s.phase == "steady" && s.primary.is_some() && names.iter().all(|n| fits(s, n)) && full(s);
        let status = self.wait_for("one primary, everybody else streaming", timeout, whole).await;
        status.primary.expect("just checked")
    }

    /// A connection to any port of this cluster, as superuser.
    pub async fn connect(&self, port: u16, password: &str) -> Result<Client, tokio_postgres::Error> {
        let config = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres password={password} connect_timeout=5");
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        // It ends with the client; nobody needs to know how.
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        driver.detach_all();
        Ok(client)
    }

    /// Process of the postmaster of `name`, from its own file.
    pub fn postmaster(&self, name: &str) -> Option<u32> {
        let file = self.node(name).data_dir.join("pgdata/postmaster.pid");
        fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
    }

    /// The process that replays WAL in a datacenter, while one does.
    pub fn replaying(&self, name: &str) -> Option<u32> {
        let title = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        self.processes(name).into_iter().find(|pid| String::from_utf8_lossy(&title(pid)).contains("startup recovering"))
    }

    /// Identity of the data directory: a copy that took its place has another.
    pub fn directory(&self, name: &str) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.node(name).data_dir.join("pgdata")).ok().map(|found| found.ino())
    }

    /// The node process and every process of Postgres of a datacenter: whatever works in its folder.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        let data = self.node(name).data_dir;
        let folder = data.parent().expect("a node's folder").canonicalize().expect("it exists");
        let entries = fs::read_dir("/proc").expect("Linux").flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&folder))).collect()
    }

    /// Send `signal` to each of `pids`; those that ended meanwhile need none.
    pub fn signal(pids: &[u32], signal: rustix::process::Signal) {
        for pid in pids {
            let pid = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

fn reachable(status: &Status) -> usize {
    status.members.iter().filter(|m| m.state != "unreachable").count()
}

/// Below the kernel's ephemeral ports, so that no outgoing connection ever takes one of ours.
fn free_base_port() -> u16 {
    let first = 17_000 + u16::try_from(std::process::id() % 100).expect("below 100") * 100;
    let is_free = |base: u16| (32..82).all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok());
    (0..40).map(|i| first + i * 100).find(|base| is_free(*base)).expect("some free ports")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // A frozen process could not obey.
        for node in fs::read_to_string(self.dir.join("cluster.json"))
            .ok()
            .and_then(|t| serde_json::from_str(&t).ok())
            .map_or(vec![], |f: ClusterFile| f.nodes)
        {
            Cluster::signal(&self.processes(&node.name), rustix::process::Signal::CONT);
        }
        let stop = Command::new(&self.program).args(["demo", "--stop", "--dir"]).arg(&self.dir).stdout(Stdio::null()).status();
        if !stop.is_ok_and(|s| s.success()) {
            let _ = self.demo.kill();
        }
        let _ = self.demo.wait();
        if self.dir.exists() {
            // The demo failed or was killed: its second stop kills what is left, by process id.
            let _ = Command::new(&self.program).args(["demo", "--stop", "--dir"]).arg(&self.dir).stdout(Stdio::null()).status();
        }
        let _ = fs::remove_file(self.log_file());
    }
}
