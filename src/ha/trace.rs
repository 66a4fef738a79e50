//! What the core was asked and what it answered, as a live node used it; and whether it answers the same when asked again. PURE.
//!
//! ```text
//!   apply, decide, converge ──► Entry ──► Scribe ──► JSON lines ──► Replay ──► apply, decide, converge ──► ReplayReport
//!        (live)                          (a node's file)                       (again)
//! ```
//! A line names the state that it was made on by a digest. The states themselves come from the file's first line and the commands that
//! follow, so a node that decided on a state which no command made is found too. Passwords are blotted out; nothing in the core reads them.
//!
//! Deliberately absent: files and threads (`telemetry::Recorder`), and any word on whether a decision was wise: that is the simulator's.

use super::{Decision, LocalState, Step, View, converge, decide};
use crate::cluster::{ClusterState, Command, Outcome, Proposal, Secrets, apply};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// One use of the core on a live node. Cheap to make: states are shared, text is made later and elsewhere.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The state that the process began with, or that a snapshot put in its place.
    State(Arc<ClusterState>),
    Applied {
        before: Arc<ClusterState>,
        proposal: Proposal,
        outcome: Outcome,
        after: Arc<ClusterState>,
    },
    Decided {
        on: Arc<ClusterState>,
        view: View,
        decision: Decision,
    },
    Stepped {
        on: Arc<ClusterState>,
        local: LocalState,
        step: Step,
    },
}

/// Beginning of the SHA-256 of a state's JSON, passwords blotted out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Mark(String);

impl Mark {
    fn of(state: &ClusterState) -> Mark {
        // Maps are ordered and numbers are whole: equal states give equal bytes.
        let bytes = serde_json::to_vec(state).expect("plain data always serialises");
        Mark(Sha256::digest(&bytes).iter().take(16).map(|b| format!("{b:02x}")).collect())
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fact {
    State {
        mark: Mark,
        state: Box<ClusterState>,
    },
    Applied {
        before: Mark,
        proposal: Box<Proposal>,
        outcome: Outcome,
        after: Mark,
    },
    Decided {
        on: Mark,
        view: Box<View>,
        decision: Box<Decision>,
    },
    Stepped {
        on: Mark,
        local: Box<LocalState>,
        step: Box<Step>,
    },
    /// The writer could not keep up: so many entries are missing before this line.
    Dropped {
        entries: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Counts the lines of a file: a missing one shows.
    n: u64,
    fact: Fact,
}

/// The same without passwords.
fn blotted(state: &ClusterState) -> ClusterState {
    ClusterState { secrets: state.secrets.as_ref().map(|_| no_secrets()), ..state.clone() }
}

fn no_secrets() -> Secrets {
    Secrets { superuser: String::new(), replication: String::new() }
}

// ---- writing

/// Makes lines of entries.
#[derive(Debug, Default)]
pub struct Scribe {
    n: u64,
    /// The state that the last line was about, with its mark: most lines are about the same one.
    known: Option<(Arc<ClusterState>, Mark)>,
    /// What the last applied command made.
    newest: Option<Mark>,
}

impl Scribe {
    /// The lines of `entry`, each with its end.
    #[must_use]
    pub fn lines(&mut self, entry: Entry) -> String {
        match entry {
            Entry::State(state) => self.state(&state),
            Entry::Applied { before, mut proposal, outcome, after } => {
                let mark = self.mark(&before);
                // After entries that were dropped, begin anew.
                let base = if self.newest.as_ref() == Some(&mark) { String::new() } else { self.state(&before) };
                if let Command::SetSecrets { secrets } = &mut proposal.command {
                    *secrets = no_secrets();
                }
                let after = self.mark(&after);
                self.newest = Some(after.clone());
                base + &self.line(Fact::Applied { before: mark, proposal: Box::new(proposal), outcome, after })
            }
            Entry::Decided { on, view, decision } => {
                let on = self.mark(&on);
                self.line(Fact::Decided { on, view: Box::new(view), decision: Box::new(decision) })
            }
            Entry::Stepped { on, local, step } => {
                let on = self.mark(&on);
                self.line(Fact::Stepped { on, local: Box::new(local), step: Box::new(step) })
            }
        }
    }

    /// The line that tells of entries which were not written.
    #[must_use]
    pub fn dropped(&mut self, entries: u64) -> String {
        self.line(Fact::Dropped { entries })
    }

    fn state(&mut self, state: &Arc<ClusterState>) -> String {
        let mark = self.mark(state);
        self.newest = Some(mark.clone());
        self.line(Fact::State { mark, state: Box::new(blotted(state)) })
    }

    fn mark(&mut self, state: &Arc<ClusterState>) -> Mark {
        if let Some((known, mark)) = &self.known
            && Arc::ptr_eq(known, state)
        {
            return mark.clone();
        }
        let mark = Mark::of(&blotted(state));
        self.known = Some((state.clone(), mark.clone()));
        mark
    }

    fn line(&mut self, fact: Fact) -> String {
        self.n += 1;
        serde_json::to_string(&Line { n: self.n, fact }).expect("plain data always serialises") + "\n"
    }
}

// ---- reading

/// What a replay found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayReport {
    pub applied: u64,
    pub decided: u64,
    pub stepped: u64,
    /// Entries that the node could not write.
    pub dropped: u64,
    /// Lines about a state that is not known for want of dropped ones.
    pub unchecked: u64,
    /// The last line was not written to its end: the process was killed.
    pub torn: bool,
    /// Where the core disagrees with what is written.
    pub disagreements: u64,
    /// The first of them in words.
    pub shown: Vec<String>,
}

impl ReplayReport {
    /// The findings of several files as one.
    pub fn add(&mut self, other: ReplayReport) {
        self.applied += other.applied;
        self.decided += other.decided;
        self.stepped += other.stepped;
        self.dropped += other.dropped;
        self.unchecked += other.unchecked;
        self.torn |= other.torn;
        self.disagreements += other.disagreements;
        self.shown.extend(other.shown);
        self.shown.truncate(SHOWN_MAX);
    }
}

/// Disagreements told in words.
const SHOWN_MAX: usize = 10;
/// States kept: the controller and the agent use the newest, or one of those that were the newest a moment ago.
const STATES_MAX: usize = 512;

/// Feeds the lines of one file through the core.
#[derive(Debug, Default)]
pub struct Replay {
    n: u64,
    states: VecDeque<(Mark, Arc<ClusterState>)>,
    report: ReplayReport,
}

impl Replay {
    /// All of a file's text.
    #[must_use]
    pub fn text(text: &str) -> ReplayReport {
        let mut replay = Replay::default();
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => replay.line(line),
                None => replay.report.torn = true,
            }
        }
        replay.report
    }

