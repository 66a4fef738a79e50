//! Cluster transcripts: tests/scenarios/*.txt, golden and readable as documentation.
//!
//! A line that begins with `>` is a command to the world of the simulator, `#` is prose, what is indented is what the cluster then
//! did: each *changed* reason of the controller and of every node, each entry of the log but renewals, each acknowledged write.
//! Times are seconds since the cluster stood. `TRILITHON_BLESS=1` rewrites the indented lines; the expectations are always checked.
//! Every oracle of the simulator looks on.

use crate::sim::config::Config;
use crate::sim::net::Plane;
use crate::sim::node::Slot;
use crate::sim::run::shortfall;
use crate::sim::world::World;
use std::fs;
use std::path::{Path, PathBuf};
use trilithon::cluster::{Command, Durability, Phase, Tags};
use trilithon::types::NodeId;

/// One transcript while it runs.
struct Play {
    cfg: Config,
    world: Option<World>,
    begun: u64,
    shown: usize,
}

impl Play {
    fn new() -> Play {
        Play { cfg: Config::scripted(), world: None, begun: 0, shown: 0 }
    }

    fn world(&mut self) -> Result<&mut World, String> {
        self.world.as_mut().ok_or_else(|| "`start` or `boot` comes first".to_owned())
    }

    /// One command; the lines that it caused.
    fn obey(&mut self, line: &str) -> Result<Vec<String>, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if self.world.is_none() {
            self.prepare(&words)?;
        } else {
            match words.as_slice() {
                ["expect", what @ ..] => self.expect(what)?,
                other => self.act(other)?,
            }
        }
        self.news()
    }

    fn news(&mut self) -> Result<Vec<String>, String> {
        let (begun, shown) = (self.begun, self.shown);
        let Some(world) = self.world.as_mut() else { return Ok(Vec::new()) };
        if let Some(v) = &world.violation {
            return Err(format!("{} violated: {}", v.oracle, v.text));
        }
        let lines = world.trace.lines.as_deref().unwrap_or_default();
        let told = |l: &str| !l.contains(": -> ") && !l.starts_with("FAULT") && !l.contains(" thaws") && !l.contains("links mended");
        let news = lines[shown..]
            .iter()
            .filter(|(_, l)| told(l))
            .map(|(at, l)| format!("  {:>7.3}  {}", (at - begun) as f64 / 1000.0, world.named(l)))
            .collect();
        self.shown = lines.len();
        Ok(news)
    }

    fn prepare(&mut self, words: &[&str]) -> Result<(), String> {
        let cfg = &mut self.cfg;
        match words {
            ["data", n] => cfg.data = number(n)?,
            ["witnesses", n] => cfg.witnesses = number(n)?,
            ["durability", "quorum", n] => cfg.settings.acks = number(n)?,
            ["durability", "all"] => cfg.settings.durability = Durability::All,
            ["durability", "async"] => cfg.settings.durability = Durability::Async,
            ["strict", "off"] => cfg.settings.strict = false,
            ["lease", t] => cfg.settings.lease_ttl_ms = time(t)?,
            ["max-lag", n] => cfg.settings.max_lag_bytes = number(n)? as u64,
            ["boot"] => self.world = Some(World::new(cfg.clone(), true)),
            ["start"] => {
                let mut world = World::new(cfg.clone(), true);
                while shortfall(&world).is_some() && world.now < 120_000 {
                    world.run_until(world.now + 100);
                }
                world.run_until(world.now + 1_000);
                self.begun = world.now;
                self.shown = world.trace.lines.as_ref().map_or(0, Vec::len);
                self.world = Some(world);
            }
            other => return Err(format!("unknown setting `{}`", other.join(" "))),
        }
        Ok(())
    }

    fn act(&mut self, words: &[&str]) -> Result<(), String> {
        let world = self.world()?;
        match words {
            ["run", t] => {
                let until = world.now + time(t)?;
                world.run_until(until);
            }
            ["write", dc] => {
                let proxy = slot(world, dc)?;
                let to = world.route(proxy);
                let name = to.map(|s| world.name(s).to_owned());
                let line = match &name {
                    Some(primary) => format!("client at {dc}: write sent to {primary}"),
                    None => format!("client at {dc}: write held"),
                };
                world.note(3, || line);
                to.map(|s| world.write(s, 200, false));
            }
            ["write-directly", dc, n] => {
                let at = slot(world, dc)?;
                for _write in 0..number(n)? {
                    world.write(at, 200, false);
                }
            }
            ["switchover", dc] => order(world, dc, |to| Command::RequestSwitchover { to })?,
            ["failover", dc] => order(world, dc, |to| Command::RequestFailover { to, accept_loss: false })?,
            ["failover", dc, "allow-data-loss"] => order(world, dc, |to| Command::RequestFailover { to, accept_loss: true })?,
            ["again"] => {
                let last = world.admin.made.len() - 1;
                world.admin_send(last);
            }
            ["pause"] => world.order(Command::Pause { paused: true }),
            ["resume"] => world.order(Command::Pause { paused: false }),
            ["fence", dc] => order(world, dc, |node| Command::Fence { node, fenced: true })?,
            ["unfence", dc] => order(world, dc, |node| Command::Fence { node, fenced: false })?,
            ["tag", dc, tag] => {
                let tags = tags(tag)?;
                order(world, dc, |node| Command::SetTags { node, tags })?;
            }
            other => break_something(world, other)?,
        }
        Ok(())
    }

    fn expect(&mut self, what: &[&str]) -> Result<(), String> {
        let world = self.world()?;
        let state = &world.raft.truth;
        let primary = match state.phase {
            Phase::Steady { primary } => world.slot_of.get(&primary).copied(),
            _changing => None,
        };
        let fact = match what {
            ["primary", "none"] => primary.is_none_or(|s| !world.nodes[s].pg.runs_as_primary()),
            ["primary", dc] => primary == Some(slot(world, dc)?) && primary.is_some_and(|s| world.nodes[s].pg.runs_as_primary()),
            ["phase", word] => state.phase.word() == *word,
            ["epoch", n] => state.epoch.0 == number(n)? as u64,
            ["whole"] => match shortfall(world) {
                None => true,
                Some(why) => return Err(format!("not whole: {why}")),
            },
            ["streaming", dc] => world.nodes[slot(world, dc)?].pg.receiver.is_some(),
            ["acknowledged", n] => world.oracle.acks == number(n)? as u64,
            ["postgres", dc, "down"] => !world.nodes[slot(world, dc)?].pg.is_up(),
            ["postgres", dc, "standby"] => world.nodes[slot(world, dc)?].pg.runs_as_standby(),
            ["postgres", dc, "primary"] => world.nodes[slot(world, dc)?].pg.runs_as_primary(),
            ["elections", n] => world.oracle.elections == number(n)? as u64,
            other => return Err(format!("unknown expectation `{}`", other.join(" "))),
        };
        if fact { Ok(()) } else { Err(format!("expected {}, but phase is {:?} in epoch {}", what.join(" "), state.phase, state.epoch)) }
    }
}

