//! Timeline history files, and the placeholders by which PostgreSQL is made to choose a claimed number (INV-8).
//!
//! A promotion takes the first number above the newest whose history file PostgreSQL can find. Numbers that were claimed for other
//! promotions therefore get a placeholder in `pg_wal` for the moment of ours. Later the primary keeps them, because a standby that
//! follows across the gap asks it for each file in between.
//!
//! A start looks for the newest timeline in the same way, from the one in pg_control on, and stops at the first number without a file:
//! WAL that lies on a timeline behind a gap would not be replayed, and its end not be told to an election (INV-7). So there is a
//! placeholder in each gap below the newest real timeline that this directory is on the way to, and none anywhere else: one above it
//! would be fatal, and one in the place of a timeline that did last elsewhere hides the real file, which is fetched only where none is.

use super::durable::{sync_dir, write_atomic};
use super::error::{Error, io};
use super::user::RunAs;
use crate::types::{Lsn, Timeline};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// First line of a placeholder. PostgreSQL skips lines that begin with `#`.
const PLACEHOLDER: &str = "# claimed by Trilithon for a promotion that did not last; nothing was written on this timeline\n";

/// Ancestors of a timeline with the position at which each was left, oldest first.
pub(super) type Ancestry = Vec<(Timeline, Lsn)>;

/// Ancestors of `timeline` with the position at which each was left, oldest first, from its history file in `pg_wal`.
pub(super) fn ancestry(wal: &Path, timeline: Timeline) -> Result<Ancestry, Error> {
    if timeline <= Timeline(1) {
        return Ok(Vec::new());
    }
    let path = wal.join(timeline.history_file());
    let text = std::fs::read_to_string(&path).map_err(io("cannot read", path))?;
    let text = straightened(&text).unwrap_or(text);
    Ok(text.lines().filter_map(parse_line).collect())
}

/// `1<TAB>0/16B3748<TAB>reason`
fn parse_line(line: &str) -> Option<(Timeline, Lsn)> {
    let mut fields = line.split_whitespace();
    let timeline = fields.next()?.parse().ok()?;
    Some((Timeline(timeline), fields.next()?.parse().ok()?))
}

/// What a history says, where its positions go backwards; `None`: it is true as it is.
///
/// A standby that fetched the history of a primary of which it then received nothing takes that one's timeline for its own past, also where
/// its WAL never came to the beginning of it. Promoted, PostgreSQL writes down a fork there, and one that had gone further than this
/// standby would be taken to fit. A timeline begins where its parent was left: what lies beyond a later fork was never reached.
fn straightened(history: &str) -> Option<String> {
    let mut least = Lsn(u64::MAX);
    let mut crooked = false;
    let mut lines = Vec::new();
    for line in history.lines().rev() {
        match parse_line(line) {
            Some((timeline, lsn)) if lsn > least => {
                crooked = true;
                lines.push(format!("{timeline}\t{least}\tleft before it came to {lsn}\n"));
                continue;
            }
            Some((_, lsn)) => least = lsn,
            None => {}
        }
        lines.push(format!("{line}\n"));
    }
    lines.reverse();
    crooked.then(|| lines.concat())
}

/// Puts right what the histories of `pg_wal` say of positions that were never reached.
fn straighten(wal: &Path, run_as: &RunAs) -> Result<(), Error> {
    for (_, path, text) in histories(wal)? {
        if let Some(text) = straightened(&text) {
            tracing::info!(file = ?path, "a timeline's history told of a fork that was never reached");
            write_atomic(&path, &text, 0o600, Some(run_as))?;
        }
    }
    Ok(())
}

/// Puts a placeholder in `pg_wal` for each number of `numbers` that has no history file.
pub(super) fn reserve(wal: &Path, numbers: std::ops::Range<u32>, run_as: &RunAs) -> Result<(), Error> {
    for number in numbers {
        let path = wal.join(Timeline(number).history_file());
        if !path.exists() {
            write_atomic(&path, PLACEHOLDER, 0o600, Some(run_as))?;
        }
    }
    Ok(())
}

