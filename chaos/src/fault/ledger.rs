//! A small workload for [`super::try_one`]: a client in each datacenter writes numbers through its proxy and keeps a ledger of what was
//! acknowledged; afterwards every node must hold it all, once. Another client in each reads what the primary's listener shows, which
//! must never lack what was acknowledged before. The run's own workloads and checkers are far stricter.

use super::aim::{self, Target};
use super::injected::Ctx;
use super::sessions::Login;
use crate::cluster;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PAUSE: Duration = Duration::from_millis(40);
/// A held transaction waits 30 s for a primary.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);

/// Clients at work.
pub struct Ledger {
    stop: CancellationToken,
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    /// Reads that came too late to be true, in words.
    stale: Arc<Mutex<Vec<String>>>,
}

impl Ledger {
    /// Begin to write.
    ///
    /// # Errors
    /// The table cannot be made.
    pub fn open(ctx: &Ctx<'_>) -> Result<Ledger> {
        let first = aim::all(ctx).into_iter().next().context("no datacenter")?;
        ctx.cluster.sql(first.name(), cluster::Target::Proxy, "CREATE TABLE IF NOT EXISTS chaos_ledger (id bigint NOT NULL)")?;
        let there = ctx.cluster.sql(first.name(), cluster::Target::Proxy, "SELECT count(*) FROM chaos_ledger")?;
        let there = there.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).context("a count")?;
        let ledger = Ledger { stop: CancellationToken::new(), acknowledged: Arc::default(), stale: Arc::default() };
        // Numbers of trials after each other never meet.
        let base = i64::try_from(ctx.clock.now().0).context("the clock")?;
        for target in aim::all(ctx) {
            let (login, stop, acknowledged) =
                (Login::of(ctx, ctx.cluster.ports().primary), ledger.stop.clone(), Arc::clone(&ledger.acknowledged));
            let mut id = base * 1_000 + i64::try_from(target.index()).unwrap_or(0) * 100_000_000_000_000;
            let client = move || async move {
                let writing = async {
                    loop {
                        let session = login.with(async |client| {
                            loop {
                                id += 1;
                                client.batch_execute(&format!("INSERT INTO chaos_ledger VALUES ({id})")).await?;
                                acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                                tokio::time::sleep(PAUSE).await;
                            }
                        });
                        let _: Result<Result<()>, _> = tokio::time::timeout(ANSWER_LIMIT * 4, session).await;
                        tokio::time::sleep(PAUSE).await;
                    }
                };
                let _: Option<()> = stop.run_until_cancelled(writing).await;
            };
            drop(target.site.runtime().spawn(client));
            ledger.read(ctx, target, there);
        }
        Ok(ledger)
    }

    /// A client that reads through the primary's listener: what was acknowledged to anybody before it asked, it must see.
    fn read(&self, ctx: &Ctx<'_>, target: Target<'_>, there: usize) {
        let (login, stop, clock) = (Login::of(ctx, ctx.cluster.ports().primary), self.stop.clone(), ctx.clock);
        let (acknowledged, stale, name) = (Arc::clone(&self.acknowledged), Arc::clone(&self.stale), target.name().to_owned());
        let client = move || async move {
            let reading = async {
                loop {
                    let session = login.with(async |client| {
                        loop {
                            let (asked, before) = (clock.now(), there + acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len());
                            let row = client.query_one("SELECT count(*), host(inet_server_addr()) FROM chaos_ledger", &[]).await?;
                            let (seen, server) = (usize::try_from(row.get::<_, i64>(0)).unwrap_or(0), row.get::<_, Option<String>>(1));
                            if seen < before {
                                let words = format!("{name} asked at {} µs and saw {seen} of {before} writes on {server:?}", asked.0);
                                stale.lock().unwrap_or_else(PoisonError::into_inner).push(words);
                            }
                            tokio::time::sleep(PAUSE).await;
                        }
                    });
                    let _: Result<Result<()>, _> = tokio::time::timeout(ANSWER_LIMIT * 4, session).await;
                    tokio::time::sleep(PAUSE).await;
                }
            };
            let _: Option<()> = stop.run_until_cancelled(reading).await;
        };
        drop(target.site.runtime().spawn(client));
    }

    /// How many writes were acknowledged so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// End the writing and look on every node. The figures in words.
    ///
    /// # Errors
    /// A node lacks an acknowledged write, has one twice, or cannot be read.
    pub fn close(self, ctx: &Ctx<'_>) -> Result<String> {
        self.stop.cancel();
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for target in aim::all(ctx) {
            let ids = caught_up(ctx, target, &acknowledged)?;
            let there: BTreeSet<i64> = ids.iter().copied().collect();
            let lost: Vec<&i64> = acknowledged.difference(&there).collect();
            if !lost.is_empty() {
                bail!(
                    "{} of {} acknowledged writes are not on {}: {:?}",
                    lost.len(),
                    acknowledged.len(),
                    target.name(),
                    &lost[..lost.len().min(5)]
                );
            }
            if there.len() != ids.len() {
                bail!("{} writes are on {} more than once", ids.len() - there.len(), target.name());
            }
        }
        let stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = stale.first() {
            bail!("{} reads through the primary's listener missed acknowledged writes; the first: {first}", stale.len());
        }
        Ok(format!("{} acknowledged writes are on every node, once", acknowledged.len()))
    }
}

/// What is on `target`, once it has replayed what it should have.
fn caught_up(ctx: &Ctx<'_>, target: Target<'_>, wanted: &BTreeSet<i64>) -> Result<Vec<i64>> {
    const LIMIT: Duration = Duration::from_secs(15);
    let end = ctx.clock.now().after(LIMIT);
    loop {
        let read = target.sql("SELECT id FROM chaos_ledger");
        let ids: Result<Vec<i64>> = read.and_then(|rows| {
            let numbers = rows.into_iter().map(|row| row.first().cloned().flatten().and_then(|id| id.parse().ok()).context("a number"));
            numbers.collect()
        });
        match ids {
            Ok(ids) if wanted.is_subset(&ids.iter().copied().collect()) || ctx.clock.now() > end => return Ok(ids),
            Err(error) if ctx.clock.now() > end => return Err(error),
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
