//! Does the harness find bugs? It runs a short list of faults against a program with seeded ones, and tells when each was caught.
//!
//! The program is one that was built with its seeded bugs; `trilithon version --bugs` lists them, the environment variable
//! TRILITHON_BUG switches one on. Each bug gets a world of its own. A mutant that nobody caught is a hole in the harness, and so is a
//! first row (no bug at all) that does not pass: it stands the faults of all the others, under the same limits of time. Where a bug is
//! hunted with a lease of its own, so is no bug. Whose failure counts as a catch is told by each hunt; an error of the harness never
//! does. Bugs that no run from outside shows in minutes are passed over, unless they are asked for; see [`hunts`].

use super::hunts::By;
use super::settings::{Settings, Which};
use super::voice::Voice;
use super::{hunts, lists, session};
use crate::cluster::{NotWhole, output_within};
use crate::record::{Outcome, Record, RunClock, Verdict};
use crate::report;
use crate::world::Interrupts;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Switches a seeded bug on.
const VARIABLE: &str = "TRILITHON_BUG";

/// A bug that shows only where two things meet is hunted again, with other seeds.
const ROUNDS: u64 = 3;

/// The last row.
const CONTROL: &str = "asynchronous-pair";

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Empty: no bug at all.
    pub bug: String,
    pub about: String,
    /// Checkers that failed.
    pub caught_by: Vec<String>,
    /// The run was a pass, and not merely one in which nothing was found.
    pub passed: bool,
    /// From the cluster's start to the verdict, in seconds; of all rounds together.
    pub seconds: u64,
    /// Clusters that were tried.
    pub rounds: u64,
    pub what: String,
}

/// What is hunted, and how.
#[derive(Clone, Debug, Default)]
pub struct Hunted {
    /// Names; empty: all that a run from outside can show.
    pub only: Vec<String>,
    /// Without the run that has no bug.
    pub bugs_only: bool,
    /// Each with its own faults; otherwise all with those of the settings.
    pub own_faults: bool,
}

/// A seeded bug that the program knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bug {
    pub name: String,
    pub about: String,
}

/// The bugs that were built into `binary`.
///
/// # Errors
/// None were.
pub fn bugs(binary: &Path) -> Result<Vec<Bug>> {
    let mut command = Command::new(binary);
    command.args(["version", "--bugs"]);
    let output = output_within(command, Duration::from_secs(10))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bugs: Vec<Bug> = text.lines().filter_map(parse).collect();
    if !output.status.success() || bugs.is_empty() {
        bail!("{} has no seeded bugs: build one that has, and name it with --binary", binary.display());
    }
    Ok(bugs)
}

/// `name  what it does`.
fn parse(line: &str) -> Option<Bug> {
    let (name, about) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    (!name.is_empty()).then(|| Bug { name: name.to_owned(), about: about.trim().to_owned() })
}

/// Run the program without a bug and then with each.
///
/// # Errors
/// The program has no seeded bugs; or a world could not be built or taken down, or a run ended without an answer.
pub fn run(settings: &Settings, hunted: &Hunted, interrupts: &Interrupts, voice: &Voice) -> Result<Vec<Row>> {
    let (clock, all) = (RunClock::start(), bugs(&settings.binary)?);
    if let Some(unknown) = hunted.only.iter().find(|name| !all.iter().any(|b| b.name == **name)) {
        bail!("no seeded bug is called {unknown}: `{} version --bugs` lists them", settings.binary.display());
    }
    let asked = |bug: &Bug| if hunted.only.is_empty() { hunts::hunt(&bug.name).hidden.is_none() } else { hunted.only.contains(&bug.name) };
    let wanted: Vec<Bug> = all.into_iter().filter(asked).collect();
    let sound = lists::listed(&hunts::all_of(wanted.iter().map(|bug| bug.name.as_str())));
    let none = Bug { name: String::new(), about: "no bug".to_owned() };
    let first = (!hunted.bugs_only).then_some(none.clone());
    let mut rows = Vec::new();
    for bug in first.into_iter().chain(wanted) {
        if interrupts.requested() {
            bail!(super::pace::Interrupted);
        }
        let mut own = settings.clone();
        own.hunting = true;
        if hunted.own_faults {
            let hunt = hunts::hunt(&bug.name);
            own.mode = if bug.name.is_empty() { sound.clone() } else { lists::listed(hunt.faults) };
            own.set.extend(hunt.lease_ttl.map(|literal| ("ha".to_owned(), "lease_ttl".to_owned(), literal.to_owned())));
            if hunt.lease_ttl.is_some() && !hunted.bugs_only {
                voice.note(clock, &format!("no mutant, as {} is hunted", bug.name));
                let folder = format!("as-{}", bug.name);
                let without = Settings { out: own.out.join(&folder), dir: own.dir.join(&folder), ..own.clone() };
                let with = || format!("without a bug, as {} is hunted", bug.name);
                rows.push(one(without, &none, hunted.own_faults, interrupts, voice).with_context(with)?);
            }
        }
        voice.note(clock, &format!("mutant {}", if bug.name.is_empty() { "none" } else { &bug.name }));
        let with = || if bug.name.is_empty() { "without a bug".to_owned() } else { format!("with the bug {}", bug.name) };
        rows.push(until_caught(&own, &bug, hunted.own_faults, interrupts, voice).with_context(with)?);
    }
    if hunted.only.is_empty() {
        voice.note(clock, "the control: a plain asynchronous pair");
        rows.push(control(settings, hunted.own_faults, interrupts, voice)?);
    }
    Ok(rows)
}

