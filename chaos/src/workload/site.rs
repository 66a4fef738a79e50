//! The clients of one datacenter: who they are, and how the rate is shared among them.

use super::bank::{Auditor, Teller};
use super::client::{Actor, Desk, Habit, Numbers, Shared, drive, rng};
use super::glimpse::Onlooker;
use super::history::{Confirm, Door, Histories, Level, Origin, Protocol};
use super::list_append::Appender;
use super::place::{Login, Ports};
use super::register::Registrar;
use super::session::{Session, Target};
use super::set_add::Adder;
use super::tally::Tally;
use super::versions::Keeper;
use super::watcher::Watcher;
use super::{Plan, schema};
use crate::record::RunClock;
use anyhow::{Result, anyhow};
use rand::Rng;
use rand::rngs::SmallRng;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Watchers look once in so long.
const WATCH: Duration = Duration::from_millis(500);
/// Longer than any failover: a beat that waits for its standbys shall wait, not be repeated.
const BEAT_DEADLINE: Duration = Duration::from_secs(60);

/// Everything that a site's clients need, fit to travel to the site's thread.
pub struct SiteJob {
    pub index: u8,
    /// Name and address of every site.
    pub places: Vec<(String, String)>,
    pub ports: Ports,
    pub login: Login,
    pub clock: RunClock,
    pub plan: Plan,
    pub stop: CancellationToken,
    pub tally: Arc<Tally>,
    pub shared: Arc<Shared>,
}

/// Runs the site's clients until they are told to stop.
///
/// # Errors
/// One of them panicked: what it saw is not known, and nothing may be concluded from the others' histories alone.
pub async fn run_site(job: SiteJob) -> Result<Histories> {
    let own = usize::from(job.index);
    let host = job.places.get(own).map(|(_, host)| host.clone()).unwrap_or_default();
    // Clients without a proxy start at home.
    let hosts: Vec<String> = job.places.iter().cycle().skip(own).take(job.places.len()).map(|(_, host)| host.clone()).collect();
    let desk = Rc::new(Desk {
        site: job.index,
        host,
        hosts,
        ports: job.ports,
        login: job.login.clone(),
        clock: job.clock,
        deadline: job.plan.deadline,
        stop: job.stop.clone(),
        tally: Arc::clone(&job.tally),
        shared: Arc::clone(&job.shared),
        log: RefCell::new(Histories::default()),
    });
    let mut staff = Staff { desk: Rc::clone(&desk), plan: job.plan.clone(), sites: job.places.len(), hired: 0, clients: JoinSet::new() };
    staff.writers();
    staff.readers(&job.places);
    if let Some((name, _)) = job.places.get(own) {
        staff.watchers(name);
    }
    let ended = all_ended(&mut staff.clients).await;
    drop(staff);
    ended.map(|()| std::mem::take(&mut *desk.log.borrow_mut()))
}

/// Waits for all clients, also where one has panicked: a cluster without load would not be the one that is tested.
async fn all_ended(clients: &mut JoinSet<()>) -> Result<()> {
    let mut panicked = None;
    while let Some(ended) = clients.join_next().await {
        panicked = panicked.or(ended.err());
    }
    panicked.map_or(Ok(()), |error| Err(anyhow!("a client came to no good end: {error}")))
}

/// Makes the tables by one session.
///
/// # Errors
/// Names what failed.
pub async fn prepare_once(host: &str, ports: Ports, login: &Login, door: Door, clock: RunClock, deadline: Duration) -> Result<()> {
    let target = Target { host: host.to_owned(), ports, door, login: login.clone() };
    let origin = Origin { site: 0, door, session: 0 };
    let session = Session::open(&target, origin, clock, deadline).await;
    let session = session.map_err(|t| anyhow!("no session at {host} to make the workloads' tables with ({}); is the proxy up?", t.why))?;
    schema::create(&session).await
}

struct Staff {
    desk: Rc<Desk>,
    plan: Plan,
    sites: usize,
    hired: u32,
    clients: JoinSet<()>,
}

