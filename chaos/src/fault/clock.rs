//! Faults of clocks. Trilithon measures leases by CLOCK_BOOTTIME and allows for drift; wall time must never decide.

use super::aim::Target;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Needs, Phase};
use super::procs::Kind;
use super::shim::{Clocks, Shim};
use anyhow::{Context as _, Result, bail};
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
        jump(i, i.target(), 3_600 * SECOND_NS)
    })
    .phases(DURING_CHANGES),
    fault("wall-clock-an-hour-behind", Aim::RaftLeader, "Wall time of the consensus leader's node jumps an hour back.", |i| {
        jump(i, i.target(), -3_600 * SECOND_NS)
    })
    .phases(DURING_CHANGES),
    fault("slow-clock", Aim::Primary, "The primary's clocks run 1 to 5 % slow: it believes in its lease for longer.", |i| {
        let ppm = -i.rng.random_range(10_000..=50_000);
        drift(i, i.target(), ppm)
    })
    .phases(DURING_CHANGES),
    fault("fast-clock", Aim::SyncStandby, "A standby's clocks run 1 to 5 % fast: it believes early that the primary's lease has ended.", |i| {
        let ppm = i.rng.random_range(10_000..=50_000);
        drift(i, i.target(), ppm)
    })
    .phases(DURING_CHANGES),
    fault("slow-clock-and-isolation", Aim::Primary, "The primary's clocks run 5 % slow, the others' 5 % fast, and it is cut off.", |i| {
        drift(i, i.target(), -50_000)?;
        i.others(i.target()).into_iter().try_for_each(|other| drift(i, other, 50_000))?;
        i.isolate(i.target())
    }),
    fault("boot-clock-leaps", Aim::Primary, "The primary's monotonic clocks leap 30 s ahead, as after a suspended machine has woken.", |i| {
        let target = i.target();
        let shim = shim(i, target)?;
        let clocks = shim.get(target.site)?;
        // Monotonic clocks never go back: there is nothing to heal.
        i.undo("a leap of the monotonic clocks stays", || Ok(()));
        shim.set(target.site, Clocks { boot_ns: clocks.boot_ns + 30 * SECOND_NS, ..clocks })?;
        prove_clocks(i, target, shim, Clock::Boot, move |ahead_ns| ahead_ns > 25 * SECOND_NS);
        Ok(())
    }),
    fault("other-time-namespace", Aim::OtherStandby, "A node is started again under monotonic clocks that began a minute ago.", |i| {
        renumber(i, i.target())
    }),
];

/// The world's shim, when the node was started with it.
fn shim(i: &Injected<'_>, target: Target<'_>) -> Result<Shim> {
    shim_of(target, &Shim::at(i.ctx.world.dir()))
}

fn shim_of(target: Target<'_>, shim: &Shim) -> Result<Shim> {
    if !shim.exists() {
        bail!("this world has no clock shim; node processes must be started with Shim::environment");
    }
    let loaded = target.processes(Kind::Node).iter().all(|p| shim.is_in(p.pid));
    if !loaded {
        bail!("the node of {} was started without the clock shim", target.name());
    }
    Ok(shim.clone())
}

/// As in another time namespace, or after its machine has booted while its Postgres ran on: the node ends in between, as it must.
fn renumber<'a>(i: &mut Injected<'a>, target: Target<'a>) -> Result<()> {
    let shim = shim(i, target)?;
    let (before, back) = (shim.get(target.site)?, shim.clone());
    i.undo(format!("start {} under its old clocks", target.name()), move || {
        target.node.kill_node();
        back.set(target.site, before)?;
        target.start()
    });
    target.node.kill_node();
    let uptime_ns = clock_gettime(ClockId::Boottime).tv_sec * SECOND_NS;
    let behind_ns = uptime_ns - 60 * SECOND_NS;
    shim.set(target.site, Clocks { boot_ns: -behind_ns, ..Clocks::default() })?;
    target.start()?;
    prove_clocks(i, target, shim, Clock::Boot, move |ahead_ns| ahead_ns < -behind_ns / 2);
    Ok(())
}

fn jump<'a>(i: &mut Injected<'a>, target: Target<'a>, by_ns: i64) -> Result<()> {
    let shim = shim(i, target)?;
    let clocks = shim.get(target.site)?;
    let back = shim.clone();
    i.undo(format!("set wall time of {} right", target.name()), move || {
        let now = back.get(target.site)?;
        back.set(target.site, Clocks { wall_ns: now.wall_ns - by_ns, ..now })
    });
    shim.set(target.site, Clocks { wall_ns: clocks.wall_ns + by_ns, ..clocks })?;
    prove_clocks(i, target, shim, Clock::Wall, move |ahead_ns| ahead_ns.signum() == by_ns.signum() && ahead_ns.abs() > by_ns.abs() / 2);
    Ok(())
}

fn drift<'a>(i: &mut Injected<'a>, target: Target<'a>, ppm: i64) -> Result<()> {
    let shim = shim(i, target)?;
    let back = shim.clone();
    i.undo(format!("clocks of {} at their true speed", target.name()), move || {
        // What they are ahead or behind by then stays: monotonic clocks never jump.
        let now = back.get(target.site)?;
        back.set(target.site, now.at_speed(0))
    });
    let before = ahead(target, &shim, Clock::Boot)?;
    shim.set(target.site, shim.get(target.site)?.at_speed(ppm))?;
    i.prove(format!("clocks of {} drift", target.name()), move || {
        let gained = ahead(target, &shim, Clock::Boot).ok()? - before;
        let drifts = gained.signum() == ppm.signum() && gained.abs() > SECOND_NS / 50;
        drifts.then(|| format!("clocks of {} run {:+.1} % and gained {} ms", target.name(), ppm as f64 / 10_000.0, gained / 1_000_000))
    });
    Ok(())
}

fn prove_clocks<'a>(i: &mut Injected<'a>, target: Target<'a>, shim: Shim, clock: Clock, holds: impl Fn(i64) -> bool + 'a) {
    i.prove(format!("{clock:?} clock of {} is another", target.name()), move || {
        let ahead_ns = ahead(target, &shim, clock).ok()?;
        holds(ahead_ns).then(|| format!("{clock:?} clock of {} is {} s ahead of the true one", target.name(), ahead_ns / SECOND_NS))
    });
}

/// How far a clock of the target's datacenter is ahead of the true one, as a process there reads it, in ns.
fn ahead(target: Target<'_>, shim: &Shim, clock: Clock) -> Result<i64> {
    let id = if clock == Clock::Wall { ClockId::Realtime } else { ClockId::Boottime };
    // perl reads every clock, and is part of every Debian.
    let mut command = target.site.command("perl");
    let script = format!("printf '%.6f', clock_gettime({})", id as i32);
    command.args(["-MTime::HiRes=clock_gettime", "-e", &script]).envs(shim.environment());
    let said = crate::cluster::output_within(command, Duration::from_secs(3))?;
    let now = clock_gettime(id);
    let seconds: f64 = String::from_utf8_lossy(&said.stdout).trim().parse().context("perl did not read the clock")?;
    Ok((seconds * 1e9) as i64 - (now.tv_sec * SECOND_NS + now.tv_nsec))
}
