//! The replicated state as a model holds it: shared between states, compared and hashed by what it says.

use crate::sim::core::Core;
use serde::Serialize;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use trilithon::cluster::{ClusterState, Command, Durability, Member, MemberKind, Outcome, Proposal, Settings, SyncRule, Tags};
use trilithon::types::{ClusterId, Epoch, Lsn, NodeId, NodeName, SystemId, Timeline};

/// Which initdb all models descend from.
pub const SYSTEM: SystemId = SystemId(9);

/// A replicated state with its digest: most states of a model share one with others.
#[derive(Clone, Debug)]
pub struct Known(Arc<(ClusterState, u64)>);

impl Known {
    pub fn of(state: ClusterState) -> Known {
        // The same bytes as in a snapshot: whatever is replicated counts.
        let bytes = serde_json::to_vec(&state).expect("plain data always serialises");
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Known(Arc::new((state, hasher.finish())))
    }

    pub fn state(&self) -> &ClusterState {
        &self.0.0
    }

    /// The state after `command`, decided on this one, and what became of it.
    pub fn applied(&self, core: Core, command: Command) -> (Known, Outcome) {
        self.proposed(core, &Proposal { expect: Some(self.state().revision), request: None, command })
    }

    /// The state after `proposal`, whatever it was decided on.
    pub fn proposed(&self, core: Core, proposal: &Proposal) -> (Known, Outcome) {
        let mut state = self.state().clone();
        let outcome = core.apply(&mut state, proposal);
        (Known::of(state), outcome)
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Known) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.1 == other.0.1 && self.0.0 == other.0.0)
    }
}

impl Eq for Known {}

impl Hash for Known {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.1.hash(hasher);
    }
}

/// Plain data of the core, hashed by its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plain<T>(pub T);

impl<T: Serialize> Hash for Plain<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        serde_json::to_vec(&self.0).expect("plain data always serialises").hash(hasher);
    }
}

/// A steady cluster of `members` whose primary is n1, in epoch 1, with a proved rule over all others: what a real one is after its
/// bootstrap, by the same commands.
pub fn steady(members: u64, settings: Settings) -> Known {
    let one = NodeId(1);
    let member = |n: u64| {
        let (name, addresses, tags) = (NodeName(format!("dc{n}")), Default::default(), Tags::default());
        (NodeId(n), Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses, tags })
    };
    let acks = match settings.durability {
        Durability::All => members as usize - 1,
        Durability::Quorum => settings.acks,
        Durability::Async => 0,
    };
    let alone = SyncRule::new(one, [], 0);
    let rule = SyncRule::new(one, (1..=members).map(NodeId), acks);
    let epoch = Epoch(1);
    let commands = [
        Command::Create { cluster: ClusterId(7), name: "model".into(), members: (1..=members).map(member).collect(), settings },
        Command::ClaimBootstrap { node: one },
        Command::FinishBootstrap { node: one, system: SYSTEM, timeline: Timeline(1), lsn: Lsn(1), rule: alone.clone() },
        Command::Elect { candidate: one, rule: alone.clone(), lsn: Lsn(1) },
        Command::AcquireLease { node: one, epoch },
        Command::SettleRule { epoch, rule: alone, outage_ms: None },
        Command::ProposeRule { rule: rule.clone() },
        Command::SettleRule { epoch, rule, outage_ms: None },
    ];
    let honest = Core { mutant: None };
    commands.into_iter().fold(Known::of(ClusterState::default()), |known, command| {
        let (next, outcome) = known.applied(honest, command);
        outcome.expect("a bootstrap in order is accepted");
        next
    })
}
