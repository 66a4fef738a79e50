//! List-append: `adya` looks for a cycle of dependencies that the isolation level and real time forbid.
//!
//! Final reads of all lists close the history: without them an append that was acknowledged and lost is seen by nobody. What `adya`
//! leaves aside, a value that nobody appended, is looked for here.

use super::Least;
use super::case::{Case, line};
use crate::record::{At, Verdict};
use crate::workload::final_state::Final;
use crate::workload::history::{Fate, Histories, Level, Step, Txn};
use adya::history::{History, Interner, Mop, Op, OpType, ReadValue, Scalar};
use adya::{Opts, Report, Valid, Workload};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// For each knot of transactions; beyond it the search is inconclusive.
const SEARCH: Duration = Duration::from_secs(20);

/// SERIALIZABLE transactions are strictly serialisable, REPEATABLE READ ones strong snapshot isolation (PostgreSQL's snapshots are
/// taken on the one primary, after everything acknowledged before).
#[must_use]
pub fn check(histories: &Histories, end: &Final, level: Level, least: Least) -> Verdict {
    let (name, model) = match level {
        Level::Serializable => ("list-append serializable", "strict-serializable"),
        Level::RepeatableRead => ("list-append repeatable-read", "strong-snapshot-isolation"),
    };
    let mut case = Case::new(name);
    let mut last: Vec<Txn> = end.txns.iter().filter(|txn| txn.level == level).cloned().collect();
    let mut txns: Vec<&Txn> = histories.txns.iter().filter(|txn| txn.level == level).collect();
    last.iter_mut().for_each(|read| read_absent_keys(read, &txns));
    txns.extend(&last);
    let told = |fate: Fate| txns.iter().filter(|txn| txn.attempt.fate == fate).count();
    let (done, refused, unknown) = (told(Fate::Done), told(Fate::Refused), told(Fate::Unknown));
    case.need("committed", done, least.acknowledged);
    case.count("refused", refused);
    case.count("unknown", unknown);
    if !last.iter().any(|txn| txn.attempt.fate == Fate::Done) {
        case.lack("the lists were not read at the end");
    }
    strangers(histories, &txns, &mut case);
    let history = to_adya(&txns);
    let report = adya::check(&history, Workload::ListAppend, &Opts { models: vec![model.to_owned()], timeout: SEARCH, ..Opts::default() });
    judge(&report, &mut case);
    case.close(format!("{done} transactions committed, {refused} refused, {unknown} unknown: {model}"))
}

/// A final read of a whole table also says which keys are not there: they were read as empty.
fn read_absent_keys(read: &mut Txn, txns: &[&Txn]) {
    let key_of = |step: &Step| match step {
        Step::Append { key, .. } | Step::Read { key, .. } => *key,
    };
    let present: HashSet<i64> = read.steps.iter().map(key_of).collect();
    let used: BTreeSet<i64> = txns.iter().flat_map(|txn| &txn.steps).map(key_of).collect();
    let absent = used.into_iter().filter(|key| !present.contains(key));
    read.steps.extend(absent.map(|key| Step::Read { key, list: Some(Vec::new()) }));
}

fn judge(report: &Report, case: &mut Case) {
    match report.valid {
        Valid::True => {}
        Valid::Unknown => case.lack(format!("the search for cycles did not end: {}", report.anomaly_types.join(", "))),
        Valid::False => {
            for anomaly in report.anomalies.values().flatten() {
                let mut lines = vec![format!("{}: not {}", anomaly.kind, report.not.join(", "))];
                lines.extend(anomaly.explanation.lines().map(str::to_owned));
                case.violate(lines);
            }
        }
    }
}

/// Values that were read and never appended.
fn strangers(histories: &Histories, txns: &[&Txn], case: &mut Case) {
    let steps = txns.iter().flat_map(|txn| &txn.steps);
    let sent: HashSet<(i64, i64)> =
        steps.filter_map(|step| if let Step::Append { key, value } = step { Some((*key, *value)) } else { None }).collect();
    for txn in txns.iter().filter(|txn| txn.attempt.fate == Fate::Done) {
        for step in &txn.steps {
            let Step::Read { key, list: Some(list) } = step else { continue };
            if let Some(value) = list.iter().find(|value| !sent.contains(&(*key, **value))) {
                let what = format!("read of {key} → {list:?}");
                case.violate(vec![format!("value {value} of key {key} was appended by nobody"), line(histories, &txn.attempt, &what)]);
            }
        }
    }
}

