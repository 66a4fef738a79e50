//! Records made by hand for the tests, and one drawn from a seed that looks like a real run, to look at the page with.

use crate::record::{At, FaultRecord, Outage, Outcome, Record, Reign, Sample, Steps, Verdict};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const SITES: [&str; 3] = ["dc1", "dc2", "dc3"];
const SECOND: u64 = 1_000_000;

/// Three faults in a minute; all took hold, all checkers passed.
pub fn small() -> Record {
    let fault = |name: &str, from: u64, outage_ms: u64| FaultRecord {
        name: name.to_owned(),
        aim: "primary (dc1)".to_owned(),
        phase: "steady".to_owned(),
        from: At(from * SECOND),
        to: At((from + 5) * SECOND),
        missed: None,
        took_hold: Some("412 packets dropped".to_owned()),
        outage_ms: Some(outage_ms),
        writable_after_heal_ms: Some(20),
        redundant_after_heal_ms: Some(3_100),
        steps: None,
    };
    Record {
        command: "chaos replay --seed 7".to_owned(),
        system: String::new(),
        seed: 7,
        began: "2030-01-01T00:00:00Z".to_owned(),
        duration: At(60 * SECOND),
        versions: BTreeMap::from([("trilithon".to_owned(), "0.1.0".to_owned())]),
        world: "design".to_owned(),
        faults: vec![fault("isolate_primary", 5, 2_410), fault("freeze_datacenter", 25, 3_020), fault("isolate_primary", 45, 1_900)],
        primaries: vec![reign("dc1", 1, 0, 7), reign("dc2", 2, 8, 60)],
        outages: vec![Outage { from: At(5 * SECOND), to: At(7_410_000) }],
        samples: (0..60).map(|s| sample(s, "dc1", 100, 8.0)).collect(),
        verdicts: vec![verdict("set", "6,000 acknowledged, all present once"), verdict("bank", "the sum stayed")],
        notes: vec!["a note".to_owned()],
    }
}

fn reign(node: &str, epoch: u64, from: u64, to: u64) -> Reign {
    Reign { node: node.to_owned(), epoch, timeline: u32::try_from(epoch).unwrap(), from: At(from * SECOND), to: At(to * SECOND) }
}

fn sample(second: u64, site: &str, acknowledged: u32, p50_ms: f32) -> Sample {
    Sample { at: At(second * SECOND), site: site.to_owned(), acknowledged, refused: 0, unknown: 0, p50_ms, p99_ms: p50_ms * 4.0 }
}

fn verdict(checker: &str, summary: &str) -> Verdict {
    let counts = BTreeMap::from([("lost".to_owned(), 0), ("acknowledged".to_owned(), 6_000)]);
    Verdict { checker: checker.to_owned(), outcome: Outcome::Passed, summary: summary.to_owned(), counts, witness: Vec::new() }
}

/// A run of `minutes` drawn from `seed`; `slowness` stretches its outages.
pub fn drawn(seed: u64, minutes: u64, slowness: f64) -> Record {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut record = Record { duration: At(minutes * 60 * SECOND), seed, ..small() };
    record.command = format!("chaos run --minutes {minutes} --seed {seed} --world design");
    record.world = "design: dc1–dc2 15 ms, dc1–dc3 and dc2–dc3 40 ms round trip, with jitter".to_owned();
    for (program, version) in [("postgres", "15.18"), ("kernel", "6.1.0"), ("trilithon", "0.1.0 (9bd643b)")] {
        record.versions.insert(program.to_owned(), version.to_owned());
    }
    draw_faults(&mut record, &mut rng, slowness);
    draw_samples(&mut record, &mut rng);
    record.verdicts = verdicts();
    record
}

const KINDS: [(&str, &str, u64); 12] = [
    ("isolate_primary", "steady", 2_600),
    ("kill_datacenter", "steady", 2_300),
    ("freeze_datacenter", "election", 3_100),
    ("kill_postmaster", "steady", 1_150),
    ("isolate_sync_standby", "steady", 240),
    ("wan_loss_30_percent", "drain", 420),
    ("disk_fsync_eio", "promotion", 1_900),
    ("postgres_port_cut", "rewind", 2_750),
    ("flapping_link", "member_change", 4_300),
    ("power_loss_of_all", "base_backup", 5_600),
    ("walreceiver_killed", "steady", 0),
    ("one_way_all_to_primary", "promotion", 2_200),
];

