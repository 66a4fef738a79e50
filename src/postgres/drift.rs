//! Notices when somebody changed a protected setting, and restores it.

use super::conf::{Drift, strip_auto_conf};
use super::durable::write_atomic;
use super::error::{Error, io};
use super::instance::{Files, Instance, QUERY_LIMIT};
use super::process::{lock, rotate_log};
use super::session::literal;
use super::tool::blocking;
use super::user::RunAs;
use std::path::Path;
use std::sync::Arc;

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
        let names = self.sync_names().value();
        let (layout, run_as) = (self.layout.clone(), self.run_as.clone());
        let (model, files) = (Arc::clone(&self.model), Arc::clone(&self.files));
        // Before the first start the files are not there yet, which is nobody's doing.
        let runs = self.supervisor.pid().is_some();
        let mut found = blocking(move || -> Result<Vec<Drift>, Error> {
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
            Ok(found)
        })
        .await?;
        if found.is_empty() && self.supervisor.pid().is_some() {
            found = self.live_drift(&names).await.unwrap_or_default();
        }
        if found.iter().any(|d| d.name == "synchronous_standby_names") {
            // It may have been empty for a moment: that commits wait has to be proved anew.
            lock(&self.model).waits = false;
        }
        Ok(found)
    }

    /// Values in force that differ from the files: a reload was lost, or a file came from somewhere else.
    async fn live_drift(&self, names: &str) -> Result<Vec<Drift>, Error> {
        let sql = format!("SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names' AND setting <> {}", literal(names));
        let rows = self.session().await?.rows(&sql, QUERY_LIMIT).await?;
        let drift =
            |found: &str| Drift { name: "synchronous_standby_names".to_owned(), found: found.to_owned(), expected: names.to_owned() };
        Ok(rows.iter().filter_map(|r| r.get(0)).map(drift).collect())
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
    let line = config.lines().find(|l| l.starts_with(&format!("{name} = ")))?;
    Some(line.split_once(" = ")?.1.trim_matches('\'').to_owned())
}
