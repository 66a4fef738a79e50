//! What a proxy needs to know, derived from the replicated state and the newest observations.

use super::{ClusterState, Phase};
use crate::types::{Epoch, NodeId, Revision};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The proxy's whole view of the cluster; it sees nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub revision: Revision,
    pub epoch: Epoch,
    pub write: WriteGate,
    /// Ordered by node id; the proxy orders them by distance itself.
    pub backends: BTreeMap<NodeId, Backend>,
}

/// INV-11: writes go only to the primary of the epoch named here, over connections opened in that epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteGate {
    /// New transactions for the primary wait (bounded by `hold_timeout`).
    #[default]
    Held,
    /// `draining` begins: transactions in flight may end, new ones wait.
    Draining {
        primary: NodeId,
        epoch: Epoch,
    },
    Open {
        primary: NodeId,
        epoch: Epoch,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub name: String,
    pub datacenter: String,
    /// `host:port` of Postgres.
    pub address: String,
    /// Runs as a standby that is fit to serve reads.
    pub readable: bool,
    /// Bytes of WAL not yet replayed, as last seen; `None` when unknown.
    pub lag_bytes: Option<u64>,
    pub noloadbalance: bool,
}

impl Topology {
    /// The view that `state` gives; `readable` names the standbys fit for reads with their replay lag in bytes.
    #[must_use]
    pub fn derive(state: &ClusterState, readable: &BTreeMap<NodeId, Option<u64>>) -> Topology {
        let write = match state.phase {
            Phase::Steady { primary } => WriteGate::Open { primary, epoch: state.epoch },
            Phase::Draining { from, .. } => WriteGate::Draining { primary: from, epoch: state.epoch },
            Phase::Empty | Phase::Bootstrapping { .. } | Phase::Electing { .. } | Phase::Promoting { .. } => WriteGate::Held,
        };
        let backends = state.data_members().filter_map(|node| {
            let member = state.members.get(&node)?;
            let backend = Backend {
                name: member.name.to_string(),
                datacenter: member.datacenter.clone(),
                address: member.addresses.postgres.clone(),
                readable: readable.contains_key(&node),
                lag_bytes: readable.get(&node).copied().flatten(),
                noloadbalance: member.tags.noloadbalance,
            };
            Some((node, backend))
        });
        Topology { revision: state.revision, epoch: state.epoch, write, backends: backends.collect() }
    }
}
