//! Certificates of a cluster, by the program's own `certs`: an authority, one per node, and an operator's for the command line.

use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;

/// Name of the operator's certificate.
pub(super) const OPERATOR: &str = "chaos";

/// Make them all in `dir`; those that are there stay.
pub(super) fn make(binary: &Path, dir: &Path, sites: &[Site]) -> Result<()> {
    if dir.join(format!("{OPERATOR}.pem")).exists() {
        return Ok(());
    }
    let shown = dir.display().to_string();
    run(binary, &["certs", "init", "--dir", &shown])?;
    for site in sites {
        let address = site.address().to_string();
        run(binary, &["certs", "issue", site.name(), "--san", &address, "--dir", &shown])?;
    }
    run(binary, &["certs", "issue", OPERATOR, "--role", "operator", "--dir", &shown])
}

fn run(binary: &Path, words: &[&str]) -> Result<()> {
    let output = Command::new(binary).args(words).output();
    let output = output.with_context(|| format!("cannot run {}", binary.display()))?;
    if !output.status.success() {
        bail!("`trilithon {}` failed: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
