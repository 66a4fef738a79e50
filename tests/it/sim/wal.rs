//! Write-ahead log as content: a tree of branches, one for each promotion.
//!
//! A [`Tip`] names a point of the tree, hence the exact set of records up to it. "Is this acknowledged write in that
//! copy?" is one walk up the tree, independent of timeline numbers and epochs, which the code under test computes itself.

use trilithon::types::{Epoch, Lsn, Timeline};

/// A point in the tree: branch and byte position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tip {
    pub branch: u32,
    pub lsn: u64,
}

/// What one primaryship wrote.
#[derive(Clone, Debug)]
pub struct Branch {
    pub parent: Option<Tip>,
    pub timeline: Timeline,
    pub writer: Epoch,
}

/// Every branch ever written in one world.
#[derive(Clone, Debug, Default)]
pub struct Wal {
    pub branches: Vec<Branch>,
}

impl Wal {
    /// Begin a branch at `parent`.
    pub fn fork(&mut self, parent: Option<Tip>, timeline: Timeline, writer: Epoch) -> Tip {
        self.branches.push(Branch { parent, timeline, writer });
        Tip { branch: self.branches.len() as u32 - 1, lsn: parent.map_or(0x100, |p| p.lsn) }
    }

    pub fn branch(&self, tip: Tip) -> &Branch {
        &self.branches[tip.branch as usize]
    }

    /// Is `point` part of the history that ends at `tip`?
    pub fn contains(&self, tip: Tip, point: Tip) -> bool {
        self.common(tip, point) == point || self.at_base(point).is_some_and(|p| self.contains(tip, p))
    }

    /// A point at the very beginning of its branch holds nothing of it: it equals its parent.
    fn at_base(&self, point: Tip) -> Option<Tip> {
        self.branch(point).parent.filter(|p| p.lsn == point.lsn)
    }

    /// The last point that `a` and `b` share, named as `b` names it where both are on one branch.
    pub fn common(&self, a: Tip, b: Tip) -> Tip {
        let mut theirs = Some(b);
        while let Some(y) = theirs {
            let mut mine = Some(a);
            while let Some(x) = mine {
                if x.branch == y.branch {
                    return Tip { branch: x.branch, lsn: x.lsn.min(y.lsn) };
                }
                mine = self.branch(x).parent;
            }
            theirs = self.branch(y).parent;
        }
        Tip { branch: 0, lsn: 0 }
    }

    /// Ancestors of `tip`'s timeline, oldest first, each with the position at which it was left.
    pub fn ancestry(&self, tip: Tip) -> Vec<(Timeline, Lsn)> {
        let mut up = Vec::new();
        let mut at = self.branch(tip).parent;
        while let Some(p) = at {
            up.push((self.branch(p).timeline, Lsn(p.lsn)));
            at = self.branch(p).parent;
        }
        up.reverse();
        up
    }

    /// Was `timeline` ever written already?
    pub fn has_timeline(&self, timeline: Timeline) -> bool {
        self.branches.iter().any(|b| b.timeline == timeline)
    }
}

#[test]
fn wal_contains_only_what_was_copied() {
    let mut wal = Wal::default();
    let root = wal.fork(None, Timeline(1), Epoch(1));
    let old = Tip { lsn: 500, ..root };
    let new = wal.fork(Some(Tip { lsn: 300, ..root }), Timeline(2), Epoch(2));
    let new = Tip { lsn: 400, ..new };
    assert!(wal.contains(new, Tip { lsn: 300, ..root }));
    assert!(!wal.contains(new, Tip { lsn: 301, ..root }));
    assert!(!wal.contains(old, new));
    assert!(wal.contains(Tip { lsn: 300, ..root }, Tip { lsn: 300, ..new }));
    assert_eq!(wal.common(old, new), Tip { lsn: 300, ..root });
    assert_eq!(wal.ancestry(new), vec![(Timeline(1), Lsn(300))]);
}
