//! The error of an injection that says: it was the program under test that did wrong, not the fault that found nothing to strike.

use std::fmt;

/// What the program did, in words. Told apart from other errors of injections, because those are tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misbehaved(pub String);

impl fmt::Display for Misbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misbehaved {}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn it_is_found_below_what_others_add() {
        let error = Err::<(), _>(Misbehaved("dc1 ended with exit status: 3".to_owned()));
        let error = error.context("terminate-node was not injected").context("step 4").unwrap_err();
        assert!(error.is::<Misbehaved>());
        assert!(!anyhow::anyhow!("there is no primary at this moment").is::<Misbehaved>());
    }
}
