//! `trilithon replay`: what nodes wrote with `telemetry.core_trace`, asked again. The core is pure, so that a live run must be repeated bit
//! for bit; where it is not, the shell around the core has given it something else than it wrote down, or the files were changed.

use crate::ha::{Replay, ReplayReport};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to ask again.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Files, or folders of them.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Answer as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Entries are missing: nothing is concluded.
const UNKNOWN: u8 = 5;
/// There is nothing to ask.
const UNREADABLE: u8 = 2;

/// Ask again, and say what came of it.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match try_run(args) {
        Ok(report) if report.disagreements > 0 => ExitCode::FAILURE,
        Ok(report) if report.dropped > 0 => ExitCode::from(UNKNOWN),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::from(UNREADABLE)
        }
    }
}

fn try_run(args: &Args) -> anyhow::Result<ReplayReport> {
    let mut files = Vec::new();
    for path in &args.paths {
        files.extend(traces(path)?);
    }
    if files.is_empty() {
        bail!("no trace is there: nodes write them with telemetry.core_trace");
    }
    let mut all = ReplayReport::default();
    for file in &files {
        // A process that was killed may leave half a character too.
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut report = Replay::text(&String::from_utf8_lossy(&bytes));
        report.shown = report.shown.into_iter().map(|what| format!("{}: {what}", file.display())).collect();
        all.add(report);
    }
    if args.json {
        println!("{}", serde_json::to_string(&all).context("the report as JSON")?);
    } else {
        println!("{}", words(files.len(), &all));
    }
    Ok(all)
}

/// A file itself; of a folder what a node wrote there, oldest first.
fn traces(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot list {}", path.display()))?.path();
        if file.extension().is_some_and(|e| e == "jsonl") {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

fn words(files: usize, report: &ReplayReport) -> String {
    let ReplayReport { applied, decided, stepped, dropped, unchecked, disagreements, shown, .. } = report;
    let mut text = format!("{files} files: {applied} commands applied, {decided} decisions, {stepped} steps asked again; ");
    text += &match (disagreements, dropped) {
        (0, 0) => "the core gives the same answers".to_owned(),
        (0, _) => format!("nothing is concluded: {dropped} entries were not written, {unchecked} could not be checked"),
        (_, _) => format!("{disagreements} differ"),
    };
    shown.iter().for_each(|what| text += &format!("\n  {what}"));
    text
}
