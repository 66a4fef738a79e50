//! House rules that a compiler does not check, run over the whole repository as a test.
//!
//! Each rule is a function from text to complaints, proved below on a sample that breaks it; one test per rule then runs it
//! over the real files and lists every complaint at once. The rules are textual and conservative: [`lexed`] blanks comments
//! and strings first, so that words in prose do not count as code.
//! Deliberately absent: what clippy, rustfmt or rustdoc already say.
//!
//! Entry points: the tests at the end of the file; samples are in `samples`.

mod lexed;
mod samples;

use lexed::{Code, use_paths};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// docs/ARCHITECTURE.md, "Modules": a module imports only lower levels. `proto` is generated from the wire format and below everything.
const LEVELS: &[(&str, u8)] = &[
    ("types", 0),
    // Below everything that may have one; the PURE modules may not.
    ("bug", 0),
    ("proto", 0),
    ("cluster", 1),
    ("wire", 1),
    // Above cluster: the file seeds cluster::Settings, and `config set` edits them.
    ("config", 2),
    ("telemetry", 1),
    ("ha", 2),
    ("consensus", 3),
    ("postgres", 3),
    ("archive", 4),
    ("agent", 5),
    ("proxy", 5),
    ("api", 6),
    ("cli", 6),
    ("node", 7),
];

/// Files (by prefix) that know no clock, no I/O and no randomness.
const PURE: &[&str] = &[
    "src/types/",
    "src/cluster/",
    "src/ha/",
    "src/wire/",
    "src/proxy/classify",
    "src/proxy/protocol",
    "src/proxy/route",
    "src/proxy/pool/inner",
];

/// Paths that a pure module may not name.
const IMPURE_PATHS: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "tokio",
    "tracing",
    "rand",
    "crate::bug",
];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;

/// Crates that would bring a second TLS stack.
const BANNED_CRATES: &[&str] = &["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "boring"];

/// One breach of a rule: where, and what to do.
fn complaint(path: &str, line: usize, what: &str) -> String {
    format!("{path}:{line}: {what}")
}

// ---- rules over one file

/// Imports go only to lower levels.
fn level_breaches(path: &str, text: &str) -> Vec<String> {
    let Some(module) = module_of(path) else { return Vec::new() };
    let Some(own) = level(&module[0]) else {
        return vec![complaint(path, 1, "this module has no level: add it to docs/ARCHITECTURE.md, \"Modules\", and to tests/it/tidy.rs")];
    };
    let code = Code::of(text).without_tests();
    let mut breaches = Vec::new();
    for (line, used) in use_paths(&code) {
        let supers = used.iter().take_while(|s| *s == "super").count();
        if supers >= module.len() {
            breaches.push(complaint(path, line, "reaches another top module through `super`: write `crate::`"));
        }
        let [first, target, ..] = used.as_slice() else { continue };
        if first != "crate" || *target == module[0] {
            continue;
        }
        match level(target) {
            Some(theirs) if theirs < own => {}
            Some(theirs) => {
                let what = format!("`{}` (level {own}) may not use `crate::{target}` (level {theirs})", module[0]);
                breaches.push(complaint(path, line, &what));
            }
            None => breaches.push(complaint(path, line, &format!("`crate::{target}` has no level"))),
        }
    }
    breaches
}

fn level(module: &str) -> Option<u8> {
    LEVELS.iter().find(|(name, _)| *name == module).map(|(_, level)| *level)
}

/// `src/ha/decide.rs` → [ha, decide]; `None` for main.rs, lib.rs and what is outside of src.
fn module_of(path: &str) -> Option<Vec<String>> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    if matches!(inner, "main" | "lib") {
        return None;
    }
    Some(inner.split('/').map(str::to_owned).collect())
}

/// Pure modules name no clock, no I/O, no randomness, nothing asynchronous. With it replicated state can hold no clock
/// reading (INV-3): there is none where it is made.
fn purity_breaches(path: &str, text: &str) -> Vec<String> {
    if !PURE.iter().any(|prefix| path.starts_with(prefix)) {
        return Vec::new();
    }
    let code = Code::of(text).without_tests();
    let mut breaches = Vec::new();
    for (line, used) in use_paths(&code) {
        let full = used.join("::");
        for banned in IMPURE_PATHS {
            if full == *banned || full.starts_with(&format!("{banned}::")) {
                breaches.push(complaint(path, line, &format!("a PURE module uses {full}")));
            }
        }
    }
    for (line, text) in code.lines() {
        for banned in ["async fn", "async move", ".await", "println!", "Instant::now", "SystemTime::now"] {
            if text.contains(banned) {
                breaches.push(complaint(path, line, &format!("a PURE module uses `{banned}`")));
            }
        }
    }
    breaches
}

