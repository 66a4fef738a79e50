//! Which datacenter reaches which, on two planes: peers (consensus, observations) and Postgres (replication).

use super::node::Slot;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    Peer,
    Postgres,
}

/// Cuts are counted, so that two overlapping faults heal apart.
#[derive(Clone, Debug)]
pub struct Net {
    cuts: Vec<u8>,
    count: usize,
}

impl Net {
    pub fn new(count: usize) -> Net {
        Net { cuts: vec![0; count * count * 2], count }
    }

    fn at(&self, plane: Plane, from: Slot, to: Slot) -> usize {
        (plane as usize * self.count + from) * self.count + to
    }

    pub fn cut(&mut self, plane: Plane, from: Slot, to: Slot) {
        let at = self.at(plane, from, to);
        self.cuts[at] += 1;
    }

    pub fn mend(&mut self, plane: Plane, from: Slot, to: Slot) {
        let at = self.at(plane, from, to);
        self.cuts[at] = self.cuts[at].saturating_sub(1);
    }

    pub fn mend_all(&mut self) {
        self.cuts.fill(0);
    }

    /// Do packets get from `from` to `to`?
    pub fn open(&self, plane: Plane, from: Slot, to: Slot) -> bool {
        from == to || self.cuts[self.at(plane, from, to)] == 0
    }

    /// Do packets get through both ways?
    pub fn both(&self, plane: Plane, a: Slot, b: Slot) -> bool {
        self.open(plane, a, b) && self.open(plane, b, a)
    }
}
