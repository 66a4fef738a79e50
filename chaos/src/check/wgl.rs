//! Linearizability of one register: the search of Wing and Gong with Lowe's memory of visited states.
//!
//! An operation whose end nobody knows returns at infinity and may never have happened. Operations that change nothing are put in
//! place as soon as they fit: to delay them gains nothing. The search is bounded; beyond the bound there is no answer.

use std::collections::HashSet;

/// What an operation does to the register, whose state is a value or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read(Option<i64>),
    Write(i64),
    /// A compare-and-set; `None`: nobody knows whether it matched.
    Cas {
        expected: i64,
        value: i64,
        matched: Option<bool>,
    },
}

/// One operation. `end` is `None` when it may take effect at any time after `start`, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub start: u64,
    pub end: Option<u64>,
    pub kind: Kind,
}

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Linearizable,
    NotLinearizable,
    /// More than the bound's states.
    TooLong,
}

type State = Option<i64>;

impl Kind {
    /// The state after it, or `None` where it cannot have happened.
    fn apply(self, state: State) -> Option<State> {
        match self {
            Kind::Read(seen) => (seen == state).then_some(state),
            Kind::Write(value) => Some(Some(value)),
            Kind::Cas { expected, value, matched } => match (state == Some(expected), matched) {
                (true, Some(true) | None) => Some(Some(value)),
                (false, Some(false) | None) => Some(state),
                _ => None,
            },
        }
    }

    fn observes(self, written: i64) -> bool {
        match self {
            Kind::Read(seen) => seen == Some(written),
            Kind::Cas { expected, .. } => expected == written,
            Kind::Write(_) => false,
        }
    }

    fn writes(self) -> Option<i64> {
        match self {
            Kind::Write(value) | Kind::Cas { value, .. } => Some(value),
            Kind::Read(_) => None,
        }
    }
}

/// Is there an order of these operations, from an empty register, that real time and all answers allow? Visits at most `bound` states.
#[must_use]
pub fn search(operations: &[Operation], bound: usize) -> Answer {
    let mut sorted = without_idle(operations);
    sorted.sort_by_key(|operation| operation.start);
    let mut seen: HashSet<(Vec<u64>, State)> = HashSet::new();
    let mut open: Vec<(Vec<u64>, State)> = vec![(vec![0; sorted.len().div_ceil(64)], None)];
    while let Some((mut placed, state)) = open.pop() {
        settle(&sorted, &mut placed, state);
        let Some(limit) = sorted.iter().enumerate().filter(|(index, _)| !has(&placed, *index)).filter_map(|(_, o)| o.end).min() else {
            return Answer::Linearizable;
        };
        if !seen.insert((placed.clone(), state)) {
            continue;
        }
        if seen.len() > bound {
            return Answer::TooLong;
        }
        // The stack is popped from its end: operations of unknown end, which may never have happened, are tried last.
        let possible = |(index, operation): &(usize, &Operation)| !has(&placed, *index) && operation.start <= limit;
        let (known, unknown): (Vec<_>, Vec<_>) = sorted.iter().enumerate().filter(possible).partition(|(_, o)| o.end.is_some());
        for (index, operation) in unknown.into_iter().chain(known.into_iter().rev()) {
            let Some(after) = operation.kind.apply(state) else { continue };
            // What changes nothing was put in place already; an unknown one that changes nothing need not have happened.
            if after != state {
                let mut next = placed.clone();
                next[index / 64] |= 1 << (index % 64);
                open.push((next, after));
            }
        }
    }
    Answer::NotLinearizable
}

/// Leaves out operations of unknown end that nothing else can tell from never having happened: nobody observed their value, and no
/// compare-and-set failed later, which another value might explain. Each of them would double the search.
fn without_idle(operations: &[Operation]) -> Vec<Operation> {
    let is_failed = |o: &&Operation| matches!(o.kind, Kind::Cas { matched: Some(false), .. });
    let last_failed = operations.iter().filter(is_failed).filter_map(|o| o.end).max();
    let is_idle = |operation: &Operation| {
        let explains = last_failed.is_some_and(|end| end >= operation.start);
        operation.end.is_none()
            && !explains
            && operation.kind.writes().is_some_and(|value| !operations.iter().any(|o| o.kind.observes(value)))
    };
    operations.iter().filter(|operation| !is_idle(operation)).copied().collect()
}

/// Puts in place all operations that may come next and change nothing.
fn settle(sorted: &[Operation], placed: &mut [u64], state: State) {
    loop {
        let limit = sorted.iter().enumerate().filter(|(index, _)| !has(placed, *index)).filter_map(|(_, o)| o.end).min();
        let Some(limit) = limit else { return };
        let mut is_changed = false;
        for (index, operation) in sorted.iter().enumerate().take_while(|(_, o)| o.start <= limit) {
            if operation.end.is_some() && !has(placed, index) && operation.kind.apply(state) == Some(state) {
                placed[index / 64] |= 1 << (index % 64);
                is_changed = true;
            }
        }
        if !is_changed {
            return;
        }
    }
}

fn has(placed: &[u64], index: usize) -> bool {
    placed[index / 64] & (1 << (index % 64)) != 0
}

