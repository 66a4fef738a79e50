//! Files made here: never overwritten, private where they hold secrets. Also `config init` and `config check`.

use super::args::{ConfigCheckArgs, ConfigInitArgs};
use super::client::{Exit, Failure};
use super::render::{BOLD, GOOD};
use crate::config::{Config, example};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Create `path` with this mode; refuse where it exists.
pub(super) fn create(path: &Path, content: &str, mode: u32) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let wrong = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => {
            Failure::new(Exit::Refused, format!("{} exists and is not overwritten; move it aside, or choose another name", path.display()))
        }
        _ => Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display())),
    };
    let mut file = opened.map_err(wrong)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)
}

pub(super) fn config_init(args: &ConfigInitArgs) -> Result<(), Failure> {
    let text = example(&args.name);
    match &args.file {
        None => anstream::print!("{text}"),
        Some(path) => {
            create(path, &text, 0o644)?;
            anstream::println!("wrote {}; edit node.name and cluster.peers, then run `trilithon config check {0}`", path.display());
        }
    }
    Ok(())
}

pub(super) fn config_check(args: &ConfigCheckArgs) -> Result<(), Failure> {
    let config = Config::load(&args.file).map_err(|errors| Failure::new(Exit::Failed, errors.to_string()))?;
    let peers: Vec<&str> = config.cluster.peers.iter().map(|p| p.name.as_str()).collect();
    let (name, cluster) = (&config.node.name, &config.cluster.name);
    anstream::println!("{GOOD}good{GOOD:#} {BOLD}{name}{BOLD:#} in cluster {cluster} with {}", peers.join(", "));
    anstream::println!("  gRPC {}  HTTP {}", config.api.grpc, config.api.http);
    anstream::println!("  proxy: auto {}  primary {}  standby {}", config.proxy.auto, config.proxy.primary, config.proxy.standby);
    anstream::println!("  Postgres {}, data in {}", config.postgres.advertise, config.pgdata().display());
    Ok(())
}
