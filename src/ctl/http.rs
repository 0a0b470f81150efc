//! Requests to the API, and what its errors mean for an exit code.

use super::{ApiArgs, Failure};
use crate::exit;
use serde_json::Value;
use std::{io::Read, path::Path, time::Duration};
use ureq::{
    Agent, Body,
    http::{Response, StatusCode},
};

/// Largest answer that is read into memory; a larger one is an error.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A way to one API.
#[derive(Clone)]
pub struct Api {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// An answer with its body read.
pub struct Answer {
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
    /// The body as JSON.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::new(exit::DATA, format!("the answer is not JSON: {error}")))
    }

    /// The failure that an error answer means.
    pub fn failure(&self) -> Failure {
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |name: &str| problem[name].as_str().map(str::to_string);
        let code = text("code").unwrap_or_else(|| self.status.as_u16().to_string());
        let detail = text("detail")
            .unwrap_or_else(|| String::from_utf8_lossy(&self.body).chars().take(200).collect());
        let exit = match self.status.as_u16() {
            408 | 429 | 502 | 503 | 504 => exit::TEMPORARY,
            500 => exit::INTERNAL,
            _ => exit::DATA,
        };
        Failure::new(exit, format!("{detail} ({code})"))
    }

    /// Itself, unless it is an error.
    pub fn success(self) -> Result<Self, Failure> {
        if self.status.is_success() { Ok(self) } else { Err(self.failure()) }
    }
}

/// Reads a token file.
fn load_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))?;
    Ok(text.trim().to_string())
}

impl Api {
    /// A way to the API of `args`.
    pub fn new(args: &ApiArgs) -> Result<Self, Failure> {
        let token = args.token_file.as_deref().map(load_token).transpose()?;
        Self::to(&args.api, token, args.request_timeout)
    }

    /// A way to the API at `base`.
    pub fn to(base: &str, token: Option<String>, timeout: Duration) -> Result<Self, Failure> {
        if !base.starts_with("http://") {
            let text =
                format!("invalid value '{base}' for --api: a URL like {}", super::SERVER_API);
            return Err(Failure::new(exit::USAGE, text));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_send_body(Some(timeout))
            .max_redirects(0)
            .build()
            .into();
        Ok(Self { agent, base: base.trim_end_matches('/').to_string(), token })
    }

    /// The URL that this leads to.
    pub fn base(&self) -> &str {
        &self.base
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::new(exit::TEMPORARY, format!("cannot reach {}: {error}", self.base))
    }

    fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    /// Sends a GET and leaves the body to be streamed.
    pub fn stream(&self, path: &str) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(value) = self.authorization() {
            request = request.header("authorization", value);
        }
        request.call().map_err(|error| self.unreachable(&error))
    }

    /// Sends a GET.
    pub fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.read(self.stream(path)?)
    }

    /// Sends a body. `Err` means that nobody knows what became of it.
    pub fn send(
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
    pub fn read(&self, mut response: Response<Body>) -> Result<Answer, Failure> {
        let status = response.status();
        let headers = response.headers().clone();
        let retry_after = headers
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
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
pub fn key_path(key: &str) -> String {
    let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
    format!("/v1/keys/{key}")
}
