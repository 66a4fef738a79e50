//! The two passwords of a cluster. Drawn at bootstrap, kept in files of mode 0600; the replicated state hands them to members that join.

use super::error::{Error, io};
use super::user::RunAs;
use crate::cluster::Secrets;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Draws new ones: 32 characters of a 62-letter alphabet, 190 bits.
#[must_use]
pub fn generate_secrets() -> Secrets {
    Secrets { superuser: draw(), replication: draw() }
}

/// Those kept in `dir`, `None` where none were kept yet.
pub(super) fn load(dir: &Path) -> Result<Option<Secrets>, Error> {
    match (read(&dir.join("superuser"))?, read(&dir.join("replication"))?) {
        (Some(superuser), Some(replication)) => Ok(Some(Secrets { superuser, replication })),
        _ => Ok(None),
    }
}

pub(super) fn save(secrets: &Secrets, dir: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("cannot create", dir))?;
    write_private(&dir.join("superuser"), &secrets.superuser)?;
    write_private(&dir.join("replication"), &secrets.replication)
}

fn draw() -> String {
    use rand::Rng;
    rand::rng().sample_iter(rand::distr::Alphanumeric).take(32).map(char::from).collect()
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned()).filter(|t| !t.is_empty())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("cannot read", path)(e)),
    }
}

/// Writes `text` to a new file of mode 0600, made durable before it takes the name.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    write_atomic(path, text, 0o600, None)
}

/// Write, fsync, rename, fsync of the directory: after a crash either the old or the new content is there, and its owner's: it is given
/// away before it takes its name, since a disk may fail, or a task end, after each of these.
pub(super) fn write_atomic(path: &Path, text: &str, mode: u32, owner: Option<&RunAs>) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let _ = std::fs::remove_file(&temporary);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(io("cannot create", &temporary))?;
    owner.map_or(Ok(()), |owner| owner.own(&temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io("cannot write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io("cannot replace", path))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io("cannot sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_survive_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("secrets");
        assert_eq!(load(&kept).unwrap(), None);
        let secrets = generate_secrets();
        save(&secrets, &kept).unwrap();
        assert_eq!(load(&kept).unwrap(), Some(secrets.clone()));
        assert_eq!(std::fs::metadata(kept.join("superuser")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{secrets:?}").contains(&secrets.superuser));
    }
}