fn break_something(world: &mut World, words: &[&str]) -> Result<(), String> {
    const BOTH: [Plane; 2] = [Plane::Peer, Plane::Postgres];
    match words {
        ["kill", dc] => {
            let at = slot(world, dc)?;
            world.kill_postgres(at);
            world.kill_agent(at);
        }
        ["kill-agent", dc] => {
            let at = slot(world, dc)?;
            world.kill_agent(at);
        }
        ["kill-postgres", dc] => {
            let at = slot(world, dc)?;
            world.kill_postgres(at);
        }
        ["power-off", dc] => {
            let at = slot(world, dc)?;
            world.power_off(at);
        }
        ["start", dc] => {
            let at = slot(world, dc)?;
            world.power_on(at);
            world.start_agent(at);
        }
        ["freeze", dc] => freeze(world, dc, true, true)?,
        ["freeze-agent", dc] => freeze(world, dc, true, false)?,
        ["freeze-postgres", dc] => freeze(world, dc, false, true)?,
        ["thaw", dc] => {
            let at = slot(world, dc)?;
            world.thaw(at, true, true, false);
        }
        ["wipe", dc] => {
            let at = slot(world, dc)?;
            world.wipe(at);
        }
        ["isolate", dc] => isolate(world, dc, &BOTH)?,
        ["isolate-postgres", dc] => isolate(world, dc, &[Plane::Postgres])?,
        ["isolate-peers", dc] => isolate(world, dc, &[Plane::Peer])?,
        ["cut", from, "->", to] => {
            let (from, to) = (slot(world, from)?, slot(world, to)?);
            world.cut(&BOTH.map(|p| (p, from, to)));
        }
        ["cut", from, "<->", to] => {
            let (from, to) = (slot(world, from)?, slot(world, to)?);
            world.cut(&BOTH.map(|p| (p, from, to)));
            world.cut(&BOTH.map(|p| (p, to, from)));
        }
        ["mend"] => {
            world.net.mend_all();
            world.network_healed();
            world.consensus_disturbed();
        }
        other => return Err(format!("unknown command `{}`", other.join(" "))),
    }
    Ok(())
}

