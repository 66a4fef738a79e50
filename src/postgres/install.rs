//! Finds PostgreSQL's binaries by itself: the configured directory, PATH, Debian's and Red Hat's places, `pg_config`.

use super::error::Error;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest and newest major version that is supported and tested.
const MAJOR_MIN: u32 = 15;
const MAJOR_MAX: u32 = 18;

/// One installation of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    pub bin_dir: PathBuf,
    pub major: u32,
    /// As the binaries print it: `15.14`.
    pub version: String,
}

impl Install {
    /// The newest supported installation, or the one of `major` where a data directory already says which.
    /// A configured directory is the only one looked at.
    pub fn find(bin_dir: Option<&Path>, major: Option<u32>, data: &Path) -> Result<Install, Error> {
        let places = bin_dir.map_or_else(candidates, |dir| vec![dir.to_path_buf()]);
        let found: Vec<Install> = places.iter().filter_map(|dir| probe(dir)).collect();
        let supported = |i: &&Install| (MAJOR_MIN..=MAJOR_MAX).contains(&i.major);
        if let Some(wanted) = major {
            if let Some(fitting) = found.iter().filter(supported).find(|i| i.major == wanted) {
                return Ok(fitting.clone());
            }
            if !found.is_empty() {
                let names: Vec<String> = found.iter().map(|i| format!("{} in {}", i.version, i.bin_dir.display())).collect();
                return Err(Error::OtherMajor { path: data.to_path_buf(), data: wanted, found: names.join(", ") });
            }
        }
        if let Some(newest) = found.iter().filter(supported).max_by_key(|i| i.major) {
            return Ok(newest.clone());
        }
        match found.first() {
            Some(other) => Err(Error::Unsupported { bin_dir: other.bin_dir.clone(), found: other.version.clone() }),
            None => {
                let names: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
                Err(Error::NoBinaries { searched: names.join(", ") })
            }
        }
    }

    /// Path of one of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut places = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A link in PATH leads to the place where the other programs are.
    let real = |d: PathBuf| d.join("postgres").canonicalize().ok()?.parent().map(Path::to_path_buf);
    places.extend(std::env::split_paths(&path).filter_map(real));
    for (root, bin) in [("/usr/lib/postgresql", "bin"), ("/usr/local/lib/postgresql", "bin"), ("/opt/homebrew/opt", "bin")] {
        places.extend(subdirectories(Path::new(root)).map(|d| d.join(bin)));
    }
    places.extend(subdirectories(Path::new("/usr")).filter(|d| d.to_string_lossy().contains("pgsql-")).map(|d| d.join("bin")));
    places.extend(pg_config());
    let mut seen = BTreeSet::new();
    places.retain(|p| seen.insert(p.clone()));
    places
}

fn subdirectories(root: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|e| e.path())
}

fn pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(text.trim())).filter(|p| p.is_absolute())
}

/// Programs that are run. Client packages bring a bin directory with some of them.
const PROGRAMS: &[&str] = &["postgres", "initdb", "pg_controldata", "pg_basebackup", "pg_rewind"];

/// What is installed in `dir`, if all of it is.
fn probe(dir: &Path) -> Option<Install> {
    if !PROGRAMS.iter().all(|p| dir.join(p).exists()) {
        return None;
    }
    let output = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
    let version = parse_version(&String::from_utf8_lossy(&output.stdout))?;
    // `15.14`, `18beta1`, `19devel`
    let major = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    Some(Install { bin_dir: dir.to_path_buf(), major, version })
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` → `15.14`.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.split_once("(PostgreSQL)")?.1;
    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)").as_deref(), Some("15.14"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18beta1"));
        assert_eq!(parse_version("bash 5"), None);
    }

    #[test]
    fn a_missing_server_is_reported_with_the_place_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Install::find(Some(dir.path()), None, Path::new("/data")).unwrap_err().to_string();
        assert!(refused.contains(&dir.path().display().to_string()) && refused.contains("bin_dir"), "{refused}");
    }
}
