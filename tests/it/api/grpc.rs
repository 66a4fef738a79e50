//! The Admin service over a real loopback connection, fed by watch channels.

use super::feed::serve;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status, Streaming};
use trilithon::api::PeerDialer;
use trilithon::api::grpc::{GrpcDialer, Role, RoleSource};
use trilithon::cluster::{ChangeKind, Command, Phase};
use trilithon::proto::v1::*;
use trilithon::types::{Epoch, NodeId};

async fn drain(mut stream: Streaming<Progress>) -> Result<Vec<String>, Status> {
    let mut lines = Vec::new();
    while let Some(progress) = stream.message().await? {
        lines.push(progress.message);
    }
    Ok(lines)
}

fn id(n: u8) -> String {
    format!("{n:032x}")
}

#[tokio::test]
async fn questions_are_answered_by_any_node() {
    let mut served = serve(NodeId(2), RoleSource::Certificate).await;
    let status = served.client.status(StatusRequest {}).await.unwrap().into_inner().status.unwrap();
    assert_eq!((status.primary.as_deref(), status.answered_by.as_str(), status.writable), (Some("dc1"), "dc2", true));
    let version = served.client.version(VersionRequest {}).await.unwrap().into_inner();
    assert_eq!((version.node.as_str(), version.cluster.as_str()), ("dc2", "test"));
    let history = served.client.history(HistoryRequest {}).await.unwrap().into_inner();
    assert_eq!(history.changes[0].cause, "bootstrap");
    let raft = served.client.raft_status(RaftStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((raft.role.as_str(), raft.leader.as_deref()), ("follower", Some("dc1")));
}

#[tokio::test]
async fn a_lost_answer_is_retried_and_takes_effect_once() {
    // INV-12.
    let mut served = serve(NodeId(1), RoleSource::Certificate).await;
    *served.fake.lose_answers.lock().unwrap() = 1;
    let before = served.fake.state.borrow().revision;
    let lines = drain(served.client.pause(PauseRequest { request_id: id(1), paused: true }).await.unwrap().into_inner()).await.unwrap();
    assert_eq!(lines.last().unwrap(), "paused: no automatic failover until `trilithon resume`");
    assert_eq!(served.fake.state.borrow().revision.0, before.0 + 1);
    // The same request once more, after somebody else resumed: it has taken effect and does not again.
    drain(served.client.pause(PauseRequest { request_id: id(2), paused: false }).await.unwrap().into_inner()).await.unwrap();
    drain(served.client.pause(PauseRequest { request_id: id(1), paused: true }).await.unwrap().into_inner()).await.unwrap();
    assert!(!served.fake.state.borrow().paused);
}

#[tokio::test]
async fn a_switchover_waits_until_the_cluster_is_steady_again() {
    let mut served = serve(NodeId(1), RoleSource::Certificate).await;
    let request = SwitchoverRequest { request_id: id(3), to: Some("dc2".into()) };
    let mut stream = served.client.switchover(request).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().message, "switching over to dc2");
    let change = served.fake.change_requested().await;
    assert_eq!((change.to, change.kind), (NodeId(2), ChangeKind::Switchover));
    served.fake.state.send_modify(|state| {
        let mut next = (**state).clone();
        next.change = None;
        next.epoch = Epoch(2);
        next.phase = Phase::Steady { primary: NodeId(2) };
        *state = Arc::new(next);
    });
    let lines = drain(stream).await.unwrap();
    assert_eq!(lines.last().unwrap(), "dc2 is primary (epoch 2)");
}

#[tokio::test]
async fn refusals_carry_the_code_and_the_remedy() {
    let mut served = serve(NodeId(1), RoleSource::Certificate).await;
    let to = |name: &str| SwitchoverRequest { request_id: id(4), to: Some(name.into()) };
    let refused = drain(served.client.switchover(to("dc1")).await.unwrap().into_inner()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "dc1 is the primary already"));
    let refused = drain(served.client.switchover(to("dc9")).await.unwrap().into_inner()).await.unwrap_err();
    assert_eq!(refused.message(), "there is no member dc9; members are dc1, dc2, dc3");
    let set = |value: &str| ConfigSetRequest { request_id: id(5), key: "ha.lease_ttl".into(), value: Some(value.into()) };
    let refused = drain(served.client.config_set(set("soon")).await.unwrap().into_inner()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = served.client.pause(PauseRequest { request_id: "1".into(), paused: true }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let reinit = |name: &str| ReinitRequest { request_id: id(6), node: name.into(), forwarded: false };
    let refused = drain(served.client.reinit(reinit("dc1")).await.unwrap().into_inner()).await.unwrap_err();
    assert!(refused.message().contains("dc1 is the primary"), "{refused}");
    let unreachable = drain(served.client.reinit(reinit("dc2")).await.unwrap().into_inner()).await.unwrap_err();
    assert_eq!(unreachable.code(), Code::Unavailable);
    assert!(served.fake.proposals.lock().unwrap().iter().all(|p| !matches!(p.command, Command::Configure { .. })));
}

#[tokio::test]
async fn callers_without_a_role_are_refused() {
    let mut served = serve(NodeId(1), RoleSource::Custom(Arc::new(|_| None))).await;
    assert_eq!(served.client.status(StatusRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let mut reader = serve(NodeId(1), RoleSource::Custom(Arc::new(|_| Some(Role::Reader)))).await;
    reader.client.status(StatusRequest {}).await.unwrap();
    let refused = reader.client.pause(PauseRequest { request_id: id(1), paused: true }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn events_are_replayed_then_followed() {
    let mut served = serve(NodeId(1), RoleSource::Certificate).await;
    let mut live = served.client.events(EventsRequest { after_revision: None, no_follow: false }).await.unwrap().into_inner();
    drain(served.client.pause(PauseRequest { request_id: id(1), paused: true }).await.unwrap().into_inner()).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(5), live.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((event.kind.as_str(), event.message.as_str()), ("pause", "paused: automatic failover is off"));
    let request = EventsRequest { after_revision: Some(event.revision - 1), no_follow: true };
    let mut remembered = served.client.events(request).await.unwrap().into_inner();
    assert_eq!(remembered.message().await.unwrap().unwrap().message, event.message);
    assert!(remembered.message().await.unwrap().is_none());
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let served = serve(NodeId(1), RoleSource::Certificate).await;
    let channel = GrpcDialer::default().connect("dc1", &served.address).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let reply = health.check(tonic_health::pb::HealthCheckRequest { service: "trilithon.v1.Admin".into() }).await.unwrap();
    assert_eq!(reply.into_inner().status, tonic_health::pb::health_check_response::ServingStatus::Serving as i32);
}
