//! Words of the command line. What they mean is in [`crate::run`].

use crate::cluster::Profile;
use crate::fault::{FLAGS, Phase};
use crate::pair::PairArgs;
use crate::run::{Listed, Mode, SHORT, STANDARD, Settings, Which, compared, listed};
use crate::world::Preset;
use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Breaks whole Trilithon clusters (and their peers) in worlds of its own, and checks every promise on what clients saw.
#[derive(Debug, Parser)]
#[command(
    name = "chaos",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 passed, 1 failed, 2 could not run, 3 inconclusive, 130 interrupted.\nIt needs root, /dev/net/tun, and /dev/fuse for disks; it does not touch the network of this machine."
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run faults against a cluster: the fixed list, or what a seed decides.
    #[command(
        after_help = "Example:\n  chaos run                              the fixed list, about ten minutes\n  chaos run --short                      its short form\n  chaos run --minutes 30 --seed 7        what the seed decides\n  chaos run --fault freeze-datacenter    one fault in all its phases\n  chaos run --calm --minutes 120 --preset far    nothing is broken, and nothing may happen"
    )]
    Run(RunArgs),
    /// Run again what a seed decided; a failed run prints the whole command.
    #[command(after_help = "Example:\n  chaos replay 7 --minutes 30\n  chaos replay 7 --skip 11 --steps 1")]
    Replay(ReplayArgs),
    /// Run after run with rising seeds, until one fails or Ctrl-C.
    #[command(after_help = "Example:\n  chaos soak --minutes 30 --seed 100")]
    Soak(RunArgs),
    /// One fault after the other against a cluster that nobody else uses: for who writes a fault.
    #[command(
        after_help = "Exit code: that of the worst outcome; a fault that is known not to be handled fails nothing.\n\nExample:\n  chaos try isolate-primary power-loss --design"
    )]
    Try {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "FAULT", help = format!("Names of faults; and {FLAGS}"))]
        words: Vec<String>,
    },
    /// The catalogue of faults.
    #[command(after_help = "Example:\n  chaos list")]
    List,
    /// Run a short list against a program with seeded bugs: each must be caught.
    #[command(after_help = "Example:\n  chaos mutants --binary target/bugs/release/trilithon\n  chaos mutants --only skip-seal")]
    Mutants(MutantsArgs),
    /// Run the same against a plain asynchronous pair that a script promotes: it must fail.
    #[command(after_help = "Example:\n  chaos control\n  chaos control --fault freeze-datacenter@steady")]
    Control(RunArgs),
    /// What runs in each datacenter of that pair.
    #[command(hide = true)]
    PairNode(PairArgs),
    /// Trilithon and its peers under the same faults, side by side.
    #[command(
        after_help = "Exit code: what Trilithon's own column says; those of its peers are for the reader to judge.\n\nExample:\n  chaos compare                                       run the common list on each, about ten minutes each\n  chaos compare --only patroni-tuned --only trilithon\n  chaos compare a/record.json b/record.json           only draw what was run before"
    )]
    Compare(CompareArgs),
    /// A world for people: a shell per datacenter, and words to cut and heal.
    #[command(after_help = "Example:\n  chaos up --preset design")]
    Up(UpArgs),
    /// Take down what a killed harness left.
    #[command(after_help = "Example:\n  chaos down")]
    Down,
    /// Draw the report of a run again, from its record; or say what several runs add up to.
    #[command(after_help = "Example:\n  chaos report target/chaos/7/record.json\n  chaos report target/chaos/*/record.json > together.md")]
    Report(ReportArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Lines {
    /// No delay.
    Lan,
    /// dc1–dc2 15 ms, dc3 40 ms away, with jitter.
    #[default]
    Design,
    /// 200 ms round trip, 5 % loss.
    Far,
}

impl Lines {
    pub fn preset(self) -> Preset {
        match self {
            Lines::Lan => Preset::Lan,
            Lines::Design => Preset::Design,
            Lines::Far => Preset::Far,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Lines::Lan => "lan",
            Lines::Design => "design",
            Lines::Far => "far",
        }
    }
}

/// What can be broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SystemName {
    #[default]
    Trilithon,
    /// Patroni with etcd, HAProxy and PgBouncer, as they are by default.
    Patroni,
    /// The same, as fast as Patroni's validation permits.
    PatroniTuned,
}

impl SystemName {
    pub fn which(self) -> Which {
        match self {
            SystemName::Trilithon => Which::Trilithon,
            SystemName::Patroni => Which::Patroni(Profile::Defaults),
            SystemName::PatroniTuned => Which::Patroni(Profile::Tuned),
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            SystemName::Trilithon => "trilithon",
            SystemName::Patroni => "patroni",
            SystemName::PatroniTuned => "patroni-tuned",
        }
    }
}

