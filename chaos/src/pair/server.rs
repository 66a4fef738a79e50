//! One PostgreSQL of the pair: made, copied, started, and copied anew when the other one has taken over.

use super::look::View;
use super::{LOOK_EVERY, PORTS, PairArgs};
use anyhow::{Context as _, Result, bail};
use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use tokio::process::Command;
use tokio::time::sleep;

const SETTINGS: &str = "listen_addresses = '*'\nshared_buffers = '64MB'\nmax_wal_size = '256MB'\nwal_keep_size = '512MB'\n\
                        wal_log_hints = on\nmax_connections = 200\nsynchronous_standby_names = ''\n";
const HBA: &str = "local all all trust\nhost all all all trust\nhost replication all all trust\n";

/// Keep a server running; `first` begins as the primary.
pub async fn tend(args: PairArgs, view: Rc<RefCell<View>>, first: bool) -> Result<()> {
    let (me, other) = if first { (0, 1) } else { (1, 0) };
    let pgdata = args.dir.join("pgdata");
    loop {
        sleep(LOOK_EVERY).await;
        let primary = view.borrow().primary();
        let runs = said_yes(&args, "pg_ctl", &["status"]).await;
        let deposed = primary == Some(other) && (!runs || view.borrow().said(me).is_some_and(|said| said.is_primary));
        let is_standby = pgdata.join("standby.signal").exists();
        let done = if runs && deposed {
            run(&args, "pg_ctl", &["stop", "-m", "immediate"]).await
        } else if runs {
            Ok(())
        } else if !pgdata.join("PG_VERSION").exists() && first && primary.is_none() {
            create(&args).await
        } else if deposed && !is_standby {
            copy(&args, &view, other).await
        } else if pgdata.join("PG_VERSION").exists() {
            start(&args).await
        } else {
            Ok(())
        };
        if let Err(error) = done {
            anstream::eprintln!("{error:#}");
        }
    }
}

async fn create(args: &PairArgs) -> Result<()> {
    run(args, "initdb", &["-U", "postgres", "--auth=trust", "--data-checksums", "--no-sync"]).await?;
    let pgdata = args.dir.join("pgdata");
    let file = pgdata.join("postgresql.conf");
    let sockets = format!("port = {}\nunix_socket_directories = '{}'\n", PORTS.postgres, args.dir.display());
    let text = fs::read_to_string(&file).context("postgresql.conf")?;
    fs::write(&file, text + SETTINGS + &sockets).context("postgresql.conf")?;
    fs::write(pgdata.join("pg_hba.conf"), HBA).context("pg_hba.conf")?;
    run(args, "initdb", &["--sync-only"]).await?;
    start(args).await
}

/// As people do it: everything away, and a new copy.
async fn copy(args: &PairArgs, view: &Rc<RefCell<View>>, other: usize) -> Result<()> {
    let pgdata = args.dir.join("pgdata");
    if pgdata.exists() {
        fs::remove_dir_all(&pgdata).with_context(|| format!("cannot remove {}", pgdata.display()))?;
    }
    let host = view.borrow().peer(other).map(|peer| peer.address.to_string()).context("no other")?;
    let copied = run(args, "pg_basebackup", &["-h", &host, "-U", "postgres", "-R", "-X", "stream", "-c", "fast"]).await;
    if copied.is_err() && pgdata.exists() {
        fs::remove_dir_all(&pgdata).with_context(|| format!("cannot remove {}", pgdata.display()))?;
    }
    copied?;
    let own = format!("{}unix_socket_directories = '{}'\n", fs::read_to_string(pgdata.join("postgresql.conf"))?, args.dir.display());
    fs::write(pgdata.join("postgresql.conf"), own)?;
    start(args).await
}

async fn start(args: &PairArgs) -> Result<()> {
    let log = args.dir.join("postgres.log").display().to_string();
    run(args, "pg_ctl", &["start", "-W", "-l", &log]).await
}

fn command(args: &PairArgs, program: &str, words: &[&str]) -> Result<Command> {
    let (uid, gid) = postgres()?;
    let mut command = Command::new(args.pg_bin.join(program));
    command.args(words).arg("-D").arg(args.dir.join("pgdata")).uid(uid).gid(gid).current_dir(&args.dir);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

async fn run(args: &PairArgs, program: &str, words: &[&str]) -> Result<()> {
    let status = command(args, program, words)?.status().await.with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} {}: {status}", words.join(" "));
    }
    Ok(())
}

async fn said_yes(args: &PairArgs, program: &str, words: &[&str]) -> bool {
    match command(args, program, words) {
        Ok(mut command) => command.stderr(Stdio::null()).status().await.is_ok_and(|status| status.success()),
        Err(_) => false,
    }
}

/// PostgreSQL refuses to run as root: user and group of `postgres`.
fn postgres() -> Result<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let line = text.lines().find_map(|line| line.strip_prefix("postgres:")).context("there is no user postgres")?;
    let mut fields = line.split(':').skip(1).map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) => Ok((uid, gid)),
        _ => bail!("the user postgres has no number"),
    }
}

/// Everybody may walk down.
pub fn open_up(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).with_context(|| format!("cannot open up {}", dir.display()))
}

/// Let the user `postgres` have it.
pub fn give(dir: &Path) -> Result<()> {
    let (uid, gid) = postgres()?;
    std::os::unix::fs::chown(dir, Some(uid), Some(gid)).with_context(|| format!("cannot give {} away", dir.display()))
}
