//! Administration: the gRPC services for operators, the HTTP endpoints for load balancers, metrics and the dashboard.
//!
//! ```text
//!   node wiring ──► ClusterAccess (watches of state, view, decision; proposer; local control)
//!                        │
//!        ┌───────────────┼───────────────┐
//!   status, warnings   actions        events            what is said · what is done · what happened
//!        └───────┬───────┴───────┬───────┘
//!              grpc            http                     two shells over the same three
//! ```
//! Deliberately absent: decisions. Whatever changes the cluster is proposed to the replicated state, carries a request id and
//! takes effect at most once (INV-12); this module then waits until the outcome is known and says so. Documents are messages
//! of `proto/trilithon/v1/admin.proto`, so that `-o json`, HTTP and gRPC cannot disagree.
//!
//! Entry points: [`Attachments::access`], [`grpc::routes`], [`http::router`], [`EventLog::follow`].

mod access;
mod actions;
mod attach;
mod candidate;
mod documents;
mod events;
pub mod grpc;
pub mod http;
mod status;
mod warnings;

pub use access::{
    ClusterAccess, LocalControl, PeerDialer, ProposeError, Proposer, RaftInfo, RaftPeer, RaftRole, RaftView, Snapshot, ViewProvider,
};
pub use actions::{ActionError, Actions};
pub use attach::Attachments;
pub use events::EventLog;
pub use status::{postgres_version, status};
