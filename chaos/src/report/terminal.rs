//! Progress while a run goes: one line per event, and on a terminal a status line that stays at the bottom.
//!
//! What is drawn is pure ([`line`], [`status_line`]); [`Terminal`] only writes it. Without a terminal (CI, a pipe) there are no
//! colours and no redrawing, and the status is a line of its own now and then, so that a log shows that the run lives.

use super::text::{clipped, count, flat, instant, millis, whole_instant};
use crate::record::At;
use anstyle::{AnsiColor, Style};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// What is worth a line. `number` counts the faults of the run from one, as the report does.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Injected {
        number: usize,
        name: &'a str,
        aim: &'a str,
        phase: &'a str,
    },
    TookHold {
        number: usize,
        proof: &'a str,
    },
    NotHeld {
        number: usize,
        why: &'a str,
    },
    Healed {
        number: usize,
        lasted: Duration,
    },
    /// Heal → first acknowledged write.
    Writable {
        number: usize,
        after: Duration,
    },
    /// Heal → all members stream.
    Redundant {
        number: usize,
        after: Duration,
    },
    /// `before`: who was primary until then, where that is known.
    Primary {
        node: &'a str,
        epoch: u64,
        timeline: u32,
        before: Option<&'a str>,
    },
    Note(&'a str),
}

/// What the status line shows.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub at: At,
    pub until: At,
    /// Fault under way, 1-based; zero before the first.
    pub fault: usize,
    pub faults: usize,
    pub name: String,
    pub primary: String,
    pub acknowledged_per_second: u64,
    pub p99_ms: f32,
    /// Microseconds since the last acknowledged write.
    pub silent: Duration,
}

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

const fn coloured(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(anstyle::Color::Ansi(colour)))
}

/// One event as a line without its end: time, what happened, to whom, details.
pub fn line(at: At, event: &Event) -> String {
    let (verb, style, subject, details) = parts(event);
    let (time, subject) = (instant(at), clipped(&flat(&subject), 34));
    format!("{DIM}{time:>10}{DIM:#}  {style}{verb:<9}{style:#} {BOLD}{subject:<34}{BOLD:#}  {}", flat(&details)).trim_end().to_owned()
}

fn parts(event: &Event) -> (&'static str, Style, String, String) {
    let (red, yellow, green) = (coloured(AnsiColor::Red), coloured(AnsiColor::Yellow), coloured(AnsiColor::Green));
    let fault = |number: usize| format!("#{number}");
    match *event {
        Event::Injected { number, name, aim, phase } => ("inject", yellow, format!("#{number} {name}"), format!("{aim} · {phase}")),
        Event::TookHold { number, proof } => ("held", yellow, fault(number), proof.to_owned()),
        Event::NotHeld { number, why } => ("not held", red, fault(number), why.to_owned()),
        Event::Healed { number, lasted } => ("heal", green, fault(number), format!("after {}", duration(lasted))),
        Event::Writable { number, after } => ("writable", green, fault(number), format!("{} after the heal", duration(after))),
        Event::Redundant { number, after } => ("redundant", green, fault(number), format!("{} after the heal", duration(after))),
        Event::Primary { node, epoch, timeline, before } => {
            let before = before.map_or_else(String::new, |before| format!(", before {before}"));
            ("primary", coloured(AnsiColor::Cyan), node.to_owned(), format!("epoch {epoch}, timeline {timeline}{before}"))
        }
        Event::Note(text) => ("note", DIM, String::new(), text.to_owned()),
    }
}

