//! The lines between datacenters, as the one who breaks them sees them: a [`Link`] per direction, changeable at any time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One direction between two datacenters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    /// One way.
    pub delay: Duration,
    /// Added or taken off at random; the order of packets is kept.
    pub jitter: Duration,
    /// Probability, 0 to 1, as are the next two.
    pub loss: f64,
    /// A packet that takes half the delay, and so overtakes others.
    pub reorder: f64,
    pub duplicate: f64,
    /// `None`: unlimited.
    pub bits_per_second: Option<u64>,
    /// Nothing passes, and what is on the way is lost.
    pub cut: bool,
    /// Packets vanish whose source or destination port (TCP, UDP) is one of these.
    pub cut_ports: BTreeSet<u16>,
    /// Likewise, but the sender of TCP gets a reset.
    pub reset_ports: BTreeSet<u16>,
    /// Packets with more bytes vanish silently: a black hole, without the ICMP message that would tell the sender.
    pub mtu: Option<u16>,
}

/// How far the datacenters are apart while nothing is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Side by side.
    #[default]
    Lan,
    /// dc1–dc2 15 ms, all others 40 ms round trip, with jitter.
    Design,
    /// 200 ms round trip, 5 % loss each way.
    Far,
}

impl Preset {
    /// One direction between the sites with these indexes.
    #[must_use]
    pub fn link(self, from: usize, to: usize) -> Link {
        let micros = Duration::from_micros;
        match self {
            Preset::Lan => Link::default(),
            Preset::Design if from.max(to) == 1 => Link { delay: micros(7_500), jitter: micros(400), ..Link::default() },
            Preset::Design => Link { delay: micros(20_000), jitter: micros(1_000), ..Link::default() },
            Preset::Far => Link { delay: micros(100_000), jitter: micros(3_000), loss: 0.05, ..Link::default() },
        }
    }
}

/// What has become of the packets of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub passed: u64,
    pub passed_bytes: u64,
    /// Vanished by a cut, a cut port, a reset port or the MTU.
    pub cut: u64,
    /// Vanished by chance or for want of bandwidth.
    pub lost: u64,
}

impl Counters {
    /// Packets that did not arrive.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.cut + self.lost
    }
}

/// Names a datacenter: its index (from 0), its name (`dc1`), or the site itself.
pub trait Place {
    /// From 0.
    fn index(&self) -> usize;
}

impl Place for usize {
    fn index(&self) -> usize {
        *self
    }
}

impl Place for &str {
    /// # Panics
    /// When this is no name of the form `dc1`: names come from the world's own sites.
    fn index(&self) -> usize {
        let number: Option<usize> = self.strip_prefix("dc").and_then(|n| n.parse().ok());
        number.and_then(|n| n.checked_sub(1)).unwrap_or_else(|| panic!("no datacenter is named {self:?}; they are dc1, dc2, …"))
    }
}

impl Place for &String {
    fn index(&self) -> usize {
        Place::index(&self.as_str())
    }
}

/// The lines of a world. Cheap to clone; changes take effect with the next packet.
#[derive(Clone, Debug)]
pub struct Wan {
    pub(super) shared: Arc<Shared>,
}

/// Shared with the router's thread.
#[derive(Debug)]
pub(super) struct Shared {
    pub sites: usize,
    preset: Preset,
    links: Mutex<Vec<Link>>,
    /// Rises with each change, so that the router need not take the lock for each packet.
    pub changes: AtomicU64,
    pub counts: Vec<Counts>,
}

/// [`Counters`], while they count.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub passed: AtomicU64,
    pub passed_bytes: AtomicU64,
    pub cut: AtomicU64,
    pub lost: AtomicU64,
}

impl Shared {
    pub fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the direction is in `links` and `counts`.
    pub fn direction(&self, from: usize, to: usize) -> usize {
        assert!(from < self.sites && to < self.sites, "this world has {} datacenters", self.sites);
        from * self.sites + to
    }
}

impl Wan {
    pub(super) fn new(sites: usize, preset: Preset) -> Wan {
        let links = (0..sites * sites).map(|n| preset.link(n / sites, n % sites)).collect();
        let counts = (0..sites * sites).map(|_| Counts::default()).collect();
        Wan { shared: Arc::new(Shared { sites, preset, links: Mutex::new(links), changes: AtomicU64::new(1), counts }) }
    }

    /// How many datacenters it joins.
    #[must_use]
    pub fn sites(&self) -> usize {
        self.shared.sites
    }

    /// The direction as it is now.
    #[must_use]
    pub fn link(&self, from: impl Place, to: impl Place) -> Link {
        self.shared.links()[self.shared.direction(from.index(), to.index())].clone()
    }

    /// Replaces one direction.
    pub fn set(&self, from: impl Place, to: impl Place, link: Link) {
        self.change(from, to, |now| *now = link);
    }

    /// Changes one direction in place.
    pub fn change(&self, from: impl Place, to: impl Place, change: impl FnOnce(&mut Link)) {
        let direction = self.shared.direction(from.index(), to.index());
        change(&mut self.shared.links()[direction]);
        self.shared.changes.fetch_add(1, Ordering::Release);
    }

    /// Nothing passes in this direction.
    pub fn cut(&self, from: impl Place, to: impl Place) {
        self.change(from, to, |link| link.cut = true);
    }

    /// Nothing passes between these two.
    pub fn cut_both(&self, one: impl Place, other: impl Place) {
        let (one, other) = (one.index(), other.index());
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Cuts `site` off from all others.
    pub fn isolate(&self, site: impl Place) {
        let site = site.index();
        (0..self.sites()).filter(|other| *other != site).for_each(|other| self.cut_both(site, other));
    }

    /// One direction is again as the preset has it.
    pub fn restore(&self, from: impl Place, to: impl Place) {
        let (from, to) = (from.index(), to.index());
        self.set(from, to, self.shared.preset.link(from, to));
    }

    /// Every direction is again as the preset has it.
    pub fn heal(&self) {
        for from in 0..self.sites() {
            (0..self.sites()).for_each(|to| self.restore(from, to));
        }
    }

    /// Since the world began.
    #[must_use]
    pub fn counters(&self, from: impl Place, to: impl Place) -> Counters {
        let counts = &self.shared.counts[self.shared.direction(from.index(), to.index())];
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            passed: read(&counts.passed),
            passed_bytes: read(&counts.passed_bytes),
            cut: read(&counts.cut),
            lost: read(&counts.lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healing_restores_the_preset() {
        let wan = Wan::new(3, Preset::Design);
        wan.isolate("dc1");
        wan.change("dc2", "dc3", |link| link.loss = 0.3);
        assert!(wan.link("dc1", "dc3").cut && wan.link(2, 0).cut && !wan.link(1, 2).cut);
        wan.heal();
        assert_eq!(wan.link("dc2", "dc3"), Preset::Design.link(1, 2));
        assert!(!wan.link("dc1", "dc3").cut);
    }

    #[test]
    fn the_design_has_a_near_pair_and_a_far_third() {
        assert_eq!(Preset::Design.link(0, 1).delay, Duration::from_micros(7_500));
        assert_eq!(Preset::Design.link(2, 1).delay, Duration::from_millis(20));
    }
}
