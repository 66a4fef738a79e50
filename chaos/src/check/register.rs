//! Registers: each key by itself is linearizable, the final read included.

use super::Least;
use super::case::{Case, line};
use super::wgl::{Answer, Kind, Operation, search, shrink};
use crate::record::{At, Verdict};
use crate::workload::final_state::Final;
use crate::workload::history::{Attempt, Fate, Histories, RegisterOp, RegisterStep};
use std::collections::{BTreeMap, HashSet};

/// States visited for one key before the search is given up: some seconds, some ten megabytes.
const BOUND: usize = 200_000;

/// Every key has an order that real time and all answers allow.
#[must_use]
pub fn check(histories: &Histories, end: &Final, least: Least) -> Verdict {
    check_within(histories, end, least, BOUND)
}

fn check_within(histories: &Histories, end: &Final, least: Least, bound: usize) -> Verdict {
    let mut case = Case::new("register");
    let mut keys: BTreeMap<i64, Vec<RegisterStep>> = BTreeMap::new();
    for step in &histories.registers {
        keys.entry(step.key).or_default().push(step.clone());
    }
    let done =
        |wanted: fn(&RegisterOp) -> bool| histories.registers.iter().filter(|s| s.attempt.fate == Fate::Done && wanted(&s.op)).count();
    let writes = done(|op| !matches!(op, RegisterOp::Read { .. }));
    let reads = done(|op| matches!(op, RegisterOp::Read { .. }));
    case.need("written", writes, least.acknowledged);
    case.need("read", reads, least.reads);
    close_with_final_reads(&mut keys, end, &mut case);
    let mut too_long = 0;
    for steps in keys.values() {
        match search(&operations(steps), bound) {
            Answer::Linearizable => {}
            Answer::TooLong => too_long += 1,
            Answer::NotLinearizable => case.violate(witness(histories, steps)),
        }
    }
    case.count("keys", keys.len());
    case.count("keys_too_long", too_long);
    if too_long > 0 {
        case.lack(format!("{too_long} keys have too many operations of unknown end to be searched"));
    }
    case.close(format!("{} keys, {writes} writes, {reads} reads", keys.len()))
}

/// A key that was written to but is absent at the end was read as nothing.
fn close_with_final_reads(keys: &mut BTreeMap<i64, Vec<RegisterStep>>, end: &Final, case: &mut Case) {
    let Some(last) = end.registers.first() else {
        case.lack("the registers were not read at the end");
        return;
    };
    let present: HashSet<i64> = end.registers.iter().map(|step| step.key).collect();
    for step in &end.registers {
        keys.entry(step.key).or_default().push(step.clone());
    }
    for (key, steps) in keys.iter_mut().filter(|(key, _)| !present.contains(key)) {
        steps.push(RegisterStep { attempt: last.attempt.clone(), key: *key, op: RegisterOp::Read { seen: None } });
    }
}

/// What was refused did not happen, and an unknown read says nothing.
fn operations(steps: &[RegisterStep]) -> Vec<Operation> {
    steps.iter().filter_map(operation).collect()
}

fn operation(step: &RegisterStep) -> Option<Operation> {
    let Attempt { from: At(start), to: At(to), fate, .. } = step.attempt;
    let end = match fate {
        Fate::Done => Some(to),
        Fate::Refused => return None,
        Fate::Unknown => None,
    };
    let kind = match step.op {
        RegisterOp::Read { .. } if end.is_none() => return None,
        RegisterOp::Read { seen } => Kind::Read(seen),
        RegisterOp::Write { value } => Kind::Write(value),
        RegisterOp::Cas { expected, value, matched } => Kind::Cas { expected, value, matched: end.map(|_| matched) },
    };
    Some(Operation { start, end, kind })
}

fn witness(histories: &Histories, steps: &[RegisterStep]) -> Vec<String> {
    let part = shrink(&operations(steps), BOUND / 10);
    let key = steps.first().map_or(0, |step| step.key);
    let mut lines = vec![format!("no order of operations explains what was read of register {key}")];
    for operation in part {
        // What was still under way when the violation showed is unknown in the witness; it is found by its start and effect.
        let is_it = |step: &&RegisterStep| {
            step.attempt.from.0 == operation.start && step.attempt.fate != Fate::Refused && same(step.op, operation.kind)
        };
        if let Some(step) = steps.iter().find(is_it) {
            lines.push(line(histories, &step.attempt, &describe(step.op)));
        }
    }
    lines
}

