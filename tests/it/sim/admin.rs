//! The administrator: planned changes, pauses, settings; impatient, so that requests arrive twice or late.

use super::node::Slot;
use super::world::{Event, World};
use trilithon::cluster::{Command, Durability, MemberKind, Phase, Proposal, Tags};
use trilithon::types::RequestId;

/// Requests made so far; a retry sends the same one again, decided on a newer revision.
#[derive(Clone, Debug, Default)]
pub struct Admin {
    pub made: Vec<(RequestId, Command)>,
}

impl World {
    pub fn administrator(&mut self) {
        let gap = self.rng.gap(self.cfg.admin_gap);
        self.after(gap, Event::Admin);
        if !self.faults_on || self.raft.truth.system.is_none() {
            return;
        }
        let Some(command) = self.draw_command() else { return };
        self.order(command);
        let index = self.admin.made.len() - 1;
        for _retry in 0..self.rng.below(4) {
            let delay = self.rng.range(0, 8_000);
            self.after(delay, Event::AdminRetry { index });
        }
    }

    /// A new request of an administrator.
    pub fn order(&mut self, command: Command) {
        let request = RequestId(u128::from(self.fresh_id()));
        let text = format!("administrator: {}", super::text::command(&command));
        self.note(11, || text);
        self.oracle.disturbed_at = self.now;
        self.oracle.healthy_since = None;
        self.admin.made.push((request, command));
        self.admin_send(self.admin.made.len() - 1);
    }

    fn draw_command(&mut self) -> Option<Command> {
        let data: Vec<Slot> = (0..self.nodes.len()).filter(|s| self.nodes[*s].kind == MemberKind::Data).collect();
        let node = self.nodes[self.rng.pick(&data)].id;
        Some(match self.rng.below(100) {
            0..55 => Command::RequestSwitchover { to: node },
            55..60 => Command::Pause { paused: true },
            60..70 => Command::Pause { paused: false },
            70..80 => {
                let tags = Tags { priority: self.rng.range(0, 3) as i32 * 50, nosync: self.rng.chance(200), ..Tags::default() };
                Command::SetTags { node, tags }
            }
            80..85 => Command::SetTags { node, tags: Tags { nofailover: true, ..Tags::default() } },
            85..88 => Command::Fence { node, fenced: true },
            88..92 => Command::Fence { node, fenced: false },
            92..96 => Command::RequestFailover { to: node, accept_loss: self.cfg.accept_loss && self.rng.chance(500) },
            _rare => {
                let mut settings = self.raft.truth.settings.clone();
                if self.cfg.settings.durability == Durability::Async {
                    return None;
                }
                settings.durability = self.rng.pick(&[Durability::Quorum, Durability::All]);
                settings.acks = if self.cfg.data > 3 { self.rng.range(1, 2) as usize } else { 1 };
                Command::Configure { settings: Box::new(settings) }
            }
        })
    }

    /// Send request `index` from some node that is up, on that node's revision.
    pub fn admin_send(&mut self, index: usize) {
        let (request, command) = self.admin.made[index].clone();
        let up: Vec<Slot> = (0..self.nodes.len()).filter(|s| self.nodes[*s].agent_runs()).collect();
        if up.is_empty() {
            return;
        }
        let slot = if self.cfg.scripted { self.raft.leader.unwrap_or(up[0]) } else { self.rng.pick(&up) };
        let expect = Some(self.nodes[slot].agent.state.revision);
        self.propose(slot, Proposal { expect, request: Some(request), command });
    }

    /// Back to plain settings, so that the world may become whole.
    pub fn tidy_up(&mut self) {
        let state = &self.raft.truth;
        let mut commands = Vec::new();
        if state.paused {
            commands.push(Command::Pause { paused: false });
        }
        for (node, _) in state.members.iter().filter(|(_, m)| m.tags != Tags::default()) {
            commands.push(Command::SetTags { node: *node, tags: Tags::default() });
        }
        commands.extend(state.fences.iter().map(|node| Command::Fence { node: *node, fenced: false }));
        self.name_another_successor();
        for command in commands {
            let leader = self.raft.leader.unwrap_or(0);
            let expect = matches!(command, Command::Fence { .. }).then_some(self.raft.truth.revision);
            self.propose(leader, Proposal { expect, request: None, command });
        }
    }

    /// Whoever was named for a failover with accepted loss has no usable data: the administrator names one that has.
    fn name_another_successor(&mut self) {
        let Phase::Electing { accept_loss: true, preferred } = self.raft.truth.phase else { return };
        let usable = |n: &super::node::Node| !n.pg.poisoned && n.pg.data.is_some();
        let named = preferred.and_then(|n| self.slot_of.get(&n));
        if named.is_some_and(|s| usable(&self.nodes[*s])) || self.raft.truth.change.is_some() {
            return;
        }
        if let Some(to) = self.nodes.iter().find(|n| usable(n)).map(|n| n.id) {
            self.order(Command::RequestFailover { to, accept_loss: true });
        }
    }

    pub fn members_changed(&mut self, command: &Command) {
        let Command::AdmitMember { member, replaces } = command else { return };
        let Some((id, _)) = self.raft.truth.find(member.name.as_str()) else { return };
        if let Some(old) = replaces {
            self.raft.voters.remove(old);
        }
        self.raft.voters.insert(id);
        let Some(slot) = self.nodes.iter().position(|n| n.name == member.name.as_str()) else { return };
        self.nodes[slot].id = id;
        self.slot_of.insert(id, slot);
        self.nodes[slot].agent.durable = self.raft.log.len();
        let line = format!("{} is admitted as {id}", self.name(slot));
        self.note(id.0, || line);
        if self.nodes[slot].powered {
            self.boot_agent(slot, 5);
        }
    }
}
