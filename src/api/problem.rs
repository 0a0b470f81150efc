//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.

use super::WriteError;
use crate::{documents::ProblemDetails, reads::ReadError};
use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::time::Duration;

/// When to come back after what passes soon.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error of the API.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    line: Option<usize>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), line: None, headers: Vec::new() }
    }

    /// With the line of the body that it is about, from 1.
    pub const fn at_line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }

    /// With a time to come back, rounded up to whole seconds.
    pub fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.header(header::RETRY_AFTER, seconds.max(1).into())
    }

    /// With a header.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// A body that cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    /// The process stops.
    pub fn draining() -> Self {
        let detail = "this process is stopping; ask again, or another one";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail).retry_after(RETRY_AFTER)
    }

    /// Something beyond a limit.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }
}

/// Too much at once of what `detail` says.
pub fn busy(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(RETRY_AFTER)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let details = ProblemDetails {
            r#type: "about:blank".into(),
            title: self.status.canonical_reason().unwrap_or("Error").into(),
            status: self.status.as_u16(),
            code: self.code.into(),
            detail: self.detail,
            line: self.line,
        };
        let mut response = (self.status, Json(details)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(self.headers);
        response
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        let detail = error.to_string();
        match error {
            ReadError::NoVerifiedState => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_verified_state", detail)
                    .retry_after(Duration::from_secs(1))
            }
            ReadError::Unsupported { code, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
            }
            ReadError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            ReadError::Pruned(_) => Self::new(StatusCode::GONE, "pruned", detail),
            ReadError::Busy { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(retry_after)
            }
            ReadError::Internal(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
            }
        }
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        let detail = error.to_string();
        match error {
            WriteError::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            WriteError::Unsupported(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", detail)
            }
            WriteError::IdempotencyMismatch => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch", detail)
            }
            WriteError::Busy { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(retry_after)
            }
            WriteError::TooLarge(_) => Self::too_large(detail),
            WriteError::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
                    .retry_after(Duration::from_secs(1))
            }
            WriteError::Internal(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
            }
        }
    }
}
