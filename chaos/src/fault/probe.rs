//! Small looks from inside a datacenter: can a port be reached?

use crate::cluster::System;
use crate::world::Site;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Longer than any line of a world takes for a handshake, one lost packet included.
const CONNECT_LIMIT: Duration = Duration::from_millis(1_800);

/// Does a handshake from `site` to `address`:`port` come through?
pub fn connects(site: &Site, address: Ipv4Addr, port: u16) -> bool {
    let target = SocketAddr::from((address, port));
    let tried = site.runtime().spawn(move || async move {
        let connecting = tokio::net::TcpStream::connect(target);
        matches!(tokio::time::timeout(CONNECT_LIMIT, connecting).await, Ok(Ok(_)))
    });
    tried.blocking_recv().unwrap_or(false)
}

/// Does the node at `site` answer what it is asked about its state? A frozen process still has its handshakes made by the kernel.
pub fn answers(site: &Site, system: &dyn System) -> bool {
    let questions = system.questions();
    let tried = site.runtime().spawn(move || async move { crate::cluster::answers(questions, CONNECT_LIMIT).await.is_ok() });
    tried.blocking_recv().unwrap_or(false)
}

/// A counter of TCP in the datacenter's kernel, as in /proc/net/netstat.
pub fn tcp_counter(site: &Site, name: &str) -> Option<u64> {
    let mut command = site.command("cat");
    command.arg("/proc/net/netstat");
    let said = crate::cluster::output_within(command, CONNECT_LIMIT).ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("TcpExt:")).collect();
    let [names, values] = lines[..] else { return None };
    let at = names.split(' ').position(|n| n == name)?;
    values.split(' ').nth(at)?.parse().ok()
}
