//! Primitives on the lines between datacenters. Each direction that is changed is put back as the world's preset has it.

use super::aim::Target;
use super::injected::Injected;
use crate::world::Link;
use anyhow::Result;

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
            self.prove_drops(from, to);
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

    /// More packets were dropped on the way since now.
    pub(super) fn prove_drops(&mut self, from: Target<'a>, to: Target<'a>) {
        let wan = self.ctx.world.wan();
        let dropped = move || wan.counters(from.name(), to.name()).dropped();
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

    /// A handshake from `from` to a port of `to` takes at least `least_ms`, or does not end at all.
    pub(super) fn prove_slow(&mut self, from: Target<'a>, to: Target<'a>, least_ms: u64) {
        let (clock, port) = (self.ctx.clock, self.ctx.cluster.ports().grpc);
        self.prove(format!("a slow handshake {}→{}", from.name(), to.name()), move || {
            let began = clock.now();
            let reached = super::probe::connects(from.site, to.address(), port);
            let took = clock.now().since(began).as_millis();
            let slow = !reached || took >= u128::from(least_ms);
            slow.then(|| format!("a handshake {}→{} took {took} ms{}", from.name(), to.name(), if reached { "" } else { " in vain" }))
        });
    }

    /// A port of `to` cannot be reached from `from`.
    pub(super) fn prove_unreachable(&mut self, from: Target<'a>, to: Target<'a>, port: u16) {
        self.prove(format!("no way {}→{}:{port}", from.name(), to.name()), move || {
            let reached = super::probe::connects(from.site, to.address(), port);
            (!reached).then(|| format!("{}→{}:{port} cannot be reached", from.name(), to.name()))
        });
    }

    /// A port of `to` can still be reached from `from`.
    pub(super) fn prove_reachable(&mut self, from: Target<'a>, to: Target<'a>, port: u16) {
        self.prove(format!("a way {}→{}:{port}", from.name(), to.name()), move || {
            let reached = super::probe::connects(from.site, to.address(), port);
            reached.then(|| format!("{}→{}:{port} is reached", from.name(), to.name()))
        });
    }
}
