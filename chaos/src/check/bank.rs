//! Bank: every snapshot, on every node and by every door, shows all accounts and all the money.

use super::Least;
use super::case::{Case, line};
use crate::record::Verdict;
use crate::workload::final_state::Final;
use crate::workload::history::{Door, Fate, Histories};

/// The sum is constant.
#[must_use]
pub fn check(histories: &Histories, end: &Final, least: Least) -> Verdict {
    let mut case = Case::new("bank");
    let wanted = (i64::from(crate::workload::schema::ACCOUNTS), histories.bank_sum);
    let transfers = histories.transfers.iter().filter(|transfer| transfer.attempt.fate == Fate::Done).count();
    let standby = histories.totals.iter().filter(|total| total.attempt.origin.door == Door::Standby).count();
    case.need("transfers", transfers, least.acknowledged);
    case.need("snapshots", histories.totals.len(), least.reads);
    case.need("snapshots_of_standbys", standby, least.reads_of_standbys());
    for total in histories.totals.iter().filter(|total| (total.accounts, total.sum) != wanted) {
        let what = format!("{} accounts with {}", total.accounts, total.sum);
        case.violate(vec![format!("{what} instead of {} with {}", wanted.0, wanted.1), line(histories, &total.attempt, &what)]);
    }
    for node in &end.nodes {
        match node.bank {
            Some(found) if found != wanted => {
                case.violate(vec![format!("{} ends with {} accounts and {} instead of {}", node.name, found.0, found.1, wanted.1)]);
            }
            Some(_) => {}
            None => case.lack(format!("the accounts on {} were not read at the end", node.name)),
        }
    }
    case.close(format!("{transfers} transfers, {} snapshots ({standby} of standbys), each with {}", histories.totals.len(), wanted.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{LEAST, assert_failed, assert_inconclusive, assert_passed, attempt, nodes_with_set, origin};
    use crate::workload::history::{Attempt, Total, Transfer};

    fn judged(sum: i64, end: &Final) -> Verdict {
        judged_at(Door::Standby, sum, end)
    }

    fn judged_at(door: Door, sum: i64, end: &Final) -> Verdict {
        let transfers = vec![Transfer { attempt: attempt(1, 0, 1, Fate::Done), from_account: 1, to_account: 2, amount: 5 }];
        let totals = vec![
            Total { attempt: attempt(2, 0, 1, Fate::Done), accounts: 8, sum: 8000 },
            Total { attempt: Attempt { origin: origin(3, door), ..attempt(3, 2, 3, Fate::Done) }, accounts: 8, sum },
        ];
        check(&Histories { transfers, totals, bank_sum: 8000, ..Histories::default() }, end, LEAST)
    }

    #[test]
    fn a_constant_sum_passes() {
        assert_passed(&judged(8000, &nodes_with_set(&[&[], &[]])));
    }

    #[test]
    fn without_a_snapshot_of_a_standby_nothing_is_known_of_standbys() {
        for door in [Door::Primary, Door::Auto, Door::Direct] {
            assert_inconclusive(&judged_at(door, 8000, &nodes_with_set(&[&[], &[]])), "0 snapshots_of_standbys, needs 1");
        }
    }

    #[test]
    fn half_a_transfer_in_a_snapshot_fails() {
        assert_failed(&judged(7995, &nodes_with_set(&[&[], &[]])), "8 accounts with 7995");
    }

    #[test]
    fn another_sum_on_one_node_at_the_end_fails() {
        let mut end = nodes_with_set(&[&[], &[]]);
        end.nodes[1].bank = Some((8, 8010));
        assert_failed(&judged(8000, &end), "dc2 ends with");
    }
}
