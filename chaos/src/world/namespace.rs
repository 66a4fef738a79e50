//! One datacenter's network namespace and its TUN device.
//!
//! The namespace is held by a bind mount of its handle on a file in the world's folder (`nsenter --net=FILE` enters it), so its name
//! cannot collide with another world's, and the host's list of named namespaces stays as it is.

use super::external;
use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The network device that leads to the other datacenters.
const DEVICE: &[u8] = b"wan0";
/// `TUNSETIFF` of linux/if_tun.h: `_IOW('T', 202, int)`.
const TUNSETIFF: u32 = 0x4004_54ca;
/// `IFF_TUN | IFF_NO_PI`: IP packets, without a header before them.
const TUN_FLAGS: u16 = 0x0001 | 0x1000;
/// `sizeof(struct ifreq)`: the name takes 16 bytes, the flags follow.
const IFREQ: usize = 40;
const NAME_BYTES: usize = 16;

const TOOL_DEADLINE: Duration = Duration::from_secs(10);

/// A handle to a network namespace; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    path: PathBuf,
    handle: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes a namespace and binds it to the file `path`, which is created.
    ///
    /// # Errors
    /// When the kernel refuses, mostly for want of privileges.
    pub fn create(path: &Path) -> Result<Namespace> {
        let what = || format!("network namespace {}", path.display());
        File::create(path).with_context(what)?;
        apart("namespace", || {
            // SAFETY: a network namespace leaves the descriptor table alone, which is what makes this call unsafe in general.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(rustix::mount::mount_bind("/proc/thread-self/ns/net", path)?)
        })
        .with_context(what)?;
        Ok(Namespace { path: path.to_owned(), handle: Arc::new(File::open(path).with_context(what)?.into()) })
    }

    /// The file that holds it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into it, for good. Also called between fork and exec: no allocation here.
    pub fn enter(&self) -> rustix::io::Result<()> {
        rustix::thread::move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
    }

    /// Makes the TUN device in it, with `address`; the device exists as long as the descriptor.
    ///
    /// # Errors
    /// When the device cannot be made or configured.
    pub fn open_tun(&self, address: Ipv4Addr, network: &str, mtu: u16) -> Result<OwnedFd> {
        let tun = apart("tun", || {
            self.enter()?;
            open_tun()
        })?;
        // Neighbour discovery and the like would be noise: the WAN carries IPv4 alone.
        let lines = format!(
            "link set lo up\n\
             address replace {address}/32 dev wan0\n\
             link set wan0 mtu {mtu} txqueuelen 2000 up\n\
             route replace {network} dev wan0 src {address}\n"
        );
        external::run(self.place(&mut Command::new("ip")).args(["-batch", "-"]), &lines, TOOL_DEADLINE)?;
        Ok(tun)
    }

    /// Lets `command` start in this namespace.
    pub fn place<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let namespace = self.clone();
        // SAFETY: between fork and exec this makes one system call and touches no memory of others.
        unsafe { command.pre_exec(move || Ok(namespace.enter()?)) }
    }
}

fn open_tun() -> Result<OwnedFd> {
    let tun = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).context("/dev/net/tun")?;
    let mut request = [0_u8; IFREQ];
    request[..DEVICE.len()].copy_from_slice(DEVICE);
    request[NAME_BYTES..NAME_BYTES + 2].copy_from_slice(&TUN_FLAGS.to_ne_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `request` has the size and layout of.
    unsafe { rustix::ioctl::ioctl(&tun, rustix::ioctl::Setter::<TUNSETIFF, _>::new(request)) }.context("TUNSETIFF")?;
    Ok(tun)
}

/// Runs `work` on a thread of its own, so that the caller's namespace stays as it is.
fn apart<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
