//! The admin endpoint: metrics, readiness, liveness, version, over plain HTTP.

use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::Tasks;
use crate::rpc::Backend;
use crate::telemetry::PolicyGauges;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Admin {
    backend: Backend,
    tasks: Tasks,
}

/// Serves until the last request was answered: a drain can be watched.
pub(super) async fn serve(listener: TcpListener, backend: Backend, tasks: Tasks) {
    let cutting = tasks.cutting();
    let state = Admin { backend, tasks };
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/version", get(version))
        .route("/status", get(status))
        .with_state(state);
    let stopped = async move { cutting.cancelled().await };
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "the admin endpoint ended");
    }
}

/// Health of models and providers, and whether the shared state is there.
async fn status(State(admin): State<Admin>) -> impl IntoResponse {
    let body = admin.backend.ready().map(|ready| {
        let (governor, policy) = (ready.router.governor(), ready.router.policies().snapshot());
        serde_json::json!({
            "policy": policy.policy_ref(),
            "health": governor.health().scorecard(&policy.policy, Instant::now()),
            "state_away": governor.state().is_away(),
        })
    });
    ([(header::CONTENT_TYPE, "application/json")], format!("{}\n", body.unwrap_or_default()))
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let gauges = admin.backend.ready().map(|ready| {
        let (active, status) = (ready.router.policies().snapshot(), ready.router.policies().status());
        PolicyGauges {
            policy: active.policy_ref(),
            loads: status.loads,
            rejected: status.rejections_by_reason,
            fetch_failed: status.fetch_failures_by_reason,
            stale: ready.router.policies().is_stale(&active),
            copy_failures: status.copy_failures,
        }
    });
    if let Some(ready) = admin.backend.ready() {
        let policy = &ready.router.policies().snapshot().policy;
        let gauges = ready.router.governor().health().gauges(policy, Instant::now());
        admin.backend.metrics().outcomes().set_breakers(gauges);
    }
    match admin.backend.metrics().encode(gauges.as_ref()) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], format!("{error}\n")),
    }
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    if admin.tasks.draining().is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if admin.backend.ready().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "loading the model\n")
    } else if refuses(&admin.backend) {
        (StatusCode::SERVICE_UNAVAILABLE, "the policy is older than allowed\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

/// Whether every request is refused because the policy is too old: another instance may have a newer one.
fn refuses(backend: &Backend) -> bool {
    backend.ready().is_some_and(|ready| {
        let policies = ready.router.policies();
        policies.standing(&policies.snapshot()).is_err()
    })
}

async fn version(State(admin): State<Admin>) -> impl IntoResponse {
    let loaded = admin.backend.ready().map(|ready| {
        serde_json::json!({
            "classifier": ready.router.classifier().reference(),
            "reference_pair": ready.router.classifier().reference_pair(),
            "policy": ready.router.policies().snapshot().policy_ref(),
        })
    });
    let body = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "loaded": loaded });
    ([(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}
