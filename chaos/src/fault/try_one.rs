//! One fault against a running cluster, by itself: for who writes a fault, and for who wants to see one.

use super::injected::{Ctx, Injected, Scale, inject};
use super::kinds::Expected;
use super::ledger::Ledger;
use crate::cluster::{Cluster, Options, Trilithon};
use crate::record::RunClock;
use crate::world::{Preset, Spec, World};
use anyhow::{Context as _, Result};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A write has to come through by then, whatever the fault was; more than the promise, so that its breach is measured.
const WRITABLE_LIMIT: Duration = Duration::from_secs(60);
const REDUNDANT_LIMIT: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Trial {
    pub name: &'static str,
    pub aim: String,
    pub held: Duration,
    /// `None`: it did not take hold, and nothing is concluded from it.
    pub proof: Option<String>,
    /// What kept it from being proved.
    pub missing: Vec<String>,
    /// Healing went wrong.
    pub heal_error: Option<String>,
    pub writable_after: Result<Duration, String>,
    pub redundant_after: Result<Duration, String>,
    /// Are all acknowledged writes on every node, once?
    pub ledger: Result<String, String>,
    pub expected: Expected,
}

impl Trial {
    /// Took hold, healed, and the cluster came back to full redundancy by itself.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.proof.is_some()
            && self.heal_error.is_none()
            && self.writable_after.is_ok()
            && self.redundant_after.is_ok()
            && self.ledger.is_ok()
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match (&self.proof, self.is_good()) {
            (None, _) => "INCONCLUSIVE",
            (Some(_), true) => "ok",
            (Some(_), false) => "BAD",
        };
        writeln!(f, "{word} {} at {}, held {:.1} s", self.name, self.aim, self.held.as_secs_f64())?;
        match &self.proof {
            Some(proof) => writeln!(f, "  proof      {proof}")?,
            None => writeln!(f, "  not proved {}", self.missing.join("; "))?,
        }
        if let Some(error) = &self.heal_error {
            writeln!(f, "  healing    {error}")?;
        }
        for (what, after) in [("writable  ", &self.writable_after), ("redundant ", &self.redundant_after)] {
            match after {
                Ok(time) => writeln!(f, "  {what} after {} ms", time.as_millis())?,
                Err(why) => writeln!(f, "  {what} NOT: {why}")?,
            }
        }
        match &self.ledger {
            Ok(words) => writeln!(f, "  ledger     {words}")?,
            Err(why) => writeln!(f, "  ledger     NOT: {why}")?,
        }
        match self.expected {
            Expected::Handled => Ok(()),
            Expected::Remedy(remedy) => writeln!(f, "  remedy     {remedy}"),
            Expected::Known(gap) => writeln!(f, "  known gap  {gap}"),
        }
    }
}

/// Inject the fault called `name`, hold it until it is proved and its least time is over, heal, and wait until all is well.
///
/// # Errors
/// There is no such fault, or it could not be injected. A cluster that does not come back is no error here: see [`Trial`].
pub fn try_one(name: &str, ctx: &Ctx<'_>) -> Result<Trial> {
    let fault = super::named(name).with_context(|| format!("no fault is called {name}; `chaos list` shows all"))?;
    until_whole(ctx).context("before the fault")?;
    let ledger = Ledger::open(ctx)?;
    let mut injected = inject(fault, ctx)?;
    let began = ctx.clock.now();
    hold(ctx, &mut injected);
    let (aim, proof) = (injected.aim(), injected.proof());
    let missing = injected.missing().into_iter().map(str::to_owned).collect();
    let heal_error = injected.heal().err().map(|e| format!("{e:#}"));
    let held = ctx.clock.now().since(began);
    let healed = ctx.clock.now();
    let in_words = |error: anyhow::Error| format!("{error:#}");
    let writable_after = until_written(ctx, &ledger);
    let redundant_after = until_whole(ctx).map(|_| ctx.clock.now().since(healed)).map_err(in_words);
    let ledger = ledger.close(ctx).map_err(in_words);
    Ok(Trial { name: fault.name, aim, held, proof, missing, heal_error, writable_after, redundant_after, ledger, expected: fault.expected })
}

