//! One step: whole cluster → phase → break → hold → mend → measure until it is whole again.
//!
//! The node processes are not restarted while a fault holds, so that what it killed stays dead until it is mended; afterwards they
//! are, as a service manager would. When the cluster does not come back by itself, a person's usual means are tried and noted (restart
//! everything, then copy a member anew): the verdict on its liveness is lost by then, but the rest of the run still finds things.

use super::pace::{Interrupted, Pace};
use super::phase::{self, Staged};
use super::plan::Step;
use super::voice::Voice;
use super::watch::Watch;
use crate::cluster::{Cluster, Status};
use crate::fault::{self, Ctx, Fault, Injected, Misbehaved, Phase, Scale};
use crate::record::{At, FaultRecord, RunClock};
use crate::report::Event;
use crate::workload::Running;
use crate::world::World;
use anyhow::{Result, bail};
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// Beyond these bounds a cluster did not come back by itself. The targets (5 s and 60 s) are the report's; these are for what hangs.
pub const WRITABLE_LIMIT: Duration = Duration::from_secs(60);
pub const REDUNDANT_LIMIT: Duration = Duration::from_secs(180);
/// The same where seeded bugs are hunted: one is caught then, and nobody helps.
const HUNTED_LIMIT: Duration = Duration::from_secs(75);
/// After a person's help.
const HELPED_LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often evidence is looked for while a fault holds: some looks ask the server.
const PROVE_EVERY: Duration = Duration::from_millis(500);

/// What steps are made in.
pub struct Stage<'a> {
    pub world: &'a World,
    pub cluster: &'a Cluster,
    pub running: &'a Running,
    pub pace: &'a Pace,
    pub clock: RunClock,
    pub scale: Scale,
    /// Seeded bugs are hunted: this is one, or what they are compared with.
    pub hunting: bool,
    pub watch: &'a Watch,
    pub voice: &'a Voice,
    /// Node processes that ended by themselves while none of the cluster's faults was at work.
    pub ends: RefCell<Vec<String>>,
    /// Those of them that ended while all was well.
    pub unprovoked: RefCell<Vec<String>>,
    /// A step is being made.
    pub busy: Cell<bool>,
}

/// What a step left behind.
#[derive(Debug, Default)]
pub struct Done {
    pub records: Vec<FaultRecord>,
    /// When its preparation began.
    pub from: At,
    /// When everything was mended.
    pub healed: At,
    /// When the cluster was whole again; `None`: not by itself.
    pub whole: Option<At>,
    /// When a person's means had made it whole.
    pub helped: Option<At>,
    /// Lines for the record's notes.
    pub notes: Vec<String>,
    /// What the program under test did wrong, other than that it did not come back.
    pub broken: Vec<String>,
    /// It did not come back, also not with help: the run cannot go on.
    pub lost: bool,
}

impl Done {
    /// When it was over, one way or another; `None`: never.
    pub fn over(&self) -> Option<At> {
        self.whole.or(self.helped)
    }
}

