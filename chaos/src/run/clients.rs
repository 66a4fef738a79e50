//! Workloads and final reads in a cluster's datacenters: where world, cluster and workload meet.

use super::settings::Settings;
use crate::cluster::Cluster;
use crate::record::RunClock;
use crate::workload::administrator::{Answer, Commander, Orders};
use crate::workload::final_reads::{amcheck, gather};
use crate::workload::final_state::{Final, parse_changes, parse_settings};
use crate::workload::history::Command as Noted;
use crate::workload::place::{Job, Login, Place, Ports};
use crate::workload::{self, Running};
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Standbys must have replayed what the primary wrote.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Looks, a second apart, before the extension counts as missing on a standby.
const AMCHECK_TRIES: u32 = 30;
const NOT_INSTALLED: &str = "amcheck is not installed";
/// Somebody changes his mind about this often.
const COMMAND_EVERY: Duration = Duration::from_secs(25);

/// Clients of every datacenter.
///
/// # Errors
/// As of [`workload::start`].
pub fn start(settings: &Settings, cluster: &Cluster, clock: RunClock) -> Result<Running> {
    let administrator = settings.administrator.then(|| Orders {
        commander: commander(cluster),
        every: COMMAND_EVERY,
        nodes: cluster.data_nodes(),
        pauses: false,
    });
    let plan = workload::Plan { seed: settings.seed, per_second: settings.rate, administrator, ..workload::Plan::default() };
    workload::start(&places(cluster), &login(cluster), clock, &plan)
}

/// Read everything everywhere, and let Postgres's own tool look at the files. The cluster should be whole.
///
/// # Errors
/// The final reads did not come to an end.
pub fn finally(cluster: &Cluster, clock: RunClock) -> Result<Final> {
    let (places, login) = (data_places(cluster), login(cluster));
    let mut end = gather(&places, &login, clock, CATCH_UP)?;
    let primary = cluster.primary();
    // The primary first: there the extension is made, and the others receive it.
    let mut order: Vec<&Place> = places.iter().collect();
    order.sort_by_key(|place| primary.as_deref() != Some(place.name.as_str()));
    for place in order {
        let Ok(node) = cluster.node(&place.name) else { continue };
        let check = || {
            let program = node.site.command(programs(cluster).join("pg_amcheck"));
            amcheck(program, place, &login, primary.as_deref() == Some(place.name.as_str()))
        };
        let mut run = check();
        // Over a bad line the extension reaches a standby some round trips later.
        for _again in 1..AMCHECK_TRIES {
            if run.exit == Some(0) || !run.said.contains(NOT_INSTALLED) {
                break;
            }
            thread::sleep(Duration::from_secs(1));
            run = check();
        }
        if let Some(node) = end.nodes.iter_mut().find(|n| n.name == place.name) {
            node.amcheck = Some(run);
        }
    }
    if cluster.system().tells().history {
        end.changes = asked(cluster, &["history", "-o", "json"], parse_changes);
        end.settings = asked(cluster, &["config", "show", "-o", "json"], parse_settings);
    }
    end.is_paused = cluster.status().ok().map(|s| s.paused);
    Ok(end)
}

/// `None` where nobody answers: who does not know that concludes nothing, and what the run found before holds.
fn asked<T>(cluster: &Cluster, words: &[&str], parse: impl FnOnce(&str) -> Result<T>) -> Option<T> {
    let output = cluster.cli_unnoted(words).ok()?;
    parse(&String::from_utf8_lossy(&output.stdout)).ok()
}

/// Commands that faults and phases gave, as the workload's own administrator notes his.
pub fn given(cluster: &Cluster) -> Vec<Noted> {
    let given = cluster.given().into_iter();
    given.map(|g| Noted { words: g.words, from: g.from, to: g.to, exit: g.exit, said: g.said }).collect()
}

/// Where the server's programs are, as a running server tells.
fn programs(cluster: &Cluster) -> PathBuf {
    let servers = cluster.nodes().iter().flat_map(|n| n.processes());
    let paths = servers.filter(|p| p.program == "postgres" && p.title.starts_with('/'));
    let mut paths = paths.filter_map(|p| p.title.split(' ').next().map(PathBuf::from));
    paths.find_map(|path| path.parent().map(PathBuf::from)).unwrap_or_default()
}

fn login(cluster: &Cluster) -> Login {
    Login { user: "postgres".to_owned(), password: Some(cluster.password().to_owned()), database: "postgres".to_owned() }
}

fn data_places(cluster: &Cluster) -> Vec<Place> {
    let mut places = places(cluster);
    places.retain(|place| cluster.node(&place.name).is_ok_and(|n| !n.witness));
    places
}

fn places(cluster: &Cluster) -> Vec<Place> {
    let ports = cluster.ports();
    let ports = Ports { postgres: ports.postgres, auto: ports.auto, primary: ports.primary, standby: ports.standby };
    let place = |node: &crate::cluster::Node| {
        let site = node.site.clone();
        let spawn = move |job: Job| drop(site.runtime().spawn(job));
        Place { name: node.name.clone(), host: node.site.address().to_string(), ports, spawn: Arc::new(spawn) }
    };
    cluster.nodes().iter().map(place).collect()
}

fn commander(cluster: &Cluster) -> Commander {
    let cluster = cluster.clone();
    Arc::new(move |words: &[&str]| match cluster.cli_unnoted(words) {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Answer { exit: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
        }
        Err(error) => Answer { exit: None, said: format!("{error:#}") },
    })
}
