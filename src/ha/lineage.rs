//! Can this data directory follow that primary as it is?
//!
//! Claims make timeline numbers unique (INV-8), so equal numbers mean equal histories, unless somebody promoted by hand onto a
//! number that was claimed later: then the ancestries differ, and pg_rewind's "same timeline, nothing to do" must not be believed.

use super::{PostgresFacts, Upstream};
use crate::types::{Lsn, Timeline};

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// A prefix of the primary's history.
    Fits,
    /// Holds WAL that the primary's history lacks.
    Diverged,
    /// Same number, other history: only a fresh copy helps.
    Impostor,
    /// The end of the local WAL is not known yet.
    Unknown,
}

/// Compare the local history with the primary's.
#[must_use]
pub fn lineage(local: &PostgresFacts, upstream: &Upstream) -> Lineage {
    let Some(mine) = local.timeline else {
        return Lineage::Unknown;
    };
    if mine == upstream.timeline {
        let comparable = !local.ancestry.is_empty() && !upstream.ancestry.is_empty();
        return if comparable && local.ancestry != upstream.ancestry { Lineage::Impostor } else { Lineage::Fits };
    }
    let Some(left_at) = left_at(upstream, mine) else {
        return Lineage::Diverged;
    };
    match (local.shutdown_checkpoint, local.position) {
        // A former primary wrote one record after everything of its clients': its shutdown checkpoint. The new history must include it.
        (Some(checkpoint), _) if left_at > checkpoint => Lineage::Fits,
        (None, Some(end)) if end.lsn <= left_at => Lineage::Fits,
        (Some(_), _) | (None, Some(_)) => Lineage::Diverged,
        (None, None) => Lineage::Unknown,
    }
}

fn left_at(upstream: &Upstream, timeline: Timeline) -> Option<Lsn> {
    upstream.ancestry.iter().find(|(t, _)| *t == timeline).map(|(_, lsn)| *lsn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, WalPosition};

    fn upstream() -> Upstream {
        Upstream { timeline: Timeline(3), ancestry: vec![(Timeline(1), Lsn(100)), (Timeline(2), Lsn(200))], ..Upstream::default() }
    }

    fn local(timeline: u32, lsn: u64) -> PostgresFacts {
        let position = Some(WalPosition { writer: Epoch(1), lsn: Lsn(lsn) });
        PostgresFacts { timeline: Some(Timeline(timeline)), position, ..PostgresFacts::default() }
    }

    #[test]
    fn prefix_fits_and_longer_tail_diverged() {
        assert_eq!(lineage(&local(2, 200), &upstream()), Lineage::Fits);
        assert_eq!(lineage(&local(2, 201), &upstream()), Lineage::Diverged);
        assert_eq!(lineage(&local(1, 101), &upstream()), Lineage::Diverged);
    }

    #[test]
    fn sibling_timeline_diverged() {
        assert_eq!(lineage(&local(4, 1), &upstream()), Lineage::Diverged);
    }

    #[test]
    fn shutdown_checkpoint_must_be_part_of_the_new_history() {
        let mut old = local(2, 200);
        old.shutdown_checkpoint = Some(Lsn(200));
        assert_eq!(lineage(&old, &upstream()), Lineage::Diverged);
        old.shutdown_checkpoint = Some(Lsn(160));
        assert_eq!(lineage(&old, &upstream()), Lineage::Fits);
    }

    #[test]
    fn same_number_with_another_ancestry_is_an_impostor() {
        let mut other = local(3, 210);
        other.ancestry = vec![(Timeline(1), Lsn(100)), (Timeline(2), Lsn(180))];
        assert_eq!(lineage(&other, &upstream()), Lineage::Impostor);
    }

    #[test]
    fn crashed_primary_is_unknown_until_recovered() {
        let mut crashed = local(2, 0);
        crashed.position = None;
        assert_eq!(lineage(&crashed, &upstream()), Lineage::Unknown);
    }
}
