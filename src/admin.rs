//! The metrics port: `/metrics`, `/livez`, `/readyz`.

use crate::{
    lifecycle::Health,
    telemetry::metrics::{OPENMETRICS, PROMETHEUS, to_prometheus},
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{sync::Arc, time::Instant};
use tokio::sync::Mutex;

/// Writes all metrics as OpenMetrics.
pub type Encode = Arc<dyn Fn() -> String + Send + Sync>;

#[derive(Clone)]
struct Admin {
    encode: Encode,
    health: Health,
    newest: Arc<Mutex<Option<Text>>>,
}

/// All metrics in both forms, and when that was begun.
#[derive(Clone)]
struct Text {
    begun: Instant,
    openmetrics: Bytes,
    prometheus: Bytes,
}

impl Admin {
    /// All metrics, as they were after this was called. One text is made at a time, for all who
    /// asked before it was begun, so that many do not keep each other and probes waiting.
    async fn encoded(&self) -> Text {
        let asked = Instant::now();
        let mut newest = self.newest.lock().await;
        if let Some(text) = newest.as_ref().filter(|text| text.begun > asked) {
            return text.clone();
        }
        let begun = Instant::now();
        let text = (self.encode)();
        let prometheus = to_prometheus(&text).into();
        let text = Text { begun, openmetrics: text.into(), prometheus };
        *newest = Some(text.clone());
        text
    }
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
        .with_state(Admin { encode, health, newest: Arc::default() })
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let text = admin.encoded().await;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        ([(header::CONTENT_TYPE, OPENMETRICS)], text.openmetrics).into_response()
    } else {
        ([(header::CONTENT_TYPE, PROMETHEUS)], text.prometheus).into_response()
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Request};
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    async fn get(health: &Health, path: &str, accept: &str) -> (u16, String, String) {
        let encode: Encode =
            Arc::new(|| "# HELP a A.\n# TYPE a counter\na_total 1\n# EOF\n".into());
        let service = TowerToHyperService::new(router(encode, health.clone()));
        let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty());
        let (parts, body) = service.call(request.unwrap()).await.unwrap().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let kind = parts.headers[header::CONTENT_TYPE].to_str().unwrap().to_string();
        (parts.status.as_u16(), kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn metrics_come_in_the_form_asked_for() {
        let health = Health::default();
        for accept in ["", "*/*", "text/plain;version=0.0.4"] {
            let (status, kind, body) = get(&health, "/metrics", accept).await;
            assert_eq!((status, kind.as_str()), (200, PROMETHEUS), "{accept}");
            assert!(body.contains("# TYPE a_total counter") && !body.contains("# EOF"), "{body}");
        }
        let accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5";
        let (status, kind, body) = get(&health, "/metrics", accept).await;
        assert_eq!((status, kind.as_str()), (200, OPENMETRICS));
        assert!(body.ends_with("# EOF\n"), "{body}");
    }

    #[tokio::test]
    async fn health_gives_its_reason() {
        let health = Health::default();
        let (status, _, body) = get(&health, "/readyz", "").await;
        assert!(status == 503 && body.contains("starting"), "{body}");
        health.set_ready(Arc::new(|| Err("lag of 40 s".into())));
        let (status, _, body) = get(&health, "/readyz", "").await;
        assert!(status == 503 && body.contains("lag of 40 s"), "{body}");
        health.set_ready(Arc::new(|| Ok(())));
        assert_eq!(get(&health, "/readyz", "").await.0, 200);
        health.drain();
        let (status, _, body) = get(&health, "/readyz", "").await;
        assert!(status == 503 && body.contains("draining") && !body.contains('\n'), "{body}");
        assert_eq!(get(&health, "/livez", "").await.0, 200);
        health.died(crate::tasks::Task::Publisher);
        let (status, _, body) = get(&health, "/livez", "").await;
        assert!(status == 503 && body.contains("publisher"), "{body}");
    }
}
