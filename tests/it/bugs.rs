//! The seeded bugs are well named, each is somewhere in the code, and a program that was built as usual has none of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use trilithon::bug::{self, Bug};

/// Every file of Rust below `dir`, but the list of bugs itself.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).filter(|path| !path.ends_with("bug.rs")).collect()
}

#[test]
fn names_are_unique_and_in_kebab_case() {
    let names: BTreeSet<&str> = Bug::ALL.iter().map(|bug| bug.name()).collect();
    assert_eq!(names.len(), Bug::ALL.len(), "a name occurs twice");
    assert!(names.len() >= 25, "only {} bugs", names.len());
    for bug in Bug::ALL {
        let kebab = format!("{bug:?}").char_indices().fold(String::new(), |name, (at, c)| {
            let dash = if at > 0 && c.is_ascii_uppercase() { "-" } else { "" };
            name + dash + &c.to_ascii_lowercase().to_string()
        });
        assert_eq!(bug.name(), kebab);
        assert!(!bug.about().is_empty() && !bug.about().ends_with('.'), "{}: one phrase that says what it does", bug.name());
    }
}

#[test]
fn every_bug_is_somewhere_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let text: String = sources(&root).iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    for bug in Bug::ALL {
        assert!(text.contains(&format!("bug::is(Bug::{bug:?})")), "{bug:?} is never asked for");
    }
}

/// Whatever the environment says.
#[cfg(not(feature = "bugs"))]
#[test]
fn a_program_built_as_usual_has_none() {
    // Known to the compiler, so that nothing of a bug is left in the program.
    const { assert!(!bug::is(Bug::FsyncOff)) };
    let asked = Command::new(env!("CARGO_BIN_EXE_trilithon")).args(["version", "--bugs"]).env(bug::VARIABLE, "fsync-off").output().unwrap();
    assert!(!asked.status.success(), "it lists bugs");
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line.trim_start().starts_with("default =")), "the feature must not become a default");
}

/// One line each, as `chaos mutants` reads them.
#[cfg(feature = "bugs")]
#[test]
fn a_program_built_for_the_hunt_lists_them() {
    let listed = Command::new(env!("CARGO_BIN_EXE_trilithon")).args(["version", "--bugs"]).env_remove(bug::VARIABLE).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, Bug::ALL.iter().map(|bug| bug.name()).collect::<Vec<_>>());
}
