//! Session guarantees: each client owns a row whose version only rises; beside it stands what the client had read of another row.
//!
//! A reader that finds version 7 of a row written after its writer had seen version 4 of another must find at least version 4 there.

use super::client::{Actor, After, Desk};
use super::history::{VersionOp, VersionRow, VersionStep};
use super::outcome::{Stage, Trouble};
use super::session::{Session, number};
use rand::Rng;
use rand::rngs::SmallRng;

/// A client with a row of its own.
pub struct Keeper {
    row: i32,
    version: i64,
    /// Rows of others as this session read them last.
    others: Vec<VersionRow>,
    rng: SmallRng,
    steps: u32,
}

impl Keeper {
    pub fn new(row: i32, rng: SmallRng) -> Keeper {
        Keeper { row, version: 0, others: Vec::new(), rng, steps: 0 }
    }

    fn next_row(&mut self) -> VersionRow {
        self.version += 1;
        let pick = self.rng.random_range(0..self.others.len().max(1));
        let (saw_row, saw_version) = self.others.get(pick).map_or((0, 0), |other| (other.row, other.version));
        VersionRow { row: self.row, version: self.version, saw_row, saw_version }
    }
}

async fn write(session: &Session, row: VersionRow) -> Result<(), Trouble> {
    let VersionRow { row, version, saw_row, saw_version } = row;
    // Never downwards: an older write whose answer was lost may still arrive.
    let sql = format!(
        "INSERT INTO chaos_version AS t (id, version, saw, saw_version) VALUES ({row}, {version}, {saw_row}, {saw_version}) ON CONFLICT (id) \
         DO UPDATE SET version = excluded.version, saw = excluded.saw, saw_version = excluded.saw_version WHERE t.version < excluded.version"
    );
    session.text(Stage::Commit, &sql).await.map(|_| ())
}

async fn read(session: &Session) -> Result<Vec<VersionRow>, Trouble> {
    let rows = session.text(Stage::Body, "SELECT id, version, saw, saw_version FROM chaos_version").await?;
    let read = rows.iter().filter_map(|row| {
        Some(VersionRow { row: number(row, 0)?, version: number(row, 1)?, saw_row: number(row, 2)?, saw_version: number(row, 3)? })
    });
    Ok(read.collect())
}

impl Actor for Keeper {
    fn renewed(&mut self) {
        self.others.clear();
        self.steps = 0;
    }

    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        self.steps += 1;
        let from = session.now();
        // A session reads first: afterwards it has written, and its reads may be served elsewhere.
        if self.steps > 3 && self.rng.random_bool(0.4) {
            let row = self.next_row();
            let result = write(session, row).await;
            let attempt = session.attempt(from, &result, None);
            desk.count(&attempt);
            desk.keep(|log| log.versions.push(VersionStep { attempt, op: VersionOp::Write(row) }));
            return After::of(session, &result, false).await;
        }
        let result = read(session).await;
        if let Ok(rows) = &result {
            self.others = rows.iter().copied().filter(|row| row.row != self.row).collect();
            let step = VersionStep { attempt: session.attempt(from, &result, None), op: VersionOp::Read(rows.clone()) };
            desk.keep(|log| log.versions.push(step));
        }
        After::of(session, &result, false).await
    }
}
