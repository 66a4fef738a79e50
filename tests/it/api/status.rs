//! The status document from built states.

use super::feed::{DC1, access};
use std::sync::Arc;
use std::time::Duration;
use trilithon::api::status;
use trilithon::cluster::{ClusterState, Durability, MemberKind, Phase, SyncRule};
use trilithon::ha::{PostgresState, Role, View};
use trilithon::proto::v1::ClusterStatus;
use trilithon::types::{Epoch, Millis, NodeId, Revision, Timeline};

const DC2: NodeId = NodeId(2);

/// What a test does to the steady cluster.
type Change = dyn Fn(&mut ClusterState, &mut View);

/// The document that node `me` gives after these changes to the steady cluster.
fn document(me: NodeId, change: impl FnOnce(&mut ClusterState, &mut View)) -> ClusterStatus {
    let (access, fake) = access(me);
    let (mut state, mut view) = ((**fake.state.borrow()).clone(), (**fake.view.borrow()).clone());
    change(&mut state, &mut view);
    fake.state.send_replace(Arc::new(state));
    fake.view.send_replace(Arc::new(view));
    status(&access.snapshot())
}

fn member<'a>(status: &'a ClusterStatus, name: &str) -> &'a trilithon::proto::v1::MemberStatus {
    status.members.iter().find(|m| m.name == name).unwrap()
}

fn silence(view: &mut View, node: NodeId) {
    view.observations.get_mut(&node).unwrap().at = Millis(0);
}

#[test]
fn the_steady_document_has_the_promised_keys_and_values() {
    let mut json = serde_json::to_value(document(DC1, |_, _| ())).unwrap();
    json["lease"]["remaining_ms"] = 0.into();
    let expected = serde_json::json!({
        "cluster": "test", "phase": "steady", "epoch": 1, "revision": 9, "primary": "dc1",
        "lease": { "holder": "dc1", "remaining_ms": 0 },
        "rule": { "standbys": ["dc2", "dc3"], "acks": 1, "changing": false },
        "reason": "all well", "warnings": [], "paused": false, "writable": true, "quorum": true, "system": "42", "answered_by": "dc1",
        "members": [
            { "name": "dc1", "datacenter": "dc1", "role": "primary", "state": "running", "timeline": 1, "lsn": "0/3000100",
              "lag_bytes": null, "lag_seconds": null, "sync": null, "raft": "leader", "version": "0.1.0", "postgres_version": "15.6",
              "step": "nothing to do", "address": "127.0.0.1:5431", "id": 1,
              "tags": { "priority": 100, "nofailover": false, "nosync": false, "noloadbalance": false, "fenced": false } },
            { "name": "dc2", "datacenter": "dc2", "role": "standby", "state": "streaming", "timeline": 1, "lsn": "0/3000100",
              "lag_bytes": 256, "lag_seconds": 1.5, "sync": "sync", "raft": "follower", "version": "0.1.0", "postgres_version": "15.6",
              "step": "nothing to do", "address": "127.0.0.1:5432", "id": 2,
              "tags": { "priority": 100, "nofailover": false, "nosync": false, "noloadbalance": false, "fenced": false } },
            { "name": "dc3", "datacenter": "dc3", "role": "standby", "state": "streaming", "timeline": 1, "lsn": "0/3000100",
              "lag_bytes": 256, "lag_seconds": 1.5, "sync": "sync", "raft": "follower", "version": "0.1.0", "postgres_version": "15.6",
              "step": "nothing to do", "address": "127.0.0.1:5433", "id": 3,
              "tags": { "priority": 100, "nofailover": false, "nosync": false, "noloadbalance": false, "fenced": false } },
        ],
    });
    assert_eq!(json, expected, "{json:#}");
}

#[test]
fn writes_count_as_accepted_only_with_lease_phase_role_and_proof() {
    assert!(document(DC2, |_, _| ()).writable);
    let refused: [(&str, &Change); 6] = [
        ("promoting", &|s, _| s.phase = Phase::Promoting { candidate: DC1 }),
        ("draining", &|s, _| s.phase = Phase::Draining { from: DC1, to: DC2 }),
        ("lease old", &|_, v| v.lease_seen = Millis(0)),
        ("lease given back", &|s, _| s.lease.holder = None),
        ("not proved in this epoch", &|_, v| v.observations.get_mut(&DC1).unwrap().observation.settled = None),
        ("Postgres down", &|_, v| v.observations.get_mut(&DC1).unwrap().observation.postgres.state = PostgresState::Stopped),
    ];
    for (case, change) in refused {
        assert!(!document(DC2, change).writable, "{case}");
    }
    // INV-9: on the primary itself its own belief counts, not what it observed of the log.
    let (access, fake) = access(DC1);
    *fake.lease.lock().unwrap() = Some((Epoch(1), Duration::ZERO));
    assert!(!status(&access.snapshot()).writable);
    *fake.lease.lock().unwrap() = Some((Epoch(0), Duration::from_secs(9)));
    assert!(!status(&access.snapshot()).writable);
}

