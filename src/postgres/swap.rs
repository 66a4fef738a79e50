//! A copy takes the place of the data directory: renames beside each other, and what a crash between them leaves.
//!
//! ```text
//!   pgdata.SWAPPING   written first, removed last
//!   pgdata.previous → pgdata.discarded,  pgdata → pgdata.previous,  pgdata.incoming → pgdata
//! ```
//! Only under that mark is `previous` ever put back: a data directory that is missing without it was moved away by somebody, and an
//! older one in its place would tell an election less than this member confirmed (INV-7).

use super::durable::{sync_dir, write_private};
use super::error::{Error, io};
use super::instance::set_mode;
use super::layout::Layout;
use super::user::RunAs;
use std::path::Path;

/// Begins the mark's line about the copy.
const COPY: &str = "its inode is ";

/// An empty directory in which a copy or a new database is made; what an earlier attempt left there goes.
pub(super) fn empty_incoming(layout: &Layout, run_as: &RunAs) -> Result<(), Error> {
    let incoming = layout.incoming();
    // A swap that failed may have left the only copy aside (INV-10).
    mend(layout)?;
    remove(&incoming)?;
    std::fs::create_dir_all(&incoming).map_err(io("cannot create", &incoming))?;
    set_mode(&incoming, 0o700)?;
    run_as.own(&incoming)?;
    run_as.check_traversable(&incoming)
}

/// Replaces the data directory by the copy beside it. Nothing here takes long, whatever the sizes: what was discarded is deleted by
/// [`discard`], when the directory is in use again. Where a rename fails, the old directory has its name again.
pub(super) fn swap(layout: &Layout) -> Result<(), Error> {
    replace(layout).inspect_err(|_| {
        // Where this fails too, the next copy begins with it, and so does the next start.
        let _ = mend(layout);
    })
}

fn replace(layout: &Layout) -> Result<(), Error> {
    if layout.pgdata.join("PG_VERSION").exists() {
        remove(&layout.discarded())?;
        mark(layout)?;
        if layout.previous().exists() {
            rename(&layout.previous(), &layout.discarded())?;
        }
        rename(&layout.pgdata, &layout.previous())?;
    } else if layout.pgdata.exists() {
        std::fs::remove_dir(&layout.pgdata).map_err(io("cannot replace", &layout.pgdata))?;
    }
    rename(&layout.incoming(), &layout.pgdata)?;
    finish(layout)
}

/// Deletes what the last copies left behind: the directory before the one kept aside.
pub(super) fn discard(layout: &Layout) -> Result<(), Error> {
    remove(&layout.discarded())
}

/// What a crash in the middle of [`swap`] left: the old directory takes its name again, unless the copy has it already. The mark knows the
/// copy, so that what hands did meanwhile is not taken for a swap.
pub(super) fn mend(layout: &Layout) -> Result<(), Error> {
    let mark = match std::fs::read_to_string(layout.swapping()) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io("cannot read", layout.swapping())(e)),
    };
    let copy = mark.lines().find_map(|line| line.strip_prefix(COPY)?.parse().ok());
    if copy.is_some() && inode(&layout.pgdata) == copy {
        return finish(layout);
    }
    if !layout.pgdata.exists() && copy.is_some() && inode(&layout.incoming()) == copy && layout.previous().exists() {
        rename(&layout.previous(), &layout.pgdata)?;
        sync_beside(layout)?;
    }
    unmark(&layout.swapping())?;
    sync_beside(layout)
}

fn mark(layout: &Layout) -> Result<(), Error> {
    let copy = inode(&layout.incoming()).ok_or_else(|| io("cannot find", layout.incoming())(std::io::ErrorKind::NotFound.into()))?;
    write_private(&layout.swapping(), &format!("a copy is taking the place of the data directory beside this file\n{COPY}{copy}\n"))
}

/// It goes with the directory when that is renamed.
pub(super) fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// The directory that was poisoned is the one kept aside now, where nothing starts it.
fn finish(layout: &Layout) -> Result<(), Error> {
    sync_beside(layout)?;
    unmark(&layout.poison())?;
    sync_beside(layout)?;
    unmark(&layout.swapping())?;
    sync_beside(layout)
}

fn sync_beside(layout: &Layout) -> Result<(), Error> {
    sync_dir(layout.pgdata.parent().unwrap_or(Path::new("/")))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(io("cannot move aside or into place", from))
}

