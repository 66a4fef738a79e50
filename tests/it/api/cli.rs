//! The binary's verbs against a served node: what they print and with which code they exit.

use super::feed::{DC1, Served, serve};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use trilithon::api::PeerDialer;
use trilithon::api::grpc::{GrpcDialer, Role, RoleSource, routes};
use trilithon::cluster::Phase;
use trilithon::consensus::tls::Tls;
use trilithon::proto::v1::StatusRequest;
use trilithon::proto::v1::admin_client::AdminClient;
use trilithon::types::{Epoch, NodeId};

async fn trilithon(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trilithon"));
    command.args(arguments).env_remove("TRILITHON_CLI_CONFIG").env("HOME", "/nonexistent").kill_on_drop(true);
    let Output { status, stdout, stderr } = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

async fn at(served: &Served, arguments: &[&str]) -> (i32, String, String) {
    trilithon(&[arguments, &["--endpoint", &served.address]].concat()).await
}

#[tokio::test]
async fn status_prints_an_aligned_table() {
    let served = serve(DC1, RoleSource::Certificate).await;
    let (code, out, _) = at(&served, &["status"]).await;
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "test  steady  primary dc1  epoch 1  revision 9");
    assert!(lines[1].starts_with("writes accepted; commits wait for any 1 of dc2, dc3; lease of dc1: "), "{out}");
    let table = [
        "MEMBER  DC   ROLE     STATE      TL  LSN          LAG  BEHIND  SYNC  RAFT      POSTGRES  VERSION",
        "dc1     dc1  primary  running     1  0/3000100                       leader    15.6      0.1.0",
        "dc2     dc2  standby  streaming   1  0/3000100  256 B   1.5 s  sync  follower  15.6      0.1.0",
        "dc3     dc3  standby  streaming   1  0/3000100  256 B   1.5 s  sync  follower  15.6      0.1.0",
    ];
    assert_eq!(lines[4..], table, "{out}");
    let (code, out, _) = at(&served, &["list", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["members"][1]["sync"]), (0, &"sync".into()));
}

#[tokio::test]
async fn listings_answer_in_both_forms() {
    let served = serve(NodeId(2), RoleSource::Certificate).await;
    for verb in [
        &["topology"][..],
        &["history"],
        &["events"],
        &["dsn"],
        &["member", "list"],
        &["raft", "status"],
        &["config", "show"],
        &["version"],
    ] {
        let (code, _, error) = at(&served, verb).await;
        assert_eq!(code, 0, "{verb:?}: {error}");
        let (code, out, error) = at(&served, &[verb, &["-o", "json"]].concat()).await;
        assert_eq!(code, 0, "{verb:?}: {error}");
        assert!(verb == ["events"] || serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{verb:?}: {out}");
    }
    let (_, out, _) = at(&served, &["topology"]).await;
    let expected = "test\n└─ dc1 primary  running  127.0.0.1:5431\n   ├─ dc2 standby  streaming  lag 256 B  127.0.0.1:5432\n   └─ dc3 standby  streaming  lag 256 B  127.0.0.1:5433\n";
    assert_eq!(out, expected);
    let (_, out, _) = at(&served, &["dsn", "primary", "-d", "shop", "-u", "app"]).await;
    assert_eq!(out, "postgresql://app@127.0.0.1:6441,127.0.0.1:6442,127.0.0.1:6443/shop\n");
}

#[tokio::test]
async fn a_switchover_shows_progress_and_its_outcome() {
    let served = serve(DC1, RoleSource::Certificate).await;
    let finishing = async {
        served.fake.change_requested().await;
        served.fake.state.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.change = None;
            state.epoch = Epoch(2);
            state.phase = Phase::Steady { primary: NodeId(3) };
        });
    };
    let ((code, out, error), ()) = tokio::join!(at(&served, &["switchover", "--to", "dc3"]), finishing);
    assert_eq!((code, out.as_str()), (0, "done dc3 is primary (epoch 2)\n"));
    assert!(error.starts_with("… switching over to dc3\n"), "{error}");
}