#[test]
fn a_silent_member_is_unreachable_and_said_so() {
    let status = document(DC1, |_, view| silence(view, DC2));
    let dc2 = member(&status, "dc2");
    assert_eq!((dc2.state.as_str(), dc2.role.as_str(), dc2.lsn.as_deref(), dc2.lag_bytes), ("unreachable", "standby", None, None));
    assert_eq!(status.warnings, ["dc2 is unreachable"]);
}

#[test]
fn positions_of_two_timelines_are_not_compared() {
    // INV-7.
    let status = document(DC1, |_, view| {
        view.observations.get_mut(&DC2).unwrap().observation.postgres.timeline = Some(Timeline(2));
    });
    assert_eq!(member(&status, "dc2").lag_bytes, None);
}

#[test]
fn dangerous_states_are_warned_about() {
    let warned = |change: &Change| document(DC1, change).warnings.join("\n");
    let solo = warned(&|s, _| s.rules = vec![SyncRule::new(DC1, [], 0)]);
    assert!(solo.contains("solo writes: no standby confirms commits, so losing the disk of dc1 loses acknowledged writes"), "{solo}");
    let few = warned(&|_, v| [DC2, NodeId(3)].into_iter().for_each(|n| silence(v, n)));
    assert!(few.contains("commits wait: 0 of 1 required standbys stream"), "{few}");
    assert!(few.contains("no standby streams from dc1: nothing could take over"), "{few}");
    let asynchronous = warned(&|s, _| s.settings.durability = Durability::Async);
    assert!(asynchronous.contains("may lose up to 1048576 bytes"), "{asynchronous}");
    let lease = warned(&|_, v| v.lease_seen = Millis(0));
    assert!(lease.contains("dc1 has not renewed its lease"), "{lease}");
    let second = warned(&|_, v| v.observations.get_mut(&DC2).unwrap().observation.postgres.role = Some(Role::Primary));
    assert!(second.contains("dc2 runs as a primary although"), "{second}");
    let paused = warned(&|s, _| s.paused = true);
    assert!(paused.contains("`trilithon resume`"), "{paused}");
}

#[test]
fn a_node_without_quorum_says_so_first() {
    let (access, fake) = access(DC2);
    *fake.no_leader.lock().unwrap() = true;
    let status = status(&access.snapshot());
    assert!(!status.quorum);
    assert!(status.warnings[0].starts_with("dc2 sees no quorum"), "{:?}", status.warnings);
}

#[test]
fn a_follower_that_does_not_hear_its_leader_has_no_quorum() {
    let status = document(DC2, |_, view| silence(view, DC1));
    assert!(!status.quorum, "it still names dc1 as the Raft leader, and is cut off from it");
}

#[test]
fn a_node_that_does_not_decide_says_what_it_would_decide() {
    let (access, fake) = access(DC2);
    fake.decision.send_replace(trilithon::agent::DecisionInfo { reason: "long ago".into(), deciding: false });
    assert_eq!(status(&access.snapshot()).reason, "all well");
}

#[test]
fn phases_roles_and_reasons_are_told_in_names() {
    let status = document(DC1, |state, _| {
        state.paused = true;
        state.members.get_mut(&NodeId(3)).unwrap().kind = MemberKind::Witness;
        state.revision = Revision(10);
    });
    assert_eq!((status.phase.as_str(), status.paused), ("paused", true));
    let dc3 = member(&status, "dc3");
    assert_eq!((dc3.role.as_str(), dc3.state.as_str(), dc3.sync.as_deref()), ("witness", "running", None));
    let (access, fake) = access(DC1);
    let reason = "switchover to n2 waits: n2, not now".into();
    fake.decision.send_replace(trilithon::agent::DecisionInfo { reason, deciding: true });
    assert_eq!(trilithon::api::status(&access.snapshot()).reason, "switchover to dc2 waits: dc2, not now");
}
