//! Patroni as a [`System`], to be compared under the same faults: in each datacenter etcd, Patroni with its Postgres, HAProxy, PgBouncer.
//!
//! ```text
//!   clients ──► PgBouncer 6433 ──► HAProxy 5000 (/primary) ──► the primary's Postgres, wherever it is
//!          └──► PgBouncer 6434 ──► HAProxy 5001 (/replica) ──► a standby's
//!                                          Patroni 8008 ◄──► etcd 2379, its members among each other 2380
//! ```
//! All settings are in [`files`], and those that matter are told in the record. Commits promise the same as Trilithon's: any one of
//! the standbys confirms, and without any they wait. Deliberately absent: a splitter of reads and writes, which this stack does not
//! have (`auto` leads to the primary), and a watchdog device, which a world cannot lend to three datacenters of one kernel.

mod files;
mod installed;
mod profile;
mod status;

pub use profile::Profile;

use super::status::Status;
use super::system::{Part, Ports, Program, Question, System, Tells};
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use files::Files;
use installed::Installed;
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Programs by name, which are also the names of their logs.
const ETCD: &str = "etcd";
const PATRONI: &str = "patroni";
const HAPROXY: &str = "haproxy";
const TO_PRIMARY: &str = "pgbouncer-primary";
const TO_STANDBY: &str = "pgbouncer-standby";

const PORTS: Ports = Ports { postgres: 5432, auto: 6433, primary: 6433, standby: 6434, grpc: 2380, http: 8008 };
/// etcd's, for clients.
const ETCD_PORT: u16 = 2379;
/// Each question costs Patroni a thread and a query: a person's dashboard would not ask more often.
const ASK_EVERY: Duration = Duration::from_millis(250);

pub struct Patroni {
    profile: Profile,
    installed: Installed,
    /// Configuration; outside the datacenters' disks, which break.
    dir: PathBuf,
    /// All datacenters with their addresses, known once files were made.
    members: OnceLock<Vec<(String, Ipv4Addr)>>,
}

impl Patroni {
    /// Files go below `dir`; `peers` is where `scripts/peers.sh` installed what no package of the system has.
    ///
    /// # Errors
    /// A program is missing or too old: which, and how to get it.
    pub fn new(profile: Profile, peers: &Path, pg_bin: Option<&Path>, dir: &Path) -> Result<Patroni> {
        let installed = Installed::find(peers, pg_bin)?;
        Ok(Patroni { profile, installed, dir: dir.join("cluster"), members: OnceLock::new() })
    }

    fn members(&self) -> &[(String, Ipv4Addr)] {
        self.members.get().map(Vec::as_slice).unwrap_or_default()
    }

    fn file(&self, site: &Site, what: &str) -> PathBuf {
        self.dir.join(format!("{}-{what}", site.name()))
    }

    /// Postgres and PgBouncer refuse to run as root, and so does what starts them.
    fn as_postgres(&self, site: &Site, program: &Path) -> Command {
        let mut command = site.command("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]).arg(program);
        command
    }
}

impl System for Patroni {
    fn name(&self) -> &str {
        self.profile.name()
    }

    fn ports(&self) -> Ports {
        PORTS
    }

