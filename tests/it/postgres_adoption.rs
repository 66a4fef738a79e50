//! A data directory that existed before Trilithon did.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot go on panics; it measures with Instant.

use crate::postgres_rig::{LIMIT, Server, as_owner};
use trilithon::ha::PostgresState;
use trilithon::postgres::PostgresError as Error;
use trilithon::types::{Epoch, Timeline};

/// What an administrator's own initdb leaves, with settings of theirs.
fn somebodys_database(server: &Server) {
    let data = server.instance.pgdata();
    std::fs::create_dir(data).unwrap();
    let bin = server.instance.install().bin_dir;
    let status = as_owner(server, &bin.join("initdb")).arg("-D").arg(data).args(["-U", "postgres", "-A", "trust", "-N"]).status().unwrap();
    assert!(status.success());
    let mut conf = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
    conf.push_str(
        "\nwork_mem = '7MB'\nmax_connections = 37\nlisten_addresses = '*'\nsynchronous_standby_names = 'somebody'\nfsync = off\n",
    );
    std::fs::write(data.join("postgresql.conf"), conf).unwrap();
}

#[tokio::test]
async fn an_existing_database_is_taken_over_with_its_settings_but_not_with_dangerous_ones() {
    let server = Server::empty(1).await;
    assert!(matches!(server.instance.adopt_directory().await, Err(Error::NoDatabase { .. })));
    somebodys_database(&server);
    assert_eq!(server.facts().await.state, PostgresState::Stopped);
    let system = server.instance.adopt_directory().await.unwrap();
    let again = server.instance.adopt_directory().await.unwrap();
    assert_eq!(system, again, "asked twice, it is the same");
    server.instance.start_detached(Some(system)).await.unwrap();
    server.until("has a position", |f| f.position.is_some()).await;
    server.instance.promote(Epoch(2), Timeline(2), &server.alone(), LIMIT).await.unwrap();
    server.instance.apply_rule(Epoch(2), &server.alone(), LIMIT).await.unwrap();
    // Its superuser has no password, so we ask over the local socket, as Trilithon does.
    let mut config = tokio_postgres::Config::new();
    config.host_path(server.instance.socket_dir()).port(server.port).user("postgres").dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::task::spawn(connection);
    let shown = "SELECT concat_ws(' ', current_setting('work_mem'), current_setting('fsync'), current_setting('listen_addresses'), \
                 current_setting('synchronous_standby_names'))";
    let shown = crate::postgres_rig::try_sql(&client, shown).await.unwrap();
    assert_eq!(shown.as_deref().map(str::trim_end), Some("7MB on 127.0.0.1"));
    let standby = Server::standby(2, &server).await;
    standby.until("streams on the same timeline", |f| f.timeline == Some(Timeline(2))).await;
}
