//! Registers: single keys that are read, overwritten and compared-and-set with values that occur once in a run.
//!
//! Keys slide on like those of list-append: the checker's search is exponential in the operations of one key whose end nobody knows.

use super::client::{Actor, After, Desk, Numbers};
use super::history::{RegisterOp, RegisterStep};
use super::outcome::{Stage, Trouble};
use super::session::{Session, number};
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// Keys in use at once, and operations until the window moves by one key: about a hundred operations a key,
/// and half as many reads by those who only read.
const WINDOW: i64 = 3;
const PER_KEY: i64 = 35;

/// A client of registers.
pub struct Registrar {
    numbers: Numbers,
    rng: SmallRng,
    /// What it saw last, for a compare-and-set that may succeed.
    seen: HashMap<i64, i64>,
    only_reads: bool,
}

impl Registrar {
    pub fn new(numbers: Numbers, rng: SmallRng) -> Registrar {
        Registrar { numbers, rng, seen: HashMap::new(), only_reads: false }
    }

    /// One that never writes: a primary that has lost its standbys holds up whoever writes, and would be asked nothing any more.
    pub fn reader(numbers: Numbers, rng: SmallRng) -> Registrar {
        Registrar { only_reads: true, ..Registrar::new(numbers, rng) }
    }

    fn choose(&mut self, key: i64) -> RegisterOp {
        if self.only_reads {
            return RegisterOp::Read { seen: None };
        }
        let known = self.seen.get(&key).copied();
        match (self.rng.random_range(0..4), known) {
            (0, Some(expected)) => RegisterOp::Cas { expected, value: self.numbers.draw(), matched: false },
            (1, _) => RegisterOp::Write { value: self.numbers.draw() },
            _ => RegisterOp::Read { seen: None },
        }
    }
}

async fn run(session: &Session, key: i64, op: &mut RegisterOp) -> Result<Option<u32>, Trouble> {
    match op {
        RegisterOp::Read { seen } => {
            let rows = session.text(Stage::Body, &format!("SELECT v FROM chaos_register WHERE k = {key}")).await?;
            *seen = rows.first().and_then(|row| number(row, 0));
            Ok(None)
        }
        RegisterOp::Write { value } => {
            let sql = format!(
                "INSERT INTO chaos_register (k, v) VALUES ({key}, {value}) ON CONFLICT (k) DO UPDATE SET v = excluded.v RETURNING chaos_timeline()"
            );
            let rows = session.text(Stage::Commit, &sql).await?;
            Ok(rows.first().and_then(|row| number(row, 0)))
        }
        RegisterOp::Cas { expected, value, matched } => {
            let sql = format!("UPDATE chaos_register SET v = {value} WHERE k = {key} AND v = {expected} RETURNING chaos_timeline()");
            let rows = session.text(Stage::Commit, &sql).await?;
            *matched = !rows.is_empty();
            Ok(rows.first().and_then(|row| number(row, 0)))
        }
    }
}

impl Actor for Registrar {
    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        let base = desk.shared.registered.fetch_add(i64::from(!self.only_reads), Ordering::Relaxed) / PER_KEY;
        let key = base + self.rng.random_range(0..WINDOW);
        self.seen.retain(|old, _| *old >= base);
        let mut op = self.choose(key);
        let from = session.now();
        let result = run(session, key, &mut op).await;
        let attempt = session.attempt(from, &result, result.as_ref().ok().copied().flatten());
        let now_seen = match (&result, op) {
            (Ok(_), RegisterOp::Read { seen }) => seen,
            (Ok(_), RegisterOp::Write { value } | RegisterOp::Cas { value, matched: true, .. }) => Some(value),
            _ => None,
        };
        if let Some(value) = now_seen {
            self.seen.insert(key, value);
        }
        if !matches!(op, RegisterOp::Read { .. }) {
            desk.count(&attempt);
        }
        desk.keep(|log| log.registers.push(RegisterStep { attempt, key, op }));
        After::of(session, &result, false).await
    }
}
