//! What the agent remembers between turns: outcomes of its own steps that Postgres cannot tell. Volatile by design; whatever is
//! missing after a restart is found out again or done again.

use super::failures::ReplayFailures;
use crate::cluster::SyncRule;
use crate::ha::{Action, StepReason};
use crate::types::{Epoch, Lsn, Millis, NodeId, RequestId, Timeline};
use std::time::Duration;

/// Outcomes of earlier steps.
#[derive(Debug, Default)]
pub struct Memory {
    /// Upstream that Postgres was last told, with the epoch.
    pub following: Option<(NodeId, Epoch)>,
    pub settled: Option<(Epoch, SyncRule)>,
    pub prepared: Option<RequestId>,
    pub needs_clone: Option<NeedsClone>,
    pub gave_up: Option<Epoch>,
    /// Rewinds done for this epoch's primary: each should have been the last.
    pub rewinds: (Epoch, u32),
    pub failures: ReplayFailures,
    /// That somebody promoted the server by hand may not be on disk: when it is written again.
    pub unmarked: Option<Millis>,
    /// How far this node's rule had confirmed its WAL, when it was last seen as a primary.
    pub confirmed: Option<(Timeline, Lsn)>,
    /// Since when Postgres has not answered.
    pub silent_since: Option<Millis>,
    /// Where flushed WAL ended, and since when processes were seen to wait there.
    pub flush_waits: Option<(Lsn, Millis)>,
    /// Since when a standby that was told whom to follow has not streamed.
    pub starved_since: Option<Millis>,
    pub backoff: Backoff,
}

/// A directory that is still astray after this many rewinds is copied.
const REWIND_TRIES: u32 = 3;

/// A standby that has not streamed for so long is told again whom to follow.
const FOLLOW_AGAIN: Duration = Duration::from_secs(10);

/// Why only a fresh copy helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsClone {
    pub why: String,
    /// Whose primary showed it: another one may have what that one lacks. `None`: an administrator's word, which outlives elections.
    pub epoch: Option<Epoch>,
}

impl Memory {
    /// The primary of `epoch` showed that only a copy helps; what is known already stands.
    pub fn need_clone(&mut self, why: String, epoch: Epoch) {
        self.needs_clone.get_or_insert(NeedsClone { why, epoch: Some(epoch) });
    }

    /// An election since, or this node's own promotion, makes the reason void; whatever still holds is found out again.
    pub fn review_clone(&mut self, epoch: Epoch, is_primary: bool) {
        self.needs_clone = self.needs_clone.take().filter(|need| !is_primary && need.epoch.is_none_or(|of| of == epoch));
    }

    /// A rewind for the primary of `epoch` came to its end.
    pub fn rewound(&mut self, epoch: Epoch) {
        let (of, done) = self.rewinds;
        self.rewinds = (epoch, if of == epoch { done + 1 } else { 1 });
        // An administrator's word stands: it may have come while this ran.
        self.needs_clone = self.needs_clone.take().filter(|need| need.epoch.is_none());
        // pg_rewind finds nothing to do where pg_control has not heard yet of the timeline that the WAL has gone to.
        if self.rewinds.1 >= REWIND_TRIES {
            self.need_clone("rewinding it has not brought it back".to_owned(), epoch);
        }
    }

    /// The directory was replaced by a copy.
    pub fn cloned(&mut self) {
        self.following = None;
        self.needs_clone = None;
        self.failures.copied();
    }

    /// The step that ought to have been enough, once more: what it did was lost, or the server took another timeline for the newest.
    pub fn follow_again(&mut self, epoch: Epoch, reason: &StepReason, streams: bool, now: Millis) -> Option<Action> {
        let (StepReason::Following(primary), false) = (reason, streams) else {
            self.starved_since = None;
            return None;
        };
        let since = *self.starved_since.get_or_insert(now);
        if now.since(since) < FOLLOW_AGAIN {
            return None;
        }
        self.starved_since = None;
        tracing::info!(node = %primary, "it does not stream: told again whom to follow");
        Some(Action::Follow { primary: *primary, epoch })
    }

    /// Postgres is no primary (any more): what was proved about it is void.
    pub fn forget_primary(&mut self) {
        self.settled = None;
        self.prepared = None;
    }
}

/// Spaces repeated failures of the same step, so that a broken disk or a lost primary is not hammered.
#[derive(Debug, Default)]
pub struct Backoff {
    failing: Option<(std::mem::Discriminant<Action>, u32, Millis)>,
}

