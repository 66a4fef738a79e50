//! The record of a run: a hash of everything that happened, and, where wanted, its text.

use super::node::Time;

/// FNV-1a over all notes: equal hashes mean equal runs.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    pub lines: Option<Vec<(Time, String)>>,
}

impl Trace {
    pub fn new(text: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, lines: text.then(Vec::new) }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Mix a number into the hash.
    pub fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    /// A line of text, built only where somebody reads it.
    pub fn note(&mut self, now: Time, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push((now, line()));
        }
    }

    /// The newest lines.
    pub fn tail(&self, count: usize) -> String {
        let lines = self.lines.as_deref().unwrap_or_default();
        let shown = &lines[lines.len().saturating_sub(count)..];
        shown.iter().map(|(t, l)| format!("{:>9.3}  {l}\n", *t as f64 / 1000.0)).collect()
    }
}
