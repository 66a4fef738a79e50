//! The catalogue of faults, and how each is aimed, injected, proved and mended.
//!
//! ```text
//!   catalogue() ─► Fault ─► inject(fault, ctx) ─► Injected ─► proof(): evidence that it took hold ─► heal()
//!                             │
//!      network  process  clock  disk  damage  postgres  operations  clients  together      tables, one fault an entry
//!                             │
//!      lines  procs  limits  volume  sessions  orders  flap  toil  probe  evidence  signs    primitives
//! ```
//! Each family's file begins with its table, which reads as documentation. Primitives register how to mend before they break and what
//! would prove that they did. A fault without evidence is inconclusive: nothing may be concluded from a run in which it did not take
//! hold. What the program must do about a fault is no evidence for it, or a program that does wrong would only make runs inconclusive:
//! that is expected apart ([`Injected::unmet`]), or told by an error of its own ([`Misbehaved`]).
//! Deliberately absent: when a fault strikes and for how long (the run's plan), and any verdict about what it did (the checkers).

mod administrators;
mod aim;
mod clients;
mod clock;
mod command;
mod damage;
mod disk;
mod evidence;
mod flap;
mod injected;
mod kinds;
mod ledger;
mod limits;
mod lines;
mod misbehaved;
mod network;
mod operations;
mod orders;
mod peers;
mod postgres;
mod probe;
mod process;
mod procs;
mod said;
mod sessions;
mod signs;
mod together;
mod toil;
mod try_one;
mod volume;

pub use command::{FLAGS, command};
pub use injected::{Ctx, Injected, Scale, inject};
pub use kinds::{Expected, Fault, Needs, Phase};
pub use misbehaved::Misbehaved;
pub use peers::meaningless;

use std::sync::LazyLock;

/// Every fault there is, family by family.
#[must_use]
pub fn catalogue() -> &'static [Fault] {
    static ALL: LazyLock<Vec<Fault>> = LazyLock::new(|| {
        let families = [
            network::FAULTS,
            process::FAULTS,
            clock::FAULTS,
            disk::FAULTS,
            damage::FAULTS,
            postgres::FAULTS,
            operations::FAULTS,
            administrators::FAULTS,
            clients::FAULTS,
            together::FAULTS,
        ];
        families.concat()
    });
    &ALL
}

/// The fault called `name`; `None`: there is no such.
#[must_use]
pub fn named(name: &str) -> Option<&'static Fault> {
    catalogue().iter().find(|fault| fault.name == name)
}

#[cfg(test)]
mod tests {
    use super::kinds::Family;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_catalogue_is_whole_and_each_entry_documents_itself() {
        let all = catalogue();
        assert!(all.len() >= 70, "{} faults", all.len());
        let names: BTreeSet<&str> = all.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), all.len(), "a name is used twice");
        for fault in all {
            let kebab = fault.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            assert!(kebab, "{} is not kebab-case", fault.name);
            assert!(fault.about.ends_with('.') && fault.about.len() > 20, "{}: {:?}", fault.name, fault.about);
            assert!(!fault.phases.is_empty() && fault.hold.0 <= fault.hold.1, "{}", fault.name);
        }
    }

    #[test]
    fn every_family_and_every_phase_has_faults() {
        let families: BTreeSet<Family> = catalogue().iter().map(|f| f.family).collect();
        assert_eq!(families.len(), 9);
        for phase in Phase::ALL {
            let count = catalogue().iter().filter(|f| f.phases.contains(phase)).count();
            assert!(count >= 5, "only {count} faults strike in {}", phase.word());
        }
    }
}