/// On a new primary: a file for every number below `timeline`, all of which a standby that follows across the gap asks for. The
/// server's own history tells those of its ancestors, which a copy may never have received; the others get a placeholder.
pub(super) fn complete(wal: &Path, timeline: Timeline, run_as: &RunAs) -> Result<(), Error> {
    straighten(wal, run_as)?;
    let own = wal.join(timeline.history_file());
    let text = std::fs::read_to_string(&own).map_err(io("cannot read", own))?;
    for number in 2..timeline.0 {
        let path = wal.join(Timeline(number).history_file());
        let known = std::fs::read_to_string(&path).ok();
        let told = told_of(&text, Timeline(number));
        if known.is_none() || (told.is_some() && known.is_some_and(|known| known.starts_with(PLACEHOLDER))) {
            write_atomic(&path, &told.unwrap_or_else(|| PLACEHOLDER.to_owned()), 0o600, Some(run_as))?;
        }
    }
    Ok(())
}

/// The history of an ancestor is what its descendants' histories begin with.
fn told_of(history: &str, ancestor: Timeline) -> Option<String> {
    let before = history.split_inclusive('\n').take_while(|line| parse_line(line).is_none_or(|(timeline, _)| timeline != ancestor));
    let before: String = before.collect();
    (before.len() < history.len()).then_some(before)
}

/// What a standby holds, and what it is to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descent {
    /// The timeline of its own WAL.
    pub own: Timeline,
    /// The upstream's timeline.
    pub upstream: Timeline,
    /// The ancestors of that, oldest first, each with the position at which it was left.
    pub ancestry: Vec<(Timeline, Lsn)>,
}

impl Descent {
    /// The upstream's timeline and the ancestors of it.
    fn upstreams(&self) -> Vec<Timeline> {
        self.ancestry.iter().map(|(timeline, _)| *timeline).chain([self.upstream]).collect()
    }

    /// Where the upstream left this standby's timeline for the next, which is its present one.
    pub(super) fn left_at(&self) -> Option<Lsn> {
        let (last, lsn) = self.ancestry.last()?;
        (*last == self.own && self.upstream == self.own.next()).then_some(*lsn)
    }
}

/// The history of the upstream's timeline, where the standby has none: its server then streams that timeline at once. Without it, it asks
/// for the history, then for the old timeline from the beginning of a segment, and for the new one from there again.
pub(super) fn foretell(wal: &Path, descent: &Descent, run_as: &RunAs) -> Result<(), Error> {
    let path = wal.join(descent.upstream.history_file());
    if path.exists() {
        return Ok(());
    }
    let line = |(timeline, lsn): &(Timeline, Lsn)| format!("{timeline}\t{lsn}\ttold by the primary\n");
    let text: String = descent.ancestry.iter().map(line).collect();
    write_atomic(&path, &text, 0o600, Some(run_as))
}

/// Histories of timelines that were begun after the own one, and that the upstream never was on. Nothing was received on them: a standby
/// that had, would have them as its own.
pub(super) fn strays(wal: &Path, descent: &Descent) -> Result<Vec<PathBuf>, Error> {
    let upstreams = descent.upstreams();
    let strange = |number: u32| number > descent.own.0 && !upstreams.contains(&Timeline(number));
    let real = histories(wal)?.into_iter().filter(|(number, _, text)| strange(*number) && !text.starts_with(PLACEHOLDER));
    Ok(real.map(|(_, path, _)| path).collect())
}

pub(super) fn forget(wal: &Path, files: &[PathBuf]) -> Result<(), Error> {
    for path in files {
        std::fs::remove_file(path).map_err(io("cannot remove", path))?;
    }
    sync_dir(wal)
}

fn number(name: &OsStr) -> Option<u32> {
    u32::from_str_radix(name.to_str()?.strip_suffix(".history")?, 16).ok()
}

