//! One fault against a running cluster, by itself: for who writes a fault, and for who wants to see one.

use super::injected::{Ctx, Injected, inject};
use super::kinds::{Expected, Fault};
use super::ledger::Ledger;
use crate::record::Outcome;
use crate::run::Pace;
use anyhow::{Result, bail};
use std::fmt;
use std::time::Duration;

/// A write has to come through by then, whatever the fault was; more than the promise, so that its breach is measured.
const WRITABLE_LIMIT: Duration = Duration::from_secs(60);
const REDUNDANT_LIMIT: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Trial {
    pub name: &'static str,
    pub aim: String,
    pub held: Duration,
    /// `None`: it did not take hold, and nothing is concluded from it.
    pub proof: Option<String>,
    /// What kept it from being proved.
    pub missing: Vec<String>,
    /// What the program should have done about it and was not seen to do.
    pub unmet: Vec<String>,
    /// Healing went wrong.
    pub heal_error: Option<String>,
    pub writable_after: Result<Duration, String>,
    pub redundant_after: Result<Duration, String>,
    /// Are all acknowledged writes on every node, once?
    pub ledger: Result<String, String>,
    pub expected: Expected,
}

impl Trial {
    /// Took hold, healed, and the cluster did what it should and came back to full redundancy by itself.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.proof.is_some()
            && self.unmet.is_empty()
            && self.heal_error.is_none()
            && self.writable_after.is_ok()
            && self.redundant_after.is_ok()
            && self.ledger.is_ok()
    }

    /// What it says of the program. That a fault which is not handled is not handled says nothing new.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match (&self.proof, self.is_good(), self.expected) {
            (None, _, _) => Outcome::Inconclusive,
            (Some(_), false, Expected::Handled) => Outcome::Failed,
            (Some(_), true, _) | (Some(_), false, Expected::Remedy(_) | Expected::Known(_)) => Outcome::Passed,
        }
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match (&self.proof, self.is_good()) {
            (None, _) => "INCONCLUSIVE",
            (Some(_), true) => "ok",
            (Some(_), false) => "BAD",
        };
        writeln!(f, "{word} {} at {}, held {:.1} s", self.name, self.aim, self.held.as_secs_f64())?;
        match &self.proof {
            Some(proof) => writeln!(f, "  proof      {proof}")?,
            None => writeln!(f, "  not proved {}", self.missing.join("; "))?,
        }
        for unmet in &self.unmet {
            writeln!(f, "  expected   NOT: {unmet}")?;
        }
        if let Some(error) = &self.heal_error {
            writeln!(f, "  healing    {error}")?;
        }
        for (what, after) in [("writable  ", &self.writable_after), ("redundant ", &self.redundant_after)] {
            match after {
                Ok(time) => writeln!(f, "  {what} after {} ms", time.as_millis())?,
                Err(why) => writeln!(f, "  {what} NOT: {why}")?,
            }
        }
        match &self.ledger {
            Ok(words) => writeln!(f, "  ledger     {words}")?,
            Err(why) => writeln!(f, "  ledger     NOT: {why}")?,
        }
        match self.expected {
            Expected::Handled => Ok(()),
            Expected::Remedy(remedy) => writeln!(f, "  remedy     {remedy}"),
            Expected::Known(gap) => writeln!(f, "  known gap  {gap}"),
        }
    }
}

/// Inject `fault`, hold it until it is proved and its least time is over, heal, and wait until all is well.
///
/// # Errors
/// Interrupted, or it could not be injected. A cluster that does not come back is no error here: see [`Trial`].
pub fn try_one(fault: &'static Fault, ctx: &Ctx<'_>, pace: &Pace) -> Result<Trial> {
    if let Err(why) = until_whole(ctx, pace)? {
        bail!("before the fault {why}");
    }
    let ledger = Ledger::open(ctx)?;
    let mut injected = inject(fault, ctx)?;
    let began = ctx.clock.now();
    hold(ctx, pace, &mut injected)?;
    let (aim, proof) = (injected.aim(), injected.proof());
    let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    let missing = owned(injected.missing());
    let heal_error = injected.heal().err().map(|e| format!("{e:#}"));
    // An answer may come only with the mending; evidence that comes as late is the run's to believe.
    injected.proof();
    let unmet = owned(injected.unmet());
    let held = ctx.clock.now().since(began);
    let healed = ctx.clock.now();
    let writable_after = until_written(ctx, pace, &ledger)?;
    let redundant_after = until_whole(ctx, pace)?.map(|()| ctx.clock.now().since(healed));
    let ledger = ledger.close(ctx).map_err(|error| format!("{error:#}"));
    let (name, expected) = (fault.name, fault.expected);
    Ok(Trial { name, aim, held, proof, missing, unmet, heal_error, writable_after, redundant_after, ledger, expected })
}

