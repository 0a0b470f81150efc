//! The OpenAPI document: made from the table of routes, the codes of problems, and the structures
//! that are sent. `docs/openapi.json` is a copy of it.

mod parts;
mod schemas;

use super::{
    problem::Code,
    routes::{Answers, EVERYWHERE, ROUTES, Route, Takes},
};
use crate::documents::{ClientStatus, ProblemDetails, Receipt, Role, Status, schema};
use axum::{body::Bytes, http::StatusCode};
use schemas::{Checkpoint, Entries, ProofFile, Record, Statement};
use std::{collections::BTreeMap, sync::LazyLock};
use utoipa::openapi::{
    ComponentsBuilder, Content, HttpMethod, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder,
    PathItem, PathsBuilder, Ref, RefOr, Response, ResponseBuilder, SecurityRequirement,
    path::{Operation, OperationBuilder},
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

/// Content type of problems.
const PROBLEM_TYPE: &str = "application/problem+json";
/// Answered below the routes, without a body.
const HEAD_TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
/// Name of the security scheme.
const BEARER: &str = "bearer";

const ABOUT: &str = "One API on `syncd-server` and on `syncd-client`, its replica, which takes no writes. docs/API.md explains it with examples.\n\n\
    `HEAD` is answered as `GET`, without the body. A path that does not exist is answered 404 `no_such_endpoint`, a method that a \
    path does not have 405 `method_not_allowed`. A request that is not HTTP is answered 400 without a body.\n\n\
    `security` says what can be asked for: reads need a token where `--read-token-file` is given, this document \
    included, and writes where `--api-token-file` is.";

/// The document, as it is served.
pub(super) fn document() -> Bytes {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| text().into());
    DOCUMENT.clone()
}

fn text() -> String {
    let mut document = serde_json::to_value(openapi()).unwrap_or_default();
    parts::demand_headers(&mut document);
    format!("{document:#}\n")
}

fn openapi() -> OpenApi {
    let license = LicenseBuilder::new().name("MIT OR Apache-2.0");
    let info = InfoBuilder::new()
        .title("syncd")
        .version(crate::VERSION)
        .description(Some(ABOUT))
        .license(Some(license.identifier(Some("MIT OR Apache-2.0")).build()))
        .build();
    let mut paths: BTreeMap<String, PathItem> = BTreeMap::new();
    for route in ROUTES {
        let item = PathItem::new(method(route), operation(route));
        match paths.get_mut(&path(route)) {
            Some(known) => known.merge_operations(item),
            None => _ = paths.insert(path(route), item),
        }
    }
    let paths =
        paths.into_iter().fold(PathsBuilder::new(), |all, (path, item)| all.path(path, item));
    let open = SecurityRequirement::default();
    let with_token = SecurityRequirement::new(BEARER, Vec::<String>::new());
    OpenApiBuilder::new()
        .info(info)
        .paths(paths.build())
        .components(Some(components().build()))
        .security(Some([open, with_token]))
        .build()
}

fn components() -> ComponentsBuilder {
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "A token of `--read-token-file` (reads) or `--api-token-file` (reads and writes).",
    ));
    let components = ComponentsBuilder::new()
        .schema_from::<ProblemDetails>()
        .schema_from::<Receipt>()
        .schema_from::<Role>()
        .schema_from::<Status>()
        .schema_from::<ClientStatus>()
        .schema_from::<Record>()
        .schema_from::<Entries>()
        .schema_from::<Checkpoint>()
        .schema_from::<ProofFile>()
        .schema_from::<Statement>()
        .schema_from::<schema::Digest>()
        .schema_from::<schema::Family>()
        .schema_from::<schema::Mode>()
        .schema_from::<schema::Hash>()
        .schema("AnyStatus", parts::any_status())
        .security_scheme(BEARER, SecurityScheme::Http(token.build()));
    let components = parts::HEADERS
        .iter()
        .fold(components, |all, header| all.header(header.name, parts::header(header)));
    let components = components.response(shared_name(HEAD_TOO_LARGE), parts::head_too_large());
    let shared = by_status(EVERYWHERE);
    shared
        .iter()
        .fold(components, |all, (status, codes)| all.response(shared_name(*status), problem(codes)))
}

/// As OpenAPI writes it: a key is one parameter, whose slashes are percent-encoded.
fn path(route: &Route) -> String {
    route.path.replace("{*", "{")
}

