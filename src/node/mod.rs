//! One datacenter's process: puts the parts together, keeps them running, and ends them in order.
//!
//! ```text
//!   open ──► sockets, data directory, certificates        refused here: nothing was touched
//!   assemble ──► consensus ──► (a member at last) ──► agent, lease, controller, proxy
//!   supervise ──► a part that ends by itself ends the node; SIGTERM ends it in order (stop)
//! ```
//! Here alone tasks of different parts meet, so here alone they are spawned and watched. Deliberately absent: decisions; and any
//! repair in place: a part that broke ends the process, Postgres fenced first where its right to serve is in doubt, and whoever
//! supervises the process starts it again.
//!
//! Entry points: [`run`] for `trilithon node`, [`demo::run`] for `trilithon demo`, [`replay::run`] for `trilithon replay`.

mod assemble;
mod core_trace;
mod data_dir;
pub mod demo;
mod feeds;
mod open;
mod proxy;
mod reads;
mod reload;
pub mod replay;
mod start;
mod stop;
mod supervise;

use crate::config::Config;
use crate::telemetry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;

/// One datacenter's process, in the foreground.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  trilithon node --config /etc/trilithon/dc1.toml")]
pub struct Args {
    /// The node's configuration; `trilithon config init` writes one.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Run until a signal, or until a part breaks. What went wrong is on stderr.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may be JSON, or not set up yet; a person at the terminal reads this line.
            anstream::eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Clients need two descriptors each, and the usual soft limit is 1024. Running out of them in a failover would be a second failure.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Refused only where the limit stands already.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn try_run(args: &Args) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let config = Config::load(&args.config)?;
    let log = telemetry::init_logging(config.telemetry.format, &config.telemetry.level)?;
    #[cfg(feature = "bugs")]
    if let Some(bug) = crate::bug::chosen() {
        tracing::warn!(bug = bug.name(), "a seeded bug is switched on");
    }
    // One thread for everything but the proxy, the lease and the log, which have their own: the work is small and mostly waiting, and a
    // scheduler for several threads wakes up twice for each timer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(supervise::run(config, &args.config, log));
    // Tasks that hang in a system call must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    result
}
