//! Clients in each datacenter, and the histories they keep.
//!
//! ```text
//!   start(places, login, plan) ─► one job per place, on the place's own runtime ─► a dozen clients each
//!        │                                     │ each: keep a pace, one operation at a time, a deadline on every statement
//!        │                                     ▼
//!   Running::progress()                     Histories ◄─ Running::stop()
//! ```
//! Clients judge nothing: they write down what they asked, what they were told and when; `check` judges. They know the failure
//! contract only as far as any client must: which answers mean "not applied" ([`outcome`]).

pub mod administrator;
pub mod bank;
pub mod client;
pub mod final_reads;
pub mod final_state;
pub mod glimpse;
pub mod history;
pub mod list_append;
pub mod outcome;
pub mod place;
pub mod register;
pub mod schema;
pub mod session;
pub mod set_add;
pub mod site;
pub mod tally;
pub mod versions;
pub mod watcher;

#[cfg(test)]
mod tests;

use crate::record::RunClock;
use administrator::{CommandLog, Orders};
use anyhow::{Context as _, Result, anyhow, ensure};
use client::Shared;
use history::{Door, Histories};
use place::{Job, Login, Place};
use site::{SiteJob, run_site};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tally::{Progress, Tally};
use tokio_util::sync::CancellationToken;

/// What the clients do.
#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    /// Operations a second of all clients together, writes and reads. Two cores that also carry three PostgreSQL bear about 150.
    pub per_second: f64,
    /// Of each statement and connection.
    pub deadline: Duration,
    /// Watchers also write with `synchronous_commit = local`, which leaves a deposed primary something to rewind.
    pub watch_alone: bool,
    /// Some clients speak to PostgreSQL without a proxy.
    pub direct: bool,
    pub administrator: Option<Orders>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { seed: 1, per_second: 150.0, deadline: Duration::from_secs(10), watch_alone: true, direct: true, administrator: None }
    }
}

/// Clients at work.
pub struct Running {
    stop: CancellationToken,
    clock: RunClock,
    deadline: Duration,
    sites: Vec<String>,
    parts: Vec<Receiver<Result<Histories>>>,
    tally: Arc<Tally>,
    commands: CommandLog,
    administrator: Option<JoinHandle<()>>,
}

/// Makes the tables, then starts all clients.
///
/// # Errors
/// No places, tables that cannot be made within a minute, threads that cannot be started.
pub fn start(places: &[Place], login: &Login, clock: RunClock, plan: &Plan) -> Result<Running> {
    let first = places.first().context("a workload needs at least one datacenter")?;
    ensure!(plan.per_second > 0.0, "the workload's rate must be above zero");
    prepare(first, login, clock)?;
    let sites: Vec<String> = places.iter().map(|place| place.name.clone()).collect();
    let tally = Arc::new(Tally::new(&sites));
    let shared = Arc::new(Shared::default());
    let stop = CancellationToken::new();
    let mut parts = Vec::new();
    for (index, place) in places.iter().enumerate() {
        let (send, receive) = sync_channel(1);
        let job = SiteJob {
            index: u8::try_from(index).context("more datacenters than a workload can number")?,
            places: places.iter().map(|p| (p.name.clone(), p.host.clone())).collect(),
            ports: place.ports,
            login: login.clone(),
            clock,
            plan: plan.clone(),
            stop: stop.clone(),
            tally: Arc::clone(&tally),
            shared: Arc::clone(&shared),
        };
        let work: Job = Box::new(move || {
            Box::pin(async move {
                // Nobody listens any more when the run was abandoned.
                let _ = send.send(run_site(job).await);
            })
        });
        (place.spawn)(work);
        parts.push(receive);
    }
    let commands = CommandLog::default();
    let administrator = match &plan.administrator {
        Some(orders) => Some(administrator::start(
            orders.clone(),
            clock,
            commands.clone(),
            stop.clone(),
            client::rng(plan.seed, u32::from(u8::MAX) << 8),
        )?),
        None => None,
    };
    Ok(Running { stop, clock, deadline: plan.deadline, sites, parts, tally, commands, administrator })
}

impl Running {
    /// Where it stands.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.tally.progress()
    }

    /// Lets every client end what it does, and returns what they kept. Blocks for a few deadlines at most.
    ///
    /// # Errors
    /// A site's clients did not come back, or one of them panicked; then nothing can be concluded from the run.
    pub fn stop(mut self) -> Result<Histories> {
        self.stop.cancel();
        let patience = self.deadline * 4 + Duration::from_secs(30);
        let mut all =
            Histories { sites: self.sites.clone(), bank_sum: i64::from(schema::ACCOUNTS) * schema::BALANCE, ..Histories::default() };
        for (part, site) in self.parts.iter().zip(&self.sites) {
            let histories = part.recv_timeout(patience).map_err(|error| match error {
                RecvTimeoutError::Timeout => {
                    anyhow!("the clients in {site} did not end within {patience:?}; is the site's runtime blocked?")
                }
                RecvTimeoutError::Disconnected => anyhow!("the clients in {site} were dropped; did the site's runtime end before them?"),
            })?;
            all.absorb(histories.with_context(|| format!("the clients in {site}"))?);
        }
        if let Some(administrator) = self.administrator.take() {
            administrator.join().map_err(|_| anyhow!("the administrator's thread panicked"))?;
        }
        all.commands.extend(self.commands.all());
        (all.samples, all.outages) = self.tally.finish(self.clock.now());
        Ok(all)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Makes the tables through the primary door of a place.
fn prepare(place: &Place, login: &Login, clock: RunClock) -> Result<()> {
    const TRIES: u32 = 20;
    const PATIENCE: Duration = Duration::from_secs(15);
    let (send, receive) = sync_channel(1);
    let (host, ports, login) = (place.host.clone(), place.ports, login.clone());
    let work: Job = Box::new(move || {
        Box::pin(async move {
            let mut last = Ok(());
            for _ in 0..TRIES {
                last = site::prepare_once(&host, ports, &login, Door::Primary, clock, PATIENCE).await;
                if last.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let _ = send.send(last);
        })
    });
    (place.spawn)(work);
    receive
        .recv_timeout(PATIENCE * TRIES)
        .map_err(|_| anyhow!("making the workloads' tables took too long in {}; is it writable?", place.name))?
}