/// Redundant, and nobody is missing: a member that was removed is no member, and would not be missed.
fn until_whole(ctx: &Ctx<'_>) -> Result<Duration> {
    let all = ctx.cluster.nodes().len();
    ctx.cluster.until("whole", REDUNDANT_LIMIT, |status| status.is_redundant() && status.members.len() == all)
}

/// Until a client's write is acknowledged.
fn until_written(ctx: &Ctx<'_>, ledger: &Ledger) -> Result<Duration, String> {
    let (began, before) = (ctx.clock.now(), ledger.count());
    while ledger.count() == before {
        if ctx.clock.now().since(began) > WRITABLE_LIMIT {
            return Err(format!("no write was acknowledged within {} s", WRITABLE_LIMIT.as_secs()));
        }
        ctx.cluster.tend(&ctx.clock);
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(ctx.clock.now().since(began))
}

/// For its least time, and on until it is proved, at most for its longest; node processes that end by themselves are started again.
fn hold(ctx: &Ctx<'_>, injected: &mut Injected<'_>) {
    let began = ctx.clock.now();
    let (least, most) = (began.after(injected.fault.hold.0), began.after(injected.fault.hold.1));
    loop {
        let proved = injected.proof().is_some();
        let now = ctx.clock.now();
        if (now >= least && proved) || now >= most {
            return;
        }
        ctx.cluster.tend(&ctx.clock);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// `fault NAME…` by itself: a world and a cluster, each fault in turn, its outcome printed. After a fault that the cluster did not
/// come back from, the others get a new world; the logs of the old one stay.
///
/// # Errors
/// The machine cannot carry a world, or the program does not start.
pub fn command(words: &[String]) -> Result<()> {
    let (flags, names): (Vec<&str>, Vec<&str>) = words.iter().map(String::as_str).partition(|w| w.starts_with("--"));
    let flag = |name: &str| flags.iter().find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
    let seed = flag("--seed").and_then(|s| s.parse().ok()).unwrap_or(1);
    let dir = PathBuf::from(flag("--dir").unwrap_or("/tmp/chaos-fault"));
    let preset = if flags.contains(&"--design") { Preset::Design } else { Preset::Lan };
    let (disks, clocks) = (!flags.contains(&"--no-disks"), !flags.contains(&"--no-clocks"));
    let scale = Scale { connections: flag("--connections").and_then(|n| n.parse().ok()).unwrap_or(2_000), ..Scale::default() };
    let mut left = &names[..];
    for number in 1.. {
        if left.is_empty() {
            break;
        }
        let spec = Spec { name: "fault".to_owned(), dir: dir.join(number.to_string()), sites: 3, preset, disks, clocks, seed };
        left = in_one_world(&spec, seed, scale, left)?;
    }
    Ok(())
}

/// Until the cluster does not come back. Gives the faults that are left.
fn in_one_world<'n>(spec: &Spec, seed: u64, scale: Scale, names: &'n [&'n str]) -> Result<&'n [&'n str]> {
    let world = World::up(spec)?;
    let binary = std::env::var_os("TRILITHON_BIN").map_or_else(|| "target/release/trilithon".into(), PathBuf::from);
    let cluster = Cluster::start(&world, Arc::new(Trilithon::new(Options { binary, ..Options::default() }, world.dir())?))?;
    let clock = RunClock::start();
    let ctx = Ctx { world: &world, cluster: &cluster, clock, seed, scale };
    let mut left = names;
    while let [name, rest @ ..] = left {
        left = rest;
        let trial = try_one(name, &ctx);
        let whole = trial.as_ref().is_ok_and(|t| t.redundant_after.is_ok());
        match trial {
            Ok(trial) => anstream::print!("{trial}"),
            Err(error) => anstream::println!("ERROR {name}: {error:#}"),
        }
        if !whole && cluster.until_redundant(Duration::from_secs(20)).is_err() {
            anstream::println!("  logs       {}", spec.dir.display());
            for target in super::aim::all(&ctx) {
                // On the disk, which ends with the world.
                let _ = std::fs::copy(target.postgres_log(), target.site.logs().join("postgres.log"));
            }
            break;
        }
    }
    cluster.kill();
    world.down()?;
    Ok(left)
}
