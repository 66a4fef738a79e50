//! The folder of a demo: made, marked, written, removed.
//!
//! Only a folder that carries the mark is ever reused or removed, so that `--dir` on somebody's own folder harms nothing.
//! As root, Postgres runs as another user who must be able to walk down to its data; where it cannot (a clone below root's
//! home), the datacenters' folders go to /var/tmp and the mark says so.
//!
//! Entry point: [`Folder::open`].

use super::plan::{ClusterFile, Plan};
use anyhow::{Context as _, bail};
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const MARK: &str = ".trilithon-demo";
const CLUSTER_FILE: &str = "cluster.json";
/// Where Postgres's user can always go.
const REACHABLE: &str = "/var/tmp";

/// A demo's own folder, and the one that holds its datacenters (the same, as a rule).
#[derive(Clone, Debug)]
pub struct Folder {
    pub dir: PathBuf,
    pub data: PathBuf,
}

impl Folder {
    /// Make `dir` a demo's folder, or go on with one that a demo left.
    pub fn open(dir: &Path, base_port: u16) -> anyhow::Result<Folder> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
        let mark = dir.join(MARK);
        if mark.exists() {
            let data = fs::read_to_string(&mark).with_context(|| format!("cannot read {}", mark.display()))?;
            return Ok(Folder { dir, data: PathBuf::from(data.trim()) });
        }
        if fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?.next().is_some() {
            bail!("{} holds files that are not a demo's; name another folder with --dir", dir.display());
        }
        let data = if rustix::process::geteuid().is_root() && !everybody_reaches(&dir) {
            let data = Path::new(REACHABLE).join(format!("trilithon-demo-{base_port}-{}", std::process::id()));
            println!("{} is closed to the user that Postgres runs as: data goes to {}", dir.display(), data.display());
            data
        } else {
            dir.clone()
        };
        make(&data)?;
        fs::write(&mark, data.display().to_string()).with_context(|| format!("cannot write {}", mark.display()))?;
        Ok(Folder { dir, data })
    }

    /// The demo's folder that is at `dir` already.
    pub fn existing(dir: &Path) -> anyhow::Result<PathBuf> {
        let found = dir.canonicalize().ok().filter(|d| d.join(MARK).exists());
        found.with_context(|| format!("there is no demo in {}; `trilithon demo --detach` starts one", dir.display()))
    }

    /// Write every node's configuration and the CLI's.
    pub fn write_configs(&self, plan: &Plan) -> anyhow::Result<()> {
        for site in &plan.sites {
            make(&site.dir)?;
            make(&site.data_dir())?;
            write(&site.config_file(), &plan.config(site), 0o644)?;
        }
        write(&self.dir.join("trilithon-cli.toml"), &plan.cli_config(), 0o600)
    }

    /// Write `cluster.json`; it holds the superuser's password.
    pub fn write_cluster(&self, cluster: &ClusterFile) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(cluster).context("cannot write cluster.json")?;
        write(&self.dir.join(CLUSTER_FILE), &format!("{text}\n"), 0o600)
    }

    /// Where `cluster.json` is, or will be.
    #[must_use]
    pub fn cluster_file(dir: &Path) -> PathBuf {
        dir.join(CLUSTER_FILE)
    }

    /// The demo ended and its data stays: what says how to reach it goes.
    pub fn close(&self) {
        let _ = fs::remove_file(self.dir.join(CLUSTER_FILE));
    }

    /// Remove everything.
    pub fn remove(&self) -> anyhow::Result<()> {
        for dir in [&self.data, &self.dir] {
            if dir.exists() {
                fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
            }
        }
        Ok(())
    }
}

/// May everybody walk down to `dir`? (Its own mode is ours to set.)
fn everybody_reaches(dir: &Path) -> bool {
    dir.ancestors().skip(1).all(|d| fs::metadata(d).is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
}

/// A folder that others may pass through: secrets and data below it have modes of their own.
fn make(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::set_permissions(dir, Permissions::from_mode(0o755)).with_context(|| format!("cannot open up {}", dir.display()))
}

/// Replace a file in one step: programs wait for it to appear.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    let failed = || format!("cannot write {}", path.display());
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    fs::rename(&temporary, path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_marked_folder_is_reused() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let dir = root.path().join("demo");
        let folder = Folder::open(&dir, 1).expect("a new folder");
        let again = Folder::open(&dir, 1).expect("its own folder");
        assert_eq!(folder.data, again.data);
        let foreign = root.path().join("mine");
        fs::create_dir(&foreign).expect("a folder");
        fs::write(foreign.join("thesis.txt"), "years of work").expect("a file");
        let refused = Folder::open(&foreign, 1).expect_err("not a demo's").to_string();
        assert!(refused.contains("--dir"), "{refused}");
        folder.remove().expect("removed");
        assert!(!dir.exists());
    }
}
