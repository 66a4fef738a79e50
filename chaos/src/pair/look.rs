//! Who is primary, as one datacenter sees it, and the script that promotes the standby.

use super::{GONE_AFTER, LOOK_EVERY, PORTS, Peer};
use crate::cluster::{Member, Status};
use crate::record::{At, RunClock};
use anyhow::{Context as _, Result};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// What a server said when it was last asked; `None`: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub is_primary: bool,
    pub timeline: u32,
    pub is_streaming: bool,
}

/// What one datacenter sees.
pub struct View {
    me: String,
    /// The two servers, then the watcher.
    peers: Vec<Peer>,
    said: [Option<Said>; 2],
}

impl View {
    pub fn of(me: &str, peers: &[Peer]) -> View {
        View { me: me.to_owned(), peers: peers.to_vec(), said: [None, None] }
    }

    /// Of two that call themselves primary the newer one.
    pub fn primary(&self) -> Option<usize> {
        let primaries = (0..2).filter(|server| self.said[*server].is_some_and(|said| said.is_primary));
        primaries.max_by_key(|server| self.said[*server].map(|said| said.timeline))
    }

    pub fn standby(&self) -> Option<usize> {
        (0..2).find(|server| self.said[*server].is_some_and(|said| !said.is_primary))
    }

    pub fn said(&self, server: usize) -> Option<Said> {
        self.said[server]
    }

    pub fn peer(&self, server: usize) -> Option<&Peer> {
        self.peers.get(server)
    }

    /// For the harness.
    pub fn status(&self) -> Status {
        let primary = self.primary();
        let member = |(number, peer): (usize, &Peer)| {
            let said = self.said.get(number).copied().flatten();
            let (role, state) = match said {
                _ if number > 1 => ("witness", "running"),
                Some(said) if said.is_primary => ("primary", "running"),
                Some(said) if said.is_streaming => ("standby", "streaming"),
                Some(_) => ("standby", "running"),
                None => ("standby", "unreachable"),
            };
            let timeline = said.map(|s| s.timeline);
            let (name, datacenter) = (peer.name.clone(), peer.name.clone());
            Member { name, datacenter, role: role.to_owned(), state: state.to_owned(), timeline, ..Member::default() }
        };
        Status {
            cluster: "pair".to_owned(),
            phase: if primary.is_some() { "steady" } else { "electing" }.to_owned(),
            epoch: self.said.iter().flatten().map(|said| u64::from(said.timeline)).max().unwrap_or(0),
            primary: primary.and_then(|server| Some(self.peers.get(server)?.name.clone())),
            members: self.peers.iter().enumerate().map(member).collect(),
            writable: primary.is_some(),
            answered_by: self.me.clone(),
            quorum: true,
            ..Status::default()
        }
    }
}

/// Ask both servers over and over.
pub async fn watch(view: Rc<RefCell<View>>) -> Result<()> {
    loop {
        for server in 0..2 {
            let Some(peer) = view.borrow().peer(server).cloned() else { continue };
            let said = timeout(ANSWER_LIMIT, ask(&peer, STATE)).await.ok().and_then(Result::ok).and_then(|row| parse(&row));
            view.borrow_mut().said[server] = said;
        }
        sleep(LOOK_EVERY).await;
    }
}

const STATE: &str = "SELECT NOT pg_is_in_recovery(), (SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
                     CASE WHEN pg_is_in_recovery() THEN (SELECT min_recovery_end_timeline FROM pg_control_recovery()) \
                     ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END";

fn parse(row: &[String]) -> Option<Said> {
    let [primary, receivers, timeline] = row else { return None };
    Some(Said { is_primary: primary == "t", is_streaming: receivers != "0", timeline: timeline.parse().unwrap_or(0) })
}

/// The script: the primary was not seen for a while, and the standby is there.
pub async fn promote_when_gone(view: Rc<RefCell<View>>) -> Result<()> {
    let clock = RunClock::start();
    let mut seen: Option<At> = None;
    loop {
        sleep(LOOK_EVERY).await;
        let (primary, standby) = (view.borrow().primary(), view.borrow().standby());
        if primary.is_some() {
            seen = Some(clock.now());
        }
        let (Some(last), Some(standby)) = (seen, standby) else { continue };
        if clock.now().since(last) < GONE_AFTER {
            continue;
        }
        let Some(peer) = view.borrow().peer(standby).cloned() else { continue };
        anstream::eprintln!("the primary is gone: promoting {}", peer.name);
        let _ = timeout(ANSWER_LIMIT, ask(&peer, "SELECT pg_promote(false)")).await;
        sleep(GONE_AFTER).await;
    }
}

/// One row of text.
async fn ask(peer: &Peer, sql: &str) -> Result<Vec<String>> {
    let mut config = Config::new();
    config.host(peer.address.to_string()).port(PORTS.postgres).user("postgres").dbname("postgres").application_name("pair");
    let (client, connection) = config.connect(NoTls).await?;
    let mut driver = JoinSet::new();
    driver.spawn_local(connection);
    let messages = client.simple_query(sql).await?;
    let row = messages.into_iter().find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
    let row = row.context("no row")?;
    Ok((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_primaries_the_newer_one_is_believed() {
        let peer = |name: &str| Peer { name: name.to_owned(), address: std::net::Ipv4Addr::LOCALHOST };
        let mut view = View::of("dc3", &[peer("dc1"), peer("dc2"), peer("dc3")]);
        assert_eq!((view.primary(), view.status().writable), (None, false));
        let said = |timeline| Some(Said { is_primary: true, timeline, is_streaming: false });
        view.said = [said(1), said(2)];
        assert_eq!(view.status().primary.as_deref(), Some("dc2"));
        view.said = [said(1), Some(Said { is_primary: false, timeline: 1, is_streaming: true })];
        assert!(view.status().is_whole(3), "the one that only watches is a member too");
    }
}
