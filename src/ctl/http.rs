//! Requests to the API, and what its errors mean for an exit code.

use super::{ApiArgs, Failure};
use crate::{
    config::{Secret, TokenFile, invalid, is_loopback},
    documents::ProblemDetails,
    exit,
};
use serde::de::DeserializeOwned;
use std::{io::Read, time::Duration};
use ureq::{
    Agent, Body,
    http::{HeaderValue, Response, StatusCode, Uri},
};

/// Largest answer that is read into memory; a larger one is an error.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Longest time to come back that is believed, so that no answer can overflow a clock.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// A way to one API.
#[derive(Clone)]
pub(super) struct Api {
    agent: Agent,
    base: String,
    token: Option<Secret>,
}

/// An answer with its body read.
pub(super) struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Seconds to wait, if the server said so.
    pub retry_after: Option<Duration>,
    /// Headers.
    pub headers: ureq::http::HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The document in the body.
    pub(super) fn document<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::new(exit::DATA, format!("the answer is not one of syncd's API: {error}"))
        })
    }

    /// What an error answer says, if it is one of syncd's.
    pub(super) fn problem(&self) -> Option<ProblemDetails> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The failure that an error answer means.
    pub(super) fn failure(&self) -> Failure {
        let problem = self.problem();
        self.failure_at(problem.as_ref().and_then(|problem| problem.line))
    }

    /// The failure that an error answer means, which is about a line of what was sent.
    pub(super) fn failure_at(&self, line: Option<usize>) -> Failure {
        let (code, detail) = match self.problem() {
            Some(problem) => (problem.code, problem.detail),
            None => {
                let text = String::from_utf8_lossy(&self.body).chars().take(200).collect();
                (self.status.as_u16().to_string(), text)
            }
        };
        let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        let exit = match self.status.as_u16() {
            // 412: the state has not come so far yet.
            408 | 412 | 429 | 502.. => exit::TEMPORARY,
            500 => exit::INTERNAL,
            _ => exit::DATA,
        };
        Failure::new(exit, format!("{line}{detail} ({code})"))
    }

    /// Itself, unless it is an error.
    pub(super) fn success(self) -> Result<Self, Failure> {
        if self.status.is_success() { Ok(self) } else { Err(self.failure()) }
    }
}

/// The host of an API's URL.
fn host_of(flag: &'static str, base: &str) -> Result<String, Failure> {
    if base.contains('@') {
        // Not repeated: what is before the @ may be a password.
        let allowed = "a URL without user and password; see --token-file";
        return Err(invalid(flag, "(secret)", allowed).into());
    }
    let uri = base.parse::<Uri>().ok();
    let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.query().is_none());
    let host = uri.as_ref().and_then(Uri::host).filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| {
        invalid(flag, base, format!("the URL of an API, like {}", super::SERVER_API))
    })?;
    Ok(host.trim_matches(['[', ']']).to_string())
}

impl Api {
    /// A way to the API of `args`.
    pub(super) fn new(args: &ApiArgs) -> Result<Self, Failure> {
        Self::to("--api", args)
    }

    /// A way to the API of `args`, whose URL was given as `flag`.
    pub(super) fn to(flag: &'static str, args: &ApiArgs) -> Result<Self, Failure> {
        let host = host_of(flag, &args.api)?;
        let token = match &args.token_file {
            Some(path) => Some(TokenFile::checked("--token-file", path.clone())?.load()?),
            None => None,
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(args.request_timeout))
            .timeout_recv_response(Some(args.request_timeout))
            .timeout_send_body(Some(args.request_timeout))
            // An export may take long, but not stand still.
            .timeout_per_read(Some(args.request_timeout))
            .max_redirects(0);
        if is_loopback(&host) {
            // A proxy of the environment leads elsewhere, and would see the token.
            config = config.proxy(None);
        }
        let base = args.api.trim_end_matches('/').to_string();
        Ok(Self { agent: config.build().into(), base, token })
    }

    /// A way to the API at `base` without a token.
    pub(super) fn without_token(
        flag: &'static str,
        base: &str,
        request_timeout: Duration,
    ) -> Result<Self, Failure> {
        Self::to(flag, &ApiArgs { api: base.into(), token_file: None, request_timeout })
    }

    /// The URL that this leads to.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::new(exit::TEMPORARY, format!("cannot reach {}: {error}", self.base))
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let token = self.token.as_ref()?.as_bytes();
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Sends a GET and leaves the body to be streamed.
    pub(super) fn stream(&self, path: &str) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(value) = self.authorization() {
            request = request.header("authorization", value);
        }
        request.call().map_err(|error| self.unreachable(&error))
    }

    /// Sends a GET.
    pub(super) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.read(self.stream(path)?)
    }

    /// Sends a body. `Err` means that nobody knows what became of it.
    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(value) = self.authorization() {
            request = request.header("authorization", value);
        }
        let request =
            request.body(body).map_err(|error| Failure::new(exit::USAGE, error.to_string()))?;
        let response = self.agent.run(request).map_err(|error| self.unreachable(&error))?;
        self.read(response)
    }

    /// Reads the body of an answer.
    pub(super) fn read(&self, mut response: Response<Body>) -> Result<Answer, Failure> {
        let status = response.status();
        let headers = response.headers().clone();
        let retry_after = headers
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        let mut body = Vec::new();
        response
            .body_mut()
            .as_reader()
            .take(ANSWER_BYTES_MAX + 1)
            .read_to_end(&mut body)
            .map_err(|error| Failure::new(exit::TEMPORARY, format!("{}: {error}", self.base)))?;
        if body.len() as u64 > ANSWER_BYTES_MAX {
            let text = format!("{}: the answer is larger than {ANSWER_BYTES_MAX} bytes", self.base);
            return Err(Failure::new(exit::DATA, text));
        }
        Ok(Answer { status, retry_after, headers, body })
    }
}

/// The path of a key.
pub(super) fn key_path(key: &str) -> String {
    let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
    format!("/v1/keys/{key}")
}
