//! The Admin service: checks the role, then hands over to documents and actions.

use super::roles::{Role, RoleSource};
use super::stream::{events, progress};
use crate::api::{ClusterAccess, documents, status};
use crate::config::show_settings;
use crate::proto::v1::admin_server::Admin;
use crate::proto::v1::{
    ConfigSetRequest, ConfigShowReply, ConfigShowRequest, Event, EventsRequest, FailoverRequest, FenceRequest, HistoryReply,
    HistoryRequest, MemberRemoveRequest, MemberTagRequest, PauseRequest, Progress, RaftStatusReply, RaftStatusRequest, ReinitRequest,
    StatusReply, StatusRequest, SwitchoverRequest, TopologyReply, TopologyRequest, VersionReply, VersionRequest,
};
use crate::types::RequestId;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

pub(super) struct AdminService {
    access: ClusterAccess,
    roles: RoleSource,
}

type ProgressStream = BoxStream<'static, Result<Progress, Status>>;
type Reply<T> = Result<Response<T>, Status>;

impl AdminService {
    pub(super) fn new(access: ClusterAccess, roles: RoleSource) -> AdminService {
        AdminService { access, roles }
    }

    fn read<T>(&self, request: Request<T>) -> Result<T, Status> {
        self.roles.require(&request, Role::Reader)?;
        Ok(request.into_inner())
    }

    fn change<T>(&self, request: Request<T>) -> Result<T, Status> {
        self.roles.require(&request, Role::Operator)?;
        Ok(request.into_inner())
    }
}

/// INV-12: without an id of its own a retry could take effect twice.
fn request_id(text: &str) -> Result<RequestId, Status> {
    let parsed = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten();
    let wrong =
        || Status::invalid_argument(format!("request_id is {text:?}; draw 128 random bits and write them as 32 hexadecimal digits"));
    parsed.map(RequestId).ok_or_else(wrong)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn version(&self, request: Request<VersionRequest>) -> Reply<VersionReply> {
        self.read(request)?;
        let cluster = self.access.state.borrow().name.clone();
        Ok(Response::new(VersionReply { version: env!("CARGO_PKG_VERSION").to_owned(), node: self.access.me.to_string(), cluster }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusReply> {
        self.read(request)?;
        Ok(Response::new(StatusReply { status: Some(status(&self.access.snapshot())) }))
    }

    async fn topology(&self, request: Request<TopologyRequest>) -> Reply<TopologyReply> {
        self.read(request)?;
        Ok(Response::new(documents::topology(&self.access.snapshot())))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Reply<HistoryReply> {
        self.read(request)?;
        Ok(Response::new(documents::history(&self.access.state.borrow())))
    }

    type EventsStream = BoxStream<'static, Result<Event, Status>>;

    async fn events(&self, request: Request<EventsRequest>) -> Reply<Self::EventsStream> {
        let asked = self.read(request)?;
        Ok(Response::new(events(&self.access.events, asked.after_revision, !asked.no_follow)))
    }

    async fn raft_status(&self, request: Request<RaftStatusRequest>) -> Reply<RaftStatusReply> {
        self.read(request)?;
        Ok(Response::new(documents::raft(&self.access.snapshot())))
    }

    async fn config_show(&self, request: Request<ConfigShowRequest>) -> Reply<ConfigShowReply> {
        self.read(request)?;
        let state = self.access.state.borrow();
        Ok(Response::new(ConfigShowReply { settings: show_settings(&state.settings), revision: state.revision.0 }))
    }

    type SwitchoverStream = ProgressStream;

    async fn switchover(&self, request: Request<SwitchoverRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run = progress(self.access.clone(), id, |actions| Box::pin(async move { actions.switchover(asked.to.as_deref()).await }));
        Ok(Response::new(run))
    }

    type FailoverStream = ProgressStream;

    async fn failover(&self, request: Request<FailoverRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run =
            progress(self.access.clone(), id, |actions| Box::pin(async move { actions.failover(&asked.to, asked.allow_data_loss).await }));
        Ok(Response::new(run))
    }

    type PauseStream = ProgressStream;

    async fn pause(&self, request: Request<PauseRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run = progress(self.access.clone(), id, |actions| Box::pin(async move { actions.pause(asked.paused).await }));
        Ok(Response::new(run))
    }

    type FenceStream = ProgressStream;

    async fn fence(&self, request: Request<FenceRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run = progress(self.access.clone(), id, |actions| Box::pin(async move { actions.fence(&asked.node, asked.fenced).await }));
        Ok(Response::new(run))
    }

    type ReinitStream = ProgressStream;

    async fn reinit(&self, request: Request<ReinitRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run = progress(self.access.clone(), id, |actions| Box::pin(async move { actions.reinit(&asked.node, asked.forwarded).await }));
        Ok(Response::new(run))
    }

    type ConfigSetStream = ProgressStream;

    async fn config_set(&self, request: Request<ConfigSetRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run = progress(self.access.clone(), id, |actions| {
            Box::pin(async move { actions.config_set(&asked.key, asked.value.as_deref()).await })
        });
        Ok(Response::new(run))
    }

    type MemberTagStream = ProgressStream;

    async fn member_tag(&self, request: Request<MemberTagRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run = progress(self.access.clone(), id, |actions| Box::pin(async move { actions.tag(&asked.node, &asked.tags).await }));
        Ok(Response::new(run))
    }

    type MemberRemoveStream = ProgressStream;

    async fn member_remove(&self, request: Request<MemberRemoveRequest>) -> Reply<ProgressStream> {
        let asked = self.change(request)?;
        let id = request_id(&asked.request_id)?;
        let run = progress(self.access.clone(), id, |actions| Box::pin(async move { actions.remove(&asked.node).await }));
        Ok(Response::new(run))
    }
}
