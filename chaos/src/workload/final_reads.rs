//! Reading everything everywhere when the run is over and the faults are mended.
//!
//! One job in one place opens a session to each PostgreSQL, waits until every standby has replayed what the primary had written, and
//! reads. What cannot be read is said in the node's `trouble`; the checkers then refuse to conclude.

use super::final_state::{Final, NodeFinal, ToolRun};
use super::history::{Attempt, Door, Level, Origin, RegisterOp, RegisterStep, Step, Txn, VersionOp, VersionRow, VersionStep};
use super::list_append::table;
use super::outcome::{Stage, Trouble};
use super::place::{Job, Login, Place};
use super::schema::TABLES;
use super::session::{Session, Target, number, numbers};
use crate::record::{At, RunClock};
use anyhow::{Result, anyhow};
use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(200);
/// Hashing and sending a whole table.
const STATEMENT: Duration = Duration::from_secs(60);
/// Session number of the final reads; no client has it.
const LAST_SESSION: u32 = u32::MAX;

/// Reads all nodes. Blocks; `patience` bounds the wait for standbys to catch up.
///
/// # Errors
/// No places, or the place's runtime ended. A node that cannot be read is no error here.
pub fn gather(places: &[Place], login: &Login, clock: RunClock, patience: Duration) -> Result<Final> {
    let first = places.first().ok_or_else(|| anyhow!("final reads need at least one datacenter"))?;
    let nodes: Vec<(String, Target)> = places
        .iter()
        .map(|p| (p.name.clone(), Target { host: p.host.clone(), ports: p.ports, door: Door::Direct, login: login.clone() }))
        .collect();
    let (send, receive) = sync_channel(1);
    let work: Job = Box::new(move || {
        Box::pin(async move {
            let _ = send.send(read_all(&nodes, clock, patience).await);
        })
    });
    (first.spawn)(work);
    let bound = patience + STATEMENT * 12 * u32::try_from(places.len()).unwrap_or(9);
    receive.recv_timeout(bound).map_err(|_| anyhow!("the final reads took longer than {bound:?}; look at PostgreSQL's logs"))
}

/// Runs `pg_amcheck` on a node. `program` makes the command in the node's network (of the binary's full path, where needed); the
/// extension `amcheck` is installed where it is missing, which needs the primary: run it there first.
#[must_use]
pub fn amcheck(mut program: Command, place: &Place, login: &Login, is_primary: bool) -> ToolRun {
    program.args(["--host", &place.host, "--port", &place.ports.postgres.to_string(), "--username", &login.user, "--no-password"]);
    program.args(["--heapallindexed", "--jobs", "1"]);
    if is_primary {
        program.arg("--install-missing");
    }
    program.arg(&login.database);
    if let Some(password) = &login.password {
        program.env("PGPASSWORD", password);
    }
    match program.output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            ToolRun { exit: output.status.code(), said: String::from_utf8_lossy(&said).chars().take(2000).collect() }
        }
        Err(error) => ToolRun { exit: None, said: format!("cannot run pg_amcheck: {error}; is it installed?") },
    }
}

async fn read_all(nodes: &[(String, Target)], clock: RunClock, patience: Duration) -> Final {
    let until = clock.now().after(patience);
    let primary_lsn = primary_position(nodes, clock, until).await;
    let mut all = Final::default();
    for (name, target) in nodes {
        let mut node = NodeFinal { name: name.clone(), ..NodeFinal::default() };
        let read = match open(target, clock).await {
            Ok(session) => read_node(&session, primary_lsn, until, &mut node, &mut all).await,
            Err(trouble) => Err(trouble),
        };
        if let Err(trouble) = read {
            node.trouble = Some(format!("could not be read to the end ({})", trouble.why));
        }
        all.nodes.push(node);
    }
    all
}

async fn open(target: &Target, clock: RunClock) -> Result<Session, Trouble> {
    Session::open(target, Origin { site: 0, door: Door::Direct, session: LAST_SESSION }, clock, STATEMENT).await
}

