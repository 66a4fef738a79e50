//! How far away each member is. A hint for who should lead and who should take over, since the nearest keeps clients waiting least; nothing
//! safe rests on it.

use super::formation;
use super::network::timed;
use super::node::Shared;
use crate::types::NodeId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const EVERY: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Without an answer in time.
const FAR_MS: u32 = 1_000;
/// The quickest of so many answers counts: what is busy only ever adds to a round trip.
const KEPT: usize = 6;
/// A change of less, or of less than a quarter, is not told to anybody.
const CHANGE_MIN_MS: u32 = 3;

/// Round trip to each member that answers, in milliseconds.
pub type RoundTrips = BTreeMap<NodeId, u32>;

/// Until the node stops.
pub async fn run(shared: Arc<Shared>) -> String {
    let mut answers: BTreeMap<NodeId, VecDeque<u32>> = BTreeMap::new();
    loop {
        let reached: Vec<NodeId> = shared.reach.borrow().iter().filter(|(_, reach)| reach.state.is_ok()).map(|(node, _)| *node).collect();
        answers.retain(|node, _| reached.contains(node));
        for node in reached {
            if !answers.contains_key(&node) {
                // The first one makes the connection.
                ask(&shared, node).await;
            }
            let known = answers.entry(node).or_default();
            known.truncate(KEPT - 1);
            known.push_front(ask(&shared, node).await.unwrap_or(FAR_MS));
        }
        let nearest = answers.iter().filter_map(|(node, took)| Some((*node, *took.iter().min()?))).collect();
        shared.round_trips.send_if_modified(|known| {
            let news = differ(known, &nearest);
            if news {
                *known = nearest;
            }
            news
        });
        sleep(EVERY).await;
    }
}

async fn ask(shared: &Shared, node: NodeId) -> Option<u32> {
    let peer = shared.address_of(node)?;
    let mut client = shared.links.get(&peer.name, &peer.address).ok()?.general();
    let begun = shared.config.clock.now();
    timeout(ANSWER_TIMEOUT, client.hello(timed(formation::greeting(shared), ANSWER_TIMEOUT))).await.ok()?.ok()?;
    u32::try_from(shared.config.clock.now().since(begun).as_millis()).ok()
}

fn differ(known: &RoundTrips, now: &RoundTrips) -> bool {
    let near = |a: u32, b: u32| a.abs_diff(b) < CHANGE_MIN_MS.max(a / 4);
    !known.keys().eq(now.keys()) || known.values().zip(now.values()).any(|(a, b)| !near(*a, *b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_not_told() {
        let trips = |a, b| RoundTrips::from([(NodeId(1), a), (NodeId(2), b)]);
        assert!(!differ(&trips(15, 40), &trips(17, 48)));
        assert!(differ(&trips(15, 40), &trips(15, 50)) && differ(&trips(1, 40), &trips(4, 40)));
        assert!(differ(&trips(15, 40), &RoundTrips::from([(NodeId(1), 15)])), "one is not reached any more");
    }
}
