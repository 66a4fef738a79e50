//! Emulated loss of power.
//!
//! At each barrier, after sled has written and before the disk is synced, the files are copied: that copy is what the sync makes
//! durable. A crash between barrier k and k+1 leaves copy k with any part of the difference to copy k+1: whole pages or sectors in
//! any order, or a prefix torn in mid-page; a file that grew may or may not have. The mark, which is never synced in normal
//! operation, may be the newer or the older one. From each such image the store must come back with exactly what it held at k or
//! at k+1. What makes it honest: the copy is taken *before* the sync, and nothing is assumed about the order of writes.
//!
//! The negative control drops our own sync, as a plain user of sled would run; then nothing after the start is known to be durable.

use super::mark::MarkFile;
use super::tests::{entry, id, vote};
use super::{Change, Engine, LogStore, SledEngine, StoreError, Tree};
use crate::telemetry::Clock;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const ROUNDS: u64 = 25;
const STEPS: usize = 12;
const IMAGES_PER_BARRIER: usize = 2;

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Copies the directory in the middle of each barrier.
struct Recorder {
    inner: SledEngine,
    dir: PathBuf,
    copies: Arc<Mutex<Vec<Files>>>,
    sync: bool,
}

impl Engine for Recorder {
    fn apply_batch(&mut self, tree: Tree, batch: Vec<Change>) -> io::Result<()> {
        self.inner.apply_batch(tree, batch)
    }

    fn get(&self, tree: Tree, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.inner.get(tree, key)
    }

    fn range(&self, tree: Tree) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.inner.range(tree)
    }

    fn barrier(&mut self) -> io::Result<()> {
        self.inner.flush()?;
        self.copies.lock().unwrap().push(read_tree(&self.dir, &self.dir));
        if self.sync { self.inner.sync() } else { Ok(()) }
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }
}

/// What the store holds: the entries' terms and sizes, and the vote's term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    entries: BTreeMap<u64, (u64, usize)>,
    purged: Option<u64>,
    vote: Option<u64>,
}

/// What the workload must remember beyond that.
#[derive(Default)]
struct Run {
    model: Model,
    /// Raft never truncates a committed entry, and purges no other.
    committed: Option<u64>,
}

impl Model {
    /// Everything that was there before the last request and after it was acknowledged, whatever that request was.
    fn holds_what_both_hold(&self, before: &Model, after: &Model) -> bool {
        let kept = before.entries.iter().filter(|(i, e)| after.entries.get(i) == Some(e));
        self.vote >= before.vote && kept.into_iter().all(|(i, e)| self.entries.get(i) == Some(e))
    }
}

/// One life of a store: the model after each barrier, and the files in the middle of each.
struct Life {
    models: Vec<Model>,
    copies: Vec<Files>,
}

async fn live(scratch: &Path, rng: &mut StdRng, sync: bool) -> Life {
    let dir = scratch.join("live");
    std::fs::create_dir_all(&dir).unwrap();
    // Without sled's own flusher in the control: its background fsync is not part of what `flush` promises.
    let inner = SledEngine::open_with(&dir.join("sled"), sync.then_some(500)).unwrap();
    let copies: Arc<Mutex<Vec<Files>>> = Arc::default();
    let recorder = Recorder { inner, dir: dir.clone(), copies: copies.clone(), sync };
    let (mark, found) = MarkFile::open(&dir.join("acknowledged")).unwrap();
    let (mut store, _) = LogStore::with_engine(recorder, mark, found, Clock::default(), &dir).unwrap();
    // The copy of the opening barrier lacks the mark that opening writes and syncs right after it.
    let mut run = Run::default();
    let mut models = vec![run.model.clone()];
    for _ in 0..STEPS {
        step(&mut store, &mut run, rng).await;
        models.push(run.model.clone());
    }
    store.close().await;
    std::fs::remove_dir_all(dir).unwrap();
    let copies = std::mem::take(&mut *copies.lock().unwrap());
    assert_eq!(copies.len(), models.len(), "one barrier for each answered request");
    Life { models, copies }
}

