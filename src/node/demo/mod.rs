//! `trilithon demo`: a whole cluster on this machine, to look at, to break and to test with.
//!
//! One `trilithon node` process for each datacenter, exactly as in production, from configurations that a person could have
//! written; between them userland relays that can delay and cut. What runs is found through `<dir>/cluster.json`, and
//! `--kill`, `--start`, `--cut`, `--heal` and `--stop` reach it through a socket in the same folder.
//! Deliberately absent: anything that a real cluster would not have. The demo starts processes and carries bytes; the rest is
//! the product.
//!
//! Entry point: [`run`].

mod control;
mod files;
mod plan;
mod processes;
mod progress;
mod relay;
mod source;
mod status;
mod supervisor;

pub use plan::{ClusterFile, NodeEntry};

use anyhow::{Context as _, bail};
use control::Request;
use files::Folder;
use plan::Plan;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// Three datacenters on this machine, or what to do with those that run.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  trilithon demo\n  trilithon demo --detach --wan-ms 30\n  trilithon demo --kill dc1\n  trilithon demo --stop"
)]
pub struct Args {
    /// Datacenters.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(plan::SITES_MAX)))]
    pub nodes: u16,
    /// The last datacenter only votes: it has no Postgres.
    #[arg(long)]
    pub witness: bool,
    /// Folder of the demo.
    #[arg(long, value_name = "DIR", default_value = ".demo")]
    pub dir: PathBuf,
    /// Keep the folder, and with it the data, when the demo stops; the next start goes on with it.
    #[arg(long)]
    pub keep: bool,
    /// Folder of the programs of PostgreSQL; found by itself otherwise.
    #[arg(long, value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// The first datacenter's ports begin 32 above it, each further one's ten higher.
    #[arg(long, value_name = "PORT", default_value_t = 15400, value_parser = clap::value_parser!(u16).range(1024..=64000))]
    pub base_port: u16,
    /// Delay between datacenters, in milliseconds there and back.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=2000))]
    pub wan_ms: u64,
    /// Return once the cluster is ready; `--stop` ends it.
    #[arg(short, long)]
    pub detach: bool,
    /// Stop the demo that runs.
    #[arg(long, group = "request")]
    pub stop: bool,
    /// Kill (-9) a datacenter's node and its Postgres.
    #[arg(long, value_name = "NODE", group = "request")]
    pub kill: Option<String>,
    /// Start a datacenter's node again.
    #[arg(long, value_name = "NODE", group = "request")]
    pub start: Option<String>,
    /// Cut a datacenter off from the others.
    #[arg(long, value_name = "NODE", group = "request")]
    pub cut: Option<String>,
    /// Join all datacenters again.
    #[arg(long, group = "request")]
    pub heal: bool,
    /// The process in the background behind `--detach`.
    #[arg(long, hide = true)]
    pub supervise: bool,
}

impl Args {
    /// What a running demo is to do, if that is what was asked for.
    fn request(&self) -> Option<Request> {
        let named = [
            self.kill.clone().map(Request::Kill),
            self.start.clone().map(Request::Start),
            self.cut.clone().map(Request::Cut),
            self.stop.then_some(Request::Stop),
            self.heal.then_some(Request::Heal),
        ];
        named.into_iter().flatten().next()
    }

    /// The same demo, in words for a child process.
    fn words(&self, dir: &Path) -> Vec<String> {
        let mut words = vec!["demo".to_owned(), "--supervise".to_owned()];
        words.extend(["--nodes".to_owned(), self.nodes.to_string(), "--dir".to_owned(), dir.display().to_string()]);
        words.extend(["--base-port".to_owned(), self.base_port.to_string(), "--wan-ms".to_owned(), self.wan_ms.to_string()]);
        words.extend(self.witness.then(|| "--witness".to_owned()));
        words.extend(self.keep.then(|| "--keep".to_owned()));
        words.extend(self.pg_bin.iter().flat_map(|bin| ["--pg-bin".to_owned(), bin.display().to_string()]));
        words
    }
}

/// Exit code 3: refused, with the reason and what would make it possible.
const REFUSED: u8 = 3;
/// How often the command in front looks at the one in the background.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Start a demo, or tell the running one something.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(request) = args.request() {
        return tell(args, &request);
    }
    anyhow::ensure!(!args.witness || args.nodes > 1, "a lone witness has no data to vote about: use --nodes 2 or more");
    if control::is_running(&args.dir) {
        eprintln!("a demo runs in {} already; stop it with --stop, or choose another --dir and --base-port", args.dir.display());
        return Ok(ExitCode::from(REFUSED));
    }
    let folder = Folder::open(&args.dir, args.base_port)?;
    folder.close();
    if args.detach {
        return detach(args, &folder);
    }
    if args.supervise {
        // A session of its own: the terminal's hang-up is not for us. Fails only for a leader of a group, who has one.
        let _ = rustix::process::setsid();
    }
    let plan = Plan::new(args, &folder.dir, &folder.data);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(supervisor::run(args, folder, plan))?;
    Ok(ExitCode::SUCCESS)
}

/// Start the supervisor in the background, show what it says until the cluster is ready.
fn detach(args: &Args, folder: &Folder) -> anyhow::Result<ExitCode> {
    let path = folder.dir.join("demo.log");
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let program = std::env::current_exe().context("cannot find the running program")?;
    let mut child = Command::new(program)
        .args(args.words(&folder.dir))
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log file")?)
        .stderr(log)
        .spawn()
        .context("cannot start the demo in the background")?;
    let mut shown = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let ready = follow(&mut child, &mut shown, &Folder::cluster_file(&folder.dir))?;
    if !ready {
        bail!("the demo did not start; its log is {}", path.display());
    }
    println!("It goes on in the background; stop it with: trilithon demo --dir {} --stop", folder.dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Copy the log to the terminal until `ready` exists (true) or the child ends (false); the child bounds its own start.
fn follow(child: &mut Child, log: &mut File, ready: &Path) -> anyhow::Result<bool> {
    loop {
        // Looked at before the log is copied, so that nothing written earlier is missed.
        let ended = child.try_wait().context("cannot watch the demo")?.is_some();
        let is_ready = ready.exists();
        let mut text = String::new();
        log.read_to_string(&mut text).context("cannot read the demo's log")?;
        print!("{text}");
        if is_ready || ended {
            return Ok(is_ready && !ended);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Pass a request on to the demo in `--dir`.
fn tell(args: &Args, request: &Request) -> anyhow::Result<ExitCode> {
    let dir = Folder::existing(&args.dir)?;
    if !control::is_running(&dir) {
        return tell_nobody(&dir, request, args.keep);
    }
    let answer = control::ask(&dir, request)?;
    if answer.done {
        println!("{}", answer.message);
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{}", answer.message);
    Ok(ExitCode::FAILURE)
}

/// The supervisor is gone (killed, perhaps): what its nodes left can still be stopped.
fn tell_nobody(dir: &Path, request: &Request, keep: bool) -> anyhow::Result<ExitCode> {
    if *request != Request::Stop {
        eprintln!("the demo in {} does not run; start it with: trilithon demo --dir {}", dir.display(), dir.display());
        return Ok(ExitCode::from(REFUSED));
    }
    let folder = Folder::open(dir, 0)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    for entry in fs::read_dir(&folder.data).with_context(|| format!("cannot list {}", folder.data.display()))?.flatten() {
        runtime.block_on(processes::kill_all(&entry.path()))?;
    }
    folder.close();
    if !keep {
        folder.remove()?;
    }
    println!("stopped what was left of the demo in {}", dir.display());
    Ok(ExitCode::SUCCESS)
}
