//! Words that every other module speaks: log positions, timelines, epochs, identities.
//!
//! Plain values with checked arithmetic and the text forms that PostgreSQL and people use. Nothing here knows about
//! clusters, networks, clocks or files, and nothing here imports another module of this crate (level 0).
//!
//! Entry points: [`Lsn`], [`WalPosition`], [`Epoch`], [`NodeId`].

mod identity;
mod position;
mod time;

pub use identity::{ClusterId, Epoch, NodeId, NodeName, RequestId, Revision, SystemId};
pub use position::{Lsn, LsnParseError, Timeline, WalPosition};
pub use time::Millis;
