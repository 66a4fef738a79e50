//! PURE. One direction of a line between two datacenters: what becomes of each packet, and when it arrives.
//!
//! Packets keep their order under jitter, as they do on a real line, unless the link says `reorder`: then the packet overtakes those
//! before it. What does not fit the transmit queue is dropped at its tail, so memory is bounded by time and bandwidth.

use super::wan::Link;
use rand::Rng;
use std::time::Duration;

/// A sender may be this far ahead of the bandwidth before its packets are dropped: the buffer of a usual router.
const BACKLOG: Duration = Duration::from_millis(200);
/// On the way at once, in one direction: a second of 0.5 Gbit/s. More is dropped, however long the delay.
pub(super) const FLYING_BYTES_MAX: usize = 64 << 20;

/// Nanoseconds on the run's clock: a microsecond is too coarse for the transmission of one packet.
pub(super) type Nanos = u64;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Arrives then, and a second time where it is duplicated.
    Arrives(Nanos, Option<Nanos>),
    /// Vanishes by intent: the direction, its port or its size is cut.
    Cut,
    /// Vanishes, and its sender gets a TCP reset.
    Reset,
    /// Vanishes by chance, or because the line is full.
    Lost,
}

/// What a packet shows of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub bytes: usize,
    pub ports: Option<(u16, u16)>,
}

/// The moving state of one direction.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The transmitter is busy until then.
    free: Nanos,
    /// The last packet that was not reordered arrives then.
    last: Nanos,
    /// Bytes that have been offered and have not arrived; the router takes them off.
    pub flying: usize,
}

impl Line {
    /// Decides on one packet that is offered at `now`.
    pub fn offer(&mut self, link: &Link, now: Nanos, shape: Shape, rng: &mut impl Rng) -> Fate {
        let holds = |ports: &std::collections::BTreeSet<u16>| shape.ports.is_some_and(|(a, b)| ports.contains(&a) || ports.contains(&b));
        if link.cut || holds(&link.cut_ports) || link.mtu.is_some_and(|mtu| shape.bytes > usize::from(mtu)) {
            return Fate::Cut;
        }
        if holds(&link.reset_ports) {
            return Fate::Reset;
        }
        if chance(link.loss, rng) || self.flying + shape.bytes > FLYING_BYTES_MAX {
            return Fate::Lost;
        }
        let Some(sent) = self.transmit(link, now, shape.bytes) else {
            return Fate::Lost;
        };
        let first = self.arrival(link, sent, rng);
        let second = chance(link.duplicate, rng).then(|| self.arrival(link, sent, rng));
        Fate::Arrives(first, second)
    }

    /// When the last bit has left; `None` when the queue before the transmitter is full.
    fn transmit(&mut self, link: &Link, now: Nanos, bytes: usize) -> Option<Nanos> {
        let Some(rate) = link.bits_per_second else {
            self.free = now;
            return Some(now);
        };
        let begin = self.free.max(now);
        if begin - now > nanos(BACKLOG) {
            return None;
        }
        let bits = u64::try_from(bytes).unwrap_or(u64::MAX / 8) * 8;
        self.free = begin + bits.saturating_mul(1_000_000_000) / rate.max(1);
        Some(self.free)
    }

    fn arrival(&mut self, link: &Link, sent: Nanos, rng: &mut impl Rng) -> Nanos {
        if chance(link.reorder, rng) {
            return sent + nanos(link.delay) / 2;
        }
        let jitter = nanos(link.jitter);
        let swing = if jitter == 0 { 0 } else { rng.random_range(0..=2 * jitter) };
        let arrival = (sent + nanos(link.delay) + swing).saturating_sub(jitter);
        self.last = self.last.max(arrival).max(sent);
        self.last
    }

    /// After a change of the link, packets no longer queue behind what went out under the old one.
    pub fn changed(&mut self) {
        *self = Line { flying: self.flying, ..Line::default() };
    }
}

fn chance(probability: f64, rng: &mut impl Rng) -> bool {
    probability > 0.0 && rng.random::<f64>() < probability
}

fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    const MS: Nanos = 1_000_000;

    fn plain() -> Shape {
        Shape { bytes: 1250, ports: Some((40_000, 5432)) }
    }

    /// Arrivals of `count` packets, offered `apart` nanoseconds after each other.
    fn arrivals(link: &Link, count: u64, apart: Nanos) -> Vec<Option<Nanos>> {
        let (mut line, mut rng) = (Line::default(), StdRng::seed_from_u64(7));
        (0..count)
            .map(|n| match line.offer(link, n * apart, plain(), &mut rng) {
                Fate::Arrives(at, _) => Some(at),
                Fate::Cut | Fate::Reset | Fate::Lost => None,
            })
            .collect()
    }

    #[test]
    fn a_packet_arrives_after_the_delay() {
        let link = Link { delay: Duration::from_millis(20), ..Link::default() };
        assert_eq!(arrivals(&link, 2, MS), [Some(20 * MS), Some(21 * MS)]);
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_keeps_the_order() {
        let link = Link { delay: Duration::from_millis(20), jitter: Duration::from_millis(2), ..Link::default() };
        let at: Vec<Nanos> = arrivals(&link, 1000, MS).into_iter().flatten().collect();
        assert!(at.is_sorted());
        assert!(at.iter().zip(0..).all(|(at, n)| (18 * MS..=22 * MS).contains(&(at - n * MS))));
    }

    #[test]
    fn reordered_packets_overtake() {
        let link = Link { delay: Duration::from_millis(20), reorder: 0.1, ..Link::default() };
        assert!(!arrivals(&link, 1000, MS).is_sorted());
    }

    #[test]
    fn loss_and_duplication_are_as_frequent_as_said() {
        let link = Link { loss: 0.3, duplicate: 0.1, ..Link::default() };
        let (mut line, mut rng) = (Line::default(), StdRng::seed_from_u64(7));
        let fates: Vec<Fate> = (0..10_000).map(|n| line.offer(&link, n, plain(), &mut rng)).collect();
        let lost = fates.iter().filter(|fate| **fate == Fate::Lost).count();
        let twice = fates.iter().filter(|fate| matches!(fate, Fate::Arrives(_, Some(_)))).count();
        assert!((2800..3200).contains(&lost), "{lost}");
        assert!((600..800).contains(&twice), "{twice}");
    }

    #[test]
    fn bandwidth_spaces_packets_and_drops_the_tail() {
        // 1250 bytes at 1 Mbit/s take 10 ms.
        let link = Link { bits_per_second: Some(1_000_000), ..Link::default() };
        let at = arrivals(&link, 100, 0);
        assert_eq!(at[..3], [Some(10 * MS), Some(20 * MS), Some(30 * MS)]);
        assert_eq!(at.iter().flatten().count(), 21, "the backlog of 200 ms and the one in transmission");
    }

    #[test]
    fn cuts_take_a_direction_a_port_or_large_packets() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut fate = |link: &Link, shape| Line::default().offer(link, 0, shape, &mut rng);
        assert_eq!(fate(&Link { cut: true, ..Link::default() }, plain()), Fate::Cut);
        let port = Link { cut_ports: [5432].into(), ..Link::default() };
        assert_eq!(fate(&port, plain()), Fate::Cut);
        assert_eq!(fate(&port, Shape { bytes: 100, ports: Some((40_000, 7432)) }), Fate::Arrives(0, None));
        assert_eq!(fate(&Link { mtu: Some(1000), ..Link::default() }, plain()), Fate::Cut);
        assert_eq!(fate(&Link { reset_ports: [5432].into(), ..Link::default() }, plain()), Fate::Reset);
    }

    #[test]
    fn a_seed_repeats_every_fate() {
        let link = Link { delay: Duration::from_millis(9), jitter: Duration::from_millis(5), loss: 0.2, reorder: 0.1, ..Link::default() };
        assert_eq!(arrivals(&link, 500, MS / 3), arrivals(&link, 500, MS / 3));
    }
}
