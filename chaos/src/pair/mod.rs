//! The negative control: a plain asynchronous pair of PostgreSQL servers, promoted by a script when the primary is gone.
//!
//! ```text
//!   dc1: primary ──asynchronous──► dc2: standby        dc3: the script that promotes it
//!   each: a director, that leads clients to whoever it sees as primary, and a page that says so
//! ```
//! Known to lose acknowledged writes, and to have two primaries while they are cut off from each other. A harness that does not find that is
//! broken. Deliberately absent: everything that would make it safe.
//!
//! Entry points: [`Pair`] for the harness, [`run`] for the process in each datacenter.

mod doors;
mod look;
mod server;

use crate::cluster::{Part, Ports, Program, Question, Status, System, Tells};
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use look::View;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinSet, LocalSet};

const PORTS: Ports = Ports { postgres: 5432, auto: 6432, primary: 6433, standby: 6434, grpc: 7432, http: 8008 };
const PROGRAM: &str = "pair";
/// What such scripts usually wait.
const GONE_AFTER: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The process in one datacenter.
#[derive(Clone, Debug, Args)]
pub struct PairArgs {
    /// Its own name.
    #[arg(long)]
    pub me: String,
    /// First the primary, then the standby, then the one that watches them.
    #[arg(long = "peer", value_name = "NAME=ADDRESS")]
    pub peers: Vec<String>,
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub pg_bin: PathBuf,
}

/// A datacenter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    name: String,
    address: Ipv4Addr,
}

/// The pair as a [`System`].
pub struct Pair {
    pg_bin: PathBuf,
    /// This program.
    own: PathBuf,
    peers: Vec<String>,
}

impl Pair {
    /// # Errors
    /// There are not three datacenters, or no PostgreSQL.
    pub fn new(pg_bin: Option<&Path>, sites: &[Site]) -> Result<Pair> {
        if sites.len() != 3 {
            bail!("a pair and its watcher need three datacenters");
        }
        let pg_bin = pg_bin.map_or_else(newest_programs, |bin| Ok(bin.to_owned()))?;
        let own = std::env::current_exe().context("cannot find this program")?;
        Ok(Pair { pg_bin, own, peers: sites.iter().map(|site| format!("{}={}", site.name(), site.address())).collect() })
    }
}

impl System for Pair {
    fn name(&self) -> &str {
        "an asynchronous pair"
    }

    fn ports(&self) -> Ports {
        PORTS
    }

    fn prepare(&self, sites: &[Site]) -> Result<()> {
        for site in sites {
            let dir = self.data_dir(site);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            server::open_up(site.dir())?;
            server::give(&dir)?;
        }
        Ok(())
    }

    fn programs(&self, site: &Site) -> Vec<Program> {
        let mut command = site.command(&self.own);
        command.args(["pair-node", "--me", site.name(), "--dir"]).arg(self.data_dir(site)).arg("--pg-bin").arg(&self.pg_bin);
        command.args(self.peers.iter().flat_map(|peer| ["--peer", peer]));
        vec![Program { name: PROGRAM.to_owned(), command }]
    }

    fn program_of(&self, _: Part) -> &'static str {
        PROGRAM
    }

    /// Nothing but the page that says who is primary.
    fn tells(&self) -> Tells {
        Tells { epochs: false, phases: false, history: false, contract: false }
    }

    fn is_witness(&self, site: &Site) -> bool {
        self.peers.last().is_some_and(|peer| peer.starts_with(&format!("{}=", site.name())))
    }

    fn data_dir(&self, site: &Site) -> PathBuf {
        site.dir().join("pair")
    }

    fn pgdata(&self, site: &Site) -> PathBuf {
        self.data_dir(site).join("pgdata")
    }

    /// Everybody is trusted.
    fn password(&self, _: &[Site]) -> Result<String> {
        Ok("none".to_owned())
    }

    fn questions(&self) -> &'static [Question] {
        &[Question { port: PORTS.http, path: "/", body: None }]
    }

    fn parse_status(&self, node: &str, answers: &[String]) -> Result<Status> {
        let body = answers.first().context("a question was not asked")?;
        serde_json::from_str(body).with_context(|| format!("the page of {node}"))
    }

    fn versions(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn settings(&self) -> Vec<String> {
        vec!["plain asynchronous replication; a script promotes the standby when the primary does not answer".to_owned()]
    }

    /// There is no command line: whatever is asked, nothing is known and nothing is done.
    fn cli(&self, site: &Site, _: &[&str]) -> Result<Command> {
        Ok(site.command("false"))
    }
}

/// The newest version's programs, where Debian puts them.
fn newest_programs() -> Result<PathBuf> {
    let dirs = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL in /usr/lib/postgresql: name its programs with --pg-bin")?;
    let versions = dirs.filter_map(|dir| dir.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let newest = versions.max().context("no PostgreSQL in /usr/lib/postgresql: name its programs with --pg-bin")?;
    Ok(PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin")))
}

/// Until it is killed.
///
/// # Errors
/// The words make no sense, or a port is taken.
pub fn run(args: &PairArgs) -> Result<()> {
    let peers = args.peers.iter().map(|text| peer(text)).collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (args, local) = (args.clone(), LocalSet::new());
    local.block_on(&runtime, async move {
        let view = Rc::new(RefCell::new(View::of(&args.me, &peers)));
        let mut parts: JoinSet<Result<()>> = JoinSet::new();
        parts.spawn_local(look::watch(Rc::clone(&view)));
        parts.spawn_local(doors::page(Rc::clone(&view), PORTS.http));
        for (port, to_standby) in [(PORTS.auto, false), (PORTS.primary, false), (PORTS.standby, true)] {
            parts.spawn_local(doors::door(Rc::clone(&view), port, to_standby));
        }
        let place = peers.iter().position(|peer| peer.name == args.me).context("it is not one of the peers")?;
        match place {
            0 | 1 => drop(parts.spawn_local(server::tend(args, Rc::clone(&view), place == 0))),
            _ => drop(parts.spawn_local(look::promote_when_gone(Rc::clone(&view)))),
        }
        while let Some(ended) = parts.join_next().await {
            ended.context("a part panicked")??;
        }
        Ok(())
    })
}

fn peer(text: &str) -> Result<Peer> {
    let (name, address) = text.split_once('=').with_context(|| format!("{text}: write it as NAME=ADDRESS"))?;
    Ok(Peer { name: name.to_owned(), address: address.parse().with_context(|| format!("{address} is no address"))? })
}
