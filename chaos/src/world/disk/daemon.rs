//! The FUSE file system that shows a [`Store`] to the kernel as one file, `disk`.
//!
//! The file is opened for direct I/O, so that the kernel keeps no pages of it that would survive a crash.

use super::super::external;
use super::store::{Refused, Store};
use anyhow::{Context, Result};
use fuser::consts::FOPEN_DIRECT_IO;
use fuser::{FUSE_ROOT_ID, FileAttr, FileType, Filesystem, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen};
use fuser::{ReplyWrite, Request, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::ffi::{CString, OsStr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

const DISK: u64 = 2;
pub(super) const FILE: &str = "disk";
/// Neither name nor size ever changes.
const TTL: Duration = Duration::from_secs(3600);
const EIO: i32 = Errno::IO.raw_os_error();
const ENOENT: i32 = Errno::NOENT.raw_os_error();

/// Mounts the store on `path` and serves it until it is unmounted, on the thread that is returned.
///
/// # Errors
/// When /dev/fuse or the mount is refused.
pub(super) fn serve(name: &str, store: Arc<Store>, path: &Path) -> Result<JoinHandle<()>> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context("/dev/fuse")?;
    let options = CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd()))?;
    rustix::mount::mount("chaos-disk", path, "fuse.chaos-disk", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())
        .with_context(|| format!("mounting FUSE on {}", path.display()))?;
    let mut session = Session::from_fd(Daemon { store }, device, SessionACL::All);
    let name = format!("disk-{name}");
    let serve = move || {
        external::go_first();
        // Memory for an answer must not wait for pages to be written to this very disk.
        let _ = rustix::process::configure_io_flusher_behavior(true);
        if let Err(error) = session.run() {
            // The connection was cut on purpose, when a hung disk was taken down.
            eprintln!("world: a disk's connection ended: {error}");
        }
    };
    std::thread::Builder::new().name(name).spawn(serve).context("a disk's thread")
}

struct Daemon {
    store: Arc<Store>,
}

impl Daemon {
    fn attributes(&self, inode: u64) -> FileAttr {
        let (kind, perm, size) = match inode {
            FUSE_ROOT_ID => (FileType::Directory, 0o700, 0),
            _ => (FileType::RegularFile, 0o600, self.store.bytes()),
        };
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Daemon {
    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        if parent == FUSE_ROOT_ID && name == FILE {
            reply.entry(&TTL, &self.attributes(DISK), 0);
        } else {
            reply.error(ENOENT);
        }
    }

    fn getattr(&mut self, _: &Request<'_>, inode: u64, _: Option<u64>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn readdir(&mut self, _: &Request<'_>, _: u64, _: u64, offset: i64, mut reply: ReplyDirectory) {
        if offset == 0 {
            let _ = reply.add(DISK, 1, FileType::RegularFile, FILE);
        }
        reply.ok();
    }

    fn open(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        match self.store.open() {
            Ok(life) => reply.opened(life, FOPEN_DIRECT_IO),
            Err(Refused) => reply.error(EIO),
        }
    }

    fn read(&mut self, _: &Request<'_>, _: u64, life: u64, offset: i64, size: u32, _: i32, _: Option<u64>, reply: ReplyData) {
        let mut buffer = vec![0; size as usize];
        match self.store.read(life, offset.unsigned_abs(), &mut buffer) {
            Ok(()) => reply.data(&buffer),
            Err(Refused) => reply.error(EIO),
        }
    }

    fn write(&mut self, _: &Request<'_>, _: u64, life: u64, offset: i64, data: &[u8], _: u32, _: i32, _: Option<u64>, reply: ReplyWrite) {
        match (self.store.write(life, offset.unsigned_abs(), data), u32::try_from(data.len())) {
            (Ok(()), Ok(bytes)) => reply.written(bytes),
            _ => reply.error(EIO),
        }
    }

    /// Called at each close of a descriptor; promises nothing.
    fn flush(&mut self, _: &Request<'_>, _: u64, _: u64, _: u64, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&mut self, _: &Request<'_>, _: u64, life: u64, _: bool, reply: ReplyEmpty) {
        match self.store.flush(life) {
            Ok(()) => reply.ok(),
            Err(Refused) => reply.error(EIO),
        }
    }
}
