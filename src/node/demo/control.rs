//! How `trilithon demo --kill dc1` reaches the demo that runs: a unix socket in its folder, one line of JSON each way.
//!
//! Only the user who started the demo (and root) may write to it: the folder's permissions say so. Deliberately absent:
//! everything that a cluster's administrator does; that goes through gRPC, as on a real cluster.
//!
//! Entry points: [`listen`] in the supervisor, [`ask`] in the command.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longer than the longest action, an orderly stop of all nodes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// A request is one short line.
const REQUEST_BYTES_MAX: u64 = 4_096;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const FILE: &str = "control.sock";

/// What a running demo can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb", content = "node")]
pub enum Request {
    Stop,
    /// kill -9 of the node and of its Postgres: the datacenter is gone.
    Kill(String),
    Start(String),
    /// Nothing passes between this datacenter and the others.
    Cut(String),
    Heal,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub done: bool,
    pub message: String,
}

/// Open the socket; a stale one of a demo that was killed is replaced.
pub fn listen(dir: &Path) -> anyhow::Result<tokio::net::UnixListener> {
    let path = dir.join(FILE);
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener = with_short_path(dir, |short| StdUnixListener::bind(short))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).with_context(|| format!("cannot protect {}", path.display()))?;
    listener.set_nonblocking(true).context("cannot prepare the control socket")?;
    tokio::net::UnixListener::from_std(listener).context("cannot watch the control socket")
}

/// A socket's path may have 107 bytes; through the folder's descriptor every folder is near.
fn with_short_path<T>(dir: &Path, open: impl FnOnce(&Path) -> std::io::Result<T>) -> anyhow::Result<T> {
    let folder = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(FILE);
    open(&short).with_context(|| format!("cannot open {}", dir.join(FILE).display()))
}

/// Is there a demo in `dir` that answers?
#[must_use]
pub fn is_running(dir: &Path) -> bool {
    with_short_path(dir, |short| StdUnixStream::connect(short)).is_ok()
}

/// Tell the demo in `dir`; blocking.
pub fn ask(dir: &Path, request: &Request) -> anyhow::Result<Answer> {
    let mut stream = with_short_path(dir, |short| StdUnixStream::connect(short))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).context("cannot bound the wait")?;
    writeln!(stream, "{}", serde_json::to_string(request).context("cannot write the request")?).context("the demo does not listen")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the demo did not answer")?;
    serde_json::from_str(&line).with_context(|| format!("the demo answered {line:?}"))
}

/// The request on a fresh connection.
pub async fn receive(stream: &mut UnixStream) -> anyhow::Result<Request> {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(stream.take(REQUEST_BYTES_MAX));
    tokio::time::timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await.context("no request came")??;
    serde_json::from_str(&line).with_context(|| format!("not a request: {line:?}"))
}

/// Answer it. Whoever asked may have left.
pub async fn reply(stream: &mut UnixStream, answer: &Answer) {
    if let Ok(text) = serde_json::to_string(answer) {
        let _ = stream.write_all(format!("{text}\n").as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_and_its_answer_pass_through_a_deep_folder() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let dir = root.path().join("d".repeat(120));
        fs::create_dir(&dir).expect("a folder");
        assert!(!is_running(&dir));
        let listener = listen(&dir).expect("a socket");
        let asked = dir.clone();
        let asking = tokio::task::spawn_blocking(move || ask(&asked, &Request::Kill("dc1".into())));
        let (mut stream, _) = listener.accept().await.expect("accepted");
        assert_eq!(receive(&mut stream).await.expect("a request"), Request::Kill("dc1".into()));
        reply(&mut stream, &Answer { done: true, message: "killed".into() }).await;
        let answer = asking.await.expect("joined").expect("answered");
        assert_eq!(answer, Answer { done: true, message: "killed".into() });
        drop(listener);
        drop(listen(&dir).expect("a stale socket is replaced"));
    }
}
