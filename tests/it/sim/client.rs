//! Clients: through a proxy in some datacenter, or straight to any Postgres that says it is primary.

use super::net::Plane;
use super::node::Slot;
use super::wal::Tip;
use super::world::{Event, World};
use trilithon::cluster::Phase;

impl World {
    pub fn client(&mut self) {
        let gap = self.rng.gap(self.cfg.write_gap).max(1);
        self.after(gap, Event::Client);
        let at = self.rng.below(self.nodes.len() as u64) as Slot;
        let (direct, read) = (self.rng.chance(250), self.rng.chance(300));
        let bytes = self.rng.range(50, 400);
        if direct {
            // An impolite client picks a node by itself; it asks for no current read.
            if self.nodes[at].pg.runs_as_primary() {
                self.write(at, bytes, false);
            }
            return;
        }
        let Some(primary) = self.route(at) else { return };
        if read {
            let Some(tip) = self.nodes[primary].pg.tip() else { return };
            let end = Tip { lsn: self.nodes[primary].pg.visible, ..tip };
            self.was_read(end);
        } else {
            self.write(primary, bytes, false);
        }
    }

    /// INV-11: the primary of the epoch that this proxy's topology names, over a connection opened in that epoch.
    pub fn route(&self, proxy: Slot) -> Option<Slot> {
        let node = &self.nodes[proxy];
        let Phase::Steady { primary } = node.agent.state.phase else { return None };
        let slot = *self.slot_of.get(&primary)?;
        let target = &self.nodes[slot];
        let same_epoch = target.pg.data.as_ref().is_some_and(|d| d.primary_of == Some(node.agent.state.epoch));
        let open = node.agent_runs() && self.net.both(Plane::Postgres, proxy, slot);
        (open && same_epoch && target.pg_runs() && target.pg.runs_as_primary()).then_some(slot)
    }
}
