//! Faults of clocks. Trilithon measures leases by CLOCK_BOOTTIME and allows for drift; wall time must never decide.

use super::aim::Target;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Needs, Phase};
use crate::world::SiteClock;
use anyhow::{Context as _, Result};
use rand::Rng as _;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

const fn fault(name: &'static str, aim: Aim, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Clock, name, aim, about, inject).needs(Needs::Shim).hold(10, 40)
}

/// Which clock a process is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Wall,
    Boot,
}

const SECOND_NS: i64 = 1_000_000_000;
const DURING_CHANGES: &[Phase] = &[Phase::Steady, Phase::Election, Phase::Promotion, Phase::Drain];

pub(super) const FAULTS: &[Fault] = &[
    fault("wall-clock-an-hour-ahead", Aim::Primary, "Wall time of the primary's node jumps an hour ahead, and back when it heals.", |i| {
        jump(i, i.target(), 3_600)
    })
    .phases(DURING_CHANGES),
    fault("wall-clock-an-hour-behind", Aim::RaftLeader, "Wall time of the consensus leader's node jumps an hour back.", |i| {
        jump(i, i.target(), -3_600)
    })
    .phases(DURING_CHANGES),
    fault("slow-clock", Aim::Primary, "The primary's clocks run 1 to 5 % slow: it believes in its lease for longer.", |i| {
        let ppm = -i.rng.random_range(10_000..=50_000);
        drift(i, i.target(), ppm)
    })
    .phases(DURING_CHANGES),
    fault(
        "fast-clock",
        Aim::SyncStandby,
        "A standby's clocks run 1 to 5 % fast: it believes early that the primary's lease has ended.",
        |i| {
            let ppm = i.rng.random_range(10_000..=50_000);
            drift(i, i.target(), ppm)
        },
    )
    .phases(DURING_CHANGES),
    fault("slow-clock-and-isolation", Aim::Primary, "The primary's clocks run 5 % slow, the others' 5 % fast, and it is cut off.", |i| {
        drift(i, i.target(), -50_000)?;
        i.others(i.target()).into_iter().try_for_each(|other| drift(i, other, 50_000))?;
        i.isolate(i.target())
    }),
    fault(
        "boot-clock-leaps",
        Aim::Primary,
        "The primary's monotonic clocks leap 30 s ahead, as after a suspended machine has woken.",
        |i| {
            let target = i.target();
            // Monotonic clocks never go back: there is nothing to heal.
            i.undo("a leap of the monotonic clocks stays", || Ok(()));
            leap(i, target, Duration::from_secs(30))
        },
    ),
    fault("other-time-namespace", Aim::OtherStandby, "A node is started again under monotonic clocks that are eleven days ahead.", |i| {
        let target = i.target();
        i.undo(format!("start {}", target.name()), move || target.start());
        target.node.kill(crate::cluster::Part::Node);
        leap(i, target, Duration::from_secs(11 * 86_400))?;
        target.start()
    }),
];

fn clocks<'a>(target: Target<'a>) -> Result<&'a SiteClock> {
    target.site.clock().with_context(|| format!("{} has no clocks of its own; bring the world up with clocks", target.name()))
}

fn jump<'a>(i: &mut Injected<'a>, target: Target<'a>, seconds: i64) -> Result<()> {
    let clocks = clocks(target)?;
    i.undo(format!("set wall time of {} right", target.name()), move || clocks.set_wall(0));
    clocks.set_wall(seconds)?;
    prove_clock(i, target, Clock::Wall, move |ahead_ns| {
        ahead_ns / SECOND_NS / seconds == 1 || ahead_ns / SECOND_NS == seconds - seconds.signum()
    });
    Ok(())
}

fn drift<'a>(i: &mut Injected<'a>, target: Target<'a>, ppm: i64) -> Result<()> {
    let clocks = clocks(target)?;
    // What they are ahead or behind by then stays: monotonic clocks never jump back.
    i.undo(format!("clocks of {} at their true speed", target.name()), move || clocks.set_drift_ppm(0));
    let before = ahead(target, Clock::Boot)?;
    clocks.set_drift_ppm(ppm)?;
    i.prove(format!("clocks of {} drift", target.name()), move || {
        let gained = ahead(target, Clock::Boot).ok()? - before;
        let drifts = gained.signum() == ppm.signum() && gained.abs() > SECOND_NS / 50;
        drifts.then(|| format!("clocks of {} run {:+.1} % and gained {} ms", target.name(), ppm as f64 / 10_000.0, gained / 1_000_000))
    });
    Ok(())
}

fn leap<'a>(i: &mut Injected<'a>, target: Target<'a>, by: Duration) -> Result<()> {
    let before = ahead(target, Clock::Boot)?;
    clocks(target)?.advance_boot(by)?;
    let by_ns = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    prove_clock(i, target, Clock::Boot, move |ahead_ns| ahead_ns - before > by_ns / 2);
    Ok(())
}

fn prove_clock<'a>(i: &mut Injected<'a>, target: Target<'a>, clock: Clock, holds: impl Fn(i64) -> bool + 'a) {
    i.prove(format!("{clock:?} clock of {} is another", target.name()), move || {
        let ahead_ns = ahead(target, clock).ok()?;
        holds(ahead_ns).then(|| format!("{clock:?} clock of {} is {} s ahead of the true one", target.name(), ahead_ns / SECOND_NS))
    });
}

/// How far a clock of the target's datacenter is ahead of the true one, as a process there reads it, in ns.
fn ahead(target: Target<'_>, clock: Clock) -> Result<i64> {
    let id = if clock == Clock::Wall { ClockId::Realtime } else { ClockId::Boottime };
    // perl reads every clock, and is part of every Debian.
    let mut command = target.site.command("perl");
    let script = format!("printf '%.6f', clock_gettime({})", id as i32);
    command.args(["-MTime::HiRes=clock_gettime", "-e", &script]);
    let said = crate::cluster::output_within(command, Duration::from_secs(3))?;
    let now = clock_gettime(id);
    let seconds: f64 = String::from_utf8_lossy(&said.stdout).trim().parse().context("perl did not read the clock")?;
    Ok((seconds * 1e9) as i64 - (now.tv_sec * SECOND_NS + now.tv_nsec))
}
