//! Parameters that this release of PostgreSQL takes. With one in its file that it does not take, it takes nothing of the file any more: no
//! rule, no promotion, no start.

use super::error::Error;
use super::instance::Instance;
use super::tool;
use std::collections::BTreeMap;
use std::time::Duration;

/// It reads no data and starts no server.
const ASK_LIMIT: Duration = Duration::from_secs(5);

impl Instance {
    /// `wished` without what PostgreSQL itself refuses: a name that it does not know, a value that it cannot read.
    pub(super) async fn acceptable(&self, wished: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut accepted = wished.clone();
        for (name, value) in wished {
            if let Some(why) = self.refusal(name, value).await {
                tracing::warn!(parameter = %name, %value, %why, "left out of PostgreSQL's configuration; correct it with `trilithon config set`");
                accepted.remove(name);
            }
        }
        accepted
    }

    /// Why PostgreSQL would not start with this, in its words; `None` where it would, or could not be asked.
    async fn refusal(&self, name: &str, value: &str) -> Option<String> {
        // Those of extensions are known once they are loaded, and cannot be refused before.
        if name.contains('.') {
            return (!is_qualified(name)).then(|| "parts of a name are letters, digits and underscores".to_owned());
        }
        let mut command = tool::command(&self.install(), "postgres", &self.run_as, &self.layout.node_dir);
        command.args(["-C", name, "-c", &format!("{name}={value}"), "--config-file=/dev/null", "-D"]).arg(&self.layout.pgdata);
        match tool::run(command, "postgres", ASK_LIMIT).await {
            Err(Error::Tool { output, .. }) => refused(&output),
            Ok(_) | Err(_) => None,
        }
    }
}

/// As PostgreSQL's file reads it: anything else is a syntax error of the whole file.
fn is_qualified(name: &str) -> bool {
    let is_word = |part: &str| {
        let begins = part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        begins && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    name.split('.').all(is_word)
}

/// PURE: the sentence that is about a parameter, among whatever else kept the program from answering.
fn refused(output: &str) -> Option<String> {
    let about = |line: &&str| line.contains("FATAL:") && line.contains("parameter \"");
    let line = output.split(" · ").find(about)?;
    line.split_once("FATAL:").map(|(_, said)| said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_of_a_parameter_refuses_it() {
        let said =
            "12:00 GMT [5] FATAL:  invalid value for parameter \"wal_level\": \"hot\" · 12:00 GMT [5] HINT:  Available values: minimal";
        assert_eq!(refused(said).as_deref(), Some("invalid value for parameter \"wal_level\": \"hot\""));
        assert!(is_qualified("auto_explain.log_min_duration") && !is_qualified("auto_explain.log-min-duration") && !is_qualified("a."));
        assert_eq!(refused("FATAL:  could not access directory \"/x\": No such file or directory"), None);
    }
}
