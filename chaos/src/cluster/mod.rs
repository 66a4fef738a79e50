//! A cluster in a world: certificates, configuration, one node process per datacenter, and what it says of itself.
//!
//! ```text
//!   Cluster ──► System (trilithon; peers implement the same) : files, programs, status, command line
//!      └──► Node per datacenter: start, stop, kill, freeze, by signals to processes of its site's cgroup
//! ```
//! The cluster is seen as its users see it: the program, its configuration, SQL, HTTP. The harness is also what a service manager
//! is on a real machine: a node process that ends by itself is started again by [`Cluster::tend`]; one that was killed on purpose
//! stays down until [`Node::start`]. Deliberately absent: threads, and any wait without a deadline: disks of these worlds hang.
//!
//! Entry point: [`Cluster::start`].

mod certs;
mod config;
mod node;
mod peers;
mod process;
mod processes;
mod sql;
mod status;
mod system;
mod trilithon;

pub use config::CORE_TRACE;
pub use node::{End, Ended, Node};
pub use peers::{Patroni, Profile};
pub use process::output_within;
use process::reap;
pub use sql::{Row, Target, in_words, query};
pub use status::{Member, Status, answers};
pub use system::{Part, Ports, Program, Question, System, Tells};
pub use trilithon::{Options, Trilithon};

use crate::record::{At, RunClock};
use crate::world::World;
use anyhow::{Context as _, Result, bail};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// From the first process to the last standby that streams; initdb and two copies over a slow line on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(240);
/// One node's answer: it comes from the same machine, or does not come.
const ANSWER_LIMIT: Duration = Duration::from_millis(1_500);
/// One verb of the command line; a switchover may take its whole timeout of 20 s.
const CLI_LIMIT: Duration = Duration::from_secs(40);
const SQL_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Three servers share one machine's memory. The same for every system.
const POSTGRES_PARAMETERS: [(&str, &str); 2] = [("shared_buffers", "64MB"), ("max_wal_size", "256MB")];

/// Verbs that only ask. All others are noted, because somebody must account for what they change.
const ASKING: &[&str] = &["status", "list", "topology", "history", "events", "dsn", "query", "version", "raft"];

/// What a signal is noted as, in the place of a verb.
pub const SIGTERM: &str = "SIGTERM";

/// A command that was given to the cluster.
#[derive(Clone, Debug)]
pub struct Given {
    pub words: Vec<String>,
    pub from: At,
    pub to: At,
    /// `None`: it was not ended by itself.
    pub exit: Option<i32>,
    pub said: String,
}

/// A verb of the command line that goes on in the background; give it to [`Cluster::finish`].
pub struct Started {
    words: Vec<String>,
    from: At,
    child: Child,
}

/// Everything was started, and the cluster did not become whole: what it waits for. The one failure of a start that is the program's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotWhole(pub String);

impl std::fmt::Display for NotWhole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotWhole {}

type Heard = Option<(At, Vec<Status>)>;

/// A running cluster. Clones are the same cluster. All methods may be called from any thread that is not inside a runtime.
#[derive(Clone)]
pub struct Cluster {
    system: Arc<dyn System>,
    nodes: Arc<[Node]>,
    password: String,
    clock: RunClock,
    given: Arc<Mutex<Vec<Given>>>,
    /// What nodes answered last, and when, for systems that are not to be asked all the time.
    heard: Arc<Mutex<Heard>>,
}

impl Cluster {
    /// Write configuration (and whatever else it takes), start all programs in each datacenter, wait until all stream.
    ///
    /// # Errors
    /// A program is missing or refuses; [`NotWhole`] where all was started and the cluster is not whole in time.
    pub fn start(world: &World, system: Arc<dyn System>) -> Result<Cluster> {
        system.prepare(world.sites()).with_context(|| format!("cannot set up {}", system.name()))?;
        let nodes = world.sites().iter().map(|site| Node::new(site.clone(), Arc::clone(&system))).collect();
        let (password, clock) = (String::new(), RunClock::start());
        let mut cluster = Cluster { system, nodes, password, clock, given: Arc::default(), heard: Arc::default() };
        for node in cluster.nodes.iter() {
            node.start()?;
        }
        let whole = cluster.until("whole for the first time", START_LIMIT, |status| cluster.is_whole(status));
        whole.map_err(|error| NotWhole(format!("{error:#}")))?;
        cluster.password = cluster.system.password(world.sites())?;
        Ok(cluster)
    }

    /// Note commands by this clock from now on.
    pub fn use_clock(&mut self, clock: RunClock) {
        self.clock = clock;
    }

