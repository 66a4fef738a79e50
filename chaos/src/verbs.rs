//! What each word of the command line does. Deliberately absent: anything that lasts; that is in [`crate::run`].

use crate::cli::{CompareArgs, MutantsArgs, ReportArgs, RunArgs, SystemName, UpArgs, WhatArgs, WithArgs, settings, world_dir};
use crate::fault::{self, Expected};
use crate::record::{Outcome, Record};
use crate::report;
use crate::run::{Finished, Interrupted, Voice, mutants as seeded, session};
use crate::world::{Interrupts, Spec, World, up_interactive};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::process::ExitCode;

/// Each of them means that a promise may be broken.
const FAILED: u8 = 1;
const INCONCLUSIVE: u8 = 3;

pub fn run(seed: Option<u64>, what: &WhatArgs, with: &WithArgs) -> Result<ExitCode> {
    let (interrupts, voice) = (Interrupts::listen()?, Voice::new());
    let settings = settings(seed, what, with)?;
    let finished = session::run(&settings, &interrupts, &voice);
    voice.finish();
    Ok(code(conclude(&finished?)?))
}

/// Write the record down, and say what it means.
fn conclude(finished: &Finished) -> Result<Outcome> {
    let written = report::write(&finished.dir, &finished.record)?;
    if finished.interrupted {
        anstream::eprintln!("what was seen until then: {}", written.html.display());
        bail!(Interrupted);
    }
    let judgement = report::judge(&finished.record);
    anstream::println!("{}", report::summary(&finished.record));
    if judgement.outcome == Outcome::Failed {
        anstream::println!("{}", violations(&finished.record));
    }
    anstream::println!(
        "report  {}\nrecord  {}\nlogs    {}",
        written.html.display(),
        written.json.display(),
        finished.dir.join("logs").display()
    );
    Ok(judgement.outcome)
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
        let outcome = conclude(&finished?)?;
        anstream::println!("soak: seed {seed} {outcome:?} after {} runs\n", seed - first + 1);
        if outcome == Outcome::Failed {
            return Ok(code(outcome));
        }
    }
    Ok(ExitCode::SUCCESS)
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
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&rows).context("the table as JSON")?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(if seeded::all_caught(&rows) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
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

/// What a system did is for the reader to judge: it ends well when all were run.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let dir = args.run.with.out.clone().unwrap_or_else(|| "target/chaos/compared".into());
    let mut records = args.records.iter().map(|file| report::read(file)).collect::<Result<Vec<Record>>>()?;
    if records.is_empty() {
        let (interrupts, voice) = (Interrupts::listen()?, Voice::new());
        let what = &args.run.what;
        let chosen = what.standard || what.short || what.minutes.is_some() || !what.faults.is_empty();
        for system in SYSTEMS.into_iter().filter(|system| args.only.is_empty() || args.only.contains(system)) {
            let what = WhatArgs { system, compared: what.compared || !chosen, ..what.clone() };
            let with = WithArgs { out: Some(dir.join(system.word())), ..args.run.with.clone() };
            let finished = session::run(&settings(args.run.seed, &what, &with)?, &interrupts, &voice);
            voice.finish();
            let finished = finished?;
            conclude(&finished)?;
            records.push(finished.record);
        }
    }
    let written = report::write_comparison(&dir, &records)?;
    anstream::println!("{}\nreport  {}\nfigures {}", report::side_by_side(&records), written.html.display(), written.json.display());
    Ok(ExitCode::SUCCESS)
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
