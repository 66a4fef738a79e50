//! Faults that destroy what a node stored. They work on the files of a stopped node.
//!
//! What is right: a node whose consensus store or data is damaged never goes on as if nothing had happened. It repairs itself from the
//! others where that is safe, else it stops and names the remedy (move the directory aside; it rejoins empty, under a fresh id). The
//! healing here applies exactly that remedy, and only to a node that asked for it.

use super::aim::Target;
use super::evidence::Tail;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Phase};
use super::orders;
use super::procs::{Group, Kind};
use super::said;
use super::toil::Toil;
use super::volume::run;
use anyhow::{Context as _, Result, bail};
use rand::Rng as _;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Damage, name, aim, about, inject).hold(8, 20)
}

/// What a node says that asks for the remedy.
const ASIDE: &str = "move the named directory aside and start the node again: it rejoins empty, under a fresh id";
const DURING_COPY: &[Phase] = &[Phase::Steady, Phase::BaseBackup];

pub(super) const FAULTS: &[Fault] = &[
    fault(
        "bit-flips-in-consensus-log",
        Aim::OtherStandby,
        "Bits of a stopped node's consensus log flip: it must notice, or not need them.",
        |i| spoil_consensus(i, i.target(), flip_bits),
    )
    .destroys()
    .remedy(ASIDE),
    fault("consensus-log-truncated", Aim::RaftLeader, "The consensus log of a stopped node ends in the middle.", |i| {
        spoil_consensus(i, i.target(), truncate)
    })
    .destroys()
    .remedy(ASIDE),
    fault(
        "consensus-store-from-the-past",
        Aim::OtherStandby,
        "An old copy of the consensus store is put back: a vote may be forgotten.",
        |i| past(i, i.target(), Part::Consensus),
    )
    .destroys()
    .remedy(ASIDE),
    fault(
        "node-from-the-past",
        Aim::OtherStandby,
        "An old copy of a node's whole directory is put back, as from a snapshot of its machine.",
        |i| past(i, i.target(), Part::All),
    )
    .destroys()
    .remedy(ASIDE),
    fault(
        "bit-flips-in-wal",
        Aim::SyncStandby,
        "Bits flip in the newest WAL of a stopped standby: recovery ends there, and streams the rest anew.",
        |i| spoil_wal(i, i.target()),
    )
    .destroys(),
    fault(
        "bit-flips-in-heap",
        Aim::OtherStandby,
        "Bits flip in a table of a stopped standby: its checksums must notice, never its readers.",
        |i| spoil_heap(i, i.target()),
    )
    .destroys()
    .remedy("trilithon reinit"),
    fault("wiped-node", Aim::OtherStandby, "A node comes back under its name with an empty disk.", |i| wipe(i, i.target(), Part::All))
        .destroys(),
    fault("wiped-primary", Aim::Primary, "The primary's disk is lost with all it held.", |i| wipe(i, i.target(), Part::All)).destroys(),
    fault("wiped-consensus-store", Aim::SyncStandby, "A node comes back with its data and without its consensus store.", |i| {
        wipe(i, i.target(), Part::Consensus)
    })
    .destroys(),
    fault("data-directory-vanishes", Aim::Primary, "The primary's data directory is removed while its Postgres runs.", vanish)
        .hold(65, 80)
        .known(
            "new connections are refused and nobody is elected until Postgres misses its own lock file, which it looks for once a minute",
        )
        .destroys(),
    fault("rewind-killed", Aim::Primary, "A primary that left the history returns, and its pg_rewind is killed midway.", |i| {
        diverge(i, i.target())?;
        ambush(i, i.target(), Kind::Rewind, Ambush::KillOnce)
    })
    .hold(5, 15),
    fault("rewind-hangs", Aim::Primary, "A primary that left the history returns, and its pg_rewind hangs.", |i| {
        diverge(i, i.target())?;
        ambush(i, i.target(), Kind::Rewind, Ambush::Stop)
    })
    .hold(10, 30),
    fault("rewind-fails", Aim::Primary, "A primary that left the history returns, and every pg_rewind fails.", |i| {
        diverge(i, i.target())?;
        ambush(i, i.target(), Kind::Rewind, Ambush::KillAlways)
    })
    .hold(10, 20),
    fault("base-backup-killed", Aim::OtherStandby, "The copy of a standby is killed midway.", |i| {
        copy_anew(i, i.target())?;
        ambush(i, i.target(), Kind::BaseBackup, Ambush::KillOnce)
    })
    .phases(DURING_COPY),
    fault("base-backup-hangs", Aim::OtherStandby, "The copy of a standby hangs.", |i| {
        copy_anew(i, i.target())?;
        ambush(i, i.target(), Kind::BaseBackup, Ambush::Stop)
    })
    .hold(10, 30)
    .phases(DURING_COPY),
    fault("base-backup-fails", Aim::OtherStandby, "Each copy of a standby fails.", |i| {
        copy_anew(i, i.target())?;
        ambush(i, i.target(), Kind::BaseBackup, Ambush::KillAlways)
    })
    .hold(10, 20)
    .phases(DURING_COPY),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    Consensus,
}

