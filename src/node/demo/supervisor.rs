//! The process behind a demo: starts the nodes, waits until the cluster is whole, tells what happens, obeys requests, and
//! leaves nothing behind.
//!
//! ```text
//!   exits of nodes ─┐
//!   statuses ───────┼─► Event ──► Supervisor::apply ──► processes, relays, lines, cluster.json
//!   requests ───────┤
//!   signals ────────┘
//! ```
//! Deliberately absent: any part in the cluster's own decisions. A node that dies stays dead until somebody starts it, because
//! that is what a demo is for.
//!
//! Entry point: [`run`].

use super::control::{self, Answer, Request};
use super::files::Folder;
use super::plan::Plan;
use super::relay::{Network, Relay};
use super::status::{Status, Watcher};
use super::{Args, processes, progress, source};
use crate::telemetry::Clock;
use crate::types::Millis;
use anyhow::{Context as _, bail};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitStatus;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A cluster is whole within seconds; one that is not by then will not be.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// While it starts, and while a person watches.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The same while all is well: what is looked at shall not be kept busy by it.
const LOOK_CALMLY_EVERY: Duration = Duration::from_secs(1);
/// Lines of its log that a node which failed to start is quoted with.
const LAST_WORDS: usize = 15;

/// A node's process has ended.
struct Exit {
    site: usize,
    pid: Option<u32>,
    status: std::io::Result<ExitStatus>,
}

enum Event {
    Interrupted,
    Exited(Exit),
    Looked,
    Asked(UnixStream),
    Late,
}

struct Supervisor {
    plan: Plan,
    folder: Folder,
    network: Network,
    clock: Clock,
    began: Millis,
    /// Process of each datacenter's node while it runs.
    nodes: Vec<Option<u32>>,
    exits: JoinSet<Exit>,
    shown: Option<Status>,
    /// Superuser's password, known once the cluster is whole.
    password: Option<String>,
}

/// Run a demo until it is stopped.
pub async fn run(args: &Args, folder: Folder, plan: Plan) -> anyhow::Result<()> {
    check_ports(&plan)?;
    folder.write_configs(&plan)?;
    let listener = control::listen(&folder.dir)?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let network = start_network(&plan, &mut tasks, &stop);
    let clock = Clock::default();
    let nodes = vec![None; plan.sites.len()];
    let mut supervisor =
        Supervisor { plan, folder, network, clock, began: clock.now(), nodes, exits: JoinSet::new(), shown: None, password: None };
    let outcome = supervisor.serve(args, listener, &mut tasks, &stop).await;
    let cleaned = supervisor.leave(args.keep || outcome.is_err()).await;
    stop.cancel();
    tasks.shutdown().await;
    let asker = outcome?;
    if let Some(mut asker) = asker {
        let message = cleaned.as_ref().map_or_else(|e| format!("{e:#}"), |()| "stopped".to_owned());
        control::reply(&mut asker, &Answer { done: cleaned.is_ok(), message }).await;
    }
    cleaned
}

/// Each port is free, or its holder is named before anything starts.
fn check_ports(plan: &Plan) -> anyhow::Result<()> {
    for site in &plan.sites {
        for port in site.open_ports() {
            for address in [SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from((site.address, port))] {
                if let Err(error) = TcpListener::bind(address) {
                    bail!("{address} (for {}) cannot be used: {error}; choose other ports with --base-port", site.name);
                }
            }
        }
    }
    Ok(())
}

