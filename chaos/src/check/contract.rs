//! The failure contract: what the proxy calls "not applied" was not; a commit whose wait for standbys was cancelled is no success;
//! and no answer that makes pool libraries throw connections away (0A000).

use super::Least;
use super::case::{Case, line};
use crate::record::Verdict;
use crate::workload::final_state::Final;
use crate::workload::history::{Attempt, Door, Fate, Histories, RegisterOp, Step};
use std::collections::{BTreeMap, HashSet};

/// Every refusal is true. Without a single refusal or unknown outcome there is nothing to conclude.
#[must_use]
pub fn check(histories: &Histories, end: &Final, _: Least) -> Verdict {
    let mut case = Case::new("contract");
    let mut codes: BTreeMap<&str, usize> = BTreeMap::new();
    for attempt in histories.writes() {
        let Some(why) = attempt.why.as_deref() else { continue };
        *codes.entry(why).or_default() += 1;
        if attempt.origin.door == Door::Direct {
            continue;
        }
        if why == "warned" {
            let first = "the proxy passed on as success a commit whose wait for standbys was cancelled".to_owned();
            case.violate(vec![first, line(histories, attempt, "write")]);
        }
        if why == "0A000" {
            case.violate(vec!["0A000 through the proxy: pools evict on it".to_owned(), line(histories, attempt, "write")]);
        }
    }
    let shown = evidence(histories, end);
    let mut refused = 0;
    for (attempt, what, is_there) in claims(histories, &shown) {
        if attempt.fate == Fate::Refused {
            refused += 1;
            if is_there {
                let code = attempt.why.as_deref().unwrap_or("?");
                case.violate(vec![format!("{what}: refused with {code} and applied"), line(histories, attempt, &what)]);
            }
        }
    }
    let unknown = histories.writes().filter(|attempt| attempt.fate == Fate::Unknown).count();
    case.need("refused_or_unknown", refused + unknown, 1);
    case.count("refused", refused);
    case.count("unknown", unknown);
    for (code, count) in &codes {
        case.count(&format!("code_{code}"), *count);
    }
    let words: Vec<String> = codes.iter().map(|(code, count)| format!("{count} {code}")).collect();
    case.close(format!("{refused} refused and {unknown} unknown writes looked for ({})", words.join(", ")))
}

/// Everything that anybody saw, at any time.
struct Evidence {
    ids: HashSet<i64>,
    appended: HashSet<(i64, i64)>,
    registered: HashSet<i64>,
}

fn evidence(histories: &Histories, end: &Final) -> Evidence {
    let glimpsed = histories.glimpses.iter().flat_map(|glimpse| &glimpse.ids);
    let ids = end.nodes.iter().flat_map(|node| &node.set).chain(glimpsed).copied().collect();
    let mut appended = HashSet::new();
    for txn in histories.txns.iter().chain(&end.txns).filter(|txn| txn.attempt.fate == Fate::Done) {
        for step in &txn.steps {
            if let Step::Read { key, list: Some(list) } = step {
                appended.extend(list.iter().map(|value| (*key, *value)));
            }
        }
    }
    let mut registered = HashSet::new();
    for step in histories.registers.iter().chain(&end.registers).filter(|step| step.attempt.fate == Fate::Done) {
        match step.op {
            RegisterOp::Read { seen: Some(value) } | RegisterOp::Cas { expected: value, matched: true, .. } => registered.insert(value),
            _ => false,
        };
    }
    Evidence { ids, appended, registered }
}

/// Each write that can be recognised, with whether it was seen.
fn claims<'h>(histories: &'h Histories, shown: &'h Evidence) -> impl Iterator<Item = (&'h Attempt, String, bool)> {
    let adds = histories.adds.iter().map(|add| (&add.attempt, format!("add {}", add.id), shown.ids.contains(&add.id)));
    let txns = histories.txns.iter().flat_map(move |txn| {
        txn.steps.iter().filter_map(move |step| match step {
            // A transaction's own reads are not counted among the evidence unless it committed.
            Step::Append { key, value } => {
                Some((&txn.attempt, format!("append {value} to {key}"), shown.appended.contains(&(*key, *value))))
            }
            Step::Read { .. } => None,
        })
    });
    let registers = histories.registers.iter().filter_map(move |step| match step.op {
        RegisterOp::Write { value } | RegisterOp::Cas { value, .. } => {
            Some((&step.attempt, format!("write {value} to register {}", step.key), shown.registered.contains(&value)))
        }
        RegisterOp::Read { .. } => None,
    });
    adds.chain(txns).chain(registers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, add, assert_failed, assert_passed, attempt, nodes_with_set};
    use crate::record::Outcome;
    use crate::workload::history::{Add, Level, RegisterStep, Txn};

    fn with(fate: Fate, why: &str, door: Door) -> Add {
        let mut add = add(7, fate);
        add.attempt.why = Some(why.to_owned());
        add.attempt.origin.door = door;
        add
    }

    fn judged(adds: Vec<Add>, set: &[i64]) -> Verdict {
        check(&Histories { adds, ..Histories::default() }, &nodes_with_set(&[&[], set]), LEAST)
    }

    #[test]
    fn true_refusals_and_unknowns_either_way_pass() {
        let adds = vec![add(1, Fate::Refused), add(2, Fate::Unknown), add(3, Fate::Unknown), add(4, Fate::Done)];
        let verdict = judged(adds, &[3, 4]);
        assert_passed(&verdict);
        assert_eq!(verdict.counts["code_08007"], 2);
    }

    #[test]
    fn refused_but_applied_fails() {
        for code in ["08006", "40001"] {
            assert_failed(&judged(vec![with(Fate::Refused, code, Door::Auto)], &[7]), &format!("refused with {code} and applied"));
        }
    }

    #[test]
    fn a_refused_append_and_a_refused_register_write_that_were_read_fail() {
        let steps = vec![Step::Append { key: 1, value: 10 }];
        let refused = Txn { attempt: attempt(1, 0, 5, Fate::Refused), level: Level::Serializable, steps };
        let steps = vec![Step::Read { key: 1, list: Some(vec![10]) }];
        let read = Txn { attempt: attempt(2, 10, 15, Fate::Done), level: Level::Serializable, steps };
        let histories = Histories { txns: vec![refused, read], ..Histories::default() };
        assert_failed(&check(&histories, &Final::default(), LEAST), "append 10 to 1");
        let registers = vec![
            RegisterStep { attempt: attempt(1, 0, 5, Fate::Refused), key: 1, op: RegisterOp::Write { value: 5 } },
            RegisterStep { attempt: attempt(2, 10, 15, Fate::Done), key: 1, op: RegisterOp::Read { seen: Some(5) } },
        ];
        assert_failed(&check(&Histories { registers, ..Histories::default() }, &Final::default(), LEAST), "write 5 to register 1");
    }

    #[test]
    fn a_cancelled_wait_passed_on_as_success_fails_only_through_the_proxy() {
        assert_failed(&judged(vec![with(Fate::Unknown, "warned", Door::Primary)], &[]), "was cancelled");
        assert_passed(&judged(vec![with(Fate::Unknown, "warned", Door::Direct)], &[]));
    }

    #[test]
    fn the_code_that_pools_evict_on_fails() {
        assert_failed(&judged(vec![with(Fate::Unknown, "0A000", Door::Auto)], &[]), "0A000");
    }

    #[test]
    fn without_any_error_nothing_is_concluded() {
        assert_eq!(judged(vec![add(1, Fate::Done)], &[1]).outcome, Outcome::Inconclusive);
    }
}
