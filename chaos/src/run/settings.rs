//! What a run is made with, and the words that repeat it.

use super::plan::{Means, Mode, Plan};
use crate::cluster::{Options, Patroni, Profile, System, Trilithon};
use crate::fault::{self, Scale};
use crate::pair::Pair;
use crate::world::{Preset, Spec, World};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Which system is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    #[default]
    Trilithon,
    Patroni(Profile),
    /// The negative control: plain asynchronous replication, promoted by a script.
    Pair,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub system: Which,
    /// Where `scripts/peers.sh` installed what is compared.
    pub peers: PathBuf,
    pub binary: PathBuf,
    pub pg_bin: Option<PathBuf>,
    pub seed: u64,
    pub mode: Mode,
    /// No step begins after it; `None`: as long as the plan has steps.
    pub minutes: Option<Duration>,
    /// How long every fault holds; `None`: as the plan says.
    pub hold: Option<Duration>,
    /// Steps of the plan that are left out at its beginning.
    pub skip: usize,
    pub steps: Option<usize>,
    pub preset: Preset,
    pub disks: bool,
    pub clocks: bool,
    pub witness: bool,
    /// Also faults that are known not to be handled.
    pub gaps: bool,
    /// The world's folder.
    pub dir: PathBuf,
    /// Leave it where it is afterwards.
    pub keep: bool,
    /// Record and logs go here.
    pub out: PathBuf,
    /// Configuration of the nodes: section, key, TOML literal.
    pub set: Vec<(String, String, String)>,
    /// Environment of the nodes.
    pub environment: Vec<(String, String)>,
    /// Writes per second of all clients together.
    pub rate: f64,
    /// Somebody asks for switchovers all the time.
    pub administrator: bool,
    /// Nodes write down what their core does.
    pub core_trace: bool,
    pub stop_at_first: bool,
    /// Seeded bugs are hunted: what does not come back soon is caught, and nobody helps it. The program without a bug is held to the same.
    pub hunting: bool,
    /// Words of the command line that are not said by the fields above.
    pub words: Vec<String>,
}

impl Settings {
    /// # Errors
    /// A fault is not in the catalogue, or the world allows none.
    pub fn plan(&self) -> Result<Plan> {
        let means = Means { disks: self.disks, shim: self.clocks, gaps: self.gaps, peer: self.system != Which::Trilithon };
        Plan::new(self.seed, self.mode.clone(), means, fault::catalogue())
    }

    /// What can be said before a world is built.
    ///
    /// # Errors
    /// There is no program to test, or something was said that this system does not have.
    pub fn check(&self) -> Result<()> {
        if self.system != Which::Trilithon {
            if self.witness || !self.set.is_empty() {
                bail!("--witness and --set are for Trilithon: a peer's settings are those of its profile");
            }
            // A peer's programs are looked for when it is set up: there are many.
            return Ok(());
        }
        let shown = self.binary.display();
        self.binary.canonicalize().map(drop).with_context(|| {
            format!("there is no program at {shown}: build it (`cargo build --release --bin trilithon`), or name it with --binary")
        })
    }

    /// How long the steps will take, about.
    pub fn expected(&self) -> Duration {
        /// From the heal until all stream, as a rule.
        const RETURN: Duration = Duration::from_secs(8);
        let steps = self.plan().into_iter().flat_map(|plan| plan.skip(self.skip).take(self.steps.unwrap_or(10_000)));
        if self.mode == Mode::Calm {
            return self.minutes.unwrap_or_default();
        }
        let total = steps.map(|step| self.hold.unwrap_or(step.hold) + step.pause + RETURN).sum();
        self.minutes.map_or(total, |minutes| minutes.min(total))
    }

    pub fn world(&self) -> Spec {
        Spec {
            name: format!("s{}", self.seed),
            dir: self.dir.clone(),
            sites: 3,
            preset: self.preset,
            disks: self.disks,
            clocks: self.clocks,
            seed: self.seed,
        }
    }

    /// What runs in `world`.
    ///
    /// # Errors
    /// A program is missing: which, and how to get it.
    pub fn system(&self, world: &World) -> Result<Arc<dyn System>> {
        Ok(match self.system {
            Which::Trilithon => Arc::new(Trilithon::new(self.options(), world.dir())?),
            Which::Pair => Arc::new(Pair::new(self.pg_bin.as_deref(), world.sites())?),
            Which::Patroni(profile) => Arc::new(Patroni::new(profile, &self.peers, self.pg_bin.as_deref(), world.dir())?),
        })
    }

    fn options(&self) -> Options {
        let mut options = Options { binary: self.binary.clone(), pg_bin: self.pg_bin.clone(), ..Options::default() };
        options.witness = self.witness.then(|| "dc3".to_owned());
        if self.preset == Preset::Far {
            // As the example configuration says: above one round trip, and at least twice the heartbeat.
            options.set("consensus", "heartbeat", "\"400ms\"");
            options.set("consensus", "election_timeout", "\"1500ms\"");
            options.set("ha", "lease_ttl", "\"8s\"");
        }
        for (section, key, literal) in &self.set {
            options.set(section, key, literal);
        }
        options.core_trace = self.core_trace;
        options.environment = self.environment.iter().cloned().collect();
        options
    }

    pub fn scale(&self) -> Scale {
        Scale::default()
    }

    pub fn world_in_words(&self) -> String {
        let lines = match self.preset {
            Preset::Lan => "three datacenters side by side",
            Preset::Design => "dc1–dc2 15 ms, dc1–dc3 and dc2–dc3 40 ms round trip, with jitter",
            Preset::Far => "200 ms round trip, 5 % loss each way",
        };
        let disks = if self.disks { "fault-injecting disks" } else { "no disks of its own" };
        let witness = if self.witness { "; dc3 is a witness" } else { "" };
        format!("{lines}; {disks}{witness}")
    }

    /// The words that repeat it.
    pub fn command(&self) -> String {
        let mut words = vec!["chaos".to_owned(), "replay".to_owned(), self.seed.to_string()];
        words.extend(self.words.iter().cloned());
        words.join(" ")
    }
}
