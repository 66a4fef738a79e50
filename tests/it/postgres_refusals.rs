//! Directories that are not ours, versions that do not fit: refused in words that say what to do, and left as they were.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot go on panics; it measures with Instant.

use crate::ports::free_port;
use crate::postgres_rig::{Server, bin_dir, temp_dir};
use std::collections::BTreeMap;
use std::path::Path;
use trilithon::ha::PostgresState;
use trilithon::postgres::{Instance, InstanceConfig, PostgresError as Error};
use trilithon::telemetry::Clock;
use trilithon::types::{NodeId, SystemId};

async fn open(dir: &Path, os_user: Option<&str>) -> Result<Instance, Error> {
    let config = InstanceConfig {
        node: NodeId(1),
        node_dir: dir.to_path_buf(),
        pgdata: None,
        bin_dir: bin_dir(),
        listen: "127.0.0.1".into(),
        port: free_port(),
        os_user: os_user.map(str::to_owned),
        parameters: BTreeMap::new(),
        hba: vec![],
    };
    Instance::open(config, Clock::default()).await
}

#[tokio::test]
async fn a_directory_of_something_else_is_left_alone() {
    let dir = temp_dir();
    let foreign = dir.path().join("pgdata");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "years of work").unwrap();
    let refused = open(dir.path(), None).await.err().unwrap();
    assert!(matches!(refused, Error::ForeignDirectory { .. }));
    assert!(refused.to_string().contains("thesis.tex"), "{refused}");
    assert_eq!(std::fs::read_to_string(foreign.join("thesis.tex")).unwrap(), "years of work");
}

#[tokio::test]
async fn another_major_version_is_named_with_the_package_that_helps() {
    let dir = temp_dir();
    let data = dir.path().join("pgdata");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("PG_VERSION"), "12\n").unwrap();
    if rustix::process::geteuid().is_root() {
        let refused = open(dir.path(), None).await.err().unwrap();
        assert!(matches!(refused, Error::OtherOwner { found: 0, .. }), "{refused}");
        let status = std::process::Command::new("chown").args(["-R", "postgres"]).arg(&data).status().unwrap();
        assert!(status.success());
    }
    let refused = open(dir.path(), None).await.err().unwrap();
    assert!(matches!(refused, Error::OtherMajor { data: 12, .. }));
    assert!(refused.to_string().contains("postgresql-12"), "{refused}");
}

#[tokio::test]
async fn an_unknown_user_is_refused() {
    if rustix::process::geteuid().is_root() {
        let dir = temp_dir();
        assert!(matches!(open(dir.path(), Some("nobody-of-that-name")).await, Err(Error::NoSuchUser(_))));
    }
}

#[tokio::test]
async fn a_directory_that_postgres_cannot_enter_is_named() {
    use std::os::unix::fs::PermissionsExt;
    if rustix::process::geteuid().is_root() {
        let dir = temp_dir();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let refused = open(&dir.path().join("node"), None).await.err().unwrap();
        assert!(matches!(&refused, Error::NotTraversable { path, .. } if path == dir.path()), "{refused}");
    }
}

