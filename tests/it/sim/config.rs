//! What one simulated world is made of, drawn from its seed.

use super::mutant::Mutant;
use super::rng::Rng;
use trilithon::cluster::{Durability, Settings};

/// Options of one world. Printed with the seed on failure.
#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    pub data: usize,
    pub witnesses: usize,
    pub settings: Settings,
    /// One way, between two datacenters, in milliseconds.
    pub latency: (u64, u64),
    /// Mean gap between faults; zero: none.
    pub fault_gap: u64,
    /// Mean gap between writes.
    pub write_gap: u64,
    /// Mean gap between an administrator's acts; zero: none.
    pub admin_gap: u64,
    /// Length of the phase with faults.
    pub duration: u64,
    /// Disks may be lost.
    pub wipes: bool,
    /// A paused machine may miss the pause in its own clock: the lease is void there, sealing must do.
    pub unseen_pauses: bool,
    /// Failovers with accepted loss may be ordered.
    pub accept_loss: bool,
    /// Fixed durations and no chance failures: for transcripts.
    pub scripted: bool,
    pub mutant: Option<Mutant>,
}

impl Config {
    /// The world of `seed`.
    pub fn draw(seed: u64, mutant: Option<Mutant>) -> Config {
        let mut rng = Rng::new(seed ^ 0x5EED_C0DE);
        let (data, witnesses) = rng.pick(&[(3, 0), (3, 0), (3, 0), (2, 1), (2, 1), (4, 1), (4, 0), (5, 0)]);
        let mut settings =
            Settings { lease_ttl_ms: rng.pick(&[3_000, 3_000, 5_000, 10_000]), strict: !rng.chance(250), ..Settings::default() };
        settings.durability =
            rng.pick(&[Durability::Quorum, Durability::Quorum, Durability::Quorum, Durability::Quorum, Durability::All, Durability::Async]);
        settings.acks = if data > 3 && rng.chance(500) { 2 } else { 1 };
        settings.max_lag_bytes = 20_000;
        settings.promotion_timeout_ms = rng.pick(&[10_000, 30_000]);
        let hectic = rng.chance(400);
        Config {
            seed,
            data,
            witnesses,
            latency: rng.pick(&[(1, 3), (5, 15), (20, 60)]),
            fault_gap: if hectic { 8_000 } else { 40_000 },
            write_gap: rng.pick(&[300, 1_000, 3_000]),
            admin_gap: rng.pick(&[0, 120_000, 40_000]),
            duration: 20 * 60_000,
            // A primary that may go on alone may be the only holder: its disk is outside the promise then.
            wipes: settings.strict && settings.durability != Durability::Async && rng.chance(300),
            unseen_pauses: settings.durability != Durability::Async && settings.strict && rng.chance(250),
            accept_loss: rng.chance(100),
            scripted: false,
            settings,
            mutant,
        }
    }

    /// A calm world for transcripts: fixed durations, no faults but those of the script.
    pub fn scripted() -> Config {
        Config {
            seed: 1,
            data: 3,
            witnesses: 0,
            settings: Settings::default(),
            latency: (5, 5),
            fault_gap: 0,
            write_gap: 0,
            admin_gap: 0,
            duration: 0,
            wipes: false,
            unseen_pauses: false,
            accept_loss: false,
            scripted: true,
            mutant: None,
        }
    }
}