fn same(op: RegisterOp, kind: Kind) -> bool {
    match (op, kind) {
        (RegisterOp::Read { seen }, Kind::Read(other)) => seen == other,
        (RegisterOp::Write { value }, Kind::Write(other)) | (RegisterOp::Cas { value, .. }, Kind::Cas { value: other, .. }) => {
            value == other
        }
        _ => false,
    }
}

fn describe(op: RegisterOp) -> String {
    match op {
        RegisterOp::Read { seen: Some(value) } => format!("read {value}"),
        RegisterOp::Read { seen: None } => "read nothing".to_owned(),
        RegisterOp::Write { value } => format!("write {value}"),
        RegisterOp::Cas { expected, value, matched } => {
            format!("compare {expected} and set {value}: {}", if matched { "matched" } else { "no match" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, assert_failed, assert_passed, attempt};
    use crate::record::Outcome;

    fn step(from: u64, fate: Fate, op: RegisterOp) -> RegisterStep {
        RegisterStep { attempt: attempt(1, from, from + 5, fate), key: 7, op }
    }

    fn judged(registers: Vec<RegisterStep>, last: Option<i64>) -> Verdict {
        let end = Final { registers: vec![step(10_000, Fate::Done, RegisterOp::Read { seen: last })], ..Final::default() };
        check(&Histories { registers, ..Histories::default() }, &end, LEAST)
    }

    fn read(seen: i64) -> RegisterOp {
        RegisterOp::Read { seen: Some(seen) }
    }

    fn write(value: i64) -> RegisterOp {
        RegisterOp::Write { value }
    }

    #[test]
    fn an_ordinary_history_passes() {
        let steps = vec![
            step(0, Fate::Done, RegisterOp::Read { seen: None }),
            step(10, Fate::Done, write(1)),
            step(20, Fate::Unknown, write(2)),
            step(30, Fate::Refused, write(3)),
            step(40, Fate::Done, read(1)),
            step(50, Fate::Done, RegisterOp::Cas { expected: 1, value: 4, matched: true }),
            step(60, Fate::Done, read(4)),
        ];
        assert_passed(&judged(steps.clone(), Some(4)));
        assert_passed(&judged(steps, Some(2)));
    }

    #[test]
    fn a_write_lost_in_the_end_fails() {
        let steps = vec![step(0, Fate::Done, write(1)), step(10, Fate::Done, read(1)), step(20, Fate::Done, write(2))];
        assert_failed(&judged(steps, Some(1)), "write 2");
    }

    #[test]
    fn a_key_lost_in_the_end_fails() {
        let histories = Histories { registers: vec![step(0, Fate::Done, write(1)), step(10, Fate::Done, read(1))], ..Histories::default() };
        let other = RegisterStep { attempt: attempt(9, 9_000, 9_001, Fate::Done), key: 8, op: RegisterOp::Read { seen: None } };
        let end = Final { registers: vec![other], ..Final::default() };
        assert_failed(&check(&histories, &end, LEAST), "read nothing");
    }

    #[test]
    fn a_refused_write_that_is_read_fails() {
        let steps = vec![step(0, Fate::Done, write(1)), step(10, Fate::Refused, write(2)), step(20, Fate::Done, read(2))];
        assert_failed(&judged(steps, Some(1)), "read 2");
    }

    #[test]
    fn a_write_applied_twice_fails() {
        let steps = vec![
            step(0, Fate::Done, write(1)),
            step(10, Fate::Done, write(2)),
            step(20, Fate::Done, read(2)),
            step(30, Fate::Done, read(1)),
        ];
        assert_failed(&judged(steps, Some(1)), "read 1");
    }

    #[test]
    fn what_is_too_long_is_inconclusive() {
        let mut steps: Vec<RegisterStep> = (0..40).map(|n| step(1, Fate::Unknown, write(n))).collect();
        let failed = RegisterOp::Cas { expected: 99, value: 97, matched: false };
        steps.extend([step(100, Fate::Done, write(99)), step(120, Fate::Done, read(98)), step(130, Fate::Done, failed)]);
        let end = Final { registers: vec![step(10_000, Fate::Done, read(99))], ..Final::default() };
        let verdict = check_within(&Histories { registers: steps, ..Histories::default() }, &end, LEAST, 500);
        assert_eq!(verdict.outcome, Outcome::Inconclusive, "{verdict:#?}");
    }
}
