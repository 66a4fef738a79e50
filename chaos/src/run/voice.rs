//! What a run tells while it goes: events one by one, and on a terminal a status line.

use super::watch::Watch;
use crate::record::{At, RunClock};
use crate::report::{Event, Status, Terminal};
use crate::workload::Running;
use anstream::AutoStream;
use std::io::Stderr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often the status is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(500);

struct State {
    terminal: Terminal<AutoStream<Stderr>>,
    status: Status,
    /// Epoch that was told last.
    epoch: u64,
    outages: usize,
    drawn: At,
}

/// One per process; runs follow each other on it.
pub struct Voice(Mutex<State>);

impl Voice {
    pub fn new() -> Voice {
        let state = State { terminal: Terminal::stderr(), status: Status::default(), epoch: 0, outages: 0, drawn: At(0) };
        Voice(Mutex::new(state))
    }

    fn with(&self, act: impl FnOnce(&mut State)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn event(&self, clock: RunClock, event: &Event<'_>) {
        self.with(|s| s.terminal.event(clock.now(), event));
    }

    pub fn note(&self, clock: RunClock, text: &str) {
        self.event(clock, &Event::Note(text));
    }

    /// A run begins, to end at `until`.
    pub fn begin(&self, until: At) {
        self.with(|s| (s.status, s.epoch, s.outages, s.drawn) = (Status { until, ..Status::default() }, 0, 0, At(0)));
    }

    /// Fault `number` (from 1) is under way.
    pub fn fault(&self, number: usize, name: &str) {
        self.with(|s| (s.status.fault, s.status.faults, s.status.name) = (number, number, name.to_owned()));
    }

    /// Take the status away: what follows is no progress.
    pub fn finish(&self) {
        self.with(|s| s.terminal.finish());
    }

    /// Look at how it goes, and tell what changed. Cheap enough for every turn of a waiting loop.
    pub fn look(&self, clock: RunClock, watch: &Watch, running: &Running) {
        let now = clock.now();
        self.with(|s| {
            if now.since(s.drawn) < DRAW_EVERY {
                return;
            }
            s.drawn = now;
            let reigns = watch.reigns();
            let newest = reigns.iter().max_by_key(|r| (r.epoch, r.from));
            if let Some(reign) = newest {
                s.status.primary = reign.node.clone();
                if reign.epoch > s.epoch {
                    let before = reigns.iter().filter(|r| r.epoch < reign.epoch).max_by_key(|r| (r.epoch, r.to));
                    let before = before.map(|r| r.node.as_str());
                    s.terminal.event(now, &Event::Primary { node: &reign.node, epoch: reign.epoch, timeline: reign.timeline, before });
                    s.epoch = reign.epoch;
                }
            }
            let progress = running.progress();
            s.status.at = now;
            s.status.acknowledged_per_second = u64::from(progress.per_second);
            s.status.silent = progress.last_acknowledged.map_or(Duration::ZERO, |at| now.since(at));
            s.terminal.status(&s.status);
        });
    }
}
