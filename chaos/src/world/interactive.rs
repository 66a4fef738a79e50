//! `chaos up`: a world for people, with a shell per datacenter, and words to break and mend it.

use super::interrupt::Interrupts;
use super::up::{Spec, World};
use super::wan::Link;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

const HELP: &str = "\
\x20 cut A B | cut-one-way A B | isolate A      nothing passes
  port A B 5432                              packets of this port vanish, both ways
  delay A B 40ms | jitter A B 2ms            one way each, both ways set
  loss A B 5 | reorder A B 2 | duplicate A B 1   percent, both ways
  rate A B 1                                 Mbit/s, both ways
  mtu A B 1000                               larger packets vanish, both ways
  heal                                       all lines as at the beginning
  freeze A | thaw A | kill A | power A       all processes of a datacenter; power: and what its disk did not make durable
  disk A crash | remount | hang | fail-writes | fail-fsyncs | slow 100ms | full | read-only | heal
  clock A wall -3600 | clock A drift 5       seconds; percent
  status                                     lines and processes
  quit                                       takes the world down (as do Ctrl-C and the end of the input)";

/// How often Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Builds a world, tells how to enter it, and obeys the lines of standard input until their end, `quit` or Ctrl-C.
///
/// # Errors
/// When the world cannot be built or taken down.
pub fn up_interactive(spec: &Spec) -> Result<()> {
    let interrupts = Interrupts::listen()?;
    let world = World::up(spec)?;
    println!("A world of {} datacenters is up in {}. A shell in each, from another terminal:\n", world.sites().len(), spec.dir.display());
    for site in world.sites() {
        println!("  {} ({})  {}", site.name(), site.address(), site.shell_line());
    }
    println!("\n{HELP}\n");
    let lines = lines()?;
    while !interrupts.requested() {
        print!("> ");
        std::io::stdout().flush()?;
        let Some(line) = next(&lines, &interrupts) else { break };
        match obey(&world, line.trim()) {
            Ok(Answer::Quit) => break,
            Ok(Answer::Said(text)) if text.is_empty() => {}
            Ok(Answer::Said(text)) => println!("{text}"),
            Err(error) => println!("{error:#}"),
        }
    }
    println!("\ntaking the world down");
    world.down()
}

enum Answer {
    Said(String),
    Quit,
}

/// Lines of standard input; the thread ends with the process, since reading cannot be interrupted.
fn lines() -> Result<Receiver<String>> {
    let (sender, lines) = sync_channel(16);
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).context("the thread that reads the commands")?;
    Ok(lines)
}

fn next(lines: &Receiver<String>, interrupts: &Interrupts) -> Option<String> {
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => return Some(line),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if interrupts.requested() => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn obey(world: &World, line: &str) -> Result<Answer> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let said = match words.as_slice() {
        [] => String::new(),
        ["quit" | "exit"] => return Ok(Answer::Quit),
        ["help"] => HELP.to_owned(),
        ["status"] => status(world),
        ["heal"] => {
            world.wan().heal();
            String::new()
        }
        ["cut", a, b] => change(world, a, b, |link| link.cut = true)?,
        ["cut-one-way", a, b] => {
            world.wan().cut(index(world, a)?, index(world, b)?);
            String::new()
        }
        ["isolate", a] => {
            world.wan().isolate(index(world, a)?);
            String::new()
        }
        ["clock", a, what, value] => {
            clock(world, a, what, value)?;
            String::new()
        }
        [verb @ ("freeze" | "thaw" | "kill" | "power"), a] => {
            processes(world, verb, a)?;
            String::new()
        }
        ["disk", a, rest @ ..] => disk(world, a, rest)?,
        [verb, a, b, value] => set(world, verb, a, b, value)?,
        _ => bail!("not understood; `help` lists the commands"),
    };
    Ok(Answer::Said(said))
}

fn set(world: &World, verb: &str, a: &str, b: &str, value: &str) -> Result<String> {
    match verb {
        "delay" => duration(value).and_then(|delay| change(world, a, b, |link| link.delay = delay)),
        "jitter" => duration(value).and_then(|jitter| change(world, a, b, |link| link.jitter = jitter)),
        "loss" => percent(value).and_then(|loss| change(world, a, b, |link| link.loss = loss)),
        "reorder" => percent(value).and_then(|reorder| change(world, a, b, |link| link.reorder = reorder)),
        "duplicate" => percent(value).and_then(|duplicate| change(world, a, b, |link| link.duplicate = duplicate)),
        "rate" => {
            let megabits: u64 = value.parse().context("a rate is a whole number of Mbit/s")?;
            change(world, a, b, |link| link.bits_per_second = Some(megabits * 1_000_000))
        }
        "mtu" => {
            let mtu = value.parse().context("an MTU is a number of bytes")?;
            change(world, a, b, |link| link.mtu = Some(mtu))
        }
        "port" => {
            let port = value.parse().context("a port is a number from 1 to 65535")?;
            change(world, a, b, |link| {
                link.cut_ports.insert(port);
            })
        }
        _ => bail!("not understood; `help` lists the commands"),
    }
}

