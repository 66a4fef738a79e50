//! Logging on stderr: text for people (coloured on a terminal) or JSON for machines.

use std::io::IsTerminal;
use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text; coloured on a terminal.
    #[default]
    Auto,
    /// Without colours.
    Text,
    /// One object per line.
    Json,
}

#[derive(Debug, Error)]
pub enum LogError {
    #[error("`{filter}` is not a log filter ({reason}); write a level such as info, or a filter such as info,trilithon::proxy=debug")]
    Filter { filter: String, reason: String },
    #[error("logging was set up before in this process")]
    AlreadySet,
}

/// Changes the filter of a running process.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogHandle {
    /// Log from now on as `filter` says.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        self.filter.reload(parse(filter)?).map_err(|_| LogError::AlreadySet)
    }
}

/// Set up logging for this process, once.
pub fn init_logging(format: LogFormat, filter: &str) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    // https://no-color.org: any value that is not empty.
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let ansi = format == LogFormat::Auto && wants_colour && std::io::stderr().is_terminal();
    let layer = match format {
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
        LogFormat::Auto | LogFormat::Text => fmt::layer().with_target(false).with_ansi(ansi).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(layer).try_init().map_err(|_| LogError::AlreadySet)?;
    Ok(LogHandle { filter: handle })
}

/// openraft and sled are chatty at info; what they have to say there is ours to say. Of openraft's warnings one matters to people: a member's
/// log lacks what it had confirmed.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let quiet = format!("openraft=error,openraft::progress::entry=warn,sled=warn,h2=error,{filter}");
    EnvFilter::try_new(quiet).map_err(|e| LogError::Filter { filter: filter.to_owned(), reason: e.to_string() })
}
