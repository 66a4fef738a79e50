//! What can be run in the datacenters of a world: Trilithon, and others that are to be compared with it.

use super::status::Status;
use crate::world::Site;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

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

/// What some of a datacenter's programs do; where one program does several of these, it is meant by each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Manages the local Postgres.
    Node,
    /// Agrees with the other datacenters.
    Consensus,
}

/// An HTTP question that a node answers about itself, asked from within its own datacenter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub port: u16,
    pub path: &'static str,
    /// JSON to be sent with it.
    pub body: Option<&'static str>,
}

/// What a system tells of itself beyond SQL. Checkers that live on what it does not tell are not applicable to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tells {
    /// Epochs of its own; otherwise a timeline stands for one, as every promotion begins one.
    pub epochs: bool,
    /// The phases of a change of primary, while it goes on.
    pub phases: bool,
    /// Why the primary changed, for each change.
    pub history: bool,
    /// Trilithon's failure contract: SQLSTATEs by which its proxy vouches for what became of a write.
    pub contract: bool,
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

    /// What runs at `site`, in the order of starting.
    fn programs(&self, site: &Site) -> Vec<Program>;

    /// Name of the program that does this.
    fn program_of(&self, part: Part) -> &'static str;

    fn tells(&self) -> Tells;

    /// Does `site` only vote?
    fn is_witness(&self, site: &Site) -> bool;

    fn data_dir(&self, site: &Site) -> PathBuf;

    fn pgdata(&self, site: &Site) -> PathBuf;

    /// The superuser's password; known once the cluster was created.
    ///
    /// # Errors
    /// No node has it.
    fn password(&self, sites: &[Site]) -> Result<String>;

    /// What every node is asked about the state of the cluster, or of itself.
    fn questions(&self) -> &'static [Question];

    /// What `node` answered, in one form for all systems; one text per question.
    ///
    /// # Errors
    /// It is not what this system answers.
    fn parse_status(&self, node: &str, answers: &[String]) -> Result<Status>;

    /// The cluster's state, from the answers of all nodes that gave any.
    fn combine(&self, answers: Vec<Status>) -> Option<Status> {
        answers.into_iter().max_by_key(Status::weight)
    }

    /// Answers younger than this are used again: where a question costs the node more than the harness may take from it.
    fn ask_every(&self) -> Duration {
        Duration::ZERO
    }

    /// Program → version, of all that run but Postgres.
    fn versions(&self) -> BTreeMap<String, String>;

    /// What was set for the sake of this world, or other than by default, for whoever compares; a line each.
    fn settings(&self) -> Vec<String>;

    /// The administrator's command line, run at `site`. Words are Trilithon's; others translate them.
    ///
    /// # Errors
    /// There is no such thing.
    fn cli(&self, site: &Site, words: &[&str]) -> Result<Command>;
}
