//! A datacenter's disk, which loses power, tears, fails, slows down, hangs and fills up.
//!
//! ```text
//!   ext4 on <site>/mnt ── loop device ── <site>/fuse/disk (FUSE) ── thread ── Store: cache in memory, durable part in disk.img
//! ```
//! ext4 asks for a flush at each fsync, the loop device passes it on, and only then does a write become durable in the store. So what a
//! crash loses is what a drive with a volatile cache would lose.

mod daemon;
mod store;

use super::external;
use super::manifest::{self, Manifest, Thing};
use super::up::folder;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use store::Store;

pub use store::DiskCounters;

/// Room for a database of the harness's size, its WAL and a second copy of it; the image is sparse.
const BYTES: u64 = 4 << 30;
const TOOL_DEADLINE: Duration = Duration::from_secs(30);
const BALLAST: &str = "chaos-ballast";

/// One disk. Its faults last until [`Disk::heal`] or, where power was lost, [`Disk::remount`].
#[derive(Debug)]
pub struct Disk {
    name: String,
    store: Arc<Store>,
    /// Holds the FUSE file.
    fuse: PathBuf,
    /// Where ext4 is mounted.
    mount: PathBuf,
}

impl Disk {
    /// Makes, mounts and serves a disk for the site `name` in `home`; the thread ends when FUSE is unmounted.
    pub(super) fn create(name: &str, home: &Path, manifest: &mut Manifest) -> Result<(Disk, JoinHandle<()>)> {
        let (image, fuse, mount) = (home.join("disk.img"), home.join("fuse"), home.join("mnt"));
        folder(&fuse)?;
        folder(&mount)?;
        manifest.will_make(Thing::File(image.clone()))?;
        format(home, &image)?;
        let durable = fs::OpenOptions::new().read(true).write(true).open(&image).with_context(|| image.display().to_string())?;
        let store = Arc::new(Store::new(durable, BYTES));
        manifest.will_make(Thing::Mount(fuse.clone()))?;
        let thread = daemon::serve(name, Arc::clone(&store), &fuse)?;
        manifest.will_make(Thing::Loop(fuse.join(daemon::FILE)))?;
        manifest.will_make(Thing::Mount(mount.clone()))?;
        let disk = Disk { name: name.to_owned(), store, fuse, mount };
        disk.attach()?;
        Ok((disk, thread))
    }

    /// The folder on it for a site's data. While the disk is off it does not exist, so that nothing is written elsewhere by mistake.
    pub(super) fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// Power loss of the disk alone: what was not flushed is lost, and every request fails until [`Disk::remount`]; what ext4 has in
    /// memory can still be read. How many blocks of 4 KiB were lost. [`super::Site::power_loss`] is the loss of the whole machine.
    ///
    /// # Errors
    /// Never now; with the host's error once the store needs it.
    pub fn crash(&self) -> Result<u64> {
        self.store.crash(None).context("the disk's image")
    }

    /// Power loss in mid-write: of what was not flushed, each block is kept, lost, or kept up to some sector, as the seed says. How many
    /// were lost or torn.
    ///
    /// # Errors
    /// When the host cannot store what is kept.
    pub fn crash_torn(&self, seed: u64) -> Result<u64> {
        self.store.crash(Some(seed)).with_context(|| format!("the image of {}'s disk", self.name))
    }

    /// Power is back: ext4 recovers from its journal. Also mends a file system that made itself read-only after errors.
    ///
    /// # Errors
    /// When processes still use the disk and its power was not lost, or ext4 cannot be mounted.
    pub fn remount(&self) -> Result<()> {
        self.heal_requests();
        self.unmount()?;
        self.store.power_on();
        self.attach()
    }

    /// Takes ext4 away, so that nobody reads what its memory still holds.
    ///
    /// # Errors
    /// When processes still use the disk and its power was not lost.
    pub(super) fn unmount(&self) -> Result<()> {
        if manifest::mount_of(&self.mount).is_none() {
            return Ok(());
        }
        let unmounted = manifest::unmount(&self.mount, &[]);
        if unmounted.is_err() && self.store.is_off() {
            // Whoever still holds a file of the disk's former life gets errors from it for ever.
            return manifest::unmount(&self.mount, &["--lazy"]);
        }
        unmounted.context("the disk is in use; kill the site's processes first")
    }

