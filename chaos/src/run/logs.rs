//! Logs of a run, one folder per datacenter. By child processes with a deadline: a datacenter's disk may hang.

use crate::cluster::{Cluster, output_within};
use crate::world::World;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const COPY_LIMIT: Duration = Duration::from_secs(20);

/// In a run's folder.
const LOGS: &str = "logs";

/// The folder of a datacenter's logs.
pub fn of(dir: &Path, site: &str) -> PathBuf {
    dir.join(LOGS).join(site)
}

/// Take away what [`collect`] left of an earlier run, and nothing else: somebody may have logs of his own there.
///
/// # Errors
/// Something of it cannot be removed.
pub fn clear(dir: &Path) -> Result<()> {
    let logs = dir.join(LOGS);
    let entries = match fs::read_dir(&logs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look into {}", logs.display())),
    };
    for entry in entries.flatten().filter(|entry| is_site(&entry.file_name().to_string_lossy())) {
        let path = entry.path();
        fs::remove_dir_all(&path)
            .with_context(|| format!("cannot remove {}, which an earlier run left: choose another folder", path.display()))?;
    }
    // It stays where it holds something else.
    let _ = fs::remove_dir(&logs);
    Ok(())
}

/// Worlds call their datacenters dc1, dc2, …
fn is_site(name: &str) -> bool {
    name.strip_prefix("dc").is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Copy what every datacenter wrote to `<dir>/logs/<datacenter>`. Returns what could not be copied.
pub fn collect(world: &World, cluster: Option<&Cluster>, dir: &Path) -> Vec<String> {
    let mut failed = Vec::new();
    for site in world.sites() {
        let to = of(dir, site.name());
        if let Err(error) = fs::create_dir_all(&to) {
            failed.push(format!("{}: {error}", to.display()));
            continue;
        }
        failed.extend(copy(&site.logs().join("."), &to).err().map(|e| format!("{e:#}")));
        let data = cluster.and_then(|c| c.node(site.name()).ok()).map(|node| node.data_dir());
        let Some(data) = data else { continue };
        for file in ["postgres.log", "postgres/postgresql.conf", "pgdata/postmaster.opts"] {
            // A witness has none of them, a copied node not all.
            let _ = copy(&data.join(file), &to);
        }
    }
    failed
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("-r").arg(from).arg(to);
    let output = output_within(command, COPY_LIMIT).with_context(|| format!("logs of {}", from.display()))?;
    if !output.status.success() {
        bail!("logs of {}: {}", from.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The last lines of every node's log, for an error that has no other explanation.
pub fn tails(world: &World, lines: usize) -> String {
    let mut text = String::new();
    for site in world.sites() {
        let log = fs::read_to_string(site.logs().join("node.log")).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        let end = &all[all.len().saturating_sub(lines)..];
        text.push_str(&format!("--- {}\n{}\n", site.name(), end.join("\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_an_earlier_run_go_and_those_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        clear(dir.path()).unwrap();
        for site in ["dc1", "dc12"] {
            fs::create_dir_all(of(dir.path(), site).join("core")).unwrap();
            fs::write(of(dir.path(), site).join("core/1"), "").unwrap();
        }
        clear(dir.path()).unwrap();
        assert!(!dir.path().join(LOGS).exists());
        for other in ["dc", "dcx", "mine"] {
            fs::create_dir_all(of(dir.path(), other)).unwrap();
        }
        fs::create_dir_all(of(dir.path(), "dc3")).unwrap();
        clear(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path().join(LOGS)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["dc", "dcx", "mine"]);
    }
}