fn change(world: &World, a: &str, b: &str, change: impl Fn(&mut Link)) -> Result<String> {
    let (a, b) = (index(world, a)?, index(world, b)?);
    world.wan().change(a, b, &change);
    world.wan().change(b, a, &change);
    Ok(String::new())
}

fn processes(world: &World, verb: &str, site: &str) -> Result<()> {
    let site = &world.sites()[index(world, site)?];
    match verb {
        "freeze" => site.freeze(),
        "thaw" => site.thaw(),
        "kill" => site.kill(),
        _ => site.power_loss(None).map(drop),
    }
}

fn disk(world: &World, site: &str, words: &[&str]) -> Result<String> {
    let site = &world.sites()[index(world, site)?];
    let disk = site.disk().context("this world has no disks: start it with them")?;
    match words {
        ["crash"] => return Ok(format!("{} blocks of 4 KiB were lost", disk.crash()?)),
        ["remount"] => disk.remount()?,
        ["hang"] => disk.hang(true),
        ["fail-writes"] => disk.fail_writes(true),
        ["fail-fsyncs"] => disk.fail_fsyncs(true),
        ["slow", delay] => disk.fsync_delay(duration(delay)?),
        ["full"] => disk.full(0)?,
        ["read-only"] => disk.read_only()?,
        ["heal"] => disk.heal()?,
        _ => bail!("not understood; `help` lists the commands"),
    }
    Ok(if disk.needs_remount() { format!("`disk {} remount` brings it back", site.name()) } else { String::new() })
}

fn clock(world: &World, site: &str, what: &str, value: &str) -> Result<()> {
    let clock = world.sites()[index(world, site)?].clock().context("this world has no clocks of its own: start it with them")?;
    match what {
        "wall" => clock.set_wall(value.parse().context("a jump is a whole number of seconds")?),
        "drift" => {
            let percent: i64 = value.trim_end_matches('%').parse().context("a drift is a whole percentage")?;
            clock.set_drift_ppm(percent.saturating_mul(10_000))
        }
        _ => bail!("a clock has `wall` and `drift`"),
    }
}

fn index(world: &World, name: &str) -> Result<usize> {
    let names = || world.sites().iter().map(|site| site.name()).collect::<Vec<_>>().join(", ");
    world.site(name).map(|site| site.index()).with_context(|| format!("no datacenter {name:?}; there are {}", names()))
}

fn status(world: &World) -> String {
    let mut text = Vec::new();
    for from in world.sites() {
        for to in world.sites().iter().filter(|to| to.index() != from.index()) {
            let (link, counters) = (world.wan().link(from, to), world.wan().counters(from, to));
            let state =
                if link.cut { "cut".to_owned() } else { format!("{:?} ± {:?}, {} % lost", link.delay, link.jitter, link.loss * 100.0) };
            text.push(format!(
                "{} → {}: {state}; {} packets passed, {} cut, {} lost",
                from.name(),
                to.name(),
                counters.passed,
                counters.cut,
                counters.lost
            ));
        }
    }
    text.extend(world.sites().iter().map(|site| format!("{}: {} processes", site.name(), site.pids().len())));
    text.join("\n")
}

/// `40ms`, `1.5s`, `200us`.
fn duration(text: &str) -> Result<Duration> {
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).context("a duration has a unit: 40ms, 1s, 200us")?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => bail!("the units are us, ms and s, not {unit:?}"),
    };
    let number: f64 = number.parse().with_context(|| format!("{number:?} is no number"))?;
    Duration::try_from_secs_f64(number * seconds).with_context(|| format!("{text:?} is no duration"))
}

fn percent(text: &str) -> Result<f64> {
    let percent: f64 = text.trim_end_matches('%').parse().with_context(|| format!("{text:?} is no number"))?;
    ensure!((0.0..=100.0).contains(&percent), "a percentage is from 0 to 100, not {percent}");
    Ok(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_percentages_are_read() {
        assert_eq!(duration("40ms").expect("read"), Duration::from_millis(40));
        assert_eq!(duration("1.5s").expect("read"), Duration::from_millis(1500));
        assert!(duration("40").is_err() && duration("x").is_err() && duration("-1s").is_err());
        assert!((percent("5%").expect("read") - 0.05).abs() < 1e-9);
        assert!(percent("101").is_err());
    }
}
