//! HTTP: Patroni's health checks and documents under the same paths, metrics, the dashboard, and a few actions.
//!
//! ```text
//!   health  /primary /replica?lag= /sync …   200 or 503, body of /patroni     (PURE: health)
//!   inform  /patroni /cluster /history /config /status /metrics
//!   act     POST /switchover /failover /reinitialize                           bearer token
//!   /       the same as /primary for a load balancer, the dashboard for a browser
//! ```
//! Two faults of Patroni's are mended: `/primary` says 200 only while writes are really accepted, and a lag that is not known
//! is never taken for a small one. Deliberately absent: TLS; put it behind a proxy where it must leave the machine.
//!
//! Entry points: [`router`], [`serve`].

mod act;
mod dashboard;
mod health;
mod inform;
mod measure;

use super::{ClusterAccess, Snapshot, status};
use crate::telemetry::Metrics;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodFilter, get, on, post};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the handlers share.
struct App {
    access: ClusterAccess,
    metrics: Metrics,
    /// `None`: no actions over HTTP.
    token: Option<String>,
}

type Shared = State<Arc<App>>;

/// All routes. `token` is the content of `api.token_file`. Registers the cluster's own metrics with `metrics`.
pub fn router(access: ClusterAccess, metrics: Metrics, token: Option<String>) -> axum::Router {
    metrics.collect(measure::ClusterCollector::new(access.clone()));
    let reading = MethodFilter::GET.or(MethodFilter::HEAD).or(MethodFilter::OPTIONS);
    let mut router = axum::Router::new().route("/", on(reading, root));
    for path in health::PATHS {
        router = router.route(path, on(reading, check));
    }
    router
        .route("/patroni", get(patroni))
        .route("/cluster", get(cluster))
        .route("/history", get(history))
        .route("/config", get(config))
        .route("/status", get(own_status))
        .route("/metrics", get(metrics_text))
        .route("/switchover", post(act::switchover))
        .route("/failover", post(act::failover))
        .route("/reinitialize", post(act::reinitialize))
        .with_state(Arc::new(App { access, metrics, token }))
}

/// Serve until cancelled; requests in flight end first.
pub async fn serve(listener: TcpListener, router: axum::Router, cancel: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(async move { cancel.cancelled().await }).await
}

type Parameters = Query<BTreeMap<String, String>>;

async fn root(app: Shared, method: Method, headers: HeaderMap, uri: Uri, query: Parameters) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if method == Method::GET && accept.contains("text/html") { dashboard::page() } else { check(app, method, uri, query).await }
}

async fn check(State(app): Shared, method: Method, uri: Uri, Query(parameters): Parameters) -> Response {
    let snapshot = app.access.snapshot();
    let healthy = match health::check(uri.path(), &parameters, &snapshot) {
        Ok(healthy) => healthy,
        Err(wrong) => return (StatusCode::BAD_REQUEST, wrong).into_response(),
    };
    let code = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match method {
        Method::OPTIONS => code.into_response(),
        _ => (code, Json(inform::patroni(&snapshot))).into_response(),
    }
}

fn document(app: &App, of: impl FnOnce(&Snapshot) -> serde_json::Value) -> Response {
    Json(of(&app.access.snapshot())).into_response()
}

async fn patroni(State(app): Shared) -> Response {
    document(&app, inform::patroni)
}

async fn cluster(State(app): Shared) -> Response {
    document(&app, inform::cluster)
}

async fn history(State(app): Shared) -> Response {
    document(&app, |snapshot| inform::history(&snapshot.state))
}

async fn config(State(app): Shared) -> Response {
    document(&app, |snapshot| inform::config(&snapshot.state.settings))
}

/// The document of `trilithon status -o json`.
async fn own_status(State(app): Shared) -> Response {
    Json(status(&app.access.snapshot())).into_response()
}

async fn metrics_text(State(app): Shared) -> Response {
    ([(header::CONTENT_TYPE, Metrics::MEDIA_TYPE)], app.metrics.encode()).into_response()
}
