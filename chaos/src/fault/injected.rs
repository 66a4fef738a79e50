//! A fault in force: what it broke, how each part is mended, what proves that it took hold, what the program must do about it.
//!
//! Primitives register how to mend a thing *before* they break it, so that a fault whose injection failed half-way heals as one that
//! succeeded. Healing runs in reverse order, goes on over errors, and at the end starts every node process that is not there: who
//! killed it, the fault or the node itself (as it does when its log cannot be written), is the same to a service manager.

use super::aim::{self, Target};
use super::kinds::{Aim, Fault};
use super::signs::Signs;
use crate::cluster::Cluster;
use crate::record::RunClock;
use crate::world::World;
use anyhow::{Context as _, Result, bail};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::time::Duration;

/// What faults are injected into.
pub struct Ctx<'a> {
    pub world: &'a World,
    pub cluster: &'a Cluster,
    pub clock: RunClock,
    /// Decides everything that a fault leaves to chance.
    pub seed: u64,
    pub scale: Scale,
}

/// How much the machine can bear.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Connections of a storm.
    pub connections: usize,
    /// WAL that faults write to make recovery long or slots overflow, in MB.
    pub wal_mb: usize,
}

impl Default for Scale {
    fn default() -> Scale {
        Scale { connections: 10_000, wal_mb: 192 }
    }
}

struct Undo<'a> {
    what: String,
    run: Box<dyn FnOnce() -> Result<()> + 'a>,
}

/// A fault in force. Heals when dropped, at the latest.
pub struct Injected<'a> {
    pub fault: &'static Fault,
    pub(super) ctx: &'a Ctx<'a>,
    pub(super) rng: StdRng,
    targets: Vec<Target<'a>>,
    evidence: Signs<'a>,
    expected: Signs<'a>,
    /// Looked for once, just before it heals.
    forbidden: Signs<'a>,
    undo: Vec<Undo<'a>>,
    afterwards: Vec<Undo<'a>>,
}

/// Break things as `fault` says.
///
/// # Errors
/// The aim does not exist at this moment (no primary, say), the world lacks what the fault needs, or a primitive failed; whatever
/// was broken by then is mended. [`super::Misbehaved`] where it was the program under test that did wrong.
pub fn inject<'a>(fault: &'static Fault, ctx: &'a Ctx<'a>) -> Result<Injected<'a>> {
    let targets = aim::resolve(fault.aim, ctx).with_context(|| format!("{} has nobody to be aimed at", fault.name))?;
    let seed = fault.name.bytes().fold(ctx.seed, |seed, byte| seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
    let rng = StdRng::seed_from_u64(seed);
    let (evidence, expected, forbidden) = (Signs::default(), Signs::default(), Signs::default());
    let mut injected = Injected { fault, ctx, rng, targets, evidence, expected, forbidden, undo: Vec::new(), afterwards: Vec::new() };
    (fault.inject)(&mut injected).with_context(|| format!("{} was not injected", fault.name))?;
    Ok(injected)
}

impl<'a> Injected<'a> {
    /// In words: "primary (dc1)".
    #[must_use]
    pub fn aim(&self) -> String {
        let names: Vec<&str> = self.targets.iter().map(Target::name).collect();
        match self.fault.aim {
            Aim::Everyone | Aim::Clients => self.fault.aim.words().to_owned(),
            Aim::Link => format!("line {}", names.join("–")),
            aim => format!("{} ({})", aim.words(), names.join(", ")),
        }
    }

    /// Evidence that all of it took hold; looks anew at whatever was not seen yet, and remembers what was. Looks for the program's
    /// answer, too.
    pub fn proof(&mut self) -> Option<String> {
        self.evidence.look();
        self.expected.look();
        self.evidence.seen()
    }

    /// Evidence that was not seen so far.
    #[must_use]
    pub fn missing(&self) -> Vec<&str> {
        self.evidence.unseen()
    }

    /// What the program should have done about it, and was not seen to do by the last [`Injected::proof`].
    #[must_use]
    pub fn unmet(&self) -> Vec<&str> {
        self.expected.unseen()
    }

    /// What the program did while the fault held, and may not do then.
    #[must_use]
    pub fn forbidden(&self) -> Option<String> {
        self.forbidden.any()
    }

