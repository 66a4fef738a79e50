//! Verbs that change the cluster. Each draws one request id and keeps it over all tries (INV-12).

use super::args::{ConfigSetArgs, FailoverArgs, NodeArgs, Output, Remote, SwitchoverArgs, TagArgs};
use super::client::{Admin, Client, Failure};
use super::render::{DIM, GOOD};
use crate::proto::v1::{
    ConfigSetRequest, FailoverRequest, FenceRequest, MemberRemoveRequest, MemberTagRequest, PauseRequest, Progress, ReinitRequest,
    SwitchoverRequest,
};
use crate::types::RequestId;
use std::future::Future;
use tonic::{Response, Status, Streaming};

fn draw() -> String {
    RequestId(rand::random()).to_string()
}

/// Progress goes to stderr, the outcome to stdout.
async fn carry_out<F>(remote: &Remote, call: impl Fn(Admin) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<Response<Streaming<Progress>>, Status>>,
{
    let client = Client::new(remote)?;
    let told = |line: &str| anstream::eprintln!("{DIM}…{DIM:#} {line}");
    let outcome = client.change(call, told).await?;
    match remote.output {
        Output::Table => anstream::println!("{GOOD}done{GOOD:#} {outcome}"),
        Output::Json => anstream::println!("{}", serde_json::json!({ "done": true, "message": outcome })),
    }
    Ok(())
}

pub(super) async fn switchover(args: &SwitchoverArgs) -> Result<(), Failure> {
    let request = SwitchoverRequest { request_id: draw(), to: args.to.clone() };
    carry_out(&args.remote, |mut admin| {
        let request = request.clone();
        async move { admin.switchover(request).await }
    })
    .await
}

pub(super) async fn failover(args: &FailoverArgs) -> Result<(), Failure> {
    let request = FailoverRequest { request_id: draw(), to: args.to.clone(), allow_data_loss: args.allow_data_loss };
    carry_out(&args.remote, |mut admin| {
        let request = request.clone();
        async move { admin.failover(request).await }
    })
    .await
}

pub(super) async fn pause(remote: &Remote, paused: bool) -> Result<(), Failure> {
    let request = PauseRequest { request_id: draw(), paused };
    carry_out(remote, |mut admin| {
        let request = request.clone();
        async move { admin.pause(request).await }
    })
    .await
}

pub(super) async fn fence(args: &NodeArgs, fenced: bool) -> Result<(), Failure> {
    let request = FenceRequest { request_id: draw(), node: args.node.clone(), fenced };
    carry_out(&args.remote, |mut admin| {
        let request = request.clone();
        async move { admin.fence(request).await }
    })
    .await
}

pub(super) async fn reinit(args: &NodeArgs) -> Result<(), Failure> {
    let request = ReinitRequest { request_id: draw(), node: args.node.clone(), forwarded: false };
    carry_out(&args.remote, |mut admin| {
        let request = request.clone();
        async move { admin.reinit(request).await }
    })
    .await
}

pub(super) async fn config_set(args: &ConfigSetArgs) -> Result<(), Failure> {
    let request = ConfigSetRequest { request_id: draw(), key: args.key.clone(), value: args.value.clone() };
    carry_out(&args.remote, |mut admin| {
        let request = request.clone();
        async move { admin.config_set(request).await }
    })
    .await
}

pub(super) async fn member_tag(args: &TagArgs) -> Result<(), Failure> {
    let request = MemberTagRequest { request_id: draw(), node: args.node.clone(), tags: args.tags.iter().cloned().collect() };
    carry_out(&args.remote, |mut admin| {
        let request = request.clone();
        async move { admin.member_tag(request).await }
    })
    .await
}

pub(super) async fn member_remove(args: &NodeArgs) -> Result<(), Failure> {
    let request = MemberRemoveRequest { request_id: draw(), node: args.node.clone() };
    carry_out(&args.remote, |mut admin| {
        let request = request.clone();
        async move { admin.member_remove(request).await }
    })
    .await
}
