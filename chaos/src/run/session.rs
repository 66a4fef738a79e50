//! A whole run: world → cluster → workloads → steps → whole again → final reads → verdicts → record.
//!
//! Whatever ends it (the plan, the time, a failure, Ctrl-C), logs are kept, everything is taken down, and a record says how far it
//! came. A run that was interrupted has no verdicts, so that nobody can take it for a pass.

use super::pace::{Interrupted, Pace};
use super::plan::{Mode, Plan, Step};
use super::settings::{Settings, Which};
use super::step::{Done, Stage};
use super::verdicts::{self, Cause, Seen};
use super::voice::Voice;
use super::watch::Watch;
use super::{clients, core_trace, logs, panics, versions};
use crate::check::orders::EFFECT_LIMIT;
use crate::cluster::{Cluster, Tells};
use crate::record::{At, Outcome, Record, RunClock, Verdict};
use crate::workload::history::{Door, Fate, Histories};
use crate::world::{Interrupts, Site, World};
use crate::{check, fault, report};
use anyhow::{Context as _, Result};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Clients warm up, and the record shows what normal is.
const WARM_UP: Duration = Duration::from_secs(5);
/// Before the final reads everybody must be there.
const FINAL_LIMIT: Duration = Duration::from_secs(180);
/// A fault that finds nothing to strike, as a lock that is not held just then, gets so many chances.
const ATTEMPTS: u32 = 3;

const HISTORIES: &str = "histories.json";

/// What a run was.
pub struct Finished {
    pub record: Record,
    /// Where its record and logs are.
    pub dir: PathBuf,
    pub interrupted: bool,
    /// What of the world could not be taken down. It changes nothing of what the run found.
    pub teardown: Option<anyhow::Error>,
}

/// Make one run.
///
/// # Errors
/// The machine lacks something, world or cluster could not be started ([`crate::cluster::NotWhole`] where that is the program's doing), or
/// the run broke off: nothing is concluded.
pub fn run(settings: &Settings, interrupts: &Interrupts, voice: &Voice) -> Result<Finished> {
    let plan = settings.plan()?;
    settings.check()?;
    clear(&settings.out)?;
    let clock = RunClock::start();
    let token = interrupts.token().clone();
    let pace = Pace::new(clock, move || token.is_cancelled());
    let mut record = Record { command: settings.command(), seed: settings.seed, began: versions::now(), ..Record::default() };
    record.world = settings.world_in_words();
    record.notes.extend(plan.left_out().iter().cloned());
    voice.note(clock, &format!("building the world: {}", record.world));
    let world = World::up(&settings.world())?;
    let outcome = in_world(settings, &world, plan, &pace, &mut record, voice);
    record.duration = clock.now();
    let teardown = world.down().context("the world is not down in full").err();
    if !settings.keep && teardown.is_none() {
        // Logs were copied; what is left is data of the nodes, where they had no disks of their own.
        let _ = std::fs::remove_dir_all(&settings.dir);
    }
    let finished = |record, interrupted, teardown| Finished { record, dir: settings.out.clone(), interrupted, teardown };
    match (outcome, teardown) {
        (Ok(()), teardown) => Ok(finished(record, false, teardown)),
        (Err(error), teardown) if error.is::<Interrupted>() => {
            record.verdicts.clear();
            record.notes.push("interrupted: nothing is concluded".to_owned());
            Ok(finished(record, true, teardown))
        }
        (Err(error), None) => Err(error),
        // What is left on the machine is for a person to see to, whatever the run's own failure would mean.
        (Err(error), Some(teardown)) => Err(teardown.context(format!("{error:#}"))),
    }
}

fn in_world(settings: &Settings, world: &World, plan: Plan, pace: &Pace, record: &mut Record, voice: &Voice) -> Result<()> {
    voice.note(pace.clock, "starting the cluster");
    let mut cluster = match settings.system(world).and_then(|system| Cluster::start(world, system)) {
        Ok(cluster) => cluster,
        Err(error) => {
            logs::collect(world, None, &settings.out);
            pace.check()?;
            return Err(error.context(format!("logs are in {}\n{}", settings.out.join("logs").display(), logs::tails(world, 12))));
        }
    };
    cluster.use_clock(pace.clock);
    cluster.system().name().clone_into(&mut record.system);
    record.notes.extend(cluster.system().settings());
    record.versions = versions::all(&cluster);
    voice.note(pace.clock, &format!("the cluster is whole after {:.1} s", Duration::from_micros(pace.now().0).as_secs_f64()));
    let outcome = with_cluster(settings, world, &cluster, plan, pace, record, voice);
    let uncopied = logs::collect(world, Some(&cluster), &settings.out);
    record.notes.extend(uncopied.iter().cloned());
    cluster.kill();
    let sites: Vec<&str> = world.sites().iter().map(Site::name).collect();
    if outcome.is_ok() && settings.system == Which::Trilithon {
        let destroys = |name: &str| fault::catalogue().iter().any(|f| f.destroys && name.contains(f.name));
        let destroyed = record.faults.iter().any(|f| destroys(&f.name));
        record.verdicts.push(panics::check(&settings.out, &sites, destroyed));
    }
    if settings.core_trace && outcome.is_ok() {
        voice.note(pace.clock, "asking the core again");
        record.verdicts.push(core_trace::check(&settings.binary, &settings.out, &sites, &uncopied));
    }
    outcome
}

