//! The one integration-test binary: linking is what costs on small machines. Each file is a module; add yours to the list.

mod consensus;
mod postgres_basic;
mod postgres_refusals;
mod postgres_replication;
mod postgres_rig;
mod postgres_rule;
mod tidy;
mod proxy_clients;
mod proxy_support;
