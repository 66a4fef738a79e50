//! A member whose store was put back in time, as from a snapshot of its machine: its log ends before what it had confirmed.

use super::{Cluster, eventually, write};
use std::path::Path;
use trilithon::consensus::Handle;
use trilithon::types::NodeId;

/// Copies the files of `from`, and of its directories, to `to`.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Until the leader knows that `node` holds all of its log.
async fn until_level(leader: &Handle, node: NodeId) {
    let is_level = || leader.status().is_some_and(|s| s.matched.get(&node).copied().flatten() == s.last_log_index);
    eventually("it holds all that its leader has", is_level).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_from_the_past_catches_up_and_can_be_handed_the_leadership() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    let past = (leader + 1) % 3;
    let node = NodeId(past as u64 + 1);
    write(&cluster.sites[leader].handle(), 1).await;
    cluster.sites[past].kill().await;
    let store = cluster.sites[past].dir.path().join("consensus");
    let old = tempfile::Builder::new().prefix("tri-past-").tempdir().unwrap();
    copy(&store, old.path());
    cluster.start(past).await;
    for round in 2..20 {
        write(&cluster.sites[leader].handle(), round).await;
    }
    let handle = cluster.sites[leader].handle();
    until_level(&handle, node).await;
    cluster.sites[past].kill().await;
    std::fs::remove_dir_all(&store).unwrap();
    copy(old.path(), &store);
    cluster.start(past).await;
    cluster.sites[past].until(|s| super::priority(s) == 19).await;
    until_level(&handle, node).await;
    cluster.hand_over(node).await;
    write(&cluster.sites[leader].handle(), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_is_not_handed_to_a_member_that_lacks_much_of_the_log() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    let absent = (leader + 1) % 3;
    cluster.sites[absent].kill().await;
    let handle = cluster.sites[leader].handle();
    for round in 0..30 {
        write(&handle, round).await;
    }
    let refused = handle.transfer_leader(NodeId(absent as u64 + 1)).await.unwrap_err().to_string();
    assert!(refused.contains("holds the log up to"), "{refused}");
    // Had it been begun, no proposal would be taken until somebody else leads.
    write(&handle, 30).await;
    assert_eq!(cluster.leader().await, leader);
}
