//! What each word of the command line does. Deliberately absent: anything that lasts; that is in [`crate::run`].

use crate::cli::{CompareArgs, MutantsArgs, ReportArgs, RunArgs, SystemName, UpArgs, WhatArgs, WithArgs, settings, world_dir};
use crate::fault::{self, Expected};
use crate::record::{Outcome, Record};
use crate::report;
use crate::run::{Finished, Interrupted, Voice, mutants as seeded, session};
use crate::world::{Interrupts, Spec, World, up_interactive};
use anyhow::{Context as _, Error, Result};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// Each of them means that a promise may be broken.
const FAILED: u8 = 1;
const INCONCLUSIVE: u8 = 3;

pub fn run(seed: Option<u64>, what: &WhatArgs, with: &WithArgs) -> Result<ExitCode> {
    let (interrupts, voice) = (Interrupts::listen()?, Voice::new());
    let settings = settings(seed, what, with)?;
    let finished = session::run(&settings, &interrupts, &voice);
    voice.finish();
    Ok(code(conclude(&mut finished?)?))
}

/// Say what a run means, and write its record down. In this order: what was found does not depend on whether there is room for it.
fn conclude(finished: &mut Finished) -> Result<Outcome> {
    let judgement = report::judge(&finished.record);
    if !finished.interrupted {
        anstream::println!("{}", report::summary(&finished.record));
        if judgement.outcome == Outcome::Failed {
            anstream::println!("{}", violations(&finished.record));
        }
    }
    let written = report::write(&finished.dir, &finished.record);
    match &written {
        Ok(written) if finished.interrupted => anstream::eprintln!("what was seen until then: {}", written.html.display()),
        Ok(written) => anstream::println!(
            "report  {}\nrecord  {}\nlogs    {}",
            written.html.display(),
            written.json.display(),
            finished.dir.join("logs").display()
        ),
        Err(_) => {}
    }
    let found = if finished.interrupted { Err(Interrupted.into()) } else { Ok(judgement.outcome) };
    answer(found, [written.err(), finished.teardown.take()])
}

/// A violation is the answer, whatever else went wrong; otherwise what went wrong is.
fn answer(found: Result<Outcome>, troubles: impl IntoIterator<Item = Option<Error>>) -> Result<Outcome> {
    let mut troubles = troubles.into_iter().flatten();
    let found = match found {
        Ok(Outcome::Failed) => Ok(Outcome::Failed),
        found => troubles.next().map_or(found, Err),
    };
    troubles.for_each(|trouble| anstream::eprintln!("error: {trouble:#}"));
    found
}

/// What was violated, the witness, and the command that repeats it.
fn violations(record: &Record) -> String {
    let mut text = String::new();
    for verdict in record.verdicts.iter().filter(|v| v.outcome == Outcome::Failed) {
        text.push_str(&format!("VIOLATED {}: {}\n", verdict.checker, verdict.summary));
        verdict.witness.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    text + &format!("again:  {}\n", record.command)
}

fn code(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::from(FAILED),
        Outcome::Inconclusive | Outcome::NotApplicable => ExitCode::from(INCONCLUSIVE),
    }
}

