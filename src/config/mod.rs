//! Configuration of one node: TOML file and environment in, typed [`Config`] out.
//!
//! ```text
//!   file ─┐
//!         ├─► raw (located values by key; unknown keys found) ─► reader (typed) ─► validate (relations) ─► Config
//!   env ──┘                    ▲
//!                        schema (every key, default and explanation)
//! ```
//! Every default is in `schema` and nowhere else; the example file of `trilithon config init` is printed from it. Each value
//! may come from the environment as TRILITHON_SECTION__KEY, which wins over the file. All faults are reported at once, each
//! with its file and line, what is allowed, and the remedy. Nothing here opens ports, resolves names or touches PGDATA.
//!
//! Entry points: [`Config::load`], [`example`], [`change_settings`].

mod address;
mod error;
mod hba;
mod raw;
mod reader;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod types;
mod validate;

pub use address::HostPort;
pub use error::{ConfigError, ConfigErrors, Origin};
pub use reader::parse_size;
pub use settings::{change_settings, show_settings};
pub use types::{
    ApiConfig, Bootstrap, ClusterConfig, Config, ConsensusConfig, Consistency, NodeConfig, Peer, PoolMode, PostgresConfig, ProxyConfig,
    TelemetryConfig, TlsConfig,
};

use raw::Raw;
use reader::Reader;
use std::path::Path;

impl Config {
    /// Read `path`, let the environment override it, and check everything.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Config::parse(path, &text, std::env::vars())
    }

    /// As [`Config::load`], from text and variables already at hand; `path` is named in messages only.
    pub fn parse(path: &Path, text: &str, environment: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigErrors> {
        let mut raw = Raw::default();
        raw.file(path, text);
        raw.environment(environment);
        validate::validate(Reader::new(raw))
    }
}

/// A commented example with every key and default: what `trilithon config init` writes.
#[must_use]
pub fn example(node: &str) -> String {
    let mut out = String::from(
        "# Configuration of one Trilithon node. Keys that are commented out show their defaults.\n\
         # Each can also come from the environment, as in TRILITHON_HA__LEASE_TTL=5s.\n",
    );
    for (section, doc) in schema::SECTIONS {
        out.push_str(&format!("\n# {doc}\n[{section}]\n"));
        for key in schema::KEYS.iter().filter(|k| k.section == *section) {
            let hash = if key.required { "" } else { "# " };
            let value = if key.path() == "node.name" { format!("{node:?}") } else { key.default.unwrap_or(key.sample).to_owned() };
            out.push_str(&format!("# {}\n{hash}{} = {value}\n", key.doc, key.name));
        }
    }
    out
}
