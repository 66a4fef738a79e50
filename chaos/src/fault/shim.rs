//! Other clocks for one datacenter: a library for LD_PRELOAD (clock_shim.c), and the files it reads them from.
//!
//! Node processes must be started with [`Shim::environment`]; from then on the harness moves the clocks of a datacenter at any time.
//! Trilithon gives Postgres an environment of its own, so that only node processes see these clocks: theirs are the ones that decide.

use crate::cluster::output_within;
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOURCE: &str = include_str!("clock_shim.c");

/// What the clocks of a datacenter say. The default is the truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// Added to wall time, ns.
    pub wall_ns: i64,
    /// All clocks run this much faster, in millionths.
    pub ppm: i64,
    /// True CLOCK_BOOTTIME since when they do, ns.
    pub(super) anchor_ns: i64,
    /// Added to monotonic clocks, ns. Must never shrink while a process runs.
    pub boot_ns: i64,
}

impl Clocks {
    /// Go on at another speed without a jump.
    #[must_use]
    pub fn at_speed(self, ppm: i64) -> Clocks {
        let now = boot_ns();
        let drifted = self.drift_ns(now);
        Clocks { wall_ns: self.wall_ns + drifted, boot_ns: self.boot_ns + drifted, ppm, anchor_ns: now }
    }

    /// What the clocks gained since their speed was set.
    fn drift_ns(self, now: i64) -> i64 {
        let gained = i128::from(now - self.anchor_ns) * i128::from(self.ppm) / 1_000_000;
        i64::try_from(gained).unwrap_or(0)
    }
}

fn boot_ns() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

/// The library, and the folder of the clocks' files.
#[derive(Clone, Debug)]
pub struct Shim {
    library: PathBuf,
    clocks: PathBuf,
}

impl Shim {
    /// Compile the library into `dir`, which processes of every user must be able to read, and give each of `sites` true clocks.
    ///
    /// # Errors
    /// There is no C compiler, or it does not know this machine.
    pub fn build(dir: &Path, sites: &[Site]) -> Result<Shim> {
        let shim = Shim::at(dir);
        fs::create_dir_all(&shim.clocks).with_context(|| format!("cannot create {}", shim.clocks.display()))?;
        fs::set_permissions(&shim.clocks, fs::Permissions::from_mode(0o755)).context("cannot open up the clocks' folder")?;
        let source = dir.join("clock_shim.c");
        fs::write(&source, SOURCE).with_context(|| format!("cannot write {}", source.display()))?;
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&shim.library).arg(&source).output();
        let compiled = compiled.context("cannot run the C compiler `cc`, which the clock faults need; install gcc")?;
        if !compiled.status.success() {
            bail!("the clock shim does not compile: {}", String::from_utf8_lossy(&compiled.stderr).trim());
        }
        for site in sites {
            // The library knows its datacenter by the namespace, people and the harness by name.
            let (file, name) = (namespace(site)?, shim.file(site));
            let _ = fs::remove_file(&name);
            std::os::unix::fs::symlink(&file, &name).with_context(|| format!("cannot write {}", name.display()))?;
            shim.set(site, Clocks::default())?;
        }
        Ok(shim)
    }

    /// The one that was built in `dir`.
    pub fn at(dir: &Path) -> Shim {
        Shim { library: dir.join("clock_shim.so"), clocks: dir.join("clocks") }
    }

    pub fn exists(&self) -> bool {
        self.library.exists()
    }

    /// What node processes must be started with.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let text = |path: &Path| path.display().to_string();
        BTreeMap::from([("LD_PRELOAD".to_owned(), text(&self.library)), ("CHAOS_CLOCKS".to_owned(), text(&self.clocks))])
    }

    /// Is it loaded into this process, under the clocks' present folder?
    pub fn is_in(&self, pid: u32) -> bool {
        let name = self.library.display().to_string();
        fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(&name))
    }

    /// What the clocks of `site` say now.
    ///
    /// # Errors
    /// They were never set.
    pub fn get(&self, site: &Site) -> Result<Clocks> {
        let path = self.file(site);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let word = |i: usize| bytes.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, i64::from_ne_bytes);
        Ok(Clocks { wall_ns: word(1), ppm: word(2), anchor_ns: word(3), boot_ns: word(4) })
    }

    /// Set the clocks of `site`. Processes that run see it at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, site: &Site, clocks: Clocks) -> Result<()> {
        let path = self.file(site);
        let context = || format!("cannot write {}", path.display());
        // Never replaced: processes have it mapped.
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(context)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).with_context(context)?;
        let mut turn = [0u8; 8];
        let _ = file.read_exact_at(&mut turn, 0);
        // Odd while the words below change, so that nobody reads half of them.
        let turn = u64::from_ne_bytes(turn) & !1;
        file.write_all_at(&(turn + 1).to_ne_bytes(), 0).with_context(context)?;
        let words = [clocks.wall_ns, clocks.ppm, clocks.anchor_ns, clocks.boot_ns];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        file.write_all_at(&bytes, 8).with_context(context)?;
        file.write_all_at(&(turn + 2).to_ne_bytes(), 0).with_context(context)
    }

    fn file(&self, site: &Site) -> PathBuf {
        self.clocks.join(site.name())
    }
}

/// Inode of the datacenter's network namespace, as a process in it sees it.
fn namespace(site: &Site) -> Result<String> {
    let mut command = site.command("stat");
    command.args(["-Lc", "%i", "/proc/self/ns/net"]);
    let said = output_within(command, Duration::from_secs(5)).with_context(|| format!("cannot look at the namespace of {}", site.name()))?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_speed_begins_without_a_jump() {
        let fast = Clocks::default().at_speed(50_000);
        let now = fast.anchor_ns + 2_000_000_000;
        assert_eq!(fast.drift_ns(now), 100_000_000);
        let again = fast.at_speed(0);
        assert_eq!(again.ppm, 0);
        assert!(again.boot_ns >= 0 && again.boot_ns < 1_000_000_000);
    }
}
