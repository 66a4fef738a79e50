//! The arithmetic of one pool: who gets which connection, who may open one, who waits. Pure.
//!
//! At most `size` connections exist at once, idle, in use or being opened. Waiters are served in the order of their arrival, wherever
//! they waited before (a client held during a failover keeps its place): nobody overtakes an earlier one. Connections differ by
//! variant (start-up parameters); when only others are idle, the one longest unused makes room.

use std::collections::{BTreeMap, VecDeque};

/// What `acquire` gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<C> {
    /// An idle connection of the right variant.
    Reuse(C),
    /// Permission to open one; close this one first, if any.
    Open { evicted: Option<C> },
    /// Others come first, or the pool is full: the waiter was not kept; see `enqueue`.
    Wait,
}

/// What a waiter is woken with.
#[derive(Debug, PartialEq, Eq)]
pub enum Grant<C> {
    Reuse(C),
    Open,
}

struct Waiter<V, W> {
    variant: V,
    wake: W,
}

struct Idle<C, V> {
    connection: C,
    variant: V,
    /// The worker whose reactor it is registered with.
    home: usize,
}

/// `C` a connection, `V` its variant, `W` what wakes a waiter.
pub struct Inner<C, V, W> {
    size: u32,
    /// Connections that exist or are being opened.
    open: u32,
    /// Oldest unused first.
    idle: VecDeque<Idle<C, V>>,
    waiters: BTreeMap<u64, Waiter<V, W>>,
}

impl<C, V: PartialEq, W> Inner<C, V, W> {
    /// An empty pool of at most `size`.
    #[must_use]
    pub fn new(size: u32) -> Self {
        Inner { size, open: 0, idle: VecDeque::new(), waiters: BTreeMap::new() }
    }

    /// Asks for a connection. `arrival` orders all who ever wait.
    pub fn acquire(&mut self, variant: &V, home: usize, arrival: u64) -> Turn<C> {
        if self.waiters.first_key_value().is_some_and(|(first, _)| *first < arrival) {
            return Turn::Wait;
        }
        let newest_fit = |near: bool| self.idle.iter().rposition(|idle| idle.variant == *variant && (!near || idle.home == home));
        if let Some(found) = newest_fit(true).or_else(|| newest_fit(false)).and_then(|at| self.idle.remove(at)) {
            return Turn::Reuse(found.connection);
        }
        if self.open < self.size {
            self.open += 1;
            return Turn::Open { evicted: None };
        }
        match self.idle.pop_front() {
            Some(oldest) => Turn::Open { evicted: Some(oldest.connection) },
            None => Turn::Wait,
        }
    }

    /// Queues a waiter after `Turn::Wait`.
    pub fn enqueue(&mut self, variant: V, arrival: u64, wake: W) {
        self.waiters.insert(arrival, Waiter { variant, wake });
    }

    /// Takes a waiter out. `false`: it was granted something already.
    pub fn leave(&mut self, arrival: u64) -> bool {
        self.waiters.remove(&arrival).is_some()
    }

    /// A connection comes back. Gives the waiter to wake, with its grant; and the connection to close, if it fits nobody.
    pub fn release(&mut self, connection: C, variant: V, home: usize) -> (Option<(W, Grant<C>)>, Option<C>) {
        match self.waiters.pop_first() {
            None if self.open > self.size => {
                // The pool was made smaller.
                self.open -= 1;
                (None, Some(connection))
            }
            None => {
                self.idle.push_back(Idle { connection, variant, home });
                (None, None)
            }
            Some((_, waiter)) if waiter.variant == variant => (Some((waiter.wake, Grant::Reuse(connection))), None),
            Some((_, waiter)) => (Some((waiter.wake, Grant::Open)), Some(connection)),
        }
    }

    /// A connection is gone, or could not be opened. Gives the waiter who may open one in its place.
    pub fn closed(&mut self) -> Option<(W, Grant<C>)> {
        match self.waiters.pop_first() {
            Some((_, waiter)) if self.open <= self.size => Some((waiter.wake, Grant::Open)),
            Some((arrival, waiter)) => {
                self.waiters.insert(arrival, waiter);
                self.open -= 1;
                None
            }
            None => {
                self.open -= 1;
                None
            }
        }
    }