/// Seeds one after the other; a run that is inconclusive is told and does not end it.
pub fn soak(args: &RunArgs) -> Result<ExitCode> {
    let (interrupts, voice) = (Interrupts::listen()?, Voice::new());
    let first = args.seed.unwrap_or(1);
    for seed in first.. {
        let settings = settings(Some(seed), &args.what, &args.with)?;
        let out = settings.out.clone();
        let settings = crate::run::Settings { out: if args.with.out.is_some() { out.join(seed.to_string()) } else { out }, ..settings };
        let finished = session::run(&settings, &interrupts, &voice);
        voice.finish();
        let outcome = conclude(&mut finished?)?;
        anstream::println!("soak: seed {seed} {outcome:?} after {} runs\n", seed - first + 1);
        if outcome == Outcome::Failed {
            return Ok(code(outcome));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The worst outcome of all.
pub fn try_faults(words: &[String]) -> Result<ExitCode> {
    let tried = fault::command(words, &Interrupts::listen()?)?;
    Ok(code(answer(Ok(tried.worst), [tried.trouble])?))
}

pub fn list() -> Result<ExitCode> {
    for fault in fault::catalogue() {
        let phases: Vec<&str> = fault.phases.iter().map(|p| p.word()).collect();
        let expected = match fault.expected {
            Expected::Handled => String::new(),
            Expected::Remedy(remedy) => format!(" (remedy: {remedy})"),
            Expected::Known(gap) => format!(" (known gap: {gap})"),
        };
        anstream::println!("{:<36} {:<20} {}\n    {}{expected}", fault.name, fault.aim.words(), phases.join(", "), fault.about);
    }
    anstream::println!("\n{} faults", fault::catalogue().len());
    Ok(ExitCode::SUCCESS)
}

pub fn mutants(args: &MutantsArgs) -> Result<ExitCode> {
    let (interrupts, voice) = (Interrupts::listen()?, Voice::new());
    let what = &args.run.what;
    let chosen = what.standard || what.short || what.minutes.is_some() || !what.faults.is_empty() || args.run.seed.is_some();
    let settings = settings(args.run.seed, what, &args.run.with)?;
    let hunted = seeded::Hunted { only: args.only.clone(), bugs_only: args.bugs_only, own_faults: !chosen };
    let rows = seeded::run(&settings, &hunted, &interrupts, &voice);
    voice.finish();
    let rows = rows?;
    anstream::println!("{}", seeded::table(&rows));
    let written = args.json.as_ref().map(|file| {
        let text = serde_json::to_string_pretty(&rows).context("the table as JSON")?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    });
    let found = if seeded::all_caught(&rows) { Outcome::Passed } else { Outcome::Failed };
    Ok(code(answer(Ok(found), [written.and_then(Result::err)])?))
}

/// It must fail: the exit code says whether the harness saw that.
pub fn control(args: &RunArgs) -> Result<ExitCode> {
    let (interrupts, voice) = (Interrupts::listen()?, Voice::new());
    let settings = settings(args.seed, &args.what, &args.with)?;
    let row = seeded::control(&settings, args.what.faults.is_empty(), &interrupts, &voice);
    voice.finish();
    let row = row?;
    anstream::println!("{}", seeded::table(std::slice::from_ref(&row)));
    Ok(if row.caught_by.is_empty() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// In the order in which they are shown.
const SYSTEMS: [SystemName; 3] = [SystemName::Trilithon, SystemName::PatroniTuned, SystemName::Patroni];

/// What its peers did is for the reader to judge: the exit code is of what Trilithon did.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let dir = args.run.with.out.clone().unwrap_or_else(|| "target/chaos/compared".into());
    let mut records = args.records.iter().map(|file| report::read(file)).collect::<Result<Vec<Record>>>()?;
    let ran = if records.is_empty() { run_compared(args, &dir, &mut records) } else { Ok(()) };
    let drawn = ran.and_then(|()| draw(&dir, &records));
    Ok(code(answer(Ok(own_outcome(&records)), [drawn.err()])?))
}

fn run_compared(args: &CompareArgs, dir: &Path, records: &mut Vec<Record>) -> Result<()> {
    let (interrupts, voice) = (Interrupts::listen()?, Voice::new());
    let what = &args.run.what;
    let chosen = what.standard || what.short || what.minutes.is_some() || !what.faults.is_empty();
    for system in SYSTEMS.into_iter().filter(|system| args.only.is_empty() || args.only.contains(system)) {
        let what = WhatArgs { system, compared: what.compared || !chosen, ..what.clone() };
        let with = WithArgs { out: Some(dir.join(system.word())), ..args.run.with.clone() };
        let finished = session::run(&settings(args.run.seed, &what, &with)?, &interrupts, &voice);
        voice.finish();
        let mut finished = finished?;
        conclude(&mut finished)?;
        records.push(finished.record);
    }
    Ok(())
}

fn draw(dir: &Path, records: &[Record]) -> Result<()> {
    anstream::println!("{}", report::side_by_side(records));
    let written = report::write_comparison(dir, records)?;
    anstream::println!("report  {}\nfigures {}", written.html.display(), written.json.display());
    Ok(())
}

/// The worst of Trilithon's own records; where there is none, nothing of it was found wrong.
fn own_outcome(records: &[Record]) -> Outcome {
    let own = records.iter().filter(|record| record.system == SystemName::Trilithon.word());
    own.map(|record| report::judge(record).outcome).max().unwrap_or(Outcome::Passed)
}

pub fn up(args: &UpArgs) -> Result<ExitCode> {
    let spec = Spec {
        name: "up".to_owned(),
        dir: world_dir(args.dir.as_ref()),
        sites: args.sites,
        preset: args.preset.preset(),
        disks: !args.no_disks,
        clocks: false,
        seed: 1,
    };
    up_interactive(&spec)?;
    if args.dir.is_none() {
        // Where the datacenters had no disks of their own, what was tried there goes with the world.
        let _ = fs::remove_dir_all(&spec.dir);
    }
    Ok(ExitCode::SUCCESS)
}

pub fn down() -> Result<ExitCode> {
    let (gone, faults) = World::clean_dead();
    for dir in &gone {
        anstream::println!("taken down: the world that was left over in {}", dir.display());
    }
    if gone.is_empty() && faults.is_empty() {
        anstream::println!("no world was left over; those of running harnesses are theirs to take down");
    }
    for error in &faults {
        anstream::eprintln!("error: {error:#}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let records = args.records.iter().map(|file| report::read(file)).collect::<Result<Vec<Record>>>()?;
    if let ([file], [record]) = (&args.records[..], &records[..]) {
        let dir = file.parent().context("a record lies in a folder")?;
        let written = report::write(dir, record)?;
        anstream::println!("{}\nreport  {}", report::summary(record), written.html.display());
    } else {
        anstream::println!("{}", report::together(&records));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FaultRecord, Verdict};
    use anyhow::anyhow;

    #[test]
    fn a_violation_is_the_answer_whatever_else_went_wrong() {
        let trouble = || [Some(anyhow!("no room")), Some(anyhow!("not down in full"))];
        assert_eq!(answer(Ok(Outcome::Failed), trouble()).unwrap(), Outcome::Failed);
        assert_eq!(answer(Ok(Outcome::Passed), trouble()).unwrap_err().to_string(), "no room");
        assert_eq!(answer(Err(Interrupted.into()), trouble()).unwrap_err().to_string(), "no room");
        assert!(answer(Err(Interrupted.into()), [None, None]).unwrap_err().is::<Interrupted>());
        assert_eq!(answer(Ok(Outcome::Inconclusive), [None, None]).unwrap(), Outcome::Inconclusive);
    }

    /// A folder that cannot be made, since a file is in its place.
    #[test]
    fn a_record_that_cannot_be_written_hides_no_violation() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let finished = |outcome| Finished { record: record("trilithon", outcome), dir: file.clone(), interrupted: false, teardown: None };
        assert_eq!(conclude(&mut finished(Outcome::Failed)).unwrap(), Outcome::Failed);
        assert!(conclude(&mut finished(Outcome::Passed)).unwrap_err().to_string().contains("cannot make"));
        let mut left = Finished { dir: dir.path().join("out"), teardown: Some(anyhow!("not down in full")), ..finished(Outcome::Passed) };
        assert_eq!(conclude(&mut left).unwrap_err().to_string(), "not down in full");
        assert!(dir.path().join("out/record.json").exists(), "the record is there all the same");
    }

    #[test]
    fn a_comparison_ends_as_trilithons_own_column_does() {
        let all = |own, peer| own_outcome(&[record("patroni", peer), record("trilithon", own)]);
        assert_eq!(all(Outcome::Passed, Outcome::Failed), Outcome::Passed);
        assert_eq!(all(Outcome::Failed, Outcome::Passed), Outcome::Failed);
        assert_eq!(all(Outcome::Inconclusive, Outcome::Failed), Outcome::Inconclusive);
        assert_eq!(own_outcome(&[record("patroni", Outcome::Failed)]), Outcome::Passed);
    }

    fn record(system: &str, outcome: Outcome) -> Record {
        let verdict = Verdict { checker: "set".to_owned(), outcome, ..Verdict::default() };
        let fault = FaultRecord { took_hold: Some("seen".to_owned()), ..FaultRecord::default() };
        Record { system: system.to_owned(), verdicts: vec![verdict], faults: vec![fault], ..Record::default() }
    }
}
