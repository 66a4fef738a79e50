//! Reserved: see DESIGN §3.

pub mod demo;
