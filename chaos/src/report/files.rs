//! A record on disk: `record.json` for programs, `report.html` for people, `timeline.svg` for documents.

use super::compare::comparison;
use super::{compare_text, page, picture};
use crate::record::Record;
use anyhow::{Context, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const JSON: &str = "record.json";
const HTML: &str = "report.html";
const PICTURE: &str = "timeline.svg";

/// Where [`write`] put things.
#[derive(Clone, Debug)]
pub struct Written {
    pub json: PathBuf,
    pub html: PathBuf,
    pub picture: PathBuf,
}

/// Writes the three files into `dir`, which is made where it is missing.
pub fn write(dir: &Path, record: &Record) -> Result<Written> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}: choose another folder for the report", dir.display()))?;
    let written = Written { json: dir.join(JSON), html: dir.join(HTML), picture: dir.join(PICTURE) };
    put(&written.json, &to_json(record)?)?;
    put(&written.html, &page(record))?;
    put(&written.picture, &picture(record))?;
    Ok(written)
}

/// Takes away what [`write`] put into `dir` before, and nothing else.
///
/// # Errors
/// Something of it cannot be removed.
pub fn clear(dir: &Path) -> Result<()> {
    [JSON, HTML, PICTURE].into_iter().try_for_each(|name| remove(&dir.join(name)))
}

/// A file that may not be there.
///
/// # Errors
/// It is there, and cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}, which an earlier run left: choose another folder", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where [`write_comparison`] put things.
#[derive(Clone, Debug)]
pub struct Compared {
    pub json: PathBuf,
    pub html: PathBuf,
}

/// Writes several records side by side into `dir`: a page, the figures for programs, and a table for documents.
///
/// # Errors
/// It cannot be written.
pub fn write_comparison(dir: &Path, records: &[Record]) -> Result<Compared> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}: choose another folder for the report", dir.display()))?;
    let written = Compared { json: dir.join("comparison.json"), html: dir.join("comparison.html") };
    let labelled: Vec<(&str, &Record)> = records.iter().map(|record| (compare_text::label(record), record)).collect();
    put(&written.html, &comparison(&labelled))?;
    put(&written.json, &compare_text::figures(records).context("the figures as JSON")?)?;
    put(&dir.join("comparison.md"), &compare_text::table(records))?;
    Ok(written)
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}: is there room, and may this user write there?", path.display()))
}

/// Reads what [`write`] wrote.
pub fn read(path: &Path) -> Result<Record> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}: name the record.json of a run", path.display()))?;
    from_json(&text).with_context(|| format!("{} is not a record of this version of chaos", path.display()))
}

/// The record as JSON. Latencies that are no number become zero, as JSON has no word for them.
pub fn to_json(record: &Record) -> Result<String> {
    let mut record = record.clone();
    for sample in &mut record.samples {
        for latency in [&mut sample.p50_ms, &mut sample.p99_ms] {
            if !latency.is_finite() {
                *latency = 0.0;
            }
        }
    }
    serde_json::to_string_pretty(&record).context("cannot turn the record into JSON")
}

/// The record of JSON.
pub fn from_json(text: &str) -> Result<Record> {
    serde_json::from_str(text).context("not the JSON of a record")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_record_survives_json_even_with_latencies_that_are_no_number() {
        let mut record = sample::small();
        record.samples[0].p50_ms = f32::NAN;
        let json = to_json(&record).unwrap();
        let back = from_json(&json).unwrap();
        assert_eq!(to_json(&back).unwrap(), json);
        assert_eq!(back.samples[0].p50_ms, 0.0);
    }

    #[test]
    fn a_record_without_steps_is_read() {
        let json = to_json(&sample::small()).unwrap();
        assert!(from_json(&json).unwrap().faults.iter().all(|fault| fault.steps.is_none()));
        assert!(!json.contains("\"steps\""));
    }

    #[test]
    fn three_files_are_written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let written = write(&dir.path().join("deep/er"), &sample::small()).unwrap();
        assert_eq!(read(&written.json).unwrap().seed, sample::small().seed);
        assert!(fs::read_to_string(&written.html).unwrap().starts_with("<!doctype html>"));
        assert!(fs::read_to_string(&written.picture).unwrap().starts_with("<svg "));
    }

    #[test]
    fn what_an_earlier_run_wrote_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        clear(&dir.path().join("not/there")).unwrap();
        write(dir.path(), &sample::small()).unwrap();
        fs::write(dir.path().join("comparison.html"), "").unwrap();
        clear(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["comparison.html"]);
    }

    #[test]
    fn what_is_no_record_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, "{").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("x.json is not a record"));
    }
}