impl Part {
    fn path(self, target: Target<'_>) -> PathBuf {
        match self {
            Part::All => target.data_dir(),
            Part::Consensus => target.consensus(),
        }
    }
}

/// Down, so that its files can be changed; started again by whoever changed them, at the latest by the healing.
fn take_down<'a>(i: &mut Injected<'a>, target: Target<'a>) {
    i.undo(format!("start {}", target.name()), move || target.start());
    target.node.kill_all();
}

/// Start it, note what it says, and let the healing apply the remedy if it asked for it.
fn return_to<'a>(i: &mut Injected<'a>, target: Target<'a>, damaged: PathBuf, words: &'static [&'static str]) -> Result<()> {
    let log = Tail::of(target.node_log());
    let asking = Tail::of(target.node_log());
    i.undo(format!("the remedy for {}", target.name()), move || {
        // Asked for in words, and only then.
        let asked = asking.line(&[said::ASIDE]);
        if asked.is_some() && target.node_is_dead() {
            target.node.kill_all();
            let all = asking.line(&[said::WHOLE_DIRECTORY_ASIDE]).is_some();
            empty(if all { target.data_dir() } else { damaged })?;
        }
        Ok(())
    });
    target.start()?;
    i.prove(format!("{} after the damage", target.name()), move || {
        log.line(words).or_else(|| log.line(&[said::NODE_RUNS])).map(|line| format!("{}: {line}", target.name()))
    });
    Ok(())
}

fn spoil_consensus<'a>(i: &mut Injected<'a>, target: Target<'a>, spoil: fn(&mut Injected<'a>, &Path) -> Result<String>) -> Result<()> {
    take_down(i, target);
    let file = largest(&target.consensus())?;
    let done = spoil(i, &file)?;
    i.proved(done);
    return_to(i, target, target.consensus(), &["damaged", "was cut off", "cannot be read"])
}

/// The largest file below `dir`: where most of the log is.
fn largest(dir: &Path) -> Result<PathBuf> {
    let mut found: Option<(u64, PathBuf)> = None;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?.flatten() {
            let meta = entry.metadata()?;
            if meta.is_dir() {
                open.push(entry.path());
            } else if found.as_ref().is_none_or(|(bytes, _)| meta.len() > *bytes) {
                found = Some((meta.len(), entry.path()));
            }
        }
    }
    found.map(|(_, path)| path).with_context(|| format!("no file below {}", dir.display()))
}

/// In up to eight pages that hold something: bits of an empty page would prove nothing.
fn flip_bits(i: &mut Injected<'_>, path: &Path) -> Result<String> {
    const PAGE: usize = 512;
    const FLIPS: usize = 8;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let pages: Vec<usize> = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0)).map(|(at, _)| at).collect();
    if pages.is_empty() {
        bail!("{} is empty: nothing to damage", path.display());
    }
    let file = fs::OpenOptions::new().write(true).open(path).with_context(|| format!("cannot write {}", path.display()))?;
    for _ in 0..FLIPS {
        let page = pages[i.rng.random_range(0..pages.len())] * PAGE;
        let full: Vec<usize> = (page..(page + PAGE).min(bytes.len())).filter(|at| bytes[*at] != 0).collect();
        let at = full[i.rng.random_range(0..full.len())];
        let flipped = bytes[at] ^ (1 << i.rng.random_range(0..8));
        file.write_all_at(&[flipped], at as u64).context("cannot flip a bit")?;
    }
    file.sync_all().context("cannot flush the damage")?;
    Ok(format!("{FLIPS} bits of {} flipped", path.display()))
}

