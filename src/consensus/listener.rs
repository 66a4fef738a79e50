//! New connections for the gRPC server. Neither an error of one connection nor a lack of descriptors ends the listener or makes it spin.

use crate::telemetry::Clock;
use crate::types::Millis;
use futures::{Stream, stream};
use std::io::{self, ErrorKind};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// After accept failed for want of descriptors or memory: trying at once would only burn a core.
const BACKOFF: Duration = Duration::from_millis(100);
/// It may fail ten times a second for hours.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Every connection that comes in; never an error, never an end.
pub fn connections(listener: TcpListener, clock: Clock) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold((listener, Failures::default()), move |(listener, mut failures)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Votes and heartbeats are small and urgent. A connection that is gone already fails with its first message.
                    drop(stream.set_nodelay(true));
                    return Some((Ok(stream), (listener, failures)));
                }
                Err(error) => tokio::time::sleep(failures.pause(&error, clock.now())).await,
            }
        }
    })
}

/// When a failure was last logged.
#[derive(Debug, Default)]
struct Failures {
    warned: Option<Millis>,
}

impl Failures {
    /// How long to rest after `error`.
    fn pause(&mut self, error: &io::Error, now: Millis) -> Duration {
        if of_one_connection(error) {
            return Duration::ZERO;
        }
        if self.warned.is_none_or(|at| now.since(at) >= WARN_EVERY) {
            self.warned = Some(now);
            tracing::warn!(%error, "the gRPC listener cannot accept connections");
        }
        BACKOFF
    }
}

/// It was gone before we took it; the next may be well.
fn of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[test]
    fn accepting_rests_when_descriptors_are_used_up_and_not_for_one_lost_connection() {
        let (mut failures, full) = (Failures::default(), io::Error::from_raw_os_error(24));
        assert_eq!(failures.pause(&ErrorKind::ConnectionAborted.into(), Millis(0)), Duration::ZERO);
        assert_eq!(failures.warned, None);
        for (now, warned) in [(5_000, 5_000), (5_100, 5_000), (14_999, 5_000), (15_000, 15_000)] {
            assert_eq!(failures.pause(&full, Millis(now)), BACKOFF);
            assert_eq!(failures.warned, Some(Millis(warned)));
        }
    }

    #[tokio::test]
    async fn accepted_connections_send_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(connections(listener, Clock::default()));
        let _client = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.unwrap().unwrap().nodelay().unwrap());
    }
}
