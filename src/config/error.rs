//! What can be wrong with a configuration, in words that name the thing and the remedy.

use std::{fmt, path::PathBuf};
use thiserror::Error;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File {
        path: PathBuf,
        line: usize,
    },
    Environment(String),
    /// Given on the command line or through the API.
    Argument,
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(variable) => write!(f, "${variable}"),
            Origin::Argument => write!(f, "argument"),
            Origin::Default => write!(f, "default"),
        }
    }
}

/// One fault.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("{path}: cannot read the configuration: {source}; `trilithon config init` writes an example", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{at}: not valid TOML: {message}")]
    Syntax { at: Origin, message: String },
    #[error("{at}: {key}: unknown {what}{hint}")]
    Unknown { at: Origin, key: String, what: &'static str, hint: String },
    #[error("{at}: {key} = {value}: {problem}; {remedy}")]
    Invalid { at: Origin, key: String, value: String, problem: String, remedy: String },
    #[error("{key} is missing: {remedy}")]
    Missing { key: String, remedy: String },
}

/// Everything found wrong, so that one run shows all of it.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        ConfigErrors(vec![error])
    }
}
