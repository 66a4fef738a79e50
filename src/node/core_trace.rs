//! `telemetry.core_trace`: everything that this node's core is asked and answers, one file per process, for `trilithon replay`.

use crate::config::Config;
use crate::ha::{Entry, Scribe};
use crate::telemetry::{Recorder, Render, wall_clock};
use anyhow::Context as _;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

struct Writing(Scribe);

impl Render<Entry> for Writing {
    fn entry(&mut self, entry: Entry) -> String {
        self.0.lines(entry)
    }

    fn dropped(&mut self, entries: u64) -> String {
        self.0.dropped(entries)
    }
}

/// Begin this process's file, where the configuration names a folder.
pub fn start(config: &Config) -> anyhow::Result<Option<Recorder<Entry>>> {
    let Some(dir) = &config.telemetry.core_trace else { return Ok(None) };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot create telemetry.core_trace {}", dir.display()))?;
    let name = format!("core-{}-{}-{}.jsonl", config.node.name, wall_clock().as_millis(), std::process::id());
    let path = dir.join(name);
    let recorder = Recorder::start(&path, Writing(Scribe::default())).with_context(|| format!("cannot write {}", path.display()))?;
    tracing::info!(file = %path.display(), "writing down what the core is asked and answers");
    Ok(Some(recorder))
}