/// What the only writable node has written; `None` when there is none (or more than one) until then.
async fn primary_position(nodes: &[(String, Target)], clock: RunClock, until: At) -> Option<i64> {
    loop {
        let mut found = Vec::new();
        for (_, target) in nodes {
            let Ok(session) = open(target, clock).await else { continue };
            let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0') END";
            if let Ok(rows) = session.text(Stage::Body, sql).await {
                found.extend(rows.first().and_then(|row| number::<i64>(row, 0)));
            }
        }
        if let [position] = found.as_slice() {
            return Some(*position);
        }
        if clock.now() >= until {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn read_node(session: &Session, primary_lsn: Option<i64>, until: At, node: &mut NodeFinal, all: &mut Final) -> Result<(), Trouble> {
    let rows = session.text(Stage::Body, "SELECT pg_is_in_recovery()").await?;
    node.in_recovery = rows.first().and_then(|row| row.get(0)) != Some("f");
    node.is_caught_up = if node.in_recovery { catch_up(session, primary_lsn, until).await? } else { primary_lsn.is_some() };
    let timeline = match node.in_recovery {
        true => "SELECT received_tli FROM pg_stat_wal_receiver",
        false => "SELECT chaos_timeline()",
    };
    // A standby that connects anew at this moment has no stream.
    loop {
        node.timeline = session.text(Stage::Body, timeline).await?.first().and_then(|row| number(row, 0));
        if node.timeline.is_some() || session.now() >= until {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let rows = session.text(Stage::Body, "SELECT id FROM chaos_set").await?;
    node.set = rows.iter().filter_map(|row| number(row, 0)).collect();
    for name in TABLES {
        let sql = format!("SELECT count(*) || ' rows ' || coalesce(md5(string_agg(t::text, ',' ORDER BY t::text)), '') FROM {name} t");
        let rows = session.text(Stage::Body, &sql).await?;
        node.hashes.insert((*name).to_owned(), rows.first().and_then(|row| row.get(0)).unwrap_or_default().to_owned());
    }
    let sql = "SELECT name, pg_read_file('pg_wal/' || name, 0, 1000000, true) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{8}\\.history$'";
    for row in session.text(Stage::Body, sql).await? {
        if let (Some(name), Some(content)) = (row.get(0), row.get(1)) {
            node.timeline_files.insert(name.to_owned(), content.to_owned());
        }
    }
    let sql = "SELECT current_setting('data_checksums'), coalesce(sum(checksum_failures), 0) FROM pg_stat_database";
    if let Some(row) = session.text(Stage::Body, sql).await?.first() {
        node.has_checksums = row.get(0) == Some("on");
        node.checksum_failures = number(row, 1).unwrap_or(0);
    }
    let rows = session.text(Stage::Body, "SELECT count(*), sum(balance) FROM chaos_bank").await?;
    node.bank = rows.first().and_then(|row| Some((number(row, 0)?, number(row, 1)?)));
    if !node.in_recovery {
        read_primary(session, all).await?;
    }
    Ok(())
}

/// `true` once the standby has replayed the position.
async fn catch_up(session: &Session, position: Option<i64>, until: At) -> Result<bool, Trouble> {
    let Some(position) = position else { return Ok(false) };
    loop {
        let sql = "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')";
        let replayed: Option<i64> = session.text(Stage::Body, sql).await?.first().and_then(|row| number(row, 0));
        if replayed.is_some_and(|replayed| replayed >= position) {
            return Ok(true);
        }
        if session.now() >= until {
            return Ok(false);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Every list, register and version row, as operations that the checkers put to the end of the histories.
async fn read_primary(session: &Session, all: &mut Final) -> Result<(), Trouble> {
    for level in [Level::Serializable, Level::RepeatableRead] {
        let from = session.now();
        let result = session.text(Stage::Body, &format!("SELECT k, v FROM {}", table(level))).await;
        let attempt = session.attempt(from, &result, None);
        let steps = result?.iter().filter_map(|row| Some(Step::Read { key: number(row, 0)?, list: Some(numbers(row.get(1)?)) })).collect();
        all.txns.push(Txn { attempt, level, steps });
    }
    let from = session.now();
    let result = session.text(Stage::Body, "SELECT k, v FROM chaos_register").await;
    let attempt: Attempt = session.attempt(from, &result, None);
    for row in result? {
        if let Some(key) = number(&row, 0) {
            all.registers.push(RegisterStep { attempt: attempt.clone(), key, op: RegisterOp::Read { seen: number(&row, 1) } });
        }
    }
    let from = session.now();
    let result = session.text(Stage::Body, "SELECT id, version, saw, saw_version FROM chaos_version").await;
    let attempt = session.attempt(from, &result, None);
    let rows = result?;
    let rows = rows.iter().filter_map(|row| {
        Some(VersionRow { row: number(row, 0)?, version: number(row, 1)?, saw_row: number(row, 2)?, saw_version: number(row, 3)? })
    });
    all.versions.push(VersionStep { attempt, op: VersionOp::Read(rows.collect()) });
    Ok(())
}
