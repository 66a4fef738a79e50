//! Conformance, damage and failure of the store. Loss of power has a file of its own.

use super::mark::{FoundMark, Mark, MarkFile};
use super::{Change, Engine, LogStore, MemoryEngine, SledEngine, StoreError, Tree};
use crate::consensus::raft::{Entry, EntryData, EntryPayload, LeaderId, LogId, TypeConfig, Vote};
use crate::consensus::snapshot::SnapshotDir;
use crate::consensus::state_machine::StateMachine;
use crate::telemetry::Clock;
use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::watch;

pub fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 1 }, index)
}

pub fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed: true }
}

pub fn entry(term: u64, index: u64, text: &str) -> Entry {
    let data = EntryData { format: 1, json: bytes::Bytes::copy_from_slice(text.as_bytes()) };
    Entry::new(id(term, index), EntryPayload::Normal(data))
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = LogStore::open(&dir.path().join("consensus"), Clock::default()).unwrap();
        let snapshots = SnapshotDir::new(&dir.path().join("consensus"));
        let machine = StateMachine::new(snapshots, None, watch::Sender::default(), Arc::new(|_| {}), None);
        Ok((dir, store, machine))
    }
}

#[tokio::test]
async fn the_store_passes_openrafts_conformance_suite() {
    Suite::test_all(Builder).await.unwrap();
}

/// Ten acknowledged entries and a vote on an engine in memory, with a real mark.
async fn ten_entries(dir: &Path) -> MemoryEngine {
    let engine = MemoryEngine::default();
    let (mut store, _) = open(&engine, dir, None).unwrap();
    store.save_vote(&vote(3)).await.unwrap();
    store.blocking_append((0..10).map(|i| entry(3, i, "x"))).await.unwrap();
    store.close().await;
    engine
}

fn open(engine: &MemoryEngine, dir: &Path, exact: Option<bool>) -> Result<(LogStore, Option<String>), StoreError> {
    let (mark, mut found) = MarkFile::open(&dir.join("acknowledged")).unwrap();
    found.exact = exact.unwrap_or(found.exact);
    LogStore::with_engine(engine.clone(), mark, found, Clock::default(), dir)
}

fn put(engine: &MemoryEngine, index: u64, value: &[u8]) {
    let change = Change::Put(index.to_be_bytes().to_vec(), value.to_vec());
    engine.clone().apply_batch(Tree::Log, vec![change]).unwrap();
}

fn delete(engine: &MemoryEngine, index: u64) {
    engine.clone().apply_batch(Tree::Log, vec![Change::Delete(index.to_be_bytes().to_vec())]).unwrap();
}

fn refusal(opened: Result<(LogStore, Option<String>), StoreError>) -> String {
    match opened {
        Err(e @ StoreError::Corrupt { .. }) => e.to_string(),
        Err(e) => panic!("another error: {e}"),
        Ok(_) => panic!("the store opened"),
    }
}

#[tokio::test]
async fn a_torn_tail_that_nobody_was_told_of_is_cut_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let engine = ten_entries(dir.path()).await;
    put(&engine, 10, b"torn");
    put(&engine, 11, b"");
    let (mut store, cut) = open(&engine, dir.path(), None).unwrap();
    assert!(cut.unwrap().contains("entry 10"));
    assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(id(3, 9)));
    store.blocking_append([entry(3, 10, "anew")]).await.unwrap();
    store.close().await;
    let (mut store, cut) = open(&engine, dir.path(), None).unwrap();
    assert_eq!((cut, store.try_get_log_entries(..).await.unwrap().len()), (None, 11));
}

#[tokio::test]
async fn after_a_reboot_a_damaged_tail_may_have_been_acknowledged_and_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let engine = ten_entries(dir.path()).await;
    put(&engine, 10, b"torn");
    assert!(refusal(open(&engine, dir.path(), Some(false))).contains("entry 10"));
}

#[tokio::test]
async fn damage_to_anything_acknowledged_stops_the_node_and_names_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let last_damaged = |engine: &MemoryEngine| put(engine, 9, b"damaged");
    let last_missing = |engine: &MemoryEngine| delete(engine, 9);
    let middle_damaged = |engine: &MemoryEngine| put(engine, 4, b"damaged");
    let middle_missing = |engine: &MemoryEngine| delete(engine, 4);
    let first_missing = |engine: &MemoryEngine| delete(engine, 0);
    let vote_damaged = |engine: &MemoryEngine| {
        engine.clone().apply_batch(Tree::Meta, vec![Change::Put(b"vote".to_vec(), b"damaged".to_vec())]).unwrap();
    };
    let vote_missing = |engine: &MemoryEngine| {
        engine.clone().apply_batch(Tree::Meta, vec![Change::Delete(b"vote".to_vec())]).unwrap();
    };
    let damages: [&dyn Fn(&MemoryEngine); 7] =
        [&last_damaged, &last_missing, &middle_damaged, &middle_missing, &first_missing, &vote_damaged, &vote_missing];
    for (n, damage) in damages.iter().enumerate() {
        let place = dir.path().join(n.to_string());
        std::fs::create_dir(&place).unwrap();
        let engine = ten_entries(&place).await;
        damage(&engine);
        let text = refusal(open(&engine, &place, None));
        assert!(text.contains(&path) && text.contains("aside") && text.contains("new id"), "{n}: {text}");
    }
}

