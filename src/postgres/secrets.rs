//! The two passwords of a cluster. Drawn at bootstrap, kept in files of mode 0600; the replicated state hands them to members that join.

use super::durable::write_private;
use super::error::{Error, io};
use crate::cluster::Secrets;
use std::os::unix::fs::DirBuilderExt;
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
