//! The loop that every client runs: keep a pace, keep a session, let its actor do one operation, write down what it was told.
//!
//! One operation at a time per client, so a held statement holds its client, as in a real application. A session that misbehaved is
//! closed and replaced by one with a new number; clients that talk to PostgreSQL itself then try the next node.

use super::history::{Attempt, Door, Histories, Origin};
use super::outcome::Trouble;
use super::place::{Login, Ports};
use super::session::{Session, Target};
use super::tally::Tally;
use crate::record::RunClock;
use rand::rngs::SmallRng;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Wait after a refused connection: a dead proxy is asked ten times a second by each client, no more.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What all clients of all sites share: the numbers of sessions, and the pace of the sliding key windows.
#[derive(Default)]
pub struct Shared {
    sessions: AtomicU32,
    pub appended: AtomicI64,
    pub registered: AtomicI64,
}

/// What a site's clients work with.
pub struct Desk {
    pub site: u8,
    /// This site's address.
    pub host: String,
    /// All sites' addresses, for clients without a proxy.
    pub hosts: Vec<String>,
    pub ports: Ports,
    pub login: Login,
    pub clock: RunClock,
    pub deadline: Duration,
    pub stop: CancellationToken,
    pub tally: Arc<Tally>,
    pub shared: Arc<Shared>,
    pub log: RefCell<Histories>,
}

impl Desk {
    /// Opens a session with a number of its own.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn open(&self, host: &str, door: Door, deadline: Duration) -> Result<Session, Trouble> {
        let session = self.shared.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let target = Target { host: host.to_owned(), ports: self.ports, door, login: self.login.clone() };
        Session::open(&target, Origin { site: self.site, door, session }, self.clock, deadline).await
    }

    /// Writes into the site's history.
    pub fn keep(&self, write: impl FnOnce(&mut Histories)) {
        write(&mut self.log.borrow_mut());
    }

    /// Counts a write for the charts.
    pub fn count(&self, attempt: &Attempt) {
        self.tally.count(self.site, attempt.origin.door, attempt.from, attempt.to, attempt.fate);
    }
}

/// What becomes of the session after an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Keep,
    /// Close it and open another.
    Renew,
    /// Close it; without a proxy, go to the next node.
    MoveOn,
}

impl After {
    /// The usual way on: a usable session has its transaction ended and is kept, unless the outcome was unknown.
    pub async fn of<T>(session: &Session, result: &Result<T, Trouble>, in_block: bool) -> After {
        match result {
            Ok(_) => After::Keep,
            Err(trouble) if !trouble.is_usable || trouble.fate() == super::history::Fate::Unknown => After::Renew,
            Err(trouble) if trouble.why == "25006" => After::MoveOn,
            Err(_) if !in_block || session.rollback().await => After::Keep,
            Err(_) => After::Renew,
        }
    }
}

/// One kind of client.
pub trait Actor {
    /// A new session begins; what belonged to the former one is void.
    fn renewed(&mut self) {}

    /// One operation.
    async fn step(&mut self, session: &Session, desk: &Desk) -> After;
}

/// How a client reaches the database, and how often it does something.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    pub door: Door,
    pub pace: Duration,
    /// For this client other than the desk's.
    pub deadline: Option<Duration>,
    /// Its connection attempts count as refused writes in the charts.
    pub writes: bool,
}

/// Runs an actor until the desk's stop token is cancelled. With [`Door::Direct`] it goes through `hosts`, else it stays at its site.
pub async fn drive<A: Actor>(mut actor: A, habit: Habit, hosts: &[String], desk: &Desk) {
    let deadline = habit.deadline.unwrap_or(desk.deadline);
    let mut ticks = tokio::time::interval(habit.pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept: Option<Session> = None;
    let mut turn = 0;
    loop {
        tokio::select! {
            biased;
            () = desk.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let session = match kept.take().filter(Session::is_open) {
            Some(session) => session,
            None => {
                let host = if habit.door == Door::Direct { hosts.get(turn % hosts.len().max(1)) } else { None };
                let from = desk.clock.now();
                match desk.open(host.unwrap_or(&desk.host), habit.door, deadline).await {
                    Ok(session) => {
                        actor.renewed();
                        session
                    }
                    Err(trouble) => {
                        turn += 1;
                        if habit.writes {
                            desk.tally.count(desk.site, habit.door, from, desk.clock.now(), trouble.fate());
                        }
                        tokio::time::sleep(RECONNECT_PAUSE).await;
                        continue;
                    }
                }
            }
        };
        match actor.step(&session, desk).await {
            After::Keep => kept = Some(session),
            After::Renew => {}
            After::MoveOn => turn += 1,
        }
    }
}

/// Numbers that only this actor gives out: unique in the run.
pub struct Numbers {
    next: i64,
}

impl Numbers {
    #[must_use]
    pub fn of(actor: u32) -> Numbers {
        Numbers { next: i64::from(actor) << 32 }
    }

    pub fn draw(&mut self) -> i64 {
        self.next += 1;
        self.next
    }
}

/// A generator for one actor: the same seed, the same choices.
#[must_use]
pub fn rng(seed: u64, actor: u32) -> SmallRng {
    use rand::SeedableRng;
    SmallRng::seed_from_u64(seed ^ (u64::from(actor) << 40))
}
