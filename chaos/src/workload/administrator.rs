//! An administrator who cannot leave it alone: switchovers, pauses and resumes while everything else goes on.
//!
//! Commands run on a thread of their own, because they block. Whoever else gives commands in a run (a fault, a driver) notes them in
//! the same [`CommandLog`]; otherwise the checker would take their effect for one that happened twice.

use super::history::Command;
use crate::record::RunClock;
use anyhow::{Context as _, Result};
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest tail of a command's words that is kept, bytes.
const SAID_MAX: usize = 400;
/// How soon a stop is noticed.
const NAP: Duration = Duration::from_millis(100);

/// How a command ended.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Exit code; `None` when it was ended from outside.
    pub exit: Option<i32>,
    pub said: String,
}

/// Runs `trilithon` with these words; bounded in time by whoever provides it.
pub type Commander = Arc<dyn Fn(&[&str]) -> Answer + Send + Sync>;

/// All commands of a run.
#[derive(Clone, Default)]
pub struct CommandLog(Arc<Mutex<Vec<Command>>>);

impl CommandLog {
    /// Gives a command and notes it.
    pub fn give(&self, clock: RunClock, commander: &Commander, words: &[&str]) -> Answer {
        let from = clock.now();
        let answer = commander(words);
        let tail = answer.said.char_indices().map(|(at, _)| at).find(|at| answer.said.len() - at <= SAID_MAX).unwrap_or(0);
        let command = Command {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            from,
            to: clock.now(),
            exit: answer.exit,
            said: answer.said.get(tail..).unwrap_or_default().to_owned(),
        };
        self.note(command);
        answer
    }

    /// Notes a command that somebody else gave.
    pub fn note(&self, command: Command) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(command);
    }

    #[must_use]
    pub fn all(&self) -> Vec<Command> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the administrator does.
#[derive(Clone)]
pub struct Orders {
    pub commander: Commander,
    /// From one command to the next.
    pub every: Duration,
    /// Names of the nodes to switch to.
    pub nodes: Vec<String>,
    /// Also pause, and resume some seconds later. While paused nothing fails over by itself.
    pub pauses: bool,
}

/// Starts the administrator's thread.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(orders: Orders, clock: RunClock, log: CommandLog, stop: CancellationToken, rng: SmallRng) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("administrator".to_owned());
    thread
        .spawn(move || work(&orders, clock, &log, &stop, rng))
        .context("cannot start the administrator's thread; is the process limit reached?")
}

fn work(orders: &Orders, clock: RunClock, log: &CommandLog, stop: &CancellationToken, mut rng: SmallRng) {
    let mut is_paused = false;
    while rest(orders.every, stop) {
        if is_paused {
            is_paused = log.give(clock, &orders.commander, &["resume"]).exit != Some(0);
        } else if orders.pauses && rng.random_ratio(1, 4) {
            // Unless refused it may have taken effect.
            is_paused = log.give(clock, &orders.commander, &["pause"]).exit != Some(3);
        } else if orders.nodes.is_empty() || rng.random_ratio(1, 3) {
            log.give(clock, &orders.commander, &["switchover"]);
        } else {
            let node = &orders.nodes[rng.random_range(0..orders.nodes.len())];
            log.give(clock, &orders.commander, &["switchover", "--to", node]);
        }
    }
    for _ in 0..5 {
        if !is_paused {
            return;
        }
        is_paused = log.give(clock, &orders.commander, &["resume"]).exit != Some(0);
    }
}

/// `false`: stop was asked for.
fn rest(time: Duration, stop: &CancellationToken) -> bool {
    let mut left = time;
    while !stop.is_cancelled() && !left.is_zero() {
        std::thread::sleep(NAP.min(left));
        left = left.saturating_sub(NAP);
    }
    !stop.is_cancelled()
}
