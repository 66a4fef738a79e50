//! What can be run in the datacenters of a world: Trilithon, and others that are to be compared with it.

use super::status::Status;
use crate::world::Site;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// Ports of one datacenter, the same in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub postgres: u16,
    /// Reads near, writes to the primary; where a system has no such thing, as `primary`.
    pub auto: u16,
    /// Always leads to the primary: what clients write through.
    pub primary: u16,
    /// Leads to a standby.
    pub standby: u16,
    /// Between the members: consensus and administration.
    pub grpc: u16,
    pub http: u16,
}

/// One process to start in a datacenter. Its output goes to `<logs>/<name>.log`.
pub struct Program {
    pub name: String,
    pub command: Command,
}

/// A system of programs that keeps one PostgreSQL database available over several datacenters.
pub trait System: Send + Sync {
    /// For people, and for messages.
    fn name(&self) -> &str;

    fn ports(&self) -> Ports;

    /// Make the files that must exist before anything starts.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    fn prepare(&self, sites: &[Site]) -> Result<()>;

    /// What runs at `site`, in the order of starting. The first is the one that is meant by "the node".
    fn programs(&self, site: &Site) -> Vec<Program>;

    /// Does `site` only vote?
    fn is_witness(&self, site: &Site) -> bool;

    fn data_dir(&self, site: &Site) -> PathBuf;

    fn pgdata(&self, site: &Site) -> PathBuf;

    /// The superuser's password; known once the cluster was created.
    ///
    /// # Errors
    /// No node has it.
    fn password(&self, sites: &[Site]) -> Result<String>;

    /// Where a node's HTTP port answers with the state of the cluster.
    fn status_path(&self) -> String;

    /// What `node` answered, in one form for all systems.
    ///
    /// # Errors
    /// It is not what this system answers.
    fn parse_status(&self, node: &str, body: &str) -> Result<Status>;

    /// The administrator's command line, run at `site`.
    ///
    /// # Errors
    /// There is none.
    fn cli(&self, site: &Site, words: &[&str]) -> Result<Command>;

    /// Words that ask the command line for a planned change of primary.
    fn switchover(&self, to: Option<&str>) -> Vec<String>;
}
