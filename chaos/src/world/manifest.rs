//! The state file of a world: what was made, written before it is made, so that whoever comes later can take it down.
//!
//! `world.json` in the world's folder lists the things; `world.lock` beside it is locked as long as the owner lives, which tells a living
//! owner from a dead one without trusting process ids. A link in [`REGISTRY`] leads from a fixed place to the folder.

use super::cgroup::Cgroup;
use super::external;
use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where worlds on this machine are found.
const REGISTRY: &str = "/run/trilithon-chaos";
const STATE: &str = "world.json";
const LOCK: &str = "world.lock";
/// A healthy unmount writes at most a disk's cache.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(10);
/// Everything that waits for a cut connection fails at once.
const ABORT_DEADLINE: Duration = Duration::from_secs(2);
/// A process that was killed is gone within this, unless its disk hangs.
const DEATH_DEADLINE: Duration = Duration::from_secs(3);
/// See [`Manifest::last_word`].
static ABORTING: Mutex<()> = Mutex::new(());

/// What can be left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Thing {
    Cgroup(PathBuf),
    /// Of version 1, for limits alone; empty once the processes are dead.
    OldCgroup(PathBuf),
    /// Of a namespace's handle or of a kernel file system: unmounted at once.
    Bind(PathBuf),
    /// Of a disk: unmounted with a deadline, since it may hang.
    Mount(PathBuf),
    /// The loop device over this file.
    Loop(PathBuf),
    File(PathBuf),
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    owner: u32,
    name: String,
    things: Vec<Thing>,
}

/// The state file, held by its owner.
#[derive(Debug)]
pub(super) struct Manifest {
    dir: PathBuf,
    state: State,
    /// `None`: of this process, but not the owner's own handle.
    _lock: Option<File>,
}

impl Manifest {
    /// Begins the state file of the world `name` in `dir`.
    ///
    /// # Errors
    /// When a living process has a world there.
    pub fn create(dir: &Path, name: &str) -> Result<Manifest> {
        let lock = lock(dir)?;
        let state = State { owner: std::process::id(), name: format!("{name}-{}", std::process::id()), things: Vec::new() };
        let manifest = Manifest { dir: dir.to_owned(), state, _lock: Some(lock) };
        manifest.write()?;
        fs::create_dir_all(REGISTRY).context(REGISTRY)?;
        let link = manifest.link();
        remove(fs::remove_file(&link)).with_context(|| link.display().to_string())?;
        std::os::unix::fs::symlink(dir, &link).with_context(|| link.display().to_string())?;
        Ok(manifest)
    }

    /// The world that a dead process left in `dir`, if there is one.
    ///
    /// # Errors
    /// When its owner lives, or the state file is damaged.
    pub fn left_over(dir: &Path) -> Result<Option<Manifest>> {
        let Some(state) = read(dir)? else { return Ok(None) };
        let lock = lock(dir).with_context(|| format!("a world is up in {} (process {})", dir.display(), state.owner))?;
        Ok(Some(Manifest { dir: dir.to_owned(), state, _lock: Some(lock) }))
    }

    /// Takes down what this process has made, whoever else holds it: for an end at once.
    pub fn undo_own() {
        for dir in Manifest::registered() {
            let own = read(&dir).ok().flatten().filter(|state| state.owner == std::process::id());
            let undone = own.map(|state| Manifest { dir, state, _lock: None }.undo());
            if let Some(Err(error)) = undone {
                eprintln!("world: {error:#}");
            }
        }
    }

    /// What nobody may be in the middle of when the process ends: a control file system would stay mounted. Held until then.
    pub fn last_word() -> MutexGuard<'static, ()> {
        ABORTING.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folders of all worlds that were not taken down, of living owners and dead ones.
    pub fn registered() -> Vec<PathBuf> {
        let entries = fs::read_dir(REGISTRY).into_iter().flatten().flatten();
        let folder = |link: PathBuf| {
            let dir = fs::read_link(&link).ok()?;
            if !dir.join(STATE).exists() {
                // The folder was deleted, or its world is being taken down right now.
                let _ = fs::remove_file(&link);
            }
            Some(dir)
        };
        entries.filter_map(|entry| folder(entry.path())).collect()
    }

    /// Unique on this machine.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The process that made the world.
    pub fn owner(&self) -> u32 {
        self.state.owner
    }

    /// Writes down what is about to be made.
    ///
    /// # Errors
    /// When the state file cannot be written: then nothing may be made.
    pub fn will_make(&mut self, thing: Thing) -> Result<()> {
        if !self.state.things.contains(&thing) {
            self.state.things.push(thing);
            self.write()?;
        }
        Ok(())
    }

    /// Takes down everything, whether it was made or not, and then the state file. May be repeated.
    ///
    /// # Errors
    /// With all that could not be taken down; the state file then stays, for the next attempt.
    pub fn undo(&self) -> Result<()> {
        let mut faults = Vec::new();
        let mut note = |result: Result<()>| faults.extend(result.err().map(|error| format!("{error:#}")));
        // All processes first: what they hold open cannot be unmounted.
        for thing in &self.state.things {
            if let Thing::Cgroup(path) = thing
                && path.exists()
            {
                note(fs::write(path.join("cgroup.kill"), "1").with_context(|| path.display().to_string()));
            }
        }
        // Who waits for a disk that hangs does not die of a signal.
        if !external::wait_until(DEATH_DEADLINE, || self.is_deserted()) {
            self.abort_disks();
        }
        for thing in self.state.things.iter().filter(|thing| matches!(thing, Thing::Cgroup(_))).rev() {
            note(self.remove(thing));
        }
        for thing in self.state.things.iter().filter(|thing| !matches!(thing, Thing::Cgroup(_))).rev() {
            note(self.remove(thing));
        }
        if !faults.is_empty() {
            bail!("what is left of the world in {} (the next start tries again):\n  - {}", self.dir.display(), faults.join("\n  - "));
        }
        remove(fs::remove_file(self.dir.join(STATE))).context(STATE)?;
        remove(fs::remove_file(self.dir.join(LOCK))).context(LOCK)?;
        remove(fs::remove_file(self.link())).context(REGISTRY)?;
        // Not empty while other worlds are up.
        let _ = fs::remove_dir(REGISTRY);
        Ok(())
    }

