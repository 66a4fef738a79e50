//! Reinitialise a standby: the wish goes to the member itself, its course is seen in the observations.

use super::{ActionError, Actions};
use crate::cluster::MemberKind;
use crate::ha::PostgresState;
use crate::proto::v1::{ReinitRequest, admin_client::AdminClient};
use crate::types::NodeId;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The copy must have begun by then.
const BEGIN_PATIENCE: Duration = Duration::from_secs(60);
/// Copies of large databases take hours; past this the caller is told to look at the status instead.
const COPY_PATIENCE: Duration = Duration::from_secs(12 * 3600);
const FORWARD_PATIENCE: Duration = Duration::from_secs(10);

impl Actions {
    /// Replace the data of standby `name` by a fresh copy of the primary's. `forwarded`: another member asks, and follows it itself.
    pub async fn reinit(&self, name: &str, forwarded: bool) -> Result<String, ActionError> {
        let node = self.member(name)?;
        let state = self.state();
        if state.members.get(&node).is_some_and(|m| m.kind == MemberKind::Witness) {
            return Err(ActionError::Refused(format!("{name} is a witness and holds no data")));
        }
        let primary = self.steady().ok_or_else(|| {
            ActionError::Refused(format!("the cluster is {}: there is no steady primary to copy from; wait for one", state.phase.word()))
        })?;
        if primary == node {
            let why = format!("{name} is the primary; `trilithon switchover` first, then reinitialise it as a standby");
            return Err(ActionError::Refused(why));
        }
        if name == self.access.me.as_str() {
            self.access.local.reinit(self.request).await.map_err(ActionError::Refused)?;
        } else if forwarded {
            return Err(ActionError::Refused(format!("{} is not {name}; the address of {name} leads elsewhere", self.access.me)));
        } else {
            self.forward(node, name).await?;
        }
        if forwarded {
            return Ok(format!("{name} has taken the wish"));
        }
        self.say(format!("{name} replaces its data by a copy of {}", state.name_of(primary)));
        self.follow_copy(node, name).await
    }

    async fn forward(&self, node: NodeId, name: &str) -> Result<(), ActionError> {
        let address = self.state().members.get(&node).map(|m| m.addresses.grpc.clone()).unwrap_or_default();
        let unreachable = |why: String| ActionError::NoQuorum(format!("nothing was changed: {name} ({address}) does not answer: {why}"));
        let ask = async {
            let channel = self.access.peers.connect(name, &address).await.map_err(unreachable)?;
            let request = ReinitRequest { request_id: self.request.to_string(), node: name.to_owned(), forwarded: true };
            let mut stream = AdminClient::new(channel).reinit(request).await.map_err(|status| refusal(&status))?.into_inner();
            while let Some(progress) = stream.message().await.map_err(|status| refusal(&status))? {
                if progress.done {
                    return Ok(());
                }
            }
            Err(ActionError::Unknown(format!("{name} ended the call without an answer; `trilithon status` shows its state")))
        };
        match timeout(FORWARD_PATIENCE, ask).await {
            Ok(result) => result,
            Err(_elapsed) => Err(ActionError::Unknown(format!("{name} did not answer in time; `trilithon status` shows its state"))),
        }
    }

    async fn follow_copy(&self, node: NodeId, name: &str) -> Result<String, ActionError> {
        let clock = self.access.clock;
        let begun_by = clock.now().after(BEGIN_PATIENCE);
        let deadline = clock.now().after(COPY_PATIENCE);
        let (mut copying, mut told) = (false, String::new());
        loop {
            let snapshot = self.access.snapshot();
            let (state, streams, step) = snapshot.heard(node).map_or((PostgresState::Unknown, false, String::new()), |o| {
                (o.postgres.state, o.postgres.streaming_from.is_some(), super::with_names(&o.step, &snapshot.state))
            });
            copying |= state == PostgresState::Cloning;
            if copying && state == PostgresState::Running && streams {
                return Ok(format!("{name} streams again"));
            }
            if step != told && !step.is_empty() {
                self.say(format!("{name}: {step}"));
                told = step;
            }
            let now = clock.now();
            if !copying && now >= begun_by {
                let seconds = BEGIN_PATIENCE.as_secs();
                return Err(ActionError::Unknown(format!(
                    "{name} has not begun to copy within {seconds} s: {told}; `trilithon status` shows how it goes on"
                )));
            }
            if now >= deadline {
                return Err(ActionError::Unknown(format!("{name} still copies: {told}; `trilithon status` shows how it goes on")));
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

fn refusal(status: &tonic::Status) -> ActionError {
    use tonic::Code;
    let text = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated => ActionError::Refused(text),
        Code::Unavailable => ActionError::NoQuorum(text),
        _other => ActionError::Unknown(text),
    }
}
