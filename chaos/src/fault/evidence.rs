//! What shows that a fault took hold: files that grew a telling line, ports that do not answer, counters that rose.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A place in a log; what is written after it counts.
pub struct Tail {
    path: PathBuf,
    from: u64,
}

impl Tail {
    /// From the present end of `path`, which need not exist yet.
    pub fn of(path: impl AsRef<Path>) -> Tail {
        let path = path.as_ref().to_owned();
        let from = std::fs::metadata(&path).map_or(0, |m| m.len());
        Tail { path, from }
    }

    /// What was written since. A log that was cut counts from its beginning.
    pub fn new_text(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let from = if file.metadata()?.len() < self.from { 0 } else { self.from };
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// The first new line that holds one of `words`, without colours, cut to what a report can bear.
    pub fn line(&self, words: &[&str]) -> Option<String> {
        const CHARS_MAX: usize = 180;
        let text = plain(&self.new_text());
        let line = text.lines().find(|line| words.iter().any(|word| line.contains(word)))?;
        Some(line.trim().chars().take(CHARS_MAX).collect())
    }
}

/// Without the sequences that colour a terminal.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 2..];
        let end = tail.find(|c: char| c.is_ascii_alphabetic()).map_or(tail.len(), |end| end + 1);
        rest = &tail[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_what_was_written_after_the_mark_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "No space left\n").unwrap();
        let tail = Tail::of(&path);
        assert_eq!(tail.line(&["No space"]), None);
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writeln!(file, "\u{1b}[31mPANIC\u{1b}[0m: No space left on device").unwrap();
        assert_eq!(tail.line(&["No space"]).as_deref(), Some("PANIC: No space left on device"));
    }
}
