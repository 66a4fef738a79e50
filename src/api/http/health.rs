//! Patroni's health checks: what each path asks of this node. PURE.

use crate::api::Snapshot;
use crate::api::status::{lag_bytes, writable};
use crate::cluster::{Durability, Tags};
use crate::config::parse_size;
use crate::ha::{PostgresState, Role};
use std::collections::BTreeMap;

/// Every path, with Patroni's older spellings.
pub(super) const PATHS: &[&str] = &[
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/standby-leader",
    "/standby_leader",
    "/replica",
    "/read-only",
    "/sync",
    "/synchronous",
    "/read-only-sync",
    "/async",
    "/asynchronous",
    "/read-only-async",
    "/quorum",
    "/read-only-quorum",
    "/health",
    "/liveness",
    "/readiness",
];

/// What this node is at this instant.
struct Node<'a> {
    snapshot: &'a Snapshot,
    primary: bool,
    running: bool,
    standby: bool,
    streaming: bool,
    /// Confirms commits.
    confirms: bool,
}

/// 200 (`true`) or 503; `Err`: the parameters make no sense.
pub(super) fn check(path: &str, parameters: &BTreeMap<String, String>, snapshot: &Snapshot) -> Result<bool, String> {
    let node = Node::of(snapshot);
    let standby = || node.fit_to_read(parameters, false);
    Ok(match path {
        "/" | "/primary" | "/master" | "/read-write" => node.primary && node.tags_match(parameters),
        // The lock, whether or not Postgres behind it can be written to.
        "/leader" => {
            snapshot.my_id().is_some_and(|me| snapshot.state.lease.holder == Some(me))
                && snapshot.lease.is_some_and(|(_, left)| !left.is_zero())
        }
        // A cluster that follows another one as a whole does not exist here.
        "/standby-leader" | "/standby_leader" => false,
        "/replica" => standby()?,
        "/read-only" => node.primary && node.tags_match(parameters) || standby()?,
        "/sync" | "/synchronous" => node.confirms && standby()?,
        "/read-only-sync" => node.primary || node.confirms && standby()?,
        "/async" | "/asynchronous" => !node.confirms && standby()?,
        "/read-only-async" => node.primary || !node.confirms && standby()?,
        "/quorum" => node.confirms && node.by_quorum() && standby()?,
        "/read-only-quorum" => node.primary || node.confirms && node.by_quorum() && standby()?,
        "/health" => node.running,
        "/liveness" => node.lives(),
        "/readiness" => node.primary || node.ready(parameters)?,
        other => return Err(format!("{other} is no health check")),
    })
}

impl Node<'_> {
    fn of(snapshot: &Snapshot) -> Node<'_> {
        let state = &snapshot.state;
        let me = snapshot.my_id();
        let facts = me.and_then(|me| snapshot.heard(me)).map(|o| &o.postgres);
        // One that lets nobody in has told nobody its version.
        let running = facts.is_some_and(|f| f.state == PostgresState::Running && f.version_num > 0);
        let standby = running && facts.is_some_and(|f| f.role == Some(Role::Standby));
        let rule = state.rules.last().filter(|rule| rule.acks > 0);
        Node {
            primary: me.is_some() && state.primary() == me && writable(snapshot),
            running,
            standby,
            streaming: standby && facts.is_some_and(|f| f.streaming_from.is_some()),
            confirms: standby && rule.zip(me).is_some_and(|(rule, me)| rule.standbys.contains(&me)),
            snapshot,
        }
    }

    fn tags(&self) -> Tags {
        let state = &self.snapshot.state;
        self.snapshot.my_id().and_then(|me| state.members.get(&me)).map(|m| m.tags.clone()).unwrap_or_default()
    }

    fn by_quorum(&self) -> bool {
        self.snapshot.state.settings.durability == Durability::Quorum
    }

    /// `?tag_KEY=VALUE`: every tag named must have that value; an unknown one never has.
    fn tags_match(&self, parameters: &BTreeMap<String, String>) -> bool {
        let tags = self.tags();
        parameters.iter().filter_map(|(name, value)| Some((name.strip_prefix("tag_")?, value))).all(|(tag, value)| match tag {
            "nofailover" => tags.nofailover.to_string() == *value,
            "nosync" => tags.nosync.to_string() == *value,
            "noloadbalance" => tags.noloadbalance.to_string() == *value,
            "failover_priority" | "priority" => tags.priority.to_string() == *value,
            _ => false,
        })
    }

    /// A running standby that may get reads; with `?lag=` one that is known to be near enough.
    fn fit_to_read(&self, parameters: &BTreeMap<String, String>, received: bool) -> Result<bool, String> {
        let streams = match parameters.get("replication_state").map(String::as_str) {
            None => true,
            Some("streaming") => self.streaming,
            Some(other) => return Err(format!("replication_state={other}: write streaming")),
        };
        let near = self.near(parameters.get("lag").map(String::as_str), received)?;
        Ok(self.standby && streams && near && !self.tags().noloadbalance && self.tags_match(parameters))
    }

    fn near(&self, lag: Option<&str>, received: bool) -> Result<bool, String> {
        let Some(text) = lag else { return Ok(true) };
        let wrong = || format!("lag={text}: write a number of bytes or a size like 16MiB");
        let bound = parse_size(text).ok_or_else(wrong)?;
        Ok(self.lag(received).is_some_and(|lag| lag <= bound))
    }

    /// Bytes not yet replayed, or not yet received; `None` when unknown.
    fn lag(&self, received: bool) -> Option<u64> {
        let me = self.snapshot.my_id()?;
        let replayed = lag_bytes(self.snapshot, me)?;
        if !received {
            return Some(replayed);
        }
        let facts = &self.snapshot.heard(me)?.postgres;
        let primary = &self.snapshot.heard(self.snapshot.state.primary()?)?.postgres;
        Some(facts.position?.lsn.behind(primary.position?.lsn))
    }

    /// The agent's loop ran within the lease's length (twice that where nothing depends on it).
    fn lives(&self) -> bool {
        let ttl = self.snapshot.state.settings.lease_ttl();
        let bound = if self.snapshot.lease.is_some() { ttl } else { ttl * 2 };
        self.snapshot.own_observation().is_some_and(|at| self.snapshot.view.now.since(at) <= bound)
    }

    fn ready(&self, parameters: &BTreeMap<String, String>) -> Result<bool, String> {
        let received = match parameters.get("mode").map(String::as_str) {
            None | Some("apply") => false,
            Some("write") => true,
            Some(other) => return Err(format!("mode={other}: write apply or write")),
        };
        let near = match parameters.get("lag") {
            Some(lag) => self.near(Some(lag), received)?,
            None => self.lag(received).is_some_and(|lag| lag <= self.snapshot.state.settings.max_lag_bytes),
        };
        Ok(self.streaming && near)
    }
}
