//! What this node last acknowledged, kept outside the database: the file `acknowledged`.
//!
//! A log that lost its tail looks like a shorter log, and sled cuts a damaged tail without a word. So before the store answers, it
//! notes here how far its answers reach. On opening, a log that ends before the note, or a vote older than it, has lost something
//! that others rely on.
//!
//! The note is written after the barrier and not synced itself, which would double the cost of each commit. Hence:
//! - it never claims more than what is durable, so a log shorter than the note is always damaged;
//! - within one boot of the machine the note is exact, because the page cache survives a process;
//! - after a loss of power it may be older than the truth: it can miss damage in the last seconds, never invent it.
//!
//! A truncation lowers the note first, and durably, for the same reason. Two slots are written in turn, so that a torn write
//! leaves the other one.

use crate::consensus::raft::{LeaderId, Vote};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Slots lie in different sectors, whatever the disk's sector size.
const SLOT_STRIDE: u64 = 4096;
const SLOT_LEN: usize = 64;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How far this node's answers reach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mark {
    /// One past the last acknowledged log index.
    pub next: u64,
    pub vote: Option<Vote>,
}

/// What was found on opening.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FoundMark {
    /// `None`: no slot is readable.
    pub mark: Option<Mark>,
    /// Written since the machine last booted: the mark is exact.
    pub exact: bool,
}

/// The open file, or nothing where the engine is in memory.
pub struct MarkFile {
    file: Option<File>,
    seq: u64,
    boot: [u8; 16],
    current: Mark,
}

impl MarkFile {
    /// For engines that have no directory.
    pub fn absent() -> MarkFile {
        MarkFile { file: None, seq: 0, boot: [0; 16], current: Mark::default() }
    }

    /// Open or create `path` and read the newer valid slot.
    pub fn open(path: &Path) -> io::Result<(MarkFile, FoundMark)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let boot = boot_id();
        let slots = [0, SLOT_STRIDE].map(|offset| {
            let mut bytes = [0_u8; SLOT_LEN];
            file.read_exact_at(&mut bytes, offset).ok().and_then(|()| decode(&bytes))
        });
        let newest = slots.into_iter().flatten().max_by_key(|(seq, _, _)| *seq);
        let (seq, found) = match newest {
            Some((seq, written_in, mark)) => (seq, FoundMark { mark: Some(mark), exact: written_in == boot && boot != [0; 16] }),
            None => (0, FoundMark::default()),
        };
        let current = found.mark.unwrap_or_default();
        Ok((MarkFile { file: Some(file), seq, boot, current }, found))
    }

    /// Note `mark`; with `durable` it is on disk when this returns.
    pub fn write(&mut self, mark: Mark, durable: bool) -> io::Result<()> {
        let changed = self.current != mark;
        self.current = mark;
        let Some(file) = &self.file else { return Ok(()) };
        if changed || durable {
            self.seq += 1;
            file.write_all_at(&encode(self.seq, &self.boot, &mark), (self.seq % 2) * SLOT_STRIDE)?;
        }
        if durable { file.sync_data() } else { Ok(()) }
    }

    pub fn current(&self) -> Mark {
        self.current
    }
}

fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default().replace('-', "");
    u128::from_str_radix(text.trim(), 16).unwrap_or(0).to_le_bytes()
}

/// `crc32c · seq · boot · next · has vote · committed · term · node`, little-endian, padded with zeros.
fn encode(seq: u64, boot: &[u8; 16], mark: &Mark) -> [u8; SLOT_LEN] {
    let mut out = [0_u8; SLOT_LEN];
    out[4..12].copy_from_slice(&seq.to_le_bytes());
    out[12..28].copy_from_slice(boot);
    out[28..36].copy_from_slice(&mark.next.to_le_bytes());
    if let Some(vote) = &mark.vote {
        out[36] = 1;
        out[37] = u8::from(vote.committed);
        out[38..46].copy_from_slice(&vote.leader_id.term.to_le_bytes());
        out[46..54].copy_from_slice(&vote.leader_id.node_id.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8; SLOT_LEN]) -> Option<(u64, [u8; 16], Mark)> {
    let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    if crc32c::crc32c(&bytes[4..]).to_le_bytes() != bytes[..4] || word(4)? == 0 {
        return None;
    }
    let leader_id = LeaderId { term: word(38)?, node_id: word(46)? };
    let vote = (bytes[36] == 1).then_some(Vote { leader_id, committed: bytes[37] == 1 });
    Some((word(4)?, bytes[12..28].try_into().ok()?, Mark { next: word(28)?, vote }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64) -> Option<Vote> {
        Some(Vote { leader_id: LeaderId { term, node_id: 2 }, committed: true })
    }

    #[test]
    fn mark_survives_a_torn_write_of_either_slot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acknowledged");
        let (mut file, found) = MarkFile::open(&path).unwrap();
        assert_eq!(found, FoundMark::default());
        for next in 1..=4 {
            file.write(Mark { next, vote: vote(next) }, false).unwrap();
        }
        let (_, found) = MarkFile::open(&path).unwrap();
        assert_eq!(found, FoundMark { mark: Some(Mark { next: 4, vote: vote(4) }), exact: true });

        let raw = OpenOptions::new().write(true).open(&path).unwrap();
        raw.write_all_at(b"torn", 30).unwrap();
        let (_, found) = MarkFile::open(&path).unwrap();
        assert_eq!(found.mark, Some(Mark { next: 3, vote: vote(3) }));
        raw.write_all_at(b"torn", SLOT_STRIDE + 30).unwrap();
        let (_, found) = MarkFile::open(&path).unwrap();
        assert_eq!(found.mark, None);
    }
}
