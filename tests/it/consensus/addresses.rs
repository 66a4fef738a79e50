//! Members whose addresses change, as operators change them: a node stops, its file is edited, and it starts again. What nodes tell
//! the cluster of themselves at each start, these tests tell in their place.

use super::*;
use trilithon::proto::v1::{PeerHeader, RaftVoteRequest};

fn id(i: usize) -> NodeId {
    NodeId(i as u64 + 1)
}

impl Cluster {
    /// Stop these members. Their next processes listen elsewhere, and their own files know it; who runs on learns nothing.
    async fn relocate(&mut self, moves: &[(usize, SocketAddr)]) {
        for (i, address) in moves {
            let site = &mut self.sites[*i];
            site.kill().await;
            (site.address, site.listen) = (*address, *address);
            self.peers[*i] = site.peer();
        }
        for (i, _) in moves {
            self.start(*i).await;
        }
    }

    /// Member `i` tells where it is, and the state of every member follows.
    async fn tell(&self, i: usize) {
        let site = &self.sites[i];
        let command = Command::UpdateMember { node: id(i), member: member(&site.name, site.address) };
        let proposal = Proposal { expect: None, request: None, command };
        site.handle().propose_within(&proposal, LONG).await.unwrap().unwrap();
        for other in &self.sites {
            other.until(|s| s.members[&id(i)].addresses.grpc == site.address.to_string()).await;
        }
    }

    /// Every member hears what any of them writes, and reaches each other one.
    async fn assert_whole(&self, marker: i32) {
        for (i, site) in self.sites.iter().enumerate() {
            write(&site.handle(), marker + i as i32).await;
            for other in &self.sites {
                other.until(|s| priority(s) == marker + i as i32).await;
            }
            let reach = site.handle().reach();
            let others = self.sites.len() - 1;
            eventually("all reached", || reach.borrow().values().filter(|r| r.state.is_ok()).count() == others).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moves_is_heard_without_a_change_of_leader() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    let moved = (leader + 1) % 3;
    let leads = |cluster: &Cluster| {
        let known = *cluster.sites[leader].handle().leadership().borrow();
        (known.leader, known.term)
    };
    let before = leads(&cluster);
    cluster.relocate(&[(moved, free_address())]).await;
    write(&cluster.sites[leader].handle(), 41).await;
    cluster.sites[moved].until(|s| priority(s) == 41).await;
    cluster.tell(moved).await;
    cluster.assert_whole(50).await;
    assert_eq!(leads(&cluster), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_moves_as_a_whole_elects_a_leader_by_its_configuration() {
    let mut cluster = Cluster::formed(3).await;
    write(&cluster.sites[0].handle(), 7).await;
    cluster.relocate(&[0, 1, 2].map(|i| (i, free_address()))).await;
    cluster.leader().await;
    for i in 0..3 {
        cluster.tell(i).await;
    }
    cluster.assert_whole(60).await;
    // By now the replicated state alone is enough: one more restart with the file of before.
    cluster.peers.iter_mut().for_each(|peer| peer.address = free_address().to_string());
    cluster.sites[1].kill().await;
    cluster.start(1).await;
    cluster.assert_whole(70).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_that_move_at_once_find_each_other_through_the_third() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    for moved in [leader, (leader + 1) % 3] {
        let site = &mut cluster.sites[moved];
        site.kill().await;
        site.address = free_address();
        site.listen = site.address;
    }
    // Nobody's file is right but in what it says of its own node.
    cluster.start(leader).await;
    cluster.start((leader + 1) % 3).await;
    cluster.assert_whole(90).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_that_change_places_are_not_taken_for_each_other() {
    let mut cluster = Cluster::formed(3).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let moves = [(one, cluster.sites[other].address), (other, cluster.sites[one].address)];
    cluster.relocate(&moves).await;
    cluster.leader().await;
    cluster.tell(one).await;
    cluster.tell(other).await;
    cluster.assert_whole(80).await;
    for (i, site) in cluster.sites.iter().enumerate() {
        assert_eq!(site.handle().node_id(), Some(id(i)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_for_the_node_that_had_this_address_before_is_refused() {
    let cluster = Cluster::formed(2).await;
    let cluster_id = cluster.sites[0].handle().status().unwrap().cluster.to_string();
    let mut client = PeerClient::connect(format!("http://{}", cluster.sites[1].address)).await.unwrap();
    let header = PeerHeader { format: 1, cluster_id, from: 1, to: 7 };
    let status = client.vote(RaftVoteRequest { header: Some(header), ..RaftVoteRequest::default() }).await.unwrap_err();
    assert!(status.message().contains("is n2, not n7"), "{status:?}");
}