/// Puts invocations and completions in the order of time. At the same instant invocations come first: what is not surely ordered
/// counts as concurrent.
fn to_adya(txns: &[&Txn]) -> History {
    let mut names = Interner::default();
    let mut events: Vec<(At, bool, Op)> = Vec::with_capacity(txns.len() * 2);
    let mut ended: HashMap<u32, At> = HashMap::new();
    let mut sorted = txns.to_vec();
    sorted.sort_by_key(|txn| txn.attempt.from);
    for txn in sorted {
        let session = txn.attempt.origin.session;
        // Transactions of one session never overlap, not even by the clock's grain.
        let from = ended.get(&session).map_or(txn.attempt.from, |last| txn.attempt.from.max(At(last.0 + 1)));
        let to = txn.attempt.to.max(from);
        ended.insert(session, to);
        let kind = match txn.attempt.fate {
            Fate::Done => OpType::Ok,
            Fate::Refused => OpType::Fail,
            Fate::Unknown => OpType::Info,
        };
        for (at, kind) in [(from, OpType::Invoke), (to, kind)] {
            // Only what committed has surely read something.
            let value = txn.steps.iter().map(|step| to_mop(step, kind == OpType::Ok, &mut names)).collect();
            let time = i64::try_from(at.0 * 1000).ok();
            events.push((at, kind != OpType::Invoke, Op { index: 0, kind, process: Some(i64::from(session)), value, time }));
        }
    }
    events.sort_by_key(|(at, is_completion, _)| (*at, *is_completion));
    let numbered = events.into_iter().zip(0..).map(|((_, _, op), index)| Op { index, ..op });
    History::from_ops(numbered.collect(), names)
}

