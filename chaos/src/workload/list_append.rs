//! List-append: transactions of two to four steps over a few hot keys, each step appends a unique value to a key's list or reads it.
//!
//! The window of hot keys slides on as transactions are made, so that lists stay short and their histories cheap to check.

use super::client::{Actor, After, Desk, Numbers};
use super::history::{Level, Step, Txn};
use super::outcome::{Stage, Trouble};
use super::session::{Session, numbers};
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::atomic::Ordering;

/// Keys in use at once, and transactions until the window moves by one key: a key sees about a hundred transactions' steps.
const WINDOW: i64 = 5;
const PER_KEY: i64 = 20;

/// A client that runs list-append transactions.
pub struct Appender {
    level: Level,
    numbers: Numbers,
    rng: SmallRng,
}

impl Appender {
    pub fn new(level: Level, numbers: Numbers, rng: SmallRng) -> Appender {
        Appender { level, numbers, rng }
    }

    fn plan(&mut self, base: i64) -> Vec<Step> {
        let count = self.rng.random_range(2..=4);
        let mut steps = Vec::with_capacity(count);
        for _ in 0..count {
            let key = base + self.rng.random_range(0..WINDOW);
            steps.push(match self.rng.random_bool(0.5) {
                true => Step::Append { key, value: self.numbers.draw() },
                false => Step::Read { key, list: None },
            });
        }
        steps
    }
}

/// The table of a level.
pub fn table(level: Level) -> &'static str {
    match level {
        Level::Serializable => "chaos_append_serializable",
        Level::RepeatableRead => "chaos_append_repeatable_read",
    }
}

async fn run(session: &Session, level: Level, steps: &mut [Step]) -> Result<(), Trouble> {
    let begin = match level {
        Level::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        Level::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
    };
    session.text(Stage::Body, begin).await?;
    let table = table(level);
    for step in steps {
        match step {
            Step::Append { key, value } => {
                let sql = format!(
                    "INSERT INTO {table} AS t (k, v) VALUES ({key}, ARRAY[{value}]::bigint[]) ON CONFLICT (k) DO UPDATE SET v = t.v || excluded.v"
                );
                session.text(Stage::Body, &sql).await?;
            }
            Step::Read { key, list } => {
                let rows = session.text(Stage::Body, &format!("SELECT v FROM {table} WHERE k = {key}")).await?;
                *list = Some(rows.first().and_then(|row| row.get(0)).map(numbers).unwrap_or_default());
            }
        }
    }
    session.text(Stage::Commit, "COMMIT").await.map(|_| ())
}

impl Actor for Appender {
    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        let base = desk.shared.appended.fetch_add(1, Ordering::Relaxed) / PER_KEY;
        let mut steps = self.plan(base);
        let from = session.now();
        let result = run(session, self.level, &mut steps).await;
        let attempt = session.attempt(from, &result, None);
        if steps.iter().any(|step| matches!(step, Step::Append { .. })) {
            desk.count(&attempt);
        }
        desk.keep(|log| log.txns.push(Txn { attempt, level: self.level, steps }));
        After::of(session, &result, true).await
    }
}
