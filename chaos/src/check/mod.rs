//! Checkers: pure functions from histories to verdicts.
//!
//! | checker | promise | what fails it |
//! |---|---|---|
//! | [`set`] | an acknowledged row is on every node, once | lost, twice, or there although refused or never sent |
//! | [`list_append`] | strict serialisability; strong snapshot isolation | any anomaly that `adya` finds, a value from nowhere |
//! | [`register`] | each key is linearizable | no order explains what was read |
//! | [`bank`] | every snapshot has all the money | another sum |
//! | [`session`] | read your writes, monotonic reads, writes follow reads | an older version than was known |
//! | [`replica`] | what anybody read anywhere is there at the end | a row that was seen and is gone |
//! | [`contract`] | 08006 and 40001: not applied; 08007: unknown | a refused write that was applied; a false acknowledgement |
//! | [`dual_primary`] | one node acknowledges at a time | an older timeline that acknowledges after a newer one |
//! | [`administrator`] | a command takes effect at most once; what is said to be done is | a switchover without a command, a command without one; a change undone |
//! | [`copies`] | equal nodes, sound files | different hashes, histories, pg_amcheck, checksums |
//!
//! Deliberately absent: any look at the cluster, and "passed" where too little was seen.

pub mod administrator;
pub mod bank;
pub mod case;
pub mod contract;
pub mod copies;
pub mod dual_primary;
pub mod list_append;
pub mod orders;
pub mod register;
pub mod replica;
pub mod session;
pub mod set;
mod settings;
pub mod wgl;

#[cfg(test)]
mod made;

use crate::record::{Reign, Verdict};
use crate::workload::final_state::Final;
use crate::workload::history::{Histories, Level};

/// The least that must have been seen of each kind before anything passes.
#[derive(Clone, Copy, Debug)]
pub struct Least {
    pub acknowledged: usize,
    pub reads: usize,
}

impl Least {
    /// Of reads on standbys: their promises are not kept by what a primary shows.
    fn reads_of_standbys(self) -> usize {
        (self.reads / 4).max(1)
    }
}

impl Default for Least {
    /// What some ten seconds of the default rate bring.
    fn default() -> Least {
        Least { acknowledged: 50, reads: 20 }
    }
}

/// Every checker's verdict, in the order of the table above. `reigns`: who was seen in office.
#[must_use]
pub fn all(histories: &Histories, reigns: &[Reign], end: &Final, least: Least) -> Vec<Verdict> {
    let mut verdicts = vec![
        set::check(histories, end, least),
        list_append::check(histories, end, Level::Serializable, least),
        list_append::check(histories, end, Level::RepeatableRead, least),
        register::check(histories, end, least),
        bank::check(histories, end, least),
        session::check(histories, end, least),
        replica::check(histories, end, least),
        contract::check(histories, end, least),
        dual_primary::check(histories, least),
    ];
    // Where nobody gave commands there is nothing to conclude, and no failure to be suspected.
    if !histories.commands.is_empty() {
        verdicts.push(administrator::check(histories, reigns, end));
    }
    verdicts.extend([copies::copies(end), copies::amcheck(end), copies::checksums(end)]);
    verdicts
}
