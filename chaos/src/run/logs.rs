//! Logs of a run, one folder per datacenter. By child processes with a deadline: a datacenter's disk may hang.

use crate::cluster::{Cluster, output_within};
use crate::world::World;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const COPY_LIMIT: Duration = Duration::from_secs(20);

/// Copy what every datacenter wrote to `<dir>/logs/<datacenter>`. Returns what could not be copied.
pub fn collect(world: &World, cluster: Option<&Cluster>, dir: &Path) -> Vec<String> {
    let mut failed = Vec::new();
    for site in world.sites() {
        let to = dir.join("logs").join(site.name());
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
