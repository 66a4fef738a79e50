//! The state of a cluster in one form: the document of `trilithon status -o json`, which a node's HTTP port serves too. Other systems'
//! answers are put into the same form.
//!
//! A node is asked by HTTP from within the node's own datacenter: a process per question would cost more than the question, and a
//! frozen datacenter would not even let one start. [`Cluster::cli`](super::Cluster::cli) runs the command line itself.

use super::system::Question;
use crate::world::Site;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A status has some kilobytes; metrics some hundred.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub cluster: String,
    /// bootstrapping, steady, draining, electing, promoting, paused
    pub phase: String,
    pub epoch: u64,
    pub revision: u64,
    pub primary: Option<String>,
    pub lease: Option<Lease>,
    pub rule: Option<Rule>,
    pub reason: String,
    pub warnings: Vec<String>,
    pub members: Vec<Member>,
    pub paused: bool,
    pub writable: bool,
    /// Postgres's system identifier.
    pub system: Option<String>,
    pub answered_by: String,
    /// The node that answered hears a majority.
    pub quorum: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lease {
    pub holder: Option<String>,
    pub remaining_ms: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    pub standbys: Vec<String>,
    pub acks: u32,
    pub changing: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    pub name: String,
    pub datacenter: String,
    /// primary, standby, witness
    pub role: String,
    /// running, streaming, starting, recovering, rewinding, cloning, stopped, unreachable
    pub state: String,
    pub timeline: Option<u32>,
    pub lsn: Option<String>,
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
    /// sync, potential, async
    pub sync: Option<String>,
    /// leader, follower, learner
    pub raft: Option<String>,
    pub version: String,
    pub postgres_version: Option<String>,
    /// What it does next, in its own words.
    pub step: String,
}

impl Status {
    /// Of several answers the greatest counts.
    pub(super) fn weight(&self) -> (bool, u64, u64, usize) {
        (self.quorum, self.epoch, self.revision, self.members.iter().filter(|m| m.state != "unreachable").count())
    }

    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.name == name)
    }

    /// Does a primary accept writes, as a majority sees it?
    pub fn is_writable(&self) -> bool {
        self.quorum && self.writable && self.primary.is_some()
    }

    /// One primary runs, everybody else streams from it, and every standby may confirm commits.
    pub fn is_redundant(&self) -> bool {
        let settled = |m: &Member| match m.role.as_str() {
            "primary" => m.state == "running" && self.primary.as_deref() == Some(m.name.as_str()),
            "witness" => m.state == "running",
            _ => m.state == "streaming",
        };
        let data = self.members.iter().filter(|m| m.role != "witness").count();
        // A rule that nobody reports (other systems) is not held against it.
        let full = self.rule.as_ref().is_none_or(|r| !r.changing && r.standbys.len() + 1 >= data);
        self.phase == "steady" && self.is_writable() && data > 1 && self.members.iter().all(settled) && full
    }

    /// Redundant, and as many members as there are `nodes`: whoever is not listed is not asked how it is.
    pub fn is_whole(&self, nodes: usize) -> bool {
        self.is_redundant() && self.members.len() == nodes
    }

    /// One line: what keeps it from being whole.
    pub fn in_words(&self) -> String {
        let members: Vec<String> = self.members.iter().map(|m| format!("{} {} {} ({})", m.name, m.role, m.state, m.step)).collect();
        let rule = self.rule.as_ref().map(|r| format!("{} of {:?}", r.acks, r.standbys)).unwrap_or_default();
        format!(
            "{} says {}, primary {}, epoch {}, writable {}, quorum {}, rule {rule}, reason {:?}; {}",
            self.answered_by,
            self.phase,
            self.primary.as_deref().unwrap_or("none"),
            self.epoch,
            self.writable,
            self.quorum,
            self.reason,
            members.join("; ")
        )
    }
}

/// Ask all questions at `site`, from within; one text for each.
pub(super) fn ask(site: &Site, questions: &'static [Question], limit: Duration) -> oneshot::Receiver<Result<Vec<String>>> {
    site.runtime().spawn(move || answers(questions, limit))
}

/// The answers to all questions, one after the other. To be called inside a datacenter's runtime.
///
/// # Errors
/// As of [`answer`], of the first; whoever does not answer a later one has given an empty text.
pub async fn answers(questions: &'static [Question], limit: Duration) -> Result<Vec<String>> {
    let mut bodies = Vec::new();
    for question in questions {
        let body = answer(*question, limit).await;
        bodies.push(if bodies.is_empty() { body? } else { body.unwrap_or_default() });
    }
    Ok(bodies)
}

/// The body of an answer with status 200.
///
/// # Errors
/// No answer within `limit`, or another status.
async fn answer(question: Question, limit: Duration) -> Result<String> {
    let (address, path) = (SocketAddr::from((Ipv4Addr::LOCALHOST, question.port)), question.path);
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // 1.0: the answer ends with the connection, and comes in one piece.
        let request = match question.body {
            None => format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"),
            Some(body) => format!("POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        };
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(limit, exchange).await;
    let answer = answer.with_context(|| format!("http://{address}{path}: no answer within {} ms", limit.as_millis()))?;
    let answer = answer.with_context(|| format!("http://{address}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("http://{address}{path}: not an answer"))?;
    let first = head.lines().next().unwrap_or_default();
    if first.split(' ').nth(1) != Some("200") {
        bail!("http://{address}{path}: {first}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, role: &str, state: &str) -> Member {
        Member { name: name.into(), role: role.into(), state: state.into(), ..Member::default() }
    }

    fn whole() -> Status {
        Status {
            phase: "steady".into(),
            primary: Some("dc1".into()),
            writable: true,
            quorum: true,
            rule: Some(Rule { standbys: vec!["dc2".into(), "dc3".into()], acks: 1, changing: false }),
            members: vec![
                member("dc1", "primary", "running"),
                member("dc2", "standby", "streaming"),
                member("dc3", "standby", "streaming"),
            ],
            ..Status::default()
        }
    }

    #[test]
    fn redundant_means_that_everybody_streams_and_the_rule_is_full() {
        assert!(whole().is_redundant());
        let narrowed = Status { rule: Some(Rule { standbys: vec!["dc2".into()], acks: 1, changing: false }), ..whole() };
        assert!(!narrowed.is_redundant());
        let removed = Status { members: whole().members[..2].to_vec(), ..whole() };
        assert!(removed.is_redundant() && !removed.is_whole(3), "who was removed is missing");
        assert!(whole().is_whole(3));
        let mut away = whole();
        away.members[2].state = "starting".into();
        assert!(!away.is_redundant());
        let mut two = whole();
        two.members[1] = member("dc2", "primary", "running");
        assert!(!two.is_redundant(), "a second primary is nothing whole");
    }

    #[test]
    fn who_hears_a_majority_is_believed_before_who_knows_a_newer_epoch() {
        let old = Status { quorum: true, epoch: 4, ..Status::default() };
        let alone = Status { quorum: false, epoch: 5, ..Status::default() };
        assert!(old.weight() > alone.weight());
    }
}