/// What is run, and in what.
#[derive(Clone, Debug, Args)]
pub struct WhatArgs {
    /// What is broken.
    #[arg(long, value_enum, default_value_t)]
    pub system: SystemName,
    /// No step begins later than this. Default: as long as the list is; ten minutes where a seed decides.
    #[arg(long, value_name = "N")]
    pub minutes: Option<f64>,
    /// Only these faults, in this order; NAME@PHASE for one phase.
    #[arg(long = "fault", value_name = "NAME[@PHASE]")]
    pub faults: Vec<String>,
    /// The short form of the fixed list.
    #[arg(long, conflicts_with_all = ["faults", "singles", "pairs", "swarm"])]
    pub short: bool,
    /// The fixed list, also where a seed is given.
    #[arg(long, conflicts_with_all = ["faults", "short", "singles", "pairs", "swarm"])]
    pub standard: bool,
    /// The list that systems are compared by.
    #[arg(long, conflicts_with_all = ["faults", "short", "standard", "singles", "pairs", "swarm"])]
    pub compared: bool,
    /// Never two at once.
    #[arg(long, group = "at_once")]
    pub singles: bool,
    /// Always two at once.
    #[arg(long, group = "at_once")]
    pub pairs: bool,
    /// Always two to four at once.
    #[arg(long, group = "at_once")]
    pub swarm: bool,
    /// No fault at all: no change of primary may happen.
    #[arg(long, group = "at_once", conflicts_with_all = ["faults", "short", "standard", "compared"])]
    pub calm: bool,
    /// Every fault holds so many seconds. Default: what is usual for it, as the seed decides.
    #[arg(long, value_name = "S")]
    pub hold: Option<f64>,
    /// Leave out the plan's first steps.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip: usize,
    /// End after so many steps.
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// How far the datacenters are apart.
    #[arg(long, value_enum, default_value_t)]
    pub preset: Lines,
    /// Without fault-injecting disks, and the faults that need them.
    #[arg(long)]
    pub no_disks: bool,
    /// Without clocks of their own, and the faults that need them.
    #[arg(long)]
    pub no_clocks: bool,
    /// dc3 only votes.
    #[arg(long)]
    pub witness: bool,
    /// Also faults that are known not to be handled.
    #[arg(long)]
    pub gaps: bool,
    /// Operations a second of all clients together.
    #[arg(long, value_name = "N", default_value_t = 150.0)]
    pub rate: f64,
    /// An administrator asks for a switchover now and then.
    #[arg(long)]
    pub administrator: bool,
    /// The nodes write down what their core is asked and answers, and it is asked again at the end.
    #[arg(long)]
    pub core_trace: bool,
    /// One key of the nodes' configuration.
    #[arg(long = "set", value_name = "SECTION.KEY=TOML")]
    pub set: Vec<String>,
    /// End with the first step after which the cluster does not come back.
    #[arg(long)]
    pub stop_at_first: bool,
}

const BINARY: &str = "target/release/trilithon";
const PEERS: &str = "/opt/chaos-peers";

/// With what it is run, and where things go.
#[derive(Clone, Debug, Args)]
pub struct WithArgs {
    /// The program under test.
    #[arg(long, value_name = "FILE", env = "TRILITHON_BIN", default_value = BINARY)]
    pub binary: PathBuf,
    /// Where `scripts/peers.sh` installed what is compared.
    #[arg(long, value_name = "DIR", env = "CHAOS_PEERS", default_value = PEERS)]
    pub peers: PathBuf,
    /// PostgreSQL's programs. Default: it finds them by itself.
    #[arg(long, value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// Record, report and logs. Default: target/chaos/SEED.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Folder of the world, which then stays; Postgres's user must be able to reach it. Default: one below /var/tmp, which goes.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Decides the steps. Without a seed, minutes or faults the fixed list is run.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub what: WhatArgs,
    #[command(flatten)]
    pub with: WithArgs,
}

#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    pub seed: u64,
    #[command(flatten)]
    pub what: WhatArgs,
    #[command(flatten)]
    pub with: WithArgs,
}

