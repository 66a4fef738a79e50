//! The configuration: golden texts of its faults, defaults, environment, the example file, changes of settings.

use super::*;
use crate::cluster::{Durability, MemberKind, Settings};
use std::time::Duration;

const LOOPBACK: &str = r#"
[node]
name = "dc1"
[cluster]
peers = ["dc1=127.0.0.1:7001", "dc2=127.0.0.1:7002", "dc3=127.0.0.1:7003"]
"#;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("node.toml"), text, std::iter::empty())
}

fn errors(text: &str) -> String {
    parse(text).expect_err("refused").to_string()
}

fn with(environment: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let variables = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::parse(Path::new("node.toml"), LOOPBACK, variables)
}

#[test]
fn two_required_keys_suffice_on_loopback() {
    let config = parse(LOOPBACK).expect("accepted");
    assert_eq!(config.node.datacenter, "dc1");
    assert_eq!(config.node.kind, MemberKind::Data);
    assert_eq!(config.settings, Settings::default(), "the schema's defaults and those of cluster::Settings are the same");
    assert_eq!(config.api.grpc.to_string(), "127.0.0.1:7001");
    assert_eq!(config.proxy.auto.to_string(), "127.0.0.1:6432");
    assert_eq!(config.postgres.listen, "127.0.0.1");
    assert_eq!(config.postgres.advertise.to_string(), "127.0.0.1:5432");
    assert_eq!(config.consensus.election_timeout, Duration::from_millis(600));
    assert!(config.api.tls.is_none());
}

#[test]
fn unknown_key_names_place_and_nearest_key() {
    let text = format!("{LOOPBACK}\n[ha]\nlease_tll = \"3s\"\n");
    assert_eq!(errors(&text), "node.toml:8: ha.lease_tll: unknown key; did you mean ha.lease_ttl?");
    let text = format!("{LOOPBACK}\n[proxy]\nlease_ttl = \"3s\"\n");
    assert_eq!(errors(&text), "node.toml:8: proxy.lease_ttl: unknown key; did you mean ha.lease_ttl?");
    let text = format!("{LOOPBACK}\n[postgre]\nport = 5432\n");
    assert_eq!(errors(&text), "node.toml:7: postgre: unknown section; did you mean postgres?");
    let text = format!("{LOOPBACK}\n[consensus]\nquux = 1\n");
    assert_eq!(errors(&text), "node.toml:8: consensus.quux: unknown key; [consensus] knows heartbeat, election_timeout");
}

#[test]
fn bad_values_name_what_is_allowed() {
    let golden = [
        (
            "[ha]\nlease_ttl = \"3x\"",
            "node.toml:7: ha.lease_ttl = \"3x\": not a duration; write a duration from 1s to 5m, with one of the units ms, s, m, h, like \"3s\"",
        ),
        ("[ha]\nlease_ttl = 3", "node.toml:7: ha.lease_ttl = 3: has no unit; write a duration from 1s to 5m, in quotes, like \"3s\""),
        (
            "[ha]\nmax_lag = \"1 parsec\"",
            "node.toml:7: ha.max_lag = \"1 parsec\": not a size; write a number of bytes, or one with a unit of kB, MB, GB, KiB, MiB or GiB, like \"1MiB\"",
        ),
        (
            "[ha]\ndurability = \"quorom\"",
            "node.toml:7: ha.durability = \"quorom\": not one of the choices; write one of \"quorum\", \"all\", \"async\" (did you mean \"quorum\"?)",
        ),
        ("[ha]\nacks = 3", "node.toml:7: ha.acks = 3: more standbys than there can be; write at most 2, the number of other members"),
        ("[postgres]\nport = 70000", "node.toml:7: postgres.port = 70000: out of range; write a whole number from 1 to 65535"),
        ("[proxy]\nauto = \"6432\"", "node.toml:7: proxy.auto = \"6432\": has no port; write it as host:port, like \"0.0.0.0:6432\""),
        (
            "[proxy]\nprimary = \"127.0.0.1:5432\"",
            "node.toml:7: proxy.primary = \"127.0.0.1:5432\": port 5432 is also that of postgres.port; give proxy.primary a port of its own",
        ),
        (
            "[consensus]\nheartbeat = \"400ms\"",
            "default: consensus.election_timeout = \"600ms\": one late heartbeat would start an election; write at least 800ms, twice consensus.heartbeat",
        ),
    ];
    for (addition, message) in golden {
        assert_eq!(errors(&format!("{LOOPBACK}{addition}\n")), message);
    }
}

#[test]
fn every_fault_is_reported_at_once() {
    let text = "[node]\nname = \"DC 1\"\n[ha]\nacks = true\n[what]\nx = 1\n";
    let shown = errors(text);
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.contains("node.toml:2: node.name = \"DC 1\": not usable as a name"), "{shown}");
    assert!(shown.contains("cluster.peers is missing: write `peers = "), "{shown}");
    assert!(shown.contains("TRILITHON_CLUSTER__PEERS"), "{shown}");
}

#[test]
fn broken_toml_names_its_line() {
    let shown = errors("[node]\nname = dc1\n");
    assert!(shown.starts_with("node.toml:2: not valid TOML: "), "{shown}");
}

#[test]
fn this_node_must_be_among_the_peers() {
    let shown = errors("[node]\nname=\"dc9\"\n[cluster]\npeers=[\"dc1=127.0.0.1:1\"]\n");
    assert!(shown.contains("does not name this node (dc9); add \"dc9=host:port\""), "{shown}");
    let shown = errors("[node]\nname=\"dc1\"\n[cluster]\npeers=[\"dc1=127.0.0.1:1\", \"dc1=127.0.0.1:2\"]\n");
    assert!(shown.contains("dc1 is there twice"), "{shown}");
}

