//! Session guarantees: read your writes, monotonic reads, writes follow reads; and no version from nowhere or from a refused write.
//!
//! A session is one connection. Before its first write the proxy may serve its reads from any standby; steps back in that time are
//! counted and not failed (the promise of consistency `session` is about what the session did). Afterwards none is allowed.

use super::Least;
use super::case::{Case, line};
use crate::record::Verdict;
use crate::workload::final_state::Final;
use crate::workload::history::{Attempt, Fate, Histories, VersionOp, VersionRow, VersionStep};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Every read is at least as new as what its session knew, and holds the causes of what it shows.
#[must_use]
pub fn check(histories: &Histories, end: &Final, least: Least) -> Verdict {
    let mut case = Case::new("session");
    let sent = Sent::of(&histories.versions);
    let mut sessions: BTreeMap<u32, Vec<&VersionStep>> = BTreeMap::new();
    for step in &histories.versions {
        sessions.entry(step.attempt.origin.session).or_default().push(step);
    }
    let mut before_writes = 0;
    let mut reads = 0;
    for steps in sessions.values_mut() {
        steps.sort_by_key(|step| step.attempt.from);
        reads += steps.iter().filter(|step| matches!(step.op, VersionOp::Read(_))).count();
        before_writes += walk(histories, steps, &mut case);
    }
    for step in histories.versions.iter().chain(&end.versions) {
        if let VersionOp::Read(rows) = &step.op {
            look(histories, &step.attempt, rows, &sent, &mut case);
        }
    }
    final_rows(histories, end, &sent, &mut case);
    case.need("written", sent.done.len(), least.acknowledged);
    case.need("read", reads, least.reads);
    case.count("sessions", sessions.len());
    case.count("steps_back_before_first_write", before_writes);
    case.close(format!("{} sessions, {} writes, {reads} reads", sessions.len(), sent.done.len()))
}

#[derive(Default)]
struct Sent {
    all: HashSet<(i32, i64)>,
    refused: HashSet<(i32, i64)>,
    done: HashSet<(i32, i64)>,
}

impl Sent {
    fn of(steps: &[VersionStep]) -> Sent {
        let mut sent = Sent::default();
        for step in steps {
            let VersionOp::Write(row) = step.op else { continue };
            let key = (row.row, row.version);
            sent.all.insert(key);
            match step.attempt.fate {
                Fate::Done => sent.done.insert(key),
                Fate::Refused => sent.refused.insert(key),
                Fate::Unknown => false,
            };
        }
        sent
    }
}

/// What a session knows of a row, and how it came to know.
#[derive(Clone)]
struct Known {
    version: i64,
    by: String,
    is_own: bool,
}

/// One session in its order. Returns the steps back before its first write.
fn walk(histories: &Histories, steps: &[&VersionStep], case: &mut Case) -> usize {
    let mut known: HashMap<i32, Known> = HashMap::new();
    let mut has_written = false;
    let mut forgiven = 0;
    for step in steps {
        match &step.op {
            VersionOp::Write(row) => {
                has_written = true;
                if step.attempt.fate == Fate::Done {
                    let by = line(histories, &step.attempt, &format!("write version {} of row {}", row.version, row.row));
                    known.insert(row.row, Known { version: row.version, by, is_own: true });
                }
            }
            VersionOp::Read(rows) => {
                let found: HashMap<i32, i64> = rows.iter().map(|row| (row.row, row.version)).collect();
                for (row, before) in &known {
                    let now = found.get(row).copied().unwrap_or(0);
                    if now >= before.version {
                        continue;
                    }
                    if !has_written {
                        forgiven += 1;
                        continue;
                    }
                    let name = if before.is_own { "read your writes" } else { "monotonic reads" };
                    let first = format!("{name}: row {row} was known at version {} and read at {now}", before.version);
                    case.violate(vec![
                        first,
                        before.by.clone(),
                        line(histories, &step.attempt, &format!("read version {now} of row {row}")),
                    ]);
                }
                for (row, version) in found {
                    if known.get(&row).is_none_or(|before| version > before.version) {
                        let by = line(histories, &step.attempt, &format!("read version {version} of row {row}"));
                        known.insert(row, Known { version, by, is_own: false });
                    }
                }
            }
        }
    }
    forgiven
}

/// One snapshot: it holds the causes of what it shows, and nothing that was refused or never sent.
fn look(histories: &Histories, attempt: &Attempt, rows: &[VersionRow], sent: &Sent, case: &mut Case) {
    for row in rows {
        let what = || line(histories, attempt, &format!("read {row:?}"));
        let key = (row.row, row.version);
        if !sent.all.contains(&key) {
            case.violate(vec![format!("version {} of row {} was written by nobody", row.version, row.row), what()]);
        } else if sent.refused.contains(&key) {
            case.violate(vec![format!("version {} of row {} was refused and is there", row.version, row.row), what()]);
        }
        if row.saw_row == 0 {
            continue;
        }
        let cause = rows.iter().find(|other| other.row == row.saw_row).map_or(0, |other| other.version);
        if cause < row.saw_version {
            let first = format!(
                "writes follow reads: version {} of row {} was written after version {} of row {} was read, which is at {cause}",
                row.version, row.row, row.saw_version, row.saw_row
            );
            case.violate(vec![first, what()]);
        }
    }
}