    /// Every write fails with EIO: ext4 soon makes itself read-only.
    pub fn fail_writes(&self, on: bool) {
        self.store.fail_writes(on);
    }

    /// Every flush fails with EIO, and what it should have made durable stays volatile.
    pub fn fail_fsyncs(&self, on: bool) {
        self.store.fail_fsyncs(on);
    }

    /// Every flush takes this much longer, and requests behind it wait; zero: none.
    pub fn fsync_delay(&self, delay: Duration) {
        self.store.fsync_delay(delay);
    }

    /// No request is answered.
    pub fn hang(&self, on: bool) {
        self.store.hang(on);
    }

    /// Leaves only `bytes` free on the disk.
    ///
    /// # Errors
    /// When the disk is off, or does not answer.
    pub fn full(&self, bytes: u64) -> Result<()> {
        self.free()?;
        let text = external::run(Command::new("stat").args(["--file-system", "--format=%a %S"]).arg(&self.mount), "", TOOL_DEADLINE)?;
        let numbers: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [blocks, size] = numbers.as_slice() else { bail!("stat said {text:?}") };
        let ballast = (blocks * size).saturating_sub(bytes).to_string();
        // A little less may be free than was said; what fallocate took until then stays.
        let filled = external::run(Command::new("fallocate").args(["--length", &ballast]).arg(self.ballast()), "", TOOL_DEADLINE);
        match filled {
            Err(error) if !format!("{error:#}").contains("No space left") => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives back what [`Disk::full`] took.
    ///
    /// # Errors
    /// When the disk is off, or does not answer.
    pub fn free(&self) -> Result<()> {
        external::run(Command::new("rm").arg("-f").arg(self.ballast()), "", TOOL_DEADLINE).map(drop)
    }

    /// ext4 makes itself read-only, as after an error of its own; [`Disk::remount`] mends it.
    ///
    /// # Errors
    /// When the disk is off, or does not answer.
    pub fn read_only(&self) -> Result<()> {
        external::run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.mount), "", TOOL_DEADLINE).map(drop)
    }

    /// Ends every fault but the loss of power and a file system that is read-only: see [`Disk::needs_remount`].
    ///
    /// # Errors
    /// When the space of [`Disk::full`] cannot be given back.
    pub fn heal(&self) -> Result<()> {
        self.heal_requests();
        if self.needs_remount() { Ok(()) } else { self.free() }
    }

    pub(super) fn heal_requests(&self) {
        self.store.fail_writes(false);
        self.store.fail_fsyncs(false);
        self.store.fsync_delay(Duration::ZERO);
        self.store.hang(false);
    }

    /// Whether power was lost, or ext4 made itself read-only after errors.
    #[must_use]
    pub fn needs_remount(&self) -> bool {
        let writable = |options: &str| !options.split(',').any(|word| matches!(word, "ro" | "emergency_ro" | "shutdown"));
        self.store.is_off() || !manifest::mount_of(&self.mount).is_some_and(|mount| writable(&mount.options))
    }

    #[must_use]
    pub fn counters(&self) -> DiskCounters {
        self.store.counters()
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join(BALLAST)
    }

    fn attach(&self) -> Result<()> {
        let file = self.fuse.join(daemon::FILE);
        let device = external::run(Command::new("losetup").args(["--find", "--show"]).arg(&file), "", TOOL_DEADLINE)?;
        let options = "noatime,noinit_itable,errors=remount-ro";
        let mount = external::run(Command::new("mount").args(["-t", "ext4", "-o", options, &device]).arg(&self.mount), "", TOOL_DEADLINE);
        // Detached by the kernel with the unmount; at once, when it was not mounted.
        let detach = external::run(Command::new("losetup").args(["--detach", &device]), "", TOOL_DEADLINE);
        mount?;
        detach.map(drop)
    }
}

/// Makes the image, with ext4 in it and the folder for data, durable from the start.
fn format(home: &Path, image: &Path) -> Result<()> {
    let template = home.join("template");
    folder(&template.join("data"))?;
    let file = fs::File::create(image).with_context(|| image.display().to_string())?;
    file.set_len(BYTES).with_context(|| image.display().to_string())?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-d"]).arg(&template).arg(image);
    let made = external::run(&mut command, "", TOOL_DEADLINE);
    fs::remove_dir_all(&template).with_context(|| template.display().to_string())?;
    made.map(drop)
}