#[test]
fn plaintext_is_refused_beyond_loopback() {
    let text = "[node]\nname=\"dc1\"\n[cluster]\npeers=[\"dc1=10.0.0.1:7432\"]\n";
    let shown = errors(text);
    assert!(shown.starts_with("api.tls is missing: 10.0.0.1:7432 is reachable from other machines"), "{shown}");
    assert!(shown.contains("trilithon certs issue dc1"), "{shown}");
    let tls = format!("{text}[api.tls]\nca=\"a\"\ncert=\"b\"\nkey=\"c\"\n");
    let config = parse(&tls).expect("accepted");
    assert_eq!(config.api.grpc.to_string(), "0.0.0.0:7432");
    assert_eq!(config.advertised(&config.api.http).to_string(), "10.0.0.1:8008");
    assert_eq!(config.postgres.listen, "*");
}

#[test]
fn environment_wins_over_the_file() {
    let config = with(&[
        ("TRILITHON_HA__LEASE_TTL", "5s"),
        ("TRILITHON_HA__STRICT", "false"),
        ("TRILITHON_CLUSTER__PEERS", "dc1=127.0.0.1:7001, dc2=127.0.0.1:7002"),
        ("TRILITHON_NODE__TAGS__PRIORITY", "7"),
        ("TRILITHON_POSTGRES__PARAMETERS__WORK_MEM", "16MB"),
        ("TRILITHON_CLI_CONFIG", "not a key"),
    ])
    .expect("accepted");
    assert_eq!(config.settings.lease_ttl_ms, 5_000);
    assert!(!config.settings.strict);
    assert_eq!(config.cluster.peers.len(), 2);
    assert_eq!(config.node.tags.priority, 7);
    assert_eq!(config.settings.parameters.get("work_mem").map(String::as_str), Some("16MB"));

    let shown = with(&[("TRILITHON_HA__LEASE_TLL", "5s")]).expect_err("refused").to_string();
    assert_eq!(shown, "$TRILITHON_HA__LEASE_TLL: ha.lease_tll: unknown key; did you mean ha.lease_ttl?");
    let shown = with(&[("TRILITHON_HA__ACKS", "many")]).expect_err("refused").to_string();
    assert_eq!(shown, "$TRILITHON_HA__ACKS: ha.acks = \"many\": not a whole number; write a whole number from 1 to 15");
}

#[test]
fn the_example_is_accepted_and_uncommented_still_is() {
    let text = example("dc1");
    let tls = "\n[api.tls]\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\n";
    let shown = parse(&text).expect_err("not loopback").to_string();
    assert!(shown.starts_with("api.tls is missing"), "{shown}");
    let filled = text.replace("\n[api.tls]\n", tls);
    parse(&filled).expect("the example with certificates is accepted");
    // A line "# key = value" is a default or a sample: with all of them taken in, the file must still be right.
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_')) => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    let all: String = text.lines().map(|line| uncomment(line) + "\n").collect();
    parse(&all).unwrap_or_else(|e| panic!("{e}\n{all}"));
}

#[test]
fn every_default_and_sample_is_toml() {
    for key in schema::KEYS {
        raw::literal(key.default.unwrap_or(key.sample));
        assert!(schema::is_section(key.section), "{}", key.path());
    }
}

#[test]
fn settings_change_one_key_at_a_time() {
    let start = Settings::default();
    let changed = change_settings(&start, "ha.lease_ttl", Some("5s")).expect("accepted");
    assert_eq!(changed, Settings { lease_ttl_ms: 5_000, ..start.clone() });
    let changed = change_settings(&changed, "ha.lease_ttl", None).expect("accepted");
    assert_eq!(changed, start);
    let changed = change_settings(&start, "ha.durability", Some("\"async\"")).expect("accepted");
    assert_eq!(changed.durability, Durability::Async);
    let changed = change_settings(&start, "postgres.parameters.pg_stat_statements.max", Some("a \"b\" \\c")).expect("accepted");
    assert_eq!(changed.parameters.get("pg_stat_statements.max").map(String::as_str), Some("a \"b\" \\c"));
    let again = change_settings(&changed, "ha.acks", Some("2")).expect("accepted");
    assert_eq!(again.parameters, changed.parameters, "other values are untouched");
    let removed = change_settings(&changed, "postgres.parameters.pg_stat_statements.max", None).expect("accepted");
    assert_eq!(removed, start);

    let refused = |key, value| change_settings(&start, key, Some(value)).expect_err("refused").to_string();
    assert!(refused("ha.lease_ttl", "soon").starts_with("argument: ha.lease_ttl = \"soon\": not a duration"));
    let line = refused("postgres.hba", "[\"host all all 10.0.0.0/8 scram\"]");
    assert!(line.contains("the line `host all all 10.0.0.0/8 scram`: \"scram\" is no authentication method; write one of trust"), "{line}");
    assert!(refused("postgres.port", "1").contains("belongs to one node"), "{}", refused("postgres.port", "1"));
    assert_eq!(refused("ha.lease", "1"), "argument: ha.lease: unknown key; did you mean ha.lease_ttl?");
}

#[test]
fn settings_shown_read_back_the_same() {
    let text = format!(
        "{LOOPBACK}[ha]\nmax_lag=\"16MiB\"\n[postgres]\nparameters={{ work_mem = \"4MB\" }}\nhba=[\"host all all 10.0.0.0/8 scram-sha-256\"]\n"
    );
    let settings = parse(&text).expect("accepted").settings;
    let mut again = Settings::default();
    for (key, value) in show_settings(&settings) {
        again = change_settings(&again, &key, Some(&value)).expect("what is shown is accepted");
    }
    assert_eq!(again, settings);
}
