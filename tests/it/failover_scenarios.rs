//! What is done to a cluster, and what is measured: one function for each kind of loss, used by the tests (a run or two) and by
//! `make bench` (many). Each leaves the cluster whole and audited.
//!
//! Deliberately absent: thresholds. The callers know what machine they run on.
//!
//! Entry points: the functions returning [`Measured`].

use crate::cluster_harness::{Cluster, LOOK_EVERY};
use crate::cluster_load::{Load, Report, audit};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::Client;
use trilithon::proto::v1::MemberStatus;
use trilithon::types::Millis;

/// A failover that takes longer has failed, whatever the machine.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(60);
/// For a member to come back, with a rewind or a copy if need be.
const REJOIN_TIMEOUT: Duration = Duration::from_secs(180);
/// Writers on each proxy.
const WRITERS_PER_PROXY: usize = 2;

/// What the clients saw.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Longest time that any writer went without an acknowledgement.
    pub outage: Duration,
    /// From the restart of the lost node until it streamed, where one was restarted.
    pub rejoin: Option<Duration>,
    pub acknowledged: usize,
    pub unknown: usize,
    pub errors: BTreeMap<String, u64>,
}

impl Measured {
    fn of(report: &Report, from: Millis, rejoin: Option<Duration>) -> Measured {
        Measured {
            outage: report.outage(from),
            rejoin,
            acknowledged: report.acknowledged(),
            unknown: report.unknown(),
            errors: report.errors(),
        }
    }
}

/// The primary listeners of every datacenter but `name`.
fn ports_elsewhere(cluster: &Cluster, name: &str) -> Vec<u16> {
    cluster.file().nodes.iter().filter(|n| n.name != name).map(|n| n.proxy.primary).collect()
}

async fn load_elsewhere(cluster: &Cluster, primary: &str, table: &str) -> Load {
    Load::start(cluster, table, &ports_elsewhere(cluster, primary), WRITERS_PER_PROXY).await
}

/// Until another primary than that of `epoch` accepts every writer's rows.
async fn wait_new_epoch(cluster: &Cluster, load: &Load, epoch: u64) {
    cluster.wait_for("a newer epoch, steady", FAILOVER_TIMEOUT, |s| s.epoch > epoch && s.phase == "steady").await;
    load.wait_progress(cluster, 10, FAILOVER_TIMEOUT).await;
}

async fn epoch(cluster: &Cluster) -> u64 {
    cluster.status().await.expect("a whole cluster answers").epoch
}

/// kill -9 of the primary's node process and its whole Postgres; later it is started again.
pub async fn primary_datacenter_killed(cluster: &Cluster, table: &str) -> Measured {
    let old = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let load = load_elsewhere(cluster, &old, table).await;
    let before = epoch(cluster).await;
    let event = cluster.now();
    cluster.demo(&["--kill", &old]).await;
    wait_new_epoch(cluster, &load, before).await;
    let rejoin = restart(cluster, &old).await;
    let report = load.finish().await;
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    audit(cluster, &primary, &report).await;
    Measured::of(&report, event, Some(rejoin))
}

