//! Stumps: first segments of a timeline that break off before it begins.
//!
//! A standby that goes over to a timeline receives the segment in which that begins from the segment's own beginning: the end of the parent's
//! WAL once more, under the new name. Until that has come to where the timeline begins, the file says less than the parent's own; and
//! PostgreSQL reads the newest timeline's file first. Started then, it takes the end of the stump for the end of its WAL, and an election is told
//! less than this member confirmed (INV-7). It dies of the first upstream ("belongs to timeline 2, but previous recovered WAL file came
//! from timeline 3"), at each start anew, and of a promotion, too.
//!
//! So a stump goes. Nothing is lost by that: it lacks what the parent's file has, and has nothing that this one lacks. What was confirmed of the
//! timeline itself was on disk with all that came before it in its file.

use super::durable::sync_dir;
use super::error::{Error, io};
use super::history;
use super::instance::Instance;
use super::tool::blocking;
use crate::types::{Lsn, Timeline};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes that are compared at once.
const CHUNK: usize = 64 << 10;

/// A file with the beginning of a timeline, and one with what came before that.
#[derive(Debug, PartialEq, Eq)]
struct FirstSegment {
    timeline: Timeline,
    file: PathBuf,
    /// Of the newest ancestor that has a file of this segment.
    ancestors: PathBuf,
    /// Bytes of the segment that they have in common.
    shared: u64,
}

impl Instance {
    /// Before a start, and before a promotion. `newest`: the timeline that the server is known to have come to.
    pub(super) async fn clear_stumps(&self, newest: Timeline) -> Result<(), Error> {
        let wal = self.layout.wal();
        let timelines = blocking(move || history::newer(&wal, newest)).await?;
        if timelines.is_empty() {
            return Ok(());
        }
        let (wal, control) = (self.layout.wal(), self.cached_control().await?);
        blocking(move || {
            // The oldest first: a stump is nothing to compare another with.
            for timeline in timelines {
                let name = |timeline, lsn| control.wal_file(timeline, lsn);
                if let Some(first) = first_segment(&wal, timeline, control.wal_segment, &name)
                    && breaks_off(&first).unwrap_or_else(|error| unknown(&first, &error))
                {
                    tracing::info!(file = ?first.file, %timeline, "this segment breaks off before its timeline begins: its parent's is read instead");
                    std::fs::remove_file(&first.file).map_err(io("cannot remove", &first.file))?;
                    sync_dir(&wal)?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn unknown(first: &FirstSegment, error: &std::io::Error) -> bool {
    tracing::warn!(%error, file = ?first.file, "nobody can tell how far this segment goes");
    false
}

/// The file in which `timeline` begins, where nothing but that is here of it, and something to compare it with.
fn first_segment(wal: &Path, timeline: Timeline, size: u64, name: &dyn Fn(Timeline, Lsn) -> String) -> Option<FirstSegment> {
    let ancestry = history::ancestry(wal, timeline).ok()?;
    let (_, begins) = *ancestry.last()?;
    let from = begins.0 - begins.0 % size;
    let file = wal.join(name(timeline, begins));
    if !file.exists() || wal.join(name(timeline, Lsn(begins.0 + size))).exists() {
        return None;
    }
    let within = ancestry.iter().rev().take_while(|(_, left)| left.0 > from);
    let mut others = within.map(|(ancestor, left)| (wal.join(name(*ancestor, begins)), left.0 - from));
    let (ancestors, shared) = others.find(|(path, _)| path.exists())?;
    Some(FirstSegment { timeline, file, ancestors, shared })
}

/// Does the file lack some of what its ancestor's has, and nothing else? What was never received is zero.
fn breaks_off(first: &FirstSegment) -> std::io::Result<bool> {
    let (mut file, mut other) = (File::open(&first.file)?, File::open(&first.ancestors)?);
    let (mut mine, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut left, mut lacks) = (first.shared, false);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact(&mut mine[..length])?;
        other.read_exact(&mut theirs[..length])?;
        if mine[..length] != theirs[..length] {
            if mine.iter().zip(&theirs).take(length).any(|(mine, theirs)| mine != theirs && *mine != 0) {
                return Ok(false);
            }
            lacks = true;
        }
        left -= u64::try_from(length).unwrap_or(left);
    }
    Ok(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(timeline: Timeline, lsn: Lsn) -> String {
        format!("{}-{}", timeline.0, lsn.0 / 1000)
    }

    #[test]
    fn a_segment_that_says_less_than_its_ancestors_is_a_stump() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
        let found = |timeline| first_segment(dir.path(), Timeline(timeline), 1000, &name);
        let stump = |timeline| found(timeline).map(|first| breaks_off(&first).unwrap());
        write("00000002.history", b"1\t0/3E8\tat the beginning of a segment\n");
        write("00000003.history", b"1\t0/3E8\tx\n2\t0/3EE\tsix bytes on\n");
        write("00000004.history", b"1\t0/3E8\tx\n2\t0/3EE\tx\n3\t0/3EF\tone byte further\n");
        assert_eq!(stump(3), None, "not here");
        write("3-1", b"abcdefGH");
        assert_eq!(stump(3), None, "nothing to compare it with");
        write("2-1", b"abcdefxx");
        assert_eq!(stump(3), Some(false), "it goes on");
        write("3-1", b"abcd\0\0\0\0");
        assert_eq!(stump(3), Some(true));
        write("3-1", b"\0\0\0\0\0\0\0\0");
        assert_eq!(stump(3), Some(true), "nothing came");
        write("2-1", b"abc\0\0\0\0\0");
        write("3-1", b"abcd\0\0\0\0");
        assert_eq!(stump(3), Some(false), "it has what the other lacks");
        write("2-1", b"abcdefxx");
        write("3-2", b"");
        assert_eq!(stump(3), None, "the next one is here, too");
        write("2-1", b"abcdef\0\0");
        write("4-1", b"abcdefGH");
        write("2-2", b"");
        let fourth = found(4).unwrap();
        assert_eq!((fourth.ancestors, fourth.shared), (dir.path().join("3-1"), 7));
        std::fs::remove_file(dir.path().join("3-1")).unwrap();
        let fourth = found(4).unwrap();
        assert_eq!((&fourth.ancestors, fourth.shared), (&dir.path().join("2-1"), 6));
        assert!(!breaks_off(&fourth).unwrap(), "what its parent wrote is only in it");
        write("4-1", b"abcde\0\0\0");
        assert!(breaks_off(&fourth).unwrap());
        write("2-1", b"abc");
        assert!(breaks_off(&fourth).is_err(), "a file that is no segment");
    }
}