    fn prepare(&self, sites: &[Site]) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        // A second time it is the same.
        let _ = self.members.set(sites.iter().map(|site| (site.name().to_owned(), site.address())).collect());
        for site in sites {
            let data = self.data_dir(site);
            fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
            let opened = fs::set_permissions(site.dir(), fs::Permissions::from_mode(0o755));
            opened.with_context(|| format!("cannot open up {}", site.dir().display()))?;
            let (uid, gid) = (Some(self.installed.user.0), Some(self.installed.user.1));
            chown(&data, uid, gid).with_context(|| format!("cannot give {} to Postgres's user", data.display()))?;
            let files = Files { profile: self.profile, pg_bin: &self.installed.pg_bin, data: &data, site, sites };
            let users = self.file(site, "users.txt");
            let written = [
                (self.file(site, "patroni.yml"), files.patroni()),
                (self.file(site, "haproxy.cfg"), files.haproxy()),
                (users.clone(), files.users()),
                (self.file(site, "pgbouncer-primary.ini"), files.pgbouncer(PORTS.primary, files::TO_PRIMARY, &users)),
                (self.file(site, "pgbouncer-standby.ini"), files.pgbouncer(PORTS.standby, files::TO_STANDBY, &users)),
            ];
            for (file, text) in written {
                fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        Ok(())
    }

    fn programs(&self, site: &Site) -> Vec<Program> {
        let mut etcd = site.command(&self.installed.etcd);
        etcd.args(files::etcd(site, self.members(), &self.data_dir(site).join("consensus")));
        let mut patroni = self.as_postgres(site, &self.installed.patroni);
        patroni.arg(self.file(site, "patroni.yml"));
        let mut haproxy = site.command(&self.installed.haproxy);
        haproxy.args(["-db", "-f"]).arg(self.file(site, "haproxy.cfg"));
        let pool = |file: &str| {
            let mut command = self.as_postgres(site, &self.installed.pgbouncer);
            command.arg(self.file(site, file));
            command
        };
        let (primary, standby) = (pool("pgbouncer-primary.ini"), pool("pgbouncer-standby.ini"));
        let all = [(ETCD, etcd), (PATRONI, patroni), (HAPROXY, haproxy), (TO_PRIMARY, primary), (TO_STANDBY, standby)];
        all.into_iter().map(|(name, command)| Program { name: name.to_owned(), command }).collect()
    }

    fn program_of(&self, part: Part) -> &'static str {
        match part {
            Part::Node => PATRONI,
            Part::Consensus => ETCD,
        }
    }

    fn tells(&self) -> Tells {
        Tells { epochs: false, phases: false, history: false, contract: false }
    }

    fn is_witness(&self, _: &Site) -> bool {
        false
    }

    fn data_dir(&self, site: &Site) -> PathBuf {
        site.dir().join("node")
    }

    fn pgdata(&self, site: &Site) -> PathBuf {
        self.data_dir(site).join("pgdata")
    }

    fn password(&self, _: &[Site]) -> Result<String> {
        Ok(files::PASSWORD.to_owned())
    }

    fn questions(&self) -> &'static [Question] {
        &[
            Question { port: PORTS.http, path: "/patroni", body: None },
            Question { port: ETCD_PORT, path: "/v3/maintenance/status", body: Some("{}") },
        ]
    }

    fn parse_status(&self, node: &str, answers: &[String]) -> Result<Status> {
        status::of_node(node, answers)
    }

    fn combine(&self, answers: Vec<Status>) -> Option<Status> {
        status::of_cluster(self.members().iter().map(|(name, _)| name.as_str()), answers)
    }

    fn ask_every(&self) -> Duration {
        ASK_EVERY
    }

    fn versions(&self) -> BTreeMap<String, String> {
        self.installed.versions.clone()
    }

    fn settings(&self) -> Vec<String> {
        self.profile.settings()
    }

    fn cli(&self, site: &Site, words: &[&str]) -> Result<Command> {
        let mut command = site.command(&self.installed.patronictl);
        command.arg("-c").arg(self.file(site, "patroni.yml")).args(patronictl(words)?);
        Ok(command)
    }
}

/// Trilithon's words as patronictl's.
fn patronictl(words: &[&str]) -> Result<Vec<String>> {
    let words: &[&str] = match words {
        ["switchover"] => &["switchover", files::SCOPE, "--force"],
        ["switchover", "--to", to] => &["switchover", files::SCOPE, "--candidate", to, "--force"],
        ["failover", "--to", to] => &["failover", files::SCOPE, "--candidate", to, "--force"],
        ["reinit", member] => &["reinit", files::SCOPE, member, "--force"],
        ["pause"] => &["pause", files::SCOPE, "--wait"],
        ["resume"] => &["resume", files::SCOPE, "--wait"],
        _ => bail!("patronictl has nothing like `{}`", words.join(" ")),
    };
    Ok(words.iter().map(|word| (*word).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_patronictl_cannot_do_is_said() {
        assert_eq!(patronictl(&["switchover", "--to", "dc2"]).unwrap().join(" "), "switchover chaos --candidate dc2 --force");
        assert!(patronictl(&["fence", "dc1"]).unwrap_err().to_string().contains("nothing like `fence dc1`"));
    }
}
