//! What a demo says: while it starts, when it is ready, and when something changes afterwards. Functions from statuses
//! to lines; deliberately absent: printing, and waiting for anything.

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
    let step = if member.step.is_empty() || member.state == "unreachable" { String::new() } else { format!(" ({})", member.step) };
    format!("{} is {}, {}{step}", member.name, member.role, member.state)
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
    let (trilithon, demo, config) = words(plan, program);
    let ports = first.ports;
    let _ = write!(
        text,
        "  always the primary on port {}, always a standby on {}, Postgres itself on {}\n  dashboard and health   http://127.0.0.1:{}/\n\n\
         Try, in another terminal:\n\
         \x20 1. look at it          {trilithon} status{config}\n\
         \x20 2. kill a datacenter   {trilithon} demo{demo} --kill {primary}     (and back: --start {primary})\n\
         \x20 3. move the primary    {trilithon} switchover{config}\n",
        ports.primary, ports.standby, ports.postgres, ports.http,
    );
    text
}

/// The program and the options that lead from the user's own folder to this demo; none where the defaults do.
fn words(plan: &Plan, program: &Path) -> (String, String, String) {
    let here = std::env::current_dir().unwrap_or_default();
    let short = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
    let (demo, config) = if plan.dir == here.join(".demo") {
        (String::new(), String::new())
    } else {
        (format!(" --dir {}", short(&plan.dir)), format!(" --config {}", short(&plan.dir.join("trilithon-cli.toml"))))
    };
    (short(program), demo, config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str, primary: Option<&str>, states: &[(&str, &str, &str)]) -> Status {
        let member = |(name, role, state): &(&str, &str, &str)| Member {
            name: (*name).into(),
            role: (*role).into(),
            state: (*state).into(),
            step: String::new(),
        };
        Status {
            phase: phase.into(),
            epoch: 1,
            primary: primary.map(Into::into),
            reason: "why".into(),
            writable: true,
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
