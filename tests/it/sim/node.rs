//! One datacenter: the machine, the agent's process with its memory and disk, and Postgres.

use super::wal::Tip;
use std::collections::{BTreeMap, VecDeque};
use trilithon::cluster::{ClusterState, Lease, MemberKind, SyncRule};
use trilithon::ha::{Action, HolderLease, LeaseWatch, NodeObservation, Reason, StepReason, View};
use trilithon::types::{Epoch, Millis, NodeId, RequestId, SystemId};

/// True time of the world in milliseconds; no node sees it.
pub type Time = u64;
/// Index of a datacenter. Its consensus id changes when its disk is lost.
pub type Slot = usize;

/// What Postgres does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proc {
    Stopped,
    Starting,
    Running { primary: bool },
    Stopping,
}

/// A data directory.
#[derive(Clone, Debug)]
pub struct Data {
    pub system: SystemId,
    /// End of flushed WAL.
    pub tip: Tip,
    /// Is the end of WAL known without a recovery?
    pub clean: bool,
    /// Start of the shutdown checkpoint, after a clean stop as primary.
    pub shutdown_checkpoint: Option<u64>,
    /// Pages may be newer than the WAL until this point is replayed: what a backup or a rewind leaves.
    pub consistent_at: Tip,
    /// primary_conninfo, with the epoch under which it was set.
    pub following: Option<(NodeId, Epoch)>,
    /// The epoch it was promoted for, written before the promotion.
    pub primary_of: Option<Epoch>,
    /// synchronous_standby_names.
    pub rule: Option<SyncRule>,
}

/// A walsender's view of its standby.
#[derive(Clone, Debug)]
pub struct Sender {
    pub standby: Slot,
    pub conn: u64,
    pub flushed: u64,
    pub sent: u64,
    pub in_flight: bool,
    /// When the standby was last reachable.
    pub heard: Time,
    /// The rule that this walsender has loaded; it releases waiting commits by it.
    pub rule: Option<SyncRule>,
}

/// A commit that waits for confirmation.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub end: u64,
    pub begun: Time,
    pub marker: bool,
}

#[derive(Clone, Debug)]
pub struct Postgres {
    pub data: Option<Data>,
    pub poisoned: bool,
    pub proc: Proc,
    /// A copy or a rewind replaces the directory.
    pub replacing: Option<Replacing>,
    /// End of the source's WAL when the copy began.
    pub copied: Option<Tip>,
    pub started: Time,
    /// Counts starts: what belongs to an earlier one is void.
    pub inc: u32,
    pub frozen: Option<Time>,
    pub thawed: Time,
    pub inbox: Vec<super::world::Event>,
    /// On a primary: end of WAL written, and how far commits are visible.
    pub insert: u64,
    pub visible: u64,
    pub pending: VecDeque<Pending>,
    pub senders: Vec<Sender>,
    /// The WAL receiver's connection: upstream and connection id.
    pub receiver: Option<(Slot, u64)>,
    /// When its upstream was last reachable.
    pub heard: Time,
    pub replayed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replacing {
    Clone,
    Rewind,
}

impl Postgres {
    pub fn runs_as_primary(&self) -> bool {
        self.proc == Proc::Running { primary: true }
    }

    pub fn runs_as_standby(&self) -> bool {
        self.proc == Proc::Running { primary: false }
    }

    /// Is there a postmaster?
    pub fn is_up(&self) -> bool {
        self.proc != Proc::Stopped
    }

