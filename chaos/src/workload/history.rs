//! Histories: what clients asked, when, and what they were told. Plain data, the only thing that checkers look at.
//!
//! All instants are the run's ([`At`]). An operation that nobody answered has fate [`Fate::Unknown`]: its `to` is when the client gave
//! up, not when it ended; it may take effect at any later time.

use crate::record::{At, Outage, Sample};
use serde::{Deserialize, Serialize};

/// What a client may conclude about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fate {
    /// Acknowledged.
    Done,
    /// Certainly not applied.
    Refused,
    /// Perhaps applied, perhaps later.
    Unknown,
}

/// Which of a site's listeners a session came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Door {
    /// Proxy, reads and writes split.
    Auto,
    /// Proxy, always the primary.
    Primary,
    /// Proxy, a standby.
    Standby,
    /// PostgreSQL itself.
    Direct,
}

/// Who asked. Sites are numbered as in [`Histories::sites`]; a session number is one connection and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub site: u8,
    pub door: Door,
    pub session: u32,
}

/// One operation from its start to its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub origin: Origin,
    pub from: At,
    pub to: At,
    pub fate: Fate,
    /// Unless done: SQLSTATE, or `timeout`, `lost` (connection), `connect`, `warned` (a cancelled wait for standbys, told in a warning).
    pub why: Option<String>,
    /// Timeline of the server that ran it, where the statement returned it.
    pub timeline: Option<u32>,
}

/// How a statement travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Simple,
    /// Extended, unnamed statement, everything in one flight.
    Unnamed,
    /// Extended, a named statement prepared once per session.
    Named,
}

/// One row added to the set; ids are unique in a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Add {
    pub attempt: Attempt,
    pub id: i64,
    pub protocol: Protocol,
}

/// Isolation of a list-append transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    Serializable,
    RepeatableRead,
}

/// One step of a list-append transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Append {
        key: i64,
        value: i64,
    },
    /// `None`: the transaction did not get that far.
    Read {
        key: i64,
        list: Option<Vec<i64>>,
    },
}

/// A list-append transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Txn {
    pub attempt: Attempt,
    pub level: Level,
    pub steps: Vec<Step>,
}

/// What was done to a register. Written values are unique in a run; an absent register reads as `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterOp {
    Read {
        seen: Option<i64>,
    },
    Write {
        value: i64,
    },
    /// `matched`: whether a row was changed, when done.
    Cas {
        expected: i64,
        value: i64,
        matched: bool,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterStep {
    pub attempt: Attempt,
    pub key: i64,
    pub op: RegisterOp,
}

/// Money moved from one account to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfer {
    pub attempt: Attempt,
    pub from_account: i32,
    pub to_account: i32,
    pub amount: i64,
}

/// All accounts in one snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Total {
    pub attempt: Attempt,
    pub accounts: i64,
    pub sum: i64,
}

/// A session's row: its version, and the newest version of another row its writer had read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    pub row: i32,
    pub version: i64,
    pub saw_row: i32,
    pub saw_version: i64,
}

/// What a session did with version rows, in its order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum VersionOp {
    Write(VersionRow),
    Read(Vec<VersionRow>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionStep {
    pub attempt: Attempt,
    pub op: VersionOp,
}

/// Rows of the set that somebody saw, each reader naming a row once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Glimpse {
    pub origin: Origin,
    pub at: At,
    /// The node's name when read without a proxy.
    pub node: Option<String>,
    /// It was read on a server in recovery.
    #[serde(default)]
    pub standby: bool,
    pub ids: Vec<i64>,
}

/// How a watcher's beat was to be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Confirm {
    /// By the cluster's rule.
    Rule,
    /// By the node alone (`synchronous_commit = local`): what it acknowledges is allowed to be lost.
    Alone,
}

/// A write made on one node without a proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Beat {
    pub attempt: Attempt,
    pub node: String,
    pub confirm: Confirm,
}

/// What a node said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleSeen {
    pub node: String,
    pub at: At,
    /// `None`: it is in recovery.
    pub writable_timeline: Option<u32>,
}

/// An administrator's command and how it exited (docs: 0 done, 1 failed, 2 usage, 3 refused, 4 no quorum, 5 unknown).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    pub words: Vec<String>,
    pub from: At,
    pub to: At,
    /// `None`: it did not end by itself.
    pub exit: Option<i32>,
    /// The end of what it printed.
    pub said: String,
}

/// Everything the clients of a run kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Histories {
    pub sites: Vec<String>,
    pub adds: Vec<Add>,
    pub txns: Vec<Txn>,
    pub registers: Vec<RegisterStep>,
    pub transfers: Vec<Transfer>,
    pub totals: Vec<Total>,
    /// What [`Total::sum`] must always be.
    pub bank_sum: i64,
    pub versions: Vec<VersionStep>,
    pub glimpses: Vec<Glimpse>,
    pub beats: Vec<Beat>,
    pub roles: Vec<RoleSeen>,
    pub commands: Vec<Command>,
    pub samples: Vec<Sample>,
    pub outages: Vec<Outage>,
}

impl Histories {
    /// Puts another site's part to this one.
    pub fn absorb(&mut self, other: Histories) {
        self.adds.extend(other.adds);
        self.txns.extend(other.txns);
        self.registers.extend(other.registers);
        self.transfers.extend(other.transfers);
        self.totals.extend(other.totals);
        self.versions.extend(other.versions);
        self.glimpses.extend(other.glimpses);
        self.beats.extend(other.beats);
        self.roles.extend(other.roles);
        self.commands.extend(other.commands);
    }

    /// Every write that a client attempted under the cluster's rule (not the watchers' beats).
    pub fn writes(&self) -> impl Iterator<Item = &Attempt> {
        let adds = self.adds.iter().map(|add| &add.attempt);
        let txns = self.txns.iter().filter(|t| t.steps.iter().any(|s| matches!(s, Step::Append { .. }))).map(|t| &t.attempt);
        let registers = self.registers.iter().filter(|r| !matches!(r.op, RegisterOp::Read { .. })).map(|r| &r.attempt);
        let transfers = self.transfers.iter().map(|t| &t.attempt);
        let versions = self.versions.iter().filter(|v| matches!(v.op, VersionOp::Write(_))).map(|v| &v.attempt);
        adds.chain(txns).chain(registers).chain(transfers).chain(versions)
    }

    /// Name of a site.
    #[must_use]
    pub fn site(&self, index: u8) -> &str {
        self.sites.get(usize::from(index)).map_or("?", String::as_str)
    }
}
