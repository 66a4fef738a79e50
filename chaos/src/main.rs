//! Black-box fault harness: breaks whole clusters in worlds of its own, and checks every promise on what clients saw.
//!
//! ```text
//!   run (seed → plan) ──► world (namespaces, WAN, disks, cgroups) ──► cluster (node processes in it)
//!        │                        ▲                                        ▲
//!        ├──► fault: find the aim, wait for the phase, break, prove that it took hold, mend
//!        ├──► workload: clients in each datacenter ──► histories ──► check: one verdict each
//!        └──► record ──► report (HTML, JSON, terminal)
//! ```
//! It sees Trilithon as its users do: the program, its configuration, SQL, HTTP. Deliberately absent: any shortcut into the program
//! under test, and any verdict without evidence: a run whose fault did not take hold, or whose workload did too little, is
//! inconclusive.

mod check;
mod cli;
mod cluster;
mod fault;
mod pair;
mod record;
mod report;
mod run;
mod verbs;
mod workload;
mod world;

use clap::Parser;
use cli::{Cli, Verb};
use std::process::ExitCode;

/// No run took place: something is missing, or was said wrongly.
const COULD_NOT_RUN: u8 = 2;
/// As a shell reports it for what Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let done = match &Cli::parse().verb {
        Verb::Run(args) => verbs::run(args.seed, &args.what, &args.with),
        Verb::Replay(args) => verbs::run(Some(args.seed), &args.what, &args.with),
        Verb::Soak(args) => verbs::soak(args),
        Verb::Try { words } => verbs::try_faults(words),
        Verb::List => verbs::list(),
        Verb::Mutants(args) => verbs::mutants(args),
        Verb::Control(args) => verbs::control(args),
        Verb::PairNode(args) => pair::run(args).map(|()| ExitCode::SUCCESS),
        Verb::Compare(args) => verbs::compare(args),
        Verb::Up(args) => verbs::up(args),
        Verb::Down => verbs::down(),
        Verb::Report(args) => verbs::report(args),
    };
    match done {
        Ok(code) => code,
        Err(error) if error.is::<run::Interrupted>() => {
            anstream::eprintln!("interrupted: nothing is concluded");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}