/// A small part of a history that is not linearizable, and still is not: first the shortest prefix in time, then without every
/// operation that is not needed. A write that somebody observed stays, so that no read is left without its origin.
#[must_use]
pub fn shrink(operations: &[Operation], bound: usize) -> Vec<Operation> {
    let mut ends: Vec<u64> = operations.iter().filter_map(|operation| operation.end).collect();
    ends.sort_unstable();
    let fails = |part: &[Operation]| search(part, bound) == Answer::NotLinearizable;
    let shortest = ends.partition_point(|end| !fails(&until(operations, *end)));
    let mut part = ends.get(shortest).map_or_else(|| operations.to_vec(), |end| until(operations, *end));
    let mut index = 0;
    while index < part.len() {
        let mut fewer = part.clone();
        let gone = fewer.remove(index);
        let is_observed = gone.kind.writes().is_some_and(|value| fewer.iter().any(|other| other.kind.observes(value)));
        if !is_observed && fails(&fewer) {
            part = fewer;
            index = 0;
        } else {
            index += 1;
        }
    }
    part
}

/// The history as it stood at an instant: what had not ended is unknown; what was only to be read is left out.
fn until(operations: &[Operation], at: u64) -> Vec<Operation> {
    let begun = operations.iter().filter(|operation| operation.start <= at);
    let cut = begun.filter_map(|operation| match (operation.end, operation.kind) {
        (Some(end), _) if end <= at => Some(*operation),
        (_, Kind::Read(_)) => None,
        (_, Kind::Cas { expected, value, .. }) => {
            Some(Operation { end: None, kind: Kind::Cas { expected, value, matched: None }, ..*operation })
        }
        (_, Kind::Write(_)) => Some(Operation { end: None, ..*operation }),
    });
    cut.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: usize = 100_000;

    fn op(start: u64, end: u64, kind: Kind) -> Operation {
        Operation { start, end: Some(end), kind }
    }

    fn open(start: u64, kind: Kind) -> Operation {
        Operation { start, end: None, kind }
    }

    fn cas(expected: i64, value: i64, matched: bool) -> Kind {
        Kind::Cas { expected, value, matched: Some(matched) }
    }

    #[test]
    fn concurrent_operations_find_their_order() {
        let history = [
            op(0, 10, Kind::Write(1)),
            op(5, 30, Kind::Write(2)),
            op(12, 15, Kind::Read(Some(1))),
            op(16, 20, Kind::Read(Some(2))),
            op(31, 35, cas(2, 3, true)),
            op(31, 36, cas(1, 4, false)),
            op(40, 41, Kind::Read(Some(3))),
        ];
        assert_eq!(search(&history, BOUND), Answer::Linearizable);
    }

    #[test]
    fn a_stale_read_has_no_order() {
        let history = [op(0, 1, Kind::Write(1)), op(2, 3, Kind::Write(2)), op(4, 5, Kind::Read(Some(1)))];
        assert_eq!(search(&history, BOUND), Answer::NotLinearizable);
    }

    #[test]
    fn reads_cannot_go_back_and_forth() {
        let history =
            [op(0, 100, Kind::Write(1)), op(1, 2, Kind::Read(Some(1))), op(3, 4, Kind::Read(None)), op(5, 6, Kind::Read(Some(1)))];
        assert_eq!(search(&history, BOUND), Answer::NotLinearizable);
    }

    #[test]
    fn an_unknown_write_may_come_late_or_never_but_not_twice() {
        let late = [op(0, 1, Kind::Write(1)), open(2, Kind::Write(2)), op(10, 11, Kind::Read(Some(1))), op(20, 21, Kind::Read(Some(2)))];
        assert_eq!(search(&late, BOUND), Answer::Linearizable);
        assert_eq!(search(&late[..3], BOUND), Answer::Linearizable);
        let mut twice = late.to_vec();
        twice.extend([op(30, 31, Kind::Write(3)), op(40, 41, Kind::Read(Some(2)))]);
        assert_eq!(search(&twice, BOUND), Answer::NotLinearizable);
    }

    #[test]
    fn two_compare_and_sets_from_one_value_cannot_both_succeed() {
        let history = [op(0, 1, Kind::Write(1)), op(2, 9, cas(1, 2, true)), op(2, 9, cas(1, 3, true))];
        assert_eq!(search(&history, BOUND), Answer::NotLinearizable);
    }

    #[test]
    fn a_failed_compare_and_set_needs_another_value() {
        assert_eq!(search(&[op(0, 1, Kind::Write(1)), op(2, 3, cas(1, 2, false))], BOUND), Answer::NotLinearizable);
        // An unknown write may have been there for a moment.
        let history = [op(0, 1, Kind::Write(1)), open(1, Kind::Write(7)), op(2, 3, cas(1, 2, false))];
        assert_eq!(search(&history, BOUND), Answer::Linearizable);
    }

    #[test]
    fn the_bound_gives_no_answer() {
        let mut history: Vec<Operation> = (0..30).map(|n| open(n, Kind::Write(i64::try_from(n).unwrap()))).collect();
        history.push(op(100, 101, Kind::Read(Some(99))));
        // Nobody saw any of them: they need not be tried.
        assert_eq!(search(&history, 1000), Answer::NotLinearizable);
        history.extend([op(102, 103, Kind::Write(98)), op(104, 105, cas(98, 97, false))]);
        assert_eq!(search(&history, 1000), Answer::TooLong);
    }

    #[test]
    fn a_witness_keeps_only_what_is_needed() {
        let mut history: Vec<Operation> = Vec::new();
        for n in 0..50_u64 {
            let value = i64::try_from(n).unwrap();
            history.extend([op(n * 10, n * 10 + 4, Kind::Write(value)), op(n * 10 + 5, n * 10 + 6, Kind::Read(Some(value)))]);
        }
        history.push(op(405, 408, Kind::Read(Some(30))));
        history.sort_by_key(|o| o.start);
        let part = shrink(&history, BOUND);
        assert!(part.len() <= 3, "{part:?}");
        assert_eq!(search(&part, BOUND), Answer::NotLinearizable);
    }
}
