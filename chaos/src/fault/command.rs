//! `chaos try`: its words, a world and a cluster for the trials, and what came of all of them.

use super::injected::{Ctx, Scale};
use super::kinds::{Expected, Fault};
use super::misbehaved::Misbehaved;
use super::try_one::try_one;
use crate::cluster::{Cluster, Options, Trilithon};
use crate::record::{Outcome, RunClock};
use crate::run::{Interrupted, Pace};
use crate::world::{Interrupts, Preset, Spec, World};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What may be said beside the names of faults.
pub const FLAGS: &str = "--seed=N, --dir=DIR, --design, --no-disks, --no-clocks, --connections=N";

/// What was asked for.
#[derive(Debug)]
struct Wanted {
    faults: Vec<&'static Fault>,
    seed: u64,
    dir: PathBuf,
    preset: Preset,
    disks: bool,
    clocks: bool,
    scale: Scale,
}

impl Wanted {
    fn parse(words: &[String]) -> Result<Wanted> {
        let mut wanted = Wanted {
            faults: Vec::new(),
            seed: 1,
            dir: "/tmp/chaos-fault".into(),
            preset: Preset::Lan,
            disks: true,
            clocks: true,
            scale: Scale::default(),
        };
        for word in words {
            let (flag, value) = word.split_once('=').map_or((word.as_str(), None), |(flag, value)| (flag, Some(value)));
            match (flag, value) {
                ("--seed", Some(seed)) => wanted.seed = seed.parse().context("--seed=N wants a number")?,
                ("--dir", Some(dir)) => wanted.dir = dir.into(),
                ("--design", None) => wanted.preset = Preset::Design,
                ("--no-disks", None) => wanted.disks = false,
                ("--no-clocks", None) => wanted.clocks = false,
                ("--connections", Some(count)) => wanted.scale.connections = count.parse().context("--connections=N wants a number")?,
                _ if word.starts_with("--") => bail!("there is no {word} here, only {FLAGS}"),
                _ => {
                    let fault = super::named(word).with_context(|| format!("no fault is called {word}; `chaos list` shows all"))?;
                    wanted.faults.push(fault);
                }
            }
        }
        if wanted.faults.is_empty() {
            bail!("name a fault; `chaos list` shows all");
        }
        Ok(wanted)
    }

    fn world(&self, number: usize) -> Spec {
        let (dir, preset, disks, clocks, seed) = (self.dir.join(number.to_string()), self.preset, self.disks, self.clocks, self.seed);
        Spec { name: "fault".to_owned(), dir, sites: 3, preset, disks, clocks, seed }
    }
}

/// What came of all trials.
pub struct Tried {
    /// Passed, where a fault that is not handled was not handled, too.
    pub worst: Outcome,
    /// What ended them before all were made, or was left behind.
    pub trouble: Option<anyhow::Error>,
}

/// Each fault in turn, its outcome printed. After one that the cluster did not come back from, the others get a new world; the logs of
/// the old one stay.
///
/// # Errors
/// A word is not known: which, and what is.
pub fn command(words: &[String], interrupts: &Interrupts) -> Result<Tried> {
    let wanted = Wanted::parse(words)?;
    let token = interrupts.token().clone();
    let pace = Pace::new(RunClock::start(), move || token.is_cancelled());
    let mut trials = Trials { wanted: &wanted, pace, left: &wanted.faults, worst: Outcome::Passed };
    let mut trouble = None;
    for number in 1.. {
        if trials.left.is_empty() || trouble.is_some() {
            break;
        }
        trouble = trials.in_one_world(&wanted.world(number)).err();
    }
    Ok(Tried { worst: trials.worst, trouble })
}

/// How far it has come.
struct Trials<'w> {
    wanted: &'w Wanted,
    pace: Pace,
    left: &'w [&'static Fault],
    worst: Outcome,
}