fn method(route: &Route) -> HttpMethod {
    match route.method {
        "PUT" => HttpMethod::Put,
        "POST" => HttpMethod::Post,
        "DELETE" => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

fn operation(route: &Route) -> Operation {
    let mut id = format!("{:?}", route.call);
    id[..1].make_ascii_lowercase();
    let mut operation = OperationBuilder::new()
        .operation_id(Some(id))
        .summary(Some(route.summary))
        .description(Some(route.description))
        .tag(if route.is_read() { "reads" } else { "writes" });
    for parameter in parts::path_parameters(route.path) {
        operation = operation.parameter(parameter);
    }
    for parameter in route.parameters {
        operation = operation.parameter(parts::query_parameter(*parameter));
    }
    if !route.is_read() {
        operation = operation.parameter(parts::idempotency_key());
    }
    if route.takes != Takes::Nothing {
        operation = operation.request_body(Some(parts::request_body(route.takes)));
    }
    operation = operation.response("200", success(route.answers));
    let everywhere = by_status(EVERYWHERE);
    for (status, codes) in by_status(&[EVERYWHERE, route.problems].concat()) {
        let response = if everywhere.get(&status) == Some(&codes) {
            RefOr::Ref(Ref::from_response_name(shared_name(status)))
        } else {
            RefOr::T(problem(&codes))
        };
        operation = operation.response(status.as_str(), response);
    }
    let head_too_large = Ref::from_response_name(shared_name(HEAD_TOO_LARGE));
    operation.response(HEAD_TOO_LARGE.as_str(), head_too_large).build()
}

/// The codes of each status, in their order.
fn by_status(codes: &[Code]) -> BTreeMap<StatusCode, Vec<Code>> {
    let mut found: BTreeMap<StatusCode, Vec<Code>> = BTreeMap::new();
    for code in codes {
        found.entry(code.status()).or_default().push(*code);
    }
    found.values_mut().for_each(|codes| codes.sort_unstable());
    found
}

/// The name of a response that is the same on every route.
fn shared_name(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or("Error").replace(' ', "")
}

/// A problem with one of `codes`.
fn problem(codes: &[Code]) -> Response {
    let when = codes.iter().map(|code| format!("- `{}`: {}", code.as_str(), code.when()));
    let response = ResponseBuilder::new()
        .description(when.collect::<Vec<_>>().join("\n"))
        .content(PROBLEM_TYPE, Content::new(Some(parts::problem_with(codes))));
    let headers = parts::HEADERS.iter().filter(|header| header.comes_with(codes));
    headers
        .fold(response, |response, header| response.header_ref(header.name, header_ref(header)))
        .build()
}

fn header_ref(header: &parts::AnswerHeader) -> Ref {
    Ref::new(format!("#/components/headers/{}", header.name))
}

fn success(answers: Answers) -> Response {
    let schema = |name: &str| Content::new(Some(Ref::from_schema_name(name)));
    let response = ResponseBuilder::new();
    let response = match answers {
        Answers::ValueOrProof => response
            .description("The value; with `proof=true` a proof file")
            .content("application/octet-stream", Content::new(Some(parts::anything())))
            .content("application/json", schema("ProofFile")),
        Answers::Proof => {
            response.description("A proof file").content("application/json", schema("ProofFile"))
        }
        Answers::Receipt => response
            .description("It is committed and on disk")
            .content("application/json", schema("Receipt")),
        Answers::Entries => {
            response.description("A page of values").content("application/json", schema("Entries"))
        }
        Answers::Export => response
            .description("One record a line")
            .content("application/x-ndjson", parts::lines()),
        Answers::Checkpoint => response
            .description("The newest checkpoint")
            .content("application/json", schema("Checkpoint")),
        Answers::Status => {
            response.description("The status").content("application/json", schema("AnyStatus"))
        }
        Answers::Document => response
            .description("An OpenAPI document")
            .content("application/json", parts::any_object()),
    };
    let headers = parts::HEADERS.iter().filter(|header| header.names_the_state);
    let headers = headers.filter(|_| answers.name_a_state());
    headers
        .fold(response, |response, header| response.header_ref(header.name, header_ref(header)))
        .build()
}

#[cfg(test)]
mod tests;
