//! Regular upkeep of the local Postgres, beside the steps that `converge` asks for: the cluster's settings and passwords, replication
//! slots for every member, protected settings that somebody changed. It decides nothing and never delays a step: one task at a time,
//! and Postgres skips it while an action runs.

use crate::cluster::{ClusterState, MemberKind};
use crate::ha::View;
use crate::postgres::{Drift, Instance, PostgresError};
use crate::types::{Lsn, Millis, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Pause between two rounds.
const EVERY: Duration = Duration::from_secs(2);
/// A position older than this says nothing.
const POSITION_MAX_AGE: Duration = Duration::from_secs(5);

/// The task and when it last began.
#[derive(Default)]
pub struct Upkeep {
    tasks: JoinSet<Result<Vec<Drift>, PostgresError>>,
    begun: Option<Millis>,
    failing: bool,
}

impl Upkeep {
    /// Starts a round when one is due. `true`: the list of synchronous standbys had been changed by somebody, so that no rule
    /// counts as proved any more (INV-6).
    pub fn turn(&mut self, postgres: &Arc<Instance>, s: &Arc<ClusterState>, me: NodeId, view: &View) -> bool {
        let rule_void = self.tasks.try_join_next().is_some_and(|ended| match ended {
            Ok(Ok(drift)) => {
                self.failing = false;
                report(&drift)
            }
            Ok(Err(error)) => {
                if !self.failing {
                    tracing::warn!(%error, "upkeep of postgres failed, trying again");
                }
                self.failing = true;
                false
            }
            Err(error) => {
                tracing::error!(%error, "upkeep of postgres panicked");
                false
            }
        });
        let due = self.begun.is_none_or(|at| view.now.since(at) >= EVERY);
        if due && self.tasks.is_empty() {
            self.begun = Some(view.now);
            let members = flushed(s, me, view);
            self.tasks.spawn(round(postgres.clone(), s.clone(), members));
        }
        rule_void
    }
}

async fn round(postgres: Arc<Instance>, s: Arc<ClusterState>, members: BTreeMap<NodeId, Option<Lsn>>) -> Result<Vec<Drift>, PostgresError> {
    if let Some(secrets) = &s.secrets {
        postgres.set_secrets(secrets.clone()).await?;
    }
    postgres.configure(s.settings.parameters.clone(), s.settings.hba.clone()).await?;
    postgres.tend(&members).await
}

/// The other data members, with the end of the WAL that each has flushed. Positions on another timeline than the present primary's
/// are of no use: their owner will be rewound and need older WAL.
fn flushed(s: &ClusterState, me: NodeId, view: &View) -> BTreeMap<NodeId, Option<Lsn>> {
    let timeline = s.timelines.of_epoch(s.epoch).map(|claim| claim.timeline);
    let others = s.members.iter().filter(|(node, member)| **node != me && member.kind == MemberKind::Data);
    let position = |node: NodeId| {
        let facts = &view.fresh(node, POSITION_MAX_AGE)?.postgres;
        facts.position.filter(|_| facts.timeline == timeline).map(|p| p.lsn)
    };
    others.map(|(node, _)| (*node, position(*node))).collect()
}

fn report(drift: &[Drift]) -> bool {
    for changed in drift {
        tracing::warn!(name = %changed.name, found = %changed.found, expected = %changed.expected, "a protected setting was not as it must be, since somebody changed it or a reload was lost; restored");
    }
    drift.iter().any(|d| d.name == "synchronous_standby_names")
}
