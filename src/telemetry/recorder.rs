//! Writes what happens to a file, without ever making it wait: a bounded queue, a thread of its own, and a count of what did not fit.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// More entries than a start brings at once, when the whole consensus log is applied.
const QUEUE: usize = 4_096;
/// A recording that is forgotten must not fill the disk: hours of it fit.
const BYTES_MAX: u64 = 4 << 30;

/// Makes text of entries, on the writing thread.
pub trait Render<T>: Send + 'static {
    fn entry(&mut self, entry: T) -> String;
    /// So many entries did not fit since the last line.
    fn dropped(&mut self, entries: u64) -> String;
}

/// Where entries go. The file ends with the last clone.
#[derive(Debug)]
pub struct Recorder<T> {
    queue: SyncSender<T>,
    dropped: Arc<AtomicU64>,
}

impl<T> Clone for Recorder<T> {
    fn clone(&self) -> Self {
        Recorder { queue: self.queue.clone(), dropped: self.dropped.clone() }
    }
}

impl<T: Send + 'static> Recorder<T> {
    /// Begin the file `path`, which must not exist.
    ///
    /// # Errors
    /// The file cannot be made, or the thread.
    pub fn start(path: &Path, render: impl Render<T>) -> io::Result<Recorder<T>> {
        Self::start_of(path, BYTES_MAX, render)
    }

    fn start_of(path: &Path, bytes_max: u64, render: impl Render<T>) -> io::Result<Recorder<T>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let (queue, entries) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer { file: BufWriter::new(file), written: 0, bytes_max, dropped: dropped.clone(), render };
        std::thread::Builder::new().name("recorder".to_owned()).spawn(move || writer.run(&entries))?;
        Ok(Recorder { queue, dropped })
    }

    /// Never waits: what does not fit is counted.
    pub fn record(&self, entry: T) {
        if self.queue.try_send(entry).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer<R> {
    file: BufWriter<File>,
    written: u64,
    bytes_max: u64,
    dropped: Arc<AtomicU64>,
    render: R,
}

impl<R> Writer<R> {
    fn run<T>(mut self, entries: &Receiver<T>)
    where
        R: Render<T>,
    {
        loop {
            let entry = match entries.try_recv() {
                Ok(entry) => Some(entry),
                // Nothing to do: now a reader may have it all.
                Err(TryRecvError::Empty) if self.file.flush().is_ok() => entries.recv().ok(),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
            };
            let Some(entry) = entry else { break };
            if let Err(error) = self.write(entry) {
                tracing::warn!(%error, "the recording ends here");
                return;
            }
        }
        let missing = self.dropped.swap(0, Ordering::Relaxed);
        let last = if missing > 0 { self.render.dropped(missing) } else { String::new() };
        if let Err(error) = self.file.write_all(last.as_bytes()).and_then(|()| self.file.flush()) {
            tracing::warn!(%error, "the recording lacks its end");
        }
    }

    fn write<T>(&mut self, entry: T) -> io::Result<()>
    where
        R: Render<T>,
    {
        // Told before the next entry: those that follow are whole again.
        let missing = self.dropped.swap(0, Ordering::Relaxed);
        let mut text = if missing > 0 { self.render.dropped(missing) } else { String::new() };
        text += &self.render.entry(entry);
        self.written += text.len() as u64;
        if self.written > self.bytes_max {
            // The file says itself that it is not whole: who reads it may not have the log.
            let end = self.render.dropped(missing + 1);
            self.file.write_all(end.as_bytes()).and_then(|()| self.file.flush())?;
            return Err(io::Error::other("the file has grown as large as it may"));
        }
        self.file.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    struct Slow(Receiver<()>);

    impl Render<u32> for Slow {
        fn entry(&mut self, entry: u32) -> String {
            // Until the test lets go; afterwards at once.
            let _ = self.0.recv();
            format!("{entry}\n")
        }

        fn dropped(&mut self, entries: u64) -> String {
            format!("dropped {entries}\n")
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let (hold, gate) = sync_channel(1);
        let recorder = Recorder::start(&path, Slow(gate)).unwrap();
        let all = QUEUE as u32 + 100;
        (0..all).for_each(|n| recorder.record(n));
        drop(hold);
        drop(recorder);
        let lost = |text: &str| text.lines().filter_map(|l| l.strip_prefix("dropped ")).map(|n| n.parse::<u32>().unwrap()).sum::<u32>();
        let kept = |text: &str| text.lines().filter(|l| !l.starts_with("dropped")).count() as u32;
        let whole = (0..1_000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Some(std::fs::read_to_string(&path).unwrap()).filter(|text| kept(text) + lost(text) == all)
        });
        let text = whole.expect("the writer ends within ten seconds");
        // One may be with the writer already.
        assert!((99..=100).contains(&lost(&text)), "{} lost", lost(&text));
    }

    #[test]
    fn a_recording_that_is_full_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let (hold, gate) = sync_channel(1);
        drop(hold);
        let recorder = Recorder::start_of(&path, 100, Slow(gate)).unwrap();
        (10..99).for_each(|n| recorder.record(n));
        let ended = || std::fs::read_to_string(&path).unwrap().ends_with("dropped 1\n");
        assert!((0..1_000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            ended()
        }));
        assert!(std::fs::metadata(&path).unwrap().len() <= 110);
    }
}
