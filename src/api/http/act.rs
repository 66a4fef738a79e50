//! Actions over HTTP under Patroni's paths and bodies, for whoever holds the token.

use super::{App, Shared};
use crate::api::{ActionError, Actions};
use crate::types::RequestId;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

/// Body of `/switchover` and `/failover`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Change {
    /// The primary that the caller believes in; another one refuses the request.
    leader: Option<String>,
    candidate: Option<String>,
    allow_data_loss: bool,
}

pub(super) async fn switchover(State(app): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let change: Change = match permitted(&app, &headers).and_then(|()| parse(&body)) {
        Ok(change) => change,
        Err(refusal) => return respond(refusal),
    };
    let state = app.access.state.borrow().clone();
    let primary = state.primary().map(|node| state.name_of(node));
    if change.leader.is_some() && change.leader != primary {
        let present = primary.unwrap_or_else(|| "nobody".into());
        return (StatusCode::PRECONDITION_FAILED, format!("the primary is {present}, not the leader that the request names"))
            .into_response();
    }
    act(&app, &headers, |actions| Box::pin(async move { actions.switchover(change.candidate.as_deref()).await })).await
}

pub(super) async fn failover(State(app): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let change: Change = match permitted(&app, &headers).and_then(|()| parse(&body)) {
        Ok(change) => change,
        Err(refusal) => return respond(refusal),
    };
    let Some(candidate) = change.candidate else {
        return (StatusCode::BAD_REQUEST, "name the next primary: {\"candidate\": \"dc2\"}").into_response();
    };
    act(&app, &headers, |actions| Box::pin(async move { actions.failover(&candidate, change.allow_data_loss).await })).await
}

pub(super) async fn reinitialize(State(app): Shared, headers: HeaderMap) -> Response {
    if let Err(refusal) = permitted(&app, &headers) {
        return respond(refusal);
    }
    // As with Patroni: it begins here, its course is seen in the documents.
    let me = app.access.me.to_string();
    act(&app, &headers, |actions| Box::pin(async move { actions.reinit(&me, true).await })).await
}

async fn act<F>(app: &App, headers: &HeaderMap, run: F) -> Response
where
    F: FnOnce(Actions) -> BoxFuture<'static, Result<String, ActionError>>,
{
    // INV-12: a caller that wants to retry safely names its request; for the others this try is the only one.
    let given = headers.get("x-request-id").and_then(|value| u128::from_str_radix(value.to_str().ok()?, 16).ok());
    let request = RequestId(given.unwrap_or_else(rand::random));
    // Nobody listens to the progress: Actions leaves out what cannot be delivered.
    let (progress, _) = mpsc::channel(1);
    match run(Actions::new(app.access.clone(), request, progress)).await {
        Ok(done) => (StatusCode::OK, done).into_response(),
        Err(error) => (code(&error), error.to_string()).into_response(),
    }
}

fn code(error: &ActionError) -> StatusCode {
    match error {
        ActionError::Usage(_) => StatusCode::BAD_REQUEST,
        ActionError::Refused(_) => StatusCode::PRECONDITION_FAILED,
        ActionError::Failed(_) | ActionError::NoQuorum(_) => StatusCode::SERVICE_UNAVAILABLE,
        ActionError::Unknown(_) => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// Why a request is not carried out.
type Refusal = (StatusCode, String);

fn respond(refusal: Refusal) -> Response {
    match refusal.0 {
        StatusCode::UNAUTHORIZED => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], refusal.1).into_response(),
        _ => refusal.into_response(),
    }
}

fn parse(body: &Bytes) -> Result<Change, Refusal> {
    let wrong = |e| (StatusCode::BAD_REQUEST, format!("{e}; keys are leader, candidate, allow_data_loss"));
    if body.is_empty() { Ok(Change::default()) } else { serde_json::from_slice(body).map_err(wrong) }
}

fn permitted(app: &App, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(expected) = &app.token else {
        let text = "actions over HTTP are off; name a file with a token as api.token_file, or use `trilithon`";
        return Err((StatusCode::FORBIDDEN, text.to_owned()));
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    // Digests are compared, so that the time taken tells nothing about the token.
    let same = given.is_some_and(|given| Sha256::digest(given.trim()) == Sha256::digest(expected.trim()));
    let text = "send the content of api.token_file: `Authorization: Bearer TOKEN`";
    if same { Ok(()) } else { Err((StatusCode::UNAUTHORIZED, text.to_owned())) }
}