    /// No process is left in any cgroup.
    fn is_deserted(&self) -> bool {
        self.state.things.iter().all(|thing| match thing {
            Thing::Cgroup(path) => Cgroup::is_deserted(path),
            _ => true,
        })
    }

    fn remove(&self, thing: &Thing) -> Result<()> {
        match thing {
            Thing::Cgroup(path) => Cgroup::remove(path),
            // Version 1 forgets a dead process a little later than version 2.
            Thing::OldCgroup(path) => {
                external::wait_until(UNMOUNT_DEADLINE, || remove(fs::remove_dir(path)).is_ok());
                remove(fs::remove_dir(path)).with_context(|| format!("cgroup {}", path.display()))
            }
            Thing::Bind(path) => {
                while mount_of(path).is_some() {
                    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).with_context(|| path.display().to_string())?;
                }
                Ok(())
            }
            Thing::Mount(path) => self.unmount(path),
            Thing::Loop(path) => detach(path),
            Thing::File(path) => remove(fs::remove_file(path)).with_context(|| path.display().to_string()),
        }
    }

    /// Unmounts a disk; if it hangs, cuts the disks' connections, so that everything that waits for them fails.
    fn unmount(&self, path: &Path) -> Result<()> {
        if mount_of(path).is_none() || unmount(path, &[]).is_ok() {
            return Ok(());
        }
        self.abort_disks();
        // The attempt that was given up may be completed by that.
        let is_gone = || mount_of(path).is_none();
        if external::wait_until(ABORT_DEADLINE, is_gone) || unmount(path, &[]).is_ok() {
            return Ok(());
        }
        unmount(path, &["--lazy"]).or_else(|error| if is_gone() { Ok(()) } else { Err(error) })
    }

    fn abort_disks(&self) {
        let _one_at_a_time = Manifest::last_word();
        let control = self.dir.join("fusectl");
        let mounted = fs::create_dir_all(&control).is_ok()
            && rustix::mount::mount("fusectl", &control, "fusectl", rustix::mount::MountFlags::empty(), None).is_ok();
        if !mounted {
            return;
        }
        for thing in &self.state.things {
            let Thing::Mount(path) = thing else { continue };
            if let Some(mount) = mount_of(path).filter(|mount| mount.kind.starts_with("fuse")) {
                let _ = fs::write(control.join(&mount.minor).join("abort"), "1");
            }
        }
        let _ = rustix::mount::unmount(&control, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(&control);
    }

    fn write(&self) -> Result<()> {
        let (path, new) = (self.dir.join(STATE), self.dir.join("world.json.new"));
        let what = || path.display().to_string();
        fs::write(&new, serde_json::to_vec_pretty(&self.state)?).with_context(what)?;
        fs::rename(&new, &path).with_context(what)
    }

    fn link(&self) -> PathBuf {
        Path::new(REGISTRY).join(&self.state.name)
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MountedAt {
    /// Of its device number; a FUSE connection's name.
    pub minor: String,
    pub kind: String,
    /// Of the file system, not of this mount: `rw`, `emergency_ro` …
    pub options: String,
}

/// What is mounted on `path`, without touching it: it may hang.
pub(super) fn mount_of(path: &Path) -> Option<MountedAt> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let path = path.to_str()?;
    text.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let minor = left.get(2)?.split_once(':')?.1;
        (*left.get(4)? == path).then(|| MountedAt { minor: minor.to_owned(), kind: kind.to_owned(), options: options.to_owned() })
    })
}

/// Unmounts by a child process: the caller may serve the disk itself.
pub(super) fn unmount(path: &Path, flags: &[&str]) -> Result<()> {
    external::run(Command::new("umount").arg("--no-canonicalize").args(flags).arg(path), "", UNMOUNT_DEADLINE).map(drop)
}

/// Loop devices over `file`, without touching it.
pub(super) fn loops_over(file: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let over = |entry: &fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end().trim_end_matches(" (deleted)")) == file).then(|| Path::new("/dev").join(entry.file_name()))
    };
    entries.filter_map(|entry| over(&entry)).collect()
}

fn detach(file: &Path) -> Result<()> {
    for device in loops_over(file) {
        let detached = external::run(Command::new("losetup").arg("--detach").arg(&device), "", UNMOUNT_DEADLINE);
        // With its last user gone it may have gone by itself.
        if loops_over(file).contains(&device) {
            detached?;
        }
    }
    if !external::wait_until(UNMOUNT_DEADLINE, || loops_over(file).is_empty()) {
        bail!("loop devices {:?} over {} stay in use", loops_over(file), file.display());
    }
    Ok(())
}

fn read(dir: &Path) -> Result<Option<State>> {
    let path = dir.join(STATE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged; see its things by hand, then delete it", path.display()))
            .map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .context("its owner lives; end it first, or choose another folder")?;
    Ok(file)
}

/// Gone already is as good as removed.
fn remove(result: std::io::Result<()>) -> std::io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
