//! The record for people: terminal, JSON, one self-contained HTML page.
//!
//! ```text
//!   Record ──► stats (figures) ──► page (HTML) ◄── timeline, outages, shape (SVG) ◄── svg, scale, text
//!                    ├──────────► summary (terminal)          compare, compare_text (several records side by side)
//!                    └──────────► outcome (one word, with reasons)
//! ```
//! Everything but [`terminal`] and [`files`] is a function from a record to text. Each text that did not come from here (names,
//! proofs, witnesses) goes through [`text::escape`] on its way into markup.
//! Deliberately absent: scripts and external resources in what is written, and figures from faults that did not take hold.

mod compare;
mod compare_charts;
mod compare_text;
mod files;
mod markdown;
mod outages;
mod outcome;
mod page;
#[cfg(test)]
mod sample;
mod scale;
mod shape;
mod stats;
mod summary;
mod svg;
mod tables;
mod terminal;
mod text;
mod timeline;
mod timeline_charts;
mod together;

pub use compare_text::side_by_side;
pub use files::{clear, read, remove, write, write_comparison};
pub use outcome::judge;
pub use page::page;
pub use shape::shape_of_failover;
pub use stats::Spread;
pub use summary::summary;
pub use terminal::{Event, Status, Terminal};
pub use timeline::picture;
pub use together::together;
