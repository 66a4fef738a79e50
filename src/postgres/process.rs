//! The postmaster as a process: started so that it survives us, adopted when it survived our predecessor, watched without polling.
//!
//! The postmaster leads its own process group, writes its log to a file and holds no pipe of ours; kill -9 of this process leaves
//! it running. A pidfd, opened before the pid is checked, makes signals and the watch immune to reused pids.

use super::error::{Error, io};
use super::install::Install;
use super::layout::Layout;
use super::procfs::{self, PidFile};
use super::tool;
use super::user::RunAs;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the postmaster of this data directory does, as a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Postmaster {
    /// None was started or found since this process began.
    #[default]
    Absent,
    Running {
        pid: i32,
    },
    /// It ended; backends may be left behind for a moment.
    Exited {
        pid: i32,
    },
}

/// Signals the postmaster from any thread, without waiting for anything: for the lease's own thread.
#[derive(Clone, Default)]
pub struct Emergency {
    fd: Arc<Mutex<Option<Arc<OwnedFd>>>>,
}

impl Emergency {
    /// Immediate shutdown (SIGQUIT): no client gets another answer. `false` when no postmaster runs.
    pub fn immediate(&self) -> bool {
        self.send(Signal::QUIT)
    }

    pub(super) fn send(&self, signal: Signal) -> bool {
        let fd = lock(&self.fd).clone();
        fd.is_some_and(|fd| pidfd_send_signal(&fd, signal).is_ok())
    }
}

/// Owns the watch over one postmaster.
pub(super) struct Supervisor {
    state: watch::Sender<Postmaster>,
    handle: Emergency,
    watcher: Mutex<JoinSet<()>>,
    /// How the last one ended, in words; `None` while one runs, and of one that was adopted: it is not our child.
    ended: Arc<Mutex<Option<String>>>,
}

impl Supervisor {
    pub fn new() -> Supervisor {
        Supervisor {
            state: watch::Sender::new(Postmaster::Absent),
            handle: Emergency::default(),
            watcher: Mutex::new(JoinSet::new()),
            ended: Arc::default(),
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<Postmaster> {
        self.state.subscribe()
    }

    pub fn emergency(&self) -> Emergency {
        self.handle.clone()
    }

    /// How the last postmaster ended, as in "exit status: 1" or "signal: 9 (SIGKILL)".
    pub fn ended(&self) -> String {
        lock(&self.ended).clone().unwrap_or_else(|| "its end was not seen".to_owned())
    }

    /// Pid of the running postmaster.
    pub fn pid(&self) -> Option<i32> {
        match *self.state.borrow() {
            Postmaster::Running { pid } => Some(pid),
            Postmaster::Absent | Postmaster::Exited { .. } => None,
        }
    }

    pub fn send(&self, signal: Signal) -> bool {
        self.handle.send(signal)
    }

    /// Starts the postmaster. Must run inside the runtime.
    pub fn spawn(&self, install: &Install, run_as: &RunAs, layout: &Layout, settings: &[(String, String)]) -> Result<i32, Error> {
        let log = open_log(layout)?;
        let mut command = tool::command(install, "postgres", run_as, &layout.node_dir);
        command.arg("-D").arg(&layout.pgdata);
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let errors = log.try_clone().map_err(io("cannot open", layout.log_file()))?;
        command.stdout(Stdio::from(log)).stderr(Stdio::from(errors)).kill_on_drop(false);
        // Backends take back the protection that their postmaster gets below.
        command.env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj").env("PG_OOM_ADJUST_VALUE", "0");
        let mut child = command.spawn().map_err(io("cannot run", install.program("postgres")))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).ok_or(Error::NotRunning)?;
        procfs::shield_from_oom_killer(pid);
        // The child is not reaped before `wait`, so its pid is still its own here.
        let fd = open_pidfd(pid)?;
        *lock(&self.ended) = None;
        let ended = Arc::clone(&self.ended);
        self.track(pid, fd, move |_| async move {
            *lock(&ended) = child.wait().await.ok().map(|status| status.to_string());
        });
        Ok(pid)
    }

    /// Takes over a postmaster that runs in this data directory. `Ok(None)`: none does.
    pub fn adopt(&self, layout: &Layout) -> Result<Option<i32>, Error> {
        let Some(pid) = PidFile::read(&layout.pgdata).map(|f| f.pid) else { return Ok(None) };
        let Ok(fd) = open_pidfd(pid) else { return Ok(None) };
        if !procfs::works_in(pid, &layout.pgdata) {
            return Ok(None);
        }
        if !procfs::command_line(pid).contains(&format!("config_file={}", layout.config_file().display())) {
            return Err(Error::ForeignPostmaster { pid, path: layout.pgdata.clone() });
        }
        let watched = Arc::clone(&fd);
        // SAFETY: the descriptor stays open and the same for as long as the `Arc` lives, and the `AsyncFd` owns one.
        let readable = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) };
        let readable = readable.map_err(|e| io("cannot watch", layout.pgdata.join("postmaster.pid"))(e.into()))?;
        self.track(pid, fd, move |_| async move {
            // A pidfd becomes readable when its process ends.
            let _ = readable.readable().await;
        });
        Ok(Some(pid))
    }

    fn track<F: Future<Output = ()> + Send + 'static>(&self, pid: i32, fd: Arc<OwnedFd>, ended: impl FnOnce(()) -> F) {
        *lock(&self.handle.fd) = Some(fd);
        self.state.send_replace(Postmaster::Running { pid });
        let (ended, state, handle) = (ended(()), self.state.clone(), self.handle.clone());
        let mut watcher = lock(&self.watcher);
        watcher.abort_all();
        watcher.spawn(async move {
            ended.await;
            *lock(&handle.fd) = None;
            state.send_replace(Postmaster::Exited { pid });
        });
    }
}