/// One request, answered after one barrier.
async fn step(store: &mut LogStore, run: &mut Run, rng: &mut StdRng) {
    let model = &mut run.model;
    let first = model.purged.map_or(0, |p| p + 1);
    let next = model.entries.keys().next_back().map_or(first, |last| last + 1);
    let uncommitted = run.committed.map_or(first, |c| c + 1);
    let term = model.vote.unwrap_or(0);
    match rng.random_range(0..10) {
        0..=1 => {
            store.save_vote(&vote(term + 1)).await.unwrap();
            model.vote = Some(term + 1);
        }
        2 if next > uncommitted + 1 => {
            let keep = rng.random_range(uncommitted..next).max(first + 1);
            let last = model.entries[&(keep - 1)];
            store.truncate_after(Some(id(last.0, keep - 1))).await.unwrap();
            model.entries.split_off(&keep);
        }
        3 if uncommitted > first + 2 => {
            let upto = rng.random_range(first..uncommitted - 1);
            store.purge(id(model.entries[&upto].0, upto)).await.unwrap();
            model.entries = model.entries.split_off(&(upto + 1));
            model.purged = Some(upto);
        }
        _ => {
            let sizes: Vec<usize> = (0..rng.random_range(1..6)).map(|_| [30, 200, 900, 15_000][rng.random_range(0..4)]).collect();
            let entries: Vec<_> = (next..).zip(&sizes).map(|(i, size)| entry(term, i, &"e".repeat(*size))).collect();
            // Rides with the barrier of the append behind it.
            if let Some((index, (term, _))) = model.entries.iter().next_back().filter(|_| rng.random()) {
                run.committed = Some(*index);
                store.save_committed(Some(id(*term, *index))).await.unwrap();
            }
            store.blocking_append(entries).await.unwrap();
            model.entries.extend((next..).zip(sizes).map(|(i, size)| (i, (term, size))));
        }
    }
}

/// What a disk may hold when power is lost after the sync that made `durable` safe and before the next one.
fn crash(durable: &Files, written: &Files, rng: &mut StdRng) -> Files {
    let mut image = Files::new();
    // Directory operations reach the disk in order, so the set of files is one or the other; each file was synced before it was
    // named, except the two that are written in place.
    let names = if rng.random() { durable } else { written };
    for (name, content) in names {
        let content = match (durable.get(name), written.get(name)) {
            (Some(old), Some(new)) if name.ends_with("db") => torn(old, new, rng),
            _ => content.clone(),
        };
        image.insert(name.clone(), content);
    }
    image
}

/// Part of the difference between two states of a file.
fn torn(old: &[u8], new: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let longer = old.len().max(new.len());
    let unit = *[512, 4096].choose(rng).unwrap();
    let chance = *[0.0, 0.1, 0.5, 0.9].choose(rng).unwrap();
    let prefix = rng.random_bool(0.3);
    let changed: Vec<usize> = (0..longer).step_by(unit).filter(|at| slice(old, *at, unit) != slice(new, *at, unit)).collect();
    let stop = if prefix { rng.random_range(0..=changed.len()) } else { usize::MAX };
    let mut out = old.to_vec();
    out.resize(if rng.random() { new.len() } else { old.len().max(1) }, 0);
    for (n, at) in changed.iter().enumerate() {
        let take = if prefix { n < stop } else { rng.random_bool(chance) };
        let torn_here = prefix && n == stop;
        if take || torn_here {
            let piece = slice(new, *at, unit);
            let len = if torn_here { rng.random_range(0..=piece.len()) } else { piece.len() };
            if out.len() < at + len {
                out.resize(at + len, 0);
            }
            out[*at..at + len].copy_from_slice(&piece[..len]);
        }
    }
    out
}

fn slice(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    &bytes[at.min(bytes.len())..(at + len).min(bytes.len())]
}

async fn recovered(dir: &Path) -> Result<Model, StoreError> {
    let (mut store, cut) = LogStore::open(dir, Clock::default())?;
    assert_eq!(cut, None, "sled cuts torn tails itself");
    let entries = store.try_get_log_entries(..).await.unwrap();
    let size = |e: &crate::consensus::raft::Entry| match &e.payload {
        openraft::EntryPayload::Normal(data) => data.json.len(),
        _ => 0,
    };
    let model = Model {
        entries: entries.iter().map(|e| (e.log_id.index(), (e.log_id.committed_leader_id().term, size(e)))).collect(),
        purged: store.purged().map(|id| id.index()),
        vote: store.read_vote().await.unwrap().map(|v| v.leader_id.term),
    };
    store.close().await;
    Ok(model)
}

