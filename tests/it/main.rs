//! The one integration-test binary: linking is what costs on small machines. Each file is a module; add yours to the list.

// A helper that panics fails the test that called it, which is what it is for.
#![allow(clippy::unwrap_used)]

mod api;
mod bugs;
// Shared with the benchmark, which uses more of them.
#[allow(dead_code)]
mod cluster_harness;
mod cluster_load;
mod consensus;
mod core_trace;
mod decisions;
mod failover;
#[allow(dead_code)]
mod failover_scenarios;
mod models;
mod policies;
mod ports;
mod postgres_adoption;
mod postgres_basic;
mod postgres_lockout;
mod postgres_refusals;
mod postgres_replication;
mod postgres_rig;
mod postgres_rule;
mod properties;
mod proxy_clients;
mod proxy_failures;
mod proxy_pooling;
mod proxy_support;
mod scenarios;
mod sim;
mod tidy;
