//! Server streams without a task of their own: they advance only while the client reads.

use crate::api::{ActionError, Actions, ClusterAccess, EventLog};
use crate::proto::v1::{Event, Progress};
use crate::types::RequestId;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{broadcast, mpsc};
use tonic::{Code, Status};

/// Lines of progress that a client may lie behind before further ones are left out.
const LINES_MAX: usize = 64;

/// Progress of an action, then its end. A client that goes away stops the waiting, not what was already proposed.
pub(super) fn progress<F>(access: ClusterAccess, request: RequestId, run: F) -> BoxStream<'static, Result<Progress, Status>>
where
    F: FnOnce(Actions) -> BoxFuture<'static, Result<String, ActionError>>,
{
    struct Running {
        lines: mpsc::Receiver<String>,
        /// `None` once the end was sent.
        action: Option<BoxFuture<'static, Result<String, ActionError>>>,
        end: Option<Result<String, ActionError>>,
    }
    let (sender, lines) = mpsc::channel(LINES_MAX);
    let action = run(Actions::new(access, request, sender));
    let running = Running { lines, action: Some(action), end: None };
    let next = |mut running: Running| async move {
        if let Some(action) = running.action.as_mut() {
            tokio::select! {
                biased;
                Some(line) = running.lines.recv() => return Some((Ok(Progress { message: line, done: false }), running)),
                end = action => running.end = Some(end),
            }
            running.action = None;
        }
        // Lines said just before the end come before it.
        if let Ok(line) = running.lines.try_recv() {
            return Some((Ok(Progress { message: line, done: false }), running));
        }
        let end = running.end.take()?;
        Some((end.map(|message| Progress { message, done: true }).map_err(|e| status_of(&e)), running))
    };
    stream::unfold(running, next).boxed()
}

/// Remembered events, then live ones. A consumer that falls behind gets RESOURCE_EXHAUSTED with the revision to resume from.
pub(super) fn events(log: &EventLog, after: Option<u64>, follow: bool) -> BoxStream<'static, Result<Event, Status>> {
    let (remembered, live) = log.subscribe(after);
    let last = remembered.last().map_or(0, |e| e.revision);
    let first = stream::iter(remembered.into_iter().map(Ok));
    if !follow {
        return first.boxed();
    }
    struct Live {
        receiver: Option<broadcast::Receiver<Event>>,
        last: u64,
    }
    let next = |mut live: Live| async move {
        match live.receiver.as_mut()?.recv().await {
            Ok(event) => {
                live.last = event.revision;
                Some((Ok(event), live))
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                live.receiver = None;
                let text =
                    format!("{missed} events were missed because this consumer is too slow; resume with after_revision={}", live.last);
                Some((Err(Status::resource_exhausted(text)), live))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    };
    first.chain(stream::unfold(Live { receiver: Some(live), last }, next)).boxed()
}

/// How the end of an action travels; the CLI turns the code into its exit code.
pub(super) fn status_of(error: &ActionError) -> Status {
    let code = match error {
        ActionError::Usage(_) => Code::InvalidArgument,
        ActionError::Refused(_) => Code::FailedPrecondition,
        ActionError::Failed(_) => Code::Aborted,
        ActionError::NoQuorum(_) => Code::Unavailable,
        ActionError::Unknown(_) => Code::DeadlineExceeded,
    };
    Status::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_consumer_is_dropped_with_a_revision_to_resume_from() {
        let log = EventLog::default();
        let mut slow = events(&log, None, true);
        let publish = |revision| log.publish(Event { revision, ..Event::default() });
        (1..=10).for_each(publish);
        assert_eq!(slow.next().await.unwrap().unwrap().revision, 1);
        (11..=1000).for_each(publish);
        let dropped = loop {
            if let Err(status) = slow.next().await.unwrap() {
                break status;
            }
        };
        assert_eq!(dropped.code(), Code::ResourceExhausted);
        assert!(dropped.message().ends_with("resume with after_revision=1"), "{dropped}");
        assert!(slow.next().await.is_none());
        let resumed: Vec<u64> = events(&log, Some(1), false).map(|e| e.unwrap().revision).collect().await;
        assert_eq!(resumed, (2..=1000).collect::<Vec<u64>>());
    }
}