impl Stage<'_> {
    /// Make one step. `before` faults were injected earlier in the run.
    ///
    /// # Errors
    /// Interrupted. Everything that a fault or the cluster does is in the result instead.
    pub fn make(&self, step: &Step, before: usize) -> Result<Done> {
        self.busy.set(true);
        let done = self.broken_and_mended(step, before);
        self.busy.set(false);
        done
    }

    fn broken_and_mended(&self, step: &Step, before: usize) -> Result<Done> {
        let mut done = Done { from: self.pace.now(), ..Done::default() };
        let mut staged = match phase::bring(self.world, self.cluster, step.phase, self.pace) {
            Ok(staged) => staged,
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                done.notes.push(format!("step {}: {} was not begun: {error:#}", step.number, step.phase.word()));
                Staged::nothing()
            }
        };
        // Whoever strikes afterwards has struck another cluster than the one that was meant.
        let missed = staged.reached.is_none().then(|| step.phase.word().to_owned());
        if missed.is_some() {
            done.notes.push(format!("step {}: {} was over, or never begun, when the fault struck", step.number, step.phase.word()));
        }
        let phase = staged.reached.unwrap_or(Phase::Steady);
        let ctx = Ctx { world: self.world, cluster: self.cluster, clock: self.clock, seed: step.seed, scale: self.scale };
        let (mut injected, reached_at) = (Vec::new(), self.pace.now());
        for (number, fault) in (before + 1..).zip(&step.faults) {
            let (from, phase) = (self.pace.now(), phase.word().to_owned());
            self.voice.fault(number, fault.name);
            let mut record = FaultRecord { name: fault.name.to_owned(), phase, from, missed: missed.clone(), ..FaultRecord::default() };
            match fault::inject(fault, &ctx) {
                Ok(one) => {
                    record.aim = one.aim();
                    if !staged.how.is_empty() {
                        // Phases are short: who reads it can judge whether this one still went on. To be sure that what was killed is gone
                        // takes longer than to kill it.
                        let later = millis(self.pace.now().since(reached_at));
                        record.aim.push_str(&format!(", {}, struck within {later} ms", staged.how));
                    }
                    self.say(&Event::Injected { number, name: &record.name, aim: &record.aim, phase: &record.phase });
                    injected.push((number, record, one));
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    self.say(&Event::NotHeld { number, why: &why });
                    if error.is::<Misbehaved>() && is_alone(step) {
                        done.broken.push(format!("step {}: {why}", step.number));
                    }
                    done.notes.push(format!("step {}: {why}", step.number));
                    done.records.push(record);
                }
            }
        }
        self.hold(step.hold, &mut injected)?;
        self.mend(step, &mut injected, &mut staged, &mut done);
        done.healed = self.pace.now();
        self.judge(step, injected, &mut done);
        self.return_to_whole(step, before + 1, &mut done)?;
        for record in &mut done.records {
            record.to = done.healed;
            record.redundant_after_heal_ms = done.whole.map(|whole| millis(whole.since(done.healed)));
        }
        Ok(done)
    }

    /// What each fault did, and what the program did about it.
    fn judge(&self, step: &Step, injected: Vec<Active<'_>>, done: &mut Done) {
        for (number, mut record, mut one) in injected {
            // Some evidence (a log line, an exit) comes only with the mending.
            record.took_hold = one.proof();
            if record.took_hold.is_none() {
                let why = format!("no sign of {}", one.missing().join(", "));
                self.say(&Event::NotHeld { number, why: &why });
                done.notes.push(format!("step {}: {}: {why}", step.number, record.name));
            } else if let Some(answer) = no_answer(step, one.fault, &one.unmet()) {
                self.note(&answer.words);
                done.notes.push(answer.words.clone());
                done.broken.extend(answer.counts.then_some(answer.words));
            }
            if let Some(did) = one.forbidden() {
                let words = format!("step {}: {}: {did}", step.number, record.name);
                self.note(&words);
                done.notes.push(words.clone());
                done.broken.extend(is_alone(step).then_some(words));
            }
            self.say(&Event::Healed { number, lasted: done.healed.since(record.from) });
            done.records.push(record);
        }
    }

    fn say(&self, event: &Event<'_>) {
        self.voice.event(self.clock, event);
    }

    fn hold(&self, time: Duration, injected: &mut [Active<'_>]) -> Result<()> {
        let end = self.pace.now().after(time);
        let mut told = vec![false; injected.len()];
        loop {
            for ((number, _, one), told) in injected.iter_mut().zip(&mut told) {
                // Once seen, it is remembered by the fault.
                if let (Some(proof), false) = (one.proof(), *told) {
                    self.say(&Event::TookHold { number: *number, proof: &proof });
                    *told = true;
                }
            }
            self.voice.look(self.clock, self.watch, self.running);
            let left = end.since(self.pace.now());
            if left.is_zero() {
                return Ok(());
            }
            self.pace.sleep(PROVE_EVERY.min(left))?;
        }
    }

    /// In reverse order, and whatever is left to a backstop.
    fn mend(&self, step: &Step, injected: &mut [Active<'_>], staged: &mut Staged, done: &mut Done) {
        for (_, _, one) in injected.iter_mut().rev() {
            if let Err(error) = one.heal() {
                done.notes.push(format!("step {}: {error:#}", step.number));
            }
        }
        self.world.wan().heal();
        if let Err(error) = self.cluster.mend() {
            done.notes.push(format!("step {}: {error:#}", step.number));
        }
        if let Err(error) = staged.undo(self.cluster) {
            done.notes.push(format!("step {}: {error:#}", step.number));
        }
    }

    /// Wait until writes are acknowledged and all stream, with help where it must be.
    fn return_to_whole(&self, step: &Step, number: usize, done: &mut Done) -> Result<()> {
        let acknowledged = |s: &Self| s.running.progress().last_acknowledged.is_some_and(|at| at > done.healed);
        let writable = self.wait(WRITABLE_LIMIT, || acknowledged(self))?;
        if writable {
            self.say(&Event::Writable { number, after: self.pace.now().since(done.healed) });
        } else {
            done.notes.push(format!(
                "step {} ({}): no write was acknowledged within {} s",
                step.number,
                step.in_words(),
                WRITABLE_LIMIT.as_secs()
            ));
        }
        let limit = if self.hunting { HUNTED_LIMIT } else { REDUNDANT_LIMIT };
        let left = limit.saturating_sub(self.pace.now().since(done.healed));
        if self.wait(left, || self.is_whole())? {
            let whole = self.pace.now();
            self.say(&Event::Redundant { number, after: whole.since(done.healed) });
            done.whole = Some(whole);
            return Ok(());
        }
        let seen = self.cluster.status().map_or_else(|error| format!("{error:#}"), |s| s.in_words());
        done.notes.push(format!("step {} ({}): not redundant within {} s: {seen}", step.number, step.in_words(), limit.as_secs()));
        if self.hunting {
            done.lost = true;
            return Ok(());
        }
        self.note("it does not come back by itself: restarting every node");
        self.help(done)
    }

    fn help(&self, done: &mut Done) -> Result<()> {
        self.cluster.kill();
        if let Err(error) = self.cluster.mend() {
            done.notes.push(format!("{error:#}"));
        }
        if self.wait(HELPED_LIMIT, || self.is_whole())? {
            done.notes.push("a restart of all nodes by hand made it whole".to_owned());
            done.helped = Some(self.pace.now());
            return Ok(());
        }
        let stuck = self.cluster.status().map(|s| stuck_standbys(&s)).unwrap_or_default();
        for name in &stuck {
            self.note(&format!("copying {name} anew"));
            let _ = self.cluster.cli(&["reinit", name]);
        }
        if !stuck.is_empty() && self.wait(HELPED_LIMIT, || self.is_whole())? {
            done.notes.push(format!("`reinit` of {} by hand made it whole", stuck.join(", ")));
            done.helped = Some(self.pace.now());
            return Ok(());
        }
        done.notes.push("it did not become whole by hand either: the run ends here".to_owned());
        done.lost = true;
        Ok(())
    }

    /// # Errors
    /// Interrupted, or the cluster is not whole.
    pub fn until_whole(&self, limit: Duration) -> Result<()> {
        if !self.wait(limit, || self.is_whole())? {
            let seen = self.cluster.status().map_or_else(|error| format!("{error:#}"), |s| s.in_words());
            bail!("the cluster is not redundant after {} s: {seen}", limit.as_secs());
        }
        Ok(())
    }

    /// Let time pass in which nothing is broken.
    ///
    /// # Errors
    /// Interrupted.
    pub fn rest(&self, time: Duration) -> Result<()> {
        self.wait(time, || false).map(drop)
    }

    fn is_whole(&self) -> bool {
        self.cluster.status().is_ok_and(|s| self.cluster.is_whole(&s))
    }

    fn wait(&self, limit: Duration, mut good: impl FnMut() -> bool) -> Result<bool> {
        self.pace.until(limit, LOOK_EVERY, || {
            for end in self.cluster.tend(&self.clock) {
                let said = format!("{} of {} ended by itself ({}); it is started again", end.program, end.node, end.how);
                self.note(&said);
                let said = format!("{:.1} s: {said}", Duration::from_micros(self.pace.now().0).as_secs_f64());
                self.ends.borrow_mut().push(said.clone());
                self.unprovoked.borrow_mut().extend((!self.busy.get()).then_some(said));
            }
            self.voice.look(self.clock, self.watch, self.running);
            good()
        })
    }

    fn note(&self, text: &str) {
        self.voice.note(self.clock, text);
    }
}

/// A fault in force: its number in the run, and its record so far.
type Active<'a> = (usize, FaultRecord, Injected<'a>);

