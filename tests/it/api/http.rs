//! HTTP endpoints over real connections: Patroni's meanings of 200 and 503.

use super::feed::{DC1, Fake, access};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trilithon::api::http::{router, serve};
use trilithon::cluster::{Command, Phase};
use trilithon::telemetry::Metrics;
use trilithon::types::{Epoch, Millis, NodeId};

struct Server {
    address: String,
    fake: Arc<Fake>,
    _tasks: JoinSet<()>,
}

async fn start(me: NodeId) -> Server {
    let (access, fake) = access(me);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = router(access, Metrics::default(), Some("secret\n".into()));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { serve(listener, router, CancellationToken::new()).await.unwrap() });
    Server { address, fake, _tasks: tasks }
}

impl Server {
    /// Status code, headers and body.
    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (code, head.to_lowercase(), body.to_owned())
    }

    async fn code(&self, path: &str) -> u16 {
        self.ask("GET", path, "", "").await.0
    }

    async fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.ask("GET", path, "", "").await.2).unwrap()
    }

    async fn expect(&self, expected: &[(&str, u16)]) {
        for (path, code) in expected {
            assert_eq!(self.code(path).await, *code, "{path}");
        }
    }
}

#[tokio::test]
async fn the_primary_answers_as_patroni_s_leader() {
    let server = start(DC1).await;
    let ok = ["/", "/primary", "/master", "/read-write", "/leader", "/read-only", "/read-only-sync", "/health", "/liveness", "/readiness"];
    let not = ["/replica", "/sync", "/async", "/quorum", "/standby-leader"];
    let expected: Vec<(&str, u16)> = ok.iter().map(|p| (*p, 200)).chain(not.iter().map(|p| (*p, 503))).collect();
    server.expect(&expected).await;
    server.expect(&[("/primary?tag_nofailover=false", 200), ("/primary?tag_nofailover=true", 503), ("/nothing", 404)]).await;
}

#[tokio::test]
async fn a_standby_answers_as_patroni_s_replica() {
    let server = start(NodeId(2)).await;
    let expected = [
        ("/", 503),
        ("/primary", 503),
        ("/leader", 503),
        ("/replica", 200),
        ("/read-only", 200),
        ("/sync", 200),
        ("/quorum", 200),
        ("/async", 503),
        ("/health", 200),
        ("/readiness", 200),
        // 256 bytes are not replayed, all are received.
        ("/replica?lag=256", 200),
        ("/replica?lag=255", 503),
        ("/replica?lag=1MB", 200),
        ("/replica?lag=much", 400),
        ("/replica?replication_state=streaming", 200),
        ("/readiness?lag=10", 503),
        ("/readiness?lag=10&mode=write", 200),
    ];
    server.expect(&expected).await;
}

#[tokio::test]
async fn primary_says_200_only_while_writes_are_accepted() {
    let server = start(DC1).await;
    assert_eq!(server.code("/primary").await, 200);
    *server.fake.lease.lock().unwrap() = Some((Epoch(1), Duration::ZERO));
    server.expect(&[("/primary", 503), ("/leader", 503), ("/health", 200)]).await;
    *server.fake.lease.lock().unwrap() = Some((Epoch(1), Duration::from_secs(2)));
    server.fake.state.send_modify(|s| Arc::make_mut(s).phase = Phase::Promoting { candidate: DC1 });
    server.expect(&[("/primary", 503), ("/leader", 200)]).await;
}

#[tokio::test]
async fn an_unknown_lag_is_not_taken_for_a_small_one() {
    let server = start(NodeId(2)).await;
    server.fake.view.send_modify(|v| Arc::make_mut(v).observations.get_mut(&DC1).unwrap().at = Millis(0));
    server.expect(&[("/replica", 200), ("/replica?lag=1GB", 503), ("/readiness", 503)]).await;
}

#[tokio::test]
async fn liveness_follows_the_agent_s_loop() {
    let server = start(DC1).await;
    assert_eq!(server.code("/liveness").await, 200);
    server.fake.view.send_modify(|v| Arc::make_mut(v).observations.get_mut(&DC1).unwrap().at = Millis(0));
    assert_eq!(server.code("/liveness").await, 503);
}