#[derive(Clone, Debug, Args)]
pub struct MutantsArgs {
    /// Only this bug; may be given several times.
    #[arg(long, value_name = "BUG")]
    pub only: Vec<String>,
    /// Without the run that has no bug at all.
    #[arg(long)]
    pub bugs_only: bool,
    /// Write the table as JSON too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// `record.json` of runs, to be drawn side by side; without any, the runs are made. The first is what others are compared with.
    pub records: Vec<PathBuf>,
    /// Only this system; may be given several times.
    #[arg(long, value_enum, value_name = "SYSTEM", conflicts_with = "records")]
    pub only: Vec<SystemName>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// How far the datacenters are apart.
    #[arg(long, value_enum, default_value_t)]
    pub preset: Lines,
    /// Without fault-injecting disks.
    #[arg(long)]
    pub no_disks: bool,
    /// Datacenters.
    #[arg(long, default_value_t = 3)]
    pub sites: usize,
    /// Folder of the world.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// `record.json` of a run; of several, their figures are added up and printed as Markdown.
    #[arg(required = true, value_name = "RECORD")]
    pub records: Vec<PathBuf>,
}

/// A folder below /var/tmp: everybody may walk there, Postgres's user too.
pub fn world_dir(given: Option<&PathBuf>) -> PathBuf {
    given.cloned().unwrap_or_else(|| PathBuf::from(format!("/var/tmp/trilithon-chaos-{}", std::process::id())))
}

/// Without any seed in the words it is this one: a list needs it for what its faults leave to chance.
const LIST_SEED: u64 = 1;
/// Where a seed decides and nobody said for how long.
const DEFAULT_MINUTES: f64 = 10.0;

/// # Errors
/// What was said contradicts itself or is not known.
pub fn settings(seed: Option<u64>, what: &WhatArgs, with: &WithArgs) -> Result<Settings> {
    let decided = seed.is_some() || what.minutes.is_some();
    let mode = mode(what, decided)?;
    let minutes = what.minutes.or((!matches!(mode, Mode::List(_)) && what.steps.is_none()).then_some(DEFAULT_MINUTES));
    let seed = seed.unwrap_or(LIST_SEED);
    let minutes = minutes.map(|m| Duration::try_from_secs_f64(m * 60.0)).transpose().context("--minutes wants a positive number")?;
    let hold = what.hold.map(Duration::try_from_secs_f64).transpose().context("--hold wants a positive number of seconds")?;
    let set = what.set.iter().map(|text| assignment(text)).collect::<Result<_>>()?;
    Ok(Settings {
        system: what.system.which(),
        peers: with.peers.clone(),
        binary: with.binary.clone(),
        pg_bin: with.pg_bin.clone(),
        seed,
        mode,
        minutes,
        hold,
        skip: what.skip,
        steps: what.steps,
        preset: what.preset.preset(),
        disks: !what.no_disks,
        clocks: !what.no_clocks,
        witness: what.witness,
        gaps: what.gaps,
        dir: world_dir(with.dir.as_ref()),
        keep: with.dir.is_some(),
        out: with.out.clone().unwrap_or_else(|| PathBuf::from(format!("target/chaos/{seed}"))),
        set,
        environment: Vec::new(),
        rate: what.rate,
        administrator: what.administrator,
        core_trace: what.core_trace,
        stop_at_first: what.stop_at_first,
        hunting: false,
        words: [words(what, decided), programs(with)].concat(),
    })
}

fn mode(what: &WhatArgs, decided: bool) -> Result<Mode> {
    if !what.faults.is_empty() {
        return Ok(Mode::List(what.faults.iter().map(|text| fault(text)).collect::<Result<_>>()?));
    }
    Ok(match (what.short, what.singles, what.pairs, what.swarm) {
        _ if what.calm => Mode::Calm,
        _ if what.compared => compared(),
        _ if what.standard => listed(STANDARD),
        (true, ..) => listed(SHORT),
        (_, true, ..) => Mode::Singles,
        (_, _, true, _) => Mode::Pairs,
        (_, _, _, true) => Mode::Swarm,
        _ if decided => Mode::Mixed,
        _ => listed(STANDARD),
    })
}

fn fault(text: &str) -> Result<Listed> {
    let Some((name, word)) = text.split_once('@') else { return Ok(Listed { name: text.to_owned(), phase: None, hold: None }) };
    let phase = Phase::ALL.iter().find(|p| p.word() == word);
    let known = || Phase::ALL.iter().map(|p| p.word()).collect::<Vec<_>>().join(", ");
    let phase = *phase.with_context(|| format!("no phase is called {word}; there are {}", known()))?;
    Ok(Listed { name: name.to_owned(), phase: Some(phase), hold: None })
}

fn assignment(text: &str) -> Result<(String, String, String)> {
    let parts = text.split_once('=').and_then(|(path, literal)| Some((path.rsplit_once('.')?, literal)));
    let Some(((section, key), literal)) = parts else { bail!("{text:?}: write it as SECTION.KEY=TOML, as in ha.lease_ttl='\"5s\"'") };
    Ok((section.to_owned(), key.to_owned(), literal.to_owned()))
}

