//! Black-box fault harness: proto, CLI and SQL only. It has no runs yet; `tests/it/failover.rs` breaks clusters meanwhile.

fn main() {}