fn open_pidfd(pid: i32) -> Result<Arc<OwnedFd>, Error> {
    let pid = Pid::from_raw(pid).ok_or(Error::NotRunning)?;
    pidfd_open(pid, PidfdFlags::NONBLOCK).map(Arc::new).map_err(|e| io("cannot watch process", pid.as_raw_pid().to_string())(e.into()))
}

/// The guarded values are replaced whole, so a panic elsewhere cannot leave them half written.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Log size from which a start begins a new file; one old file is kept.
const LOG_BYTES_MAX: u64 = 32 << 20;

fn open_log(layout: &Layout) -> Result<std::fs::File, Error> {
    let path = layout.log_file();
    rotate_log(layout)?;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o640).open(&path).map_err(io("cannot open", path))
}

/// Keeps one old log beside the new one. The postmaster appends through a descriptor that it never reopens, so a running server's
/// log is copied and cut; lines written in between may be lost.
pub(super) fn rotate_log(layout: &Layout) -> Result<(), Error> {
    let path = layout.log_file();
    if std::fs::metadata(&path).map_or(0, |m| m.len()) < LOG_BYTES_MAX {
        return Ok(());
    }
    std::fs::copy(&path, path.with_extension("log.1")).map_err(io("cannot copy", &path))?;
    std::fs::OpenOptions::new().write(true).truncate(true).open(&path).map(drop).map_err(io("cannot cut", path))
}

/// The last `bytes` of PostgreSQL's log; empty where there is none.
pub(super) fn log_end(layout: &Layout, bytes: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(layout.log_file())?;
        let from = file.metadata()?.len().saturating_sub(bytes);
        file.seek(SeekFrom::Start(from))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(String::from_utf8_lossy(&end).into_owned())
    };
    read().unwrap_or_default()
}

/// The newest lines of the log, for error messages.
pub(super) fn log_tail(layout: &Layout) -> String {
    let text = log_end(layout, 4096);
    let telling =
        |l: &&str| ["FATAL", "ERROR", "PANIC", "HINT", "DETAIL", "LOG"].iter().any(|w| l.contains(w)) || l.starts_with("postgres:");
    let lines: Vec<&str> = text.lines().filter(telling).collect();
    lines[lines.len().saturating_sub(6)..].join(" · ")
}
