//! pg_hba.conf, and its lines that PostgreSQL cannot read. With one of them it does not start, and a server that runs keeps what it read
//! before and tells only its log.
//!
//! PostgreSQL alone knows what it reads. A server that runs says it of the file on disk before it is told to read it; one that does not start
//! has said it in its log. The lines it names are left out, with a warning, and the others are used.

use super::conf::{REPLICATION_ROLE, SUPERUSER};
use super::error::Error;
use super::instance::{Instance, QUERY_LIMIT};
use super::layout::Layout;
use super::process::{lock, log_end};
use super::tool::blocking;
use std::fmt::Write;

/// What is said of a line that PostgreSQL read: it only never applies, as one with TLS where there is none.
const NEVER_APPLIES: &str = "record cannot match";
/// Bytes of the log's end that tell of a start, with a message for each of many bad lines.
const LOOKED_AT: u64 = 64 << 10;

/// Lets nobody in.
const NOBODY: [&str; 2] = ["local all all reject", "host all all all reject"];

/// A line of the file, and what PostgreSQL says of it.
type Refused = (String, String);

/// pg_hba.conf: the local superuser by its operating system name, everything remote by SCRAM. `extra` lines come before the
/// general ones and after those that replication needs.
pub(super) fn render_hba(extra: &[String], peer: bool) -> String {
    let local = if peer { "peer map=trilithon" } else { "scram-sha-256" };
    let mut text = String::from("# Written by Trilithon. Changes made here are undone; use `trilithon config set`.\n");
    let _ = writeln!(text, "local all {SUPERUSER} {local}");
    let _ = writeln!(text, "local replication {SUPERUSER} {local}");
    let _ = writeln!(text, "host replication {REPLICATION_ROLE} all scram-sha-256");
    let _ = writeln!(text, "host postgres {REPLICATION_ROLE} all scram-sha-256");
    let _ = writeln!(text, "host all {REPLICATION_ROLE} all reject");
    for line in extra {
        let _ = writeln!(text, "{}", as_written(line));
    }
    let _ = writeln!(text, "local all all scram-sha-256");
    let _ = writeln!(text, "host all all all scram-sha-256");
    text
}

/// One line of the file, that cannot take the next one with it.
fn as_written(line: &str) -> String {
    line.replace(['\n', '\r'], " ").trim_end_matches(['\\', ' ', '\t']).to_owned()
}

impl Instance {
    /// Takes out of the file on disk what the running server could not read of it; the caller reloads.
    pub(super) async fn leave_out_unreadable_hba(&self) -> Result<(), Error> {
        // The view reads the file anew. A line that was read has a type, whatever is said of it.
        const SQL: &str = "SELECT line_number, error, to_jsonb(r) ->> 'file_name' FROM pg_hba_file_rules r \
                           WHERE error IS NOT NULL AND type IS NULL";
        let rows = self.session().await?.rows(SQL, QUERY_LIMIT).await?;
        let ours = self.layout.hba_file().display().to_string();
        // Releases before 16 know one file only, and do not name it.
        let here = |file: Option<&str>| file.is_none_or(|file| file == ours);
        let file = render_hba(&lock(&self.model).wishes.hba, false);
        let refused = rows.iter().filter(|row| here(row.get(2)));
        let refused: Vec<Refused> = refused.filter_map(|row| Some((line_of(&file, row.get(0)?)?, row.get(1)?.to_owned()))).collect();
        if self.leave_out(|line| said_of(&refused, line)) { self.retune(|_| {}).await } else { Ok(()) }
    }

    /// After a start that failed: is it because of our pg_hba.conf, and is there now another one to try?
    pub(super) async fn hba_mended(&self) -> bool {
        let (layout, lines) = (self.layout.clone(), lock(&self.model).wishes.hba.clone());
        let said = blocking(move || said_of_hba(&log_end(&layout, LOOKED_AT), &layout, &lines)).await;
        let Some(refused) = said else { return false };
        // What is wrong may be in a file that a line of ours names, or be said in words that are not known here. A server has to start (P7).
        const NAMED: &str = "the file cannot be read, maybe because of another one that this line names";
        const ANY: &str = "the file cannot be read, and it is not clear which line is why";
        let mended = self.leave_out(|line| said_of(&refused, line))
            || self.shut_out(|line| names_a_file(line).then(|| NAMED.to_owned()))
            || self.shut_out(|_| Some(ANY.to_owned()));
        mended && self.retune(|_| {}).await.is_ok()
    }

    /// Leaves out lines that were only guessed at. One of them may have refused somebody: then nobody is let in from where it stood on, so that
    /// what was forbidden is not open until it is corrected. The roles of Trilithon itself come before.
    fn shut_out(&self, why: impl Fn(&str) -> Option<String>) -> bool {
        self.replace(|line| {
            let why = why(line).filter(|_| !NOBODY.contains(&line))?;
            Some((why, if may_refuse(line) { &NOBODY } else { &[] }))
        })
    }

    /// Leaves out the lines that `why` says something of; `false`: there were none.
    fn leave_out(&self, why: impl Fn(&str) -> Option<String>) -> bool {
        self.replace(|line| Some((why(line)?, &[])))
    }

