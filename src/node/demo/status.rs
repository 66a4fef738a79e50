//! What the nodes of a demo say about their cluster: `Admin.Status`, the JSON document of INTERFACE.md, as far as a demo shows
//! it. Deliberately absent: what only `trilithon status` shows.
//!
//! Entry point: [`Watcher::ask`].

use super::plan::{Plan, Site};
use crate::proto::v1::StatusRequest;
use crate::proto::v1::admin_client::AdminClient;
use futures::future::join_all;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// On this machine an answer takes milliseconds; a node that has no answer by then is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_000);

/// The cluster as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    pub phase: String,
    pub epoch: u64,
    pub primary: Option<String>,
    pub reason: String,
    pub writable: bool,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    pub name: String,
    pub role: String,
    pub state: String,
    /// What the node does next, in its own words.
    pub step: String,
}

impl Status {
    /// One primary runs and everybody else streams from it.
    #[must_use]
    pub fn is_complete(&self, plan: &Plan) -> bool {
        let settled = |site: &Site| {
            self.members.iter().any(|m| {
                m.name == site.name
                    && match m.role.as_str() {
                        "primary" => m.state == "running",
                        "witness" => m.state == "running",
                        _ => m.state == "streaming",
                    }
            })
        };
        self.phase == "steady" && self.writable && self.primary.is_some() && plan.sites.iter().all(settled)
    }
}

/// Connections to all nodes, kept: asking must cost the nodes next to nothing.
pub struct Watcher(Vec<AdminClient<Channel>>);

impl Watcher {
    /// Connects when first asked, and again whenever a node is back. Needs a runtime.
    #[must_use]
    pub fn new(plan: &Plan) -> Watcher {
        let endpoint = |site: &Site| {
            let address = format!("http://127.0.0.1:{}", site.ports.grpc);
            Endpoint::from_shared(address).expect("an address made of a number is an address").connect_timeout(ANSWER_TIMEOUT)
        };
        Watcher(plan.sites.iter().map(|site| AdminClient::new(endpoint(site).connect_lazy())).collect())
    }

    /// What the nodes say. A node that is cut off tells an older truth, so the newest epoch counts, then who reaches most.
    pub async fn ask(&self) -> Option<Status> {
        let answers = join_all(self.0.iter().map(|client| timeout(ANSWER_TIMEOUT, ask_one(client.clone())))).await;
        let answers = answers.into_iter().filter_map(|answer| answer.ok().flatten());
        answers.max_by_key(|s| (s.epoch, s.members.iter().filter(|m| m.state != "unreachable").count()))
    }
}

async fn ask_one(mut client: AdminClient<Channel>) -> Option<Status> {
    let reply = client.status(StatusRequest {}).await.ok()?;
    let document = serde_json::to_value(reply.into_inner().status?).ok()?;
    serde_json::from_value(document).ok()
}
