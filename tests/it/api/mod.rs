//! Administration as its users meet it: gRPC and HTTP over real connections, and the binary's verbs, against a node whose
//! state and observations are fed by watch channels and whose proposals are applied by the real state machine.

// A test that cannot go on says so best by stopping there; clippy sees tests only in the functions marked as such.
#![allow(clippy::unwrap_used)]

mod cli;
mod feed;
mod grpc;
mod http;
mod status;