#[tokio::test]
async fn no_image_of_a_crash_loses_what_was_acknowledged() {
    let scratch = scratch();
    let mut images = 0;
    for seed in 0..ROUNDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let life = live(scratch.path(), &mut rng, true).await;
        for k in 1..life.copies.len() {
            for _ in 0..IMAGES_PER_BARRIER {
                let mut image = crash(&life.copies[k - 1], &life.copies[k], &mut rng);
                choose_mark(&mut image, &life, k, &mut rng);
                let dir = scratch.path().join("image");
                write_tree(&image, &dir);
                let found = recovered(&dir).await.unwrap_or_else(|e| panic!("seed {seed}, barrier {k}: {e}"));
                let either = [&life.models[k - 1], &life.models[k]];
                assert!(either.contains(&&found), "seed {seed}, barrier {k}: found {found:?}, expected one of {either:?}");
                std::fs::remove_dir_all(dir).unwrap();
                images += 1;
            }
        }
    }
    println!("{images} images of crashes, none lost anything");
    assert!(images >= 500);
}

/// The mark of the older copy, or of the newer. Before a truncation it is lowered and synced, so then only the newer can be.
fn choose_mark(image: &mut Files, life: &Life, k: usize, rng: &mut StdRng) {
    let name = PathBuf::from("acknowledged");
    let truncated = life.models[k].entries.len() < life.models[k - 1].entries.len() && life.models[k].purged == life.models[k - 1].purged;
    let from = if truncated || k == 1 || rng.random() { k } else { k - 1 };
    image.insert(name.clone(), life.copies[from][&name].clone());
}

#[tokio::test]
async fn without_the_own_sync_acknowledged_entries_are_lost_and_the_mark_tells() {
    let scratch = scratch();
    let (mut images, mut lost, mut told) = (0, 0, 0);
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(1_000 + seed);
        let life = live(scratch.path(), &mut rng, false).await;
        let last = life.copies.len() - 1;
        for k in (2..=last).step_by(2) {
            let dir = scratch.path().join("image");
            let image = crash(&life.copies[0], &life.copies[k], &mut rng);
            // First without the mark: what a log store without one would make of it.
            let mut bare = image.clone();
            bare.remove(Path::new("acknowledged"));
            write_tree(&bare, &dir);
            let found = recovered(&dir).await;
            std::fs::remove_dir_all(&dir).unwrap();
            images += 1;
            if found.is_ok_and(|found| found.holds_what_both_hold(&life.models[k - 1], &life.models[k])) {
                continue;
            }
            lost += 1;
            let mut marked = image;
            marked.insert("acknowledged".into(), life.copies[k][Path::new("acknowledged")].clone());
            write_tree(&marked, &dir);
            told += usize::from(recovered(&dir).await.is_err());
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
    println!("control: {lost} of {images} images lost acknowledged entries; the mark told {told} of them");
    assert!(lost * 3 >= images * 2, "the emulation proves nothing: only {lost} of {images} lost something");
    assert!(told * 10 >= lost * 9, "the mark told only {told} of {lost}");
}

/// In memory where there is a file system for that: the emulation does not depend on real syncs.
fn scratch() -> tempfile::TempDir {
    let builder = &mut tempfile::Builder::new();
    let builder = builder.prefix("tri-power-loss-");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).unwrap()
}

fn read_tree(root: &Path, dir: &Path) -> Files {
    let mut files = Files::new();
    for item in std::fs::read_dir(dir).unwrap().flatten() {
        if item.file_type().unwrap().is_dir() {
            files.extend(read_tree(root, &item.path()));
        } else if let Ok(bytes) = std::fs::read(item.path()) {
            // A file that sled has just renamed away is in the next copy under its new name.
            files.insert(item.path().strip_prefix(root).unwrap().to_owned(), bytes);
        }
    }
    files
}

fn write_tree(files: &Files, dir: &Path) {
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
