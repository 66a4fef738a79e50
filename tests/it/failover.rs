//! Loss after loss on real clusters, in small numbers: `make bench` runs the same scenarios many times and prints figures.
//!
//! The bounds here are what a loaded build machine must still reach; they catch a failover that does not come, not one that is
//! a little slow. What is exact is the audit: no acknowledged row lost, none twice (P1, P2, P6; INV-4, INV-7, INV-11).

use crate::cluster_harness::Cluster;
use crate::failover_scenarios as scenarios;
use std::path::Path;
use std::time::Duration;
use trilithon::ha::ReplayReport;

/// Clusters are heavy: one at a time, also where tests run in parallel.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_trilithon"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_and_switchover_lose_nothing() {
    let _one = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(program(), "losses", &[]).await;
    let killed = scenarios::primary_datacenter_killed(&cluster, "killed").await;
    println!("primary's datacenter killed: {killed:?}");
    assert!(killed.outage < Duration::from_secs(15), "{killed:?}");

    let postmaster = scenarios::postmaster_killed(&cluster, "postmaster").await;
    println!("postmaster killed: {postmaster:?}");
    assert!(postmaster.outage < Duration::from_secs(12), "{postmaster:?}");

    let planned = scenarios::switchover(&cluster, "planned").await;
    println!("switchover: {planned:?}");
    assert!(planned.errors.is_empty(), "P4: pooled clients saw errors: {planned:?}");
    assert!(planned.outage < Duration::from_secs(8), "{planned:?}");

    // A standby may lead the consensus: a busy machine may take longer to elect another leader than the usual lease lasts.
    set_lease(&cluster, "10s").await;
    let standby = scenarios::standby_killed(&cluster, "standby").await;
    println!("standby killed: {standby:?}");
    assert!(standby.errors.is_empty(), "writers on the living datacenters saw errors: {standby:?}");

    // Once more where the copy comes just when another has begun.
    let failures = scenarios::replay_fails(&cluster).await;
    assert!((3..=4).contains(&failures), "a standby that cannot replay is copied, and not before: {failures}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_of_a_frozen_primary_lets_no_second_one_acknowledge() {
    let _one = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(program(), "frozen", &[]).await;
    let thawed = scenarios::primary_frozen(&cluster, "frozen", Duration::from_secs(10)).await;
    println!("frozen for 10 s: {thawed:?}");
    assert!(thawed.measured.outage < Duration::from_secs(20), "{thawed:?}");
    assert_eq!(thawed.synchronous, 0, "P2: the old primary acknowledged after the new one did: {thawed:?}");
    assert!(thawed.local_for < Duration::from_secs(2), "it must notice at once that its time is over: {thawed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_of_a_hung_postmaster_and_of_a_node_process_that_dies_alone() {
    let _one = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(program(), "hung", &[]).await;
    let hung = scenarios::postmaster_hung(&cluster, "hung").await;
    println!("postmaster hung: {hung:?}");
    assert!(hung.outage < Duration::from_secs(15), "{hung:?}");

    // A loaded machine may take longer to start a process than a lease lasts; what is looked at is the adoption.
    set_lease(&cluster, "30s").await;
    let adopted = scenarios::node_process_restarted(&cluster, "adopted").await;
    println!("node process killed and restarted: {adopted:?}");
    assert!(adopted.outage < Duration::from_secs(20), "{adopted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_of_a_primary_that_is_cut_off_heals_by_itself() {
    let _one = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(program(), "cut", &["--wan-ms", "10"]).await;
    let cut = scenarios::primary_cut_off(&cluster, "cut", Duration::from_secs(12)).await;
    println!("cut off for 12 s: {cut:?}");
    assert!(cut.outage < Duration::from_secs(20), "{cut:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_works_with_a_witness_as_the_third() {
    let _one = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(program(), "witness", &["--witness"]).await;
    let killed = scenarios::primary_datacenter_killed(&cluster, "killed").await;
    println!("with a witness: {killed:?}");
    assert!(killed.outage < Duration::from_secs(15), "{killed:?}");

    cluster.wait_whole(Duration::from_secs(60)).await;
    a_lease_of_another_length_costs_no_primary(&cluster).await;
}

async fn set_lease(cluster: &Cluster, ttl: &str) {
    let set = cluster.cli(&["config", "set", "ha.lease_ttl", ttl]).await;
    assert!(set.status.success(), "{set:?}");
}

/// INV-9: what an administrator orders about the lease is no reason to end a primary that is well (P5).
async fn a_lease_of_another_length_costs_no_primary(cluster: &Cluster) {
    let before = cluster.status().await.expect("somebody answers");
    for ttl in ["60s", "3s"] {
        set_lease(cluster, ttl).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let now = cluster.wait_for("a valid lease", Duration::from_secs(30), |s| s.writable).await;
        assert_eq!((now.epoch, &now.primary), (before.epoch, &before.primary), "with a lease of {ttl}");
    }
}

/// What the nodes' core was asked and answered in a failover gives the same answers again; a line that somebody changed does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_is_repeated_by_the_core_from_its_traces() {
    let _one = ONE_AT_A_TIME.lock().await;
    let traces = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_in(program(), "traced", &[], &[("TRILITHON_TELEMETRY__CORE_TRACE", traces.path())]).await;
    let killed = scenarios::primary_datacenter_killed(&cluster, "killed").await;
    println!("with traces: {killed:?}");
    drop(cluster);
    let (code, report) = replay(traces.path());
    println!("{report:?}");
    assert_eq!((code, report.disagreements, report.dropped), (Some(0), 0, 0), "{:?}", report.shown);
    assert!(report.applied > 20 && report.decided > 20 && report.stepped > 20, "{report:?}");

    let election = "\"reason\":{\"most_advanced\"";
    let files: Vec<_> = std::fs::read_dir(traces.path()).unwrap().map(|f| f.unwrap().path()).collect();
    let file = files.iter().find(|f| std::fs::read_to_string(f).unwrap().contains(election)).expect("somebody decided the election");
    let changed = std::fs::read_to_string(file).unwrap().replacen(election, "\"reason\":{\"loss_accepted\"", 1);
    std::fs::write(file, changed).unwrap();
    let (code, report) = replay(traces.path());
    assert_eq!(code, Some(1), "{report:?}");
    assert!(report.disagreements >= 1 && report.shown[0].contains("LossAccepted"), "{report:?}");
}

fn replay(traces: &Path) -> (Option<i32>, ReplayReport) {
    let output = std::process::Command::new(program()).args(["replay", "--json"]).arg(traces).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}