/// Number, path and text of every history file.
fn histories(wal: &Path) -> Result<Vec<(u32, PathBuf, String)>, Error> {
    let entries = std::fs::read_dir(wal).map_err(io("cannot list", wal))?;
    let found = entries.flatten().filter_map(|entry| Some((number(&entry.file_name())?, entry.path())));
    found.map(|(number, path)| Ok((number, path.clone(), std::fs::read_to_string(&path).map_err(io("cannot read", path))?))).collect()
}

/// The timelines beyond `newest` that have a history here, the oldest first.
pub(super) fn newer(wal: &Path, newest: Timeline) -> Result<Vec<Timeline>, Error> {
    let entries = std::fs::read_dir(wal).map_err(io("cannot list", wal))?;
    let mut found: Vec<Timeline> =
        entries.flatten().filter_map(|entry| number(&entry.file_name())).map(Timeline).filter(|timeline| *timeline > newest).collect();
    found.sort_unstable();
    Ok(found)
}

/// Where recovery begins, and what it must reach, as pg_control says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub checkpoint: (Timeline, Lsn),
    /// The end of what must be replayed before the copy is consistent; timeline 0: nothing.
    pub least: (Timeline, Lsn),
}

impl Origin {
    /// Is this the history of a timeline that the directory may be recovered along? PostgreSQL refuses any other: the checkpoint record
    /// must lie before the point where its timeline was left, and what must be reached may end there.
    fn leads_to(self, number: u32, history: &str) -> bool {
        let left = |timeline: Timeline| history.lines().filter_map(parse_line).find(|(t, _)| *t == timeline).map(|(_, lsn)| lsn);
        let goes = |(timeline, lsn): (Timeline, Lsn)| timeline.0 == number || left(timeline).is_some_and(|left| left >= lsn);
        let (timeline, checkpoint) = self.checkpoint;
        let from = timeline.0 == number || left(timeline).is_some_and(|left| left > checkpoint);
        from && (self.least.0 == Timeline(0) || goes(self.least))
    }
}

/// Before a start: histories that are true, and a placeholder in each gap up to the newest timeline that recovery can reach, and no other.
pub(super) fn bridge(wal: &Path, origin: Origin, run_as: &RunAs) -> Result<(), Error> {
    straighten(wal, run_as)?;
    let real = histories(wal)?.into_iter().filter(|(_, _, text)| !text.starts_with(PLACEHOLDER));
    // PostgreSQL looks from here on.
    let begin = origin.checkpoint.0.max(origin.least.0).0;
    let newest = real.filter(|(number, _, text)| origin.leads_to(*number, text)).map(|(number, ..)| number).max().unwrap_or(begin);
    withdraw(wal, |number, _| number <= begin || number > newest)?;
    reserve(wal, begin + 1..newest, run_as)
}

/// Before an upstream is followed: the real files of the timelines that it was on are asked for.
pub(super) fn unhide(wal: &Path, descent: &Descent) -> Result<(), Error> {
    let lasted = descent.upstreams();
    withdraw(wal, |number, _| lasted.contains(&Timeline(number)))
}

/// After a promotion that failed: a server that did promote goes on, and is asked for the placeholders below its own timeline.
pub(super) fn withdraw_beyond_newest(wal: &Path) -> Result<(), Error> {
    withdraw(wal, |number, newest_real| number > newest_real)
}