fn to_mop(step: &Step, with_reads: bool, names: &mut Interner) -> Mop {
    match step {
        Step::Append { key, value } => Mop::Append { key: names.intern(Scalar::Int(*key)), value: names.intern(Scalar::Int(*value)) },
        Step::Read { key, list } => {
            let key = names.intern(Scalar::Int(*key));
            let value = match list {
                Some(list) if with_reads => ReadValue::List(list.iter().map(|value| names.intern(Scalar::Int(*value))).collect()),
                _ => ReadValue::Nil,
            };
            Mop::Read { key, value }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, assert_failed, assert_passed, attempt};
    use crate::record::Outcome;

    fn append(key: i64, value: i64) -> Step {
        Step::Append { key, value }
    }

    fn read(key: i64, list: &[i64]) -> Step {
        Step::Read { key, list: Some(list.to_vec()) }
    }

    fn txn(session: u32, from: u64, fate: Fate, steps: Vec<Step>) -> Txn {
        Txn { attempt: attempt(session, from, from + 50, fate), level: Level::Serializable, steps }
    }

    fn judged_at(level: Level, txns: Vec<Txn>, last: Vec<Step>) -> Verdict {
        let at = |txn: Txn| Txn { level, ..txn };
        let histories = Histories { txns: txns.into_iter().map(at).collect(), ..Histories::default() };
        let end = Final { txns: vec![at(txn(99, 10_000, Fate::Done, last))], ..Final::default() };
        check(&histories, &end, level, LEAST)
    }

    fn judged(txns: Vec<Txn>, last: Vec<Step>) -> Verdict {
        judged_at(Level::Serializable, txns, last)
    }

    #[test]
    fn a_serial_history_passes_with_unknowns_on_either_side() {
        let txns = vec![
            txn(1, 0, Fate::Done, vec![append(1, 10)]),
            txn(2, 100, Fate::Unknown, vec![append(1, 11)]),
            txn(3, 200, Fate::Done, vec![read(1, &[10]), append(2, 20)]),
            txn(4, 300, Fate::Unknown, vec![append(2, 21)]),
            txn(5, 400, Fate::Refused, vec![append(2, 22), Step::Read { key: 1, list: None }]),
        ];
        for level in [Level::Serializable, Level::RepeatableRead] {
            assert_passed(&judged_at(level, txns.clone(), vec![read(1, &[10, 11]), read(2, &[20])]));
        }
    }

    #[test]
    fn a_lost_append_fails_at_both_levels() {
        let txns = vec![txn(1, 0, Fate::Done, vec![append(1, 10)]), txn(2, 100, Fate::Done, vec![append(1, 11)])];
        for level in [Level::Serializable, Level::RepeatableRead] {
            assert_failed(&judged_at(level, txns.clone(), vec![read(1, &[10])]), "realtime");
        }
        // All of a key's appends lost.
        assert_failed(&judged(vec![txn(1, 0, Fate::Done, vec![append(1, 10)])], vec![read(1, &[])]), "realtime");
    }

    #[test]
    fn a_lost_key_fails_too() {
        // The final read shows only lists that are there.
        let txns = vec![txn(1, 0, Fate::Done, vec![append(1, 10)]), txn(1, 100, Fate::Done, vec![append(2, 20)])];
        assert_failed(&judged(txns, vec![read(2, &[20])]), "10");
    }

    #[test]
    fn a_stale_read_fails() {
        let txns = vec![txn(1, 0, Fate::Done, vec![append(1, 10)]), txn(2, 100, Fate::Done, vec![read(1, &[])])];
        assert_failed(&judged(txns, vec![read(1, &[10])]), "realtime");
    }

    #[test]
    fn an_aborted_read_fails() {
        let txns = vec![txn(1, 0, Fate::Refused, vec![append(1, 10)]), txn(2, 100, Fate::Done, vec![read(1, &[10])])];
        assert_failed(&judged(txns, vec![read(1, &[10])]), "G1a");
    }

    #[test]
    fn a_dirty_read_fails() {
        // An intermediate state of another transaction.
        let txns =
            vec![txn(1, 0, Fate::Done, vec![append(1, 10), append(1, 11)]), txn(2, 10, Fate::Done, vec![read(1, &[10]), append(2, 20)])];
        assert_failed(&judged(txns, vec![read(1, &[10, 11]), read(2, &[20])]), "G1b");
    }

    #[test]
    fn a_duplicate_fails() {
        let txns = vec![txn(1, 0, Fate::Done, vec![append(1, 10)])];
        assert_failed(&judged(txns, vec![read(1, &[10, 10])]), "duplicate");
    }

    #[test]
    fn two_histories_of_a_split_brain_fail() {
        let txns =
            vec![txn(1, 0, Fate::Done, vec![append(1, 10), read(1, &[10])]), txn(2, 10, Fate::Done, vec![append(1, 11), read(1, &[11])])];
        assert_failed(&judged(txns, vec![read(1, &[10])]), "incompatible-order");
    }

    #[test]
    fn write_skew_fails_where_serializable_was_asked_for_and_only_there() {
        let txns =
            vec![txn(1, 0, Fate::Done, vec![read(1, &[]), append(2, 20)]), txn(2, 10, Fate::Done, vec![read(2, &[]), append(1, 10)])];
        let last = vec![read(1, &[10]), read(2, &[20])];
        assert_failed(&judged(txns.clone(), last.clone()), "G2-item");
        assert_passed(&judged_at(Level::RepeatableRead, txns, last));
    }

    #[test]
    fn a_value_from_nowhere_fails() {
        assert_failed(&judged(vec![txn(1, 0, Fate::Done, vec![append(1, 10)])], vec![read(1, &[10, 66])]), "appended by nobody");
    }

    #[test]
    fn without_final_reads_nothing_is_concluded() {
        let histories = Histories { txns: vec![txn(1, 0, Fate::Done, vec![append(1, 10), read(1, &[10])])], ..Histories::default() };
        let verdict = check(&histories, &Final::default(), Level::Serializable, LEAST);
        assert_eq!(verdict.outcome, Outcome::Inconclusive, "{verdict:#?}");
    }
}