    /// Takes the idle connections out that `unfit` names.
    pub fn prune(&mut self, mut unfit: impl FnMut(&C) -> bool) -> Vec<C> {
        let (out, keep): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.idle).into_iter().partition(|idle| unfit(&idle.connection));
        self.idle = keep;
        out.into_iter().map(|idle| idle.connection).collect()
    }

    /// (in use or being opened, idle, waiting, limit).
    #[must_use]
    pub fn counts(&self) -> (u32, u32, u32, u32) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let idle = count(self.idle.len());
        (self.open - idle, idle, count(self.waiters.len()), self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Acquire { variant: u8, home: usize },
        Release { which: usize },
        Close { which: usize },
        Leave { which: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..3, 0usize..2).prop_map(|(variant, home)| Step::Acquire { variant, home }),
            3 => (0usize..50).prop_map(|which| Step::Release { which }),
            1 => (0usize..50).prop_map(|which| Step::Close { which }),
            1 => (0usize..50).prop_map(|which| Step::Leave { which }),
        ]
    }

    /// Connections are numbers, so that giving one twice shows.
    #[derive(Default)]
    struct Model {
        next: u32,
        in_use: Vec<(u32, u8)>,
        alive: BTreeSet<u32>,
        waiting: Vec<(u64, u8)>,
    }

    impl Model {
        fn open(&mut self, variant: u8) {
            self.next += 1;
            self.alive.insert(self.next);
            self.in_use.push((self.next, variant));
        }

        fn reuse(&mut self, connection: u32, variant: u8) {
            assert!(self.alive.contains(&connection), "a closed connection was given");
            assert!(self.in_use.iter().all(|(c, _)| *c != connection), "a connection was given twice");
            self.in_use.push((connection, variant));
        }

        fn woken(&mut self, arrival: u64, grant: Grant<u32>) {
            let first = self.waiting.iter().map(|(a, _)| *a).min().expect("somebody waits");
            assert_eq!(arrival, first, "the earliest is served first");
            let at = self.waiting.iter().position(|(a, _)| *a == arrival).expect("it waits");
            let (_, variant) = self.waiting.remove(at);
            match grant {
                Grant::Reuse(connection) => self.reuse(connection, variant),
                Grant::Open => self.open(variant),
            }
        }
    }

    proptest! {
        #[test]
        fn no_connection_is_given_twice_and_waiters_are_served_in_order(size in 1u32..5, steps in proptest::collection::vec(step(), 1..200)) {
            let mut inner: Inner<u32, u8, u64> = Inner::new(size);
            let mut model = Model::default();
            for (arrival, step) in (0u64..).zip(steps) {
                match step {
                    Step::Acquire { variant, home } => match inner.acquire(&variant, home, arrival) {
                        Turn::Reuse(connection) => model.reuse(connection, variant),
                        Turn::Open { evicted } => {
                            if let Some(evicted) = evicted {
                                prop_assert!(model.alive.remove(&evicted));
                            }
                            model.open(variant);
                        }
                        Turn::Wait => {
                            inner.enqueue(variant, arrival, arrival);
                            model.waiting.push((arrival, variant));
                        }
                    },
                    Step::Release { which } if !model.in_use.is_empty() => {
                        let (connection, variant) = model.in_use.remove(which % model.in_use.len());
                        let (woken, close) = inner.release(connection, variant, which % 2);
                        if let Some(closed) = close {
                            prop_assert!(model.alive.remove(&closed));
                        }
                        if let Some((arrival, grant)) = woken {
                            model.woken(arrival, grant);
                        }
                    }
                    Step::Close { which } if !model.in_use.is_empty() => {
                        let (connection, _) = model.in_use.remove(which % model.in_use.len());
                        model.alive.remove(&connection);
                        if let Some((arrival, grant)) = inner.closed() {
                            model.woken(arrival, grant);
                        }
                    }
                    Step::Leave { which } if !model.waiting.is_empty() => {
                        let (arrival, _) = model.waiting.remove(which % model.waiting.len());
                        prop_assert!(inner.leave(arrival));
                        prop_assert!(!inner.leave(arrival));
                    }
                    _ => {}
                }
                let (active, idle, waiting, _) = inner.counts();
                prop_assert_eq!(active as usize, model.in_use.len());
                prop_assert_eq!((active + idle) as usize, model.alive.len());
                prop_assert!(active + idle <= size);
                prop_assert_eq!(waiting as usize, model.waiting.len());
                prop_assert!(waiting == 0 || active == size, "nobody waits while there is room");
            }
        }
    }

    #[test]
    fn an_earlier_arrival_held_elsewhere_goes_first() {
        let mut inner: Inner<u32, u8, u64> = Inner::new(1);
        assert_eq!(inner.acquire(&0, 0, 5), Turn::Open { evicted: None });
        assert_eq!(inner.acquire(&0, 0, 9), Turn::Wait);
        inner.enqueue(0, 9, 9);
        assert_eq!(inner.acquire(&0, 0, 7), Turn::Wait);
        inner.enqueue(0, 7, 7);
        assert_eq!(inner.release(1, 0, 0), (Some((7, Grant::Reuse(1))), None));
    }

    #[test]
    fn the_nearest_connection_is_preferred() {
        let mut inner: Inner<u32, u8, u64> = Inner::new(2);
        for connection in [1, 2] {
            assert_eq!(inner.acquire(&0, 0, 0), Turn::Open { evicted: None });
            let _ = connection;
        }
        inner.release(1, 0, 1);
        inner.release(2, 0, 0);
        assert_eq!(inner.acquire(&0, 1, 0), Turn::Reuse(1));
    }
}