fn truncate(_: &mut Injected<'_>, path: &Path) -> Result<String> {
    let file = fs::OpenOptions::new().write(true).open(path).with_context(|| format!("cannot write {}", path.display()))?;
    let before = file.metadata().context("cannot measure it")?.len();
    file.set_len(before / 2).and_then(|()| file.sync_all()).with_context(|| format!("cannot cut {}", path.display()))?;
    Ok(format!("{} cut from {before} to {} bytes", path.display(), before / 2))
}

/// A copy is taken of the stopped node, the node works on for a while, and the copy is put back.
fn past<'a>(i: &mut Injected<'a>, target: Target<'a>, part: Part) -> Result<()> {
    const MEANWHILE: Duration = Duration::from_secs(6);
    let place = part.path(target);
    let copy = place.with_extension("from-the-past");
    let removing = copy.clone();
    i.undo("remove the copy", move || if removing.exists() { fs::remove_dir_all(&removing).context("cannot remove it") } else { Ok(()) });
    take_down(i, target);
    run(Command::new("cp").arg("-a").arg(&place).arg(&copy))?;
    target.start()?;
    i.ctx.cluster.until_redundant(Duration::from_secs(60))?;
    another_term(i, target)?;
    std::thread::sleep(MEANWHILE);
    target.node.kill_all();
    empty(place.clone())?;
    fs::remove_dir(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    fs::rename(&copy, &place).with_context(|| format!("cannot put back {}", place.display()))?;
    i.proved(format!("{} is {} s old", place.display(), MEANWHILE.as_secs()));
    return_to(i, target, place, &["damaged", "promise", "reverted"])
}

/// Have the members vote, so that `target` has a vote to forget: with one of three away nobody is elected without it.
fn another_term<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let status = i.ctx.cluster.status()?;
    let leader = super::aim::leader(&status).filter(|leader| leader != target.name());
    let away = match leader {
        Some(leader) => super::aim::named(i.ctx, &leader)?,
        None => i.others(target).pop().context("nobody else")?,
    };
    i.undo(format!("start {}", away.name()), move || away.start());
    away.node.kill(crate::cluster::Part::Node);
    let cluster = i.ctx.cluster;
    let elected = i.wait("another consensus leader", Duration::from_secs(15), || {
        super::aim::leader(&cluster.status().ok()?).filter(|leader| leader != away.name())
    })?;
    away.start()?;
    cluster.until_redundant(Duration::from_secs(60))?;
    i.proved(format!("{} voted for {elected} meanwhile", target.name()));
    Ok(())
}

/// Remove what is in `dir`, and leave it.
fn empty(dir: PathBuf) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    run(Command::new("find").arg(&dir).args(["-mindepth", "1", "-delete"]))
}

fn wipe<'a>(i: &mut Injected<'a>, target: Target<'a>, part: Part) -> Result<()> {
    take_down(i, target);
    empty(part.path(target))?;
    i.proved(format!("{} is empty", part.path(target).display()));
    return_to(i, target, part.path(target), &["under a fresh id"])
}

fn spoil_wal<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    take_down(i, target);
    let newest = newest_segment(&target.pgdata().join("pg_wal"))?;
    let done = flip_bits(i, &newest)?;
    i.proved(done);
    return_to(i, target, target.pgdata(), &[said::NODE_RUNS])
}

/// The segment that was written last; those after it are recycled ones with names of the future.
fn newest_segment(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?.flatten();
    let is_segment = |name: &str| name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let segments = entries.filter(|e| e.file_name().to_str().is_some_and(is_segment));
    let newest = segments.max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
    newest.map(|e| e.path()).context("there is no WAL")
}

