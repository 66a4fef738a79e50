//! What a disk holds, and how it fails.
//!
//! Writes stay in memory until a flush, as in a drive's volatile cache; at a crash they are gone, or torn. The cache is kept by block, so
//! it is never larger than the disk. Everything runs on the disk's own thread but the switches, and that thread waits only here: for a
//! hang to end, or a slow flush.
//!
//! Each opening of the disk belongs to a life of it. A crash ends that life, and whoever opened the disk in it gets errors for ever: a
//! file system that outlives its power can never write into the disk's next life.

use crate::record::RunClock;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The cache's grain, and the file system's block.
pub(super) const BLOCK: usize = 4096;
/// A block tears at these.
const SECTOR: usize = 512;

/// Why a request failed; the kernel sees EIO in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// What a disk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// Refused on purpose.
    pub failed_writes: u64,
    pub failed_fsyncs: u64,
    /// Flushes that were slowed down.
    pub delayed_fsyncs: u64,
    /// Requests that met a hang.
    pub hung: u64,
    /// Blocks of 4 KiB that crashes have lost or torn.
    pub lost_blocks: u64,
    /// Blocks that a crash would lose now.
    pub unsynced_blocks: u64,
    pub crashes: u64,
}

#[derive(Debug, Default)]
struct State {
    unsynced: BTreeMap<u64, Box<[u8; BLOCK]>>,
    /// Rises with each crash.
    life: u64,
    is_off: bool,
    is_hung: bool,
    fails_writes: bool,
    fails_fsyncs: bool,
    fsync_delay: Duration,
    counters: DiskCounters,
}

