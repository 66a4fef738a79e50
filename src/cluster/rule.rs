//! Who must confirm a commit, and which sets of nodes may therefore elect.

use crate::types::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Every acknowledged commit is on `primary` and on at least `acks` of `standbys`. Zero acks: the primary alone holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SyncRule {
    pub primary: NodeId,
    pub standbys: BTreeSet<NodeId>,
    pub acks: usize,
}

impl SyncRule {
    /// The rule of `primary` over those of `nodes` that are not itself; `acks` is capped by their number.
    #[must_use]
    pub fn new(primary: NodeId, nodes: impl IntoIterator<Item = NodeId>, acks: usize) -> SyncRule {
        let standbys: BTreeSet<NodeId> = nodes.into_iter().filter(|n| *n != primary).collect();
        let acks = acks.min(standbys.len());
        SyncRule { primary, standbys, acks }
    }

    /// INV-4: does `sealed` meet every set of nodes that could have acknowledged a commit under this rule?
    #[must_use]
    pub fn covered_by(&self, sealed: &BTreeSet<NodeId>) -> bool {
        sealed.contains(&self.primary) || sealed.intersection(&self.standbys).count() + self.acks > self.standbys.len()
    }

    /// Does losing the primary's disk alone lose no acknowledged commit?
    #[must_use]
    pub fn survives_primary(&self) -> bool {
        self.acks > 0
    }
}

impl fmt::Display for SyncRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.standbys.iter().map(ToString::to_string).collect();
        write!(f, "{} + any {} of ({})", self.primary, self.acks, names.join(", "))
    }
}