fn spoil_heap<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let primary = super::aim::named(i.ctx, &i.ctx.cluster.primary().context("there is no primary at this moment")?)?;
    primary.sql("CREATE TABLE IF NOT EXISTS chaos_heap (id int, v text)")?;
    primary.sql("INSERT INTO chaos_heap SELECT g, md5(g::text) FROM generate_series(1, 5000) g")?;
    primary.sql("CHECKPOINT")?;
    let file = primary.value("SELECT pg_relation_filepath('chaos_heap')")?;
    let there = |t: Target<'_>| t.value("SELECT count(*) FROM chaos_heap").ok().filter(|n| n != "0");
    i.wait("the table on the standby", Duration::from_secs(10), || there(target))?;
    target.sql("CHECKPOINT")?;
    take_down(i, target);
    let done = flip_bits(i, &target.pgdata().join(file))?;
    i.proved(done);
    target.start()?;
    i.prove(format!("{} notices", target.name()), move || {
        let error = target.sql("SELECT count(v) FROM chaos_heap").err()?;
        let text = format!("{error:#}");
        text.contains("XX001").then(|| format!("{}: {text}", target.name()))
    });
    let ctx = i.ctx;
    i.afterwards(format!("copy {} anew", target.name()), move || {
        let output = ctx.cluster.cli(&["reinit", target.name()])?;
        if !output.status.success() {
            bail!("reinit: {}", orders::in_words(&output));
        }
        Ok(())
    });
    Ok(())
}

fn vanish(i: &mut Injected<'_>) -> Result<()> {
    let target = i.target();
    let log = Tail::of(target.postgres_log());
    i.undo("nothing to mend: what was removed is copied anew", || Ok(()));
    // Some files resist: Postgres makes new ones meanwhile.
    let removed = run(Command::new("rm").arg("-rf").arg(target.pgdata()));
    i.prove(format!("{} misses its files", target.name()), move || {
        log.line(&["could not open file", "lock file", "No such file"]).map(|line| format!("{}: {line}", target.name()))
    });
    if target.pgdata().join("global/pg_control").exists() {
        removed.context("the data directory is still there")?;
    }
    Ok(())
}

/// The primary goes on writing alone until others have elected, and comes back with WAL of its own.
fn diverge<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    const SQL: &str = "SELECT pg_logical_emit_message(true, 'chaos', repeat('x', 100000))";
    super::sessions::run(i, target, SQL, 2);
    i.isolate(target)?;
    let ctx = i.ctx;
    let other = i.wait("another primary", Duration::from_secs(30), || {
        let status = ctx.cluster.status().ok()?;
        status.primary.clone().filter(|p| p != target.name() && status.is_writable())
    })?;
    i.proved(format!("{other} was elected while {} wrote alone", target.name()));
    i.proof();
    let wan = i.ctx.world.wan();
    for other in i.others(target) {
        wan.restore(target.name(), other.name());
        wan.restore(other.name(), target.name());
    }
    Ok(())
}

fn copy_anew<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    orders::give(i, target, &["reinit", target.name()]).map(drop)
}

/// What awaits a process as soon as it appears.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ambush {
    KillOnce,
    KillAlways,
    Stop,
}

pub(super) fn ambush<'a>(i: &mut Injected<'a>, target: Target<'a>, kind: Kind, ambush: Ambush) -> Result<()> {
    /// The tool should be in the middle of its work, not at its first instruction.
    const INTO_WORK: Duration = Duration::from_millis(60);
    let group = Group::of(target.process(Kind::Node)?.pid)?;
    let (struck, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (count, kept) = (Arc::clone(&struck), Arc::clone(&stopped));
    let toil = Toil::begin("chaos-ambush", move |rest| {
        let done = ambush != Ambush::KillAlways && count.load(Ordering::Relaxed) > 0;
        let found = if done { Vec::new() } else { group.find(kind) };
        if !found.is_empty() {
            rest.sleep(INTO_WORK);
        }
        for process in found.into_iter().filter(|p| !p.is_gone()) {
            process.signal(if ambush == Ambush::Stop { Signal::STOP } else { Signal::KILL });
            count.fetch_add(1, Ordering::Relaxed);
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        }
        rest.sleep(Duration::from_millis(if done { 100 } else { 3 }));
    })?;
    i.undo(format!("let {} work", kind.words()), move || {
        let ended = toil.end();
        for process in stopped.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            process.signal(Signal::CONT);
        }
        ended
    });
    let verb = if ambush == Ambush::Stop { "stopped" } else { "killed" };
    i.prove(format!("{} of {} {verb}", kind.words(), target.name()), move || {
        let times = struck.load(Ordering::Relaxed);
        (times > 0).then(|| format!("{} of {} was {verb} ({times} processes)", kind.words(), target.name()))
    });
    Ok(())
}
