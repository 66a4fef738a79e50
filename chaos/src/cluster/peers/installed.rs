//! The peer's programs on this machine: where they are, which versions, and what to do where one is missing.

use crate::cluster::output_within;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const REMEDY: &str = "run `scripts/peers.sh`, which installs what a comparison with Patroni needs";
const LIMIT: Duration = Duration::from_secs(20);
/// From this version on it keeps the prepared statements of clients in transaction mode; without, clients that prepare would fail
/// all the time, which nobody runs in earnest.
const PGBOUNCER_LEAST: (u32, u32) = (1, 21);
/// Where Debian's packages put PostgreSQL's programs.
const POSTGRES: &str = "/usr/lib/postgresql";

pub(super) struct Installed {
    pub patroni: PathBuf,
    pub patronictl: PathBuf,
    pub etcd: PathBuf,
    pub haproxy: PathBuf,
    pub pgbouncer: PathBuf,
    pub pg_bin: PathBuf,
    /// Postgres's user and group.
    pub user: (u32, u32),
    /// Program → version.
    pub versions: BTreeMap<String, String>,
}

impl Installed {
    /// # Errors
    /// Something is missing or too old.
    pub fn find(peers: &Path, pg_bin: Option<&Path>) -> Result<Installed> {
        let venv = peers.join("venv/bin");
        let patroni = first(&[venv.join("patroni")], "patroni")?;
        let patronictl = first(&[venv.join("patronictl")], "patronictl")?;
        let etcd = first(&["/usr/bin/etcd".into(), "/usr/local/bin/etcd".into()], "etcd")?;
        let haproxy = first(&["/usr/sbin/haproxy".into(), "/usr/local/sbin/haproxy".into()], "haproxy")?;
        let pgbouncer = first(&[peers.join("bin/pgbouncer"), "/usr/sbin/pgbouncer".into()], "pgbouncer")?;
        let pg_bin = pg_bin.map(Path::to_path_buf).or_else(newest_postgres);
        let pg_bin = pg_bin.with_context(|| format!("no PostgreSQL below {POSTGRES}: name its programs with --pg-bin"))?;
        let asked = [
            ("patroni", &patroni, "--version"),
            ("etcd", &etcd, "--version"),
            ("haproxy", &haproxy, "-v"),
            ("pgbouncer", &pgbouncer, "--version"),
        ];
        let mut versions = BTreeMap::new();
        for (name, program, word) in asked {
            versions.insert(name.to_owned(), version(program, word)?);
        }
        let found = versions.get("pgbouncer").map(String::as_str).unwrap_or_default();
        if major_minor(found).is_none_or(|v| v < PGBOUNCER_LEAST) {
            bail!(
                "{} is PgBouncer {found}, which loses prepared statements in transaction mode (1.21 and later do not): {REMEDY}",
                pgbouncer.display()
            );
        }
        Ok(Installed { patroni, patronictl, etcd, haproxy, pgbouncer, pg_bin, user: postgres_user()?, versions })
    }
}

fn first(places: &[PathBuf], name: &str) -> Result<PathBuf> {
    let found = places.iter().find(|place| place.is_file()).cloned();
    let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    found.with_context(|| format!("there is no {name} at {}: {REMEDY}", looked.join(" or ")))
}

fn newest_postgres() -> Option<PathBuf> {
    let versions = fs::read_dir(POSTGRES).ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let programs = versions.max().map(|version| Path::new(POSTGRES).join(version.to_string()).join("bin"));
    programs.filter(|dir| dir.join("postgres").is_file())
}

/// The first word of what it says that begins with a digit.
fn version(program: &Path, word: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.arg(word);
    let output = output_within(command, LIMIT).with_context(|| format!("{} does not start: {REMEDY}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    Ok(number.with_context(|| format!("{} says no version: {said:?}", program.display()))?.to_owned())
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn postgres_user() -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == "postgres").then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    ids.context("there is no user postgres on this machine, whom Patroni could run as")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let error = Installed::find(Path::new("/nonexistent"), None).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(error.contains("no patroni at /nonexistent/venv/bin/patroni") && error.contains("scripts/peers.sh"), "{error}");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(major_minor("1.9.0") < major_minor("1.21.0"));
        assert_eq!(major_minor("x"), None);
    }
}
