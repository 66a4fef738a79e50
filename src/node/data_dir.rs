//! The node's own directory: whose it is, that nobody else uses it, and that it can be written.
//!
//! Checked before anything in it is opened, so that a wrong `data_dir` damages nothing.

use crate::agent::write_durably;
use crate::types::NodeName;
use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const LOCK: &str = "node.lock";
const OWNER: &str = "node.json";
const PROBE: &str = ".space";
/// Enough for the consensus log's first files and a promise; Postgres says itself what it needs.
const SPACE_BYTES: usize = 4 << 20;

/// Whose directory it is, written at the first start.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    cluster: String,
    node: NodeName,
}

/// The directory, held by this process for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    pub path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Take `path` for node `name` of `cluster`. Nothing but an empty directory, or one that is this node's already, is taken.
    pub fn open(path: &Path, cluster: &str, name: &NodeName) -> anyhow::Result<DataDir> {
        let shown = path.display();
        fs::create_dir_all(path).with_context(|| format!("cannot create node.data_dir {shown}; create it, or choose another one"))?;
        let lock = lock(path)?;
        check_owner(path, cluster, name)?;
        check_space(path).with_context(|| {
            format!("cannot write {} MiB in node.data_dir {shown}; free some space, or choose another directory", SPACE_BYTES >> 20)
        })?;
        Ok(DataDir { path: path.to_owned(), _lock: lock })
    }

    /// Log and snapshots of consensus.
    #[must_use]
    pub fn consensus(&self) -> PathBuf {
        self.path.join("consensus")
    }
}

/// The kernel drops the lock with the process, however that ends.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.with_context(|| format!("cannot write {}; is the directory this user's?", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        let pid = pid.trim();
        bail!("another trilithon node (pid {pid}) uses {}: stop it, or give this one its own node.data_dir", dir.display());
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

fn check_owner(dir: &Path, cluster: &str, name: &NodeName) -> anyhow::Result<()> {
    let path = dir.join(OWNER);
    let me = Owner { cluster: cluster.to_owned(), node: name.clone() };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    // Empty: the power failed while an older version wrote it.
    if text.is_empty() {
        let text = format!("{}\n", serde_json::to_string(&me)?);
        return write_durably(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()));
    }
    let Ok(found) = serde_json::from_str::<Owner>(&text) else {
        bail!(
            "{} is damaged: it should name the cluster and node that {} belongs to; write {}",
            path.display(),
            dir.display(),
            serde_json::to_string(&me)?
        );
    };
    if found != me {
        let (theirs, ours) = (format!("{} of cluster `{}`", found.node, found.cluster), format!("{name} of cluster `{cluster}`"));
        bail!(
            "{} belongs to node {theirs}, and this is node {ours}: correct node.name, cluster.name or node.data_dir; nothing was touched",
            dir.display()
        );
    }
    Ok(())
}

/// A full disk is best noticed before anything was promised on it.
fn check_space(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(PROBE);
    let written = File::create(&path).and_then(|mut file| file.write_all(&vec![0u8; SPACE_BYTES]).and_then(|()| file.sync_all()));
    let removed = fs::remove_file(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_or_of_another_node_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (dc1, dc2) = (NodeName::from("dc1"), NodeName::from("dc2"));
        let held = DataDir::open(root.path(), "main", &dc1).unwrap();
        let refused = DataDir::open(root.path(), "main", &dc1).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(held);
        let refused = DataDir::open(root.path(), "main", &dc2).unwrap_err().to_string();
        assert!(refused.contains("belongs to node dc1 of cluster `main`"), "{refused}");
        let refused = DataDir::open(root.path(), "other", &dc1).unwrap_err().to_string();
        assert!(refused.contains("correct node.name, cluster.name or node.data_dir"), "{refused}");
        DataDir::open(root.path(), "main", &dc1).unwrap();
    }

    #[test]
    fn an_owner_that_a_loss_of_power_left_empty_is_written_again() {
        let root = tempfile::tempdir().unwrap();
        let dc1 = NodeName::from("dc1");
        fs::write(root.path().join(OWNER), "").unwrap();
        drop(DataDir::open(root.path(), "main", &dc1).unwrap());
        let refused = DataDir::open(root.path(), "main", &NodeName::from("dc2")).unwrap_err().to_string();
        assert!(refused.contains("belongs to node dc1"), "{refused}");
        fs::write(root.path().join(OWNER), "{").unwrap();
        let refused = DataDir::open(root.path(), "main", &dc1).unwrap_err().to_string();
        assert!(refused.contains("is damaged") && refused.contains(r#"{"cluster":"main","node":"dc1"}"#), "{refused}");
    }
}
