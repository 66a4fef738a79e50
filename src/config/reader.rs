//! Typed access to located values. A bad value is recorded and replaced by its default, so that all faults show at once.

use super::error::{ConfigError, Origin};
use super::raw::{Located, Raw, literal, show};
use super::schema;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::Value;

pub(super) struct Reader {
    values: BTreeMap<String, Located>,
    pub errors: Vec<ConfigError>,
}

/// Why a value will not do: the problem, then the remedy.
pub(super) type Refusal = (String, String);

impl Reader {
    pub(super) fn new(raw: Raw) -> Reader {
        Reader { values: raw.values, errors: raw.errors }
    }

    /// The value as given, or the schema's default; `None` where neither exists.
    fn located(&self, key: &str) -> Option<Located> {
        self.values.get(key).cloned().or_else(|| default_of(key))
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Record that the value of `key` will not do.
    pub(super) fn refuse(&mut self, key: &str, (problem, remedy): Refusal) {
        let Some(Located { value, origin }) = self.located(key) else {
            self.errors.push(ConfigError::Missing { key: key.to_owned(), remedy });
            return;
        };
        self.errors.push(ConfigError::Invalid { at: origin, key: key.to_owned(), value: show(&value), problem, remedy });
    }

    /// `key` parsed by `parse`; on a fault its default (which always parses, as a test shows), or `None`.
    pub(super) fn parsed<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, Refusal>) -> Option<T> {
        let found = self.located(key)?;
        match parse(&found.value) {
            Ok(value) => Some(value),
            Err(refusal) => {
                self.refuse(key, refusal);
                default_of(key).and_then(|default| parse(&default.value).ok())
            }
        }
    }

    fn always<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, Refusal>) -> T {
        self.parsed(key, parse).expect("called only for keys whose default is in the schema and parses")
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.parsed(key, |value| match value {
            Value::String(text) if text.trim().is_empty() => Err(("is empty".into(), "give it a value, or leave the key out".into())),
            Value::String(text) => Ok(text.clone()),
            _ => Err(("not text".into(), "write it in quotes".into())),
        })
    }

    /// Text that must be there; an empty one is returned when it is not, and the fault recorded.
    pub(super) fn required(&mut self, key: &str) -> String {
        if !self.is_set(key) {
            self.missing(key);
            return String::new();
        }
        self.text(key).unwrap_or_default()
    }

    pub(super) fn missing(&mut self, key: &str) {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let sample = schema::find(key).map_or("…", |k| k.sample);
        let variable = format!("TRILITHON_{}", key.replace('.', "__").to_uppercase());
        let remedy = format!("write `{name} = {sample}` under [{section}], or set {variable}");
        self.errors.push(ConfigError::Missing { key: key.to_owned(), remedy });
    }

    pub(super) fn defaulted(&mut self, key: &str) -> String {
        self.text(key).unwrap_or_default()
    }

    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.always(key, |value| match value {
            Value::Boolean(flag) => Ok(*flag),
            Value::String(text) if text == "true" || text == "false" => Ok(text == "true"),
            _ => Err(("not a truth value".into(), "write true or false".into())),
        })
    }

    pub(super) fn number(&mut self, key: &str, allowed: RangeInclusive<i64>) -> i64 {
        self.always(key, |value| {
            let number = match value {
                Value::Integer(number) => Some(*number),
                Value::String(text) => text.trim().parse().ok(),
                _ => None,
            };
            let range = format!("write a whole number from {} to {}", allowed.start(), allowed.end());
            match number {
                Some(number) if allowed.contains(&number) => Ok(number),
                Some(_) => Err(("out of range".into(), range)),
                None => Err(("not a whole number".into(), range)),
            }
        })
    }

    pub(super) fn duration(&mut self, key: &str, allowed: RangeInclusive<Duration>) -> Duration {
        self.always(key, |value| {
            let range = format!("write a duration from {} to {}", brief(*allowed.start()), brief(*allowed.end()));
            let Value::String(text) = value else { return Err(("has no unit".into(), format!("{range}, in quotes, like \"3s\""))) };
            match humantime::parse_duration(text) {
                Ok(duration) if allowed.contains(&duration) => Ok(duration),
                Ok(_) => Err(("out of range".into(), range)),
                Err(_) => Err(("not a duration".into(), format!("{range}, with one of the units ms, s, m, h, like \"3s\""))),
            }
        })
    }

    pub(super) fn size(&mut self, key: &str) -> u64 {
        self.always(key, |value| match value {
            Value::Integer(bytes) if *bytes >= 0 => Ok(bytes.unsigned_abs()),
            Value::String(text) => parse_size(text).ok_or_else(size_refusal),
            _ => Err(size_refusal()),
        })
    }

    /// One of the words given.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        self.always(key, |value| {
            let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
            found.map(|(_, meaning)| *meaning).ok_or_else(|| {
                let known: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                let near = value.as_str().and_then(|text| words.iter().find(|(word, _)| strsim::damerau_levenshtein(word, text) <= 2));
                let hint = near.map_or(String::new(), |(word, _)| format!(" (did you mean \"{word}\"?)"));
                ("not one of the choices".into(), format!("write one of {}{hint}", known.join(", ")))
            })
        })
    }

    pub(super) fn list(&mut self, key: &str) -> Vec<String> {
        let parse = |value: &Value| {
            let items = value.as_array().and_then(|items| items.iter().map(|i| i.as_str().map(str::to_owned)).collect());
            items.ok_or_else(|| ("not a list of texts".into(), "write it as in [\"one\", \"two\"]".into()))
        };
        self.parsed(key, parse).unwrap_or_default()
    }

    /// Names to texts; numbers and truth values are written as PostgreSQL reads them.
    pub(super) fn map(&mut self, key: &str) -> BTreeMap<String, String> {
        self.always(key, |value| {
            let remedy = || "write it as in { shared_buffers = \"2GB\", max_connections = 200 }".to_owned();
            let table = value.as_table().ok_or_else(|| ("not a table".to_owned(), remedy()))?;
            let text = |(name, value): (&String, &Value)| match value {
                Value::String(text) => Ok((name.clone(), text.clone())),
                Value::Integer(_) | Value::Float(_) => Ok((name.clone(), value.to_string())),
                Value::Boolean(flag) => Ok((name.clone(), if *flag { "on" } else { "off" }.to_owned())),
                Value::Datetime(_) | Value::Array(_) | Value::Table(_) => Err((format!("{name} is not a single value"), remedy())),
            };
            table.iter().map(text).collect()
        })
    }
}

fn default_of(key: &str) -> Option<Located> {
    let default = schema::find(key)?.default?;
    Some(Located { value: literal(default), origin: Origin::Default })
}

fn size_refusal() -> Refusal {
    ("not a size".into(), "write a number of bytes, or one with a unit of kB, MB, GB, KiB, MiB or GiB, like \"1MiB\"".into())
}

/// `1MiB`, `16 MB`, `512`. Decimal and binary units mean what they say.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A duration as a person writes it.
pub(super) fn brief(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}
