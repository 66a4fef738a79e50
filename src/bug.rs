//! Seeded bugs: plausible mistakes in the shells around the pure core, so that the fault harness can prove that it would notice them.
//!
//! They exist only where the crate is built with the feature `bugs`, which no release has; then the environment variable TRILITHON_BUG
//! switches one of them on, and `trilithon version --bugs` lists them. Without the feature [`is`] is a constant `false`, and nothing of
//! them is left in the program. Deliberately absent: bugs inside the PURE modules, which the simulator's own mutants cover.
//!
//! Entry point: [`is`].

macro_rules! bugs {
    ($($bug:ident $name:literal $about:literal,)*) => {
        /// One mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $about] $bug,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// What TRILITHON_BUG calls it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)*
                }
            }

            /// What it does.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self {
                    $(Bug::$bug => $about,)*
                }
            }
        }
    };
}

bugs! {
    // Postgres.
    FsyncOff "fsync-off" "Postgres does not wait for its disk",
    CommitLocal "commit-local" "commits do not wait for a standby, whatever the rule says",
    NamesEmptied "names-emptied" "synchronous_standby_names is left empty, and taken for proved (INV-6)",
    TimelineReused "timeline-reused" "a promotion takes the next number of its own history, not the claimed one (INV-8)",
    // The agent.
    SkipSeal "skip-seal" "a standby says that it has turned away from the old primary, and streams on (INV-4)",
    IgnoreLease "ignore-lease" "a primary goes on serving when its lease has ended (INV-9)",
    PromiseNotPersisted "promise-not-persisted" "the promised epoch is kept in memory only (INV-1)",
    NarrowRuleEarly "narrow-rule-early" "a primary that hears no standby waits for none, before the cluster has agreed (INV-5)",
    DoubtfulRead "doubtful-read" "a standby is read, a former primary too, whatever it may show that nobody confirmed",
    // The controller.
    ShortLeaseWait "short-lease-wait" "the others wait for a sixth of the lease before they elect (INV-9)",
    ElectLagging "elect-lagging" "of the sealed the least advanced is elected (INV-7)",
    ElectUncovered "elect-uncovered" "the first to seal is elected, though the sealed do not cover the rule (INV-4)",
    NeedlessElection "needless-election" "an election is called every six seconds, for no reason",
    // Consensus and administration.
    NoCompareAndSet "no-compare-and-set" "a command is applied whatever revision it was decided on (INV-2)",
    VoteForgotten "vote-forgotten" "a vote is given and not stored",
    LogNotSynced "log-not-synced" "the consensus log does not wait for its disk",
    RequestAppliedTwice "request-applied-twice" "the request ids of commands that took effect are forgotten (INV-12)",
    SwitchoverSaidDone "switchover-said-done" "a switchover is reported as done and was not even asked for",
    // The proxy.
    ReplayUnknownWrite "replay-unknown-write" "a write whose server was lost is run again, though it may have been applied",
    UnknownSaidNotApplied "unknown-said-not-applied" "40001 is said for a commit that was sent and not answered",
    UnknownSaidDone "unknown-said-done" "a commit that was sent and not answered is reported as done",
    KeepOldServers "keep-old-servers" "a proxy goes on with the old primary while its connections to it live (INV-11)",
    ReadOnStandby "read-on-standby" "a read on the primary's listener goes to the nearest standby",
    ForgetOwnWrites "forget-own-writes" "a session that has written reads on standbys that may not have it yet",
    CancelledWaitAcknowledged "cancelled-wait-acknowledged" "a commit whose wait for standbys was cancelled is passed on as a success",
    CommitErrorSwallowed "commit-error-swallowed" "an error of COMMIT is turned into a success",
    LeakTransaction "leak-transaction" "a server whose client left in a transaction goes to the next client as it is",
    RereadElsewhere "reread-elsewhere" "a read of the primary whose server was lost runs again on any standby",
    ReleaseInTransaction "release-in-transaction" "a server goes back to its pool between the statements of a transaction",
}

/// The environment variable that names one.
pub const VARIABLE: &str = "TRILITHON_BUG";

/// Is this bug switched on?
#[cfg(not(feature = "bugs"))]
#[inline(always)]
#[must_use]
pub const fn is(_: Bug) -> bool {
    false
}

/// Is this bug switched on?
#[cfg(feature = "bugs")]
#[must_use]
pub fn is(bug: Bug) -> bool {
    chosen() == Some(bug)
}

/// The bug that the environment names. A name that is none ends the process: a run that hunts for a bug without having it proves nothing.
#[cfg(feature = "bugs")]
#[must_use]
pub fn chosen() -> Option<Bug> {
    static CHOSEN: std::sync::LazyLock<Option<Bug>> = std::sync::LazyLock::new(|| {
        let name = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
        let found = Bug::ALL.iter().copied().find(|bug| bug.name() == name);
        if found.is_none() {
            anstream::eprintln!("error: {VARIABLE} names no seeded bug: {name}");
            std::process::exit(2);
        }
        found
    });
    *CHOSEN
}
