//! Commands in words, and ids as names: what transcripts print.

use super::world::World;
use trilithon::cluster::{Command, Tags};
use trilithon::types::NodeId;

/// A command as a person would say it.
pub fn command(command: &Command) -> String {
    match command {
        Command::Create { members, .. } => format!("the cluster is created with {} members", members.len()),
        Command::AcquireLease { node, epoch } => format!("{node} takes the lease of epoch {epoch} and claims a timeline"),
        Command::RenewLease { node, epoch } => format!("{node} renews the lease of epoch {epoch}"),
        Command::ReleaseLease { node, epoch } => format!("{node} gives the lease of epoch {epoch} back"),
        Command::ClaimBootstrap { node } => format!("{node} may initialise the database"),
        Command::AbandonBootstrap { node } => format!("{node} no longer initialises the database"),
        Command::FinishBootstrap { node, .. } => format!("{node} has a database"),
        Command::RequestSwitchover { to } => format!("a switchover to {to} is wished"),
        Command::RequestFailover { to, accept_loss: true } => format!("a failover to {to} is wished, data loss accepted"),
        Command::RequestFailover { to, accept_loss: false } => format!("a failover to {to} is wished"),
        Command::StartDrain { from, to } => format!("{from} drains for {to}"),
        Command::CallOff { reason } => format!("the change is called off: {reason}"),
        Command::BeginElection { cause, .. } => format!("an election begins ({cause:?})"),
        Command::Elect { candidate, rule, lsn } => format!("{candidate} is elected at {lsn}; its rule: {rule}"),
        Command::ProposeRule { rule } => format!("rule proposed: {rule}"),
        Command::SettleRule { rule, epoch, .. } => format!("rule settled in epoch {epoch}: {rule}"),
        Command::Pause { paused: true } => "paused".into(),
        Command::Pause { paused: false } => "resumed".into(),
        Command::SetTags { node, tags } => {
            let Tags { priority, nofailover, nosync, .. } = tags;
            format!("tags of {node}: priority {priority}, nofailover {nofailover}, nosync {nosync}")
        }
        Command::Fence { node, fenced: true } => format!("{node} is fenced"),
        Command::Fence { node, fenced: false } => format!("{node} is no longer fenced"),
        Command::AdmitMember { member, replaces: Some(old) } => format!("{} is admitted anew, in place of {old:?}", member.name),
        other => format!("{other:?}"),
    }
}

impl World {
    /// `n2 …` as `dc2 …`, where that id belongs to a datacenter now.
    pub fn named(&self, text: &str) -> String {
        let mut named = String::new();
        let mut word = String::new();
        for c in text.chars().chain(['\n']) {
            if c.is_ascii_alphanumeric() {
                word.push(c);
                continue;
            }
            let id = word.strip_prefix('n').and_then(|n| n.parse().ok()).and_then(|n| self.slot_of.get(&NodeId(n)));
            named.push_str(id.map_or(word.as_str(), |slot| self.name(*slot)));
            named.push(c);
            word.clear();
        }
        named.trim_end_matches('\n').to_owned()
    }
}
