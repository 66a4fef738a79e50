//! The one binary: administration by verbs, `node` for a datacenter's process, `demo` for a whole cluster on this machine.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use trilithon::{cli, node};

/// PostgreSQL highly available over three datacenters, with three processes.
#[derive(Parser)]
#[command(
    name = "trilithon",
    version,
    arg_required_else_help = true,
    after_help = "Start with `trilithon demo`: three datacenters on this machine.\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 no quorum or not reachable, 5 outcome unknown."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    #[command(flatten)]
    Admin(cli::Verb),
    /// One datacenter's process, in the foreground.
    Node(node::Args),
    /// Three datacenters on this machine, until Ctrl-C.
    #[command(after_help = "Example:\n  trilithon demo\n  trilithon demo --kill dc1")]
    Demo(node::demo::Args),
    /// Ask the core again what a node with `telemetry.core_trace` has written down, and say where it answers otherwise.
    #[command(
        after_help = "Example:\n  trilithon replay /var/log/trilithon/core\nExit codes: 0 it agrees, 1 it disagrees, 2 there is nothing to read, 5 something is missing."
    )]
    Replay(node::replay::Args),
}

fn main() -> ExitCode {
    match Cli::parse_from(cli::verb_first(std::env::args_os())).verb {
        Verb::Admin(verb) => cli::run(verb),
        Verb::Node(args) => node::run(&args),
        Verb::Replay(args) => node::replay::run(&args),
        Verb::Demo(args) => node::demo::run(&args).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }),
    }
}