/// Look until it is `good`; node processes that end by themselves are started again meanwhile.
fn wait(ctx: &Ctx<'_>, pace: &Pace, limit: Duration, every: Duration, mut good: impl FnMut() -> bool) -> Result<bool> {
    pace.until(limit, every, || {
        ctx.cluster.tend(&ctx.clock);
        good()
    })
}

/// Within: what keeps it from being whole.
fn until_whole(ctx: &Ctx<'_>, pace: &Pace) -> Result<Result<(), String>> {
    if wait(ctx, pace, REDUNDANT_LIMIT, LOOK_EVERY, || ctx.cluster.status().is_ok_and(|s| ctx.cluster.is_whole(&s)))? {
        return Ok(Ok(()));
    }
    let seen = ctx.cluster.status().map_or_else(|error| format!("{error:#}"), |s| s.in_words());
    Ok(Err(format!("the cluster is not whole after {} s: {seen}", REDUNDANT_LIMIT.as_secs())))
}

/// Until a client's write is acknowledged. Within: there was none.
fn until_written(ctx: &Ctx<'_>, pace: &Pace, ledger: &Ledger) -> Result<Result<Duration, String>> {
    let (began, before) = (ctx.clock.now(), ledger.count());
    let written = wait(ctx, pace, WRITABLE_LIMIT, Duration::from_millis(10), || ledger.count() != before)?;
    let why_not = || format!("no write was acknowledged within {} s", WRITABLE_LIMIT.as_secs());
    Ok(written.then(|| ctx.clock.now().since(began)).ok_or_else(why_not))
}

/// For its least time, and on until it is proved and answered, at most for its longest.
fn hold(ctx: &Ctx<'_>, pace: &Pace, injected: &mut Injected<'_>) -> Result<()> {
    let (least, most) = injected.fault.hold;
    let least = ctx.clock.now().after(least);
    wait(ctx, pace, most, LOOK_EVERY, || {
        let proved = injected.proof().is_some() && injected.unmet().is_empty();
        proved && ctx.clock.now() >= least
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial() -> Trial {
        Trial {
            name: "x",
            aim: "primary (dc1)".to_owned(),
            held: Duration::from_secs(5),
            proof: Some("it was seen".to_owned()),
            missing: Vec::new(),
            unmet: Vec::new(),
            heal_error: None,
            writable_after: Ok(Duration::ZERO),
            redundant_after: Ok(Duration::ZERO),
            ledger: Ok("all there".to_owned()),
            expected: Expected::Handled,
        }
    }

    #[test]
    fn an_answer_that_was_not_seen_is_bad_and_shown() {
        assert_eq!((trial().is_good(), trial().outcome()), (true, Outcome::Passed));
        let unmet = Trial { unmet: vec!["dc1 restores fsync".to_owned()], ..trial() };
        assert_eq!((unmet.is_good(), unmet.outcome()), (false, Outcome::Failed));
        let text = unmet.to_string();
        assert!(text.starts_with("BAD x") && text.contains("expected   NOT: dc1 restores fsync"), "{text}");
    }

    #[test]
    fn only_what_took_hold_and_should_be_handled_fails() {
        let away = |trial: Trial| Trial { redundant_after: Err("dc3 is away".to_owned()), ..trial };
        assert_eq!(away(trial()).outcome(), Outcome::Failed);
        assert_eq!(away(Trial { proof: None, ..trial() }).outcome(), Outcome::Inconclusive);
        assert_eq!(away(Trial { expected: Expected::Known("it stays away"), ..trial() }).outcome(), Outcome::Passed);
    }
}
