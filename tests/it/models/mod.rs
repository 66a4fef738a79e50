//! Exhaustive models: the pure core in every order of events that fits in small bounds, checked by the crate `stateright`.
//!
//! ```text
//!   Model ─► actions(state) ─► next_state ──► cluster::apply · ha::decide · ha::converge · HolderLease · LeaseWatch
//!              ▲                    │
//!              └──── every state ◄──┘──► properties: `always` ones hold in each, `sometimes` ones are seen once
//! ```
//! The simulator goes deep and by chance, these go wide and leave nothing out. Nothing of the core is written again here: a model is only
//! the world around it. [`durability`] has no clocks, and a lease that ends whenever it likes: sealing and rules alone must save every
//! acknowledged write. [`lease`] has clocks that drift and answers that are late, and nothing but the lease.
//!
//! A model proves something only where it could fail: for each there is a list of seeded bugs (`sim::mutant`) for which the checker must
//! find a counterexample. `TRILITHON_MODELS=large` widens the bounds (`make sim-release`).

mod durability;
mod lease;
mod server;
mod states;

use stateright::{Checker, Expectation, Model};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use trilithon::telemetry::Clock;

/// Wider bounds, for minutes rather than seconds.
pub fn large() -> bool {
    std::env::var("TRILITHON_MODELS").is_ok_and(|size| size == "large")
}

/// Every state within the bounds; a broken property panics with the shortest way to it.
pub fn holds<M>(name: &str, bounds: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let clock = Clock::default();
    let begun = clock.now();
    let properties: Vec<(&'static str, Expectation)> = model.properties().into_iter().map(|p| (p.name, p.expectation)).collect();
    let checker = model.checker().threads(threads()).spawn_bfs().join();
    println!(
        "| {name} | {bounds} | {} | {} | {:.1} |",
        checker.unique_state_count(),
        checker.max_depth(),
        clock.now().since(begun).as_secs_f64()
    );
    for (property, expectation) in properties {
        let found = checker.discovery(property);
        match expectation {
            Expectation::Always | Expectation::Eventually => {
                let way = found.map(|path| path.into_actions().iter().map(|a| format!("  {a:?}\n")).collect::<String>());
                assert!(way.is_none(), "{name}: `{property}` is broken by\n{}", way.unwrap_or_default());
            }
            Expectation::Sometimes => assert!(found.is_some(), "{name}: `{property}` never happens: the model does not reach that far"),
        }
    }
}

/// A seeded bug: which properties it breaks, with the length of the shortest way to each.
pub fn breaks<M>(model: M) -> BTreeSet<(&'static str, usize)>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let always: BTreeSet<&'static str> =
        model.properties().into_iter().filter(|p| p.expectation == Expectation::Always).map(|p| p.name).collect();
    let first = stateright::HasDiscoveries::AnyFailures;
    let checker = model.checker().threads(threads()).finish_when(first).spawn_bfs().join();
    let found = checker.discoveries();
    found.into_iter().filter(|(name, _)| always.contains(name)).map(|(name, path)| (name, path.into_actions().len())).collect()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
