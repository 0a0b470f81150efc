//! The metrics port: `/metrics`, `/livez`, `/readyz`.

use crate::{
    lifecycle::Health,
    telemetry::metrics::{OPENMETRICS, PROMETHEUS, to_prometheus},
};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::sync::Arc;

/// Writes all metrics as OpenMetrics.
pub type Encode = Arc<dyn Fn() -> String + Send + Sync>;

#[derive(Clone)]
struct Admin {
    encode: Encode,
    health: Health,
}

/// The router of the metrics port.
pub fn router(encode: Encode, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route(
            "/livez",
            get(|State(admin): State<Admin>| async move { answer(admin.health.liveness()) }),
        )
        .route(
            "/readyz",
            get(|State(admin): State<Admin>| async move { answer(admin.health.readiness()) }),
        )
        .with_state(Admin { encode, health })
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let text = (admin.encode)();
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response()
    } else {
        ([(header::CONTENT_TYPE, PROMETHEUS)], to_prometheus(&text)).into_response()
    }
}

fn answer(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => axum::Json(serde_json::json!({"status": "ok"})).into_response(),
        Err(reason) => {
            let body = axum::Json(serde_json::json!({"status": "unavailable", "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}
