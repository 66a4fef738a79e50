//! Checkers: pure functions from histories to verdicts.
