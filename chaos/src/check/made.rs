//! Hand-made histories for the checkers' own tests.

use super::Least;
use crate::record::{At, Outcome, Verdict};
use crate::workload::final_state::{Final, NodeFinal};
use crate::workload::history::{Add, Attempt, Door, Fate, Origin, Protocol};

/// Enough for histories of a few lines.
pub const LEAST: Least = Least { acknowledged: 1, reads: 1 };

pub fn origin(session: u32, door: Door) -> Origin {
    Origin { site: 0, door, session }
}

pub fn attempt(session: u32, from: u64, to: u64, fate: Fate) -> Attempt {
    let why = (fate != Fate::Done).then(|| if fate == Fate::Refused { "40001" } else { "08007" }.to_owned());
    Attempt { origin: origin(session, Door::Primary), from: At(from), to: At(to), fate, why, timeline: None }
}

pub fn add(id: i64, fate: Fate) -> Add {
    let from = id.unsigned_abs() * 10;
    Add { attempt: attempt(1, from, from + 5, fate), id, protocol: Protocol::Simple }
}

pub fn nodes_with_set(sets: &[&[i64]]) -> Final {
    let nodes = sets.iter().enumerate().map(|(index, set)| NodeFinal {
        name: format!("dc{}", index + 1),
        in_recovery: index > 0,
        timeline: Some(1),
        is_caught_up: true,
        set: set.to_vec(),
        bank: Some((8, 8000)),
        has_checksums: true,
        ..NodeFinal::default()
    });
    Final { nodes: nodes.collect(), ..Final::default() }
}

pub fn assert_passed(verdict: &Verdict) {
    assert_eq!(verdict.outcome, Outcome::Passed, "{verdict:#?}");
}

pub fn assert_inconclusive(verdict: &Verdict, words: &str) {
    assert_eq!(verdict.outcome, Outcome::Inconclusive, "{verdict:#?}");
    assert!(verdict.summary.contains(words), "no {words:?} in {}", verdict.summary);
}

pub fn assert_failed(verdict: &Verdict, words: &str) {
    assert_eq!(verdict.outcome, Outcome::Failed, "{verdict:#?}");
    let all = verdict.witness.join("\n");
    assert!(all.contains(words), "no {words:?} in\n{all}");
}
