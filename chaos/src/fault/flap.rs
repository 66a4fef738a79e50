//! Lines that break and mend again and again, by a thread of their own.

use super::aim::Target;
use super::injected::Injected;
use super::toil::Toil;
use anyhow::Result;
use rand::Rng as _;
use std::time::Duration;

/// All lines of `target` break and mend in turns that each last between the two of `turn`.
pub fn lines<'a>(i: &mut Injected<'a>, target: Target<'a>, turn: (Duration, Duration)) -> Result<()> {
    // Mended last, after the thread below has ended: healing goes backwards.
    i.all_lines(target, |_| {})?;
    let wan = i.ctx.world.wan().clone();
    let me = target.name().to_owned();
    let others: Vec<String> = i.others(target).iter().map(|o| o.name().to_owned()).collect();
    let mut rng = i.rng.clone();
    let mut cut = false;
    let toil = Toil::begin("chaos-flap", move |rest| {
        cut = !cut;
        for other in &others {
            for (from, to) in [(&me, other), (other, &me)] {
                wan.change(from, to, |link| link.cut = cut);
            }
        }
        rest.sleep(rng.random_range(turn.0..=turn.1));
    })?;
    i.undo("end the flapping", move || toil.end());
    Ok(())
}