fn draw_faults(record: &mut Record, rng: &mut SmallRng, slowness: f64) {
    (record.faults, record.primaries, record.outages) = (Vec::new(), Vec::new(), Vec::new());
    let (mut at, mut epoch, mut since, mut primary) = (12 * SECOND, 1u64, 0, 0usize);
    while at + 45 * SECOND < record.duration.0 {
        let (name, phase, typical) = KINDS[rng.random_range(0..KINDS.len())];
        let outage = (typical as f64 * slowness * rng.random_range(0.75..1.5)) as u64;
        let lasts = rng.random_range(4..16) * SECOND;
        let end = At(at + outage * 1_000);
        record.faults.push(FaultRecord {
            name: name.to_owned(),
            aim: format!("primary ({})", SITES[primary]),
            phase: phase.to_owned(),
            from: At(at),
            to: At(at + lasts),
            missed: None,
            took_hold: rng.random_bool(0.96).then(|| format!("dropped {} packets dc{}→all", rng.random_range(90..4_000), primary + 1)),
            outage_ms: Some(outage),
            writable_after_heal_ms: Some(rng.random_range(5..180)),
            redundant_after_heal_ms: Some(rng.random_range(1_200..19_000)),
            steps: (outage > 1_000).then(|| steps(at, outage, rng)),
        });
        if outage > 0 {
            record.outages.push(Outage { from: At(at), to: end });
        }
        if outage > 1_000 {
            let old = Reign { to: At(at), ..reign(SITES[primary], epoch, 0, 0) };
            record.primaries.push(Reign { from: At(since), ..old });
            (epoch, since, primary) = (epoch + 1, end.0, (primary + rng.random_range(1..3)) % 3);
        }
        at += lasts.max(outage * 1_000) + rng.random_range(6..24) * SECOND;
    }
    let last = Reign { from: At(since), to: record.duration, ..reign(SITES[primary], epoch, 0, 0) };
    record.primaries.push(last);
}

fn steps(at: u64, outage_ms: u64, rng: &mut SmallRng) -> Steps {
    let share = |part: f64| Some(At(at + (outage_ms as f64 * 1_000.0 * part) as u64));
    let noticed = rng.random_range(0.4..0.6);
    Steps { noticed: share(noticed), elected: share(noticed + 0.08), promoted: share(noticed + 0.25), first_write: share(1.0) }
}

fn draw_samples(record: &mut Record, rng: &mut SmallRng) {
    record.samples.clear();
    for second in 0..record.duration.0 / SECOND {
        let (from, to) = (second * SECOND, (second + 1) * SECOND);
        let silent: u64 = record.outages.iter().map(|o| o.to.0.min(to).saturating_sub(o.from.0.max(from))).sum();
        let share = 1.0 - silent as f64 / SECOND as f64;
        for (site, (rate, base)) in SITES.iter().zip([(420.0, 16.0), (390.0, 17.5), (230.0, 43.0)]) {
            let acknowledged = (rate * share * rng.random_range(0.85..1.1)) as u32;
            let p50_ms = if acknowledged == 0 { f32::NAN } else { base * rng.random_range(0.95..1.2) };
            let p99_ms = p50_ms * rng.random_range(1.6..3.0) + if share < 1.0 { 1_800.0 } else { 0.0 };
            let refused = if share < 1.0 { rng.random_range(0..40) } else { 0 };
            let unknown = if share < 0.5 { rng.random_range(0..4) } else { 0 };
            record.samples.push(Sample { at: At(from), site: (*site).to_owned(), acknowledged, refused, unknown, p50_ms, p99_ms });
        }
    }
}

fn verdicts() -> Vec<Verdict> {
    let mut verdicts = vec![
        verdict("list-append", "41,223 transactions, strict-serialisable on the writer path"),
        verdict("set", "312,804 acknowledged, all present once on every node"),
        verdict("bank", "the sum stayed 10,000 in 18,442 snapshots"),
        verdict("contract", "4,120 errors judged, none lied"),
        verdict("dual-primary", "no two nodes acknowledged writes of overlapping epochs"),
        verdict("amcheck", "3 nodes clean"),
    ];
    verdicts.push(Verdict {
        checker: "session".to_owned(),
        outcome: Outcome::Inconclusive,
        summary: "dc3 made only 41 of 500 sessions".to_owned(),
        ..Verdict::default()
    });
    verdicts
}

/// [`drawn`], with a loss that a checker found and names that try to break out of the markup.
pub fn failed() -> Record {
    let mut record = drawn(11, 10, 1.0);
    record.verdicts[1] = Verdict {
        checker: "set".to_owned(),
        outcome: Outcome::Failed,
        summary: "1 of 312,804 acknowledged writes is on no node".to_owned(),
        counts: BTreeMap::from([("acknowledged".to_owned(), 312_804), ("lost".to_owned(), 1), ("duplicated".to_owned(), 0)]),
        witness: vec![
            "04:12.381  dc1 session 14  insert 88213            → acknowledged by dc1 (epoch 6)".to_owned(),
            "04:12.402  fault #9 freeze_datacenter primary (dc1)".to_owned(),
            "04:15.117  dc2 promoted (epoch 7, timeline 7)".to_owned(),
            "10:00.000  final read: 88213 on none of dc1, dc2, dc3".to_owned(),
        ],
    };
    record.faults[0].name = "<script>alert(1)</script>".to_owned();
    record.faults[0].took_hold = Some("\"><img src=x onerror=alert(1)>&".to_owned());
    record
}