/// Functions and files stay short enough to read.
fn length_breaches(path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        breaches.push(complaint(path, lines, &format!("{lines} lines; split it (at most {FILE_LINES_MAX})")));
    }
    for function in Code::of(text).functions() {
        if function.lines > FUNCTION_LINES_MAX {
            let what = format!("`{}` has {} lines; split it (at most {FUNCTION_LINES_MAX})", function.name, function.lines);
            breaches.push(complaint(path, function.line, &what));
        }
    }
    breaches
}

/// Each file says first what it is for.
fn header_breaches(path: &str, text: &str) -> Vec<String> {
    if text.starts_with("//!") { Vec::new() } else { vec![complaint(path, 1, "begins without a `//!` header: say what it is for")] }
}

/// A new variant of our own enums must stop the compiler wherever it is matched.
fn wildcard_breaches(path: &str, text: &str) -> Vec<String> {
    if !path.starts_with("src/cluster/") && !path.starts_with("src/ha/") {
        return Vec::new();
    }
    let code = Code::of(text).without_tests();
    let wild = |line: &str| line.match_indices("=>").any(|(at, _)| is_wild(&line[..at]));
    code.lines().filter(|(_, line)| wild(line)).map(|(n, _)| complaint(path, n, "wildcard arm: name the variants")).collect()
}

/// Does the pattern before `=>` begin with a bare `_`?
fn is_wild(before: &str) -> bool {
    let pattern = before.rsplit([',', '{', '}']).next().unwrap_or(before).trim();
    let pattern = pattern.split(" if ").next().unwrap_or(pattern).trim();
    pattern == "_"
}

/// Marks of unfinished work, and paths of somebody's machine.
fn word_breaches(path: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not contain them.
    let banned = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["HA", "CK:"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/wo", "rk/"],
        ["#[ign", "ore"],
        ["todo", "!("],
        ["unimpl", "emented!("],
    ];
    let mut breaches = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for word in &banned {
            let word = word.concat();
            if line.contains(&word) {
                breaches.push(complaint(path, n + 1, &format!("contains `{word}`")));
            }
        }
    }
    breaches
}

/// Relative links lead to files that exist, their anchors to headings.
fn link_breaches(root: &Path, path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    for (n, link) in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
        let target = if file.is_empty() { root.join(path) } else { root.join(path).parent().unwrap_or(root).join(file) };
        if !target.exists() {
            breaches.push(complaint(path, n, &format!("link to `{link}`: no such file")));
        } else if !anchor.is_empty() && target.extension().is_some_and(|e| e == "md") {
            let found = fs::read_to_string(&target).unwrap_or_default().lines().any(|l| l.starts_with('#') && slug(l) == anchor);
            if !found {
                breaches.push(complaint(path, n, &format!("link to `{link}`: no such heading")));
            }
        }
    }
    breaches
}

/// `](target)` outside of code blocks, and `src="target"`, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (n, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        for (open, close) in [("](", ')'), ("src=\"", '"')] {
            for (at, _) in line.match_indices(open) {
                let rest = &line[at + open.len()..];
                if let Some(end) = rest.find(close) {
                    found.push((n + 1, rest[..end].trim().to_owned()));
                }
            }
        }
    }
    found
}

/// A heading's anchor, as GitHub makes it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
}

// ---- rules over several files

/// Each invariant of the table is cited in code and in a test, and nothing cites one that the table lacks.
fn invariant_breaches(table: &str, files: &BTreeMap<String, String>) -> Vec<String> {
    let defined: BTreeSet<String> =
        table.lines().filter(|l| l.starts_with("| INV-")).filter_map(|l| invariants(l).into_iter().next()).collect();
    let mut in_code = BTreeSet::new();
    let mut in_tests = BTreeSet::new();
    let mut breaches = Vec::new();
    for (path, text) in files {
        for (n, line) in text.lines().enumerate() {
            for id in invariants(line).into_iter().filter(|id| !defined.contains(id)) {
                breaches.push(complaint(path, n + 1, &format!("{id} is not in docs/INVARIANTS.md")));
            }
        }
        let (code, tests) = if path.starts_with("tests/") { ("", text.as_str()) } else { split_tests(text) };
        in_code.extend(invariants(code));
        in_tests.extend(invariants(tests));
    }
    for id in &defined {
        if !in_code.contains(id) {
            breaches.push(format!("{id}: no code in src/ cites it; say where it is guarded"));
        }
        if !in_tests.contains(id) {
            breaches.push(format!("{id}: no test cites it; say which test would catch its breach"));
        }
    }
    if defined.is_empty() {
        breaches.push("docs/INVARIANTS.md defines no invariant: rows begin with `| INV-n |`".to_owned());
    }
    breaches
}

