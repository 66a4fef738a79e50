//! The thread that carries packets between the datacenters' TUN devices, as each direction's [`Link`](super::Link) says.
//!
//! It waits for packets, for the next one that is due, and for its end. A direction without delay or limit is passed on at once, without
//! a copy; all others wait in one heap, ordered by arrival.

use super::external;
use super::line::{Fate, Line, Nanos, Shape};
use super::packet::{self, Flow};
use super::wan::{Link, Shared, Wan};
use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// Read from one device before the others get their turn.
const BATCH: usize = 64;
/// Larger than any packet of the devices, whose MTU is 1500.
const PACKET_MAX: usize = 2048;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 4096;

/// The running thread; dropping it ends it, and with it the TUN devices.
#[derive(Debug)]
pub(super) struct Router {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Starts carrying packets between `tuns`, in the order of the sites.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(wan: &Wan, tuns: Vec<OwnedFd>, seed: u64) -> Result<Router> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd")?);
        let carrier = Carrier {
            lines: wan.shared.counts.iter().map(|_| Line::default()).collect(),
            links: Vec::new(),
            changes: 0,
            shared: Arc::clone(&wan.shared),
            tuns,
            stop: Arc::clone(&stop),
            due: BinaryHeap::new(),
            sequence: 0,
            spare: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        };
        let thread = std::thread::Builder::new().name("wan".to_owned()).spawn(move || carrier.run()).context("the router's thread")?;
        Ok(Router { stop, thread: Some(thread) })
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// On its way. Ordered by arrival, then by the order in which they were sent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: Nanos,
    sequence: u64,
    direction: usize,
    packet: Vec<u8>,
}

struct Carrier {
    shared: Arc<Shared>,
    links: Vec<Link>,
    changes: u64,
    lines: Vec<Line>,
    tuns: Vec<OwnedFd>,
    stop: Arc<OwnedFd>,
    due: BinaryHeap<Reverse<Flying>>,
    sequence: u64,
    spare: Vec<Vec<u8>>,
    rng: StdRng,
}

impl Carrier {
    fn run(mut self) {
        external::go_first();
        // The default slack of 50 µs would be added to each delay.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        let mut buffer = [0_u8; PACKET_MAX];
        loop {
            let Some(ready) = self.wait() else { return };
            // After the wait: a change made meanwhile holds for the packets that it waited for.
            self.take_changes();
            self.deliver();
            for site in (0..self.tuns.len()).filter(|site| ready & 1 << site != 0) {
                self.read(site, &mut buffer);
            }
        }
    }

    fn take_changes(&mut self) {
        let changes = self.shared.changes.load(Ordering::Acquire);
        if changes == self.changes {
            return;
        }
        self.changes = changes;
        let links = self.shared.links().clone();
        for (n, line) in self.lines.iter_mut().enumerate() {
            if self.links.get(n) != links.get(n) {
                line.changed();
            }
        }
        self.links = links;
    }

    /// Waits for the first packet or arrival; a bit for each site whose device can be read, `None` at the end.
    fn wait(&self) -> Option<u64> {
        let timeout = self.due.peek().map(|Reverse(next)| {
            let left = next.at.saturating_sub(now());
            Timespec { tv_sec: (left / 1_000_000_000).cast_signed(), tv_nsec: (left % 1_000_000_000).cast_signed() }
        });
        let mut polled: Vec<PollFd<'_>> = self.tuns.iter().map(|tun| PollFd::new(tun, PollFlags::IN)).collect();
        polled.push(PollFd::new(&*self.stop, PollFlags::IN));
        // An interrupted wait finds nothing ready, and is begun again.
        let _ = poll(&mut polled, timeout.as_ref());
        let ready = |n: usize| !polled[n].revents().is_empty();
        if ready(self.tuns.len()) {
            return None;
        }
        Some((0..self.tuns.len()).filter(|site| ready(*site)).fold(0, |bits, site| bits | 1 << site))
    }

    fn read(&mut self, from: usize, buffer: &mut [u8; PACKET_MAX]) {
        for _ in 0..BATCH {
            let Ok(bytes) = rustix::io::read(&self.tuns[from], &mut buffer[..]) else { return };
            let packet = &buffer[..bytes];
            if let Some((flow, to)) = packet::flow(packet).and_then(|flow| Some((flow, self.site(flow.to)?))) {
                self.send(from, to, flow, packet);
            }
        }
    }

    /// The site with this address: 10.99.n.1 is the n-th.
    fn site(&self, address: Ipv4Addr) -> Option<usize> {
        let [10, 99, number, _] = address.octets() else { return None };
        usize::from(number).checked_sub(1).filter(|site| *site < self.tuns.len())
    }

    fn send(&mut self, from: usize, to: usize, flow: Flow, packet: &[u8]) {
        let (now, direction) = (now(), self.shared.direction(from, to));
        let shape = Shape { bytes: packet.len(), ports: flow.ports };
        let counts = &self.shared.counts[direction];
        match self.lines[direction].offer(&self.links[direction], now, shape, &mut self.rng) {
            Fate::Arrives(at, None) if at <= now && self.lines[direction].flying == 0 => self.arrive(direction, packet),
            Fate::Arrives(first, second) => {
                self.fly(first, direction, packet);
                if let Some(second) = second {
                    self.fly(second, direction, packet);
                }
            }
            Fate::Cut => {
                counts.cut.fetch_add(1, Ordering::Relaxed);
            }
            Fate::Lost => {
                counts.lost.fetch_add(1, Ordering::Relaxed);
            }
            Fate::Reset => {
                counts.cut.fetch_add(1, Ordering::Relaxed);
                if let Some(reset) = packet::reset_for(packet) {
                    let _ = rustix::io::write(&self.tuns[from], &reset);
                }
            }
        }
    }

    fn fly(&mut self, at: Nanos, direction: usize, packet: &[u8]) {
        let mut copy = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(PACKET_MAX));
        copy.extend_from_slice(packet);
        self.sequence += 1;
        self.lines[direction].flying += packet.len();
        self.due.push(Reverse(Flying { at, sequence: self.sequence, direction, packet: copy }));
    }

    /// Hands over what is due.
    fn deliver(&mut self) {
        let now = now();
        while self.due.peek().is_some_and(|Reverse(next)| next.at <= now) {
            let Some(Reverse(mut flying)) = self.due.pop() else { return };
            self.lines[flying.direction].flying -= flying.packet.len();
            if self.links[flying.direction].cut {
                self.shared.counts[flying.direction].cut.fetch_add(1, Ordering::Relaxed);
            } else {
                self.arrive(flying.direction, &flying.packet);
            }
            if self.spare.len() < SPARE_MAX {
                flying.packet.clear();
                self.spare.push(flying.packet);
            }
        }
    }

    fn arrive(&self, direction: usize, packet: &[u8]) {
        let counts = &self.shared.counts[direction];
        if rustix::io::write(&self.tuns[direction % self.tuns.len()], packet).is_ok() {
            counts.passed.fetch_add(1, Ordering::Relaxed);
            counts.passed_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
        } else {
            counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The run's clock counts microseconds, which is too coarse here; this is the same clock.
fn now() -> Nanos {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}