fn start_network(plan: &Plan, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> Network {
    let sites = plan.sites.iter().map(|s| s.dir.clone()).collect();
    let relays = plan
        .sites
        .iter()
        .enumerate()
        .flat_map(|(site, s)| s.relays().into_iter().map(move |(listen, target)| Relay { site, listen, target }));
    Network::start(relays.collect(), sites, plan.round_trip, tasks, stop)
}

impl Supervisor {
    /// Until somebody wants it to end: who, when it was a request.
    async fn serve(
        &mut self,
        args: &Args,
        listener: UnixListener,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<UnixStream>> {
        println!("starting {} (data in {})", self.plan.names(), self.folder.data.display());
        for site in 0..self.plan.sites.len() {
            self.start(site)?;
        }
        let (statuses, mut seen) = watch::channel(None);
        let watching = stop.child_token();
        tasks.spawn(watch_status(self.plan.clone(), statuses, watching.clone()));
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
        let late = tokio::time::sleep(START_TIMEOUT);
        tokio::pin!(late);
        loop {
            let event = tokio::select! {
                _ = interrupt.recv() => Event::Interrupted,
                _ = terminate.recv() => Event::Interrupted,
                _ = hangup.recv() => Event::Interrupted,
                Some(Ok(exit)) = self.exits.join_next() => Event::Exited(exit),
                Ok(()) = seen.changed() => Event::Looked,
                Ok((stream, _)) = listener.accept() => Event::Asked(stream),
                () = &mut late, if self.password.is_none() => Event::Late,
            };
            match event {
                Event::Interrupted => return Ok(None),
                Event::Exited(exit) => self.exited(exit)?,
                Event::Looked => {
                    let status = seen.borrow_and_update().clone();
                    if self.looked(status)? && args.supervise {
                        // Nobody watches a demo in the background: it need not ask its nodes any more.
                        watching.cancel();
                    }
                }
                Event::Asked(mut stream) => {
                    if let Some(answer) = self.asked(&mut stream).await {
                        control::reply(&mut stream, &answer).await;
                    } else {
                        return Ok(Some(stream));
                    }
                }
                Event::Late => bail!("not whole after {START_TIMEOUT:?}; {}", self.blame()),
            }
        }
    }

    fn say(&self, line: &str) {
        println!("{:7.1} s  {line}", self.clock.now().since(self.began).as_secs_f64());
    }

    fn start(&mut self, site: usize) -> anyhow::Result<()> {
        let mut child = processes::spawn(&self.plan.sites[site])?;
        let pid = child.id();
        self.nodes[site] = pid;
        self.exits.spawn(async move { Exit { site, pid, status: child.wait().await } });
        if self.password.is_some() {
            self.publish()?;
        }
        Ok(())
    }

    fn publish(&self) -> anyhow::Result<()> {
        let password = self.password.as_deref().unwrap_or_default();
        self.folder.write_cluster(&self.plan.cluster_file(password, &self.nodes))
    }

    fn exited(&mut self, Exit { site, pid, status }: Exit) -> anyhow::Result<()> {
        // It may have been started again before anybody looked.
        if self.nodes[site] != pid {
            return Ok(());
        }
        self.nodes[site] = None;
        let name = &self.plan.sites[site].name;
        let how = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        if self.password.is_none() {
            bail!("{name} ended while the cluster started ({how}); {}", self.blame());
        }
        self.say(&format!("{name}'s node ended ({how}); `trilithon demo --dir {} --start {name}` brings it back", self.plan.dir.display()));
        self.publish()
    }

    /// Show what changed; true when the cluster has just become whole.
    fn looked(&mut self, status: Option<Status>) -> anyhow::Result<bool> {
        for line in progress::changes(self.shown.as_ref(), status.as_ref()) {
            self.say(&line);
        }
        self.shown = status;
        let Some(status) = self.shown.as_ref().filter(|s| self.password.is_none() && s.is_complete(&self.plan)) else {
            return Ok(false);
        };
        let file = self.plan.password_file().context("a demo needs a datacenter with data")?;
        let password = std::fs::read_to_string(&file).with_context(|| format!("cannot read the password in {}", file.display()))?;
        let program = std::env::current_exe().unwrap_or_else(|_| "trilithon".into());
        let took = self.clock.now().since(self.began);
        println!("{}", progress::greeting(&self.plan, status, password.trim(), &program, took));
        self.password = Some(password.trim().to_owned());
        self.publish()?;
        Ok(true)
    }

    /// Obey one request; `None` is the wish to end.
    async fn asked(&mut self, stream: &mut UnixStream) -> Option<Answer> {
        let outcome = match control::receive(stream).await {
            Ok(Request::Stop) => return None,
            Ok(request) => self.obey(&request).await,
            Err(error) => Err(error),
        };
        Some(match outcome {
            Ok(message) => {
                self.say(&message);
                Answer { done: true, message }
            }
            Err(error) => Answer { done: false, message: format!("{error:#}") },
        })
    }

    async fn obey(&mut self, request: &Request) -> anyhow::Result<String> {
        match request {
            Request::Stop => Ok("stopping".to_owned()),
            Request::Kill(name) => {
                let site = self.site(name)?;
                let killed = processes::kill_all(&self.plan.sites[site].dir).await?;
                Ok(format!("killed {name}: {killed} processes"))
            }
            Request::Start(name) => {
                let site = self.site(name)?;
                let runs = source::processes_of(&self.plan.sites[site].dir);
                if self.nodes[site].is_some_and(|pid| runs.contains(&pid)) {
                    return Ok(format!("{name} runs already"));
                }
                self.start(site)?;
                Ok(format!("started {name}"))
            }
            Request::Cut(name) => {
                self.network.cut(self.site(name)?);
                Ok(format!("cut {name} off from the others; `--heal` joins it again"))
            }
            Request::Heal => {
                self.network.heal();
                Ok("all lines are joined".to_owned())
            }
        }
    }

    fn site(&self, name: &str) -> anyhow::Result<usize> {
        self.plan.find(name).with_context(|| format!("there is no {name}; known are {}", self.plan.names()))
    }

    /// Where to look when the start fails: the end of each log.
    fn blame(&self) -> String {
        let mut text = "the nodes' last words:".to_owned();
        for site in &self.plan.sites {
            text.push_str(&format!("\n--- {} ({})\n{}", site.name, site.log_file().display(), processes::last_words(site, LAST_WORDS)));
        }
        text
    }

    /// Stop everything, and remove it unless it is to stay.
    async fn leave(&mut self, keep: bool) -> anyhow::Result<()> {
        println!("stopping {}", self.plan.names());
        self.network.heal();
        let nodes: Vec<u32> = self.nodes.iter().flatten().copied().collect();
        let stopping = processes::stop_all(&self.plan, &nodes);
        tokio::pin!(stopping);
        // Children that ended are collected meanwhile.
        let stopped = loop {
            tokio::select! {
                result = &mut stopping => break result,
                Some(_) = self.exits.join_next() => {}
            }
        };
        self.folder.close();
        stopped?;
        if keep {
            println!("data and logs stay in {}", self.folder.data.display());
            return Ok(());
        }
        self.folder.remove()
    }
}

/// Ask for the status again and again.
async fn watch_status(plan: Plan, statuses: watch::Sender<Option<Status>>, stop: CancellationToken) {
    let watcher = Watcher::new(&plan);
    loop {
        let asking = async {
            let status = watcher.ask().await;
            let calm = status.as_ref().is_some_and(|s| s.is_complete(&plan));
            statuses.send_if_modified(|shown| std::mem::replace(shown, status.clone()) != status);
            tokio::time::sleep(if calm { LOOK_CALMLY_EVERY } else { LOOK_EVERY }).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = asking => {}
        }
    }
}
