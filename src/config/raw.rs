//! File and environment, read into located values by key; unknown keys are found here.

use super::error::{ConfigError, Origin};
use super::schema::{self, Key, Shape};
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub value: Value,
    pub origin: Origin,
}

/// Values by dotted key, and what was wrong on the way.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub values: BTreeMap<String, Located>,
    pub errors: Vec<ConfigError>,
}

const PREFIX: &str = "TRILITHON_";

impl Raw {
    /// Add the content of a file.
    pub(super) fn file(&mut self, path: &Path, text: &str) {
        match DeTable::parse(text) {
            Ok(table) => self.table("", table.get_ref(), &Lines { path, text }),
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(text, span.start));
                let at = Origin::File { path: path.to_owned(), line };
                self.errors.push(ConfigError::Syntax { at, message: error.message().to_owned() });
            }
        }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>, lines: &Lines<'_>) {
        for (name, value) in table {
            let path = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let at = lines.origin(name);
            match value.get_ref() {
                DeValue::Table(inner) if schema::is_section(&path) => self.table(&path, inner, lines),
                other if schema::find(&path).is_some() => {
                    self.values.insert(path, Located { value: plain(other), origin: at });
                }
                _ if schema::is_section(&path) => self.errors.push(ConfigError::Invalid {
                    at,
                    key: path.clone(),
                    value: show(&plain(value.get_ref())),
                    problem: "is a section".into(),
                    remedy: format!("write [{path}] on a line of its own and its keys below"),
                }),
                other => self.unknown(&path, at, matches!(other, DeValue::Table(_))),
            }
        }
    }

    /// Add what the environment says; it wins over the file.
    pub(super) fn environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (variable, text) in variables {
            let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
            if !rest.contains("__") {
                continue;
            }
            let path = rest.replace("__", ".").to_lowercase();
            self.text(&path, &text, &Origin::Environment(variable));
        }
    }

    /// Set `path` from text, as the environment and arguments give it.
    pub(super) fn text(&mut self, path: &str, text: &str, origin: &Origin) {
        if let Some(key) = schema::find(path) {
            match from_text(key.shape, text) {
                Some(value) => drop(self.values.insert(path.to_owned(), Located { value, origin: origin.clone() })),
                None => self.errors.push(ConfigError::Invalid {
                    at: origin.clone(),
                    key: path.to_owned(),
                    value: format!("{text:?}"),
                    problem: "not a table".into(),
                    remedy: "write it as in TOML: { name = \"value\" }".into(),
                }),
            }
        } else if !self.map_entry(path, text, origin) {
            self.unknown(path, origin.clone(), false);
        }
    }

    /// `postgres.parameters.work_mem` sets one entry of a map.
    fn map_entry(&mut self, path: &str, text: &str, origin: &Origin) -> bool {
        let maps = schema::KEYS.iter().filter(|key| key.shape == Shape::Map).map(Key::path);
        let found = maps.into_iter().find_map(|map| Some((path.strip_prefix(&format!("{map}."))?.to_owned(), map)));
        let Some((entry, map)) = found else { return false };
        let empty = || Located { value: Value::Table(toml::Table::new()), origin: origin.clone() };
        let located = self.values.entry(map).or_insert_with(empty);
        if let Value::Table(table) = &mut located.value {
            table.insert(entry, Value::String(text.to_owned()));
        }
        true
    }

    /// Forget a value, or one entry of a map.
    pub(super) fn remove(&mut self, path: &str) {
        self.values.remove(path);
        for (map, located) in &mut self.values {
            if let (Some(entry), Value::Table(table)) = (path.strip_prefix(&format!("{map}.")), &mut located.value) {
                table.remove(entry);
            }
        }
    }

    fn unknown(&mut self, path: &str, at: Origin, is_table: bool) {
        let what = if is_table { "section" } else { "key" };
        let hint = match (schema::nearest(path, is_table), is_table) {
            (Some(near), _) => format!("; did you mean {near}?"),
            (None, true) => format!("; known are {}", names(schema::SECTIONS.iter().map(|(name, _)| *name))),
            (None, false) => {
                let section = path.rsplit_once('.').map_or("", |(section, _)| section);
                match names(schema::KEYS.iter().filter(|k| k.section == section).map(|k| k.name)) {
                    keys if keys.is_empty() => "; every key belongs to a section, as in `trilithon config init`".to_owned(),
                    keys => format!("; [{section}] knows {keys}"),
                }
            }
        };
        self.errors.push(ConfigError::Unknown { at, key: path.to_owned(), what, hint });
    }
}

struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Lines<'_> {
    fn origin<T>(&self, spanned: &Spanned<T>) -> Origin {
        Origin::File { path: self.path.to_owned(), line: line_of(self.text, spanned.span().start) }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Text of the environment as the TOML value it stands for. Scalars stay text: the reader parses them.
fn from_text(shape: Shape, text: &str) -> Option<Value> {
    let literal = || DeValue::parse(text).ok().map(|v| plain(v.get_ref()));
    match shape {
        Shape::Scalar => Some(Value::String(text.to_owned())),
        Shape::Map => literal().filter(Value::is_table),
        Shape::List => Some(literal().filter(Value::is_array).unwrap_or_else(|| {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
        })),
    }
}

/// A TOML literal of the schema.
pub(super) fn literal(text: &str) -> Value {
    plain(DeValue::parse(text).expect("the schema's literals are TOML, as a test shows").get_ref())
}

/// As the user would write it.
pub(super) fn show(value: &Value) -> String {
    value.to_string()
}

fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).map_or_else(
            // Too large for an integer: kept as text, which every reader of numbers refuses with the value shown.
            |_| Value::String(number.as_str().to_owned()),
            Value::Integer,
        ),
        DeValue::Float(number) => number.as_str().parse().map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Float),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(at) => Value::Datetime(*at),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(table) => {
            Value::Table(table.iter().map(|(name, value)| (name.get_ref().to_string(), plain(value.get_ref()))).collect())
        }
    }
}
