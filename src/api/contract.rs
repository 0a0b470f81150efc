//! What a request may say on each route.
//!
//! A parameter or header that changes what a request means is honoured or refused by name. If it
//! were ignored, the answer would be to another question: a write that was meant for an absent key
//! only would overwrite, a part of a value would become the value.

use super::{
    problem::{Code, Problem},
    routes::{ROUTES, Route},
};
use axum::{
    extract::{MatchedPath, Query, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Which requests a header is refused in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    All,
    Reads,
    Writes,
}

/// A header that would change what a request means, and is not implemented.
struct Refused {
    name: &'static str,
    r#where: Where,
    code: Code,
    says: &'static str,
}

const fn refused(name: &'static str, r#where: Where, code: Code, says: &'static str) -> Refused {
    Refused { name, r#where, code, says }
}

const CONDITION: Code = Code::UnsupportedCondition;
const HEADER: Code = Code::UnsupportedHeader;
const CONDITIONAL_WRITE: &str = "writes cannot be conditional here";
const CONDITIONAL_READ: &str = "answers have no validators that a condition could be compared with";
const DIGEST: &str = "a body is not compared with a digest";
const METHOD: &str = "the method of a request is the one in its first line";

/// Headers that are refused.
///
/// Reads may carry `If-None-Match`, `If-Modified-Since`, `Range` and `If-Range`: those only ask for
/// less than the whole answer, which RFC 9110 lets a server give (13.1.2, 13.1.3, 14.2).
const HEADERS: &[Refused] = &[
    refused("if-match", Where::Writes, CONDITION, CONDITIONAL_WRITE),
    refused("if-none-match", Where::Writes, CONDITION, CONDITIONAL_WRITE),
    refused("if-modified-since", Where::Writes, CONDITION, CONDITIONAL_WRITE),
    refused("if-unmodified-since", Where::Writes, CONDITION, CONDITIONAL_WRITE),
    refused("if-range", Where::Writes, CONDITION, CONDITIONAL_WRITE),
    refused("if", Where::Writes, CONDITION, CONDITIONAL_WRITE),
    refused("if-match", Where::Reads, CONDITION, CONDITIONAL_READ),
    refused("if-unmodified-since", Where::Reads, CONDITION, CONDITIONAL_READ),
    refused("content-range", Where::All, Code::ContentRange, "a value is sent as a whole"),
    refused("range", Where::Writes, HEADER, "a value is written as a whole"),
    refused("content-md5", Where::Writes, HEADER, DIGEST),
    refused("content-digest", Where::Writes, HEADER, DIGEST),
    refused("repr-digest", Where::Writes, HEADER, DIGEST),
    refused("digest", Where::Writes, HEADER, DIGEST),
    refused("trailer", Where::All, HEADER, "fields after a body are not read"),
    refused("x-http-method-override", Where::All, HEADER, METHOD),
    refused("x-http-method", Where::All, HEADER, METHOD),
    refused("x-method-override", Where::All, HEADER, METHOD),
    refused("idempotency-key", Where::Reads, HEADER, "only writes have one"),
];

/// Headers that may come once: of two, one would be ignored.
const ONCE: &[&str] = &[
    "host",
    "origin",
    "authorization",
    "content-type",
    "idempotency-key",
    "expect",
    "transfer-encoding",
];

/// Refuses what the matched route does not honour.
pub(super) async fn check(matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let path = matched.as_ref().map_or("", MatchedPath::as_str);
    match examine(path, request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn examine(path: &str, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let name = if method == Method::HEAD { "GET" } else { method.as_str() };
    // Another method is answered 405 by the router.
    let Some(route) = ROUTES.iter().find(|route| route.path == path && route.method == name) else {
        return Ok(());
    };
    check_parameters(route, uri)?;
    check_headers(name == "GET", headers)?;
    check_coding(headers)?;
    check_transfer(headers)?;
    check_expectation(headers)?;
    check_body(method, headers)
}

fn check_parameters(route: &Route, uri: &Uri) -> Result<(), Problem> {
    let parameters = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Problem::malformed(error.body_text()))?;
    let bad = |code, detail: String| Err(Problem::new(code, detail));
    let mut seen: Vec<&str> = Vec::new();
    for (name, _) in &parameters.0 {
        let Some(known) = route.parameters().find(|known| known == name) else {
            let allowed: Vec<&str> = route.parameters().collect();
            let allowed = match &allowed[..] {
                [] => "none is allowed here".to_string(),
                known => format!("allowed are {}", known.join(", ")),
            };
            return bad(Code::UnknownParameter, format!("query parameter '{name}': {allowed}"));
        };
        if seen.contains(&known) {
            let detail = format!("query parameter '{name}' is given twice");
            return bad(Code::DuplicateParameter, detail);
        }
        seen.push(known);
    }
    if seen.contains(&"timeout") && !seen.contains(&"min_size") {
        return bad(
            Code::UnknownParameter,
            "'timeout' means something with 'min_size' only".into(),
        );
    }
    Ok(())
}

fn check_headers(is_read: bool, headers: &HeaderMap) -> Result<(), Problem> {
    let other = if is_read { Where::Writes } else { Where::Reads };
    for refused in HEADERS.iter().filter(|refused| refused.r#where != other) {
        if headers.contains_key(refused.name) {
            let detail = format!("header '{}': {}", refused.name, refused.says);
            return Err(Problem::new(refused.code, detail));
        }
    }
    for name in ONCE {
        if headers.get_all(*name).iter().nth(1).is_some() {
            let detail = format!("header '{name}' is given twice");
            return Err(Problem::new(Code::DuplicateHeader, detail));
        }
    }
    Ok(())
}

/// Bodies are kept as they come, so they must not be encoded.
fn check_coding(headers: &HeaderMap) -> Result<(), Problem> {
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let codings = value.to_str().unwrap_or("(unreadable)").split(',').map(str::trim);
        for coding in codings.filter(|coding| !coding.is_empty()) {
            if !coding.eq_ignore_ascii_case("identity") {
                let detail = format!("content coding '{coding}'; only 'identity' is taken");
                return Err(Problem::new(Code::ContentEncoding, detail)
                    .header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")));
            }
        }
    }
    Ok(())
}

/// How a body is framed is undone below; a coding beyond that would become part of it.
fn check_transfer(headers: &HeaderMap) -> Result<(), Problem> {
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        if !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            let coding = value.to_str().unwrap_or("(unreadable)");
            let detail = format!("transfer coding '{coding}'; only 'chunked' is taken");
            return Err(Problem::new(Code::TransferEncoding, detail));
        }
    }
    Ok(())
}

fn check_expectation(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(expected) = headers.get(header::EXPECT) else { return Ok(()) };
    if expected.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Ok(());
    }
    let expected = expected.to_str().unwrap_or("(unreadable)");
    let detail = format!("expectation '{expected}'; only '100-continue' is met");
    Err(Problem::new(Code::Expectation, detail))
}