/// What makes the row again, with `words` behind it.
fn again(system: Which, bug: &str, words: &[String]) -> String {
    let verb = match (system, bug) {
        (Which::Pair, _) => "control".to_owned(),
        (_, "") => "mutants".to_owned(),
        (_, name) => format!("mutants --only {name} --bugs-only"),
    };
    format!("chaos {verb} {}", words.join(" "))
}

/// One round for whoever has no bug, since what it is caught with is no matter of luck, and where the seed was given.
fn until_caught(settings: &Settings, bug: &Bug, own_faults: bool, interrupts: &Interrupts, voice: &Voice) -> Result<Row> {
    let mut row = one(settings.clone(), bug, own_faults, interrupts, voice)?;
    while own_faults && !bug.name.is_empty() && row.caught_by.is_empty() && row.rounds < ROUNDS {
        let next = Settings { seed: settings.seed + row.rounds, ..settings.clone() };
        voice.note(RunClock::start(), &format!("mutant {} again, round {} of {ROUNDS}", bug.name, row.rounds + 1));
        let again = one(next, bug, own_faults, interrupts, voice)?;
        row = Row { seconds: row.seconds + again.seconds, rounds: row.rounds + again.rounds, ..again };
    }
    Ok(row)
}

fn one(mut settings: Settings, bug: &Bug, own_faults: bool, interrupts: &Interrupts, voice: &Voice) -> Result<Row> {
    let clock = RunClock::start();
    settings.stop_at_first = true;
    let words = if own_faults {
        vec!["--binary".to_owned(), settings.binary.display().to_string()]
    } else {
        [vec!["--seed".to_owned(), settings.seed.to_string()], settings.words.clone()].concat()
    };
    let again = again(settings.system, &bug.name, &words);
    if !bug.name.is_empty() {
        settings.environment.push((VARIABLE.to_owned(), bug.name.clone()));
        settings.out = settings.out.join(&bug.name);
        settings.dir = settings.dir.join(&bug.name);
    }
    let row = |caught_by, passed, what| Row {
        bug: bug.name.clone(),
        about: bug.about.clone(),
        caught_by,
        passed,
        seconds: clock.now().0 / 1_000_000,
        rounds: 1,
        what,
    };
    let by = hunts::hunt(&bug.name).by;
    let (row, troubles) = match session::run(&settings, interrupts, voice) {
        Ok(finished) if finished.interrupted => return Err(finished.teardown.unwrap_or_else(|| super::pace::Interrupted.into())),
        Ok(mut finished) => {
            finished.record.command = again;
            let written = report::write(&finished.dir, &finished.record);
            let (caught_by, passed, what) = judged(&finished.record, by);
            (row(caught_by, passed, what), [written.err(), finished.teardown])
        }
        Err(error) => match caught_at_start(&error, by) {
            Some(what) => (row(vec![hunts::START.to_owned()], false, what), [None, None]),
            None => return Err(error),
        },
    };
    let word = if row.caught_by.is_empty() { "not caught" } else { "caught" };
    voice.note(clock, &format!("{word} after {} s: {}", row.seconds, row.what));
    // Told first: what the run found holds, whatever went wrong behind it.
    troubles.into_iter().flatten().next().map_or(Ok(row), Err)
}

/// Who caught it, whether it passed, and what was seen.
fn judged(record: &Record, by: By) -> (Vec<String>, bool, String) {
    let judgement = report::judge(record);
    let passed = judgement.outcome == Outcome::Passed;
    let counts = |v: &&Verdict| v.outcome == Outcome::Failed && by.counts(&v.checker);
    let caught: Vec<&Verdict> = record.verdicts.iter().filter(counts).collect();
    let what = match (caught.first(), judgement.reasons.first()) {
        (Some(verdict), _) => verdict.summary.clone(),
        (None, Some(reason)) if !passed => reason.clone(),
        (None, _) => "no checker found anything".to_owned(),
    };
    (caught.iter().map(|v| v.checker.clone()).collect(), passed, what)
}

/// A cluster that is started and never whole is a bug that nobody ships. Any other error is the harness's own, and catches nothing.
fn caught_at_start(error: &anyhow::Error, by: By) -> Option<String> {
    let not_whole = error.downcast_ref::<NotWhole>().filter(|_| by.counts(hunts::START))?;
    Some(not_whole.to_string())
}

