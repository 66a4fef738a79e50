//! Runs PostgreSQL's programs: with a deadline, as the right user, killed when the caller gives up.

use super::error::{Error, io};
use super::install::Install;
use super::user::RunAs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Prepared so that neither the caller's environment (`PGPORT`, `PGOPTIONS`, a language) nor its directory matters.
pub(super) fn command(install: &Install, name: &'static str, run_as: &RunAs, dir: &Path) -> Command {
    let mut command = Command::new(install.program(name));
    command.env_clear().env("LC_ALL", "C").env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if let Some(timezone) = std::env::var_os("TZ") {
        command.env("TZ", timezone);
    }
    command.current_dir(dir).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    run_as.apply(&mut command);
    command
}

/// Its standard output, or an error that holds its last words.
pub(super) async fn run(mut command: Command, tool: &'static str, limit: Duration) -> Result<String, Error> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(io("cannot run", tool))?;
    let _group = KillGroup::of(&child);
    let output = tokio::time::timeout(limit, child.wait_with_output()).await;
    let output = output.map_err(|_| Error::Timeout { what: tool, after: limit })?.map_err(io("cannot run", tool))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Error::Tool { tool, status: output.status.to_string(), output: last_words(&stderr, &stdout) })
}

/// Kills a tool together with the helpers it forked (pg_basebackup has one) when its caller gives up or when it has ended.
pub(super) struct KillGroup(Option<rustix::process::Pid>);

impl KillGroup {
    /// `child` leads its own process group, as [`command`] arranges.
    pub fn of(child: &tokio::process::Child) -> KillGroup {
        KillGroup(child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw))
    }
}

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nothing is left of the group in the usual case.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// The last lines, where programs say why they failed.
pub(super) fn last_words(stderr: &str, stdout: &str) -> String {
    const LINES: usize = 6;
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" · ")
}

/// Runs `work` on a thread where it may block: files and directories of Postgres may lie on a slow or hung disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels blocking work; nobody is left to read an answer.
            Err(_) => std::future::pending().await,
        },
    }
}

/// `future` within `limit`.
pub(super) async fn within<T>(limit: Duration, what: &'static str, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, future).await.unwrap_or(Err(Error::Timeout { what, after: limit }))
}