/// Start a killed datacenter again; how long until it streams, as it says itself: the others may still remember it as it was.
async fn restart(cluster: &Cluster, name: &str) -> Duration {
    let started = cluster.now();
    cluster.demo(&["--start", name]).await;
    let streams = |m: &MemberStatus| m.name == *name && m.state == "streaming";
    while !cluster.status_of(name).await.is_some_and(|s| s.members.iter().any(streams)) {
        assert!(cluster.now().since(started) < REJOIN_TIMEOUT, "{name} does not stream again\n{}", cluster.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    cluster.now().since(started)
}

/// kill -9 of the primary's postmaster alone; its node process lives.
pub async fn postmaster_killed(cluster: &Cluster, table: &str) -> Measured {
    let old = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let load = load_elsewhere(cluster, &old, table).await;
    let before = epoch(cluster).await;
    let event = cluster.now();
    Cluster::signal(&[cluster.postmaster(&old).expect("a running primary")], Signal::KILL);
    wait_new_epoch(cluster, &load, before).await;
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let rejoin = cluster.now().since(event);
    let report = load.finish().await;
    audit(cluster, &primary, &report).await;
    Measured::of(&report, event, Some(rejoin))
}

/// SIGSTOP of the primary's postmaster alone: it accepts nobody, while the sessions that it has go on, and its node renews the lease.
pub async fn postmaster_hung(cluster: &Cluster, table: &str) -> Measured {
    let old = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let load = load_elsewhere(cluster, &old, table).await;
    let before = epoch(cluster).await;
    let event = cluster.now();
    Cluster::signal(&[cluster.postmaster(&old).expect("a running primary")], Signal::STOP);
    wait_new_epoch(cluster, &load, before).await;
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let rejoin = cluster.now().since(event);
    let report = load.finish().await;
    audit(cluster, &primary, &report).await;
    Measured::of(&report, event, Some(rejoin))
}

/// kill -9 of the primary's node process alone, started again at once: its successor adopts the running Postgres, nobody is elected.
pub async fn node_process_restarted(cluster: &Cluster, table: &str) -> Measured {
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let load = load_elsewhere(cluster, &primary, table).await;
    let (before, postmaster) = (epoch(cluster).await, cluster.postmaster(&primary));
    let event = cluster.now();
    Cluster::signal(&[cluster.node(&primary).pid], Signal::KILL);
    while cluster.node(&primary).pid != 0 {
        assert!(cluster.now().since(event) < REJOIN_TIMEOUT, "nobody noticed the end of {primary}\n{}", cluster.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    cluster.demo(&["--start", &primary]).await;
    while cluster.status_of(&primary).await.is_none() {
        assert!(cluster.now().since(event) < REJOIN_TIMEOUT, "{primary} does not answer again\n{}", cluster.log());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let rejoin = cluster.now().since(event);
    load.wait_progress(cluster, 50, FAILOVER_TIMEOUT).await;
    let report = load.finish().await;
    assert_eq!(cluster.wait_whole(REJOIN_TIMEOUT).await, primary, "no failover without a cause (P5)");
    assert_eq!(
        (epoch(cluster).await, cluster.postmaster(&primary)),
        (before, postmaster),
        "the running Postgres is adopted\n{}",
        cluster.log()
    );
    audit(cluster, &primary, &report).await;
    Measured::of(&report, event, Some(rejoin))
}

/// A planned change of primary, asked for as an administrator would.
pub async fn switchover(cluster: &Cluster, table: &str) -> Measured {
    let old = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let to = cluster.data_nodes().into_iter().find(|n| *n != old).expect("another data member");
    let load = load_elsewhere(cluster, &old, table).await;
    let event = cluster.now();
    let output = cluster.cli(&["switchover", "--to", &to]).await;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "switchover to {to}: {} {said}\n{}", output.status, cluster.log());
    cluster.wait_for("the wanted primary", FAILOVER_TIMEOUT, |s| s.phase == "steady" && s.primary.as_ref() == Some(&to)).await;
    load.wait_progress(cluster, 10, FAILOVER_TIMEOUT).await;
    let report = load.finish().await;
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    assert_eq!(primary, to, "nothing else moved it");
    audit(cluster, &primary, &report).await;
    Measured::of(&report, event, None)
}

/// kill -9 of a standby's datacenter: the primary goes on.
pub async fn standby_killed(cluster: &Cluster, table: &str) -> Measured {
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let victim = cluster.data_nodes().into_iter().find(|n| *n != primary).expect("a standby");
    let ports: Vec<u16> = cluster.file().nodes.iter().filter(|n| n.name != victim).map(|n| n.proxy.primary).collect();
    let load = Load::start(cluster, table, &ports, WRITERS_PER_PROXY).await;
    let before = epoch(cluster).await;
    let event = cluster.now();
    cluster.demo(&["--kill", &victim]).await;
    load.wait_progress(cluster, 100, FAILOVER_TIMEOUT).await;
    let rejoin = restart(cluster, &victim).await;
    load.wait_progress(cluster, 10, FAILOVER_TIMEOUT).await;
    let report = load.finish().await;
    assert_eq!(cluster.wait_whole(REJOIN_TIMEOUT).await, primary, "no failover without a cause (P5)");
    assert_eq!(epoch(cluster).await, before, "no election without a cause (P5)");
    audit(cluster, &primary, &report).await;
    Measured::of(&report, event, Some(rejoin))
}

/// The replay of a standby dies again and again, whenever it has begun; how often it had to until the directory was replaced by a copy.
pub async fn replay_fails(cluster: &Cluster) -> usize {
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let victim = cluster.data_nodes().into_iter().find(|n| *n != primary).expect("a standby");
    let (before, directory) = (epoch(cluster).await, cluster.directory(&victim));
    let (begun, mut killed) = (cluster.now(), Vec::new());
    while cluster.directory(&victim).is_none_or(|now| Some(now) == directory) {
        assert!(cluster.now().since(begun) < REJOIN_TIMEOUT, "{victim} is never copied: {killed:?}\n{}", cluster.log());
        if let Some(pid) = cluster.replaying(&victim).filter(|pid| !killed.contains(pid)) {
            Cluster::signal(&[pid], Signal::ABORT);
            killed.push(pid);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    assert_eq!(cluster.wait_whole(REJOIN_TIMEOUT).await, primary, "no failover without a cause (P5)");
    assert_eq!(epoch(cluster).await, before, "no election without a cause (P5)");
    killed.len()
}

/// What a frozen primary acknowledged to direct sessions after it woke up.
#[derive(Clone, Debug)]
pub struct Thawed {
    pub measured: Measured,
    /// Rows acknowledged to a session that waits for standbys, as every session does by default.
    pub synchronous: u64,
    /// Rows acknowledged to a session with synchronous_commit=local, and for how long after the thaw.
    pub local: u64,
    pub local_for: Duration,
}

/// SIGSTOP of everything in the primary's datacenter for `frozen`, then SIGCONT.
pub async fn primary_frozen(cluster: &Cluster, table: &str, frozen: Duration) -> Thawed {
    let old = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let load = load_elsewhere(cluster, &old, table).await;
    let synchronous = direct(cluster, &old, "on").await;
    let local = direct(cluster, &old, "local").await;
    local.batch_execute(&format!("CREATE TABLE {table}_direct (id bigint)")).await.expect("a table");
    let before = epoch(cluster).await;
    let event = cluster.now();
    let processes = cluster.processes(&old);
    Cluster::signal(&processes, Signal::STOP);
    wait_new_epoch(cluster, &load, before).await;
    while cluster.now().since(event) < frozen {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let thawed = cluster.now();
    Cluster::signal(&processes, Signal::CONT);
    let insert = format!("INSERT INTO {table}_direct VALUES (1)");
    let (waiting, alone) =
        tokio::join!(insert_until_refused(cluster, &synchronous, &insert), insert_until_refused(cluster, &local, &insert));
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let rejoin = cluster.now().since(thawed);
    load.wait_progress(cluster, 10, FAILOVER_TIMEOUT).await;
    let report = load.finish().await;
    audit(cluster, &primary, &report).await;
    let last = alone.1.unwrap_or(thawed);
    Thawed { measured: Measured::of(&report, event, Some(rejoin)), synchronous: waiting.0, local: alone.0, local_for: last.since(thawed) }
}

async fn direct(cluster: &Cluster, name: &str, synchronous_commit: &str) -> Client {
    let port = cluster.node(name).postgres.expect("it holds data").port;
    let client = cluster.connect(port, &cluster.file().password).await.expect("Postgres accepts direct connections");
    client.batch_execute(&format!("SET synchronous_commit = {synchronous_commit}")).await.expect("a setting of every session");
    client
}

/// Insert until an error; how many were acknowledged, and when the last one was. A wait without end counts as refused.
async fn insert_until_refused(cluster: &Cluster, client: &Client, sql: &str) -> (u64, Option<Millis>) {
    let (mut count, mut last) = (0, None);
    while let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(10), client.batch_execute(sql)).await {
        count += 1;
        last = Some(cluster.now());
    }
    (count, last)
}

/// The primary is cut off from the others, then joined again.
pub async fn primary_cut_off(cluster: &Cluster, table: &str, cut: Duration) -> Measured {
    let old = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let load = load_elsewhere(cluster, &old, table).await;
    let before = epoch(cluster).await;
    let event = cluster.now();
    cluster.demo(&["--cut", &old]).await;
    wait_new_epoch(cluster, &load, before).await;
    while cluster.now().since(event) < cut {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let healed = cluster.now();
    cluster.demo(&["--heal"]).await;
    let primary = cluster.wait_whole(REJOIN_TIMEOUT).await;
    let rejoin = cluster.now().since(healed);
    load.wait_progress(cluster, 10, FAILOVER_TIMEOUT).await;
    let report = load.finish().await;
    audit(cluster, &primary, &report).await;
    Measured::of(&report, event, Some(rejoin))
}