/// Nothing else is at work: what the program does is its answer to this fault.
fn is_alone(step: &Step) -> bool {
    step.faults.len() == 1
}

/// What the program should have done about a fault and was not seen to do.
struct Unanswered {
    words: String,
    /// It had the time, and no other fault kept it from doing it.
    counts: bool,
}

fn no_answer(step: &Step, fault: &Fault, unmet: &[&str]) -> Option<Unanswered> {
    if unmet.is_empty() {
        return None;
    }
    let why_not = match (is_alone(step), step.hold >= fault.hold.0) {
        (true, true) => None,
        (false, _) => Some("which is not held against it, since another fault was at work"),
        (true, false) => Some("which is not held against it, since the fault held for too short a time"),
    };
    let words = format!("step {}: {} took hold, and it was not seen that {}", step.number, fault.name, unmet.join(", "));
    let counts = why_not.is_none();
    Some(Unanswered { words: why_not.map_or_else(|| words.clone(), |why| format!("{words}, {why}")), counts })
}

fn stuck_standbys(status: &Status) -> Vec<String> {
    let stuck = status.members.iter().filter(|m| m.role == "standby" && m.state != "streaming");
    stuck.map(|m| m.name.clone()).collect()
}

pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(names: &[&str], hold: u64) -> Step {
        let faults = names.iter().map(|name| fault::named(name).unwrap()).collect();
        Step { number: 4, faults, phase: Phase::Steady, hold: Duration::from_secs(hold), pause: Duration::ZERO, seed: 1 }
    }

    #[test]
    fn what_was_expected_and_not_seen_counts_where_nothing_else_was_at_work_for_long_enough() {
        let answer = |names: &[&str], hold, unmet: &[&str]| {
            let step = step(names, hold);
            no_answer(&step, step.faults[0], unmet).map(|answer| (answer.counts, answer.words))
        };
        let restores = &["dc1 restores fsync"][..];
        assert_eq!(answer(&["protected-settings-altered"], 3, &[]), None);
        let (counts, words) = answer(&["protected-settings-altered"], 3, restores).unwrap();
        assert!(counts, "{words}");
        assert_eq!(words, "step 4: protected-settings-altered took hold, and it was not seen that dc1 restores fsync");
        for (names, hold) in [(&["protected-settings-altered", "freeze-datacenter"][..], 3), (&["protected-settings-altered"], 1)] {
            let (counts, words) = answer(names, hold, restores).unwrap();
            assert!(!counts && words.contains("not held against it"), "{words}");
        }
    }
}
