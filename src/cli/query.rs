//! `trilithon query`: SQL through the proxies, or on one member.

use super::args::{Listener, Output, QueryArgs};
use super::client::{Client, Exit, Failure};
use super::render::{DIM, PLAIN, Table};
use crate::proto::v1::{TopologyMember, TopologyRequest};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

pub(super) async fn query(args: &QueryArgs) -> Result<(), Failure> {
    let client = Client::new(&args.remote)?;
    let topology = client.ask(|_| true, |mut admin| async move { admin.topology(TopologyRequest {}).await }).await?;
    let addresses = addresses(args, &topology.members)?;
    let mut config = Config::new();
    for address in &addresses {
        let (host, port) = address.rsplit_once(':').ok_or_else(|| Failure::new(Exit::Failed, format!("{address} is no host:port")))?;
        let port = port.parse().map_err(|_| Failure::new(Exit::Failed, format!("{address} is no host:port")))?;
        config.host(host.trim_matches(['[', ']'])).port(port);
    }
    let user = args.user.clone().or_else(|| client.config.user.clone()).unwrap_or_else(|| "postgres".to_owned());
    config.user(&user).dbname(&args.database).application_name("trilithon query").connect_timeout(Duration::from_secs(5));
    if let Some(password) = password(args, &client)? {
        config.password(password);
    }
    let (session, connection) = config.connect(NoTls).await.map_err(|e| cannot_connect(&addresses, &user, &e))?;
    // Owned here: it ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let messages = session.simple_query(&args.sql).await.map_err(|e| Failure::new(exit_of(&e), describe(&e)))?;
    print(args.remote.output, &messages);
    Ok(())
}

fn addresses(args: &QueryArgs, members: &[TopologyMember]) -> Result<Vec<String>, Failure> {
    if let Some(name) = &args.on {
        let member = members.iter().find(|m| m.name == *name).ok_or_else(|| {
            let known: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
            Failure::new(Exit::Refused, format!("there is no member {name}; members are {}", known.join(", ")))
        })?;
        return Ok(vec![member.postgres.clone()]);
    }
    let address = |m: &TopologyMember| match args.listener {
        Listener::Auto => m.proxy_auto.clone(),
        Listener::Primary => m.proxy_primary.clone(),
        Listener::Standby => m.proxy_standby.clone(),
    };
    Ok(members.iter().filter(|m| m.state != "unreachable").map(address).filter(|a| !a.is_empty()).collect())
}

fn password(args: &QueryArgs, client: &Client) -> Result<Option<String>, Failure> {
    if let Ok(password) = std::env::var("PGPASSWORD") {
        return Ok(Some(password));
    }
    let Some(file) = args.password_file.as_ref().or(client.config.password_file.as_ref()) else { return Ok(None) };
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|e| Failure::new(Exit::Usage, format!("cannot read the password in {}: {e}", file.display())))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

fn cannot_connect(addresses: &[String], user: &str, error: &tokio_postgres::Error) -> Failure {
    let hint = if error.to_string().contains("password") {
        "; set PGPASSWORD, or name a file with --password-file or password_file in the CLI's configuration"
    } else {
        ""
    };
    Failure::new(Exit::Unreachable, format!("cannot connect to {} as {user}: {}{hint}", addresses.join(", "), describe(error)))
}

/// A server's message in full: it says more than the library's summary.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(server) = error.as_db_error() {
        let hint = server.hint().map_or(String::new(), |hint| format!("; {hint}"));
        return format!("{} ({}){hint}", server.message(), server.code().code());
    }
    let cause = std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
    format!("{error}{cause}")
}

/// 08007 and a connection lost in mid-statement leave the outcome open.
fn exit_of(error: &tokio_postgres::Error) -> Exit {
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some("08007") => Exit::Unknown,
        Some("08006") => Exit::Unreachable,
        Some(_) => Exit::Failed,
        None => Exit::Unknown,
    }
}

fn print(output: Output, messages: &[SimpleQueryMessage]) {
    let mut rows: Vec<&SimpleQueryRow> = Vec::new();
    let mut columns: Vec<String> = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(description) => columns = description.iter().map(|c| c.name().to_owned()).collect(),
            SimpleQueryMessage::Row(row) => rows.push(row),
            SimpleQueryMessage::CommandComplete(count) => {
                print_result(output, &columns, &rows, *count);
                rows.clear();
                columns.clear();
            }
            _ => {}
        }
    }
}

fn print_result(output: Output, columns: &[String], rows: &[&SimpleQueryRow], count: u64) {
    if output == Output::Json {
        let object = |row: &&SimpleQueryRow| {
            let fields = columns.iter().enumerate().map(|(i, name)| (name.clone(), row.get(i).into()));
            serde_json::Value::Object(fields.collect())
        };
        let document = if columns.is_empty() {
            serde_json::json!({ "affected": count })
        } else {
            serde_json::Value::Array(rows.iter().map(object).collect())
        };
        anstream::println!("{document:#}");
        return;
    }
    if columns.is_empty() {
        anstream::println!("{count} rows affected");
        return;
    }
    let mut table = Table::with_columns(columns.to_vec());
    for row in rows {
        let cell = |i: usize| row.get(i).map_or_else(|| ("NULL".to_owned(), DIM), |text| (text.to_owned(), PLAIN));
        table.row((0..columns.len()).map(cell).collect());
    }
    table.print();
    let word = if rows.len() == 1 { "row" } else { "rows" };
    anstream::println!("{DIM}({} {word}){DIM:#}", rows.len());
}
