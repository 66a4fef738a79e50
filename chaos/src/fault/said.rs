//! What the program says in its log, and a fault waits for. Word for word as in `src`: the house rules want each of them there, so
//! that nothing of PostgreSQL's or of the kernel's belongs here.

pub const ASIDE: &str = "aside";
pub const MEMBER_REMOVED: &str = "this node was removed from the cluster";
pub const NODE_RUNS: &str = "node runs";
pub const SETTING_RESTORED: &str = "a protected setting was not as it must be";
pub const WHOLE_DIRECTORY_ASIDE: &str = "whole data directory aside";
