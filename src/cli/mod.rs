//! The command line: arguments in, one or more gRPC calls, a table or JSON out.
//!
//! It knows only the protos and speaks to any node; each endpoint is tried in turn, and a change keeps its request id over all
//! tries, so that it takes effect once (INV-12). Deliberately absent: knowledge of how the cluster works, and prompts: every verb
//! can be used by a script. Exit codes are those of [`Exit`].
//!
//! Entry points: [`Verb`], [`run`].

mod args;
mod certs;
mod change;
mod client;
mod config;
mod files;
mod order;
mod query;
mod read;
mod render;

pub use args::Verb;
pub use client::{Exit, Failure};
pub use order::verb_first;

use args::{ConfigVerb, MemberVerb, RaftVerb};
use std::process::ExitCode;

/// Carry out a verb; what went wrong is on stderr.
#[must_use]
pub fn run(verb: Verb) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(verb)),
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let style = render::ERROR;
            anstream::eprintln!("{style}error{style:#}: {failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

async fn dispatch(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Status(remote) => read::status(&remote).await,
        Verb::Topology(remote) => read::topology(&remote).await,
        Verb::History(remote) => read::history(&remote).await,
        Verb::Events(args) => read::events(&args).await,
        Verb::Dsn(args) => read::dsn(&args).await,
        Verb::Version(args) => read::version(&args).await,
        Verb::Raft { verb: RaftVerb::Status(remote) } => read::raft_status(&remote).await,
        Verb::Member { verb } => match verb {
            MemberVerb::List(remote) => read::members(&remote).await,
            MemberVerb::Remove(args) => change::member_remove(&args).await,
            MemberVerb::Tag(args) => change::member_tag(&args).await,
        },
        Verb::Config { verb } => match verb {
            ConfigVerb::Init(args) => files::config_init(&args),
            ConfigVerb::Check(args) => files::config_check(&args),
            ConfigVerb::Show(remote) => read::config_show(&remote).await,
            ConfigVerb::Set(args) => change::config_set(&args).await,
        },
        Verb::Switchover(args) => change::switchover(&args).await,
        Verb::Failover(args) => change::failover(&args).await,
        Verb::Pause(remote) => change::pause(&remote, true).await,
        Verb::Resume(remote) => change::pause(&remote, false).await,
        Verb::Fence(args) => change::fence(&args, true).await,
        Verb::Unfence(args) => change::fence(&args, false).await,
        Verb::Reinit(args) => change::reinit(&args).await,
        Verb::Query(args) => query::query(&args).await,
        Verb::Certs { verb } => certs::run(&verb),
    }
}
