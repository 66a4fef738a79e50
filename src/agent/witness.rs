//! The agent of a member without Postgres: it has no step to take, it only says that it lives and whom it misses.

use super::{Obeyed, ViewSource};
use crate::cluster::Lease;
use crate::consensus::Handle;
use crate::ha::{NodeObservation, StepReason};
use crate::telemetry::Clock;
use crate::types::NodeId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const TICK: Duration = Duration::from_millis(250);

/// All fields are handed over by `node`.
pub struct Witness {
    pub me: NodeId,
    pub clock: Clock,
    pub consensus: Handle,
    pub view: Arc<ViewSource>,
    pub observation: watch::Sender<NodeObservation>,
    pub proxy: watch::Receiver<Obeyed>,
    pub refusals: watch::Receiver<BTreeMap<NodeId, Lease>>,
    pub leaving: watch::Receiver<bool>,
    pub stop: CancellationToken,
}

impl Witness {
    /// Until `stop`.
    pub async fn run(mut self) {
        let mut states = self.consensus.state();
        while !self.stop.is_cancelled() {
            let state = states.borrow_and_update().clone();
            let proxy = *self.proxy.borrow_and_update();
            let observation = NodeObservation {
                node: self.me,
                promised: state.epoch,
                revision: proxy.map_or(state.revision, |(obeyed, _)| obeyed.min(state.revision)),
                proxy_in_flight: proxy.map_or(0, |(_, in_flight)| in_flight),
                refusals: self.refusals.borrow_and_update().clone(),
                round_trips: self.consensus.round_trips(),
                leaving: *self.leaving.borrow(),
                step: StepReason::Witness.to_string(),
                software_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..NodeObservation::default()
            };
            self.view.seen(observation.clone(), self.clock.now());
            self.observation.send_replace(observation);
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                _ = states.changed() => {}
                _ = self.proxy.changed() => {}
                _ = self.refusals.changed() => {}
                () = self.stop.cancelled() => {}
            }
        }
    }
}