/// Workloads and steps, then judgement.
fn with_cluster(
    settings: &Settings,
    world: &World,
    cluster: &Cluster,
    plan: Plan,
    pace: &Pace,
    record: &mut Record,
    voice: &Voice,
) -> Result<()> {
    let running = clients::start(settings, cluster, pace.clock)?;
    let watch = Watch::start(world, cluster, pace.clock);
    let stage = Stage {
        world,
        cluster,
        running: &running,
        pace,
        clock: pace.clock,
        scale: settings.scale(),
        hunting: settings.hunting,
        watch: &watch,
        voice,
        ends: RefCell::default(),
        unprovoked: RefCell::default(),
        busy: Cell::default(),
    };
    voice.begin(pace.now().after(settings.expected()));
    let calm_from = pace.now().after(WARM_UP);
    let mut steps: Vec<Done> = Vec::new();
    let stepped = make_steps(settings, &stage, plan, &mut steps);
    // Also an interrupted run shows what it saw.
    let healed = if stepped.is_ok() && !steps.last().is_some_and(|s| s.lost) { stage.until_whole(FINAL_LIMIT) } else { Ok(()) };
    record.notes.extend(stage.ends.take());
    let unprovoked = stage.unprovoked.take();
    voice.note(pace.clock, "the last reads");
    let mut histories = running.stop()?;
    histories.commands.extend(clients::given(cluster));
    let (reigns, turns) = watch.stop();
    // Who speaks to Postgres itself may go on writing to a primary that nobody routes to any more: that is no availability.
    let routed = histories.writes().filter(|a| a.fate == Fate::Done && a.origin.door != Door::Direct);
    let mut acknowledged: Vec<At> = routed.map(|a| a.to).collect();
    acknowledged.sort_unstable();
    let end_of_run = pace.now();
    let seen = Seen { acknowledged: &acknowledged, reigns: &reigns, turns: &turns, end: end_of_run };
    steps.iter_mut().for_each(|done| verdicts::measure(done, &seen));
    record.primaries = reigns;
    note_all(record, &histories, &steps);
    stepped?;
    pace.check()?;
    if let Err(error) = healed {
        record.verdicts.push(never_whole(&error));
    }
    voice.note(pace.clock, "checking");
    let end = clients::finally(cluster, pace.clock)?;
    record.verdicts.extend(check::all(&histories, &record.primaries, &end, check::Least::default()));
    excuse(&mut record.verdicts, cluster.system().tells());
    if record.verdicts.iter().any(|v| v.outcome == Outcome::Failed) {
        record.notes.extend(keep(&histories, &settings.out).err().map(|e| format!("{e:#}")));
    }
    record.verdicts.push(verdicts::ends(unprovoked));
    record.verdicts.push(verdicts::causes(&record.primaries, &all_causes(&steps, &histories, pace.now())));
    if settings.mode == Mode::Calm {
        record.verdicts.push(verdicts::calm(&acknowledged, calm_from, end_of_run));
    } else {
        record.verdicts.push(verdicts::availability(&steps, fault::catalogue()));
        record.verdicts.push(verdicts::enough(acknowledged.len() as u64, record.faults.len()));
    }
    pace.check()
}

/// What is drawn and listed, whatever it is judged to be.
fn note_all(record: &mut Record, histories: &Histories, steps: &[Done]) {
    record.samples = histories.samples.clone();
    record.outages = histories.outages.clone();
    record.faults = steps.iter().flat_map(|s| s.records.iter().cloned()).collect();
    record.notes.extend(steps.iter().flat_map(|s| s.notes.iter().cloned()));
}

fn make_steps(settings: &Settings, stage: &Stage<'_>, plan: Plan, steps: &mut Vec<Done>) -> Result<()> {
    stage.rest(WARM_UP)?;
    let from = stage.pace.now();
    let until = settings.minutes.map(|minutes| from.after(minutes));
    if settings.mode == Mode::Calm {
        return stage.rest(settings.minutes.unwrap_or_default());
    }
    let chosen = plan.skip(settings.skip).take(settings.steps.unwrap_or(usize::MAX));
    for mut step in chosen {
        step.hold = settings.hold.unwrap_or(step.hold);
        if until.is_some_and(|until| stage.pace.now() >= until) {
            break;
        }
        stage.voice.note(stage.clock, &format!("step {}: {}, for {:.1} s", step.number, step.in_words(), step.hold.as_secs_f64()));
        if !make_step(settings, stage, step, steps)? {
            break;
        }
    }
    Ok(())
}

