//! Where clients live: a datacenter's address, its ports, and a way to run futures in its network.
//!
//! Deliberately absent: namespaces. A place takes a function that starts a job; the world gives the thread that lives in the
//! datacenter's namespace, a test gives a plain one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A future that stays on its thread.
pub type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
/// Made here, run there.
pub type Job = Box<dyn FnOnce() -> LocalFuture + Send>;

/// The same on every site.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub postgres: u16,
    pub auto: u16,
    pub primary: u16,
    pub standby: u16,
}

impl Default for Ports {
    fn default() -> Ports {
        Ports { postgres: 5432, auto: 6432, primary: 6433, standby: 6434 }
    }
}

/// One datacenter as its clients see it.
#[derive(Clone)]
pub struct Place {
    /// Name of the site and of the node in it.
    pub name: String,
    /// An IP address; names are never looked up.
    pub host: String,
    pub ports: Ports,
    /// Starts a job on the place's runtime (current thread, inside a `LocalSet`) and returns at once.
    pub spawn: Arc<dyn Fn(Job) + Send + Sync>,
}

/// Who the clients log in as.
#[derive(Clone, Debug)]
pub struct Login {
    pub user: String,
    pub password: Option<String>,
    pub database: String,
}
