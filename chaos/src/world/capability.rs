//! What a world needs of the machine, checked before anything is made; all that is missing is said at once.

use anyhow::{Result, bail};
use std::fs::OpenOptions;
use std::path::Path;

/// Whether disks and clocks are wanted decides what is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub disks: bool,
    pub clocks: bool,
}

/// # Errors
/// With one line per thing that is missing, and its remedy.
pub(super) fn check(wanted: Wanted) -> Result<()> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root: namespaces, mounts and cgroups need it; run as root (sudo), or in a privileged container".to_owned());
    }
    device("/dev/net/tun", "TUN devices: `modprobe tun`, or pass /dev/net/tun to the container", &mut missing);
    file_system("cgroup2", "a kernel with cgroup v2", &mut missing);
    program("ip", "iproute2", &mut missing);
    if wanted.disks {
        device("/dev/fuse", "FUSE: `modprobe fuse`, or pass /dev/fuse to the container", &mut missing);
        device("/dev/loop-control", "loop devices: `modprobe loop`, or a privileged container", &mut missing);
        file_system("ext4", "a kernel with ext4: `modprobe ext4`", &mut missing);
        for tool in ["losetup", "mount", "umount", "fallocate"] {
            program(tool, "util-linux and mount", &mut missing);
        }
        program("mkfs.ext4", "e2fsprogs", &mut missing);
    }
    if wanted.clocks {
        program("cc", "a C compiler (gcc), for the clock shim", &mut missing);
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot carry a world; missing:\n  - {}", missing.join("\n  - "));
}

fn device(path: &str, remedy: &str, missing: &mut Vec<String>) {
    if let Err(error) = OpenOptions::new().read(true).write(true).open(path) {
        missing.push(format!("{path} ({error}). {remedy}"));
    }
}

fn file_system(name: &str, remedy: &str, missing: &mut Vec<String>) {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        missing.push(format!("the file system {name}: {remedy}"));
    }
}

fn program(name: &str, package: &str, missing: &mut Vec<String>) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| Path::new(&folder).join(name).is_file());
    if !found {
        missing.push(format!("the program `{name}`: install {package}, and have /usr/sbin in PATH"));
    }
}