/// A body where none is read would be ignored.
fn check_body(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if matches!(*method, Method::PUT | Method::POST) {
        return Ok(());
    }
    let has = |name: HeaderName| headers.get(name).is_some_and(|value| value.as_bytes() != b"0");
    if has(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING) {
        let detail = format!("a {method} here has no body");
        return Err(Problem::new(Code::UnexpectedBody, detail));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The code of the refusal, or `""`.
    fn code(route: &Route, query: &str, headers: &[(&str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let uri = format!("/somewhere{query}").parse().unwrap();
        let method = route.method.parse().unwrap();
        let refused = examine(route.path, &method, &uri, &map).err();
        refused.map_or_else(String::new, |problem| problem.code().as_str().into())
    }

    #[test]
    fn every_route_refuses_what_it_does_not_honour() {
        for route in ROUTES {
            let at = format!("{} {}", route.method, route.path);
            let is_read = route.method == "GET";
            assert_eq!(code(route, "", &[]), "", "{at}");
            for parameter in ["min-size=1", "prof=true", "Proof=true", "x", "fr%6Fm2=1"] {
                assert_eq!(code(route, &format!("?{parameter}"), &[]), "unknown_parameter", "{at}");
            }
            for parameter in route.parameters().filter(|name| *name != "timeout") {
                assert_eq!(code(route, &format!("?{parameter}=1"), &[]), "", "{at}");
                let twice = format!("?{parameter}=1&{parameter}=1");
                assert_eq!(code(route, &twice, &[]), "duplicate_parameter", "{at}");
            }
            for refused in HEADERS {
                let applies = match refused.r#where {
                    Where::All => true,
                    Where::Reads => is_read,
                    Where::Writes => !is_read,
                };
                if applies {
                    assert_eq!(
                        code(route, "", &[(refused.name, "x")]),
                        refused.code.as_str(),
                        "{at}"
                    );
                }
            }
            for name in ONCE.iter().filter(|name| !is_read || **name != "idempotency-key") {
                let twice = [(*name, "100-continue"), (*name, "100-continue")];
                assert_eq!(code(route, "", &twice), "duplicate_header", "{at} {name}");
            }
            for coding in ["gzip", "identity, zstd", "br"] {
                let headers = [("content-encoding", coding)];
                assert_eq!(code(route, "", &headers), "content_encoding", "{at}");
            }
            assert_eq!(code(route, "", &[("content-encoding", "Identity")]), "", "{at}");
            let gzip = [("transfer-encoding", "gzip, chunked")];
            assert_eq!(code(route, "", &gzip), "transfer_encoding", "{at}");
            assert_eq!(code(route, "", &[("expect", "the impossible")]), "expectation", "{at}");
            assert_eq!(code(route, "", &[("expect", "100-Continue")]), "", "{at}");
            let takes_body = matches!(route.method, "PUT" | "POST");
            for body in [("content-length", "1"), ("transfer-encoding", "chunked")] {
                let expected = if takes_body { "" } else { "unexpected_body" };
                assert_eq!(code(route, "", &[body]), expected, "{at}");
            }
            assert_eq!(code(route, "", &[("content-length", "0")]), "", "{at}");
        }
    }

    #[test]
    fn reads_may_ask_for_less_than_everything() {
        let read = &ROUTES[0];
        for name in ["if-none-match", "if-modified-since", "range", "if-range"] {
            assert_eq!(code(read, "", &[(name, "x")]), "", "{name}");
        }
        assert_eq!(code(read, "?timeout=1s", &[]), "unknown_parameter");
        assert_eq!(code(read, "?timeout=1s&min_size=1", &[]), "");
    }
}
