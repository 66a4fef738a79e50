//! What a demo says: while it starts, when it is ready, and when something changes afterwards. PURE but for the callers'
//! printing: functions from statuses to lines.

use super::plan::Plan;
use super::status::{Member, Status};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Lines for what changed between two looks.
#[must_use]
pub fn changes(before: Option<&Status>, after: Option<&Status>) -> Vec<String> {
    let Some(after) = after else {
        return if before.is_some() { vec!["no node answers".to_owned()] } else { Vec::new() };
    };
    let nothing = Status::default();
    let before = before.unwrap_or(&nothing);
    let mut lines = Vec::new();
    for member in &after.members {
        let known = before.members.iter().find(|m| m.name == member.name);
        if known != Some(member) {
            lines.push(describe(member));
        }
    }
    if before.phase != after.phase || (before.primary != after.primary && after.phase == "steady") {
        let primary = after.primary.as_deref().map_or(String::new(), |p| format!(", primary {p}"));
        let reason = if after.reason.is_empty() || after.phase == "steady" { String::new() } else { format!(": {}", after.reason) };
        lines.push(format!("cluster is {}{primary}, epoch {}{reason}", after.phase, after.epoch));
    }
    lines
}

fn describe(member: &Member) -> String {
    format!(
        "{} is {}",
        member.name,
        if member.role == member.state { member.role.clone() } else { format!("{}, {}", member.role, member.state) }
    )
}

/// The lines that greet a ready cluster.
#[must_use]
pub fn greeting(plan: &Plan, status: &Status, password: &str, program: &Path, took: Duration) -> String {
    let primary = status.primary.as_deref().unwrap_or("?");
    let others: Vec<&str> = plan.data_sites().map(|s| s.name.as_str()).filter(|n| *n != primary).collect();
    let mut text = format!(
        "\nReady after {:.1} s: {primary} is primary, {} from it.\n\n  applications, on each datacenter's own address (reads near, writes to the primary)\n",
        took.as_secs_f64(),
        if others.len() == 1 { format!("{} streams", others[0]) } else { format!("{} stream", others.join(" and ")) },
    );
    for site in plan.data_sites() {
        let _ = writeln!(text, "    {}   postgresql://postgres:{password}@127.0.0.1:{}/postgres", site.name, site.ports.auto);
    }
    let Some(first) = plan.data_sites().next() else { return text };
    let (config, dir) = (plan.dir.join("trilithon-cli.toml"), plan.dir.display());
    let trilithon = program.display();
    let victim = primary;
    let _ = write!(
        text,
        "  always the primary on port {}, always a standby on {}, Postgres itself on {}\n  dashboard and health    http://127.0.0.1:{}/\n\n\
         Try, in another terminal:\n\
         \x20 1. look at it            {trilithon} --config {} status\n\
         \x20 2. kill a datacenter     {trilithon} demo --dir {dir} --kill {victim}     (back with --start {victim})\n\
         \x20 3. move the primary      {trilithon} --config {} switchover\n",
        first.ports.primary,
        first.ports.standby,
        first.ports.postgres,
        first.ports.http,
        config.display(),
        config.display(),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str, primary: Option<&str>, states: &[(&str, &str, &str)]) -> Status {
        let member =
            |(name, role, state): &(&str, &str, &str)| Member { name: (*name).into(), role: (*role).into(), state: (*state).into() };
        Status {
            phase: phase.into(),
            epoch: 1,
            primary: primary.map(Into::into),
            reason: "why".into(),
            members: states.iter().map(member).collect(),
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let steady = status("steady", Some("dc1"), &[("dc1", "primary", "running"), ("dc2", "standby", "streaming")]);
        assert_eq!(changes(Some(&steady), Some(&steady)), Vec::<String>::new());
        let lost = status("electing", None, &[("dc1", "standby", "unreachable"), ("dc2", "standby", "streaming")]);
        assert_eq!(changes(Some(&steady), Some(&lost)), ["dc1 is standby, unreachable", "cluster is electing, epoch 1: why"]);
        assert_eq!(changes(Some(&steady), None), ["no node answers"]);
        assert_eq!(changes(None, None), Vec::<String>::new());
    }
}