fn final_rows(histories: &Histories, end: &Final, sent: &Sent, case: &mut Case) {
    let Some(VersionStep { attempt, op: VersionOp::Read(rows) }) = end.versions.last() else {
        case.lack("the version rows were not read at the end");
        return;
    };
    let found: HashMap<i32, i64> = rows.iter().map(|row| (row.row, row.version)).collect();
    for (row, version) in &sent.done {
        let now = found.get(row).copied().unwrap_or(0);
        if now < *version {
            let first = format!("version {version} of row {row} was acknowledged and the row ends at {now}");
            case.violate(vec![first, line(histories, attempt, &format!("read version {now} of row {row}"))]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, assert_failed, assert_passed, attempt};

    fn row(row: i32, version: i64) -> VersionRow {
        VersionRow { row, version, saw_row: 0, saw_version: 0 }
    }

    fn write(session: u32, from: u64, fate: Fate, row: VersionRow) -> VersionStep {
        VersionStep { attempt: attempt(session, from, from + 5, fate), op: VersionOp::Write(row) }
    }

    fn read(session: u32, from: u64, rows: &[VersionRow]) -> VersionStep {
        VersionStep { attempt: attempt(session, from, from + 5, Fate::Done), op: VersionOp::Read(rows.to_vec()) }
    }

    fn judged(versions: Vec<VersionStep>, last: &[VersionRow]) -> Verdict {
        let end = Final { versions: vec![read(99, 10_000, last)], ..Final::default() };
        check(&Histories { versions, ..Histories::default() }, &end, LEAST)
    }

    #[test]
    fn an_ordinary_history_passes() {
        let after = VersionRow { row: 2, version: 1, saw_row: 1, saw_version: 1 };
        let steps = vec![
            write(1, 0, Fate::Done, row(1, 1)),
            read(2, 10, &[row(1, 1)]),
            write(2, 20, Fate::Done, after),
            write(1, 30, Fate::Unknown, row(1, 2)),
            read(2, 40, &[row(1, 1), after]),
            read(2, 50, &[row(1, 2), after]),
        ];
        assert_passed(&judged(steps, &[row(1, 2), after]));
    }

    #[test]
    fn ones_own_write_unread_fails() {
        let steps = vec![write(1, 0, Fate::Done, row(1, 1)), write(1, 10, Fate::Done, row(1, 2)), read(1, 20, &[row(1, 1)])];
        assert_failed(&judged(steps, &[row(1, 2)]), "read your writes");
    }

    #[test]
    fn a_step_back_fails_after_a_write_and_counts_before_it() {
        let others = [write(1, 0, Fate::Done, row(1, 1)), write(1, 10, Fate::Done, row(1, 2))];
        let back = [read(2, 20, &[row(1, 2)]), read(2, 30, &[row(1, 1)])];
        let verdict = judged([&others[..], &back[..]].concat(), &[row(1, 2)]);
        assert_passed(&verdict);
        assert_eq!(verdict.counts["steps_back_before_first_write"], 1);
        let wrote = [write(2, 5, Fate::Done, row(2, 1))];
        let rows = |version| [row(1, version), row(2, 1)];
        let back = [read(2, 20, &rows(2)), read(2, 30, &rows(1))];
        assert_failed(&judged([&others[..], &wrote[..], &back[..]].concat(), &rows(2)), "monotonic reads");
    }

    #[test]
    fn an_effect_without_its_cause_fails() {
        let after = VersionRow { row: 2, version: 1, saw_row: 1, saw_version: 2 };
        let steps = vec![
            write(1, 0, Fate::Done, row(1, 1)),
            write(1, 5, Fate::Done, row(1, 2)),
            write(2, 20, Fate::Done, after),
            read(3, 30, &[row(1, 1), after]),
        ];
        assert_failed(&judged(steps, &[row(1, 2), after]), "writes follow reads");
    }

    #[test]
    fn a_refused_version_and_one_from_nowhere_fail() {
        let refused = vec![write(1, 0, Fate::Done, row(1, 1)), write(1, 5, Fate::Refused, row(1, 2)), read(3, 30, &[row(1, 2)])];
        assert_failed(&judged(refused, &[row(1, 1)]), "refused and is there");
        let nowhere = vec![write(1, 0, Fate::Done, row(1, 1)), read(3, 30, &[row(1, 5)])];
        assert_failed(&judged(nowhere, &[row(1, 1)]), "written by nobody");
    }

    #[test]
    fn a_write_lost_in_the_end_fails() {
        let steps = vec![write(1, 0, Fate::Done, row(1, 1)), write(1, 5, Fate::Done, row(1, 2)), read(3, 30, &[row(1, 2)])];
        assert_failed(&judged(steps, &[row(1, 1)]), "ends at 1");
    }
}
