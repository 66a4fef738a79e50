//! What a run does, from its seed. PURE: the same seed and mode give the same steps, on every machine and for any length of run.
//!
//! Faults are dealt like cards: each (fault, phase) once, in an order that the seed decides, before any comes again. So a long run
//! covers the whole catalogue, and two short ones with different seeds begin with different parts of it. The generator is written
//! out here, because a seed that found something must find it again after a dependency changed its own.

use crate::fault::{Expected, Fault, Needs, Phase, meaningless};
use anyhow::{Result, bail};
use std::time::Duration;

/// Everything at once more often than this would only test everything at once.
const PAIR_EVERY: u64 = 4;
const SWARM_EVERY: u64 = 9;
/// Quiet time after a step: long enough to see that nothing happens by itself.
const PAUSE_MS: (u64, u64) = (1_000, 4_000);

/// Which steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Mostly single faults, every fourth step a pair, every ninth a swarm of up to four.
    Mixed,
    /// Single faults only.
    Singles,
    /// Two at once, always.
    Pairs,
    /// Two to four at once, always.
    Swarm,
    /// None at all: whatever happens then, happens without a cause.
    Calm,
    /// These, in this order, once.
    List(Vec<Listed>),
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    /// `None`: in all its phases.
    pub phase: Option<Phase>,
    /// `None`: as the seed decides.
    pub hold: Option<Duration>,
}

/// What the world offers to faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    pub disks: bool,
    pub shim: bool,
    /// Also faults that are known not to be handled.
    pub gaps: bool,
    /// It is not Trilithon that is broken: only faults that mean the same for others.
    pub peer: bool,
}