#[tokio::test]
async fn another_system_is_neither_started_nor_copied_nor_initialised_again() {
    let server = Server::primary(1).await;
    let other = SystemId(42);
    assert!(matches!(server.instance.init_db().await, Err(Error::AlreadyInitialised { .. })));
    assert!(matches!(server.instance.start_detached(Some(other)).await, Err(Error::StillRunning)));
    let joiner = Server::empty(2).await;
    joiner.instance.set_secrets(server.secrets()).await.unwrap();
    let refused = joiner.instance.copy_from(&server.upstream(2), Some(other)).await;
    assert!(matches!(refused, Err(Error::OtherSystem { expected, .. }) if expected == other));
    server.instance.demote().await.unwrap();
    assert!(matches!(server.instance.start_detached(Some(other)).await, Err(Error::OtherSystem { .. })));
    server.instance.start_detached(None).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_told_in_postgres_words() {
    let server = Server::empty(1).await;
    server.instance.init_db().await.unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", server.port)).unwrap();
    let refused = server.instance.start_detached(None).await.unwrap_err();
    assert!(
        matches!(&refused, Error::StartFailed { ended, log } if ended == "exit status: 1" && log.contains("Address already in use")),
        "{refused}"
    );
    drop(taken);
    server.instance.start_detached(None).await.unwrap();
}

#[tokio::test]
async fn a_server_that_somebody_else_started_is_not_taken_over() {
    let server = Server::primary(1).await;
    let found = server.facts().await.system;
    server.instance.stop(crate::postgres_rig::LIMIT).await.unwrap();
    let bin = server.instance.install().bin_dir;
    let mut command = tokio::process::Command::new(bin.join("postgres"));
    command.arg("-D").arg(server.instance.pgdata()).arg("-c").arg(format!("port={}", free_port())).current_dir(server.dir.path());
    command.arg("-c").arg(format!("unix_socket_directories={}", server.instance.socket_dir().display()));
    if rustix::process::geteuid().is_root() {
        let owner = std::fs::metadata(server.instance.pgdata()).unwrap();
        command.uid(std::os::unix::fs::MetadataExt::uid(&owner)).gid(std::os::unix::fs::MetadataExt::gid(&owner));
    }
    let mut foreign = command.stderr(std::process::Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let pid_file = server.instance.pgdata().join("postmaster.pid");
    crate::postgres_rig::until("it runs", || async { std::fs::read_to_string(&pid_file).is_ok_and(|t| t.contains("ready")) }).await;
    assert!(matches!(server.instance.start_detached(found).await, Err(Error::Orphans { .. })));
    let refused = open(server.dir.path(), None).await.err().unwrap();
    assert!(matches!(refused, Error::ForeignPostmaster { .. }), "{refused}");
    foreign.kill().await.unwrap();
}

/// One name that it does not know, and PostgreSQL takes nothing of its file: no rule could be put in force, and no server started.
#[tokio::test]
async fn parameters_that_postgresql_refuses_are_left_out() {
    let server = Server::primary(1).await;
    let mut wished = server.settings();
    let wrong = [("max_conections", "200"), ("wal_level ", "minimal"), ("log_statement", "some"), ("shared_buffers", "plenty")];
    let right = [("work_mem", "7MB"), ("chaos.x", "1")];
    wished.extend(wrong.into_iter().chain(right).map(|(name, value)| (name.to_owned(), value.to_owned())));
    server.instance.configure(wished, Vec::new()).await.unwrap();
    crate::postgres_rig::until("what it takes is in force", || async { server.sql("SHOW work_mem").await.as_deref() == Some("7MB") }).await;
    let errors = "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL AND error <> 'setting could not be applied'";
    assert_eq!(server.sql(errors).await.as_deref(), Some("0"), "what needs a restart waits for one");
    server.instance.demote().await.unwrap();
    server.instance.start_detached(None).await.unwrap();
}

/// One line that it cannot read, and PostgreSQL does not start; what it says of the file decides, and the other lines are used.
#[tokio::test]
async fn lines_of_pg_hba_conf_that_postgresql_refuses_are_left_out() {
    let server = Server::initialised(1).await;
    let bad = ["hots all all all md5", "host all all 10.0.0.0/99 md5", "host all all db/24 md5", "host all all 0.0.0.0/0 scram"];
    let good = ["host all nobody 10.9.8.0/24 reject", "hostssl all nobody all scram-sha-256"];
    let lines = |more: &str| bad.iter().chain(&good).chain([&more]).map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let kept =
        "SELECT string_agg(type || ' ' || auth_method, ',' ORDER BY line_number) FROM pg_hba_file_rules WHERE user_name = '{nobody}'";
    server.instance.configure(server.settings(), lines("")).await.unwrap();
    server.instance.start_detached(None).await.unwrap();
    assert_eq!(server.sql(kept).await.as_deref(), Some("host reject,hostssl scram-sha-256"), "it never ran before");
    server.instance.configure(server.settings(), lines("local all nobody trust")).await.unwrap();
    assert_eq!(server.sql(kept).await.as_deref(), Some("host reject,hostssl scram-sha-256,local trust"));
    assert_eq!(server.sql("SELECT count(*) FROM pg_hba_file_rules WHERE type IS NULL").await.as_deref(), Some("0"), "it reads them all");
    server.instance.demote().await.unwrap();
    let included = "include /nowhere/pg_hba.conf".to_owned();
    server.instance.configure(server.settings(), vec![included, good[0].to_owned()]).await.unwrap();
    server.instance.start_detached(None).await.unwrap();
    assert_eq!(server.sql(kept).await.as_deref(), Some("host reject"));
}

/// PostgreSQL 15 does not say which line names the list that is missing. What that line refused must not be open instead.
#[tokio::test]
async fn where_a_refusing_line_cannot_be_read_nobody_is_let_in() {
    let server = Server::initialised(1).await;
    let lines = ["host all @missing 10.0.0.0/8 scram-sha-256", "host all @missing all reject", "local all all trust"];
    server.instance.configure(server.settings(), lines.map(str::to_owned).to_vec()).await.unwrap();
    server.instance.start_detached(None).await.unwrap();
    server.until("is up, for Trilithon", |f| f.state == PostgresState::Running).await;
    let refused = server.try_client().await.expect_err("nobody is let in");
    assert!(refused.as_db_error().is_some_and(|e| e.message().contains("rejects connection")), "{refused:?}");
    server.instance.configure(server.settings(), Vec::new()).await.unwrap();
    crate::postgres_rig::until("it was corrected", || async { server.try_client().await.is_ok() }).await;
}

/// What a killed node left of it is no database.
#[tokio::test]
async fn an_initialisation_that_broke_off_is_begun_anew() {
    let server = Server::empty(1).await;
    {
        let mut begun = Box::pin(server.instance.init_db());
        let incoming = server.dir.path().join("pgdata.incoming/PG_VERSION");
        tokio::select! {
            biased;
            () = crate::postgres_rig::until("initdb has begun", || async { incoming.exists() }) => {}
            ended = &mut begun => panic!("it ended first: {ended:?}"),
        }
    }
    assert_eq!(server.facts().await.state, PostgresState::Absent);
    server.instance.init_db().await.unwrap();
    server.instance.start_detached(None).await.unwrap();
}

/// A copy may take the place of a directory that cannot be read.
#[tokio::test]
async fn a_directory_without_its_control_file_needs_a_copy() {
    let server = Server::initialised(1).await;
    std::fs::remove_file(server.instance.pgdata().join("global/pg_control")).unwrap();
    let facts = server.facts().await;
    assert_eq!((facts.state, facts.position), (PostgresState::Stopped, None));
    assert!(matches!(server.instance.start_detached(None).await, Err(Error::NeedsClone(_))));
}
