//! SIGHUP: read the configuration again. The log's filter changes at once; whatever else differs is named, for a restart.

use crate::config::Config;
use crate::telemetry::LogHandle;
use std::path::{Path, PathBuf};

/// Remembers what the node runs with.
pub struct Reloader {
    path: PathBuf,
    running: Config,
    log: LogHandle,
}

impl Reloader {
    #[must_use]
    pub fn new(path: &Path, running: Config, log: LogHandle) -> Reloader {
        Reloader { path: path.to_owned(), running, log }
    }

    /// A file with mistakes changes nothing.
    pub fn reload(&mut self) {
        let new = match Config::load(&self.path) {
            Ok(new) => new,
            Err(errors) => {
                tracing::error!(config = %self.path.display(), %errors, "configuration not reloaded: the node goes on with the one it has");
                return;
            }
        };
        match self.log.set_filter(&new.telemetry.level) {
            Ok(()) => self.running.telemetry.level.clone_from(&new.telemetry.level),
            Err(error) => tracing::error!(%error, "the log's filter was not changed"),
        }
        let restart = differing(&self.running, &new);
        if restart.is_empty() {
            tracing::info!(level = %new.telemetry.level, "configuration reloaded");
        } else {
            tracing::warn!(sections = %restart.join(", "), "configuration reloaded; changes in these sections need a restart of the node");
        }
        if self.running.settings != new.settings {
            tracing::warn!("[ha], postgres.parameters and postgres.hba only seed a new cluster: use `trilithon config set`");
        }
    }
}

/// Sections that cannot change while the node runs.
fn differing(old: &Config, new: &Config) -> Vec<&'static str> {
    let sections = [
        ("node", old.node != new.node),
        ("cluster", old.cluster != new.cluster),
        ("postgres", old.postgres != new.postgres),
        ("consensus", old.consensus != new.consensus),
        ("proxy", old.proxy != new.proxy),
        ("api", old.api != new.api),
        ("telemetry", old.telemetry != new.telemetry),
    ];
    sections.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
}
