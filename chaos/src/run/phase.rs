//! Bringing the cluster to the phase in which a fault is to strike, and undoing what that took.
//!
//! ```text
//!   election, promotion   the primary's datacenter is killed          → started again
//!   drain                 a switchover is asked for                   → its outcome is awaited
//!   rewind                the primary is cut off while it is written to, killed, replaced, and comes back
//!   base_backup           a standby's copy is replaced by a new one
//!   member_change         a standby stops to confirm commits          → confirms again
//! ```
//! Phases are short, and a busy machine may be through before the fault strikes: [`Staged::reached`] says whether it was seen.

use super::pace::Pace;
use crate::cluster::{Cluster, Started, Status};
use crate::fault::Phase;
use crate::world::World;
use anyhow::{Context as _, Result};
use std::time::Duration;

/// Until the cluster begins what it was brought to: a lease has to run out, a node to start.
const BEGIN_LIMIT: Duration = Duration::from_secs(15);
/// A node that was killed has to start, connect and compare before it rewinds.
const REWIND_LIMIT: Duration = Duration::from_secs(40);
/// Long enough for clients beside a cut-off primary to write what nobody will have.
const DIVERGE: Duration = Duration::from_millis(1_200);
/// Phases last some hundred milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The cluster in a phase.
pub struct Staged {
    /// The phase that it was seen to be in, if any.
    pub reached: Option<Phase>,
    /// In words, for the record.
    pub how: String,
    undo: Undo,
}

enum Undo {
    Nothing,
    Start(String),
    /// A verb that goes on in the background.
    Await(Started),
    Words(Vec<String>),
}

/// Bring `cluster` to `phase`. It must be whole.
///
/// # Errors
/// Interrupted, or nothing of it could be begun.
pub fn bring(world: &World, cluster: &Cluster, phase: Phase, pace: &Pace) -> Result<Staged> {
    let primary = || cluster.primary().context("there is no primary to begin with");
    match phase {
        Phase::Steady => Ok(Staged { reached: Some(phase), how: String::new(), undo: Undo::Nothing }),
        Phase::Election | Phase::Promotion => {
            // An election lasts a tenth of a second; where only the promotion was seen, that is where the fault strikes.
            let words: &[&str] = if phase == Phase::Election { &["electing", "promoting"] } else { &["promoting"] };
            let (primary, epoch) = (primary()?, cluster.status()?.epoch);
            cluster.node(&primary)?.kill_all();
            let mut reached = None;
            pace.until(BEGIN_LIMIT, LOOK_EVERY, || {
                let newer: Vec<Status> = cluster.statuses().into_iter().filter(|s| s.epoch > epoch).collect();
                reached = words.iter().find(|word| newer.iter().any(|s| s.phase == **word));
                // Once it is through there is nothing left to wait for.
                reached.is_some() || newer.iter().any(|s| s.phase == "steady")
            })?;
            let reached = reached.map(|word| if *word == "electing" { Phase::Election } else { Phase::Promotion });
            Ok(Staged { reached, how: format!("after {primary} was killed"), undo: Undo::Start(primary) })
        }
        Phase::Drain => {
            let child = cluster.cli_start(&["switchover".to_owned()])?;
            let reached = seen(cluster, pace, BEGIN_LIMIT, |s| s.phase == "draining")?;
            Ok(Staged { reached: reached.then_some(phase), how: "in a switchover".to_owned(), undo: Undo::Await(child) })
        }
        Phase::Rewind => rewind(world, cluster, &primary()?, pace),
        Phase::BaseBackup => {
            let standby = last_standby(cluster)?;
            let child = cluster.cli_start(&["reinit".to_owned(), standby.clone()])?;
            let reached = seen(cluster, pace, BEGIN_LIMIT, |s| s.member(&standby).is_some_and(|m| m.state == "cloning"))?;
            Ok(Staged { reached: reached.then_some(phase), how: format!("while {standby} is copied anew"), undo: Undo::Await(child) })
        }
        Phase::MemberChange => {
            let standby = last_standby(cluster)?;
            let tag = |value: &str| ["member", "tag", standby.as_str(), &format!("nosync={value}")].map(str::to_owned).to_vec();
            let child = cluster.cli_start(&tag("true"))?;
            let narrower = |s: &Status| s.rule.as_ref().is_some_and(|r| r.changing || !r.standbys.contains(&standby));
            let reached = seen(cluster, pace, BEGIN_LIMIT, narrower)?;
            // Its outcome is seen in the rule; the verb itself ends by its own deadlines.
            cluster.finish(child, Duration::from_secs(5));
            Ok(Staged {
                reached: reached.then_some(phase),
                how: format!("while {standby} leaves the rule"),
                undo: Undo::Words(tag("false")),
            })
        }
    }
}

/// A former primary with writes that nobody else has.
fn rewind(world: &World, cluster: &Cluster, primary: &str, pace: &Pace) -> Result<Staged> {
    for other in cluster.others(primary) {
        world.wan().cut_both(primary, &other);
    }
    pace.sleep(DIVERGE)?;
    let node = cluster.node(primary)?;
    node.kill_all();
    world.wan().heal();
    seen(cluster, pace, BEGIN_LIMIT * 2, |s| s.is_writable() && s.primary.as_deref() != Some(primary))?;
    node.start()?;
    let reached = seen(cluster, pace, REWIND_LIMIT, |s| s.member(primary).is_some_and(|m| m.state == "rewinding"))?;
    Ok(Staged {
        reached: reached.then_some(Phase::Rewind),
        how: format!("while {primary} is rewound"),
        undo: Undo::Start(primary.to_owned()),
    })
}

fn last_standby(cluster: &Cluster) -> Result<String> {
    let members = cluster.status()?.members;
    members.into_iter().rfind(|m| m.role == "standby").map(|m| m.name).context("there is no standby")
}

fn seen(cluster: &Cluster, pace: &Pace, limit: Duration, good: impl Fn(&Status) -> bool) -> Result<bool> {
    pace.until(limit, LOOK_EVERY, || cluster.statuses().iter().any(&good))
}

impl Staged {
    /// Where nothing could be begun.
    pub fn nothing() -> Staged {
        Staged { reached: None, how: String::new(), undo: Undo::Nothing }
    }

    /// Undo what it took.
    ///
    /// # Errors
    /// What could not be undone.
    pub fn undo(&mut self, cluster: &Cluster) -> Result<()> {
        match std::mem::replace(&mut self.undo, Undo::Nothing) {
            Undo::Nothing => Ok(()),
            Undo::Start(name) => cluster.node(&name)?.start(),
            // It may have failed, and rightly so: a fault struck meanwhile.
            Undo::Await(child) => {
                cluster.finish(child, Duration::from_secs(30));
                Ok(())
            }
            Undo::Words(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let output = cluster.cli(&words)?;
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                output.status.success().then_some(()).with_context(|| format!("`{}` was refused: {said}", words.join(" ")))
            }
        }
    }
}