    pub fn tip(&self) -> Option<Tip> {
        self.data.as_ref().map(|d| d.tip)
    }
}

/// The process `trilithon node`: consensus member, agent and controller live and die together.
#[derive(Clone, Debug)]
pub struct Agent {
    pub up: bool,
    pub frozen: Option<Time>,
    pub thawed: Time,
    pub started: Time,
    /// Counts starts.
    pub gen_: u32,
    pub inbox: Vec<super::world::Event>,
    // ---- volatile
    pub state: ClusterState,
    pub applied: usize,
    pub apply_scheduled: bool,
    pub promised: Epoch,
    pub holder: HolderLease,
    pub watch: LeaseWatch,
    pub view: View,
    pub settled: Option<(Epoch, SyncRule)>,
    pub prepared: Option<RequestId>,
    /// The lease of this epoch is being given back.
    pub released: Option<Epoch>,
    /// The lease of this epoch came near its deadline: it is renewed no more.
    pub ended: Option<Epoch>,
    pub gave_up: Option<Epoch>,
    pub needs_clone: Option<String>,
    pub drain_committed: Option<Epoch>,
    pub action: Option<Running>,
    pub retry_at: Time,
    pub last_role: Option<trilithon::ha::Role>,
    pub last_sent: NodeObservation,
    pub refusals: BTreeMap<NodeId, Lease>,
    pub deciding: Option<(u64, Time)>,
    pub leads: bool,
    pub last_step: Option<StepReason>,
    pub last_reason: Option<Reason>,
    pub promote_failures: u32,
    pub wake_scheduled: bool,
    // ---- on disk
    pub disk_promise: Epoch,
    pub snapshot: (usize, ClusterState),
    /// The consensus log on this disk holds every entry below this index.
    pub durable: usize,
}

/// An action under way.
#[derive(Clone, Debug)]
pub struct Running {
    pub token: u64,
    pub action: Action,
    pub since: Time,
    pub stage: u8,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub kind: MemberKind,
    /// False: the machine is off.
    pub powered: bool,
    /// True time at which the machine was switched on: its clock begins anew there.
    pub booted: Time,
    pub clock_offset: u64,
    /// Speed of the clock in parts per thousand.
    pub clock_rate: u64,
    /// Entries of the log reach this node's state machine this much later.
    pub apply_lag: u64,
    pub agent: Agent,
    pub pg: Postgres,
}

impl Node {
    pub fn new(id: NodeId, name: String, kind: MemberKind, clock_rate: u64, clock_offset: u64) -> Node {
        Node {
            id,
            name,
            kind,
            powered: true,
            booted: 0,
            clock_offset,
            clock_rate,
            apply_lag: 0,
            agent: Agent::new(),
            pg: Postgres {
                data: None,
                poisoned: false,
                proc: Proc::Stopped,
                replacing: None,
                copied: None,
                started: 0,
                inc: 0,
                frozen: None,
                thawed: 0,
                inbox: Vec::new(),
                insert: 0,
                visible: 0,
                pending: VecDeque::new(),
                senders: Vec::new(),
                receiver: None,
                heard: 0,
                replayed: 0,
            },
        }
    }

    /// This node's clock at true time `now`.
    pub fn clock(&self, now: Time) -> Millis {
        Millis(self.clock_offset + (now - self.booted) * self.clock_rate / 1_000)
    }

    /// True milliseconds in which this node's clock advances by `local`.
    pub fn true_delay(&self, local: u64) -> u64 {
        (local * 1_000).div_ceil(self.clock_rate)
    }

    /// Its own next step, in words.
    pub fn step_text(&self) -> String {
        self.agent.last_step.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Since when have agent and Postgres both been awake? What either slept through, nobody could stop.
    pub fn awake_since(&self) -> Time {
        self.agent.started.max(self.agent.thawed).max(self.pg.thawed)
    }

    /// Does the agent's process make progress?
    pub fn agent_runs(&self) -> bool {
        self.powered && self.agent.up && self.agent.frozen.is_none()
    }

    /// Does Postgres make progress?
    pub fn pg_runs(&self) -> bool {
        self.powered && self.pg.is_up() && self.pg.frozen.is_none()
    }
}

impl Agent {
    pub fn new() -> Agent {
        Agent {
            up: true,
            frozen: None,
            thawed: 0,
            started: 0,
            gen_: 0,
            inbox: Vec::new(),
            state: ClusterState::default(),
            applied: 0,
            apply_scheduled: false,
            promised: Epoch(0),
            holder: HolderLease::default(),
            watch: LeaseWatch::default(),
            view: View::default(),
            settled: None,
            prepared: None,
            released: None,
            ended: None,
            gave_up: None,
            needs_clone: None,
            drain_committed: None,
            action: None,
            retry_at: 0,
            last_role: None,
            last_sent: NodeObservation::default(),
            refusals: BTreeMap::new(),
            deciding: None,
            leads: false,
            last_step: None,
            last_reason: None,
            promote_failures: 0,
            wake_scheduled: false,
            disk_promise: Epoch(0),
            snapshot: (0, ClusterState::default()),
            durable: 0,
        }
    }

    /// Everything that a process forgets when it ends.
    pub fn forget(&mut self) {
        let (gen_, disk, snapshot, durable) = (self.gen_ + 1, self.disk_promise, std::mem::take(&mut self.snapshot), self.durable);
        // The last two are for the judge and for mutants: boot sets them anew.
        let (applied, holder) = (self.applied, self.holder);
        *self = Agent { up: false, gen_, disk_promise: disk, durable, applied, holder, ..Agent::new() };
        self.snapshot = snapshot;
    }
}
