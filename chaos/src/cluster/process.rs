//! A command that must end within a time, and whose output is wanted.

use crate::record::{At, RunClock};
use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Run `command` and collect what it writes.
///
/// # Errors
/// It cannot be started, or has not ended within `limit`; then it is killed, and its outcome is not known.
pub fn output_within(mut command: Command, limit: Duration) -> Result<Output> {
    let clock = RunClock::start();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let read = collect(&mut child, &mut stdout, &mut stderr, &clock, limit);
    let ended = read.and_then(|()| wait(&mut child, &clock, limit));
    match ended {
        Ok(status) => Ok(Output { status, stdout, stderr }),
        Err(error) => {
            let _ = child.kill();
            // Whoever hangs in the kernel is not waited for; its parent's end will reap it.
            let _ = wait(&mut child, &RunClock::start(), Duration::from_secs(2));
            Err(error.context(format!("it said: {}", String::from_utf8_lossy(&stderr).trim())))
        }
    }
}

/// Wait for a command that was started before; kill it when it has not ended within `limit`. `None`: so it was.
pub(super) fn reap(mut child: Child, limit: Duration) -> Option<ExitStatus> {
    if let Ok(status) = wait(&mut child, &RunClock::start(), limit) {
        return Some(status);
    }
    let _ = child.kill();
    let _ = wait(&mut child, &RunClock::start(), Duration::from_secs(2));
    None
}

fn collect(child: &mut Child, stdout: &mut Vec<u8>, stderr: &mut Vec<u8>, clock: &RunClock, limit: Duration) -> Result<()> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    while out.is_some() || err.is_some() {
        let left = limit.saturating_sub(clock.now().since(At(0)));
        if left.is_zero() {
            bail!("no end within {} s", limit.as_secs());
        }
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        fds.extend(out.as_ref().map(|o| PollFd::new(o, PollFlags::IN)));
        fds.extend(err.as_ref().map(|e| PollFd::new(e, PollFlags::IN)));
        let step = Timespec::try_from(left.min(Duration::from_millis(200))).context("a duration")?;
        match poll(&mut fds, Some(&step)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for its output"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        if out.is_some() && ready.next() == Some(true) && !take(out.as_mut(), stdout) {
            out = None;
        }
        if err.is_some() && ready.next() == Some(true) && !take(err.as_mut(), stderr) {
            err = None;
        }
    }
    Ok(())
}

/// Read what is there; `false` at the end.
fn take(from: Option<&mut impl Read>, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0u8; 16 * 1024];
    match from.map(|from| from.read(&mut buffer)) {
        Some(Ok(0) | Err(_)) | None => false,
        Some(Ok(n)) => {
            into.extend_from_slice(&buffer[..n]);
            true
        }
    }
}

fn wait(child: &mut Child, clock: &RunClock, limit: Duration) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("cannot learn how it ended")? {
            return Ok(status);
        }
        if clock.now().since(At(0)) >= limit {
            bail!("no end within {} s", limit.as_secs());
        }
        sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_outputs_are_read_to_their_ends() {
        let output = output_within(shell("seq 1 50000; seq 1 50000 >&2; exit 3"), Duration::from_secs(20)).expect("it ends");
        assert_eq!(output.status.code(), Some(3));
        assert!(output.stdout.ends_with(b"50000\n") && output.stderr.ends_with(b"50000\n"));
    }

    #[test]
    fn what_does_not_end_is_killed_and_said() {
        let error = output_within(shell("echo stuck >&2; exec sleep 60"), Duration::from_secs(3)).expect_err("too slow");
        assert!(format!("{error:#}").contains("it said: stuck"), "{error:#}");
    }
}