#[tokio::test]
async fn nothing_is_answered_after_a_failed_barrier() {
    let engine = MemoryEngine::default();
    let mut store = LogStore::over(engine.clone(), Clock::default()).unwrap();
    store.blocking_append([entry(1, 0, "a")]).await.unwrap();
    engine.fail_barriers();
    assert!(store.blocking_append([entry(1, 1, "b")]).await.is_err());
    assert!(store.save_vote(&vote(2)).await.is_err());
    let why = store.failed().wait_for(Option::is_some).await.unwrap().clone();
    assert!(why.unwrap().contains("input/output error"));
}

#[tokio::test]
async fn a_writer_that_panics_is_told_as_a_failure() {
    let engine = MemoryEngine::default();
    let mut store = LogStore::over(engine.clone(), Clock::default()).unwrap();
    store.blocking_append([entry(1, 0, "a")]).await.unwrap();
    engine.panic();
    assert!(store.save_vote(&vote(2)).await.is_err());
    let why = store.failed().wait_for(Option::is_some).await.unwrap().clone();
    assert!(why.unwrap().contains("panicked"));
    assert!(store.save_vote(&vote(3)).await.is_err());
    // An orderly end is none.
    let store = LogStore::over(MemoryEngine::default(), Clock::default()).unwrap();
    store.close().await;
    assert!(store.failed().wait_for(Option::is_some).await.is_err());
}

#[tokio::test]
async fn what_was_answered_survives_any_prefix_of_what_was_not() {
    for kept in 0..4 {
        let engine = MemoryEngine::default();
        let mut store = LogStore::over(engine.clone(), Clock::default()).unwrap();
        store.save_vote(&vote(5)).await.unwrap();
        store.blocking_append((0..5).map(|i| entry(5, i, "x"))).await.unwrap();
        store.save_committed(Some(id(5, 3))).await.unwrap();
        store.close().await;
        put(&engine, 5, b"not synced");
        engine.crash(kept);
        delete(&engine, 5);
        let mut store = LogStore::over(engine, Clock::default()).unwrap();
        assert_eq!(store.read_vote().await.unwrap(), Some(vote(5)));
        assert_eq!(store.try_get_log_entries(..).await.unwrap().len(), 5);
    }
}

#[tokio::test]
async fn a_directory_serves_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(dir.path(), Clock::default()).unwrap();
    let second = LogStore::open(dir.path(), Clock::default());
    assert!(matches!(second, Err(StoreError::Locked { .. })));
    store.close().await;
    drop(LogStore::open(dir.path(), Clock::default()).unwrap());
}

#[tokio::test]
async fn a_newer_format_is_not_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = LogStore::open(dir.path(), Clock::default()).unwrap();
    store.close().await;
    let mut engine = SledEngine::open(&dir.path().join("sled")).unwrap();
    engine.apply_batch(Tree::Meta, vec![Change::Put(b"format".to_vec(), vec![9, 0, 0, 0, 0, 9])]).unwrap();
    engine.barrier().unwrap();
    drop(engine);
    assert!(matches!(LogStore::open(dir.path(), Clock::default()), Err(StoreError::Format { found: 9, .. })));
}

/// Bits that rot anywhere in sled's files: the store opens with everything, or not at all.
#[tokio::test]
async fn damage_anywhere_in_the_database_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let origin = dir.path().join("origin");
    let (mut store, _) = LogStore::open(&origin, Clock::default()).unwrap();
    store.save_vote(&vote(3)).await.unwrap();
    for i in 0..40 {
        store.blocking_append([entry(3, i, &"payload ".repeat(20))]).await.unwrap();
    }
    store.close().await;
    let (_, found) = MarkFile::open(&origin.join("acknowledged")).unwrap();
    assert_eq!(found, FoundMark { mark: Some(Mark { next: 40, vote: Some(vote(3)) }), exact: true });
    let db = std::fs::read(origin.join("sled/db")).unwrap();
    let used: Vec<usize> = (0..db.len()).filter(|at| db[*at] != 0).collect();
    let mut refused = 0;
    for n in 0..60 {
        let copy = dir.path().join(format!("copy{n}"));
        copy_tree(&origin, &copy);
        let mut damaged = db.clone();
        damaged[used[used.len() * n / 60]] ^= 0x5A;
        std::fs::write(copy.join("sled/db"), damaged).unwrap();
        match LogStore::open(&copy, Clock::default()) {
            Ok((mut store, _)) => {
                let entries = store.try_get_log_entries(..).await.unwrap();
                assert_eq!((entries.len(), store.read_vote().await.unwrap()), (40, Some(vote(3))), "image {n} lost something");
                store.close().await;
            }
            Err(StoreError::Corrupt { .. } | StoreError::Io { .. }) => refused += 1,
            Err(e) => panic!("image {n}: {e}"),
        }
        std::fs::remove_dir_all(copy).unwrap();
    }
    println!("{refused} of 60 damaged databases were refused, the others were whole");
    assert!(refused > 0);
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_tree(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}