    fn replace(&self, by: impl Fn(&str) -> Option<(String, &'static [&'static str])>) -> bool {
        let mut model = lock(&self.model);
        let mut replaced = false;
        let mut lines = Vec::new();
        for line in std::mem::take(&mut model.wishes.hba) {
            let Some((why, instead)) = by(&as_written(&line)) else {
                lines.push(line);
                continue;
            };
            replaced = true;
            tracing::warn!(%line, %why, "left out of pg_hba.conf; correct it with `trilithon config set postgres.hba`");
            if !instead.is_empty() {
                tracing::error!(%line, "it may have refused connections: until it is corrected, all that come to this place are refused");
            }
            lines.extend(instead.iter().map(|line| (*line).to_owned()));
        }
        model.wishes.hba = lines;
        replaced
    }
}

/// What this line says is in another file: an included one, or a list of names.
fn names_a_file(line: &str) -> bool {
    line.starts_with("include") || line.split([' ', '\t', ',']).any(|word| word.trim_start_matches('"').starts_with('@'))
}

/// Does it refuse anybody, or may what it includes?
fn may_refuse(line: &str) -> bool {
    line.starts_with("include") || line.split_whitespace().any(|word| word == "reject")
}

fn said_of(refused: &[Refused], line: &str) -> Option<String> {
    refused.iter().find(|(bad, _)| bad == line).map(|(_, why)| why.clone())
}

/// The line of `number`, counted from 1. How the local superuser is known changes no number.
fn line_of(file: &str, number: &str) -> Option<String> {
    file.lines().nth(number.parse::<usize>().ok()?.checked_sub(1)?).map(str::to_owned)
}

/// PURE: the lines of our file, which has `extra` ones, that the last start could not read; `None` where it did not fail for them.
fn said_of_hba(log: &str, layout: &Layout, extra: &[String]) -> Option<Vec<Refused>> {
    let start = log.rfind("LOG:  starting PostgreSQL").map_or(log, |at| &log[at..]);
    let ours = layout.hba_file().display().to_string();
    // Releases before 16 do not name its directory.
    if !start.lines().any(|line| line.contains("FATAL:  could not load ") && line.ends_with("pg_hba.conf")) {
        return None;
    }
    let file = render_hba(extra, false);
    let (mut refused, mut message) = (Vec::new(), "");
    for line in start.lines() {
        if let Some((_, said)) = line.split_once("LOG:  ") {
            message = said;
        }
        let place = line.split_once("CONTEXT:  line ").and_then(|(_, place)| place.split_once(" of configuration file "));
        let here = place.filter(|(_, path)| path.trim_matches('"') == ours && !message.contains(NEVER_APPLIES));
        refused.extend(here.and_then(|(number, _)| Some((line_of(&file, number)?, message.to_owned()))));
    }
    Some(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn remote_connections_need_a_password_and_extra_lines_cannot_open_replication() {
        let hba = render_hba(&["host all all 0.0.0.0/0 trust".into()], true);
        let lines: Vec<&str> = hba.lines().collect();
        let replication = lines.iter().position(|l| l.starts_with("host replication")).unwrap();
        let extra = lines.iter().position(|l| l.contains("trust")).unwrap();
        assert!(replication < extra);
        assert_eq!(*lines.last().unwrap(), "host all all all scram-sha-256");
    }

    #[test]
    fn no_line_takes_the_next_one_with_it() {
        let hba = render_hba(&["host all all 0.0.0.0/0 reject \\".into(), "a\nb".into()], true);
        assert!(hba.contains("reject\na b\nlocal all all scram-sha-256\n"), "{hba}");
    }

    #[test]
    fn the_log_of_a_failed_start_names_the_lines() {
        let layout = Layout::new(Path::new("/n"), None);
        let file = layout.hba_file().display().to_string();
        let context = |n: u32| format!("12:00 [1] CONTEXT:  line {n} of configuration file \"{file}\"\n");
        let failed = format!("12:00 [1] FATAL:  could not load {file}\n");
        let before = format!("12:00 [0] LOG:  invalid connection type \"old\"\n{}", context(9));
        let start = "12:00 [1] LOG:  starting PostgreSQL 15.1\n";
        let bad = format!("12:00 [1] LOG:  invalid connection type \"hots\"\n{}", context(7));
        let unused = format!("12:00 [1] LOG:  hostssl record cannot match because SSL is disabled\n{}", context(8));
        let log = format!("{before}{start}{bad}{unused}");
        let lines = ["hots all all all md5".to_owned(), "hostssl all all all md5".to_owned()];
        assert_eq!(said_of_hba(&log, &layout, &lines), None, "it started all the same");
        let expected = vec![(lines[0].clone(), "invalid connection type \"hots\"".to_owned())];
        assert_eq!(said_of_hba(&(log.clone() + &failed), &layout, &lines), Some(expected.clone()));
        let before_16 = "12:00 [1] FATAL:  could not load pg_hba.conf\n";
        assert_eq!(said_of_hba(&(log + before_16), &layout, &lines), Some(expected));
    }
}