#[tokio::test]
async fn exit_codes_tell_what_happened() {
    let served = serve(DC1, RoleSource::Certificate).await;
    assert_eq!(at(&served, &["pause"]).await.0, 0);
    assert_eq!(trilithon(&["switchover", "--two", "dc2"]).await.0, 2);
    assert_eq!(at(&served, &["config", "set", "ha.lease_ttl", "soon"]).await.0, 2);
    let (code, _, error) = at(&served, &["switchover", "--to", "dc1"]).await;
    assert_eq!((code, error.lines().last().unwrap()), (3, "error: dc1 is the primary already"));
    let reader = serve(DC1, RoleSource::Custom(Arc::new(|_| Some(Role::Reader)))).await;
    let (code, _, error) = at(&reader, &["pause"]).await;
    assert!(code == 3 && error.contains("trilithon certs issue NAME --role operator"), "{error}");
    let (code, _, error) = trilithon(&["status", "--endpoint", "127.0.0.1:1"]).await;
    assert!(code == 4 && error.contains("127.0.0.1:1: connection refused"), "{error}");
}

#[tokio::test]
async fn no_quorum_and_an_unknown_outcome_are_told_apart() {
    let (alone, mute) = (serve(DC1, RoleSource::Certificate).await, serve(DC1, RoleSource::Certificate).await);
    *alone.fake.no_leader.lock().unwrap() = true;
    *mute.fake.hang.lock().unwrap() = true;
    let ((code, _, error), (unknown, _, open)) = tokio::join!(at(&alone, &["pause"]), at(&mute, &["pause"]));
    assert!(code == 4 && error.contains("nothing was changed: no Raft leader is known"), "{error}");
    assert!(unknown == 5 && open.contains("it may yet take effect"), "{open}");
}

#[tokio::test]
async fn the_next_endpoint_is_tried_and_the_request_takes_effect_once() {
    // INV-12.
    let served = serve(DC1, RoleSource::Certificate).await;
    *served.fake.lose_answers.lock().unwrap() = 1;
    let (code, out, error) = trilithon(&["pause", "--endpoint", "127.0.0.1:1", "--endpoint", &served.address]).await;
    assert_eq!((code, out.as_str()), (0, "done paused: no automatic failover until `trilithon resume`\n"), "{error}");
    assert_eq!(served.fake.state.borrow().revision.0, 10);
}

#[tokio::test]
async fn a_node_with_a_quorum_is_preferred() {
    let (cut_off, whole) = (serve(NodeId(3), RoleSource::Certificate).await, serve(NodeId(2), RoleSource::Certificate).await);
    *cut_off.fake.no_leader.lock().unwrap() = true;
    let (_, out, _) = trilithon(&["status", "-o", "json", "--endpoint", &cut_off.address, "--endpoint", &whole.address]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["answered_by"], "dc2");
}

#[tokio::test]
async fn without_an_endpoint_the_next_step_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trilithon"));
    command.arg("status").current_dir(&dir).env_remove("TRILITHON_CLI_CONFIG").env("HOME", dir.path());
    let Output { status, stderr, .. } = command.output().await.unwrap();
    let error = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{error}");
    assert!(error.contains("--endpoint HOST:PORT") && error.contains("trilithon demo"), "{error}");
    std::fs::write(dir.path().join("cli.toml"), "endpoint = [\"x\"]").unwrap();
    let file = dir.path().join("cli.toml").display().to_string();
    let (code, _, error) = trilithon(&["status", "--config", &file]).await;
    assert!(code == 2 && error.contains("unknown field `endpoint`"), "{error}");
}

#[tokio::test]
async fn config_files_are_written_once_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trilithon.toml").display().to_string();
    assert_eq!(trilithon(&["config", "init", "--name", "dc2", &file]).await.0, 0);
    let (code, _, error) = trilithon(&["config", "init", &file]).await;
    assert!(code == 3 && error.contains("is not overwritten"), "{error}");
    let (code, _, error) = trilithon(&["config", "check", &file]).await;
    assert!(code == 1 && error.contains("trilithon certs issue dc2"), "{error}");
    std::fs::write(&file, "[node]\nname = \"dc1\"\n[cluster]\npeers = [\"dc1=127.0.0.1:7001\"]\n").unwrap();
    let (code, out, error) = trilithon(&["config", "check", &file]).await;
    assert_eq!((code, out.lines().next().unwrap()), (0, "good dc1 in cluster main with dc1"), "{error}");
}

