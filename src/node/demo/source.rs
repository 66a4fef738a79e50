//! Which datacenter does a connection come from? On one machine every address is the same machine's, so the relays ask the
//! kernel: the socket's inode from /proc/net/tcp, the process that holds it, and that process's working directory, which lies
//! in its datacenter's folder (a node is started there, its Postgres has its data directory as its own).
//!
//! Whoever works elsewhere — a person, an application — is in no datacenter: such traffic is neither delayed nor cut.
//!
//! Entry point: [`site_of`]; [`processes_of`] lists a datacenter's processes by the same rule.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Index of the folder among `sites` in which the process works that opened `client` → `server`. Reads /proc: blocking.
#[must_use]
pub fn site_of(client: SocketAddr, server: SocketAddr, sites: &[PathBuf]) -> Option<usize> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let wanted = format!("socket:[{}]", inode(&table, client, server)?);
    pids().find_map(|pid| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let site = sites.iter().position(|dir| cwd.starts_with(dir))?;
        holds(pid, &wanted).then_some(site)
    })
}

/// Every node and every program of PostgreSQL that works in `dir` or below; a person's shell there is none of them.
#[must_use]
pub fn processes_of(dir: &Path) -> Vec<u32> {
    let works_there = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    pids().filter(works_there).filter(|pid| is_ours(*pid)).collect()
}

fn is_ours(pid: u32) -> bool {
    let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    // A program that was rebuilt while it runs has ` (deleted)` behind its name.
    let name = program.file_name().unwrap_or_default().to_string_lossy().replace(" (deleted)", "");
    if matches!(name.as_str(), "postgres" | "initdb") || name.starts_with("pg_") {
        return true;
    }
    let own = std::env::current_exe().unwrap_or_default();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    own.file_name().is_some_and(|own| own.to_string_lossy() == name) && arguments.split(|b| *b == 0).nth(1) == Some(b"node")
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn holds(pid: u32, socket: &str) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.filter_map(Result::ok).any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == socket))
}

/// Inode of the socket with these ends, from the text of /proc/net/tcp.
fn inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (kernel_form(local)?, kernel_form(remote)?);
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&remote.as_str())).then(|| fields.get(9)?.parse().ok())?
    })
}

/// 127.0.0.1:80 → `0100007F:0050`: the address in memory order, the port as a number. IPv4 only, as the demo uses.
fn kernel_form(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_traced_to_the_folder_its_process_works_in() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (server, peer) = listener.accept().expect("accepted");
        let here = std::env::current_dir().expect("a working directory");
        let ends = (peer, server.local_addr().expect("connected"));
        assert_eq!(ends.0, client.local_addr().expect("connected"));
        let elsewhere = PathBuf::from("/nonexistent");
        assert_eq!(site_of(ends.0, ends.1, &[elsewhere.clone(), here.clone()]), Some(1));
        assert_eq!(site_of(ends.0, ends.1, &[elsewhere]), None);
        assert!(!processes_of(&here).contains(&std::process::id()), "a test is neither a node nor Postgres");
    }
}
