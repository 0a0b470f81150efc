//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.

use super::WriteError;
use crate::{
    documents::ProblemDetails,
    reads::{ReadError, Unsupported},
};
use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::time::Duration;

/// When to come back after what passes soon.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Declares the codes: name, status, word, and when it is answered.
macro_rules! codes {
    ($($name:ident = $status:ident, $word:literal, $when:literal;)+) => {
        /// Which problem it is. The word of a code does not change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $when] $name),+ }

        impl Code {
            /// Every code, in the order of statuses.
            #[cfg(test)]
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The member `code` of the answer.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            /// The status of the answer.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),+ }
            }

            /// When it is answered.
            pub const fn when(self) -> &'static str {
                match self { $(Self::$name => $when),+ }
            }
        }
    };
}

codes! {
    Malformed = BAD_REQUEST, "malformed", "a part of the request cannot be read; `line` names the line of a batch";
    MissingHost = BAD_REQUEST, "missing_host", "the request names no host";
    UnknownParameter = BAD_REQUEST, "unknown_parameter", "the route has no such query parameter";
    DuplicateParameter = BAD_REQUEST, "duplicate_parameter", "a query parameter is given twice";
    DuplicateHeader = BAD_REQUEST, "duplicate_header", "a header that may be given once is given twice";
    ContentRange = BAD_REQUEST, "content_range", "`Content-Range`: values are sent as a whole";
    UnsupportedHeader = BAD_REQUEST, "unsupported_header", "a header that would change what the request means";
    UnexpectedBody = BAD_REQUEST, "unexpected_body", "a body where none is read";
    Unauthorized = UNAUTHORIZED, "unauthorized", "a valid token is needed";
    ForeignOrigin = FORBIDDEN, "foreign_origin", "the request comes from a page of another origin";
    NotFound = NOT_FOUND, "not_found", "the verified state has no such key or location";
    NotAnEntry = NOT_FOUND, "not_an_entry", "a commit is at this location, not a value";
    NoSuchEndpoint = NOT_FOUND, "no_such_endpoint", "the API has no such path";
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method_not_allowed", "the path has no such method";
    ReadOnly = METHOD_NOT_ALLOWED, "read_only", "a replica takes no writes";
    BodyTimeout = REQUEST_TIMEOUT, "timeout", "the body came too slowly";
    Conflict = CONFLICT, "conflict", "the key exists (`immutable`)";
    Pruned = GONE, "pruned", "the operation is no longer held";
    Behind = PRECONDITION_FAILED, "behind", "the state did not reach `min_size` within `timeout`";
    TooLarge = PAYLOAD_TOO_LARGE, "too_large", "a key, value or batch is larger than its limit";
    ContentType = UNSUPPORTED_MEDIA_TYPE, "content_type", "the `Content-Type` is missing, or not one that the route takes";
    ContentEncoding = UNSUPPORTED_MEDIA_TYPE, "content_encoding", "a content coding other than `identity`";
    Expectation = EXPECTATION_FAILED, "expectation", "an expectation other than `100-continue`";
    ForeignHost = MISDIRECTED_REQUEST, "foreign_host", "on loopback: the request asks for a host that is not this machine";
    Unsupported = UNPROCESSABLE_ENTITY, "unsupported", "the family has no such operation";
    NotProvable = UNPROCESSABLE_ENTITY, "not_provable", "the family cannot prove this";
    Compact = UNPROCESSABLE_ENTITY, "compact", "a compact database holds no values";
    IdempotencyMismatch = UNPROCESSABLE_ENTITY, "idempotency_mismatch", "the idempotency key was used before with another request";
    Busy = TOO_MANY_REQUESTS, "busy", "a limit was reached; nothing was done";
    Internal = INTERNAL_SERVER_ERROR, "internal", "the process failed; of a write, the outcome is unknown";
    UnsupportedCondition = NOT_IMPLEMENTED, "unsupported_condition", "a condition that is not implemented";
    TransferEncoding = NOT_IMPLEMENTED, "transfer_encoding", "a transfer coding other than `chunked`";
    NoVerifiedState = SERVICE_UNAVAILABLE, "no_verified_state", "the replica has not verified any state yet";
    Unavailable = SERVICE_UNAVAILABLE, "unavailable", "writing has stopped; nothing was done";
    Draining = SERVICE_UNAVAILABLE, "draining", "the process is stopping";
    Timeout = GATEWAY_TIMEOUT, "timeout", "no answer within two minutes";
}

/// An error of the API.
#[derive(Debug)]
pub struct Problem {
    code: Code,
    detail: String,
    line: Option<usize>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), line: None, headers: Vec::new() }
    }

    /// Which problem it is.
    #[cfg(test)]
    pub(super) const fn code(&self) -> Code {
        self.code
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
        Self::new(Code::Malformed, detail)
    }

    /// The process stops.
    pub fn draining() -> Self {
        let detail = "this process is stopping; ask again, or another one";
        Self::new(Code::Draining, detail).retry_after(RETRY_AFTER)
    }

    /// Something beyond a limit.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(Code::TooLarge, detail)
    }
}

/// Too much at once of what `detail` says.
pub fn busy(detail: impl Into<String>) -> Problem {
    Problem::new(Code::Busy, detail).retry_after(RETRY_AFTER)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let details = ProblemDetails {
            r#type: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            code: self.code.as_str().into(),
            detail: self.detail,
            line: self.line,
        };
        let mut response = (status, Json(details)).into_response();
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
                Self::new(Code::NoVerifiedState, detail).retry_after(RETRY_AFTER)
            }
            ReadError::Unsupported { why, .. } => {
                let code = match why {
                    Unsupported::Family => Code::Unsupported,
                    Unsupported::Proof => Code::NotProvable,
                    Unsupported::Compact => Code::Compact,
                };
                Self::new(code, detail)
            }
            ReadError::NotFound(_) => Self::new(Code::NotFound, detail),
            ReadError::Pruned(_) => Self::new(Code::Pruned, detail),
            ReadError::Busy { retry_after, .. } => {
                Self::new(Code::Busy, detail).retry_after(retry_after)
            }
            ReadError::Internal(_) => Self::new(Code::Internal, detail),
        }
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        let detail = error.to_string();
        match error {
            WriteError::Conflict(_) => Self::new(Code::Conflict, detail),
            WriteError::Unsupported(_) => Self::new(Code::Unsupported, detail),
            WriteError::IdempotencyMismatch => Self::new(Code::IdempotencyMismatch, detail),
            WriteError::Busy { retry_after } => {
                Self::new(Code::Busy, detail).retry_after(retry_after)
            }
            WriteError::TooLarge(_) => Self::too_large(detail),
            WriteError::Unavailable(_) => {
                Self::new(Code::Unavailable, detail).retry_after(RETRY_AFTER)
            }
            WriteError::Internal(_) => Self::new(Code::Internal, detail),
        }
    }
}