fn freeze(world: &mut World, dc: &str, agent: bool, postgres: bool) -> Result<(), String> {
    let at = slot(world, dc)?;
    world.freeze(at, agent, postgres);
    Ok(())
}

fn isolate(world: &mut World, dc: &str, planes: &[Plane]) -> Result<(), String> {
    let at = slot(world, dc)?;
    let others = (0..world.nodes.len()).filter(|o| *o != at);
    let links: Vec<_> = others.flat_map(|o| planes.iter().flat_map(move |p| [(*p, at, o), (*p, o, at)])).collect();
    world.cut(&links);
    Ok(())
}

fn order(world: &mut World, dc: &str, command: impl FnOnce(NodeId) -> Command) -> Result<(), String> {
    let at = slot(world, dc)?;
    world.order(command(world.nodes[at].id));
    Ok(())
}

fn slot(world: &World, dc: &str) -> Result<Slot, String> {
    world.nodes.iter().position(|n| n.name == dc).ok_or_else(|| format!("no datacenter `{dc}`"))
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_not| format!("`{word}` is not a number"))
}

fn time(word: &str) -> Result<u64, String> {
    match (word.strip_suffix("ms"), word.strip_suffix('s')) {
        (Some(ms), _) => ms.parse().map_err(|_not| format!("`{word}` is not a time")),
        (None, Some(s)) => s.parse::<u64>().map(|s| s * 1_000).map_err(|_not| format!("`{word}` is not a time")),
        (None, None) => Err(format!("`{word}` is not a time")),
    }
}

fn tags(word: &str) -> Result<Tags, String> {
    match (word, word.strip_prefix("priority=")) {
        ("nofailover", _) => Ok(Tags { nofailover: true, ..Tags::default() }),
        ("nosync", _) => Ok(Tags { nosync: true, ..Tags::default() }),
        ("none", _) => Ok(Tags::default()),
        (_, Some(n)) => Ok(Tags { priority: number(n)? as i32, ..Tags::default() }),
        (_, None) => Err(format!("unknown tag `{word}`")),
    }
}

/// The transcript as the cluster of today would write it.
fn replay(text: &str) -> Result<String, String> {
    let mut play = Play::new();
    let mut out = String::new();
    for (n, line) in text.lines().enumerate() {
        if line.starts_with(' ') {
            continue;
        }
        out.push_str(line);
        out.push('\n');
        if let Some(command) = line.strip_prefix('>') {
            let news = play.obey(command.trim()).map_err(|why| format!("line {}: `{line}`: {why}\nso far:\n{out}", n + 1))?;
            news.iter().for_each(|l| out.push_str(&format!("{l}\n")));
        }
    }
    Ok(out)
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = fs::read_dir(folder).expect("tests/scenarios is part of the repository");
    let mut files: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|x| x == "txt")).collect();
    files.sort();
    files
}

#[test]
fn transcripts_tell_what_the_cluster_does() {
    let bless = std::env::var_os("TRILITHON_BLESS").is_some();
    let mut wrong = Vec::new();
    let files = files();
    assert!(files.len() >= 20, "{} transcripts", files.len());
    for file in files {
        let text = fs::read_to_string(&file).expect("a transcript is text");
        match replay(&text) {
            Err(why) => wrong.push(format!("{}: {why}", file.display())),
            Ok(now) if now == text => {}
            Ok(now) if bless => fs::write(&file, now).expect("a transcript can be written"),
            Ok(now) => {
                let first = now.lines().zip(text.lines()).position(|(a, b)| a != b).unwrap_or(0);
                let (is, was) = (now.lines().nth(first).unwrap_or(""), text.lines().nth(first).unwrap_or(""));
                wrong.push(format!("{}:{}: the cluster says\n{is}\nthe transcript says\n{was}", file.display(), first + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n(TRILITHON_BLESS=1 rewrites the transcripts)", wrong.join("\n\n"));
}
