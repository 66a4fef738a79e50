//! Under which faults each seeded bug shows, soonest first: a hunt is short, since each has a cluster of its own to start.
//!
//! A bug that is not named here is hunted with the general list. Some show in no run of a few minutes: what they break is guarded twice,
//! or needs two events within the same few milliseconds. They are listed as such, with the reason, and are run only when they are asked for.

use super::lists::{Entry, HUNT};
use crate::fault::{self, Expected, Phase};

/// How to look for a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hunt {
    pub faults: &'static [Entry],
    /// How long a lease is, where the usual one hides the bug.
    pub lease_ttl: Option<&'static str>,
    /// Why no short run from outside shows it.
    pub hidden: Option<&'static str>,
    pub by: By,
}

/// Who must catch a bug. A cluster may stay away for many reasons, so that this proves something only of bugs that keep it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Any checker of what clients were told and of what the nodes hold.
    Data,
    /// One of those, or one of these.
    DataOr(&'static [&'static str]),
    /// One of these alone: others may fail without the bug, or say nothing of it.
    Only(&'static [&'static str]),
}

/// What becomes of a cluster that never is whole for the first time; no checker's name.
pub const START: &str = "start";
/// Verdicts of the run itself, which come of many things.
const OF_THE_RUN: &[&str] = &["availability", "cause", "ends", "final", "panics", START, "workload"];
/// The cluster does not come back.
const AWAY: &[&str] = &["availability", "final"];

impl By {
    /// Does a failure of `checker` count?
    pub fn counts(self, checker: &str) -> bool {
        let is_data = !OF_THE_RUN.contains(&checker);
        match self {
            By::Data => is_data,
            By::DataOr(others) => is_data || others.contains(&checker),
            By::Only(these) => these.contains(&checker),
        }
    }
}

/// Something that does the cluster no harm: the workload alone shows it.
const MILD: &[Entry] = &[("kill-standby-postmaster", Phase::Steady)];
const ISOLATED: &[Entry] = &[("isolate-primary", Phase::Steady)];
const ALL_LOSE_POWER: &[Entry] = &[("everybody-loses-power", Phase::Steady)];
/// What was agreed a moment ago is what a log that waits for no disk forgets; who did not lose its power still knows it.
const POWER_LOST: &[Entry] = &[
    ("power-loss-standby", Phase::Steady),
    ("power-loss-standby", Phase::Steady),
    ("power-loss-standby", Phase::Steady),
    ("power-loss-standby", Phase::Steady),
];
/// Timelines are claimed for promotions that do not last: the next number is not the claimed one. It is where the candidate dies before
/// its Postgres has begun the timeline, which not every attempt hits.
const CLAIMED_IN_VAIN: &[Entry] = &[
    ("kill-node-and-postgres", Phase::Promotion),
    ("kill-candidate", Phase::Election),
    ("kill-candidate", Phase::Promotion),
    ("kill-candidate", Phase::Election),
    ("kill-node-and-postgres", Phase::Promotion),
    ("kill-candidate", Phase::Election),
];
const SWITCHOVER: &[Entry] = &[("planned-switchover", Phase::Steady)];
const NODE_STOPPED: &[Entry] = &[("stop-node", Phase::Steady), ("stop-node", Phase::Steady)];
/// Its WAL goes out, and no confirmation comes in.
const DEAF: &[Entry] = &[("deaf-primary", Phase::Steady)];
/// It holds what nobody else got, and knows nothing of those who decide without it.
const UNCONFIRMED: &[Entry] =
    &[("unheard-standby-and-postmaster-killed", Phase::Steady), ("unheard-standby-and-postmaster-killed", Phase::Steady)];
/// Commits are in flight each time, and some have reached a standby.
const KILLED: &[Entry] = &[("kill-postmaster", Phase::Steady), ("kill-postmaster", Phase::Steady), ("kill-postmaster", Phase::Steady)];
/// The standbys hold different amounts of what was acknowledged.
const UNEQUAL: &[Entry] = &[("primary-lost-behind-a-broken-line", Phase::Steady), ("primary-lost-behind-a-broken-line", Phase::Steady)];
const REPLAY_PAUSED: &[Entry] = &[("replay-paused", Phase::Steady)];
const CANCELLED: &[Entry] = &[("cancelled-waits-and-failover", Phase::Steady)];
/// Servers are freed by clients that leave in the middle of a transaction.
const ABANDONED: &[Entry] = &[("idle-in-transaction-herd", Phase::Steady), ("idle-in-transaction-herd", Phase::Steady)];
/// Reads are in flight when their server is lost, and no standby knows the newest rows.
const READS_LOST: &[Entry] = &[("reads-lost-while-standbys-lag", Phase::Steady), ("reads-lost-while-standbys-lag", Phase::Steady)];
const RIVALS: &[Entry] = &[("settings-changed-by-three", Phase::Steady)];
const ORDERED_TWICE: &[Entry] = &[("order-given-through-a-dying-node", Phase::Steady), ("order-given-through-a-dying-node", Phase::Steady)];

/// For the pair that must fail.
pub const CONTROL: &[Entry] = &[("isolate-primary", Phase::Steady)];