    fn line(&mut self, text: &str) {
        self.n += 1;
        let line: Line = match serde_json::from_str(text) {
            Ok(line) => line,
            Err(error) => return self.disagree(format!("not a line of a trace: {error}")),
        };
        if line.n != self.n {
            self.disagree(format!("this should be line {}, and calls itself {}: lines are missing or were added", self.n, line.n));
            self.n = line.n;
        }
        match line.fact {
            Fact::State { mark, state } => self.state(mark, *state),
            Fact::Applied { before, proposal, outcome, after } => self.applied(&before, &proposal, &outcome, after),
            Fact::Decided { on, view, decision } => {
                self.report.decided += 1;
                let Some(state) = self.find(&on) else { return };
                let again = decide(&state, &view);
                self.compare("decide", &again, &*decision);
            }
            Fact::Stepped { on, local, step } => {
                self.report.stepped += 1;
                let Some(state) = self.find(&on) else { return };
                let again = converge(&state, &local);
                self.compare("converge", &again, &*step);
            }
            Fact::Dropped { entries } => self.report.dropped += entries,
        }
    }

    fn state(&mut self, mark: Mark, state: ClusterState) {
        self.compare("the digest of a state", &Mark::of(&state), &mark);
        self.keep(mark, state);
    }

    fn applied(&mut self, before: &Mark, proposal: &Proposal, outcome: &Outcome, after: Mark) {
        self.report.applied += 1;
        let Some(state) = self.find(before) else { return };
        let mut state = ClusterState::clone(&state);
        let again = apply(&mut state, proposal);
        self.compare("apply", &again, outcome);
        self.compare("the state after apply", &Mark::of(&state), &after);
        self.keep(after, state);
    }

    fn keep(&mut self, mark: Mark, state: ClusterState) {
        self.states.push_back((mark, Arc::new(state)));
        if self.states.len() > STATES_MAX {
            self.states.pop_front();
        }
    }

    fn find(&mut self, mark: &Mark) -> Option<Arc<ClusterState>> {
        let found = self.states.iter().rev().find(|(known, _)| known == mark).map(|(_, state)| state.clone());
        match (&found, self.report.dropped) {
            (Some(_), _) => {}
            (None, 0) => self.disagree(format!("it rests on the state {}, which no command of this trace has made", mark.0)),
            (None, _) => self.report.unchecked += 1,
        }
        found
    }

    fn compare<T: PartialEq + fmt::Debug>(&mut self, what: &str, again: &T, written: &T) {
        if again != written {
            self.disagree(format!("{what} gives {again:?}, written is {written:?}"));
        }
    }

    fn disagree(&mut self, what: String) {
        self.report.disagreements += 1;
        if self.report.shown.len() < SHOWN_MAX {
            self.report.shown.push(format!("line {}: {what}", self.n));
        }
    }
}
