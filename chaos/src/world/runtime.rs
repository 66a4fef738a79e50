//! A datacenter's clients: one thread in its network namespace, with a runtime whose sockets live there.

use super::external::wait_until;
use super::namespace::Namespace;
use anyhow::{Context, Result};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};

/// Jobs handed over and not yet started.
const WAITING_MAX: usize = 4096;
/// A job that blocks its thread is left behind after this.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce(&mut JoinSet<()>) + Send>;

/// Runs futures within a datacenter, all on one thread: they need not be `Send`.
#[derive(Debug)]
pub struct SiteRuntime {
    name: String,
    running: Mutex<Option<(mpsc::Sender<Job>, JoinHandle<()>)>>,
}

impl SiteRuntime {
    pub(super) fn start(name: &str, namespace: Namespace) -> Result<SiteRuntime> {
        let (sender, jobs) = mpsc::channel(WAITING_MAX);
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("{name}-clients"))
            .spawn(move || {
                let runtime = namespace
                    .enter()
                    .map_err(std::io::Error::from)
                    .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
                match runtime {
                    Ok(runtime) => {
                        let _ = started.send(Ok(()));
                        LocalSet::new().block_on(&runtime, serve(jobs));
                        runtime.shutdown_background();
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            })
            .with_context(|| format!("the thread of {name}'s clients"))?;
        start.recv().context("ended at once")?.with_context(|| format!("the runtime of {name}'s clients"))?;
        Ok(SiteRuntime { name: name.to_owned(), running: Mutex::new(Some((sender, thread))) })
    }

    /// Starts the future that `job` makes, within the datacenter. Its sockets connect from the datacenter's address.
    ///
    /// The receiver gets an error instead of the result when the future panicked, the world went down, or thousands of jobs wait to
    /// start. Dropping the receiver leaves the future running until the world goes down.
    pub fn spawn<T, F, J>(&self, job: J) -> oneshot::Receiver<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
        J: FnOnce() -> F + Send + 'static,
    {
        let (result, receiver) = oneshot::channel();
        let job: Job = Box::new(move |tasks| {
            tasks.spawn_local(async move {
                // Nobody may be waiting for the result.
                let _ = result.send(job().await);
            });
        });
        if let Some((sender, _)) = self.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // A job that finds no room is dropped, and its receiver told so.
            let _ = sender.try_send(job);
        }
        receiver
    }

    /// Drops every future and ends the thread.
    pub(super) fn stop(&self) {
        let Some((sender, thread)) = self.running.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        drop(sender);
        if wait_until(STOP_DEADLINE, || thread.is_finished()) {
            let _ = thread.join();
        } else {
            eprintln!("world: the thread of {}'s clients is blocked and is left behind", self.name);
        }
    }
}

async fn serve(mut jobs: mpsc::Receiver<Job>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => job(&mut tasks),
                None => break,
            },
            // A panic has been printed by its hook, and the receiver of the result learns of it.
            Some(_) = tasks.join_next() => {}
        }
    }
    tasks.shutdown().await;
}
