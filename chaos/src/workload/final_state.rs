//! What is there at the end of a run, on every node. Plain data.

use super::history::{RegisterStep, Txn, VersionStep};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A program's run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolRun {
    /// `None`: it could not be started or was ended.
    pub exit: Option<i32>,
    pub said: String,
}

/// One node when all is quiet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeFinal {
    pub name: String,
    /// Why the rest is missing or partial.
    pub trouble: Option<String>,
    pub in_recovery: bool,
    pub timeline: Option<u32>,
    /// It had replayed what the primary had written when the reading began.
    pub is_caught_up: bool,
    /// Ids in the set, with repetitions.
    pub set: Vec<i64>,
    /// Table → rows and hash of its content.
    pub hashes: BTreeMap<String, String>,
    /// Name → content of the timeline history files.
    pub timeline_files: BTreeMap<String, String>,
    pub has_checksums: bool,
    pub checksum_failures: u64,
    /// Accounts and their sum.
    pub bank: Option<(i64, i64)>,
    /// `None`: not run.
    pub amcheck: Option<ToolRun>,
}

/// A change of primary as `trilithon history -o json` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryChange {
    pub epoch: u64,
    pub timeline: Option<u32>,
    pub from: Option<String>,
    pub to: String,
    pub cause: String,
    #[serde(default)]
    pub accept_loss: bool,
}

/// Reads the output of `trilithon history -o json`.
///
/// # Errors
/// When it is not what is documented.
pub fn parse_changes(json: &str) -> Result<Vec<PrimaryChange>> {
    serde_json::from_str(json).context("`history -o json` did not print a list of changes of primary")
}

/// Reads the output of `trilithon config show -o json`.
///
/// # Errors
/// When it is not what is documented.
pub fn parse_settings(json: &str) -> Result<BTreeMap<String, String>> {
    let values: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(json).context("`config show -o json` did not print a table of settings")?;
    let plain = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(values.into_iter().map(|(key, value)| (key, plain(value))).collect())
}

/// The end of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Final {
    pub nodes: Vec<NodeFinal>,
    /// Reads of every list on the primary, one transaction per level.
    pub txns: Vec<Txn>,
    /// A read of every register on the primary.
    pub registers: Vec<RegisterStep>,
    /// A read of all version rows on the primary.
    pub versions: Vec<VersionStep>,
    /// `None`: nobody asked.
    pub changes: Option<Vec<PrimaryChange>>,
    /// Changes up to this epoch were before the run: of a cluster that is not new.
    pub since_epoch: u64,
    /// `None`: nobody asked.
    pub is_paused: Option<bool>,
    /// The cluster's settings; `None`: nobody asked.
    #[serde(default)]
    pub settings: Option<BTreeMap<String, String>>,
}
