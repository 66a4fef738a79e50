//! The life of a node: start it, watch its parts and its signals, end it.

use super::assemble::{Ended, Node};
use super::reload::Reloader;
use super::{open, start, stop};
use crate::config::Config;
use crate::consensus::Health;
use crate::telemetry::{Clock, LogHandle};
use anyhow::{Context as _, anyhow};
use sd_notify::NotifyState;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals, from the first moment on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())?, hangup: on(SignalKind::hangup())? })
    }

    /// Until somebody wants the node to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What ends the wait of [`watch`].
enum Event {
    Member(crate::types::NodeId),
    Asked,
    Reload,
    Watchdog,
    Broken { what: String, postgres_in_doubt: bool },
}

/// Run until a signal (`Ok`) or until a part breaks.
pub async fn run(config: Config, path: &Path, log: LogHandle) -> anyhow::Result<()> {
    let clock = Clock::default();
    let mut signals = Signals::listen()?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(node = %config.node.name, cluster = %config.cluster.name, version, config = %path.display(), "node starts");
    let opened = tokio::select! {
        opened = open::open(config.clone(), clock) => opened?,
        () = signals.end() => return Ok(()),
    };
    let mut reloader = Reloader::new(path, config, log);
    let adopted = opened.postgres();
    let mut node = match Node::begin(opened).await {
        Ok(node) => node,
        Err(error) => {
            stop::abandoned(adopted.as_deref());
            return Err(error);
        }
    };
    let mut joined = false;
    loop {
        match watch(&mut node, &mut signals, joined).await {
            Event::Member(me) => {
                joined = true;
                // A signal that comes meanwhile waits for at most the length of a lease.
                if let Err(error) = node.join(me).await {
                    stop::abandoned(node.postgres.as_deref());
                    stop::at_once(node, true).await;
                    return Err(error);
                }
                tracing::info!(node = %me, "node runs");
                notify(&[NotifyState::Ready, NotifyState::Status("running")]);
            }
            Event::Asked => {
                notify(&[NotifyState::Stopping]);
                stop::in_order(node).await;
                tracing::info!("node stopped");
                return Ok(());
            }
            Event::Reload => reloader.reload(),
            Event::Watchdog => notify(&[NotifyState::Watchdog]),
            Event::Broken { what, postgres_in_doubt } => {
                tracing::error!(reason = %what, "node ends");
                stop::at_once(node, postgres_in_doubt).await;
                return Err(anyhow!(what));
            }
        }
    }
}

async fn watch(node: &mut Node, signals: &mut Signals, joined: bool) -> Event {
    let mut health = node.handle.health();
    // Twice as often as asked for; a day where nobody asked.
    let watchdog = sd_notify::watchdog_enabled().map_or(Duration::from_secs(86_400), |every| every / 2);
    let member = start::membership(&node.handle);
    tokio::select! {
        // The cause before its consequences: what stops consensus ends other parts too.
        biased;
        unwell = unwell(&mut health) => unwell,
        me = member, if !joined => Event::Member(me),
        _ = signals.terminate.recv() => Event::Asked,
        _ = signals.interrupt.recv() => Event::Asked,
        _ = signals.hangup.recv() => Event::Reload,
        end = node.consensus.ended() => Event::Broken { what: format!("consensus: its {} ended: {}", end.task, end.why), postgres_in_doubt: true },
        Some(ended) = node.tasks.join_next() => broken(ended),
        () = tokio::time::sleep(watchdog) => Event::Watchdog,
    }
}

async fn unwell(health: &mut tokio::sync::watch::Receiver<Health>) -> Event {
    match health.wait_for(|h| *h != Health::Ok).await.map(|h| h.clone()) {
        Ok(Health::Fatal(why)) => {
            let what = format!("consensus has stopped: {why}; see to the disk or the cause named here, then start the node again");
            Event::Broken { what, postgres_in_doubt: true }
        }
        Ok(Health::Removed(why)) => Event::Broken { what: why, postgres_in_doubt: true },
        // The sender lives as long as the node.
        Ok(Health::Ok) | Err(_) => std::future::pending().await,
    }
}

/// No part should end while the node lives.
fn broken(ended: Result<Ended, tokio::task::JoinError>) -> Event {
    match ended {
        Ok((name, Ok(()))) => {
            Event::Broken { what: format!("the {name} ended by itself; please report the log above"), postgres_in_doubt: true }
        }
        Ok((name, Err(error))) => Event::Broken { what: format!("{name}: {error:#}"), postgres_in_doubt: true },
        Err(error) => {
            Event::Broken { what: format!("a part of the node panicked: {error}; please report the log above"), postgres_in_doubt: true }
        }
    }
}

/// For `systemctl status`.
pub fn notify_status(words: &str) {
    notify(&[NotifyState::Status(words)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