impl Backoff {
    /// Steps that lose a right or make a promise are never held back.
    const URGENT_PAUSE: Duration = Duration::from_millis(50);
    const FIRST_PAUSE: Duration = Duration::from_millis(200);
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);

    /// May `action` be tried at `now`?
    #[must_use]
    pub fn allows(&self, action: &Action, now: Millis) -> bool {
        self.failing.is_none_or(|(kind, _, not_before)| kind != std::mem::discriminant(action) || now >= not_before)
    }

    /// `action` failed at `now`; returns how often in a row.
    pub fn failed(&mut self, action: &Action, now: Millis) -> u32 {
        let kind = std::mem::discriminant(action);
        let count = self.failing.filter(|(known, _, _)| *known == kind).map_or(1, |(_, count, _)| count + 1);
        let pause = match action {
            Action::Promise { .. } | Action::Demote | Action::Detach | Action::ReleaseLease { .. } | Action::AcquireLease { .. } => {
                Self::URGENT_PAUSE
            }
            Action::InitDb
            | Action::StartDetached
            | Action::Follow { .. }
            | Action::Stop
            | Action::Rewind { .. }
            | Action::Clone { .. }
            | Action::Promote { .. }
            | Action::ApplyRule { .. }
            | Action::Prepare { .. }
            | Action::Drain => (Self::FIRST_PAUSE * (1 << count.min(6))).min(Self::LONGEST_PAUSE),
        };
        self.failing = Some((kind, count, now.after(pause)));
        count
    }

    /// Something succeeded.
    pub fn clear(&mut self) {
        self.failing = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_does_not_stream_is_told_again_now_and_then() {
        let mut memory = Memory::default();
        let mut at = |second: u64, reason: &StepReason, streams| {
            memory.follow_again(Epoch(3), reason, streams, Millis(second * 1_000)).is_some_and(|again| {
                assert_eq!(again, Action::Follow { primary: NodeId(1), epoch: Epoch(3) });
                true
            })
        };
        let follows = StepReason::Following(NodeId(1));
        let told: Vec<u64> = (0..40).filter(|second| at(*second, &follows, false)).collect();
        assert_eq!(told, [10, 21, 32]);
        assert!((40..60).all(|second| !at(second, &follows, true)), "it streams");
        assert!((60..70).all(|second| !at(second, &follows, false)) && at(70, &follows, false), "counted anew");
        assert!((71..90).all(|second| !at(second, &StepReason::Sealed, false)), "another step has its reason");
    }

    #[test]
    fn a_need_for_a_copy_ends_with_the_epoch_that_showed_it() {
        let mut memory = Memory::default();
        memory.need_clone("the primary has not kept the WAL".to_owned(), Epoch(3));
        memory.review_clone(Epoch(3), false);
        assert!(memory.needs_clone.is_some());
        memory.review_clone(Epoch(4), false);
        assert_eq!(memory.needs_clone, None, "another primary may have kept it");
        let ordered = Some(NeedsClone { why: "an administrator asked for it".to_owned(), epoch: None });
        memory.needs_clone.clone_from(&ordered);
        memory.review_clone(Epoch(5), false);
        assert_eq!(memory.needs_clone, ordered);
        memory.review_clone(Epoch(5), true);
        assert_eq!(memory.needs_clone, None, "the copy that won is no longer to be replaced");
    }

    #[test]
    fn what_three_rewinds_for_one_primary_have_not_brought_back_is_copied() {
        let mut memory = Memory::default();
        memory.need_clone("the primary has not kept the WAL".to_owned(), Epoch(3));
        for _ in 0..2 {
            memory.rewound(Epoch(3));
            assert_eq!(memory.needs_clone, None, "it may have been enough");
        }
        memory.rewound(Epoch(4));
        assert_eq!(memory.needs_clone, None, "counted anew for another primary");
        memory.rewound(Epoch(4));
        memory.rewound(Epoch(4));
        assert_eq!(memory.needs_clone.as_ref().and_then(|need| need.epoch), Some(Epoch(4)));
        let ordered = Some(NeedsClone { why: "an administrator asked for it".to_owned(), epoch: None });
        memory.needs_clone.clone_from(&ordered);
        memory.rewound(Epoch(5));
        assert_eq!(memory.needs_clone, ordered);
    }

    #[test]
    fn repeated_failures_wait_longer_and_another_step_does_not() {
        let mut backoff = Backoff::default();
        let clone = Action::Clone { primary: NodeId(1) };
        assert_eq!(backoff.failed(&clone, Millis(1000)), 1);
        assert!(!backoff.allows(&clone, Millis(1100)));
        assert!(backoff.allows(&Action::Demote, Millis(1100)));
        assert_eq!(backoff.failed(&clone, Millis(2000)), 2);
        assert!(!backoff.allows(&clone, Millis(2600)));
        assert!(backoff.allows(&clone, Millis(2801)));
        backoff.clear();
        assert!(backoff.allows(&clone, Millis(2801)));
    }
}
