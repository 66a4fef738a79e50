//! Who a fault strikes: roles looked up at the moment of injection, and everything a fault needs to know of one member.

use super::injected::Ctx;
use super::kinds::Aim;
use super::procs::{self, Kind, Process};
use crate::cluster::{self, Member, Node, Row, Status};
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// One member: its node, and its datacenter.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub node: &'a Node,
    pub site: &'a Site,
    cluster: &'a crate::cluster::Cluster,
}

impl<'a> Target<'a> {
    pub fn name(&self) -> &'a str {
        self.site.name()
    }

    /// Number of the datacenter in the world.
    pub fn index(&self) -> usize {
        self.site.index()
    }

    pub fn address(&self) -> Ipv4Addr {
        self.site.address()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.cluster.system().data_dir(self.site)
    }

    pub fn pgdata(&self) -> PathBuf {
        self.cluster.system().pgdata(self.site)
    }

    /// Log and snapshots of consensus.
    pub fn consensus(&self) -> PathBuf {
        self.data_dir().join("consensus")
    }

    pub fn node_log(&self) -> PathBuf {
        self.site.logs().join("node.log")
    }

    pub fn postgres_log(&self) -> PathBuf {
        self.data_dir().join("postgres.log")
    }

    /// Its processes of `kind`.
    pub fn processes(&self, kind: Kind) -> Vec<Process> {
        procs::find(&self.site.pids(), kind)
    }

    /// Its only, or first, process of `kind`.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&self, kind: Kind) -> Result<Process> {
        self.processes(kind).into_iter().next().with_context(|| format!("{} has no {}", self.name(), kind.words()))
    }

    pub fn node_is_dead(&self) -> bool {
        self.processes(Kind::Node).is_empty()
    }

    /// # Errors
    /// As of [`Node::start`].
    pub fn start(&self) -> Result<()> {
        self.node.start()
    }

    /// As superuser on its own Postgres, from its own datacenter.
    ///
    /// # Errors
    /// As of [`cluster::Cluster::sql`].
    pub fn sql(&self, sql: &str) -> Result<Vec<Row>> {
        self.cluster.sql(self.name(), cluster::Target::Own, sql)
    }

    /// First column of the first row.
    ///
    /// # Errors
    /// As of [`Target::sql`], or there is no row.
    pub fn value(&self, sql: &str) -> Result<String> {
        let rows = self.sql(sql)?;
        let value = rows.first().and_then(|row| row.first().cloned()).flatten();
        value.with_context(|| format!("{}: no row for {sql}", self.name()))
    }
}

/// All members that hold data.
pub fn all<'a>(ctx: &Ctx<'a>) -> Vec<Target<'a>> {
    let (world, cluster) = (ctx.world, ctx.cluster);
    let pairs = world.sites().iter().filter_map(|site| Some((site, cluster.node(site.name()).ok()?)));
    pairs.map(|(site, node)| Target { node, site, cluster }).collect()
}

/// The member called `name`.
///
/// # Errors
/// There is none.
pub fn named<'a>(ctx: &Ctx<'a>, name: &str) -> Result<Target<'a>> {
    all(ctx).into_iter().find(|t| t.name() == name).with_context(|| format!("no datacenter is called {name}"))
}

