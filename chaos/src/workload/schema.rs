//! The tables that the workloads use.
//!
//! `chaos_set` has no unique constraint on purpose: a write that somebody ran twice must show as two rows. SERIALIZABLE and REPEATABLE
//! READ transactions have a table each, because PostgreSQL promises serialisability only among transactions that all ask for it.

use super::outcome::Stage;
use super::session::Session;
use anyhow::{Result, anyhow};

/// Accounts of the bank, and what each begins with.
pub const ACCOUNTS: i32 = 8;
pub const BALANCE: i64 = 1000;

/// Tables whose content must be equal on all nodes at the end.
pub const TABLES: &[&str] = &[
    "chaos_set",
    "chaos_append_serializable",
    "chaos_append_repeatable_read",
    "chaos_register",
    "chaos_bank",
    "chaos_version",
    "chaos_beat",
];

/// The timeline that the server writes on; an error on a standby. pg_control would name it only after the first checkpoint.
const TIMELINE: &str = "CREATE OR REPLACE FUNCTION chaos_timeline() RETURNS int LANGUAGE sql VOLATILE AS \
     $$ SELECT ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::pg_catalog.bit(32)::int $$";

/// Drops what a former run left and makes everything anew.
///
/// # Errors
/// Names the statement that failed.
pub async fn create(session: &Session) -> Result<()> {
    let mut statements: Vec<String> = TABLES.iter().map(|table| format!("DROP TABLE IF EXISTS {table}")).collect();
    statements.extend([
        TIMELINE.to_owned(),
        "CREATE TABLE chaos_set (n bigserial, id bigint NOT NULL)".to_owned(),
        "CREATE INDEX chaos_set_n ON chaos_set (n)".to_owned(),
        "CREATE TABLE chaos_append_serializable (k bigint PRIMARY KEY, v bigint[] NOT NULL)".to_owned(),
        "CREATE TABLE chaos_append_repeatable_read (k bigint PRIMARY KEY, v bigint[] NOT NULL)".to_owned(),
        "CREATE TABLE chaos_register (k bigint PRIMARY KEY, v bigint NOT NULL)".to_owned(),
        "CREATE TABLE chaos_bank (id int PRIMARY KEY, balance bigint NOT NULL)".to_owned(),
        format!("INSERT INTO chaos_bank SELECT g, {BALANCE} FROM generate_series(1, {ACCOUNTS}) g"),
        "CREATE TABLE chaos_version (id int PRIMARY KEY, version bigint NOT NULL, saw int NOT NULL, saw_version bigint NOT NULL)"
            .to_owned(),
        "CREATE TABLE chaos_beat (node text NOT NULL, n bigint NOT NULL)".to_owned(),
    ]);
    for sql in statements {
        let done = session.text(Stage::Commit, &sql).await;
        done.map_err(|trouble| anyhow!("cannot prepare the workloads' tables ({}): {sql}; is the cluster writable?", trouble.why))?;
    }
    Ok(())
}