impl Staff {
    /// Four parts in five of the rate. Shares are of the whole rate; each kind divides its share among its clients on all sites.
    fn writers(&mut self) {
        let adders = [(Door::Auto, Protocol::Simple), (Door::Primary, Protocol::Named), (Door::Auto, Protocol::Unnamed)];
        for (door, protocol) in adders {
            self.hire(door, 0.11, true, |numbers, rng, _| Adder::new(protocol, numbers, rng));
        }
        if self.plan.direct {
            self.hire(Door::Direct, 0.05, true, |numbers, rng, _| Adder::new(Protocol::Simple, numbers, rng));
        }
        for (door, level) in [(Door::Primary, Level::Serializable), (Door::Auto, Level::Serializable), (Door::Auto, Level::RepeatableRead)]
        {
            self.hire(door, 0.06, true, |numbers, rng, _| Appender::new(level, numbers, rng));
        }
        for _ in 0..2 {
            self.hire(Door::Primary, 0.08, true, |numbers, rng, _| Registrar::new(numbers, rng));
        }
        self.hire(Door::Primary, 0.08, true, |_, rng, _| Teller::new(rng));
        self.hire(Door::Auto, 0.08, true, |_, rng, actor| Keeper::new(i32::try_from(actor).unwrap_or(i32::MAX), rng));
    }

    fn readers(&mut self, places: &[(String, String)]) {
        for door in [Door::Auto, Door::Standby, Door::Primary] {
            self.hire(door, 0.02, false, |_, _, _| Auditor);
        }
        for door in [Door::Auto, Door::Standby, Door::Primary] {
            self.hire(door, 0.02, false, |_, _, _| Onlooker::new(None));
        }
        self.hire(Door::Primary, 0.06, false, |numbers, rng, _| Registrar::reader(numbers, rng));
        if self.plan.direct {
            self.hire(Door::Direct, 0.02, false, |_, _, _| Auditor);
            let own = places.get(usize::from(self.desk.site)).map(|(name, _)| name.clone());
            let home = vec![self.desk.host.clone()];
            self.hire_at(home, Door::Direct, 0.02, false, |_, _, _| Onlooker::new(own));
        }
    }

    fn watchers(&mut self, node: &str) {
        for confirm in [Confirm::Rule, Confirm::Alone] {
            if confirm == Confirm::Alone && !self.plan.watch_alone {
                continue;
            }
            let habit = Habit { door: Door::Direct, pace: WATCH, deadline: Some(BEAT_DEADLINE), writes: false };
            let (actor, desk, home) = (Watcher::new(node.to_owned(), confirm), Rc::clone(&self.desk), vec![self.desk.host.clone()]);
            self.clients.spawn_local(async move {
                // A beat may wait for its standbys for a minute; the end of the run does not wait for the beat.
                tokio::select! {
                    () = drive(actor, habit, &home, &desk) => {}
                    () = desk.stop.cancelled() => {}
                }
            });
        }
    }

    fn hire<A: Actor + 'static>(&mut self, door: Door, share: f64, writes: bool, make: impl FnOnce(Numbers, SmallRng, u32) -> A) {
        self.hire_at(self.desk.hosts.clone(), door, share, writes, make);
    }

    fn hire_at<A: Actor + 'static>(
        &mut self,
        hosts: Vec<String>,
        door: Door,
        share: f64,
        writes: bool,
        make: impl FnOnce(Numbers, SmallRng, u32) -> A,
    ) {
        // Unique in the run, and the same in every run of a seed.
        self.hired += 1;
        let number = (u32::from(self.desk.site) + 1) * 1000 + self.hired;
        let mut rng = rng(self.plan.seed, number);
        #[expect(clippy::cast_precision_loss, reason = "a handful of sites")]
        let pace = Duration::from_secs_f64((self.sites as f64 / (self.plan.per_second * share)).clamp(0.001, 60.0));
        // Not all at the same instant.
        let lag = pace.mul_f64(rng.random_range(0.0..1.0));
        let actor = make(Numbers::of(number), rng, number);
        let habit = Habit { door, pace, deadline: None, writes };
        let desk = Rc::clone(&self.desk);
        self.clients.spawn_local(async move {
            tokio::time::sleep(lag).await;
            drive(actor, habit, &hosts, &desk).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_panics_is_told_when_the_others_have_ended() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let others = Rc::new(RefCell::new(0));
        let counted = Rc::clone(&others);
        let ended = tokio::task::LocalSet::new().block_on(&runtime, async move {
            let mut clients = JoinSet::new();
            clients.spawn_local(async { panic!("a client's own mistake") });
            clients.spawn_local(async move {
                tokio::task::yield_now().await;
                *counted.borrow_mut() += 1;
            });
            all_ended(&mut clients).await
        });
        assert!(ended.unwrap_err().to_string().contains("panicked"));
        assert_eq!(*others.borrow(), 1);
    }
}