/// Every `INV-n` in a text, also several in the short form with slashes.
fn invariants(text: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for (at, mark) in text.match_indices("INV-") {
        let list = text[at + mark.len()..].split(|c: char| !c.is_ascii_digit() && c != '/').next().unwrap_or("");
        ids.extend(list.split('/').filter(|n| !n.is_empty()).map(|n| format!("INV-{n}")));
    }
    ids
}

/// A source file's own code, and its unit tests.
fn split_tests(text: &str) -> (&str, &str) {
    text.find("#[cfg(test)]").map_or((text, ""), |at| text.split_at(at))
}

/// One TLS stack, and nothing from git.
fn lock_breaches(lock: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    for (n, line) in lock.lines().enumerate() {
        if BANNED_CRATES.iter().any(|name| line == format!("name = \"{name}\"")) {
            breaches.push(complaint("Cargo.lock", n + 1, &format!("{line}: a second TLS stack; choose the crate's ring feature")));
        }
        if line.starts_with("source = \"git+") {
            breaches.push(complaint("Cargo.lock", n + 1, "a dependency from git: use a published version"));
        }
    }
    breaches
}

/// Each constant of `waits`, the harness's words, is said somewhere in `src`.
fn said_breaches(waits: &str, src: &BTreeMap<String, String>) -> Vec<String> {
    let words = |line: &str| Some(line.strip_prefix("pub const ")?.split_once(": &str = \"")?.1.strip_suffix("\";")?.to_owned());
    let waits: Vec<(usize, String)> = waits.lines().enumerate().filter_map(|(n, line)| Some((n + 1, words(line)?))).collect();
    if waits.is_empty() {
        return vec!["the harness waits for no words".to_owned()];
    }
    let unsaid = waits.into_iter().filter(|(_, words)| !src.values().any(|text| text.contains(words)));
    unsaid.map(|(n, words)| complaint("chaos/src/fault/said.rs", n, &format!("nothing in src says \"{words}\""))).collect()
}

// ---- the repository

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Text files below `folders` with one of `endings`, by path from the root.
fn files(folders: &[&str], endings: &[&str]) -> BTreeMap<String, String> {
    let root = root();
    let mut found = BTreeMap::new();
    let mut stack: Vec<PathBuf> = folders.iter().map(|f| root.join(f)).collect();
    while let Some(path) = stack.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git" | ".demo") {
                stack.extend(fs::read_dir(&path).expect("a folder of the repository").filter_map(Result::ok).map(|e| e.path()));
            }
        } else if endings.iter().any(|e| name.ends_with(e))
            && let Ok(text) = fs::read_to_string(&path)
        {
            let short = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
            found.insert(short, text);
        }
    }
    found
}

fn rust() -> BTreeMap<String, String> {
    files(&["src", "tests", "benches", "chaos/src"].map(|f| if root().join(f).exists() { f } else { "src" }), &[".rs"])
}

fn hold(rule: fn(&str, &str) -> Vec<String>, files: &BTreeMap<String, String>) {
    report(files.iter().flat_map(|(path, text)| rule(path, text)).collect());
}

fn report(breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{} breaches of the house rules:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn modules_import_only_lower_levels() {
    hold(level_breaches, &rust());
}

#[test]
fn pure_modules_know_no_clock_io_or_randomness() {
    hold(purity_breaches, &rust());
}

#[test]
fn functions_and_files_are_short() {
    hold(length_breaches, &rust());
}

#[test]
fn every_file_begins_with_its_purpose() {
    hold(header_breaches, &rust());
}

#[test]
fn the_core_matches_without_wildcards() {
    hold(wildcard_breaches, &rust());
}

#[test]
fn nothing_unfinished_and_no_path_of_a_machine_is_left() {
    hold(word_breaches, &files(&["."], &[".rs", ".md", ".toml", ".proto", ".sh", ".txt", ".svg", "Makefile", "run"]));
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = root();
    report(files(&["."], &[".md"]).iter().flat_map(|(path, text)| link_breaches(&root, path, text)).collect());
}

#[test]
fn every_invariant_is_cited_in_code_and_in_a_test() {
    let table = fs::read_to_string(root().join("docs/INVARIANTS.md")).expect("docs/INVARIANTS.md");
    let mut all = rust();
    all.extend(files(&["tests"], &[".txt"]));
    // The samples speak of invariants as data.
    all.retain(|path, _| !path.starts_with("tests/it/tidy/"));
    report(invariant_breaches(&table, &all));
}

#[test]
fn what_the_harness_waits_for_in_a_log_is_said_there() {
    let waits = fs::read_to_string(root().join("chaos/src/fault/said.rs")).expect("the harness's words");
    report(said_breaches(&waits, &files(&["src"], &[".rs"])));
}

#[test]
fn there_is_one_tls_stack_and_no_git_dependency() {
    report(lock_breaches(&fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock")));
}
