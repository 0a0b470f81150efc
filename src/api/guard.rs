//! Who may ask: bearer tokens, and the `Host` and `Origin` of browsers.
//!
//! A page that a user has open may send requests to this machine's loopback ports. Its origin
//! gives it away, and so does the name in `Host` if it was made to resolve to 127.0.0.1.

use super::{
    problem::{Code, Problem},
    router::{Api, read_only},
    routes::ROUTES,
};
use crate::config::{Secret, is_loopback};
use arc_swap::ArcSwapOption;
use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, Version, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::IpAddr, sync::Arc};
use subtle::ConstantTimeEq as _;

/// Tokens, exchanged on SIGHUP.
#[derive(Clone, Default)]
pub struct Tokens {
    /// What writes must carry; reads may carry it too.
    pub write: Arc<ArcSwapOption<Secret>>,
    /// What reads must carry.
    pub read: Arc<ArcSwapOption<Secret>>,
}

/// Refuses requests from foreign pages and without the token.
pub(super) async fn guard(
    State(api): State<Api>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let host = host(&request);
    let checked = check_host(host, request.version(), api.address)
        .and_then(|()| check_origin(request.headers(), host.unwrap_or_default()))
        .and_then(|()| check_method(&api, request.method(), matched.as_ref()))
        .and_then(|()| check_token(&api.tokens, request.method(), request.headers()));
    match checked {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// The host that is asked: of a target with one ('GET http://host/…'), else of the header (RFC 9112, 3.2.2).
fn host(request: &Request) -> Option<&str> {
    let target = request.uri().authority().map(Authority::as_str);
    target.or_else(|| request.headers().get(header::HOST).and_then(|host| host.to_str().ok()))
}

/// Whether this is a name or address, perhaps with a port.
fn is_host(host: &str) -> bool {
    host.parse::<Authority>().is_ok_and(|authority| {
        let port = host.strip_prefix(authority.host()).unwrap_or(host);
        !authority.host().is_empty() && (port.is_empty() || authority.port_u16().is_some())
    })
}

/// The name in `Host` without its port.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// On loopback, only names of this machine are served.
fn check_host(host: Option<&str>, version: Version, address: IpAddr) -> Result<(), Problem> {
    let Some(host) = host else {
        // Probes of load balancers speak HTTP/1.0 and name none.
        if version == Version::HTTP_10 && !address.is_loopback() {
            return Ok(());
        }
        let detail = "a request names the host it asks: the Host header is missing or unreadable";
        return Err(Problem::new(Code::MissingHost, detail));
    };
    if !is_host(host) {
        let detail = format!("'{host}' is no host");
        return Err(Problem::malformed(detail));
    }
    if !address.is_loopback() {
        return Ok(());
    }
    if is_loopback(host_name(host)) {
        return Ok(());
    }
    let detail = format!("the request asks '{host}', which is not this machine");
    Err(Problem::new(Code::ForeignHost, detail))
}

/// A browser says where its page comes from; only the API's own origin may ask.
fn check_origin(headers: &HeaderMap, host: &str) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("(unreadable)");
    if !host.is_empty() && origin.split_once("://").is_some_and(|(_, name)| name == host) {
        return Ok(());
    }
    let detail = format!("requests from pages of '{origin}' are refused");
    Err(Problem::new(Code::ForeignOrigin, detail))
}

/// A replica takes no writes, whatever token they carry.
fn check_method(api: &Api, method: &Method, matched: Option<&MatchedPath>) -> Result<(), Problem> {
    // A path that does not exist is answered so.
    let Some(path) = matched.map(MatchedPath::as_str) else { return Ok(()) };
    if is_read(method) || api.backend.writer().is_some() {
        return Ok(());
    }
    Err(read_only(ROUTES.iter().any(|route| route.path == path && route.is_read())))
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn check_token(tokens: &Tokens, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let (read, write) = (tokens.read.load_full(), tokens.write.load_full());
    let accepted: Vec<Arc<Secret>> = if is_read(method) {
        if read.is_none() {
            return Ok(());
        }
        read.into_iter().chain(write).collect()
    } else {
        match write {
            // With a token for reads alone, writes are not open to everybody.
            None if read.is_none() => return Ok(()),
            None => Vec::new(),
            Some(write) => vec![write],
        }
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map_or(&b""[..], |(_, token)| token);
    if accepted.iter().any(|token| bool::from(token.as_bytes().ct_eq(given))) {
        return Ok(());
    }
    let detail = "a valid token is needed: 'Authorization: Bearer …'";
    Err(Problem::new(Code::Unauthorized, detail)
        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
}

#[cfg(test)]
mod tests {
    use super::{host_name, is_host};

    #[test]
    fn host_names_are_found() {
        for (host, name) in [
            ("127.0.0.1:8081", "127.0.0.1"),
            ("localhost", "localhost"),
            ("[::1]:8081", "::1"),
            ("evil.example:8081", "evil.example"),
        ] {
            assert_eq!(host_name(host), name);
            assert!(is_host(host), "{host}");
        }
        for host in ["", "[::1", "[::1]x", "127.0.0.1:abc", "localhost:", "a b", "user@localhost"] {
            assert!(!is_host(host), "{host}");
        }
    }
}
