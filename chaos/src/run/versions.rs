//! What was tested, on what, and when.

use crate::cluster::{Cluster, output_within};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// Program → version.
pub fn all(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut versions = cluster.system().versions();
    let status = cluster.status().unwrap_or_default();
    if let Some(postgres) = status.members.iter().find_map(|m| m.postgres_version.clone()) {
        versions.insert("postgres".to_owned(), postgres);
    }
    versions.insert("kernel".to_owned(), first_line(Path::new("uname"), &["-r"]));
    versions
}

/// RFC 3339. The one time that wall time is asked for; by a child, as the harness's own clock is monotonic.
pub fn now() -> String {
    first_line(Path::new("date"), &["-u", "+%Y-%m-%dT%H:%M:%SZ"])
}

fn first_line(program: &Path, words: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(words);
    let output = output_within(command, LIMIT).map(|o| o.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned()
}
