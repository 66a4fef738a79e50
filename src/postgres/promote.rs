//! Promotion onto exactly the claimed timeline (INV-8), with the rule already in force.

use super::conf::{ByHand, Promotion, SyncNames};
use super::error::Error;
use super::history;
use super::instance::{Activity, Instance, QUERY_LIMIT};
use super::lifecycle::POLL;
use super::process::lock;
use super::swap::inode;
use super::tool::{blocking, within};
use crate::bug::{self, Bug};
use crate::cluster::SyncRule;
use crate::types::{Epoch, Timeline};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;

impl Instance {
    /// Promotes a detached standby. The rule's list is in force before the first write; the timeline is verified after, and a
    /// server on any other is stopped at once.
    pub async fn promote(&self, epoch: Epoch, timeline: Timeline, rule: &SyncRule, limit: Duration) -> Result<(), Error> {
        let _working = self.begin(Activity::Promoting)?;
        let asked = AtomicBool::new(false);
        let promoted = within(limit, "promotion", self.promote_onto(epoch, timeline, rule, &asked)).await;
        if promoted.is_err() {
            // PostgreSQL cannot be told to forget a promotion: it would come about later, without a right to it.
            if asked.load(Ordering::Acquire) {
                self.demote().await?;
            }
            // Where nothing came of it the reserved numbers are given back; a server that did promote keeps its own and those below.
            let wal = self.layout.wal();
            blocking(move || history::withdraw_beyond_newest(&wal)).await?;
        }
        promoted
    }

    async fn promote_onto(&self, epoch: Epoch, timeline: Timeline, rule: &SyncRule, asked: &AtomicBool) -> Result<(), Error> {
        let locked_out = self.lockout_end();
        let own = match locked_out {
            Some((timeline, _)) => timeline,
            None => self.standby_timeline().await?,
        };
        let timeline = if bug::is(Bug::TimelineReused) { own.next() } else { timeline };
        if own >= timeline {
            return Err(Error::WrongTimeline { claimed: timeline, found: own });
        }
        self.check_never_begun(timeline)?;
        let names = SyncNames::of(rule);
        // Persisted first: a successor of this process must know that this primary is ours.
        self.retune(|intent| {
            intent.upstream = None;
            intent.sync = names.clone();
            intent.promotion = Some(Promotion { epoch, timeline });
        })
        .await?;
        self.reload().await?;
        match locked_out {
            Some(_) => self.await_refusal(&names).await?,
            None => self.await_names(&names).await?,
        }
        if let Err(error) = self.clear_stumps(own).await {
            tracing::warn!(%error, "promoting without a look at the first segments of newer timelines");
        }
        let (wal, run_as) = (self.layout.wal(), self.run_as.clone());
        blocking(move || history::reserve(&wal, own.next().0..timeline.0, &run_as)).await?;
        asked.store(true, Ordering::Release);
        match locked_out {
            Some(_) => {
                tracing::info!("promoting a server that lets nobody in");
                self.promote_by_file().await?;
                self.await_names(&names).await?;
            }
            None => self.session().await?.run("SELECT pg_promote(false)", QUERY_LIMIT).await?,
        }
        while self.recovers().await? {
            sleep(POLL).await;
        }
        let found = self.identify().await?.timeline;
        if found != timeline {
            return Err(Error::WrongTimeline { claimed: timeline, found });
        }
        // Whatever it was before, it is the cluster's primary now.
        let marked = self.by_hand();
        if !marked.is_empty() {
            self.own(&marked).await?;
        }
        self.tell_histories().await?;
        self.create_slots(rule.standbys.iter().copied()).await
    }

    /// Somebody else promoted this server, onto numbers that may be claimed for another: what it holds of these timelines is told to no
    /// election any more, until the directory is rewound or replaced (INV-7, INV-8).
    pub async fn disown(&self, timelines: BTreeSet<Timeline>) -> Result<(), Error> {
        let inode = inode(&self.layout.pgdata).unwrap_or_default();
        self.retune(|intent| {
            let mut marked = intent.by_hand.take().filter(|marked| marked.inode == inode).unwrap_or(ByHand { inode, ..ByHand::default() });
            marked.timelines.extend(timelines);
            intent.by_hand = Some(marked);
        })
        .await
    }

    /// What it holds of these timelines belongs to the cluster after all, or is gone.
    pub async fn own(&self, timelines: &BTreeSet<Timeline>) -> Result<(), Error> {
        self.retune(|intent| {
            let left = |marked: ByHand| ByHand { timelines: &marked.timelines - timelines, ..marked };
            intent.by_hand = intent.by_hand.take().map(left).filter(|marked| !marked.timelines.is_empty());
        })
        .await
    }

    /// The timelines that somebody promoted this directory onto by hand.
    #[must_use]
    pub fn by_hand(&self) -> BTreeSet<Timeline> {
        self.marked().map(|marked| marked.timelines).unwrap_or_default()
    }

    /// The mark, where it is this directory's.
    pub(super) fn marked(&self) -> Option<ByHand> {
        let marked = lock(&self.model).intent.by_hand.clone();
        marked.filter(|marked| inode(&self.layout.pgdata) == Some(marked.inode))
    }

    pub(super) async fn recovers(&self) -> Result<bool, Error> {
        Ok(self.session().await?.value("SELECT pg_is_in_recovery()", QUERY_LIMIT).await?.as_deref() != Some("f"))
    }

    async fn standby_timeline(&self) -> Result<Timeline, Error> {
        if self.recovers().await? { Ok(self.identify().await?.timeline) } else { Err(Error::NotStandby) }
    }

    /// A promotion that was broken off has left its history before any WAL: PostgreSQL would take the next number then, which nobody has
    /// claimed (INV-8), and its WAL would have no writer that an election knows (INV-7).
    fn check_never_begun(&self, timeline: Timeline) -> Result<(), Error> {
        if self.layout.wal().join(timeline.history_file()).exists() {
            return Err(Error::TimelineBegun { claimed: timeline });
        }
        Ok(())
    }

    /// On a primary: a history for every timeline below its own, once. Upkeep does it too, for a promotion that nobody saw to its end: the
    /// next step begins as soon as the server is seen to be a primary.
    pub(super) async fn tell_histories(&self) -> Result<(), Error> {
        // Asks the server nothing on a standby, nor twice on a primary.
        let Some((_, timeline)) = self.promoted().filter(|(_, timeline)| self.told.load(Ordering::Relaxed) != timeline.0) else {
            return Ok(());
        };
        if !self.recovers().await? && self.identify().await?.timeline == timeline {
            let (wal, run_as) = (self.layout.wal(), self.run_as.clone());
            blocking(move || history::complete(&wal, timeline, &run_as)).await?;
            self.told.store(timeline.0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until a new connection sees `names`. Its process was forked after the postmaster had read the file and had told all
    /// its children, so from then on every other process has at least been told.
    pub(super) async fn await_names(&self, names: &SyncNames) -> Result<(), Error> {
        let wanted = names.value();
        let mut found = String::new();
        let seen = within(Duration::from_secs(2), "loading the rule", async {
            loop {
                found = self.connect().await?.value("SHOW synchronous_standby_names", QUERY_LIMIT).await?.unwrap_or_default();
                if found == wanted {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        });
        match seen.await {
            Err(Error::Timeout { .. }) => Err(Error::RuleNotInForce { wanted, found }),
            other => other,
        }
    }

    /// Has this server's way to wait for standbys been proved?
    pub(super) fn waits(&self) -> bool {
        lock(&self.model).waits
    }
}
