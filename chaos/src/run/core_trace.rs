//! Checker core-trace: what the nodes' core was asked and answered in the run is asked again, by the program itself (`trilithon replay`).
//!
//! The harness knows nothing of the core. It only sees to it that the traces of all datacenters are there in full, and that none lacks an
//! entry, before it believes them.

use super::logs;
use crate::cluster::{CORE_TRACE, output_within};
use crate::record::{Outcome, Verdict};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Half an hour of three nodes is asked again in less than a minute.
const LIMIT: Duration = Duration::from_secs(600);

/// What `trilithon replay --json` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    applied: u64,
    decided: u64,
    stepped: u64,
    dropped: u64,
    unchecked: u64,
    disagreements: u64,
    shown: Vec<String>,
}

/// Judge the traces of these datacenters among the logs that were kept in `dir`. `uncopied`: what of the logs is not there.
pub fn check(binary: &Path, dir: &Path, sites: &[&str], uncopied: &[String]) -> Verdict {
    let (folders, mut lacking) = folders(dir, sites);
    lacking.extend(uncopied.iter().cloned());
    match ask(binary, &folders) {
        Ok(report) => judge(&report, &lacking),
        Err(error) => {
            let summary = format!("the traces could not be asked again: {error:#}");
            Verdict { checker: "core-trace".to_owned(), outcome: Outcome::Inconclusive, summary, ..Verdict::default() }
        }
    }
}

/// Where the traces are, and which datacenters have none.
fn folders(dir: &Path, sites: &[&str]) -> (Vec<PathBuf>, Vec<String>) {
    let (there, missing): (Vec<_>, Vec<_>) =
        sites.iter().map(|site| (site, logs::of(dir, site).join(CORE_TRACE))).partition(|(_, f)| f.is_dir());
    let missing = missing.into_iter().map(|(site, _)| format!("{site} has no trace")).collect();
    (there.into_iter().map(|(_, folder)| folder).collect(), missing)
}

fn ask(binary: &Path, folders: &[PathBuf]) -> Result<Report> {
    let mut command = Command::new(binary);
    command.args(["replay", "--json"]).args(folders);
    let output = output_within(command, LIMIT)?;
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    serde_json::from_slice(&output.stdout).with_context(|| format!("`trilithon replay` says: {errors}"))
}

fn judge(report: &Report, lacking: &[String]) -> Verdict {
    let Report { applied, decided, stepped, dropped, unchecked, disagreements, shown } = report;
    let least = (*applied).min(*decided).min(*stepped);
    let outcome = match (disagreements, dropped, least) {
        (1.., _, _) => Outcome::Failed,
        (0, 0, 1..) if lacking.is_empty() => Outcome::Passed,
        (0, _, _) => Outcome::Inconclusive,
    };
    let without = if lacking.is_empty() { String::new() } else { format!("; not all was there: {}", lacking.join(", ")) };
    let counts = [
        ("applied", applied),
        ("decided", decided),
        ("stepped", stepped),
        ("dropped", dropped),
        ("unchecked", unchecked),
        ("disagreements", disagreements),
    ];
    Verdict {
        checker: "core-trace".to_owned(),
        outcome,
        summary: format!(
            "{applied} commands, {decided} decisions and {stepped} steps of the live core asked again: {disagreements} answers differ, \
             {dropped} entries were not written{without}"
        ),
        counts: counts.into_iter().map(|(name, count)| (name.to_owned(), *count)).collect(),
        witness: shown.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_with_holes_concludes_nothing_and_one_answer_that_differs_fails() {
        let whole = Report { applied: 9, decided: 5, stepped: 7, ..Report::default() };
        let judge = |report: &Report| super::judge(report, &[]);
        assert_eq!(judge(&whole).outcome, Outcome::Passed);
        assert_eq!(judge(&Report { dropped: 1, ..whole.clone() }).outcome, Outcome::Inconclusive);
        assert_eq!(judge(&Report { stepped: 0, ..whole.clone() }).outcome, Outcome::Inconclusive);
        let differs = Report { disagreements: 1, dropped: 1, shown: vec!["line 3".to_owned()], ..whole };
        assert_eq!((judge(&differs).outcome, judge(&differs).witness.len()), (Outcome::Failed, 1));
    }

    #[test]
    fn a_datacenter_without_a_trace_concludes_nothing_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for site in ["dc1", "dc3", "dc9"] {
            std::fs::create_dir_all(logs::of(dir.path(), site).join(CORE_TRACE)).unwrap();
        }
        let (there, lacking) = folders(dir.path(), &["dc1", "dc2", "dc3"]);
        assert_eq!(there.len(), 2, "dc9 is of another run: {there:?}");
        assert_eq!(lacking, ["dc2 has no trace"]);
        let whole = Report { applied: 9, decided: 5, stepped: 7, ..Report::default() };
        let verdict = judge(&whole, &lacking);
        assert_eq!(verdict.outcome, Outcome::Inconclusive);
        assert!(verdict.summary.contains("dc2 has no trace"), "{}", verdict.summary);
        assert_eq!(judge(&Report { disagreements: 1, ..whole }, &lacking).outcome, Outcome::Failed);
    }
}