impl Trials<'_> {
    /// Until none is left, or the cluster does not come back.
    fn in_one_world(&mut self, spec: &Spec) -> Result<()> {
        let world = World::up(spec)?;
        let tried = self.in_turn(&world);
        let down = world.down().context("the world is not down in full");
        match (tried, down) {
            (tried, Ok(())) => tried,
            (Ok(()), Err(down)) => Err(down),
            (Err(error), Err(down)) => Err(down.context(format!("{error:#}"))),
        }
    }

    fn in_turn(&mut self, world: &World) -> Result<()> {
        let binary = std::env::var_os("TRILITHON_BIN").map_or_else(|| "target/release/trilithon".into(), PathBuf::from);
        self.pace.check()?;
        let cluster = Cluster::start(world, Arc::new(Trilithon::new(Options { binary, ..Options::default() }, world.dir())?))?;
        let ctx = Ctx { world, cluster: &cluster, clock: self.pace.clock, seed: self.wanted.seed, scale: self.wanted.scale };
        while let [fault, rest @ ..] = self.left {
            self.left = rest;
            let trial = try_one(fault, &ctx, &self.pace);
            let whole = trial.as_ref().is_ok_and(|t| t.redundant_after.is_ok());
            match trial {
                Ok(trial) => {
                    self.worst = self.worst.max(trial.outcome());
                    anstream::print!("{trial}");
                }
                Err(error) if error.is::<Interrupted>() => {
                    cluster.kill();
                    return Err(error);
                }
                Err(error) => {
                    let outcome = of_error(fault, &error);
                    self.worst = self.worst.max(outcome);
                    anstream::println!("{} {}: {error:#}", if outcome == Outcome::Failed { "BAD" } else { "ERROR" }, fault.name);
                }
            }
            if !whole && cluster.until_redundant(Duration::from_secs(20)).is_err() {
                anstream::println!("  logs       {}", world.dir().display());
                for target in super::aim::all(&ctx) {
                    // On the disk, which ends with the world.
                    let _ = std::fs::copy(target.postgres_log(), target.site.logs().join("postgres.log"));
                }
                break;
            }
        }
        cluster.kill();
        Ok(())
    }
}

/// A trial that came to no end says nothing, unless it ended because the program did wrong.
fn of_error(fault: &Fault, error: &anyhow::Error) -> Outcome {
    if error.is::<Misbehaved>() && fault.expected == Expected::Handled { Outcome::Failed } else { Outcome::Inconclusive }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Wanted> {
        Wanted::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_are_faults_and_flags_and_nothing_else() {
        let wanted = parse(&["kill-node", "--seed=7", "--design", "--connections=50", "isolate-primary", "--no-disks"]).unwrap();
        assert_eq!(wanted.faults.iter().map(|f| f.name).collect::<Vec<_>>(), ["kill-node", "isolate-primary"]);
        assert_eq!((wanted.seed, wanted.preset, wanted.disks, wanted.clocks), (7, Preset::Design, false, true));
        assert_eq!(wanted.scale.connections, 50);
        for unknown in ["--preset=far", "--seed", "--design=yes", "--no-disk"] {
            let error = parse(&["kill-node", unknown]).unwrap_err().to_string();
            assert!(error.contains(unknown) && error.contains("--no-clocks"), "{error}");
        }
        assert!(parse(&["kill-node", "--seed=one"]).unwrap_err().to_string().contains("--seed"));
        assert!(parse(&["kill-nod"]).unwrap_err().to_string().contains("kill-nod"));
        assert!(parse(&["--design"]).is_err(), "no fault at all is nothing that could pass");
    }

    #[test]
    fn an_error_concludes_nothing_unless_it_is_the_programs() {
        let fault = super::super::named("terminate-node").unwrap();
        assert_eq!(of_error(fault, &anyhow::anyhow!("there is no primary at this moment")), Outcome::Inconclusive);
        let wrong = anyhow::Error::from(Misbehaved("dc1 ended with exit status: 3".to_owned())).context("it was not injected");
        assert_eq!(of_error(fault, &wrong), Outcome::Failed);
    }
}
