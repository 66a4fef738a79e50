//! Tools of the system, run as child processes with a deadline.

use crate::record::RunClock;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(2);
const NICE: i32 = -15;

/// Runs `command` to its end, with `input` on its standard input.
///
/// # Errors
/// When it cannot be started, fails (with what it wrote to stderr), or is not done by `deadline`; it is killed then, and not waited
/// for, since it may hang in the kernel.
pub(super) fn run(command: &mut Command, input: &str, deadline: Duration) -> Result<String> {
    let words = words(command);
    let output = output(command, input, deadline).with_context(|| format!("`{words}`"))?;
    if !output.status.success() {
        bail!("`{words}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn output(command: &mut Command, input: &str, deadline: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot be started; is it installed and in PATH?")?;
    if let Some(mut to) = child.stdin.take() {
        // A tool that ends without reading says why on stderr.
        let _ = to.write_all(input.as_bytes());
    }
    let clock = RunClock::start();
    // What these tools print fits the pipes' 64 KiB, so that nothing blocks before the end.
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Duration::from_micros(clock.now().0) > deadline {
            child.kill()?;
            bail!("was not done after {deadline:?}");
        }
        std::thread::sleep(POLL);
    };
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    if let Some(mut from) = child.stdout.take() {
        from.read_to_end(&mut output.stdout)?;
    }
    if let Some(mut from) = child.stderr.take() {
        from.read_to_end(&mut output.stderr)?;
    }
    Ok(output)
}

fn words(command: &Command) -> String {
    let mut words = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        words.push(' ');
        words.push_str(&word.to_string_lossy());
    }
    words
}

/// The calling thread goes before the programs under test: a world that they can starve would add its own delays to theirs.
pub(super) fn go_first() {
    // On Linux this is the thread's own. Without the privilege the world is less exact, no worse.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Waits until `done`, asking every few milliseconds; whether it became true before `deadline`.
pub(super) fn wait_until(deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
    let clock = RunClock::start();
    loop {
        if done() {
            return true;
        }
        if Duration::from_micros(clock.now().0) > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}