fn duration(duration: Duration) -> String {
    millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// The status as one line without its end.
pub fn status_line(status: &Status) -> String {
    const BAR: usize = 16;
    let share = if status.until.0 > 0 { (status.at.0 as f64 / status.until.0 as f64).min(1.0) } else { 0.0 };
    let full = (share * BAR as f64).round() as usize;
    let bar = format!("{}{}", "━".repeat(full), "─".repeat(BAR - full));
    let mut line = format!("{} {bar} {}", whole_instant(status.at), whole_instant(status.until));
    if status.fault > 0 {
        line += &format!(" · fault {}/{} {BOLD}{}{BOLD:#}", status.fault, status.faults, clipped(&flat(&status.name), 28));
    }
    if !status.primary.is_empty() {
        line += &format!(" · {}", flat(&status.primary));
    }
    line += &format!(" · {}/s", count(status.acknowledged_per_second));
    if status.p99_ms.is_finite() && status.p99_ms > 0.0 {
        line += &format!(" · p99 {}", millis(status.p99_ms as u64));
    }
    // Under a second is what a healthy cluster over long lines may need.
    if status.silent >= Duration::from_secs(1) {
        let red = coloured(AnsiColor::Red);
        line += &format!(" · {red}no write for {}{red:#}", duration(status.silent));
    }
    line
}

/// Writes progress. Its errors are ignored: a closed terminal must not end a run.
pub struct Terminal<W: Write> {
    out: W,
    live: bool,
    drawn: bool,
    status: String,
    said: Option<At>,
}

impl Terminal<anstream::AutoStream<std::io::Stderr>> {
    /// Progress goes to standard error, so that standard output holds only the summary.
    pub fn stderr() -> Self {
        let choice = anstream::AutoStream::choice(&std::io::stderr());
        let live = std::io::stderr().is_terminal() && choice != anstream::ColorChoice::Never;
        Terminal::new(anstream::stderr(), live)
    }
}

impl<W: Write> Terminal<W> {
    /// `live`: `out` is a terminal whose last line may be drawn anew.
    pub fn new(out: W, live: bool) -> Self {
        Terminal { out, live, drawn: false, status: String::new(), said: None }
    }

    /// Adds a line above the status.
    pub fn event(&mut self, at: At, event: &Event) {
        self.erase();
        let _ = writeln!(self.out, "{}", line(at, event));
        self.draw();
    }

    /// Draws the status anew; without a terminal only once in half a minute.
    pub fn status(&mut self, status: &Status) {
        const QUIET: Duration = Duration::from_secs(30);
        if self.live {
            self.erase();
            self.status = status_line(status);
            self.draw();
        } else if self.said.is_none_or(|said| status.at.since(said) >= QUIET) {
            self.said = Some(status.at);
            let _ = writeln!(self.out, "            {}", status_line(status));
        }
    }

    /// Takes the status away for good: what follows is written below the events.
    pub fn finish(&mut self) {
        self.erase();
        self.status.clear();
        let _ = self.out.flush();
    }

    fn erase(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(self.out, "\r\x1b[2K");
        }
    }

    fn draw(&mut self) {
        if self.live && !self.status.is_empty() {
            // Without wrapping, a line too long for the terminal is clipped and can still be erased.
            let _ = write!(self.out, "\x1b[?7l{}\x1b[?7h", self.status);
            self.drawn = true;
        }
        let _ = self.out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn lines_are_aligned() {
        let events = [
            Event::Injected { number: 7, name: "freeze_datacenter", aim: "primary (dc1)", phase: "steady" },
            Event::TookHold { number: 7, proof: "cgroup.events: frozen 1" },
            Event::Primary { node: "dc2", epoch: 14, timeline: 15, before: Some("dc1") },
        ];
        let lines: Vec<String> = events.iter().map(|event| plain(&line(At(133_400_000), event))).collect();
        let at = |line: &str, what: &str| line.split(what).next().map(|before| before.chars().count());
        assert_eq!(lines[0], "   02:13.4  inject    #7 freeze_datacenter                primary (dc1) · steady");
        assert_eq!(at(&lines[0], "primary (dc1)"), at(&lines[1], "cgroup"));
        assert_eq!(at(&lines[0], "primary (dc1)"), at(&lines[2], "epoch 14"));
    }

    #[test]
    fn foreign_text_cannot_move_the_cursor() {
        let drawn = line(At(0), &Event::TookHold { number: 1, proof: "a\n\x1b[2Jb" });
        assert!(plain(&drawn).ends_with("a  [2Jb"), "{drawn:?}");
    }

    #[test]
    fn the_status_names_silence() {
        let mut status = Status { at: At(60_000_000), until: At(600_000_000), acknowledged_per_second: 1_040, ..Status::default() };
        assert_eq!(plain(&status_line(&status)), "01:00 ━━────────────── 10:00 · 1,040/s");
        status.silent = Duration::from_millis(2_310);
        assert!(plain(&status_line(&status)).ends_with("no write for 2.31 s"));
    }

    #[test]
    fn without_a_terminal_nothing_is_redrawn_and_the_status_is_rare() {
        let mut out = Vec::new();
        let mut terminal = Terminal::new(&mut out, false);
        for second in 0..60 {
            terminal.status(&Status { at: At(second * 1_000_000), until: At(60_000_000), ..Status::default() });
        }
        terminal.event(At(0), &Event::Note("done"));
        terminal.finish();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains("\x1b[2K") && !text.contains('\r'));
    }

    #[test]
    fn on_a_terminal_an_event_pushes_the_status_down() {
        let mut out = Vec::new();
        let mut terminal = Terminal::new(&mut out, true);
        terminal.status(&Status { primary: "dc2".to_owned(), ..Status::default() });
        terminal.event(At(0), &Event::Note("x"));
        terminal.finish();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("dc2").count(), 2);
        assert!(text.ends_with("\r\x1b[2K"));
    }
}
