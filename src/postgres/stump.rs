//! Stumps: first segments of a timeline that break off before it begins.
//!
//! A standby that goes over to a timeline receives the segment in which that begins from the segment's own beginning: the end of the parent's
//! WAL once more, under the new name. Until that has come to where the timeline begins, the file says less than the parent's own; and
//! PostgreSQL reads the newest timeline's file first. Started then, it takes the end of the stump for the end of its WAL, and an election is told
//! less than this member confirmed (INV-7). It dies of the first upstream ("belongs to timeline 2, but previous recovered WAL file came
//! from timeline 3"), at each start anew, and of a promotion, too.
//!
//! So a stump goes. Nothing is lost by that: a timeline is asked for when all of its parent's WAL is here, and what was confirmed of that came in
//! under the parent's name.

use super::control::ControlData;
use super::durable::sync_dir;
use super::error::{Error, io};
use super::history;
use super::instance::Instance;
use super::tool::{self, blocking};
use crate::types::{Lsn, Timeline};
use std::path::{Path, PathBuf};
use std::time::Duration;

const WALDUMP_LIMIT: Duration = Duration::from_secs(30);
/// What pg_waldump says of a file that breaks off: in a record, before the first one, and of one that was made and never written.
const BREAKS_OFF: [&str; 3] = ["error in WAL record at", "could not find a valid record after", "WAL segment size"];

/// A file with the beginning of a timeline, and with what came before that.
#[derive(Debug, PartialEq, Eq)]
struct FirstSegment {
    timeline: Timeline,
    file: PathBuf,
    /// Where the file begins, and the timeline.
    from: Lsn,
    to: Lsn,
}

impl Instance {
    /// Before a start, and before a promotion. `newest`: the timeline that the server is known to have come to.
    pub(super) async fn clear_stumps(&self, control: &ControlData, newest: Timeline) -> Result<(), Error> {
        let (wal, control) = (self.layout.wal(), control.clone());
        let found = blocking(move || first_segments(&wal, &control, newest)).await?;
        for first in found {
            if self.breaks_off(&first).await {
                let FirstSegment { timeline, file, to, .. } = first;
                tracing::info!(
                    ?file,
                    "this segment breaks off before {to}, where timeline {timeline} begins: its parent's is read instead"
                );
                blocking(move || remove(&file)).await?;
            }
        }
        Ok(())
    }

    async fn breaks_off(&self, first: &FirstSegment) -> bool {
        let mut command = tool::command(&self.install(), "pg_waldump", &self.run_as, &self.layout.node_dir);
        command.args(["--quiet", "--timeline", &first.timeline.to_string(), "--start", &first.from.to_string()]);
        command.args(["--end", &first.to.to_string()]).arg(&first.file);
        match tool::run(command, "pg_waldump", WALDUMP_LIMIT).await {
            Err(Error::Tool { output, .. }) if BREAKS_OFF.iter().any(|words| output.contains(words)) => true,
            Err(error) => {
                tracing::warn!(%error, file = ?first.file, "nobody can tell how far this segment goes");
                false
            }
            Ok(_) => false,
        }
    }
}

fn remove(file: &Path) -> Result<(), Error> {
    std::fs::remove_file(file).map_err(io("cannot remove", file))?;
    sync_dir(file.parent().unwrap_or(Path::new("/")))
}

/// Of timelines beyond `newest`, those of which nothing but the first segment is here.
fn first_segments(wal: &Path, control: &ControlData, newest: Timeline) -> Result<Vec<FirstSegment>, Error> {
    let beginnings = history::beginnings(wal)?.into_iter().filter(|(timeline, _)| *timeline > newest);
    let first = beginnings.map(|(timeline, to)| {
        let file = |lsn| wal.join(control.wal_file(timeline, lsn));
        let goes_on = file(Lsn(to.0 + control.wal_segment)).exists();
        (goes_on, FirstSegment { timeline, file: file(to), from: Lsn(to.0 - to.0 % control.wal_segment), to })
    });
    Ok(first.filter(|(goes_on, first)| !goes_on && first.from < first.to && first.file.exists()).map(|(_, first)| first).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_segment_of_a_timeline_that_was_not_reached_yet_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("00000002.history", "1\t0/2000000\tat the beginning of a segment\n");
        write("00000003.history", "1\t0/2000000\tx\n2\t0/406C810\tx\n");
        write("00000004.history", "1\t0/2000000\tx\n2\t0/406C810\tx\n3\t0/506C810\tits segment is not here\n");
        for file in ["000000020000000000000002", "000000030000000000000004", "000000020000000000000004"] {
            write(file, "");
        }
        let control = ControlData::sample(&[]);
        let found = |newest| first_segments(dir.path(), &control, Timeline(newest)).unwrap();
        let file = dir.path().join("000000030000000000000004");
        let third = FirstSegment { timeline: Timeline(3), file, from: Lsn(0x400_0000), to: Lsn(0x406_C810) };
        assert_eq!(found(1), [third]);
        assert_eq!(found(3), [], "it has replayed some of it");
        write("000000030000000000000005", "");
        assert_eq!(found(1), [], "it goes on");
    }
}
