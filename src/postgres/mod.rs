//! One local PostgreSQL: its processes, files, configuration and WAL.
//!
//! [`Instance`] is the entry point. It executes what `ha::converge` decided (each `ha::Action` about Postgres is one method) and
//! reports `ha::PostgresFacts`. Deliberately absent: decisions, consensus, leases, timers that act by themselves.
//!
//! What safety rests on here: a seal means that no walreceiver runs nor can connect again (`follow`); a position is reported only
//! when nothing can lie beyond it (`facts`, and `lockout` where nobody can ask); a rule counts when its marker was confirmed under it
//! (INV-6, `rule`); a promotion takes the claimed timeline or is undone (INV-8, `promote`); the last good copy is kept aside, never
//! wiped (INV-10, `basebackup`); a server started by us is a standby, and acknowledges nothing before it is promoted by us (`conf`).

mod basebackup;
mod conf;
mod control;
mod crash;
mod drift;
mod durable;
mod error;
mod facts;
mod follow;
mod hba;
mod history;
mod identify;
mod initdb;
mod install;
mod instance;
mod layout;
mod lifecycle;
mod lockout;
mod parameters;
mod process;
mod procfs;
mod promote;
mod recovery;
mod rewind;
mod rule;
mod secrets;
mod session;
mod slots;
mod stump;
mod swap;
mod tool;
mod user;

pub use conf::{Drift, PROTECTED, REPLICATION_ROLE, SUPERUSER, Upstream, is_protected};
pub use error::Error as PostgresError;
pub use history::Descent;
pub use install::Install;
pub use instance::{Activity, Instance, InstanceConfig};
pub use process::{Emergency, Postmaster};
pub use secrets::generate_secrets;
