//! Each house rule refuses a sample that breaks it, and admits one that merely looks like it. Without these a rule could rot
//! into one that accepts everything.

use super::*;

fn refused(breaches: Vec<String>, word: &str) {
    assert!(breaches.iter().any(|b| b.contains(word)), "expected a complaint about `{word}`, got {breaches:?}");
}

fn admitted(breaches: Vec<String>) {
    assert_eq!(breaches, Vec::<String>::new());
}

#[test]
fn an_import_from_a_higher_level_is_refused() {
    refused(level_breaches("src/ha/decide.rs", "use crate::agent::Loop;"), "crate::agent");
    refused(level_breaches("src/ha/decide.rs", "use crate::{\n    types::Epoch,\n    proxy::{pool, Route},\n};"), "crate::proxy");
    refused(level_breaches("src/telemetry/mod.rs", "fn f() -> crate::wire::Frame { g() }"), "level 1");
    refused(level_breaches("src/ha/decide.rs", "use super::super::node::run;"), "super");
    refused(level_breaches("src/elsewhere/mod.rs", ""), "no level");
    admitted(level_breaches("src/ha/decide.rs", "use crate::{cluster::Phase, ha::Seal};\nuse super::Seal;\n// crate::agent\n"));
    admitted(level_breaches("src/main.rs", "use crate::node::run;"));
    admitted(level_breaches("src/ha/mod.rs", "const WHY: &str = \"crate::agent::x\";\n#[cfg(test)]\nmod tests { use crate::node::x; }"));
}

#[test]
fn an_impure_core_is_refused() {
    refused(purity_breaches("src/ha/decide.rs", "use std::{collections::BTreeMap, time::{Duration, Instant}};"), "Instant");
    refused(purity_breaches("src/cluster/apply.rs", "fn f() { tracing::info!(\"x\"); }"), "tracing");
    refused(purity_breaches("src/cluster/apply.rs", "fn f() -> u64 { rand::random() }"), "rand");
    refused(purity_breaches("src/wire/frame.rs", "async fn f() {}"), "async fn");
    refused(purity_breaches("src/wire/frame.rs", "use std::fs;"), "std::fs");
    refused(purity_breaches("src/ha/decide.rs", "use crate::bug::{self, Bug};"), "crate::bug");
    admitted(purity_breaches("src/ha/decide.rs", "use std::time::Duration;\n/// Never `std::fs`.\nfn f() {}"));
    admitted(purity_breaches("src/agent/loop.rs", "use std::fs;"));
}

#[test]
fn a_long_function_or_file_is_refused() {
    let body = "    g();\n".repeat(69);
    refused(length_breaches("src/x.rs", &format!("fn long() {{\n{body}}}\n")), "long");
    let body = "    g(\"}\");\n".repeat(68);
    admitted(length_breaches("src/x.rs", &format!("fn short(f: fn(u8) -> u8) {{\n{body}}}\n{}", "\n".repeat(100))));
    refused(length_breaches("src/x.rs", &"\n".repeat(801)), "801");
}

#[test]
fn a_file_without_a_header_is_refused() {
    refused(header_breaches("src/x.rs", "use std::fmt;"), "header");
    admitted(header_breaches("src/x.rs", "//! Why.\n"));
}

#[test]
fn a_wildcard_arm_in_the_core_is_refused() {
    refused(wildcard_breaches("src/ha/decide.rs", "match p { Phase::Empty => 1,\n    _ => 2 }"), ":2:");
    refused(wildcard_breaches("src/cluster/apply.rs", "match p { _ if x => 1 }"), ":1:");
    admitted(wildcard_breaches("src/ha/decide.rs", "match p { Phase::Empty => 1, Phase::Steady { primary: _ } => 2, Some(_) => 3 }"));
    admitted(wildcard_breaches("src/proxy/route.rs", "match p { _ => 2 }"));
}

#[test]
fn marks_of_unfinished_work_are_refused() {
    refused(word_breaches("src/x.rs", &["// TO", "DO later"].concat()), "contains");
    refused(word_breaches("README.md", &["see /ho", "me/somebody/x"].concat()), "README.md:1");
    admitted(word_breaches("src/x.rs", "// To do this, …"));
}

#[test]
fn a_link_to_nowhere_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("a.md"), "# One Thing, twice\n").expect("a file");
    refused(link_breaches(dir.path(), "b.md", "[x](missing.md)"), "missing.md");
    refused(link_breaches(dir.path(), "b.md", "[x](a.md#other)"), "no such heading");
    admitted(link_breaches(dir.path(), "b.md", "[x](a.md#one-thing-twice) [y](https://example.com/z)\n```\n[z](none)\n```"));
}

#[test]
fn an_invariant_that_is_only_words_is_refused() {
    let table = "| id | statement |\n| INV-1 | a, unlike INV-2 | \n| INV-2 | b |\n";
    let cited = |code: &str, tests: &str| {
        let files = [("src/x.rs".to_owned(), code.to_owned()), ("tests/it/x.rs".to_owned(), tests.to_owned())];
        invariant_breaches(table, &files.into())
    };
    refused(cited("// INV-1", "// INV-1/2"), "INV-2: no code");
    refused(cited("// INV-1, INV-2", "// INV-2"), "INV-1: no test");
    refused(cited("// INV-1/2/3", "// INV-1/2"), "INV-3 is not in");
    admitted(cited("// INV-1, INV-2", "// INV-1/2"));
    admitted(cited("// INV-1/2\n#[cfg(test)]\nmod tests { /* INV-1/2 */ }", ""));
    refused(invariant_breaches("", &BTreeMap::new()), "defines no invariant");
}

#[test]
fn a_second_tls_stack_or_a_git_dependency_is_refused() {
    refused(lock_breaches("[[package]]\nname = \"openssl\"\n"), "openssl");
    refused(lock_breaches("source = \"git+https://example.com/x#1\"\n"), "git");
    admitted(lock_breaches("name = \"openssl-probe\"\nsource = \"registry+https://example.com\"\n"));
}

#[test]
fn words_that_the_program_no_longer_says_are_refused() {
    let said = |words: &str| {
        said_breaches(&format!("pub const X: &str = \"{words}\";\n"), &[("src/x.rs".to_owned(), "info!(\"node runs\")".to_owned())].into())
    };
    refused(said("node ran"), "said.rs:1: nothing in src says \"node ran\"");
    refused(said_breaches("", &BTreeMap::new()), "no words");
    admitted(said("node runs"));
}