    /// Mend everything. A second time it does nothing.
    ///
    /// # Errors
    /// Names every part that could not be mended; the others are mended all the same.
    pub fn heal(&mut self) -> Result<()> {
        let mut failed = Vec::new();
        let broke_something = !self.undo.is_empty();
        if broke_something {
            self.forbidden.look();
        }
        while let Some(undo) = self.undo.pop() {
            if let Err(error) = (undo.run)() {
                failed.push(format!("{}: {error:#}", undo.what));
            }
        }
        if broke_something {
            failed.extend(self.start_the_dead());
        }
        for last in std::mem::take(&mut self.afterwards) {
            if let Err(error) = (last.run)() {
                failed.push(format!("{}: {error:#}", last.what));
            }
        }
        if !failed.is_empty() {
            bail!("{} did not heal in full: {}", self.fault.name, failed.join("; "));
        }
        Ok(())
    }

    /// As a service manager does.
    fn start_the_dead(&self) -> Vec<String> {
        let mut failed = Vec::new();
        for target in aim::all(self.ctx) {
            if target.node_is_dead()
                && let Err(error) = target.start()
            {
                failed.push(format!("start {}: {error:#}", target.name()));
            }
        }
        failed
    }

    /// Register how to mend what is broken next.
    pub(super) fn undo(&mut self, what: impl Into<String>, run: impl FnOnce() -> Result<()> + 'a) {
        self.undo.push(Undo { what: what.into(), run: Box::new(run) });
    }

    /// Register what is to be done when all is mended and every node process runs again.
    pub(super) fn afterwards(&mut self, what: impl Into<String>, run: impl FnOnce() -> Result<()> + 'a) {
        self.afterwards.push(Undo { what: what.into(), run: Box::new(run) });
    }

    /// Register what shows that it took hold. `look` is called until it says something.
    pub(super) fn prove(&mut self, what: impl Into<String>, look: impl FnMut() -> Option<String> + 'a) {
        self.evidence.add(what, look);
    }

    /// Register what the program must do about the fault, which is no proof that it struck. `look` is called until it says something,
    /// while the fault holds and once after healing; where it never does, the program did wrong.
    pub(super) fn expect(&mut self, what: impl Into<String>, look: impl FnMut() -> Option<String> + 'a) {
        self.expected.add(what, look);
    }

    /// Register what the program may not have done by the moment at which it heals; `look` says what it did.
    pub(super) fn forbid(&mut self, what: impl Into<String>, look: impl FnMut() -> Option<String> + 'a) {
        self.forbidden.add(what, look);
    }

    /// Register what was seen already.
    pub(super) fn proved(&mut self, seen: impl Into<String>) {
        self.evidence.add_seen(seen);
    }

    /// The one it is aimed at, or the first of them.
    pub(super) fn target(&self) -> Target<'a> {
        self.targets[0]
    }

    pub(super) fn all_targets(&self) -> Vec<Target<'a>> {
        self.targets.clone()
    }

    /// Every member but `target`.
    pub(super) fn others(&self, target: Target<'a>) -> Vec<Target<'a>> {
        aim::all(self.ctx).into_iter().filter(|t| t.name() != target.name()).collect()
    }

    /// A second fault in the same breath; it heals with this one, and what is expected of it is expected of this one.
    pub(super) fn also(&mut self, fault: &'static Fault) -> Result<()> {
        let mut child = inject(fault, self.ctx)?;
        self.expected.add_all(fault.name, std::mem::take(&mut child.expected));
        self.forbidden.add_all(fault.name, std::mem::take(&mut child.forbidden));
        let child = std::rc::Rc::new(std::cell::RefCell::new(child));
        let (proving, healing) = (std::rc::Rc::clone(&child), child);
        self.prove(fault.name, move || proving.borrow_mut().proof().map(|seen| format!("{}: {seen}", fault.name)));
        self.undo(fault.name, move || healing.borrow_mut().heal());
        Ok(())
    }

    /// Wait, within an injection, until `look` says something.
    ///
    /// # Errors
    /// It did not within `deadline`.
    pub(super) fn wait<T>(&self, what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        let end = self.ctx.clock.now().after(deadline);
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if self.ctx.clock.now() > end {
                bail!("not within {deadline:?}: {what}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Injected<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.heal() {
            anstream::eprintln!("{error:#}");
        }
    }
}