    /// Commands that were given through [`Cluster::cli`] and [`Cluster::cli_start`] and that change something.
    pub fn given(&self) -> Vec<Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn system(&self) -> &dyn System {
        &*self.system
    }

    pub fn shared_system(&self) -> Arc<dyn System> {
        Arc::clone(&self.system)
    }

    pub fn ports(&self) -> Ports {
        self.system.ports()
    }

    /// The superuser's.
    pub fn password(&self) -> &str {
        &self.password
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of a datacenter.
    ///
    /// # Errors
    /// No node is called so.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.with_context(|| {
            format!("no node is called {name}: {}", self.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", "))
        })
    }

    /// What every node says that answers.
    pub fn statuses(&self) -> Vec<Status> {
        let every = self.system.ask_every();
        if every.is_zero() {
            return self.ask_all();
        }
        // Whoever comes second waits for the first one's answers, and shares them.
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let young = heard.as_ref().filter(|(at, _)| self.clock.now().since(*at) < every);
        if let Some((_, answers)) = young {
            return answers.clone();
        }
        let answers = self.ask_all();
        *heard = Some((self.clock.now(), answers.clone()));
        answers
    }

    fn ask_all(&self) -> Vec<Status> {
        let questions = self.system.questions();
        let asked: Vec<_> = self.nodes.iter().map(|n| (&n.name, status::ask(&n.site, questions, ANSWER_LIMIT))).collect();
        let heard = asked.into_iter().filter_map(|(name, answer)| Some((name, answer.blocking_recv().ok()?.ok()?)));
        heard.filter_map(|(name, bodies)| self.system.parse_status(name, &bodies).ok()).collect()
    }

    /// The cluster's state, as all answers together show it.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn status(&self) -> Result<Status> {
        self.system.combine(self.statuses()).context("no node answers at its HTTP port; see the logs of the nodes")
    }

    /// Name of the member that is primary, or is about to be; `None` while nobody says.
    pub fn primary(&self) -> Option<String> {
        self.status().ok()?.primary
    }

    /// All nodes but `name`.
    pub fn others(&self, name: &str) -> Vec<String> {
        self.nodes.iter().filter(|n| n.name != name).map(|n| n.name.clone()).collect()
    }

    /// Names of those that hold data.
    pub fn data_nodes(&self) -> Vec<String> {
        self.nodes.iter().filter(|n| !n.witness).map(|n| n.name.clone()).collect()
    }

    /// Run a verb of the command line in a datacenter whose node answers; endpoints of all nodes are given, that one's first.
    ///
    /// # Errors
    /// It does not end within 40 s, or cannot be started. A verb that failed is no error here: see its exit code.
    pub fn cli(&self, words: &[&str]) -> Result<Output> {
        let from = self.clock.now();
        let output = self.cli_unnoted(words);
        self.note(words.iter().map(|w| (*w).to_owned()).collect(), from, output.as_ref().ok());
        output
    }

    fn note(&self, words: Vec<String>, from: At, output: Option<&Output>) {
        if words.first().is_some_and(|verb| ASKING.contains(&verb.as_str())) {
            return;
        }
        let said = output.map(|o| String::from_utf8_lossy(&[o.stdout.as_slice(), o.stderr.as_slice()].concat()).trim().to_owned());
        let exit = output.and_then(|o| o.status.code());
        let given = Given { words, from, to: self.clock.now(), exit, said: said.unwrap_or_default() };
        self.given.lock().unwrap_or_else(PoisonError::into_inner).push(given);
    }

    /// The same, for those who keep an account of their own of what they command.
    ///
    /// # Errors
    /// As of [`Cluster::cli`].
    pub fn cli_unnoted(&self, words: &[&str]) -> Result<Output> {
        // A process cannot even start in a frozen datacenter, and whoever starts it would wait with it.
        let name = self.status()?.answered_by;
        self.cli_at(&name, words)
    }

    /// Start a verb and do not wait for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn cli_start(&self, words: &[String]) -> Result<Started> {
        let from = self.clock.now();
        let answers = self.status()?;
        let verb: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.system.cli(&self.node(&answers.answered_by)?.site, &verb)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start `{} {}`", self.system.name(), verb.join(" ")))?;
        Ok(Started { words: words.to_vec(), from, child })
    }

    /// Wait for what was started; it is killed when it has not ended within `limit`.
    pub fn finish(&self, started: Started, limit: Duration) {
        let ended = reap(started.child, limit);
        let output = ended.map(|status| Output { status, stdout: Vec::new(), stderr: Vec::new() });
        self.note(started.words, started.from, output.as_ref());
    }

    /// Run a verb in the datacenter of `name`, which must not be frozen: a process could not even start there.
    ///
    /// # Errors
    /// As of [`Cluster::cli`].
    pub fn cli_at(&self, name: &str, words: &[&str]) -> Result<Output> {
        let node = self.node(name)?;
        let command = self.system.cli(&node.site, words)?;
        output_within(command, CLI_LIMIT).with_context(|| format!("`{} {}` in {name}", self.system.name(), words.join(" ")))
    }

    /// Run `command`, which gives the cluster the order `words`, until its end or for `limit`, and note it.
    ///
    /// # Errors
    /// It does not end in time, or cannot be started.
    pub fn order(&self, command: Command, words: &[String], limit: Duration) -> Result<Output> {
        let from = self.clock.now();
        let output = output_within(command, limit);
        self.note(words.to_vec(), from, output.as_ref().ok());
        output
    }

    /// An order that is given in the datacenter of `name`, awaited and noted.
    ///
    /// # Errors
    /// As of [`Cluster::order`].
    pub fn order_at(&self, name: &str, words: &[&str]) -> Result<Output> {
        let command = self.system.cli(&self.node(name)?.site, words)?;
        let noted: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        self.order(command, &noted, CLI_LIMIT).with_context(|| format!("`{} {}` in {name}", self.system.name(), words.join(" ")))
    }

    /// SIGTERM to what manages a node's Postgres, and wait. A primary hands over then, as if it had been ordered: it is noted.
    ///
    /// # Errors
    /// As of [`Node::stop`].
    pub fn terminate(&self, node: &Node) -> Result<Ended> {
        let from = self.clock.now();
        let ended = node.stop();
        self.note(vec![SIGTERM.to_owned(), node.name.clone()], from, None);
        ended
    }

    /// Ask for a planned change of primary and wait for its outcome.
    ///
    /// # Errors
    /// As of [`Cluster::cli`].
    pub fn switchover(&self, to: Option<&str>) -> Result<Output> {
        let mut words = vec!["switchover"];
        words.extend(to.into_iter().flat_map(|to| ["--to", to]));
        self.cli(&words)
    }

    /// One or more statements as superuser from the datacenter of `from`, on `target`; rows as text.
    ///
    /// # Errors
    /// Not reached, refused, or no answer within 10 s; the SQLSTATE is part of the message.
    pub fn sql(&self, from: &str, target: Target, sql: &str) -> Result<Vec<Row>> {
        let (node, ports) = (self.node(from)?, self.ports());
        let port = match target {
            Target::Own => ports.postgres,
            Target::Proxy => ports.primary,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        query(&node.site, address, &self.password, sql, SQL_LIMIT)
    }

    /// Start again what ended by itself, as a service manager would. Call it several times a second.
    pub fn tend(&self, clock: &RunClock) -> Vec<End> {
        self.nodes.iter().filter_map(|node| node.tend(clock)).collect()
    }

    /// Undo what signals did: wake everything, start every node that is down. The world mends itself apart.
    ///
    /// # Errors
    /// A node cannot be started.
    pub fn mend(&self) -> Result<()> {
        for node in self.nodes.iter() {
            node.thaw_all();
            node.start()?;
        }
        Ok(())
    }

    /// Wait until all members stream and every standby confirms commits. Returns how long it took.
    ///
    /// # Errors
    /// It is not so in time: what is missing.
    pub fn until_redundant(&self, limit: Duration) -> Result<Duration> {
        self.until("redundant", limit, |status| self.is_whole(status))
    }

    /// Redundant, and nobody is missing: a member that was removed, or never joined, is no member, and would not be missed.
    pub fn is_whole(&self, status: &Status) -> bool {
        status.is_whole(self.nodes.len())
    }

    /// Wait for any condition on the status; tends the nodes meanwhile.
    ///
    /// # Errors
    /// It is not met in time: the last status in words.
    pub fn until(&self, what: &str, limit: Duration, good: impl Fn(&Status) -> bool) -> Result<Duration> {
        let clock = RunClock::start();
        let mut last = None;
        loop {
            self.tend(&clock);
            if let Ok(status) = self.status() {
                if good(&status) {
                    return Ok(clock.now().since(At(0)));
                }
                last = Some(status);
            }
            if clock.now().since(At(0)) >= limit {
                let seen = last.map_or_else(|| "no node answered".to_owned(), |s| s.in_words());
                bail!("the cluster is not {what} after {} s: {seen}", limit.as_secs());
            }
            sleep(LOOK_EVERY);
        }
    }

    /// End every process, by force; the data stays.
    pub fn kill(&self) {
        for node in self.nodes.iter() {
            node.thaw_all();
            node.kill_all();
        }
    }
}
