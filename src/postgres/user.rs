//! As whom Postgres runs. It refuses root, so a node that runs as root hands its children and their files to another user.

use super::error::{Error, io};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OsUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// The user that Postgres runs as, and whether that takes a change of user.
#[derive(Clone, Debug)]
pub(super) struct RunAs {
    pub user: OsUser,
    pub change: bool,
}

impl RunAs {
    /// `wanted` names the user for a node that runs as root; everybody else can only be themselves.
    pub fn resolve(wanted: Option<&str>) -> Result<RunAs, Error> {
        let me = rustix::process::geteuid().as_raw();
        if me == 0 {
            let name = wanted.unwrap_or("postgres");
            let user = by_name(name).filter(|u| u.uid != 0).ok_or_else(|| Error::NoSuchUser(name.to_owned()))?;
            return Ok(RunAs { user, change: true });
        }
        let gid = rustix::process::getegid().as_raw();
        let user = by_uid(me).unwrap_or(OsUser { name: me.to_string(), uid: me, gid });
        Ok(RunAs { user, change: false })
    }

    /// Hands `path` to that user.
    pub fn own(&self, path: &Path) -> Result<(), Error> {
        if !self.change {
            return Ok(());
        }
        // Never through a link: the directory belongs to that user, who could have planted one.
        std::os::unix::fs::lchown(path, Some(self.user.uid), Some(self.user.gid)).map_err(io("cannot change the owner of", path))
    }

    /// Is it that user's, as far as it matters?
    pub fn owns(&self, path: &Path) -> bool {
        !self.change || std::fs::symlink_metadata(path).is_ok_and(|found| found.uid() == self.user.uid)
    }

    /// Lets a command run as that user.
    pub fn apply(&self, command: &mut tokio::process::Command) {
        if self.change {
            command.uid(self.user.uid).gid(self.user.gid);
        }
    }

    /// Postgres must be able to walk down to its files.
    pub fn check_traversable(&self, path: &Path) -> Result<(), Error> {
        if !self.change {
            return Ok(());
        }
        for dir in path.ancestors().filter(|d| !d.as_os_str().is_empty()) {
            let Ok(meta) = std::fs::metadata(dir) else { continue };
            let mode = meta.mode();
            let enters = (meta.uid() == self.user.uid && mode & 0o100 != 0) || (meta.gid() == self.user.gid && mode & 0o010 != 0);
            if !enters && mode & 0o001 == 0 {
                return Err(Error::NotTraversable { path: dir.to_path_buf(), user: self.user.name.clone() });
            }
        }
        Ok(())
    }
}

/// Name of the user that this process runs as, when it has one.
pub(super) fn own_name() -> Option<String> {
    by_uid(rustix::process::geteuid().as_raw()).map(|u| u.name)
}

fn by_name(name: &str) -> Option<OsUser> {
    passwd(name).find(|u| u.name == name)
}

fn by_uid(uid: u32) -> Option<OsUser> {
    passwd(&uid.to_string()).find(|u| u.uid == uid)
}

/// Lines of /etc/passwd, then what the directory services know about `key`.
fn passwd(key: &str) -> impl Iterator<Item = OsUser> + use<> {
    let local = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let asked = key.to_owned();
    let remote = std::iter::once_with(move || {
        let output = Command::new("getent").args(["passwd", &asked]).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    });
    let local = local.lines().filter_map(parse_line).collect::<Vec<_>>();
    local.into_iter().chain(remote.flatten().filter_map(|text| parse_line(text.trim_end())))
}

fn parse_line(line: &str) -> Option<OsUser> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(OsUser { name, uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_lines_are_read() {
        let user = parse_line("postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash");
        assert_eq!(user, Some(OsUser { name: "postgres".into(), uid: 101, gid: 104 }));
        assert_eq!(parse_line("broken"), None);
    }

    #[test]
    fn an_unknown_user_is_named() {
        if rustix::process::geteuid().is_root() {
            let refused = RunAs::resolve(Some("no-such-user-here")).unwrap_err();
            assert!(refused.to_string().contains("no-such-user-here"));
        }
    }
}
