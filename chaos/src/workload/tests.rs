//! The workloads against one PostgreSQL without any proxy, on plain threads: healthy, killed in the middle, and tampered with.

#[path = "../../../tests/it/ports.rs"]
mod ports;

use self::ports::free_port;
use super::outcome::Stage;
use super::place::{Job, Login, Place, Ports};
use super::session::{Session, Target};
use super::*;
use crate::check::{self, Least};
use crate::record::{Outcome, Verdict};
use rustix::process::{Pid, Signal};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use tempfile::TempDir;

/// Fifteen hundred writes, of which one in twenty-five is a session's.
const LEAST: Least = Least { acknowledged: 30, reads: 20 };

/// A server of our own, ended with the test.
struct Server {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

fn bin_dir() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut dirs: Vec<PathBuf> =
        versions.flatten().map(|entry| entry.path().join("bin")).filter(|dir| dir.join("postgres").exists()).collect();
    dirs.sort();
    dirs.pop().expect("PostgreSQL's programs are in /usr/lib/postgresql/*/bin")
}

/// PostgreSQL refuses root.
fn command(program: &str) -> Command {
    let path = bin_dir().join(program);
    if !rustix::process::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
    command
}

impl Server {
    fn start() -> Server {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        if rustix::process::geteuid().is_root() {
            let done = Command::new("chown").arg("-R").arg("postgres:postgres").arg(dir.path()).status().unwrap();
            assert!(done.success());
        }
        let init = command("initdb").args(["-A", "trust", "-U", "postgres", "-k", "--no-sync", "-D"]).arg(&data).output().unwrap();
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let port = free_port();
        let mut server = Server { dir, port, child: None };
        server.run();
        server
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn run(&mut self) {
        let mut command = command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-c", "max_connections=200"]);
        command.args(["-c", "unix_socket_directories=", "-c", "logging_collector=off"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(self.dir.path().join("log")).unwrap());
        self.child = Some(command.spawn().unwrap());
    }

    /// Whatever a client sends from now on gets no answer.
    fn hang(&self) {
        self.signal_all(Signal::STOP);
    }

    /// The postmaster and, because it cannot tell them any more, all its children.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            for _ in 0..100 {
                if self.signal_all(Signal::KILL) == 0 {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// To each process that works in this server's directory; how many these were.
    fn signal_all(&self, signal: Signal) -> usize {
        let data = self.data();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let ours = processes.filter(|p| std::fs::read_link(p.path().join("cwd")).is_ok_and(|cwd| cwd == data));
        let pids: Vec<Pid> = ours.filter_map(|p| p.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw).collect();
        for pid in &pids {
            let _ = rustix::process::kill_process(*pid, signal);
        }
        pids.len()
    }

    fn place(&self, name: &str) -> Place {
        let ports = Ports { postgres: self.port, auto: self.port, primary: self.port, standby: self.port };
        Place { name: name.to_owned(), host: "127.0.0.1".to_owned(), ports, spawn: Arc::new(spawn) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(job: Job) {
    let thread = std::thread::Builder::new().name("place".to_owned());
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async move { job().await });
    };
    thread.spawn(work).unwrap();
}

fn login() -> Login {
    Login { user: "postgres".into(), password: None, database: "postgres".into() }
}

/// One statement.
fn run_sql(place: &Place, sql: &'static str) {
    let (send, receive) = sync_channel(1);
    let target = Target { host: place.host.clone(), ports: place.ports, door: Door::Direct, login: login() };
    let job: Job = Box::new(move || {
        Box::pin(async move {
            let origin = history::Origin { site: 0, door: Door::Direct, session: 0 };
            let session = Session::open(&target, origin, RunClock::start(), Duration::from_secs(5)).await.unwrap();
            send.send(session.text(Stage::Body, sql).await.map(|_| ())).unwrap();
        })
    });
    (place.spawn)(job);
    receive.recv().unwrap().unwrap();
}

fn until_ready(place: &Place) {
    for _ in 0..200 {
        if std::net::TcpStream::connect((place.host.as_str(), place.ports.postgres)).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the test's PostgreSQL does not come up");
}

/// On a busy machine this takes longer.
fn until(running: &Running, reached: impl Fn(&Progress) -> bool) {
    for _ in 0..1200 {
        if reached(&running.progress()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the clients are stuck: {:?}", running.progress());
}

fn outcomes(verdicts: &[Verdict]) -> Vec<(&str, Outcome)> {
    verdicts.iter().map(|verdict| (verdict.checker.as_str(), verdict.outcome)).collect()
}

fn places(server: &Server) -> Vec<Place> {
    ["dc1", "dc2"].map(|name| server.place(name)).to_vec()
}

#[test]
fn a_healthy_server_that_hangs_and_is_killed_passes_every_checker_and_tampering_fails() {
    let mut server = Server::start();
    let places = places(&server);
    until_ready(&places[0]);
    let clock = RunClock::start();
    // One node under two names cannot have one writer for each timeline: without watchers' beats.
    let plan = Plan { per_second: 300.0, deadline: Duration::from_secs(3), watch_alone: false, ..Plan::default() };
    let running = start(&places, &login(), clock, &plan).unwrap();
    until(&running, |progress| progress.acknowledged >= 700);
    // A server that is killed between two writes leaves none whose fate is unknown. Clients give one that hangs up at their deadline, which
    // is long enough to be an outage, too.
    server.hang();
    until(&running, |progress| progress.unknown > 0);
    server.kill();
    server.run();
    until(&running, |progress| progress.acknowledged >= 1500);
    let mut histories = running.stop().unwrap();
    histories.beats.clear();
    // What a standby would have shown is what the only server did.
    histories.glimpses.iter_mut().for_each(|glimpse| glimpse.standby = glimpse.origin.door == Door::Standby);
    assert!(histories.outages.iter().any(|outage| outage.to.since(outage.from) > Duration::from_millis(900)), "{:?}", histories.outages);
    let mut end = final_reads::gather(&places[..1], &login(), clock, Duration::from_secs(10)).unwrap();
    end.nodes[0].amcheck = Some(final_reads::amcheck(command("pg_amcheck"), &places[0], &login(), true));
    let verdicts = check::all(&histories, &[], &end, LEAST);
    for verdict in &verdicts {
        println!("{:?} {}: {} {:?} {:?}", verdict.outcome, verdict.checker, verdict.summary, verdict.counts, verdict.witness);
    }
    // Of one node there are no copies to compare.
    let not_passed: Vec<_> =
        outcomes(&verdicts).into_iter().filter(|(name, outcome)| *outcome != Outcome::Passed && *name != "copies").collect();
    assert!(not_passed.is_empty(), "{not_passed:?}");

    run_sql(
        &places[0],
        "DELETE FROM chaos_set WHERE n = (SELECT min(n) FROM chaos_set); \
         UPDATE chaos_append_serializable SET v = v[2:] WHERE k = (SELECT min(k) FROM chaos_append_serializable); \
         UPDATE chaos_append_repeatable_read SET v = '{}' WHERE k = (SELECT min(k) FROM chaos_append_repeatable_read); \
         UPDATE chaos_register SET v = 7 WHERE k = (SELECT min(k) FROM chaos_register); \
         UPDATE chaos_bank SET balance = balance + 1 WHERE id = 3; \
         UPDATE chaos_version SET version = 1 WHERE id = (SELECT min(id) FROM chaos_version)",
    );
    let end = final_reads::gather(&places[..1], &login(), clock, Duration::from_secs(10)).unwrap();
    let verdicts = check::all(&histories, &[], &end, LEAST);
    let failed: Vec<_> = outcomes(&verdicts).into_iter().filter(|(_, outcome)| *outcome == Outcome::Failed).map(|(name, _)| name).collect();
    let wanted = ["set", "list-append serializable", "list-append repeatable-read", "register", "bank", "session"];
    for name in wanted {
        assert!(failed.contains(&name), "{name} did not notice: {failed:?}");
    }
}
