//! Configuration files as text. PURE but for the sites' names and addresses.

use super::POSTGRES_PARAMETERS;
use super::certs::OPERATOR;
use super::trilithon::Options;
use crate::world::Site;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// What the files are made of.
pub(super) struct Written<'a> {
    pub options: &'a Options,
    pub certs: &'a Path,
    pub data: &'a Path,
    pub grpc: u16,
}

/// Folder of the core's traces, beside a datacenter's logs.
pub const CORE_TRACE: &str = "core";

type Sections = BTreeMap<String, BTreeMap<String, String>>;

impl Written<'_> {
    /// A node's file.
    pub fn node(&self, site: &Site, sites: &[Site]) -> String {
        let witness = self.options.witness.as_deref() == Some(site.name());
        let peers: Vec<String> = sites.iter().map(|s| quoted(&format!("{}={}:{}", s.name(), s.address(), self.grpc))).collect();
        let file = |name: String| quoted(&self.certs.join(name).display().to_string());
        let mut sections = Sections::new();
        let mut set = |section: &str, key: &str, literal: String| {
            sections.entry(section.to_owned()).or_default().insert(key.to_owned(), literal);
        };
        set("node", "name", quoted(site.name()));
        set("node", "datacenter", quoted(site.name()));
        set("node", "data_dir", quoted(&self.data.display().to_string()));
        set("node", "kind", quoted(if witness { "witness" } else { "data" }));
        set("cluster", "name", quoted("chaos"));
        set("cluster", "peers", format!("[{}]", peers.join(", ")));
        set("api.tls", "ca", file("ca.pem".to_owned()));
        set("api.tls", "cert", file(format!("{}.pem", site.name())));
        set("api.tls", "key", file(format!("{}.key", site.name())));
        set("telemetry", "format", quoted("text"));
        if self.options.core_trace {
            set("telemetry", "core_trace", quoted(&site.logs().join(CORE_TRACE).display().to_string()));
        }
        if !witness {
            let parameters = POSTGRES_PARAMETERS.map(|(name, value)| format!("{name} = {}", quoted(value)));
            set("postgres", "parameters", format!("{{ {} }}", parameters.join(", ")));
            if let Some(bin) = &self.options.pg_bin {
                set("postgres", "bin_dir", quoted(&bin.display().to_string()));
            }
        }
        for (section, keys) in &self.options.settings {
            sections.entry(section.clone()).or_default().extend(keys.clone());
        }
        render(&sections)
    }

    /// The command line's file at `site`: its own node first, which needs no WAN.
    pub fn cli(&self, site: &Site, sites: &[Site]) -> String {
        let own = sites.iter().filter(|s| s.name() == site.name());
        let others = sites.iter().filter(|s| s.name() != site.name());
        let endpoints: Vec<String> = own.chain(others).map(|s| quoted(&format!("{}:{}", s.address(), self.grpc))).collect();
        let file = |name: &str| quoted(&self.certs.join(name).display().to_string());
        let (ca, cert, key) = (file("ca.pem"), file(&format!("{OPERATOR}.pem")), file(&format!("{OPERATOR}.key")));
        format!(
            "cluster = \"chaos\"\nendpoints = [{}]\ntls = {{ ca = {ca}, cert = {cert}, key = {key} }}\nuser = \"postgres\"\n\
             password_file = {}\n",
            endpoints.join(", "),
            quoted(&self.data.join("secrets/superuser").display().to_string()),
        )
    }
}

fn render(sections: &Sections) -> String {
    let mut text = String::from("# Written by the chaos harness.\n");
    for (section, keys) in sections {
        let _ = writeln!(text, "\n[{section}]");
        for (key, literal) in keys {
            let _ = writeln!(text, "{key} = {literal}");
        }
    }
    text
}

/// A TOML string. Names and paths of the harness hold no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_strings_are_toml() {
        let mut sections = Sections::new();
        sections.entry("api.tls".to_owned()).or_default().insert("ca".to_owned(), quoted("a\"b\\c"));
        assert!(render(&sections).ends_with("\n[api.tls]\nca = \"a\\\"b\\\\c\"\n"));
    }
}