/// Whom `aim` means now. In the middle of an election a role may be vacant for a moment, which is waited for.
///
/// # Errors
/// Nobody has that role within three seconds.
pub fn resolve<'a>(aim: Aim, ctx: &Ctx<'a>) -> Result<Vec<Target<'a>>> {
    const VACANT_LIMIT: Duration = Duration::from_secs(3);
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    if matches!(aim, Aim::Everyone | Aim::Clients) {
        return Ok(all(ctx));
    }
    let end = ctx.clock.now().after(VACANT_LIMIT);
    loop {
        let names = ctx.cluster.status().and_then(|status| names_of(aim, &without_the_dead(ctx, status)));
        match names {
            Ok(names) => return names.iter().map(|name| named(ctx, name)).collect(),
            Err(error) if ctx.clock.now() > end => return Err(error),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Others remember a dead member for a moment as it was: it is known here who has no process.
fn without_the_dead(ctx: &Ctx<'_>, mut status: Status) -> Status {
    let is_dead = |t: &Target<'_>| t.node_is_dead() && t.processes(Kind::Postmaster).is_empty();
    let dead: Vec<&str> = all(ctx).iter().filter(|t| is_dead(t)).map(|t| t.name()).collect();
    status.members.iter_mut().filter(|m| dead.contains(&m.name.as_str())).for_each(|m| m.state = "unreachable".to_owned());
    status
}

fn names_of(aim: Aim, status: &Status) -> Result<Vec<String>> {
    let names = match aim {
        Aim::Everyone | Aim::Clients => Vec::new(),
        Aim::Primary => vec![primary(status)?],
        Aim::RaftLeader => vec![leader(status).context("there is no consensus leader at this moment")?],
        Aim::SyncStandby => vec![sync_standbys(status).into_iter().next().context("no standby is synchronous at this moment")?],
        Aim::OtherStandby => vec![standbys(status).pop().context("there is no standby")?],
        Aim::Candidate => vec![candidate(status).context("there is no candidate at this moment")?],
        Aim::Link => vec![primary(status)?, standbys(status).into_iter().next().context("there is no standby")?],
    };
    if names.is_empty() {
        bail!("nobody is {}", aim.words());
    }
    Ok(names)
}

/// Once the primary is lost, whoever is to take its place: a dead one cannot be struck again.
fn primary(status: &Status) -> Result<String> {
    let lost = |name: &String| status.member(name).is_none_or(|m| m.state == "unreachable");
    let alive = status.primary.clone().filter(|name| !lost(name));
    alive.or_else(|| candidate(status)).context("there is no primary at this moment")
}

/// Leader of the consensus group, as the members say.
pub fn leader(status: &Status) -> Option<String> {
    status.members.iter().find(|m| m.raft.as_deref() == Some("leader")).map(|m| m.name.clone())
}

fn is_standby(status: &Status, member: &Member) -> bool {
    status.primary.as_deref() != Some(&member.name) && member.role != "witness"
}

/// All standbys; the one that also leads consensus comes first, so that the last is the most ordinary.
fn standbys(status: &Status) -> Vec<String> {
    let (mut leads, others): (Vec<&Member>, Vec<&Member>) = status
        .members
        .iter()
        .filter(|m| is_standby(status, m) && m.state != "unreachable")
        .partition(|m| m.raft.as_deref() == Some("leader"));
    leads.extend(others);
    leads.into_iter().map(|m| m.name.clone()).collect()
}

fn sync_standbys(status: &Status) -> Vec<String> {
    let alive = |m: &&Member| is_standby(status, m) && m.state != "unreachable";
    let sync = status.members.iter().filter(alive).filter(|m| m.sync.as_deref() == Some("sync"));
    sync.map(|m| m.name.clone()).collect()
}

/// While something is being elected `primary` names the elected one; before, the least lag is the best guess.
fn candidate(status: &Status) -> Option<String> {
    if status.phase == "promoting" && status.primary.is_some() {
        return status.primary.clone();
    }
    let alive = |m: &&Member| is_standby(status, m) && m.state != "unreachable";
    let nearest = status.members.iter().filter(alive).min_by_key(|m| m.lag_bytes.unwrap_or(u64::MAX));
    nearest.map(|m| m.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, role: &str, state: &str, raft: &str, lag: u64) -> Member {
        let (sync, raft) = ((role == "standby").then(|| "sync".to_owned()), Some(raft.to_owned()));
        Member { name: name.into(), role: role.into(), state: state.into(), sync, raft, lag_bytes: Some(lag), ..Member::default() }
    }

    fn steady() -> Status {
        let members = vec![
            member("dc1", "primary", "running", "follower", 0),
            member("dc2", "standby", "streaming", "leader", 500),
            member("dc3", "standby", "streaming", "follower", 20),
        ];
        Status { phase: "steady".into(), primary: Some("dc1".into()), members, ..Status::default() }
    }

    #[test]
    fn roles_are_read_from_the_status() {
        let aimed = |aim| names_of(aim, &steady()).unwrap();
        assert_eq!(aimed(Aim::Primary), ["dc1"]);
        assert_eq!(aimed(Aim::RaftLeader), ["dc2"]);
        assert_eq!(aimed(Aim::OtherStandby), ["dc3"]);
        assert_eq!(aimed(Aim::Candidate), ["dc3"]);
        assert_eq!(aimed(Aim::Link)[0], "dc1");
    }

    #[test]
    fn when_the_primary_is_lost_its_successor_is_struck() {
        let mut electing = steady();
        electing.phase = "electing".into();
        electing.members[0].state = "unreachable".into();
        assert_eq!(names_of(Aim::Primary, &electing).unwrap(), ["dc3"]);
        electing.members.iter_mut().for_each(|m| m.state = "unreachable".into());
        assert!(names_of(Aim::SyncStandby, &electing).is_err());
    }
}
