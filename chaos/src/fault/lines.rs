//! Primitives on the lines between datacenters. Each direction that is changed is put back as the world's preset has it.

use super::aim::Target;
use super::injected::{Ctx, Injected};
use crate::world::{Counters, Link};
use anyhow::{Context as _, Result};
use std::time::Duration;

/// Of so many handshakes the fastest is how far it is: on a line that loses packets some take a second longer.
const HANDSHAKES: usize = 3;
/// The kernel's first patience with a lost packet (RFC 6298). Who took so much longer met with a loss, which is nothing slow.
const RETRANSMITTED_AFTER: Duration = Duration::from_secs(1);

/// How long a handshake took before anything was changed.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    from: Target<'a>,
    to: Target<'a>,
    took: Duration,
}

impl<'a> Injected<'a> {
    /// Change the direction `from` → `to`.
    pub(super) fn line(&mut self, from: Target<'a>, to: Target<'a>, change: impl FnOnce(&mut Link)) -> Result<()> {
        let wan = self.ctx.world.wan();
        let (a, b) = (from.name(), to.name());
        self.undo(format!("mend {a}→{b}"), move || {
            wan.restore(a, b);
            Ok(())
        });
        wan.change(a, b, change);
        Ok(())
    }

    /// Both directions.
    pub(super) fn both_ways(&mut self, one: Target<'a>, other: Target<'a>, change: impl Fn(&mut Link)) -> Result<()> {
        self.line(one, other, &change)?;
        self.line(other, one, &change)
    }

    /// Every line of `target`, in both directions.
    pub(super) fn all_lines(&mut self, target: Target<'a>, change: impl Fn(&mut Link)) -> Result<()> {
        for other in self.others(target) {
            self.both_ways(target, other, &change)?;
        }
        Ok(())
    }

    /// Nothing passes from `from` to `to`; the router's counter of dropped packets shows it.
    pub(super) fn cut(&mut self, from: Target<'a>, to: Target<'a>) -> Result<()> {
        self.line(from, to, |link| link.cut = true)?;
        // The dead send nothing that could be dropped.
        if !from.node_is_dead() {
            self.prove_cut(from, to);
        }
        Ok(())
    }

    pub(super) fn cut_both(&mut self, one: Target<'a>, other: Target<'a>) -> Result<()> {
        self.cut(one, other)?;
        self.cut(other, one)
    }

    /// Alone in the world.
    pub(super) fn isolate(&mut self, target: Target<'a>) -> Result<()> {
        self.others(target).into_iter().try_for_each(|other| self.cut_both(target, other))
    }

    /// More packets were dropped on the way since now, by intent or by chance.
    pub(super) fn prove_drops(&mut self, from: Target<'a>, to: Target<'a>) {
        self.prove_counted(from, to, Counters::dropped);
    }

    /// More packets met a cut (also of a port, by a reset, for their size) on the way since now. What a line loses by chance is no sign.
    pub(super) fn prove_cut(&mut self, from: Target<'a>, to: Target<'a>) {
        self.prove_counted(from, to, |counters| counters.cut);
    }

    fn prove_counted(&mut self, from: Target<'a>, to: Target<'a>, of: fn(&Counters) -> u64) {
        let wan = self.ctx.world.wan();
        let dropped = move || of(&wan.counters(from.name(), to.name()));
        let before = dropped();
        self.prove(format!("packets dropped {}→{}", from.name(), to.name()), move || {
            let lost = dropped().saturating_sub(before);
            (lost > 0).then(|| format!("{}→{} dropped {lost} packets", from.name(), to.name()))
        });
    }

    /// Packets still pass since now: shows that the other half of a partial cut is open.
    pub(super) fn prove_passes(&mut self, from: Target<'a>, to: Target<'a>) {
        let wan = self.ctx.world.wan();
        let passed = move || wan.counters(from.name(), to.name()).passed;
        let before = passed();
        self.prove(format!("packets passed {}→{}", from.name(), to.name()), move || {
            let through = passed().saturating_sub(before);
            (through > 0).then(|| format!("{}→{} passed {through} packets", from.name(), to.name()))
        });
    }

    /// How long a handshake from `from` to a port of `to` takes as things are; to be asked before they are changed.
    ///
    /// # Errors
    /// It does not come through: nothing could be told from it later.
    pub(super) fn handshake(&self, from: Target<'a>, to: Target<'a>) -> Result<Base<'a>> {
        let fastest = (0..HANDSHAKES).filter_map(|_| shake_hands(self.ctx, from, to)).min();
        let took = fastest.with_context(|| format!("{} cannot reach {} even before", from.name(), to.name()))?;
        Ok(Base { from, to, took })
    }

    /// A handshake takes at least `longer` than it did. One that does not come through is no proof: that is another fault's doing.
    pub(super) fn prove_slower(&mut self, base: Base<'a>, longer: Duration) {
        let (Base { from, to, took: before }, ctx) = (base, self.ctx);
        self.prove(format!("a slow handshake {}→{}", from.name(), to.name()), move || {
            let took = shake_hands(ctx, from, to)?;
            let words = || format!("a handshake {}→{} took {} ms, {} before", from.name(), to.name(), took.as_millis(), before.as_millis());
            is_slower(before, took, longer).then(words)
        });
    }

    /// A port of `to` cannot be reached from `from`.
    pub(super) fn prove_unreachable(&mut self, from: Target<'a>, to: Target<'a>, port: u16) {
        self.prove(format!("no way {}→{}:{port}", from.name(), to.name()), move || {
            let reached = super::probe::connects(from.site, to.address(), port);
            (!reached).then(|| format!("{}→{}:{port} cannot be reached", from.name(), to.name()))
        });
    }

    /// The same, seen at once: for a server that will be gone in a moment.
    ///
    /// # Errors
    /// It can be reached still.
    pub(super) fn see_unreachable(&mut self, from: Target<'a>, to: Target<'a>, port: u16) -> Result<()> {
        const WITHIN: Duration = Duration::from_secs(3);
        let way = format!("{}→{}:{port}", from.name(), to.name());
        self.wait(&format!("no way {way}"), WITHIN, || (!super::probe::connects(from.site, to.address(), port)).then_some(()))?;
        self.proved(format!("{way} cannot be reached"));
        Ok(())
    }

    /// A port of `to` can still be reached from `from`.
    pub(super) fn prove_reachable(&mut self, from: Target<'a>, to: Target<'a>, port: u16) {
        self.prove(format!("a way {}→{}:{port}", from.name(), to.name()), move || {
            let reached = super::probe::connects(from.site, to.address(), port);
            reached.then(|| format!("{}→{}:{port} is reached", from.name(), to.name()))
        });
    }
}

fn shake_hands(ctx: &Ctx<'_>, from: Target<'_>, to: Target<'_>) -> Option<Duration> {
    let began = ctx.clock.now();
    let reached = super::probe::connects(from.site, to.address(), ctx.cluster.ports().grpc);
    reached.then(|| ctx.clock.now().since(began))
}

fn is_slower(before: Duration, took: Duration, longer: Duration) -> bool {
    took >= before + longer && took < before + RETRANSMITTED_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_is_more_than_the_distance_and_less_than_a_lost_packet() {
        let ms = Duration::from_millis;
        let slower = |before, took| is_slower(ms(before), ms(took), ms(200));
        assert!(slower(40, 240) && slower(200, 405));
        assert!(!slower(200, 203), "as far as it ever was");
        assert!(!slower(40, 1_041), "a packet was lost");
    }
}
