//! Faults of administrators among each other: at work at the same moment, or through a node that dies under the order.

use super::aim::{self, Target};
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Inject};
use super::orders;
use super::procs::Kind;
use super::sessions::Tally;
use super::toil::Toil;
use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: Inject) -> Fault {
    Fault::new(Family::Operations, name, aim, about, inject)
}

pub(super) const FAULTS: &[Fault] = &[
    fault(
        "settings-changed-by-three",
        Aim::Everyone,
        "An administrator in each datacenter changes settings of his own, over and over: nobody's change may undo another's.",
        change_settings,
    )
    .hold(10, 20),
    fault(
        "order-given-through-a-dying-node",
        Aim::SyncStandby,
        "The node through which a switchover was ordered is killed before it answers: the command asks another one, with the same id.",
        lose_the_messenger,
    )
    .hold(8, 15),
];

/// Each datacenter's own: what plans cost is a matter of taste, and a reload is all that a change of it needs. Name, one value, another.
type Setting = (&'static str, &'static str, &'static str);
const SETTINGS: [&[Setting]; 3] = [
    &[("random_page_cost", "3.9", "4.1"), ("cpu_tuple_cost", "0.011", "0.012"), ("geqo_effort", "4", "6")],
    &[("seq_page_cost", "0.9", "1.1"), ("cpu_index_tuple_cost", "0.006", "0.007"), ("from_collapse_limit", "7", "9")],
    &[("cpu_operator_cost", "0.003", "0.004"), ("parallel_setup_cost", "990", "1010"), ("join_collapse_limit", "7", "9")],
];

/// The last values stay: the checker compares them with what was said to be done.
fn change_settings(i: &mut Injected<'_>) -> Result<()> {
    const EACH: u64 = 1;
    const AFTER_A_FAILURE: Duration = Duration::from_millis(200);
    for (target, settings) in i.all_targets().into_iter().zip(SETTINGS) {
        let (cluster, name, done) = (i.ctx.cluster.clone(), target.name().to_owned(), Tally::default());
        let counted = done.clone();
        let mut turns = settings.iter().map(|s| (s.0, s.1)).chain(settings.iter().map(|s| (s.0, s.2))).cycle();
        let toil = Toil::begin("chaos-settings", move |rest| {
            let Some((setting, value)) = turns.next() else { return };
            let set = cluster.order_at(&name, &["config", "set", &format!("postgres.parameters.{setting}"), value]);
            if set.is_ok_and(|output| output.status.success()) { counted.add() } else { rest.sleep(AFTER_A_FAILURE) }
        })?;
        i.undo(format!("the last change from {}", target.name()), move || toil.end());
        i.prove(format!("changes from {}", target.name()), move || {
            (done.get() >= EACH).then(|| format!("{} settings were changed from {}", done.get(), target.name()))
        });
    }
    Ok(())
}

/// The order has taken effect when its messenger dies, so that the second messenger must find that it has.
fn lose_the_messenger(i: &mut Injected<'_>) -> Result<()> {
    const BEGINS_WITHIN: Duration = Duration::from_secs(20);
    let (messenger, cluster) = (i.target(), i.ctx.cluster);
    let process = messenger.process(Kind::Node)?;
    i.undo(format!("start {}", messenger.name()), move || messenger.start());
    // To the other standby: the messenger's own death must not call the change off.
    let to = other_standby(i, messenger)?;
    let order = orders::give(i, messenger, &["switchover", "--to", to.name()])?;
    i.wait("the switchover to begin", BEGINS_WITHIN, || cluster.status().ok().filter(|s| s.phase != "steady"))?;
    process.signal(Signal::KILL);
    i.proved(format!("the node of {} was killed while its order was carried out", messenger.name()));
    i.prove("the outcome of an order", move || order.outcome());
    Ok(())
}

fn other_standby<'a>(i: &Injected<'a>, standby: Target<'a>) -> Result<Target<'a>> {
    let primary = i.ctx.cluster.primary().context("there is no primary at this moment")?;
    aim::all(i.ctx).into_iter().find(|t| t.name() != primary && t.name() != standby.name()).context("there is no other standby")
}
