//! A part of a node's data on a small file system of its own, as people give pg_wal one: to be filled without filling the rest.
//!
//! The directory becomes a symbolic link to the mounted volume. The node must be down while that is arranged and undone.

use crate::world::mount_point;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const TOOL_LIMIT: Duration = Duration::from_secs(30);
/// Takes all room there is.
const BALLAST: &str = "ballast";

/// Where everything goes; nothing exists before [`Volume::take`].
pub struct Volume {
    place: PathBuf,
    aside: PathBuf,
    image: PathBuf,
    mount: PathBuf,
}

impl Volume {
    pub fn planned(place: &Path, image: &Path) -> Volume {
        let mut aside = place.as_os_str().to_owned();
        aside.push(".aside");
        Volume { place: place.to_owned(), aside: aside.into(), image: image.to_owned(), mount: mount_point(image) }
    }

    /// Move the content onto a new file system with little more room than it takes.
    ///
    /// # Errors
    /// No loop device, no mkfs, or the content does not fit.
    pub fn take(&self) -> Result<()> {
        // The journal of a small ext4 and its tables take some, and Postgres must be able to start.
        const MORE_MB: u64 = 48;
        let mb = megabytes(&self.place)? + MORE_MB;
        let file = fs::File::create(&self.image).with_context(|| format!("cannot create {}", self.image.display()))?;
        file.set_len(mb << 20).context("cannot size the volume")?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&self.image))?;
        fs::create_dir_all(&self.mount).with_context(|| format!("cannot create {}", self.mount.display()))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount))?;
        run(Command::new("cp").arg("-a").arg(self.place.join(".")).arg(self.data()))?;
        run(Command::new("chown").arg("--reference").arg(&self.place).arg(&self.mount))?;
        fs::rename(&self.place, &self.aside).with_context(|| format!("cannot move {} aside", self.place.display()))?;
        symlink(self.data(), &self.place).with_context(|| format!("cannot link {}", self.place.display()))
    }

    /// Not the mount point itself: its `lost+found` would be foreign to whoever owns the data.
    fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// No block is left afterwards.
    ///
    /// # Errors
    /// The ballast cannot be written for another reason than want of room.
    pub fn fill(&self) -> Result<()> {
        const STEP: usize = 64 << 10;
        let path = self.mount.join(BALLAST);
        let mut file = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        loop {
            match file.write_all(&[1u8; STEP]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error).with_context(|| format!("cannot fill {}", path.display())),
            }
        }
        // The last blocks are given out when they are flushed.
        let _ = file.sync_all();
        Ok(())
    }

    /// There is room again.
    ///
    /// # Errors
    /// The ballast resists.
    pub fn free(&self) -> Result<()> {
        let path = self.mount.join(BALLAST);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Content back where it was, and no volume any more, however far [`Volume::take`] came.
    ///
    /// # Errors
    /// Something still uses the volume; the content is back all the same.
    pub fn remove(&self) -> Result<()> {
        self.free()?;
        let is_link = fs::symlink_metadata(&self.place).is_ok_and(|m| m.is_symlink());
        if is_link {
            fs::remove_file(&self.place).with_context(|| format!("cannot unlink {}", self.place.display()))?;
            run(Command::new("cp").arg("-a").arg(self.data()).arg(&self.place))?;
            // What was set aside is older than what was written since.
            let _ = fs::remove_dir_all(&self.aside);
        } else if self.aside.exists() && !self.place.exists() {
            fs::rename(&self.aside, &self.place).with_context(|| format!("cannot put back {}", self.place.display()))?;
        }
        if self.mount.exists() {
            // Never mounted, if the injection failed early.
            let unmounted = run(Command::new("umount").arg(&self.mount));
            fs::remove_dir(&self.mount).with_context(|| format!("cannot unmount {}: {unmounted:?}", self.mount.display()))?;
        }
        let _ = fs::remove_file(&self.image);
        Ok(())
    }
}

/// What a directory takes on its disk.
fn megabytes(dir: &Path) -> Result<u64> {
    let mut command = Command::new("du");
    command.arg("-sm").arg(dir);
    let said = crate::cluster::output_within(command, TOOL_LIMIT)?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.split_whitespace().next().and_then(|mb| mb.parse().ok()).with_context(|| format!("cannot measure {}", dir.display()))
}

/// A tool that must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let taken = std::mem::replace(command, Command::new("true"));
    let said = crate::cluster::output_within(taken, TOOL_LIMIT)?;
    if !said.status.success() {
        bail!("{shown}: {}", String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(())
}