/// A fault, in a phase, for so long.
type Card = (&'static Fault, Phase, Option<Duration>);

impl Means {
    fn allow(self, fault: &Fault) -> bool {
        let there = match fault.needs {
            Needs::Nothing => true,
            Needs::Disks => self.disks,
            Needs::Shim => self.shim,
        };
        there && (self.gaps || !matches!(fault.expected, Expected::Known(_)))
    }
}

/// One step: bring the cluster to a phase, break things, hold, mend.
#[derive(Clone, Debug)]
pub struct Step {
    /// From 1.
    pub number: u64,
    /// Injected one after the other; all heal together.
    pub faults: Vec<&'static Fault>,
    pub phase: Phase,
    pub hold: Duration,
    /// Afterwards, with a whole cluster.
    pub pause: Duration,
    /// Decides what the faults leave to chance.
    pub seed: u64,
}

impl Step {
    /// As in "isolate-primary + fsync-slow at election".
    pub fn in_words(&self) -> String {
        let names: Vec<&str> = self.faults.iter().map(|f| f.name).collect();
        match self.phase {
            Phase::Steady => names.join(" + "),
            phase => format!("{} at {}", names.join(" + "), phase.word()),
        }
    }
}

/// Steps without an end, but for [`Mode::List`]; none for [`Mode::Calm`].
pub struct Plan {
    rng: SplitMix,
    mode: Mode,
    cards: Vec<Card>,
    deck: Vec<Card>,
    left_out: Vec<String>,
    number: u64,
}

impl Plan {
    /// # Errors
    /// A fault is not in the catalogue, or nothing is left that the world allows.
    pub fn new(seed: u64, mode: Mode, means: Means, catalogue: &'static [Fault]) -> Result<Plan> {
        let allowed = catalogue.iter().filter(|f| means.allow(f));
        let mut cards: Vec<Card> = match &mode {
            Mode::List(list) => listed(list, catalogue)?,
            _ => allowed.flat_map(|f| f.phases.iter().map(move |p| (f, *p, None))).collect(),
        };
        let mut left_out = Vec::new();
        cards.retain(|(fault, phase, _)| {
            let why = meaningless(fault, *phase).filter(|_| means.peer);
            left_out.extend(why.map(|why| format!("left out: {} at {}: {why}", fault.name, phase.word())));
            why.is_none()
        });
        if cards.is_empty() && mode != Mode::Calm {
            bail!("no fault is left to inject: see `chaos list` for what each needs");
        }
        Ok(Plan { rng: SplitMix(seed), mode, cards, deck: Vec::new(), left_out, number: 0 })
    }

    /// How many (fault, phase) there are.
    #[cfg(test)]
    pub fn cards(&self) -> usize {
        self.cards.len()
    }

    /// What means nothing for this system, with the reasons.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    fn deal(&mut self) -> Card {
        if self.deck.is_empty() {
            self.deck = self.cards.clone();
            for i in (1..self.deck.len()).rev() {
                let j = self.rng.below(i as u64 + 1);
                self.deck.swap(i, usize::try_from(j).unwrap_or(0));
            }
        }
        self.deck.pop().expect("a deck that was just filled is not empty: `new` refuses to have no cards")
    }

    fn at_once(&mut self) -> u64 {
        match &self.mode {
            Mode::Singles | Mode::Calm | Mode::List(_) => 1,
            Mode::Pairs => 2,
            Mode::Swarm => 2 + self.rng.below(3),
            Mode::Mixed if self.number.is_multiple_of(SWARM_EVERY) => 2 + self.rng.below(3),
            Mode::Mixed if self.number.is_multiple_of(PAIR_EVERY) => 2,
            Mode::Mixed => 1,
        }
    }

    /// Others for the same step: of the steady phase, each once, and at most one that destroys what is stored.
    fn join(&mut self, faults: &mut Vec<&'static Fault>, wanted: u64) {
        let steady: Vec<&'static Fault> = self.cards.iter().filter(|(_, p, _)| *p == Phase::Steady).map(|(f, ..)| *f).collect();
        // A bound on the tries: a list of destroyers only has no second one to offer.
        for _ in 0..64 {
            if faults.len() as u64 >= wanted || steady.is_empty() {
                return;
            }
            let next = steady[usize::try_from(self.rng.below(steady.len() as u64)).unwrap_or(0)];
            let twice = faults.iter().any(|f| f.name == next.name);
            let too_much = next.destroys && faults.iter().any(|f| f.destroys);
            if !twice && !too_much {
                faults.push(next);
            }
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.number += 1;
        let (first, phase, held) = match &self.mode {
            Mode::Calm => return None,
            Mode::List(_) => *self.cards.get(usize::try_from(self.number - 1).ok()?)?,
            _ => self.deal(),
        };
        let mut faults = vec![first];
        let wanted = self.at_once();
        self.join(&mut faults, wanted);
        let longest = faults.iter().max_by_key(|f| f.hold.1).map_or(first.hold, |f| f.hold);
        let between =
            |rng: &mut SplitMix, (least, most): (u64, u64)| Duration::from_millis(least + rng.below(most.saturating_sub(least) + 1));
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let hold = between(&mut self.rng, (millis(longest.0), millis(longest.1)));
        let pause = between(&mut self.rng, PAUSE_MS);
        let hold = held.unwrap_or(hold);
        Some(Step { number: self.number, faults, phase, hold, pause, seed: self.rng.next() })
    }
}

fn listed(list: &[Listed], catalogue: &'static [Fault]) -> Result<Vec<Card>> {
    let mut cards = Vec::new();
    for Listed { name, phase, hold } in list {
        let Some(fault) = catalogue.iter().find(|f| f.name == name) else {
            let near = catalogue.iter().find(|f| f.name.contains(name.as_str()) || name.contains(f.name));
            let hint = near.map(|f| format!("did you mean {}? ", f.name)).unwrap_or_default();
            bail!("no fault is called {name}: {hint}`chaos list` shows them all");
        };
        match phase {
            Some(phase) => cards.push((fault, *phase, *hold)),
            None => cards.extend(fault.phases.iter().map(|p| (fault, *p, *hold))),
        }
    }
    Ok(cards)
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and its sequence is written down.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`; the bias of a remainder is nothing for a choice among hundreds.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::catalogue;
    use std::collections::BTreeSet;

    const ALL: Means = Means { disks: true, shim: true, gaps: true, peer: false };

    fn words(seed: u64, mode: Mode, steps: usize) -> Vec<String> {
        let plan = Plan::new(seed, mode, ALL, catalogue()).unwrap();
        plan.take(steps).map(|s| format!("{} {:?} {:?} {}", s.in_words(), s.hold, s.pause, s.seed)).collect()
    }

    #[test]
    fn the_generator_is_the_one_that_is_written_down() {
        let mut rng = SplitMix(0);
        assert_eq!([rng.next(), rng.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        assert_eq!(words(7, Mode::Mixed, 50), words(7, Mode::Mixed, 50));
        assert_ne!(words(7, Mode::Mixed, 50), words(8, Mode::Mixed, 50));
    }

    #[test]
    fn every_fault_comes_before_any_comes_again() {
        let plan = Plan::new(3, Mode::Singles, ALL, catalogue()).unwrap();
        let cards = plan.cards();
        let seen: BTreeSet<String> = plan.take(cards).map(|s| s.in_words()).collect();
        assert_eq!(seen.len(), cards);
    }

    #[test]
    fn a_swarm_has_two_to_four_and_destroys_at_most_one() {
        for step in Plan::new(5, Mode::Swarm, ALL, catalogue()).unwrap().take(300) {
            assert!((2..=4).contains(&step.faults.len()), "{}", step.in_words());
            assert!(step.faults.iter().filter(|f| f.destroys).count() <= 1, "{}", step.in_words());
        }
    }

    #[test]
    fn what_means_nothing_for_a_peer_is_left_out_with_the_reason() {
        let entry = |name: &str, phase| Listed { name: name.to_owned(), phase: Some(phase), hold: Some(Duration::from_secs(45)) };
        let list = vec![entry("isolate-primary", Phase::Drain), entry("isolate-primary", Phase::Steady)];
        let plan = Plan::new(1, Mode::List(list), Means { peer: true, ..ALL }, catalogue()).unwrap();
        assert!(plan.left_out()[0].starts_with("left out: isolate-primary at drain: "), "{:?}", plan.left_out());
        let steps: Vec<Step> = plan.collect();
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].hold, Duration::from_secs(45));
    }

    #[test]
    fn an_unknown_name_is_said_with_the_nearest() {
        let first = catalogue()[0].name;
        let list = Mode::List(vec![Listed { name: format!("{first}x"), phase: None, hold: None }]);
        let error = Plan::new(1, list, ALL, catalogue()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(&format!("did you mean {first}")), "{error}");
    }
}
