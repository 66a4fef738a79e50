//! Small files that a crash leaves either old or new.

use super::error::{Error, io};
use super::user::RunAs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

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