/// A plain asynchronous pair that a script promotes, under one of the faults: it is known to lose acknowledged writes.
///
/// # Errors
/// The world could not be built, or the pair did not start.
pub fn control(settings: &Settings, own_faults: bool, interrupts: &Interrupts, voice: &Voice) -> Result<Row> {
    let mut settings =
        Settings { system: Which::Pair, out: settings.out.join(CONTROL), dir: settings.dir.join(CONTROL), ..settings.clone() };
    if own_faults {
        settings.mode = lists::listed(hunts::CONTROL);
    }
    let none = Bug { name: String::new(), about: "a plain asynchronous pair".to_owned() };
    Ok(Row { bug: CONTROL.to_owned(), ..one(settings, &none, own_faults, interrupts, voice)? })
}

/// The table for people.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!("{:<34} {:>8}  {:<28} {}\n", "SEEDED BUG", "SECONDS", "CAUGHT BY", "WHAT WAS SEEN");
    for row in rows {
        let bug = if row.bug.is_empty() { "(none)" } else { &row.bug };
        let by = if row.caught_by.is_empty() { "nobody".to_owned() } else { row.caught_by.join(", ") };
        let rounds = if row.rounds > 1 { format!("round {}: ", row.rounds) } else { String::new() };
        text.push_str(&format!("{bug:<34} {:>8}  {by:<28} {rounds}{}\n", row.seconds, row.what));
    }
    text
}

/// Every bug was caught, and the program without one passed.
pub fn all_caught(rows: &[Row]) -> bool {
    rows.iter().all(|row| if row.bug.is_empty() { row.passed } else { !row.caught_by.is_empty() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bug: &str, caught: &[&str]) -> Row {
        let caught_by: Vec<String> = caught.iter().map(|c| (*c).to_owned()).collect();
        let passed = caught_by.is_empty();
        Row { bug: bug.into(), about: String::new(), caught_by, passed, seconds: 1, rounds: 1, what: String::new() }
    }

    #[test]
    fn a_line_is_a_name_and_what_it_does() {
        let bug = parse("skip-seal  a node reports before it turned away").unwrap();
        assert_eq!((bug.name.as_str(), bug.about.as_str()), ("skip-seal", "a node reports before it turned away"));
        assert_eq!(parse("   "), None);
    }

    #[test]
    fn a_row_is_made_again_by_the_words_in_its_report() {
        let words = ["--binary".to_owned(), "bugs/trilithon".to_owned()];
        assert_eq!(again(Which::Trilithon, "skip-seal", &words), "chaos mutants --only skip-seal --bugs-only --binary bugs/trilithon");
        assert_eq!(again(Which::Trilithon, "", &words), "chaos mutants --binary bugs/trilithon");
        assert_eq!(again(Which::Pair, "", &words), "chaos control --binary bugs/trilithon");
    }

    #[test]
    fn only_a_cluster_that_never_became_whole_is_caught_at_its_start_and_only_where_that_counts() {
        let start = hunts::hunt("names-emptied").by;
        let never = || anyhow::Error::from(NotWhole("the cluster is not whole after 240 s".to_owned())).context("logs are in x/logs");
        assert_eq!(caught_at_start(&never(), start).as_deref(), Some("the cluster is not whole after 240 s"));
        assert_eq!(caught_at_start(&never(), By::Data), None, "another bug does not show in that");
        let own = anyhow::anyhow!("cannot start cp: no such file").context("logs are in x/logs");
        assert_eq!(caught_at_start(&own, start), None, "the harness's own error catches nothing");
    }

    #[test]
    fn a_run_in_which_only_another_checker_failed_is_no_catch_and_says_why() {
        let failed = |checker: &str| Verdict {
            checker: checker.to_owned(),
            outcome: Outcome::Failed,
            summary: format!("what {checker} saw"),
            ..Verdict::default()
        };
        let mut record = Record { verdicts: vec![failed("availability")], ..Record::default() };
        let (caught_by, passed, what) = judged(&record, By::Data);
        assert_eq!((caught_by, passed, what.as_str()), (Vec::new(), false, "availability: what availability saw"));
        record.verdicts.push(failed("set"));
        let (caught_by, passed, what) = judged(&record, By::Data);
        assert_eq!((caught_by, passed, what.as_str()), (vec!["set".to_owned()], false, "what set saw"));
    }

    #[test]
    fn the_harness_is_proved_by_every_mutant_and_by_the_one_that_is_none() {
        assert!(all_caught(&[row("", &[]), row("a", &["set"])]));
        assert!(!all_caught(&[row("", &["set"]), row("a", &["set"])]), "it fails without a bug");
        assert!(!all_caught(&[row("", &[]), row("a", &[])]), "a bug gets away");
        let undecided = Row { passed: false, ..row("", &[]) };
        assert!(!all_caught(&[undecided, row("a", &["set"])]), "nothing is known of the sound program");
    }
}
