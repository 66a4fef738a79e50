//! One fault against a running cluster, by itself: for who writes a fault, and for who wants to see one.

use super::injected::{Ctx, Injected, inject};
use super::kinds::Expected;
use anyhow::{Context as _, Result};
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
    /// Healing went wrong.
    pub heal_error: Option<String>,
    pub writable_after: Result<Duration, String>,
    pub redundant_after: Result<Duration, String>,
    pub expected: Expected,
}

impl Trial {
    /// Took hold, healed, and the cluster came back to full redundancy by itself.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.proof.is_some() && self.heal_error.is_none() && self.writable_after.is_ok() && self.redundant_after.is_ok()
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
        if let Some(error) = &self.heal_error {
            writeln!(f, "  healing    {error}")?;
        }
        for (what, after) in [("writable  ", &self.writable_after), ("redundant ", &self.redundant_after)] {
            match after {
                Ok(time) => writeln!(f, "  {what} after {} ms", time.as_millis())?,
                Err(why) => writeln!(f, "  {what} NOT: {why}")?,
            }
        }
        match self.expected {
            Expected::Handled => Ok(()),
            Expected::Remedy(remedy) => writeln!(f, "  remedy     {remedy}"),
            Expected::Known(gap) => writeln!(f, "  known gap  {gap}"),
        }
    }
}

/// Inject the fault called `name`, hold it until it is proved and its least time is over, heal, and wait until all is well.
///
/// # Errors
/// There is no such fault, or it could not be injected. A cluster that does not come back is no error here: see [`Trial`].
pub fn try_one(name: &str, ctx: &Ctx<'_>) -> Result<Trial> {
    let fault = super::named(name).with_context(|| format!("no fault is called {name}; `chaos list` shows all"))?;
    ctx.cluster.until_redundant(REDUNDANT_LIMIT).context("before the fault")?;
    let mut injected = inject(fault, ctx)?;
    let began = ctx.clock.now();
    hold(ctx, &mut injected);
    let (aim, proof) = (injected.aim(), injected.proof());
    let missing = injected.missing().into_iter().map(str::to_owned).collect();
    let heal_error = injected.heal().err().map(|e| format!("{e:#}"));
    let held = ctx.clock.now().since(began);
    let healed = ctx.clock.now();
    let in_words = |error: anyhow::Error| format!("{error:#}");
    let writable_after = ctx.cluster.until_writable(WRITABLE_LIMIT).map_err(in_words);
    let redundant_after = ctx.cluster.until_redundant(REDUNDANT_LIMIT).map(|_| ctx.clock.now().since(healed)).map_err(in_words);
    Ok(Trial { name: fault.name, aim, held, proof, missing, heal_error, writable_after, redundant_after, expected: fault.expected })
}

/// For its least time, and on until it is proved, at most for its longest; node processes that end by themselves are started again.
fn hold(ctx: &Ctx<'_>, injected: &mut Injected<'_>) {
    let began = ctx.clock.now();
    let (least, most) = (began.after(injected.fault.hold.0), began.after(injected.fault.hold.1));
    loop {
        let proved = injected.proof().is_some();
        let now = ctx.clock.now();
        if (now >= least && proved) || now >= most {
            return;
        }
        ctx.cluster.tend(&ctx.clock);
        std::thread::sleep(LOOK_EVERY);
    }
}
