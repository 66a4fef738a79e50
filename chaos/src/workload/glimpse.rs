//! Replica reads: what can be seen of the set on standbys, through the splitting proxy, and on each PostgreSQL itself.

use super::client::{Actor, After, Desk};
use super::history::{Door, Glimpse};
use super::outcome::Stage;
use super::session::{Session, number};
use std::collections::HashSet;

/// The newest rows; older ones were seen before.
const NEWEST: &str = "SELECT id, pg_is_in_recovery()::int FROM chaos_set ORDER BY n DESC LIMIT 100";

/// A client that looks at the newest rows.
#[derive(Default)]
pub struct Onlooker {
    seen: HashSet<i64>,
    /// Name of the node, when it reads there without a proxy.
    node: Option<String>,
}

impl Onlooker {
    pub fn new(node: Option<String>) -> Onlooker {
        Onlooker { seen: HashSet::new(), node }
    }
}

impl Actor for Onlooker {
    async fn step(&mut self, session: &Session, desk: &Desk) -> After {
        let result = session.text(Stage::Body, NEWEST).await;
        if let Ok(rows) = &result {
            let ids: Vec<i64> = rows.iter().filter_map(|row| number(row, 0)).filter(|id| self.seen.insert(*id)).collect();
            if !ids.is_empty() {
                let node = if session.origin().door == Door::Direct { self.node.clone() } else { None };
                let standby = rows.first().and_then(|row| number(row, 1)) == Some(1);
                let glimpse = Glimpse { origin: session.origin(), at: session.now(), node, standby, ids };
                desk.keep(|log| log.glimpses.push(glimpse));
            }
        }
        After::of(session, &result, false).await
    }
}
