//! Bank: transfers between a few accounts, and snapshots of all of them by every door. The sum never changes.

use super::client::{Actor, After, Desk};
use super::history::{Total, Transfer};
use super::outcome::{Stage, Trouble};
use super::schema::ACCOUNTS;
use super::session::{Session, number};
use rand::Rng;
use rand::rngs::SmallRng;

/// A client that moves money.
pub struct Teller {
    rng: SmallRng,
}

impl Teller {
    pub fn new(rng: SmallRng) -> Teller {
        Teller { rng }
    }
}

async fn transfer(session: &Session, from: i32, to: i32, amount: i64) -> Result<(), Trouble> {
    session.text(Stage::Body, "BEGIN").await?;
    // The lower account first: a deadlock would cost everybody a second and teach nothing.
    for account in [from.min(to), from.max(to)] {
        let change = if account == from { -amount } else { amount };
        session.text(Stage::Body, &format!("UPDATE chaos_bank SET balance = balance + {change} WHERE id = {account}")).await?;
    }
    session.text(Stage::Commit, "COMMIT").await.map(|_| ())
}

impl Actor for Teller {
    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        let from_account = self.rng.random_range(1..=ACCOUNTS);
        let to_account = (from_account + self.rng.random_range(0..ACCOUNTS - 1)) % ACCOUNTS + 1;
        let amount = self.rng.random_range(1..20);
        let from = session.now();
        let result = transfer(session, from_account, to_account, amount).await;
        let attempt = session.attempt(from, &result, None);
        desk.count(&attempt);
        desk.keep(|log| log.transfers.push(Transfer { attempt, from_account, to_account, amount }));
        After::of(session, &result, true).await
    }
}

/// A client that counts all money in one statement, which is one snapshot.
pub struct Auditor;

impl Actor for Auditor {
    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        let from = session.now();
        let result = session.text(Stage::Body, "SELECT count(*), sum(balance) FROM chaos_bank").await;
        let row = result.as_ref().ok().and_then(|rows| rows.first());
        let (accounts, sum) = (row.and_then(|row| number(row, 0)), row.and_then(|row| number(row, 1)));
        if let (Some(accounts), Some(sum)) = (accounts, sum) {
            let attempt = session.attempt(from, &result, None);
            desk.keep(|log| log.totals.push(Total { attempt, accounts, sum }));
        }
        // Without a proxy it visits all nodes in turn.
        if session.origin().door == super::history::Door::Direct { After::MoveOn } else { After::of(session, &result, false).await }
    }
}
