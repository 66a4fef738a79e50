//! Watchers: on each node a session without a proxy that asks whether it is writable and writes where it is.
//!
//! Two of them per node. One writes under the cluster's rule: two nodes that acknowledge such beats in overlapping reigns are a split
//! brain. The other writes with `synchronous_commit = local`, which asks nobody: what it shows is how long a deposed primary goes on
//! believing in itself. Such writes opt out of durability, so they are counted apart and never expected to last.

use super::client::{Actor, After, Desk};
use super::history::{Beat, Confirm, RoleSeen};
use super::outcome::{Stage, Trouble};
use super::session::{Session, number};

/// A client of one node.
pub struct Watcher {
    node: String,
    confirm: Confirm,
    is_set: bool,
    beats: u64,
}

impl Watcher {
    pub fn new(node: String, confirm: Confirm) -> Watcher {
        Watcher { node, confirm, is_set: false, beats: 0 }
    }

    async fn role(&mut self, session: &Session) -> Result<Option<u32>, Trouble> {
        if self.confirm == Confirm::Alone && !self.is_set {
            session.text(Stage::Body, "SET synchronous_commit = local").await?;
            self.is_set = true;
        }
        let rows = session.text(Stage::Body, "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE chaos_timeline() END").await?;
        Ok(rows.first().and_then(|row| number(row, 0)))
    }

    async fn beat(&mut self, session: &Session) -> Result<Option<u32>, Trouble> {
        self.beats += 1;
        let sql = format!("INSERT INTO chaos_beat VALUES ('{}', {}) RETURNING chaos_timeline()", self.node.replace('\'', ""), self.beats);
        let rows = session.text(Stage::Commit, &sql).await?;
        Ok(rows.first().and_then(|row| number(row, 0)))
    }
}

impl Actor for Watcher {
    fn renewed(&mut self) {
        self.is_set = false;
    }

    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        let role = self.role(session).await;
        let Ok(writable_timeline) = role else { return After::of(session, &role, false).await };
        let at = session.now();
        desk.keep(|log| {
            let is_news = log.roles.iter().rev().find(|seen| seen.node == self.node).is_none_or(|last| {
                // The same again is worth a line each second, so that a silence shows.
                last.writable_timeline != writable_timeline || at.since(last.at).as_millis() >= 1000
            });
            if is_news {
                log.roles.push(RoleSeen { node: self.node.clone(), at, writable_timeline });
            }
        });
        if writable_timeline.is_none() {
            return After::Keep;
        }
        let from = session.now();
        let result = self.beat(session).await;
        let attempt = session.attempt(from, &result, result.as_ref().ok().copied().flatten());
        desk.keep(|log| log.beats.push(Beat { attempt, node: self.node.clone(), confirm: self.confirm }));
        After::of(session, &result, false).await
    }
}
