//! Notices when somebody changed a protected setting, and restores it.

use super::conf::{Drift, strip_auto_conf};
use super::durable::write_atomic;
use super::error::{Error, io};
use super::instance::{Activity, Files, Instance, QUERY_LIMIT};
use super::process::{lock, rotate_log};
use super::session::literal;
use super::tool::blocking;
use super::user::RunAs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_postgres::SimpleQueryRow;

const SYNC_NAMES: &str = "synchronous_standby_names";
/// Of these the server is asked, too.
const IN_FORCE: [&str; 3] = [SYNC_NAMES, "primary_conninfo", "primary_slot_name"];
/// Longer than a server takes to read its files again.
const RELOAD_MOMENT: Duration = Duration::from_millis(500);

impl Instance {
    /// Protected settings that were found changed since the last call; the files are restored and the server was told. When
    /// `synchronous_standby_names` is among them the rule counts no longer as proved: apply it again. Call it at each tick; it also
    /// keeps the log short.
    pub async fn drift(&self) -> Result<Vec<Drift>, Error> {
        let found = self.restore_protected().await?;
        if !found.is_empty() && self.supervisor.pid().is_some() {
            self.reload().await?;
        }
        let layout = self.layout.clone();
        blocking(move || rotate_log(&layout)).await?;
        Ok(found)
    }

    /// Restores our files and takes protected names out of ALTER SYSTEM's; the caller reloads.
    pub(super) async fn restore_protected(&self) -> Result<Vec<Drift>, Error> {
        let (layout, run_as) = (self.layout.clone(), self.run_as.clone());
        let (model, files) = (Arc::clone(&self.model), Arc::clone(&self.files));
        // Before the first start the files are not there yet, which is nobody's doing.
        let runs = self.supervisor.pid().is_some();
        let (mut found, config) = blocking(move || -> Result<(Vec<Drift>, String), Error> {
            let _writing = lock(&files);
            let rendered = Files::render(&layout, &run_as, &lock(&model))?;
            let mut found = Vec::new();
            let ours =
                [(layout.config_file(), &rendered.config), (layout.hba_file(), &rendered.hba), (layout.ident_file(), &rendered.ident)];
            for (path, expected) in ours {
                let state = match std::fs::read_to_string(&path) {
                    Ok(text) if text == *expected => continue,
                    Err(_) if !runs => continue,
                    Ok(_) => "edited",
                    Err(_) => "unreadable",
                };
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.push(Drift { name, found: state.to_owned(), expected: "as Trilithon wrote it".to_owned() });
            }
            for (name, value) in strip(&layout.pgdata.join("postgresql.auto.conf"), &run_as)? {
                let expected = expected(&rendered.config, &name).unwrap_or_else(|| "set by Trilithon".to_owned());
                found.push(Drift { name, found: value, expected });
            }
            if !found.is_empty() {
                rendered.write(&layout, &run_as)?;
            }
            Ok((found, rendered.config))
        })
        .await?;
        if found.is_empty() && self.supervisor.pid().is_some() {
            found = self.live_drift(&config).await.unwrap_or_default();
        }
        if found.iter().any(|d| d.name == SYNC_NAMES) {
            // It may have been empty for a moment: that commits wait has to be proved anew.
            lock(&self.model).waits = false;
        }
        Ok(found)
    }

    /// Values in force that differ from the file: a reload was lost, as where the node died between the two, or the file came from
    /// somewhere else. Where a standby streams from is asked twice, since a reload takes a moment, and an action is not to be mistaken.
    async fn live_drift(&self, config: &str) -> Result<Vec<Drift>, Error> {
        let found = self.in_force_otherwise(config).await?;
        if found.is_empty() || found.iter().any(|d| d.name == SYNC_NAMES) {
            return Ok(found);
        }
        sleep(RELOAD_MOMENT).await;
        let found = self.in_force_otherwise(config).await?;
        let idle = *self.activity.borrow() == Activity::Idle;
        Ok(if idle { found } else { Vec::new() })
    }

    async fn in_force_otherwise(&self, config: &str) -> Result<Vec<Drift>, Error> {
        let ours = IN_FORCE.iter().filter_map(|name| Some((*name, expected(config, name)?)));
        let ours: Vec<String> = ours.map(|(name, value)| format!("({}, {})", literal(name), literal(&value))).collect();
        let sql = format!(
            "SELECT s.name, s.setting, ours.value FROM pg_settings s JOIN (VALUES {}) AS ours (name, value) USING (name) \
             WHERE s.setting <> ours.value",
            ours.join(", ")
        );
        let rows = self.session().await?.rows(&sql, QUERY_LIMIT).await?;
        let text = |row: &SimpleQueryRow, at: usize| row.get(at).unwrap_or_default().to_owned();
        Ok(rows.iter().map(|row| Drift { name: text(row, 0), found: text(row, 1), expected: text(row, 2) }).collect())
    }
}

/// Takes protected settings out of the file that ALTER SYSTEM writes.
pub(super) fn strip(path: &Path, run_as: &RunAs) -> Result<Vec<(String, String)>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io("cannot read", path)(e)),
    };
    let Some((kept, taken)) = strip_auto_conf(&text) else { return Ok(Vec::new()) };
    write_atomic(path, &kept, 0o600, Some(run_as))?;
    Ok(taken)
}

/// The value of `name` in our own file.
fn expected(config: &str, name: &str) -> Option<String> {
    let quoted = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
    let value = quoted.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or(quoted);
    Some(value.replace("''", "'").replace("\\\\", "\\"))
}