fn unmark(path: &Path) -> Result<(), Error> {
    absent(std::fs::remove_file(path), path)
}

/// A directory and all that is in it; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    absent(std::fs::remove_dir_all(path), path)
}

fn absent(removed: std::io::Result<()>, path: &Path) -> Result<(), Error> {
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("cannot remove", path)(e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Beside {
        _dir: tempfile::TempDir,
        layout: Layout,
    }

    /// Directories named `pgdata`, `incoming`, `previous`, each of which says what it was.
    fn beside(names: &[(&str, &str)]) -> Beside {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), None);
        for (name, text) in names {
            let path = match *name {
                "pgdata" => layout.pgdata.clone(),
                "incoming" => layout.incoming(),
                "previous" => layout.previous(),
                other => panic!("{other}"),
            };
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("PG_VERSION"), text).unwrap();
        }
        Beside { _dir: dir, layout }
    }

    fn version(path: &Path) -> Option<String> {
        std::fs::read_to_string(path.join("PG_VERSION")).ok()
    }

    #[test]
    fn the_replaced_directory_is_kept_and_a_poison_mark_is_lifted() {
        let Beside { layout, _dir } = beside(&[("pgdata", "old"), ("incoming", "new"), ("previous", "older")]);
        std::fs::write(layout.poison(), "rewind").unwrap();
        swap(&layout).unwrap();
        assert_eq!(version(&layout.pgdata).as_deref(), Some("new"));
        assert_eq!(version(&layout.previous()).as_deref(), Some("old"));
        assert!(!layout.poison().exists() && !layout.incoming().exists() && !layout.swapping().exists());
        discard(&layout).unwrap();
        assert!(!layout.discarded().exists());
    }

    #[test]
    fn a_crash_between_the_renames_leaves_the_old_directory() {
        let Beside { layout, _dir } = beside(&[("incoming", "new"), ("previous", "old")]);
        mark(&layout).unwrap();
        std::fs::write(layout.poison(), "rewind").unwrap();
        mend(&layout).unwrap();
        assert_eq!(version(&layout.pgdata).as_deref(), Some("old"));
        assert!(layout.poison().exists(), "the old directory is still the one that a rewind ruined");
        assert!(!layout.swapping().exists());
    }

    #[test]
    fn a_crash_after_the_renames_leaves_the_copy() {
        let Beside { layout, _dir } = beside(&[("incoming", "new"), ("previous", "old")]);
        mark(&layout).unwrap();
        std::fs::rename(layout.incoming(), &layout.pgdata).unwrap();
        std::fs::write(layout.poison(), "rewind").unwrap();
        mend(&layout).unwrap();
        assert_eq!(version(&layout.pgdata).as_deref(), Some("new"));
        assert!(!layout.poison().exists() && !layout.swapping().exists());
    }

    #[test]
    fn a_swap_that_cannot_be_marked_moves_nothing() {
        let Beside { layout, _dir } = beside(&[("pgdata", "old"), ("incoming", "new")]);
        // The mark cannot be written: a directory is in its way.
        std::fs::create_dir(layout.swapping()).unwrap();
        assert!(swap(&layout).is_err());
        assert_eq!((version(&layout.pgdata).as_deref(), version(&layout.incoming()).as_deref()), (Some("old"), Some("new")));
    }

    #[test]
    fn a_directory_that_somebody_moved_away_is_not_replaced_by_an_older_one() {
        let Beside { layout, _dir } = beside(&[("previous", "old")]);
        mend(&layout).unwrap();
        assert_eq!((version(&layout.pgdata), version(&layout.previous()).as_deref()), (None, Some("old")));
    }

    #[test]
    fn a_copy_that_was_deleted_by_hand_leaves_a_ruined_directory_marked() {
        let Beside { layout, _dir } = beside(&[("pgdata", "ruined"), ("incoming", "new"), ("previous", "older")]);
        std::fs::write(layout.poison(), "rewind").unwrap();
        mark(&layout).unwrap();
        remove(&layout.incoming()).unwrap();
        mend(&layout).unwrap();
        assert!(layout.poison().exists() && !layout.swapping().exists());
        assert_eq!(version(&layout.pgdata).as_deref(), Some("ruined"));
    }
}
