//! Tables with aligned columns, colours on a terminal only, sizes and times as people read them.

use super::args::Output;
use super::client::{Exit, Failure};
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::fmt::Write as _;

pub(super) const ERROR: Style = AnsiColor::Red.on_default().bold();
pub(super) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default();
pub(super) const BUSY: Style = AnsiColor::Yellow.on_default();
pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const PLAIN: Style = Style::new();

/// Cells with a style each; columns are as wide as their widest cell.
pub(super) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<(String, Style)>>,
    /// Columns whose content is set flush right.
    right: Vec<usize>,
    keep_empty: bool,
}

impl Table {
    pub(super) fn new(header: &[&'static str], right: &[usize]) -> Table {
        Table { header: header.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new(), right: right.to_vec(), keep_empty: false }
    }

    /// Columns of a query's result: all are shown, also empty ones.
    pub(super) fn with_columns(header: Vec<String>) -> Table {
        Table { header, rows: Vec::new(), right: Vec::new(), keep_empty: true }
    }

    pub(super) fn row(&mut self, cells: Vec<(String, Style)>) {
        self.rows.push(cells);
    }

    /// A column that says nothing in any row only takes space: it is left out, except for the first.
    fn columns(&self) -> Vec<usize> {
        (0..self.header.len())
            .filter(|c| *c == 0 || self.keep_empty || self.rows.iter().any(|r| r.get(*c).is_some_and(|(text, _)| !text.is_empty())))
            .collect()
    }

    pub(super) fn render(&self) -> String {
        let columns = self.columns();
        let width = |c: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(c)).map(|(text, _)| text.chars().count());
            cells.chain([self.header[c].chars().count()]).max().unwrap_or(0)
        };
        let mut out = String::new();
        let header: Vec<(String, Style)> = self.header.iter().map(|h| (h.clone(), DIM)).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for c in &columns {
                let (text, style) = row.get(*c).cloned().unwrap_or_default();
                let padding = " ".repeat(width(*c).saturating_sub(text.chars().count()));
                let last = columns.last() == Some(c);
                let padding_behind = if last { "" } else { &padding };
                let styled = format!("{style}{text}{style:#}");
                // Writing into a String does not fail.
                let _ = match self.right.contains(c) {
                    true => write!(line, "{padding}{styled}"),
                    false => write!(line, "{styled}{padding_behind}"),
                };
                line.push_str(if last { "" } else { "  " });
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    pub(super) fn print(&self) {
        anstream::print!("{}", self.render());
    }
}

/// Print `document` as JSON where asked for, and say whether that was done.
pub(super) fn as_json(output: Output, document: &impl Serialize) -> Result<bool, Failure> {
    if output == Output::Table {
        return Ok(false);
    }
    let text = serde_json::to_string_pretty(document).map_err(|e| Failure::new(Exit::Failed, format!("cannot write JSON: {e}")))?;
    anstream::println!("{text}");
    Ok(true)
}

/// `512 B`, `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.iter().find(|(_, size)| count >= *size);
    #[allow(clippy::cast_precision_loss)]
    unit.map_or_else(|| format!("{count} B"), |(name, size)| format!("{:.1} {name}", count as f64 / *size as f64))
}

/// `340 ms`, `2.1 s`, `3 min`.
pub(super) fn millis(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min", ms / 60_000),
    }
}

/// `14:03:22.125` in UTC.
pub(super) fn clock(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (h, m, s) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{h:02}:{m:02}:{s:02}.{:03}", unix_ms % 1_000)
}

/// How a member's state looks.
pub(super) fn state_style(state: &str) -> Style {
    match state {
        "running" | "streaming" => GOOD,
        "unreachable" | "stopped" => BAD,
        _ => BUSY,
    }
}