fn withdraw(wal: &Path, goes: impl Fn(u32, u32) -> bool) -> Result<(), Error> {
    let (placeholders, real): (Vec<_>, Vec<_>) = histories(wal)?.into_iter().partition(|(_, _, text)| text.starts_with(PLACEHOLDER));
    let newest_real = real.iter().map(|(number, ..)| *number).max().unwrap_or(1);
    let going: Vec<PathBuf> = placeholders.into_iter().filter(|(n, ..)| goes(*n, newest_real)).map(|(_, path, _)| path).collect();
    if going.is_empty() { Ok(()) } else { forget(wal, &going) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> RunAs {
        let mut run_as = RunAs::resolve(None).unwrap();
        run_as.change = false;
        run_as
    }

    #[test]
    fn a_stray_is_the_real_history_of_a_later_timeline_that_the_upstream_never_was_on() {
        let dir = tempfile::tempdir().unwrap();
        let write = |n, text: &str| std::fs::write(dir.path().join(Timeline(n).history_file()), text).unwrap();
        for (number, text) in [(3, "1\t0/1\tx\n"), (5, "1\t0/1\tx\n"), (6, PLACEHOLDER), (7, "1\t0/1\tx\n"), (8, "1\t0/1\tx\n")] {
            write(number, text);
        }
        let ancestry = [1, 4].map(|timeline| (Timeline(timeline), Lsn(1))).to_vec();
        let descent = Descent { own: Timeline(4), upstream: Timeline(8), ancestry };
        let mut found = strays(dir.path(), &descent).unwrap();
        found.sort();
        assert_eq!(found, [5, 7].map(|n| dir.path().join(Timeline(n).history_file())), "not 3, which is older, nor 6, which is nobody's");
        forget(dir.path(), &found).unwrap();
        assert_eq!(strays(dir.path(), &descent).unwrap(), [] as [PathBuf; 0]);
    }

    #[test]
    fn no_timeline_is_told_to_have_been_left_beyond_where_a_later_one_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n| dir.path().join(Timeline(n).history_file());
        let straight = "1\t0/10\tno recovery target specified\n\n2\t0/10\tx\n3\t0/20\tx\n";
        std::fs::write(path(4), straight).unwrap();
        std::fs::write(path(5), PLACEHOLDER).unwrap();
        std::fs::write(path(8), format!("{straight}4\t0/50\tx\n6\t0/60\tx\n7\t0/40\tx\n")).unwrap();
        let told = [(1, 0x10), (2, 0x10), (3, 0x20), (4, 0x40), (6, 0x40), (7, 0x40)].map(|(n, lsn)| (Timeline(n), Lsn(lsn)));
        assert_eq!(ancestry(dir.path(), Timeline(8)).unwrap(), told);
        straighten(dir.path(), &me()).unwrap();
        assert_eq!(std::fs::read_to_string(path(4)).unwrap(), straight);
        assert_eq!(std::fs::read_to_string(path(5)).unwrap(), PLACEHOLDER);
        let text = std::fs::read_to_string(path(8)).unwrap();
        assert_eq!(text.lines().filter_map(parse_line).collect::<Vec<_>>(), told);
        assert_eq!(straightened(&text), None);
    }

    #[test]
    fn a_history_is_foretold_of_the_next_timeline_as_its_primary_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let ancestry_told = vec![(Timeline(1), Lsn(0x16B_3748)), (Timeline(2), Lsn(0x1_0300_0000))];
        let descent = |own, upstream| Descent { own: Timeline(own), upstream: Timeline(upstream), ancestry: ancestry_told.clone() };
        assert_eq!(descent(2, 3).left_at(), Some(Lsn(0x1_0300_0000)));
        assert_eq!([descent(1, 3).left_at(), descent(2, 4).left_at()], [None; 2], "a timeline between, or a number that is nobody's");
        foretell(dir.path(), &descent(2, 3), &me()).unwrap();
        assert_eq!(ancestry(dir.path(), Timeline(3)).unwrap(), ancestry_told);
        let path = dir.path().join("00000003.history");
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("1\t0/16B3748\t"));
        std::fs::write(&path, "real\n").unwrap();
        foretell(dir.path(), &descent(2, 3), &me()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "real\n", "what PostgreSQL wrote stays");
    }

    #[test]
    fn history_is_read_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{PLACEHOLDER}1\t0/16B3748\tno recovery target specified\n\n2\t0/3000000\tx\n");
        std::fs::write(dir.path().join("00000004.history"), text).unwrap();
        let found = ancestry(dir.path(), Timeline(4)).unwrap();
        assert_eq!(found, vec![(Timeline(1), Lsn(0x16B_3748)), (Timeline(2), Lsn(0x300_0000))]);
        assert!(ancestry(dir.path(), Timeline(3)).is_err());
        assert_eq!(ancestry(dir.path(), Timeline(1)).unwrap(), vec![]);
    }

    #[test]
    fn a_new_primary_tells_the_true_history_of_its_ancestors() {
        let dir = tempfile::tempdir().unwrap();
        let read = |n| std::fs::read_to_string(dir.path().join(Timeline(n).history_file())).unwrap();
        let write = |n, text: &str| std::fs::write(dir.path().join(Timeline(n).history_file()), text).unwrap();
        let (one, three) = ("1\t0/16B3748\tno recovery target specified\n", "\n3\t0/3000000\tx\n");
        write(5, &format!("{one}{three}"));
        write(3, PLACEHOLDER);
        complete(dir.path(), Timeline(5), &me()).unwrap();
        assert_eq!([read(2), read(4)], [PLACEHOLDER, PLACEHOLDER], "nobody's ancestors");
        assert_eq!(ancestry(dir.path(), Timeline(3)).unwrap(), [(Timeline(1), Lsn(0x16B_3748))]);
        write(3, "real\n");
        complete(dir.path(), Timeline(5), &me()).unwrap();
        assert_eq!(read(3), "real\n", "what PostgreSQL wrote stays");
    }

    fn at(timeline: u32, lsn: u64) -> Origin {
        Origin { checkpoint: (Timeline(timeline), Lsn(lsn)), least: (Timeline(0), Lsn(0)) }
    }

    #[test]
    fn a_start_finds_the_newest_timeline_across_every_gap() {
        let dir = tempfile::tempdir().unwrap();
        let left = || (2..8).map(|n| dir.path().join(Timeline(n).history_file()).exists()).collect::<Vec<_>>();
        let write = |n, text: &str| std::fs::write(dir.path().join(Timeline(n).history_file()), text).unwrap();
        write(2, PLACEHOLDER);
        write(4, "1\t0/100\tx\n");
        write(7, PLACEHOLDER);
        bridge(dir.path(), at(1, 0x90), &me()).unwrap();
        assert_eq!(left(), [true, true, true, false, false, false], "2 and 3 bridged, nothing above 4");
        bridge(dir.path(), at(4, 0x180), &me()).unwrap();
        assert_eq!(left(), [false, false, true, false, false, false], "from 4 on there is no gap; 2 may have lasted elsewhere");
        // 6 left timeline 4 before the checkpoint: it is no way for this directory.
        write(6, "1\t0/100\tx\n4\t0/170\tx\n");
        bridge(dir.path(), at(4, 0x180), &me()).unwrap();
        assert_eq!(left(), [false, false, true, false, true, false]);
        let beyond = Origin { least: (Timeline(4), Lsn(0x171)), ..at(4, 0x160) };
        assert!(!beyond.leads_to(6, "4\t0/170\tx\n") && at(4, 0x160).leads_to(6, "4\t0/170\tx\n"));
        let within = Origin { least: (Timeline(6), Lsn(0x171)), ..at(4, 0x160) };
        assert!(within.leads_to(6, "4\t0/170\tx\n"));
    }

    #[test]
    fn placeholders_below_a_real_timeline_stay_on_a_primary() {
        let dir = tempfile::tempdir().unwrap();
        reserve(dir.path(), 2..7, &me()).unwrap();
        std::fs::write(dir.path().join("00000004.history"), "1\t0/16B3748\tx\n").unwrap();
        let left = || (2..7).map(|n| dir.path().join(Timeline(n).history_file()).exists()).collect::<Vec<_>>();
        withdraw_beyond_newest(dir.path()).unwrap();
        assert_eq!(left(), [true, true, true, false, false]);
        let ancestry = [1, 2].map(|timeline| (Timeline(timeline), Lsn(1))).to_vec();
        unhide(dir.path(), &Descent { own: Timeline(1), upstream: Timeline(4), ancestry }).unwrap();
        assert_eq!(left(), [false, true, true, false, false], "timeline 2 did last elsewhere");
    }
}
