//! Servers that their own replay ended: where that goes on, only a copy ends it.

use super::memory::Memory;
use super::turn::Loop;
use crate::postgres::Postmaster;
use crate::types::{Epoch, Millis};
use std::time::Duration;

/// A standby whose replay has failed this often, without a minute of streaming in between, is copied. Where that did not help, ten times as
/// often, and so on: a copy of a large database is no small thing.
const REPLAY_TRIES: u32 = 3;
const COPIES_COUNTED: u32 = 3;
/// A standby that has streamed for so long is well.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// Failures with so much time in between have nothing to do with each other.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Servers of this node that replay ended, in this epoch and since the standby was well.
#[derive(Debug, Default)]
pub struct ReplayFailures {
    counted: (Epoch, u32),
    /// When the last one was.
    last: Millis,
    /// Copies that were made of it.
    copies: u32,
    /// The last postmaster whose end was looked at.
    looked_at: Option<i32>,
    streams_since: Option<Millis>,
}

impl ReplayFailures {
    /// Was the end of this postmaster not looked at yet?
    pub fn is_news(&mut self, pid: i32) -> bool {
        self.looked_at.replace(pid) != Some(pid)
    }

    /// A standby that streams for a while begins anew.
    pub fn observe(&mut self, streams: bool, now: Millis) {
        self.streams_since = if streams { self.streams_since.or(Some(now)) } else { None };
        if self.streams_since.is_some_and(|since| now.since(since) >= WELL_AFTER) {
            (self.counted.1, self.copies) = (0, 0);
        }
    }

    /// How many there have been, and whether only a copy can help.
    fn add(&mut self, epoch: Epoch, now: Millis) -> (u32, bool) {
        let (of, before) = self.counted;
        let goes_on = of == epoch && now.since(self.last) < FORGOTTEN_AFTER;
        let count = if goes_on { before + 1 } else { 1 };
        (self.counted, self.last) = ((epoch, count), now);
        (count, count >= self.tries())
    }

    fn tries(&self) -> u32 {
        REPLAY_TRIES * 10_u32.pow(self.copies.min(COPIES_COUNTED))
    }

    /// A copy took its place, for whatever reason.
    pub fn copied(&mut self) {
        self.copies += u32::from(self.counted.1 >= self.tries());
        self.counted.1 = 0;
    }
}

impl Loop {
    /// Looks at the end of each server once.
    pub(super) async fn count_failures(&mut self, epoch: Epoch, streams: bool) {
        let now = self.agent.clock.now();
        self.memory.failures.observe(streams, now);
        let ended = *self.agent.postgres.postmaster().borrow();
        if let Postmaster::Exited { pid } = ended
            && self.memory.failures.is_news(pid)
            && let Some(why) = self.agent.postgres.replay_failure().await
        {
            self.memory.replay_failed(&why, epoch, now);
        }
    }
}

impl Memory {
    /// Replay has ended this node's server in the epoch, for this reason.
    pub fn replay_failed(&mut self, why: &str, epoch: Epoch, now: Millis) {
        let (count, hopeless) = self.failures.add(epoch, now);
        if count.is_power_of_two() || hopeless {
            tracing::warn!(why, count, "the replay of WAL ended PostgreSQL");
        }
        if hopeless {
            self.need_clone(format!("it fails at its replay again and again: {why}"), epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_whose_replay_fails_again_and_again_is_copied() {
        let mut memory = Memory::default();
        let needs = |memory: &Memory| memory.needs_clone.as_ref().and_then(|need| need.epoch);
        let fail =
            |memory: &mut Memory, epoch, second: u64| memory.replay_failed("failed to add tuple", Epoch(epoch), Millis(second * 1_000));
        (1..=2).for_each(|at| fail(&mut memory, 3, at));
        (3..=4).for_each(|at| fail(&mut memory, 4, at));
        assert_eq!(needs(&memory), None, "counted anew for another primary");
        for (streams, second) in [(true, 5), (false, 50), (true, 51), (true, 110)] {
            memory.failures.observe(streams, Millis(second * 1_000));
        }
        fail(&mut memory, 4, 111);
        assert_eq!(needs(&memory), Some(Epoch(4)), "it never streamed for a minute");

        assert!(memory.failures.is_news(7));
        memory.cloned();
        assert!(!memory.failures.is_news(7) && memory.failures.is_news(8), "a copy does not make an old crash a new one");
        (112..141).for_each(|at| fail(&mut memory, 4, at));
        assert_eq!(needs(&memory), None, "a copy did not help");
        fail(&mut memory, 4, 141);
        assert_eq!(needs(&memory), Some(Epoch(4)));
        memory.cloned();
        memory.failures.observe(true, Millis(150_000));
        memory.failures.observe(true, Millis(210_000));
        (211..213).for_each(|at| fail(&mut memory, 4, at));
        assert_eq!(needs(&memory), None);
        fail(&mut memory, 4, 213 + FORGOTTEN_AFTER.as_secs());
        assert_eq!(needs(&memory), None, "too long ago");
    }
}