/// A disk's contents: the durable part in a file of the host, the rest in memory.
#[derive(Debug)]
pub(super) struct Store {
    durable: File,
    bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Store {
    pub fn new(durable: File, bytes: u64) -> Store {
        Store { durable, bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The life that whoever opens the disk now belongs to.
    pub fn open(&self) -> Result<u64, Refused> {
        let state = self.state();
        if state.is_off { Err(Refused) } else { Ok(state.life) }
    }

    /// Fills `buffer` from `offset`; its length is cut at the disk's end.
    pub fn read(&self, life: u64, offset: u64, buffer: &mut Vec<u8>) -> Result<(), Refused> {
        let mut state = self.alive(life)?;
        state.counters.reads += 1;
        buffer.truncate(usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX));
        for part in parts(offset, buffer.len()) {
            let to = &mut buffer[part.in_buffer.clone()];
            match state.unsynced.get(&part.block) {
                Some(block) => to.copy_from_slice(&block[part.in_block..part.in_block + to.len()]),
                None => self.durable.read_exact_at(to, part.offset()).map_err(|_| Refused)?,
            }
        }
        Ok(())
    }

    /// Takes `data` into the cache.
    pub fn write(&self, life: u64, offset: u64, data: &[u8]) -> Result<(), Refused> {
        let mut state = self.alive(life)?;
        state.counters.writes += 1;
        if state.fails_writes {
            state.counters.failed_writes += 1;
            return Err(Refused);
        }
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(Refused);
        }
        for part in parts(offset, data.len()) {
            let from = &data[part.in_buffer.clone()];
            let mut block = match state.unsynced.remove(&part.block) {
                Some(block) => block,
                None if from.len() == BLOCK => Box::new([0; BLOCK]),
                None => self.durable_block(part.block)?,
            };
            block[part.in_block..part.in_block + from.len()].copy_from_slice(from);
            state.unsynced.insert(part.block, block);
        }
        Ok(())
    }

    /// Makes all that was written durable.
    pub fn flush(&self, life: u64) -> Result<(), Refused> {
        let mut state = self.slow(self.alive(life)?, life)?;
        state.counters.flushes += 1;
        if state.fails_fsyncs {
            state.counters.failed_fsyncs += 1;
            return Err(Refused);
        }
        // Taken out one by one: what the host could not store stays in the cache.
        while let Some((number, block)) = state.unsynced.pop_first() {
            if self.durable.write_all_at(&block[..], number * BLOCK as u64).is_err() {
                state.unsynced.insert(number, block);
                return Err(Refused);
            }
        }
        Ok(())
    }

    /// The power is gone: the cache is lost. With `torn`, seeded by it, each block of the cache is kept, lost, or kept up to some sector.
    /// How many blocks were lost or torn.
    pub fn crash(&self, torn: Option<u64>) -> io::Result<u64> {
        let mut state = self.state();
        let unsynced = std::mem::take(&mut state.unsynced);
        let mut lost = unsynced.len() as u64;
        if let Some(seed) = torn {
            let mut rng = StdRng::seed_from_u64(seed);
            for (number, block) in &unsynced {
                let sectors = BLOCK / SECTOR;
                let kept = if rng.random::<bool>() { rng.random_range(0..=sectors) } else { sectors };
                self.durable.write_all_at(&block[..kept * SECTOR], number * BLOCK as u64)?;
                lost -= u64::from(kept == sectors);
            }
        }
        state.life += 1;
        state.is_off = true;
        state.is_hung = false;
        state.counters.crashes += 1;
        state.counters.lost_blocks += lost;
        self.changed.notify_all();
        Ok(lost)
    }

    /// The power is back.
    pub fn power_on(&self) {
        self.state().is_off = false;
    }

    pub fn is_off(&self) -> bool {
        self.state().is_off
    }

    pub fn hang(&self, on: bool) {
        self.state().is_hung = on;
        self.changed.notify_all();
    }

    pub fn fail_writes(&self, on: bool) {
        self.state().fails_writes = on;
    }

    pub fn fail_fsyncs(&self, on: bool) {
        self.state().fails_fsyncs = on;
    }

    pub fn fsync_delay(&self, delay: Duration) {
        self.state().fsync_delay = delay;
        self.changed.notify_all();
    }

    pub fn counters(&self) -> DiskCounters {
        let state = self.state();
        DiskCounters { unsynced_blocks: state.unsynced.len() as u64, ..state.counters }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the disk hangs; an error when this life is over.
    fn alive(&self, life: u64) -> Result<MutexGuard<'_, State>, Refused> {
        let mut state = self.state();
        if state.is_hung && state.life == life {
            state.counters.hung += 1;
        }
        while state.is_hung && state.life == life {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.life == life && !state.is_off { Ok(state) } else { Err(Refused) }
    }

    /// Waits as long as a flush is slow; shortened at once when the delay is.
    fn slow<'a>(&'a self, mut state: MutexGuard<'a, State>, life: u64) -> Result<MutexGuard<'a, State>, Refused> {
        if state.fsync_delay.is_zero() {
            return Ok(state);
        }
        state.counters.delayed_fsyncs += 1;
        let clock = RunClock::start();
        loop {
            let waited = Duration::from_micros(clock.now().0);
            if state.life != life {
                return Err(Refused);
            }
            if waited >= state.fsync_delay {
                return Ok(state);
            }
            let left = state.fsync_delay - waited;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn durable_block(&self, number: u64) -> Result<Box<[u8; BLOCK]>, Refused> {
        let mut block = Box::new([0; BLOCK]);
        self.durable.read_exact_at(&mut block[..], number * BLOCK as u64).map_err(|_| Refused)?;
        Ok(block)
    }
}

/// The part of a request that falls into one block.
struct Part {
    block: u64,
    in_block: usize,
    in_buffer: std::ops::Range<usize>,
}

impl Part {
    fn offset(&self) -> u64 {
        self.block * BLOCK as u64 + self.in_block as u64
    }
}

fn parts(offset: u64, length: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let in_block = usize::try_from(at % BLOCK as u64).unwrap_or(0);
        let end = length.min(done + BLOCK - in_block);
        let part = (done < length).then(|| Part { block: at / BLOCK as u64, in_block, in_buffer: done..end });
        done = end;
        part
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 64 * BLOCK as u64;

    fn store() -> Store {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(BYTES).expect("sized");
        Store::new(file, BYTES)
    }

    fn read(store: &Store, life: u64, offset: u64, bytes: usize) -> Result<Vec<u8>, Refused> {
        let mut buffer = vec![0; bytes];
        store.read(life, offset, &mut buffer).map(|()| buffer)
    }

    #[test]
    fn what_was_written_is_read_across_blocks_and_before_a_flush() {
        let store = store();
        let data: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        store.write(0, 700, &data).expect("written");
        assert_eq!(read(&store, 0, 700, 10_000), Ok(data.clone()));
        store.flush(0).expect("flushed");
        assert_eq!(read(&store, 0, 700, 10_000), Ok(data));
        assert_eq!(read(&store, 0, 0, 700), Ok(vec![0; 700]));
    }

    #[test]
    fn a_crash_loses_what_was_not_flushed_and_nothing_else() {
        let store = store();
        store.write(0, 0, &[1; BLOCK]).expect("written");
        store.flush(0).expect("flushed");
        store.write(0, 0, &[2; BLOCK]).expect("written");
        store.write(0, BLOCK as u64, &[3; 10]).expect("written");
        assert_eq!(store.crash(None).expect("crashed"), 2);
        assert_eq!(read(&store, 0, 0, 1), Err(Refused));
        assert_eq!(store.open(), Err(Refused));
        store.power_on();
        assert_eq!(store.open(), Ok(1));
        assert_eq!(read(&store, 1, 0, BLOCK), Ok(vec![1; BLOCK]));
        assert_eq!(read(&store, 1, BLOCK as u64, 10), Ok(vec![0; 10]));
        assert_eq!(store.write(0, 0, &[9]), Err(Refused), "a former life never writes again");
    }

    #[test]
    fn a_torn_crash_keeps_some_sectors() {
        let store = store();
        for block in 0..32 {
            store.write(0, block * BLOCK as u64, &[1; BLOCK]).expect("written");
        }
        let lost = store.crash(Some(7)).expect("crashed");
        store.power_on();
        let all = read(&store, 1, 0, 32 * BLOCK).expect("read");
        let (kept, torn): (Vec<_>, Vec<_>) = all.chunks(BLOCK).partition(|block| **block == [1; BLOCK]);
        assert_eq!(torn.len() as u64, lost);
        assert!(!kept.is_empty() && torn.iter().any(|block| block.contains(&1)));
    }

    #[test]
    fn failing_requests_change_nothing() {
        let store = store();
        store.fail_writes(true);
        assert_eq!(store.write(0, 0, &[1]), Err(Refused));
        store.fail_writes(false);
        store.write(0, 0, &[1]).expect("written");
        store.fail_fsyncs(true);
        assert_eq!(store.flush(0), Err(Refused));
        assert_eq!(store.counters().unsynced_blocks, 1);
        assert_eq!(store.write(0, BYTES, &[1]), Err(Refused), "beyond the end");
    }

    #[test]
    fn a_hang_ends_when_it_is_over_or_with_the_power() {
        let store = store();
        store.hang(true);
        std::thread::scope(|scope| {
            let write = std::thread::Builder::new().spawn_scoped(scope, || store.write(0, 0, &[1])).expect("a thread");
            while store.counters().hung == 0 {
                std::thread::yield_now();
            }
            store.hang(false);
            assert_eq!(write.join().expect("ends"), Ok(()));
            store.hang(true);
            let write = std::thread::Builder::new().spawn_scoped(scope, || store.write(0, 0, &[2])).expect("a thread");
            while store.counters().hung == 1 {
                std::thread::yield_now();
            }
            store.crash(None).expect("crashed");
            assert_eq!(write.join().expect("ends"), Err(Refused));
        });
    }
}
