//! How a checker comes to its verdict: figures, violations, and what it needed to see at least.

use crate::record::{At, Outcome, Verdict};
use crate::workload::history::{Attempt, Door, Fate, Histories};

/// Most violations that are counted one by one into a witness's choice; more change nothing.
const VIOLATIONS_MAX: usize = 1000;

/// A verdict in the making. Any violation fails; without one, too little seen is inconclusive.
pub struct Case {
    verdict: Verdict,
    violations: Vec<Vec<String>>,
    violated: usize,
    lacking: Vec<String>,
}

impl Case {
    #[must_use]
    pub fn new(checker: &str) -> Case {
        let verdict = Verdict { checker: checker.to_owned(), ..Verdict::default() };
        Case { verdict, violations: Vec::new(), violated: 0, lacking: Vec::new() }
    }

    /// A figure for the report.
    pub fn count(&mut self, name: &str, value: usize) {
        self.verdict.counts.insert(name.to_owned(), value as u64);
    }

    /// The history that shows a violation, one line each, the statement of it first.
    pub fn violate(&mut self, history: Vec<String>) {
        self.violated += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(history);
        }
    }

    /// A figure without which nothing can be concluded.
    pub fn need(&mut self, name: &str, value: usize, least: usize) {
        self.count(name, value);
        if value < least {
            self.lacking.push(format!("{value} {name}, needs {least}"));
        }
    }

    /// A reason why nothing can be concluded.
    pub fn lack(&mut self, reason: impl Into<String>) {
        self.lacking.push(reason.into());
    }

    /// The verdict; the summary is the figures in words.
    #[must_use]
    pub fn close(mut self, summary: String) -> Verdict {
        if self.violated > 0 {
            self.verdict.outcome = Outcome::Failed;
            self.verdict.counts.insert("violations".to_owned(), self.violated as u64);
            // The first of the shortest: the least to read, the nearest to the cause.
            self.verdict.witness = self.violations.into_iter().min_by_key(Vec::len).unwrap_or_default();
            let first = self.verdict.witness.first().cloned().unwrap_or_default();
            self.verdict.summary = format!("{} violations, for one: {first} ({summary})", self.violated);
        } else if self.lacking.is_empty() {
            self.verdict.outcome = Outcome::Passed;
            self.verdict.summary = summary;
        } else {
            self.verdict.outcome = Outcome::Inconclusive;
            self.verdict.summary = format!("too little to conclude: {} ({summary})", self.lacking.join("; "));
        }
        self.verdict
    }
}

/// An attempt as a line of a witness.
#[must_use]
pub fn line(histories: &Histories, attempt: &Attempt, what: &str) -> String {
    let door = match attempt.origin.door {
        Door::Auto => "auto",
        Door::Primary => "primary",
        Door::Standby => "standby",
        Door::Direct => "direct",
    };
    let fate = match (attempt.fate, &attempt.why) {
        (Fate::Done, _) => "done".to_owned(),
        (Fate::Refused, why) => format!("refused, {}", why.as_deref().unwrap_or("?")),
        (Fate::Unknown, why) => format!("unknown, {}", why.as_deref().unwrap_or("?")),
    };
    let timeline = attempt.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
    let (site, session) = (histories.site(attempt.origin.site), attempt.origin.session);
    format!("{}–{} s  {site} {door} session {session}: {what} ({fate}{timeline})", seconds(attempt.from), seconds(attempt.to))
}

/// An instant as seconds.
#[must_use]
pub fn seconds(at: At) -> String {
    format!("{}.{:06}", at.0 / 1_000_000, at.0 % 1_000_000)
}