#[tokio::test]
async fn every_verb_explains_itself_with_an_example() {
    let (code, out, _) = trilithon(&["--help"]).await;
    assert_eq!(code, 0);
    let section = out.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let verbs: Vec<&str> = section.lines().filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next()).collect();
    assert!(verbs.len() > 15, "{out}");
    for verb in verbs.into_iter().filter(|v| *v != "help") {
        let (_, help, _) = trilithon(&[verb, "--help"]).await;
        let group = help.contains("Commands:");
        assert!(group || help.contains("Example:"), "{verb}: {help}");
    }
}

async fn issue(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    trilithon(&[&["certs"], arguments, &["--dir", &dir.display().to_string()]].concat()).await
}

#[tokio::test]
async fn certificates_carry_roles_and_are_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("certs");
    let (code, _, error) = issue(&dir, &["issue", "dc1"]).await;
    assert!(code == 3 && error.contains("`trilithon certs init` creates it"), "{error}");
    assert_eq!(issue(&dir, &["init"]).await.0, 0);
    assert_eq!(issue(&dir, &["init"]).await.0, 3);
    assert_eq!(issue(&dir, &["issue", "dc1", "--san", "10.0.1.1,node.example"]).await.0, 0);
    assert_eq!(issue(&dir, &["issue", "dc1"]).await.0, 3);
    assert_eq!(issue(&dir, &["issue", "alice", "--role", "operator"]).await.0, 0);
    assert_eq!(issue(&dir, &["issue", "bob", "--role", "reader"]).await.0, 0);
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 8);
}

#[tokio::test]
async fn mutual_tls_admits_by_role_and_refuses_strangers() {
    let temporary = tempfile::tempdir().unwrap();
    let (ours, theirs) = (temporary.path().join("ours"), temporary.path().join("theirs"));
    for dir in [&ours, &theirs] {
        assert_eq!(issue(dir, &["init"]).await.0, 0);
    }
    for (dir, name, role) in [(&ours, "dc1", "peer"), (&ours, "alice", "operator"), (&ours, "bob", "reader"), (&theirs, "eve", "operator")]
    {
        assert_eq!(issue(dir, &["issue", name, "--role", role]).await.0, 0);
    }
    let load = |name: &str| {
        let file = |ending: &str| ours.join(format!("{name}.{ending}"));
        Tls::load_member(&ours.join("ca.pem"), &file("pem"), &file("key"), name)
    };
    // What is issued here is what members accept as their own.
    let tls = load("dc1").unwrap().server();
    assert!(load("alice").unwrap_err().to_string().contains("OU=operator, CN=alice"));
    let (access, _fake) = super::feed::access(DC1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (routes, _reporter) = routes(access, RoleSource::Certificate).await;
    let mut tasks = JoinSet::new();
    let server = Server::builder().tls_config(tls).unwrap().add_routes(routes);
    tasks.spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });

    let dialer = GrpcDialer { tls: Some(load("dc1").unwrap()) };
    let address_text = address.to_string();
    let channel = dialer.connect("dc1", &address_text).await.unwrap();
    AdminClient::new(channel).status(StatusRequest {}).await.unwrap();
    assert!(dialer.connect("dc2", &address_text).await.is_err(), "whoever asks for dc2 is not served by dc1");

    let file = |dir: &Path, name: &str| {
        let path = temporary.path().join(format!("{name}.toml"));
        let own = dir.display();
        let ca = ours.join("ca.pem");
        let text = format!(
            "endpoints = [\"{address}\"]\ntls = {{ ca = \"{}\", cert = \"{own}/{name}.pem\", key = \"{own}/{name}.key\" }}\n",
            ca.display()
        );
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (code, out, error) = trilithon(&["pause", "--config", &file(&ours, "alice")]).await;
    assert_eq!((code, out.as_str()), (0, "done paused: no automatic failover until `trilithon resume`\n"), "{error}");
    let (code, _, error) = trilithon(&["status", "--config", &file(&ours, "bob")]).await;
    assert_eq!(code, 0, "{error}");
    let (code, _, error) = trilithon(&["resume", "--config", &file(&ours, "bob")]).await;
    assert!(code == 3 && error.contains("your certificate is a reader's"), "{error}");
    let (code, _, error) = trilithon(&["status", "--config", &file(&theirs, "eve")]).await;
    assert!(code == 4 && error.contains("connection lost"), "{error}");
    let (code, _, error) = trilithon(&["status", "--endpoint", &address.to_string()]).await;
    assert!(code == 4 && error.contains("if the cluster uses TLS"), "{error}");
}