/// One step, again where something of it did not take hold in its phase: that attempt is no fault of the run, only a note. `false`: the
/// run ends here.
fn make_step(settings: &Settings, stage: &Stage<'_>, mut step: Step, steps: &mut Vec<Done>) -> Result<bool> {
    for attempt in 1..=ATTEMPTS {
        let mut done = stage.make(&step, steps.iter().map(|s| s.records.len()).sum())?;
        let came_back = done.whole.is_some();
        let goes_on = !done.lost && (came_back || !settings.stop_at_first);
        let again = attempt < ATTEMPTS && came_back && found_too_little(&done);
        if again {
            keep_what_stands(&mut done);
            done.notes.push(format!("step {}: tried again, since not all of it took hold in its phase", step.number));
            // What it leaves to chance may fall differently.
            step.seed = step.seed.wrapping_add(1);
        }
        steps.push(done);
        if goes_on {
            stage.rest(step.pause)?;
        }
        if !again {
            return Ok(goes_on);
        }
    }
    Ok(true)
}

/// Something did not take hold, or struck too late. What the program itself did wrong is no reason to try again: it would be hidden.
fn found_too_little(done: &Done) -> bool {
    done.broken.is_empty() && done.records.iter().any(|record| record.took_hold.is_none() || record.missed.is_some())
}

/// Of an attempt that is repeated: what took hold, each in its own right, as a fault of the phase that it did strike in.
fn keep_what_stands(done: &mut Done) {
    done.records.retain(|record| record.took_hold.is_some());
    done.records.iter_mut().for_each(|record| record.missed = None);
}

/// Verdicts that rest on what this system does not tell are none. Their figures stay: they show what clients were told.
fn excuse(verdicts: &mut [Verdict], tells: Tells) {
    for verdict in verdicts {
        let why = match verdict.checker.as_str() {
            "contract" if !tells.contract => "SQLSTATEs by which a proxy vouches for the outcome are Trilithon's own",
            "administrator" if !tells.history => "there is no history that names the cause of each change of primary",
            _ => continue,
        };
        verdict.outcome = Outcome::NotApplicable;
        verdict.summary = format!("{why} ({})", verdict.summary);
        verdict.witness.clear();
    }
}

/// A folder is used again: what an earlier run left there would be taken for this one's.
fn clear(dir: &Path) -> Result<()> {
    report::clear(dir)?;
    report::remove(&dir.join(HISTORIES))?;
    logs::clear(dir)
}

/// What the clients saw, for whoever looks into a violation.
fn keep(histories: &Histories, dir: &Path) -> Result<()> {
    let file = dir.join(HISTORIES);
    let text = serde_json::to_vec(histories).context("the histories as JSON")?;
    std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&file, text)).with_context(|| format!("cannot write {}", file.display()))
}

fn never_whole(error: &anyhow::Error) -> Verdict {
    Verdict {
        checker: "final".to_owned(),
        outcome: Outcome::Failed,
        summary: "after all faults were mended the cluster did not become whole".to_owned(),
        witness: vec![format!("{error:#}")],
        ..Verdict::default()
    }
}

/// From a fault's preparation until the cluster is whole again, by itself or with help; commands for as long as they may take effect.
fn all_causes(steps: &[Done], histories: &Histories, now: At) -> Vec<Cause> {
    let faults = steps.iter().map(|s| Cause { from: s.from, to: s.over().unwrap_or(now) });
    let commands = histories.commands.iter().map(|c| Cause { from: c.from, to: c.to.after(EFFECT_LIMIT) });
    faults.chain(commands).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::FaultRecord;

    fn done(took_hold: bool, missed: bool) -> Done {
        let (took_hold, missed) = (took_hold.then(|| "seen".to_owned()), missed.then(|| "election".to_owned()));
        Done { records: vec![FaultRecord { took_hold, missed, ..FaultRecord::default() }], ..Done::default() }
    }

    #[test]
    fn what_found_too_little_is_tried_again_and_what_stands_of_it_is_kept() {
        assert!(!found_too_little(&done(true, false)));
        assert!(found_too_little(&done(false, false)));
        let mut late = done(true, true);
        assert!(found_too_little(&late));
        keep_what_stands(&mut late);
        assert_eq!((late.records.len(), &late.records[0].missed), (1, &None));
        let mut nothing = done(false, true);
        keep_what_stands(&mut nothing);
        assert!(nothing.records.is_empty());
    }

    #[test]
    fn what_the_program_did_wrong_is_not_tried_away() {
        let mut broken = done(false, false);
        broken.broken.push("it ended with exit status: 3".to_owned());
        assert!(!found_too_little(&broken));
    }
}
