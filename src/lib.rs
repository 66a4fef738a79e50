//! Trilithon: PostgreSQL highly available over three datacenters, with three processes.
//!
//! Modules by level; each imports only lower ones (`tests/it/tidy.rs` enforces it). See docs/ARCHITECTURE.md.

pub mod bug;
pub mod types;

pub mod cluster;
pub mod config;
pub mod telemetry;
pub mod wire;

pub mod ha;

pub mod consensus;
pub mod postgres;

pub mod archive;

pub mod agent;
pub mod proxy;

pub mod api;
pub mod cli;

pub mod node;

/// Generated from `proto/trilithon/v1`.
pub mod proto {
    /// Messages and services, version 1.
    pub mod v1 {
        #![allow(clippy::all, clippy::pedantic)]
        tonic::include_proto!("trilithon.v1");
    }
    /// For the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
