//! Set: every operation adds one row with an id that nobody else uses, by each protocol, alone or in a transaction.

use super::client::{Actor, After, Desk, Numbers};
use super::history::{Add, Protocol};
use super::outcome::{Stage, Trouble};
use super::session::{Session, number};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Statement};

const INSERT: &str = "INSERT INTO chaos_set (id) VALUES ($1) RETURNING chaos_timeline()";

/// A client that adds rows.
pub struct Adder {
    protocol: Protocol,
    numbers: Numbers,
    rng: SmallRng,
    statement: Option<Statement>,
}

impl Adder {
    pub fn new(protocol: Protocol, numbers: Numbers, rng: SmallRng) -> Adder {
        Adder { protocol, numbers, rng, statement: None }
    }

    /// Returns the timeline on which it was written.
    async fn add(&mut self, session: &Session, id: i64, in_block: bool) -> Result<Option<u32>, Trouble> {
        if !in_block {
            return self.insert(session, id, Stage::Commit).await;
        }
        session.text(Stage::Body, "BEGIN").await?;
        let timeline = self.insert(session, id, Stage::Body).await?;
        session.text(Stage::Commit, "COMMIT").await?;
        Ok(timeline)
    }

    async fn insert(&mut self, session: &Session, id: i64, stage: Stage) -> Result<Option<u32>, Trouble> {
        if self.protocol == Protocol::Simple {
            let rows = session.text(stage, &INSERT.replace("$1", &id.to_string())).await?;
            return Ok(rows.first().and_then(|row| number(row, 0)));
        }
        let before = session.warnings();
        let rows = if self.protocol == Protocol::Named {
            let statement = match &self.statement {
                Some(statement) => statement.clone(),
                // Preparing adds nothing, whatever becomes of it.
                None => self.statement.insert(session.bounded(Stage::Body, session.client().prepare(INSERT)).await?).clone(),
            };
            session.bounded(stage, session.client().query(&statement, &[&id])).await?
        } else {
            session.bounded(stage, session.client().query_typed(INSERT, &[(&id, Type::INT8)])).await?
        };
        session.unless_warned(stage, before)?;
        Ok(rows.first().and_then(timeline_of))
    }
}

fn timeline_of(row: &Row) -> Option<u32> {
    row.try_get::<_, i32>(0).ok().and_then(|timeline| u32::try_from(timeline).ok())
}

impl Actor for Adder {
    fn renewed(&mut self) {
        self.statement = None;
    }

    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        let id = self.numbers.draw();
        let in_block = self.rng.random_ratio(1, 4);
        let from = session.now();
        let result = self.add(session, id, in_block).await;
        let attempt = session.attempt(from, &result, result.as_ref().ok().copied().flatten());
        desk.count(&attempt);
        desk.keep(|log| log.adds.push(Add { attempt, id, protocol: self.protocol }));
        After::of(session, &result, in_block).await
    }
}
