//! A new database, or an existing one taken over. The server itself never runs here: the roles are made in single-user mode, so
//! nobody can connect before pg_hba.conf is ours.

use super::conf::{REPLICATION_ROLE, SUPERUSER};
use super::durable::write_private;
use super::error::{Error, io};
use super::instance::{Activity, Instance, data_major};
use super::lifecycle::STANDBY_SIGNAL;
use super::secrets::generate_secrets;
use super::session::literal;
use super::swap;
use super::tool::{self, blocking};
use crate::cluster::Secrets;
use crate::types::SystemId;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// Crash recovery of an adopted directory may take long; it is not interrupted earlier than this.
const SINGLE_USER_LIMIT: Duration = Duration::from_secs(3600);

/// Functions that pg_rewind calls over SQL (PostgreSQL documentation, pg_rewind, Notes); with them, `REPLICATION` and the right to
/// ask for a checkpoint, the role that standbys use needs no superuser.
const REWIND_FUNCTIONS: &[&str] = &[
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];

impl Instance {
    /// Initialises the database of a new cluster, with passwords drawn here unless some were set before. Refuses a directory that
    /// holds anything. It is made beside the data directory and takes its place when it is whole: one that broke off is begun anew.
    pub async fn init_db(&self) -> Result<SystemId, Error> {
        let _working = self.begin(Activity::Initialising)?;
        let (layout, run_as) = (self.layout.clone(), self.run_as.clone());
        blocking(move || {
            if data_major(&layout)?.is_some() {
                return Err(Error::AlreadyInitialised { path: layout.pgdata.clone() });
            }
            swap::empty_incoming(&layout, &run_as)
        })
        .await?;
        let install = self.refresh_install().await?;
        let secrets = self.secrets().unwrap_or_else(generate_secrets);
        self.set_secrets(secrets.clone()).await?;
        let pwfile = self.layout.home().join("initdb.password");
        write_private(&pwfile, &secrets.superuser)?;
        self.run_as.own(&pwfile)?;
        let mut command = tool::command(&install, "initdb", &self.run_as, &self.layout.node_dir);
        let incoming = self.layout.incoming();
        command.arg("-D").arg(&incoming).arg("--pwfile").arg(&pwfile);
        command.args(["-U", SUPERUSER, "--encoding=UTF8", "--data-checksums", "--auth=scram-sha-256"]);
        // Sorts by code point: the order of text never changes with the operating system's libraries.
        if install.major >= 17 {
            command.args(["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
        } else {
            command.args(["--locale=C", "--lc-ctype=C.UTF-8"]);
        }
        let made = tool::run(command, "initdb", INITDB_LIMIT).await;
        let _ = std::fs::remove_file(&pwfile);
        made?;
        self.make_roles(&incoming, &secrets, true).await?;
        let layout = self.layout.clone();
        blocking(move || swap::swap(&layout)).await?;
        Ok(self.control_data().await?.system)
    }

    /// Takes over a data directory that exists: checks version, owner and that nothing runs in it, and adds the replication role.
    /// The superuser's password stays what it was.
    pub async fn adopt_directory(&self) -> Result<SystemId, Error> {
        let _working = self.begin(Activity::Initialising)?;
        if self.supervisor.pid().is_some() {
            return Err(Error::StillRunning);
        }
        let pids = self.leftovers().await;
        if !pids.is_empty() {
            return Err(Error::Orphans { pids, path: self.layout.pgdata.clone() });
        }
        let layout = self.layout.clone();
        blocking(move || {
            data_major(&layout)?.ok_or(Error::NoDatabase { path: layout.pgdata.clone() })?;
            // A first start that failed left it; single-user mode refuses to run beside it.
            let signal = layout.pgdata.join("standby.signal");
            if std::fs::read_to_string(&signal).is_ok_and(|text| text == STANDBY_SIGNAL) {
                std::fs::remove_file(&signal).map_err(io("cannot remove", signal))?;
            }
            Ok::<(), Error>(())
        })
        .await?;
        self.refresh_install().await?;
        let secrets = self.secrets().unwrap_or_else(generate_secrets);
        self.set_secrets(secrets.clone()).await?;
        self.make_roles(&self.layout.pgdata, &secrets, false).await?;
        Ok(self.control_data().await?.system)
    }

    /// Single-user mode: one statement per line, nobody listens.
    async fn make_roles(&self, pgdata: &Path, secrets: &Secrets, fresh: bool) -> Result<(), Error> {
        let mut statements = vec![
            format!(
                "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{REPLICATION_ROLE}') THEN \
                 CREATE ROLE {REPLICATION_ROLE}; END IF; END $$"
            ),
            format!("ALTER ROLE {REPLICATION_ROLE} LOGIN REPLICATION NOSUPERUSER PASSWORD {}", literal(&secrets.replication)),
            format!("GRANT pg_checkpoint TO {REPLICATION_ROLE}"),
        ];
        statements.extend(REWIND_FUNCTIONS.iter().map(|f| format!("GRANT EXECUTE ON FUNCTION {f} TO {REPLICATION_ROLE}")));
        if fresh {
            statements.push(format!("COMMENT ON ROLE {REPLICATION_ROLE} IS 'standbys stream, copy and rewind as this role'"));
        }
        let install = self.install();
        let mut command = tool::command(&install, "postgres", &self.run_as, &self.layout.node_dir);
        command.args(["--single", "-j", "-D"]).arg(pgdata);
        command.args(["-c", "password_encryption=scram-sha-256", "-c", "log_statement=none", "-c", "log_min_messages=warning"]);
        command.args(["-c", "synchronous_standby_names=", "-c", "log_min_error_statement=panic", "postgres"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(io("cannot run", "postgres --single"))?;
        let mut input = child.stdin.take().ok_or(Error::Answer("postgres --single"))?;
        // `-j`: a statement ends at a semicolon followed by an empty line.
        let script: String = statements.iter().map(|s| format!("{s};\n\n")).collect();
        input.write_all(script.as_bytes()).await.map_err(io("cannot write to", "postgres --single"))?;
        drop(input);
        let ended = tokio::time::timeout(SINGLE_USER_LIMIT, child.wait_with_output()).await;
        let output = ended
            .map_err(|_| Error::Timeout { what: "postgres --single", after: SINGLE_USER_LIMIT })?
            .map_err(io("cannot run", "postgres --single"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        // It goes on after a failed statement and exits with 0.
        if output.status.success() && !stderr.contains("ERROR") && !stderr.contains("FATAL") {
            return Ok(());
        }
        Err(Error::Tool { tool: "postgres --single", status: output.status.to_string(), output: tool::last_words(&stderr, "") })
    }
}
