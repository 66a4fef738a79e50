//! The replicated settings: seeded from `[ha]` and `[postgres]`, changed one key at a time by `trilithon config set`.

use super::error::{ConfigError, ConfigErrors, Origin};
use super::raw::{Located, Raw};
use super::reader::{Reader, brief};
use super::schema;
use crate::cluster::{Durability, Settings};
use std::collections::BTreeMap;
use std::time::Duration;
use toml::Value;

const DURABILITY: [(&str, Durability); 3] = [("quorum", Durability::Quorum), ("all", Durability::All), ("async", Durability::Async)];

/// All settings, as the file and the defaults give them.
pub(super) fn read(r: &mut Reader) -> Settings {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let seconds = Duration::from_secs;
    let durability = r.choice("ha.durability", &DURABILITY);
    let acks = usize::try_from(r.number("ha.acks", 1..=15)).unwrap_or_default();
    Settings {
        lease_ttl_ms: ms(r.duration("ha.lease_ttl", seconds(1)..=seconds(300))),
        clock_drift_permille: r.number("ha.clock_drift_permille", 0..=500).unsigned_abs(),
        durability,
        acks,
        strict: r.flag("ha.strict"),
        trust_refusals: r.flag("ha.trust_refusals"),
        max_lag_bytes: r.size("ha.max_lag"),
        drain_timeout_ms: ms(r.duration("ha.drain_timeout", Duration::ZERO..=seconds(3600))),
        switchover_timeout_ms: ms(r.duration("ha.switchover_timeout", seconds(1)..=seconds(3600))),
        promotion_timeout_ms: ms(r.duration("ha.promotion_timeout", seconds(1)..=seconds(3600))),
        parameters: r.map("postgres.parameters"),
        hba: hba(r),
    }
}

fn hba(r: &mut Reader) -> Vec<String> {
    let lines = r.list("postgres.hba");
    for line in &lines {
        if let Err((problem, remedy)) = super::hba::check(line) {
            r.refuse("postgres.hba", (format!("the line `{line}`: {problem}"), remedy));
        }
    }
    lines
}

/// Keys that `config set` changes; all others belong to one node's file.
fn is_replicated(key: &str) -> bool {
    key.starts_with("ha.") || key == "postgres.hba" || key == "postgres.parameters" || key.starts_with("postgres.parameters.")
}

/// Settings as dotted keys with TOML literals, as `config show` prints them and [`change_settings`] reads them.
#[must_use]
pub fn show_settings(settings: &Settings) -> BTreeMap<String, String> {
    let mut values = values(settings);
    let parameters = values.remove("postgres.parameters");
    let mut shown: BTreeMap<String, String> = values.into_iter().map(|(key, value)| (key, value.to_string())).collect();
    for (name, value) in parameters.iter().filter_map(Value::as_table).flatten() {
        shown.insert(format!("postgres.parameters.{name}"), value.to_string());
    }
    shown
}

fn values(settings: &Settings) -> BTreeMap<String, Value> {
    let time = |ms: u64| Value::String(brief(Duration::from_millis(ms)));
    let number = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    let durability = DURABILITY.iter().find(|(_, d)| *d == settings.durability).map_or("quorum", |(word, _)| word);
    let parameters = settings.parameters.iter().map(|(name, value)| (name.clone(), Value::String(value.clone())));
    let entries = [
        ("ha.lease_ttl", time(settings.lease_ttl_ms)),
        ("ha.clock_drift_permille", number(settings.clock_drift_permille)),
        ("ha.durability", Value::String(durability.to_owned())),
        ("ha.acks", number(settings.acks as u64)),
        ("ha.strict", Value::Boolean(settings.strict)),
        ("ha.trust_refusals", Value::Boolean(settings.trust_refusals)),
        ("ha.max_lag", Value::String(show_size(settings.max_lag_bytes))),
        ("ha.drain_timeout", time(settings.drain_timeout_ms)),
        ("ha.switchover_timeout", time(settings.switchover_timeout_ms)),
        ("ha.promotion_timeout", time(settings.promotion_timeout_ms)),
        ("postgres.hba", Value::from(settings.hba.clone())),
        ("postgres.parameters", Value::Table(parameters.collect())),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn show_size(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let exact = units.iter().find(|(_, size)| bytes != 0 && bytes.is_multiple_of(*size));
    exact.map_or_else(|| format!("{bytes}B"), |(unit, size)| format!("{}{unit}", bytes / size))
}

/// `settings` with `key` set to `value` (`None`: back to its default, or a parameter removed).
pub fn change_settings(settings: &Settings, key: &str, value: Option<&str>) -> Result<Settings, ConfigErrors> {
    if !is_replicated(key) || (schema::find(key).is_none() && !key.starts_with("postgres.parameters.")) {
        return Err(not_replicated(key).into());
    }
    let mut raw = Raw::default();
    let located = |value| Located { value, origin: Origin::Argument };
    raw.values = values(settings).into_iter().map(|(key, value)| (key, located(value))).collect();
    match value {
        Some(text) => raw.text(key, unquoted(text), &Origin::Argument),
        None => raw.remove(key),
    }
    let mut reader = Reader::new(raw);
    let changed = read(&mut reader);
    if reader.errors.is_empty() {
        return Ok(changed);
    }
    Err(ConfigErrors(reader.errors))
}

/// `"async"` in quotes, as `config show` prints it, means the same as without.
fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text)
}

fn not_replicated(key: &str) -> ConfigError {
    let hint = if schema::find(key).is_some() {
        " here: it belongs to one node; change it in that node's file and restart the node".to_owned()
    } else {
        schema::nearest(key, false)
            .map_or_else(|| "; `trilithon config show` lists what can be changed".to_owned(), |near| format!("; did you mean {near}?"))
    };
    ConfigError::Unknown { at: Origin::Argument, key: key.to_owned(), what: "key", hint }
}
