//! Who a fault strikes: roles looked up at the moment of injection, and everything a fault needs to know of one member.

use super::injected::Ctx;
use super::kinds::Aim;
use super::procs::{self, Kind, Process};
use crate::cluster::{self, Member, Node, Row, Status};
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use std::net::Ipv4Addr;
use std::path::PathBuf;

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

/// Whom `aim` means now.
///
/// # Errors
/// Nobody has that role at this moment.
pub fn resolve<'a>(aim: Aim, ctx: &Ctx<'a>) -> Result<Vec<Target<'a>>> {
    if matches!(aim, Aim::Everyone | Aim::Clients) {
        return Ok(all(ctx));
    }
    let status = ctx.cluster.status()?;
    let primary = status.primary.as_deref().context("there is no primary at this moment")?;
    let names = match aim {
        Aim::Everyone | Aim::Clients => Vec::new(),
        Aim::Primary => vec![primary.to_owned()],
        Aim::RaftLeader => vec![leader(&status).context("there is no consensus leader at this moment")?],
        Aim::SyncStandby => vec![sync_standbys(&status).into_iter().next().context("no standby is synchronous at this moment")?],
        Aim::OtherStandby => vec![standbys(&status).pop().context("there is no standby")?],
        Aim::Candidate => vec![candidate(&status).context("there is no candidate at this moment")?],
        Aim::Link => {
            let other = standbys(&status).into_iter().next().context("there is no standby")?;
            vec![primary.to_owned(), other]
        }
    };
    if names.is_empty() {
        bail!("nobody is {}", aim.words());
    }
    names.iter().map(|name| named(ctx, name)).collect()
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
    let (mut leads, others): (Vec<&Member>, Vec<&Member>) =
        status.members.iter().filter(|m| is_standby(status, m)).partition(|m| m.raft.as_deref() == Some("leader"));
    leads.extend(others);
    leads.into_iter().map(|m| m.name.clone()).collect()
}

fn sync_standbys(status: &Status) -> Vec<String> {
    let sync = status.members.iter().filter(|m| is_standby(status, m) && m.sync.as_deref() == Some("sync"));
    sync.map(|m| m.name.clone()).collect()
}

/// While something is being elected `primary` names the elected one; before, the least lag is the best guess.
fn candidate(status: &Status) -> Option<String> {
    if status.phase == "promoting" {
        return status.primary.clone();
    }
    let alive = |m: &&Member| is_standby(status, m) && m.state != "unreachable";
    let nearest = status.members.iter().filter(alive).min_by_key(|m| m.lag_bytes.unwrap_or(u64::MAX));
    nearest.map(|m| m.name.clone())
}
