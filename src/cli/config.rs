//! Where the cluster is: endpoints, certificates, and the password for `query`.

use super::args::Remote;
use super::client::{Exit, Failure};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `trilithon-cli.toml`. Relative paths are relative to the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CliConfig {
    /// For people; it is not checked.
    pub cluster: Option<String>,
    /// gRPC addresses, tried in this order.
    #[serde(alias = "nodes")]
    pub endpoints: Vec<String>,
    pub tls: Option<Tls>,
    /// For `query` and `dsn`.
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

const NEXT_STEP: &str = "name a node with --endpoint HOST:PORT, or a file with --config; `trilithon demo` starts a cluster here to try";

impl CliConfig {
    /// What the arguments name, else the first file found.
    pub(super) fn find(remote: &Remote) -> Result<CliConfig, Failure> {
        let file = remote.config.clone().or_else(|| places().into_iter().find(|path| path.exists()));
        let mut config = match &file {
            Some(path) => CliConfig::read(path)?,
            None => CliConfig::default(),
        };
        if !remote.endpoints.is_empty() {
            config.endpoints.clone_from(&remote.endpoints);
        }
        if config.endpoints.is_empty() {
            let looked = match file {
                Some(path) => format!("{} names no endpoints", path.display()),
                None => {
                    let places: Vec<String> = places().iter().map(|p| p.display().to_string()).collect();
                    format!("no endpoint is known: none of {} exists", places.join(", "))
                }
            };
            return Err(Failure::new(Exit::Usage, format!("{looked}; {NEXT_STEP}")));
        }
        Ok(config)
    }

    fn read(path: &Path) -> Result<CliConfig, Failure> {
        let wrong = |what: String| Failure::new(Exit::Usage, format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read it: {e}")))?;
        let form = "keys are cluster, endpoints = [\"host:port\"], tls = { ca, cert, key }, user, password_file";
        let mut config: CliConfig = toml::from_str(&text).map_err(|e| wrong(format!("{}; {form}", e.to_string().trim_end())))?;
        let base = path.parent().unwrap_or(Path::new("."));
        if let Some(tls) = &mut config.tls {
            [&mut tls.ca, &mut tls.cert, &mut tls.key].into_iter().for_each(|p| *p = base.join(&*p));
        }
        if let Some(file) = &mut config.password_file {
            *file = base.join(&*file);
        }
        Ok(config)
    }
}

/// In the order of looking.
fn places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(".demo/trilithon-cli.toml"), PathBuf::from("trilithon-cli.toml")];
    if let Some(home) = std::env::var_os("HOME") {
        places.push(Path::new(&home).join(".config/trilithon/cli.toml"));
    }
    places
}