/// What must be said again to repeat the run, but for the seed.
fn words(what: &WhatArgs, decided: bool) -> Vec<String> {
    let mut words = Vec::new();
    let mut say = |name: &str, value: Option<String>| {
        words.push(name.to_owned());
        words.extend(value);
    };
    if what.system != SystemName::default() {
        say("--system", Some(what.system.word().to_owned()));
    }
    if let Some(minutes) = what.minutes {
        say("--minutes", Some(minutes.to_string()));
    }
    what.faults.iter().for_each(|fault| say("--fault", Some(fault.clone())));
    let chosen = what.compared || what.short || what.singles || what.pairs || what.swarm || what.calm || !what.faults.is_empty();
    if what.standard || (!decided && !chosen) {
        say("--standard", None);
    }
    let flags = [
        ("--compared", what.compared),
        ("--short", what.short),
        ("--singles", what.singles),
        ("--pairs", what.pairs),
        ("--swarm", what.swarm),
        ("--calm", what.calm),
        ("--no-disks", what.no_disks),
        ("--no-clocks", what.no_clocks),
        ("--witness", what.witness),
        ("--gaps", what.gaps),
        ("--administrator", what.administrator),
        ("--core-trace", what.core_trace),
        ("--stop-at-first", what.stop_at_first),
    ];
    flags.into_iter().filter(|(_, on)| *on).for_each(|(flag, _)| say(flag, None));
    if what.skip > 0 {
        say("--skip", Some(what.skip.to_string()));
    }
    if let Some(steps) = what.steps {
        say("--steps", Some(steps.to_string()));
    }
    if let Some(hold) = what.hold {
        say("--hold", Some(hold.to_string()));
    }
    if what.preset != Lines::default() {
        say("--preset", Some(what.preset.word().to_owned()));
    }
    if (what.rate - 150.0).abs() > f64::EPSILON {
        say("--rate", Some(what.rate.to_string()));
    }
    what.set.iter().for_each(|set| say("--set", Some(format!("'{set}'"))));
    words
}

/// Programs other than those it finds by itself, as words.
fn programs(with: &WithArgs) -> Vec<String> {
    let said = |name: &str, path: &Path, usual: &str| (path != Path::new(usual)).then(|| [name.to_owned(), path.display().to_string()]);
    let binary = said("--binary", &with.binary, BINARY);
    let peers = said("--peers", &with.peers, PEERS);
    let pg_bin = with.pg_bin.as_ref().and_then(|dir| said("--pg-bin", dir, ""));
    [binary, peers, pg_bin].into_iter().flatten().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(words: &[&str]) -> Result<Settings> {
        let cli = Cli::try_parse_from([&["chaos"], words].concat())?;
        match cli.verb {
            Verb::Run(args) => settings(args.seed, &args.what, &args.with),
            Verb::Replay(args) => settings(Some(args.seed), &args.what, &args.with),
            _ => bail!("not a run"),
        }
    }

    #[test]
    fn the_words_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_run_is_repeated_by_the_words_that_it_prints() {
        for words in [
            &["run", "--minutes", "5", "--seed", "1"][..],
            &["run"],
            &["run", "--short"],
            &["run", "--short", "--binary", "target/debug/trilithon", "--pg-bin", "/usr/lib/postgresql/16/bin"],
            &["run", "--fault", "kill-node", "--hold", "2.5"],
            &["run", "--calm", "--minutes", "120", "--preset", "far"],
            &["run", "--compared", "--system", "patroni-tuned"],
            &["run", "--seed", "9", "--swarm", "--steps", "3", "--preset", "far", "--no-disks"],
            &["run", "--seed", "3", "--minutes", "2", "--core-trace", "--set", "ha.lease_ttl=\"5s\""],
        ] {
            let first = run(words).unwrap();
            let command = first.command().replace('\'', "");
            let again: Vec<&str> = command.split(' ').skip(1).collect();
            let second = run(&again).unwrap();
            assert_eq!((first.mode, first.minutes, first.set), (second.mode, second.minutes, second.set), "{command}");
            assert_eq!(first.hold, second.hold);
            assert_eq!((first.seed, first.steps, first.disks, first.preset), (second.seed, second.steps, second.disks, second.preset));
            assert_eq!(first.system, second.system);
            assert_eq!(first.core_trace, second.core_trace);
            assert_eq!((first.binary, first.pg_bin), (second.binary, second.pg_bin));
        }
    }

    #[test]
    fn an_unknown_phase_is_said_with_those_there_are() {
        let error = run(&["run", "--fault", "x@lunch"]).unwrap_err().to_string();
        assert!(error.contains("steady"), "{error}");
    }
}
