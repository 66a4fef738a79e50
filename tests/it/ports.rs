//! Ports for tests that have to name one before somebody listens there.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the kernel's ephemeral ports, or any outgoing connection may take one between our choice and its use; and below those
/// of `cluster_harness`.
const RANGE: std::ops::Range<u16> = 10_000..17_000;

/// A port that stays ours until this process ends, also while nobody listens there.
pub fn free_port() -> u16 {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side begin at different places.
    let first = (std::process::id().wrapping_mul(97) % u32::from(RANGE.end - RANGE.start)) as u16;
    for _ in RANGE {
        let offset = (TRIED.fetch_add(1, Ordering::Relaxed) + first) % (RANGE.end - RANGE.start);
        let port = RANGE.start + offset;
        // The UDP port of that number is the mark by which processes that run these tests at the same time see each other.
        let Ok(mark) = UdpSocket::bind(("127.0.0.1", port)) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            std::mem::forget(mark);
            return port;
        }
    }
    panic!("no port of {RANGE:?} is free");
}
