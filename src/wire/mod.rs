//! PostgreSQL's frontend/backend protocol, version 3, as bytes: framing, the few messages a proxy reads or writes, the start-up
//! packet, SCRAM-SHA-256 on both sides, and cancel keys.
//!
//! Pure: bytes in, bytes out. No sockets, clocks or randomness (nonces are arguments), no knowledge of pools or clusters. It never holds
//! a whole message that it need not understand: see [`frame::StreamBuffer`].
//!
//! Source: PostgreSQL documentation, chapter "Frontend/Backend Protocol"; RFC 5802 and RFC 7677 for SCRAM.

pub mod cancel;
pub mod frame;
pub mod message;
pub mod scram;
pub mod startup;
