//! What an error means: certainly not applied, or unknown.
//!
//! The rule is the client's side of the failure contract: before COMMIT (or an autocommit write) was sent, everything that goes wrong
//! is "not applied"; after it, only what the server or the proxy vouches for. What is not known here counts as unknown, the careful side.

use super::history::Fate;

/// How far an operation had come when it went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No statement was sent.
    Connecting,
    /// Statements of a transaction, its COMMIT not sent; or a read.
    Body,
    /// COMMIT or an autocommit write was sent.
    Commit,
}

/// Something went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub stage: Stage,
    /// SQLSTATE, or a word: `timeout`, `lost`, `connect`, `warned`.
    pub why: String,
    /// The session can go on after a ROLLBACK.
    pub is_usable: bool,
}

impl Trouble {
    /// What the client concludes.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self.stage {
            Stage::Connecting | Stage::Body => Fate::Refused,
            Stage::Commit => fate_of_write(&self.why),
        }
    }
}

/// Fate of a write whose COMMIT was sent and answered with this SQLSTATE (or word).
#[must_use]
pub fn fate_of_write(why: &str) -> Fate {
    // 08006 and 40001 by the proxy's contract, the rest because PostgreSQL raises them before it commits. 57014 too: a cancelled wait
    // for standbys is no error but a warning. 57P01 and 57P02 can follow a local commit.
    const CERTAIN: &[&str] = &["08006", "25006", "25P02", "40001", "40P01", "55P03", "57014", "57P03"];
    // Data, constraint, privilege, syntax, no such object, resources, limits.
    const CERTAIN_CLASSES: &[&str] = &["22", "23", "28", "3D", "42", "53", "54"];
    let is_certain = CERTAIN.contains(&why) || CERTAIN_CLASSES.iter().any(|class| why.len() == 5 && why.starts_with(class));
    if is_certain { Fate::Refused } else { Fate::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(stage: Stage, why: &str) -> Trouble {
        Trouble { stage, why: why.to_owned(), is_usable: true }
    }

    #[test]
    fn before_commit_everything_is_certain() {
        for why in ["08007", "timeout", "lost", "57P01", "XX000"] {
            assert_eq!(trouble(Stage::Body, why).fate(), Fate::Refused, "{why}");
        }
    }

    #[test]
    fn after_commit_only_what_is_vouched_for_is_certain() {
        for why in ["08006", "40001", "40P01", "25006", "23505", "57014", "53300"] {
            assert_eq!(trouble(Stage::Commit, why).fate(), Fate::Refused, "{why}");
        }
        for why in ["08007", "57P01", "57P02", "58030", "XX000", "timeout", "lost", "warned", "P0001"] {
            assert_eq!(trouble(Stage::Commit, why).fate(), Fate::Unknown, "{why}");
        }
    }
}