/// By the bug's name.
pub fn hunt(bug: &str) -> Hunt {
    let with = |faults| Hunt { faults, lease_ttl: None, hidden: None, by: By::Data };
    let hidden = |why| Hunt { hidden: Some(why), ..with(HUNT) };
    match bug {
        "fsync-off" => Hunt { by: By::DataOr(AWAY), ..with(ALL_LOSE_POWER) },
        "log-not-synced" => Hunt {
            hidden: Some("PostgreSQL's own fsyncs flush the same disk a moment later; the store's own tests cut the power in between"),
            by: By::Only(&["panics"]),
            ..with(POWER_LOST)
        },
        "commit-local" | "narrow-rule-early" | "unknown-said-done" => with(ISOLATED),
        // A rule that is never in force keeps a cluster from being whole at all.
        "names-emptied" => Hunt { by: By::DataOr(&[START]), ..with(ISOLATED) },
        "ignore-lease" => with(ISOLATED),
        // On a busy machine the next primary takes writes only when the usual lease has ended anyway.
        "short-lease-wait" => Hunt {
            lease_ttl: Some("\"9s\""),
            hidden: Some("the old primary's proxy begins no reads for most of its lease, so that nobody sees two primaries"),
            ..with(ISOLATED)
        },
        "doubtful-read" => with(UNCONFIRMED),
        "timeline-reused" => Hunt { by: By::DataOr(AWAY), ..with(CLAIMED_IN_VAIN) },
        "skip-seal" => with(NODE_STOPPED),
        "keep-old-servers" => Hunt { by: By::DataOr(AWAY), ..with(NODE_STOPPED) },
        "elect-lagging" | "elect-uncovered" => with(UNEQUAL),
        "needless-election" => Hunt { by: By::Only(&["cause"]), ..with(MILD) },
        "commit-error-swallowed" | "release-in-transaction" => with(MILD),
        "read-on-standby" | "forget-own-writes" => with(REPLAY_PAUSED),
        "replay-unknown-write" => with(KILLED),
        "unknown-said-not-applied" => with(DEAF),
        "reread-elsewhere" => with(READS_LOST),
        "leak-transaction" => with(ABANDONED),
        // What is read of a commit whose wait was cancelled is promised to nobody; what is acknowledged is.
        "cancelled-wait-acknowledged" => Hunt { by: By::Only(&["set"]), ..with(CANCELLED) },
        "switchover-said-done" => with(SWITCHOVER),
        "no-compare-and-set" => with(RIVALS),
        "request-applied-twice" => with(ORDERED_TWICE),
        "promise-not-persisted" => hidden("the consensus log, which is durable, raises the promise again before it matters"),
        "vote-forgotten" => hidden("a node must start again between two candidates of one term"),
        _ => with(HUNT),
    }
}

/// The faults of all of these, each once and without known gaps: what the program without a bug must stand.
pub fn all_of<'a>(bugs: impl Iterator<Item = &'a str>) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for entry in bugs.flat_map(|bug| hunt(bug).faults) {
        let is_gap = fault::catalogue().iter().any(|f| f.name == entry.0 && matches!(f.expected, Expected::Known(_)));
        if !is_gap && !all.contains(entry) {
            all.push(*entry);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunts_are_of_the_catalogue_and_in_its_phases() {
        let lists = [
            MILD,
            ISOLATED,
            ALL_LOSE_POWER,
            POWER_LOST,
            SWITCHOVER,
            NODE_STOPPED,
            DEAF,
            UNCONFIRMED,
            KILLED,
            UNEQUAL,
            REPLAY_PAUSED,
            CANCELLED,
            ABANDONED,
            READS_LOST,
            RIVALS,
            ORDERED_TWICE,
            CLAIMED_IN_VAIN,
            UNEQUAL,
            CONTROL,
        ];
        for (name, phase) in lists.concat() {
            let found = fault::catalogue().iter().find(|f| f.name == name);
            assert!(found.is_some_and(|f| f.phases.contains(&phase)), "{name} in {}", phase.word());
        }
    }

    #[test]
    fn a_cluster_that_stays_away_proves_only_the_bugs_that_keep_it_away() {
        let counts = |bug: &str, checker: &str| hunt(bug).by.counts(checker);
        for bug in ["skip-seal", "commit-local", "read-on-standby", "", "one that nobody knows"] {
            assert!(counts(bug, "set") && counts(bug, "list-append serializable"), "{bug}");
            assert!(OF_THE_RUN.iter().all(|checker| !counts(bug, checker)), "{bug}");
        }
        for bug in ["fsync-off", "keep-old-servers", "timeline-reused"] {
            assert!(counts(bug, "availability") && counts(bug, "final") && !counts(bug, "cause") && !counts(bug, START), "{bug}");
        }
        assert!(counts("needless-election", "cause") && !counts("needless-election", "availability"));
        assert!(counts("names-emptied", START) && counts("names-emptied", "set") && !counts("names-emptied", "availability"));
        assert!(counts("cancelled-wait-acknowledged", "set") && !counts("cancelled-wait-acknowledged", "replica-reads"));
    }

    #[test]
    fn what_the_sound_program_must_stand_is_listed_once() {
        let all = all_of(["ignore-lease", "commit-local", "skip-seal", "cancelled-wait-acknowledged"].into_iter());
        assert_eq!(all, [("isolate-primary", Phase::Steady), ("stop-node", Phase::Steady)]);
    }
}
