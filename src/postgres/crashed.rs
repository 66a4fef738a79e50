//! A crashed primary that comes up as a standby, and lets nobody in.
//!
//! A standby admits connections once it knows which transactions were under way. Of one with more than 64 subtransactions the WAL tells so only
//! when it has ended; a primary that died in the midst of it never tells, and nobody sends more. PostgreSQL waits for ever then, neither its
//! end of WAL is known (INV-7) nor can it be promoted, and where all lost their power at once the cluster would not come back. So it goes
//! through the recovery of a primary, alone and without a single client: that aborts what was under way, and ends with a checkpoint.
//!
//! That adds WAL to a timeline, which nobody but its primary may do: see [`Intent::crashed`](super::conf::Intent).

use super::conf;
use super::control::{ControlData, LastState};
use super::error::{Error, io};
use super::instance::Instance;
use super::lifecycle::RESTART_LIMIT;
use super::process::lock;
use super::recovery::Wait;
use super::swap;
use super::tool::{self, blocking};
use rustix::process::Signal;
use std::time::Duration;

/// For so long it has neither worked nor gone on to another segment.
const LOCKED_OUT_AFTER: Duration = Duration::from_secs(10);
/// It may have to replay all since the last checkpoint, once more.
const ALONE_LIMIT: Duration = Duration::from_secs(3600);

impl Instance {
    /// What the intent of a start says of a crash: the directory's inode, where it was a primary of ours that ended without a shutdown, and
    /// has not followed anybody since.
    pub(super) async fn crashed_primary(&self, control: &ControlData) -> Option<u64> {
        let pgdata = self.layout.pgdata.clone();
        let (inode, is_copy) = blocking(move || (swap::inode(&pgdata), pgdata.join("backup_label").exists())).await;
        let known = lock(&self.model).intent.clone();
        let begins = known.promotion.is_some() && control.in_production && !is_copy;
        inode.filter(|inode| begins || known.crashed == Some(*inode))
    }

    /// Does a crashed primary wait, with nothing left to replay, and nobody can get in? As of the last facts.
    #[must_use]
    pub fn locked_out(&self) -> bool {
        let crashed = lock(&self.model).intent.crashed.is_some();
        let idle = |since| self.clock.now().since(since) >= LOCKED_OUT_AFTER;
        crashed && lock(&self.recovery).as_ref().is_some_and(|r| matches!(r.wait, Wait::Replay(_)) && idle(r.since))
    }

    /// Ends the server, and leaves a directory that was shut down as a primary's is.
    pub(super) async fn recover_alone(&self) -> Result<(), Error> {
        tracing::warn!(
            "a crashed primary lets nobody in (a transaction with more than 64 subtransactions was under way): recovering it alone"
        );
        self.forget_recovery();
        self.signal_and_wait(Signal::INT, RESTART_LIMIT).await?;
        let pids = self.leftovers().await;
        if !pids.is_empty() {
            return Err(Error::Orphans { pids, path: self.layout.pgdata.clone() });
        }
        let signal = self.layout.pgdata.join("standby.signal");
        blocking(move || match std::fs::remove_file(&signal) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("cannot remove", signal)(e)),
            Ok(()) | Err(_) => Ok(()),
        })
        .await?;
        let (install, node) = {
            let model = lock(&self.model);
            (model.install.clone(), model.node)
        };
        let mut command = tool::command(&install, "postgres", &self.run_as, &self.layout.node_dir);
        command.arg("--single").arg("-D").arg(&self.layout.pgdata);
        for (name, value) in conf::command_line(&self.layout, &self.listen, self.port, node, install.major) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.args(["-c", "synchronous_standby_names=", "postgres"]);
        // Nothing is asked of it.
        tool::run(command, "postgres --single", ALONE_LIMIT).await?;
        match self.control_data().await?.state {
            LastState::ShutDown => Ok(()),
            LastState::ShutDownInRecovery | LastState::Unclean => Err(Error::Answer("postgres --single")),
        }
    }
}