#[tokio::test]
async fn head_and_options_answer_with_the_code_alone() {
    let server = start(NodeId(2)).await;
    for method in ["HEAD", "OPTIONS"] {
        for (path, expected) in [("/replica", 200), ("/primary", 503)] {
            let (code, _, body) = server.ask(method, path, "", "").await;
            assert_eq!((code, body.as_str()), (expected, ""), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn documents_have_patroni_s_keys() {
    let server = start(DC1).await;
    let patroni = server.json("/patroni").await;
    assert_eq!(patroni["role"], "primary");
    assert_eq!(patroni["state"], "running");
    assert_eq!(patroni["server_version"], 150_006);
    assert_eq!(patroni["xlog"]["location"], 0x0300_0100);
    assert_eq!(patroni["patroni"]["scope"], "test");
    assert_eq!(patroni["database_system_identifier"], "42");
    assert_eq!(patroni["replication"][0]["application_name"], "dc2");
    let cluster = server.json("/cluster").await;
    assert_eq!(cluster["scope"], "test");
    let members: Vec<(&str, &str, &str)> = cluster["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["name"].as_str().unwrap(), m["role"].as_str().unwrap(), m["state"].as_str().unwrap()))
        .collect();
    assert_eq!(members, [("dc1", "leader", "running"), ("dc2", "quorum_standby", "streaming"), ("dc3", "quorum_standby", "streaming")]);
    assert_eq!((&cluster["members"][1]["lag"], &cluster["members"][1]["port"]), (&256.into(), &5432.into()));
    assert_eq!(server.json("/config").await["synchronous_mode"], "quorum");
    assert_eq!(server.json("/history").await, serde_json::json!([]));
    assert_eq!(server.json("/status").await["primary"], "dc1");
}

#[tokio::test]
async fn metrics_carry_our_names_and_patroni_s() {
    let server = start(DC1).await;
    let (code, head, text) = server.ask("GET", "/metrics", "", "").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    for line in [
        "trilithon_epoch 1.0",
        "trilithon_phase{phase=\"steady\"} 1.0",
        "trilithon_writable 1.0",
        "trilithon_member_lag_bytes{member=\"dc2\"} 256.0",
        "patroni_primary{scope=\"test\",name=\"dc1\"} 1.0",
        "patroni_xlog_location{scope=\"test\",name=\"dc1\"} 50331904.0",
        "patroni_cluster_unlocked{scope=\"test\",name=\"dc1\"} 0.0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_browser_gets_the_dashboard_and_a_load_balancer_the_check() {
    let server = start(NodeId(2)).await;
    let (code, head, body) = server.ask("GET", "/", "Accept: text/html,application/xhtml+xml\r\n", "").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(body.starts_with("<!doctype html>"));
    assert!(!body.contains("src=\"http") && !body.contains("href=\"http") && !body.contains("url(http"), "nothing from elsewhere");
    assert_eq!(server.code("/").await, 503);
}

#[tokio::test]
async fn actions_need_the_token() {
    let server = start(DC1).await;
    assert_eq!(server.ask("POST", "/reinitialize", "", "").await.0, 401);
    assert_eq!(server.ask("POST", "/switchover", "Authorization: Bearer wrong\r\n", "{}").await.0, 401);
    let token = "Authorization: Bearer secret\r\n";
    let (code, _, text) = server.ask("POST", "/reinitialize", token, "").await;
    assert_eq!((code, text.as_str()), (412, "dc1 is the primary; `trilithon switchover` first, then reinitialise it as a standby"));
    let (code, _, text) = server.ask("POST", "/switchover", token, r#"{"leader":"dc3","candidate":"dc2"}"#).await;
    assert_eq!((code, text.as_str()), (412, "the primary is dc1, not the leader that the request names"));
    assert_eq!(server.ask("POST", "/failover", token, "{}").await.0, 400);
    assert!(server.fake.proposals.lock().unwrap().is_empty());
    let asking = server.ask("POST", "/switchover", token, r#"{"candidate":"dc2"}"#);
    let finishing = async {
        server.fake.change_requested().await;
        server.fake.state.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.change = None;
            state.epoch = Epoch(2);
            state.phase = Phase::Steady { primary: NodeId(2) };
        });
    };
    let ((code, _, text), ()) = tokio::join!(asking, finishing);
    assert_eq!((code, text.as_str()), (200, "dc2 is primary (epoch 2)"));
    let proposals = server.fake.proposals.lock().unwrap();
    assert!(matches!(proposals[0].command, Command::RequestSwitchover { to: NodeId(2) }));
}

#[tokio::test]
async fn reinitialize_is_told_to_the_agent() {
    let server = start(NodeId(2)).await;
    let id = "X-Request-Id: 000000000000000000000000000000ff\r\nAuthorization: Bearer secret\r\n";
    assert_eq!(server.ask("POST", "/reinitialize", id, "").await.0, 200);
    assert_eq!(server.fake.reinits.lock().unwrap().as_slice(), [trilithon::types::RequestId(255)]);
}
