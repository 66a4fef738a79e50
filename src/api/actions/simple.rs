//! Actions that are done as soon as they are applied.

use super::{ActionError, Actions};
use crate::cluster::{Command, MemberKind, Tags};
use crate::config::change_settings;
use std::collections::BTreeMap;

impl Actions {
    /// Switch automatic failover off or on.
    pub async fn pause(&self, paused: bool) -> Result<String, ActionError> {
        self.propose(|_| Ok(Command::Pause { paused })).await?;
        let line = if paused { "paused: no automatic failover until `trilithon resume`" } else { "resumed: automatic failover is on" };
        Ok(line.to_owned())
    }

    /// Forbid a member to run Postgres, or allow it again.
    pub async fn fence(&self, name: &str, fenced: bool) -> Result<String, ActionError> {
        let node = self.member(name)?;
        self.propose(|_| Ok(Command::Fence { node, fenced })).await?;
        let line = if fenced { "is fenced: its Postgres stops and stays down" } else { "may run Postgres again" };
        Ok(format!("{name} {line}"))
    }

    /// Change one replicated setting; `None` puts its default back.
    pub async fn config_set(&self, key: &str, value: Option<&str>) -> Result<String, ActionError> {
        self.propose(|state| {
            let settings = change_settings(&state.settings, key, value).map_err(|errors| ActionError::Usage(errors.to_string()))?;
            let standbys = state.members.values().filter(|m| m.kind == MemberKind::Data).count().saturating_sub(1);
            if settings.acks > standbys && settings.acks != state.settings.acks {
                let why = format!("ha.acks = {} needs as many standbys, and there are {standbys}", settings.acks);
                return Err(ActionError::Refused(why));
            }
            Ok(Command::Configure { settings: Box::new(settings) })
        })
        .await?;
        let shown = crate::config::show_settings(&self.state().settings);
        Ok(shown.get(key).map_or_else(|| format!("{key} removed"), |value| format!("{key} = {value}")))
    }

    /// Change some of a member's tags.
    pub async fn tag(&self, name: &str, changes: &BTreeMap<String, String>) -> Result<String, ActionError> {
        let node = self.member(name)?;
        self.propose(|state| {
            let tags = state.members.get(&node).map(|m| m.tags.clone()).unwrap_or_default();
            Ok(Command::SetTags { node, tags: retagged(tags, changes)? })
        })
        .await?;
        let shown: Vec<String> = changes.iter().map(|(tag, value)| format!("{tag} = {value}")).collect();
        Ok(format!("{name}: {}", shown.join(", ")))
    }

    /// Take a member out of the cluster for good.
    pub async fn remove(&self, name: &str) -> Result<String, ActionError> {
        if self.took_effect() {
            return Ok(format!("{name} is no longer a member"));
        }
        let node = self.member(name)?;
        self.propose(|_| Ok(Command::RemoveMember { node })).await?;
        Ok(format!("{name} is no longer a member; its data directory was left as it is"))
    }
}

fn retagged(mut tags: Tags, changes: &BTreeMap<String, String>) -> Result<Tags, ActionError> {
    for (tag, value) in changes {
        let flag = || {
            let wrong = || ActionError::Usage(format!("{tag} = {value}: write true or false"));
            value.parse::<bool>().map_err(|_| wrong())
        };
        match tag.as_str() {
            "nofailover" => tags.nofailover = flag()?,
            "nosync" => tags.nosync = flag()?,
            "noloadbalance" => tags.noloadbalance = flag()?,
            "priority" => {
                tags.priority = value.parse().map_err(|_| ActionError::Usage(format!("priority = {value}: write a whole number")))?;
            }
            other => {
                let known = "priority, nofailover, nosync, noloadbalance";
                return Err(ActionError::Usage(format!("there is no tag {other}; tags are {known}")));
            }
        }
    }
    Ok(tags)
}
