//! The routes of the HTTP API.

use super::{
    Backend, Metrics, Room, WriteRequest, Writer,
    body::{self, Bodies, Held},
    contract,
    drain::Drain,
    export::Exports,
    guard::{self, Tokens},
    ndjson, observe, openapi,
    problem::{Code, Problem, busy},
    routes::{Call, ROUTES},
};
use crate::watch;
use crate::{
    database::types::{Change, Digest, Family, IDEMPOTENCY_KEY_LENGTH_MAX, KEY_LENGTH_MAX},
    documents::Status,
    http::{self, Answers},
    reads::{Name, ReadError, Subject, View},
};
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{
        DefaultBodyLimit, OriginalUri, Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use commonware_cryptography::{Hasher as _, Sha256};
use serde::Deserialize;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Instrument as _;

/// Requests worked on at once; more are answered `busy`.
pub(super) const REQUESTS_AT_ONCE_MAX: usize = 1024;
/// How long anything but an export may take in all.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Values in one page of a log, unless a read asks for another number.
pub(super) const ENTRIES_DEFAULT: usize = 100;
/// Most values in one page of a log.
pub(super) const ENTRIES_MAX: usize = 1000;
/// Bytes of values after which a page of a log ends.
pub(super) const ENTRIES_BYTES_MAX: usize = 1024 * 1024;
/// How long a read may wait for a size, at most.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);
/// Reads that wait for a size at once; more are answered `busy`.
pub(super) const WAITS_AT_ONCE_MAX: usize = 256;
/// Pages and proofs that are made at once; more wait for their turn.
pub(super) const ANSWERS_MADE_AT_ONCE_MAX: usize = 8;
/// How long a read waits for a size if it does not say.
pub(super) const WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// Content types of a value. It is kept as it is, whatever it is.
pub(super) const VALUE_TYPES: &[&str] =
    &["application/octet-stream", "text/plain", "application/json"];
/// Content types of a batch.
pub(super) const BATCH_TYPES: &[&str] = &["application/x-ndjson", "application/ndjson"];
/// Bytes that JSON may add to a batch's changes: escapes, base64, names.
const BODY_FACTOR: usize = 3;

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) tokens: Tokens,
    pub(super) address: IpAddr,
    drain: Drain,
    exports: Exports,
    requests: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    making: Arc<Semaphore>,
    bodies: Bodies,
}

/// The router over `backend`, for a port on `address`. Once `draining` is set, what waits for
/// something else ends.
pub fn router(
    backend: Arc<dyn Backend>,
    tokens: Tokens,
    address: IpAddr,
    metrics: Metrics,
    draining: watch::Receiver<bool>,
) -> Router {
    let (drain, metrics) = (Drain::new(draining), Arc::new(metrics));
    let api = Api {
        backend,
        tokens,
        address,
        exports: Exports::new(drain.clone(), metrics.clone()),
        drain,
        requests: Arc::new(Semaphore::new(REQUESTS_AT_ONCE_MAX)),
        waits: Arc::new(Semaphore::new(WAITS_AT_ONCE_MAX)),
        making: Arc::new(Semaphore::new(ANSWERS_MADE_AT_ONCE_MAX)),
        bodies: Bodies::default(),
    };
    let routes = ROUTES.iter().map(|route| (route.path, handler(route.call)));
    routes
        .fold(Router::new(), |router, (path, handler)| router.route(path, handler))
        .route_layer(middleware::from_fn(contract::check))
        .fallback(|| async { Problem::new(Code::NoSuchEndpoint, "no such endpoint") })
        .method_not_allowed_fallback(|method: Method| async move {
            let detail = format!("{method} is not allowed here");
            Problem::new(Code::MethodNotAllowed, detail)
        })
        .layer(middleware::from_fn_with_state(api.clone(), limit))
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .layer(DefaultBodyLimit::disable())
        // Last, so that it sees what the others refuse.
        .layer(middleware::from_fn_with_state(metrics, observe::observe))
        .with_state(api)
}

/// The handler of a route.
fn handler(call: Call) -> MethodRouter<Api> {
    match call {
        Call::GetKey => get(get_key),
        Call::PutKey => put(put_key),
        Call::DeleteKey => delete(delete_key),
        Call::WriteBatch => post(batch),
        Call::AppendValue => post(append),
        Call::ListEntries => get(entries),
        Call::GetEntry => get(entry),
        Call::ProveOperation => get(operation_proof),
        Call::Export => get(export),
        Call::GetCheckpoint => get(checkpoint),
        Call::GetStatus => get(status),
        Call::GetDocument => get(document),
    }
}

/// Bounds the requests that are worked on at once, and how long each may take.
async fn limit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Ok(_permit) = api.requests.clone().try_acquire_owned() else {
        return busy("too many requests at once").into_response();
    };
    // What a handler began to commit goes on by itself; only the answer is given up.
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("no answer within {REQUEST_TIMEOUT:?}");
            Problem::new(Code::Timeout, detail).into_response()
        }
    }
}

/// The key in a path: what follows `/v1/keys/`, percent-decoded, slashes included. Taken from the
/// raw path, so that no segment of it means anything.
fn key_of(path: &str) -> Result<Vec<u8>, Problem> {
    let raw = path.strip_prefix("/v1/keys/").unwrap_or_default();
    if raw.split('%').skip(1).any(|after| !after.as_bytes().get(..2).is_some_and(is_hex)) {
        return Err(Problem::malformed("'%' in a key is not followed by two hexadecimal digits"));
    }
    let key: Vec<u8> = percent_encoding::percent_decode_str(raw).collect();
    if key.is_empty() {
        return Err(Problem::malformed("the key is empty"));
    }
    if key.len() > KEY_LENGTH_MAX {
        let detail = format!("the key has {} bytes; {KEY_LENGTH_MAX} are allowed", key.len());
        return Err(Problem::too_large(detail));
    }
    Ok(key)
}

fn is_hex(digits: &[u8]) -> bool {
    digits.iter().all(u8::is_ascii_hexdigit)
}

/// What a read of a key may ask for.
#[derive(Deserialize)]
struct ReadOptions {
    min_size: Option<u64>,
    timeout: Option<String>,
    proof: Option<bool>,
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| Problem::malformed(error.body_text()))
}

async fn get_key(
    State(api): State<Api>,
    Extension(answers): Extension<Answers>,
    OriginalUri(uri): OriginalUri,
    options: Result<Query<ReadOptions>, QueryRejection>,
) -> Result<Response, Problem> {
    let key = key_of(uri.path())?;
    let options = query(options)?;
    if api.backend.status().family == Some(Family::Keyless) && options.proof != Some(true) {
        let detail = "family 'keyless' has entries, not keys; see /v1/entries";
        return Err(Problem::new(Code::Unsupported, detail));
    }
    if let Some(size) = options.min_size {
        wait_for_size(&api, size, options.timeout.as_deref()).await?;
    }
    if options.proof == Some(true) {
        return proof(&api, &answers, Subject::Key(key.into())).await;
    }
    let (view, value) = api.backend.get(&key).await?;
    let mut response = match value {
        Some(value) => {
            let mut response = value.into_response();
            let kind = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        None => {
            let detail = "the key is absent from the verified state";
            Problem::new(Code::NotFound, detail).into_response()
        }
    };
    add_view(response.headers_mut(), &view);
    Ok(response)
}

/// A proof file of the readable state.
async fn proof(api: &Api, answers: &Answers, subject: Subject) -> Result<Response, Problem> {
    let _turn = turn(api, answers).await?;
    let view = api.backend.view();
    let file = match api.backend.prove(subject).await {
        Ok(file) => file,
        // Absence is of a state as well.
        Err(error @ ReadError::NotFound(_)) => {
            let mut response = Problem::from(error).into_response();
            view.into_iter().for_each(|view| add_view(response.headers_mut(), &view));
            return Ok(response);
        }
        Err(error) => return Err(error.into()),
    };
    let checkpoint = &file.checkpoint.checkpoint;
    let state = (checkpoint.database, checkpoint.size, checkpoint.root);
    let mut response = Response::new(Body::from(file.to_json()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    let lag_seconds = view.map_or(0.0, |view| view.lag_seconds);
    let (database, size, root) = state;
    add_view(response.headers_mut(), &View { database, size, root, lag_seconds });
    Ok(response)
}

/// A turn to make a large answer, if there is memory for it.
async fn turn<'a>(api: &'a Api, answers: &Answers) -> Result<SemaphorePermit<'a>, Problem> {
    let turn = api.making.acquire().await;
    if answers.are_many() {
        return Err(http::too_many_answers());
    }
    turn.map_err(|_| Problem::draining())
}

async fn wait_for_size(api: &Api, size: u64, timeout: Option<&str>) -> Result<(), Problem> {
    let timeout = match timeout {
        None => WAIT_DEFAULT,
        Some(text) => crate::config::duration(text)
            .map_err(|allowed| Problem::malformed(format!("'timeout={text}' is not {allowed}")))?,
    };
    if timeout > WAIT_MAX {
        let detail = format!("'timeout' is at most {}s", WAIT_MAX.as_secs());
        return Err(Problem::malformed(detail));
    }
    if api.backend.view().is_some_and(|view| view.size >= size) {
        return Ok(());
    }
    let Ok(_place) = api.waits.try_acquire() else {
        return Err(busy("too many requests wait for a size at once"));
    };
    let reached = tokio::select! {
        biased;
        () = api.drain.begun() => return Err(Problem::draining()),
        reached = api.backend.wait_for_size(size, timeout) => reached,
    };
    if reached {
        return Ok(());
    }
    let now = api.backend.view().map_or(0, |view| view.size);
    let detail = format!("the state has {now} operations, {size} were asked for");
    Err(Problem::new(Code::Behind, detail))
}

/// Says which state an answer speaks of.
fn add_view(headers: &mut HeaderMap, view: &View) {
    let mut add = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    add("syncd-database", view.database.to_string());
    add("syncd-size", view.size.to_string());
    add("syncd-root", view.root.to_string());
    add("syncd-lag-seconds", format!("{:.3}", view.lag_seconds));
}

fn writer(api: &Api) -> Result<Arc<dyn Writer>, Problem> {
    api.backend.writer().ok_or_else(|| read_only(false))
}

/// What a replica answers to writes, on a path that it may have reads of.
pub(super) fn read_only(is_read: bool) -> Problem {
    let allowed = HeaderValue::from_static(if is_read { "GET, HEAD" } else { "" });
    let detail = "this is a replica: write to its server";
    Problem::new(Code::ReadOnly, detail).header(header::ALLOW, allowed)
}

/// The media type of a body, without parameters.
fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.unwrap_or_default().split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// Bodies that a foreign page can send without asking first are not taken.
fn demand_content_type(headers: &HeaderMap, allowed: &[&str]) -> Result<(), Problem> {
    let found = content_type(headers);
    if allowed.contains(&found.as_str()) {
        return Ok(());
    }
    let allowed = allowed.join(" or ");
    let detail = match found.as_str() {
        "" => format!("Content-Type is missing; use {allowed}"),
        found => format!("Content-Type '{found}' is not taken; use {allowed}"),
    };
    Err(Problem::new(Code::ContentType, detail))
}

/// Reads a body of at most `max` bytes, in bounded time.
async fn read_body(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    max: usize,
) -> Result<Held, Problem> {
    body::read(&api.bodies, &api.drain, headers, body, max).await
}

/// The idempotency key, with a digest of all that the request says.
fn idempotency(
    headers: &HeaderMap,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<Option<(Vec<u8>, Digest)>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.as_bytes();
    let visible = key.iter().all(u8::is_ascii_graphic);
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_LENGTH_MAX || !visible {
        let detail = format!(
            "the Idempotency-Key has {} bytes; 1 to {IDEMPOTENCY_KEY_LENGTH_MAX} visible ASCII characters are allowed",
            key.len()
        );
        return Err(Problem::malformed(detail));
    }
    let hash = Sha256::hash(&[method.as_bytes(), b"\0", path.as_bytes(), b"\0", body]);
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.as_ref());
    Ok(Some((key.to_vec(), Digest(digest))))
}

/// Commits one change.
async fn commit_one(
    writer: Arc<dyn Writer>,
    change: Change,
    idempotency: Option<(Vec<u8>, Digest)>,
) -> Result<Response, Problem> {
    let request = WriteRequest { changes: vec![change], idempotency };
    let room = writer.reserve(request.memory())?;
    commit(writer, request, room).await
}

/// Commits; a connection that closes meanwhile does not call it off half way.
async fn commit(
    writer: Arc<dyn Writer>,
    request: WriteRequest,
    room: Room,
) -> Result<Response, Problem> {
    let work = tokio::spawn(async move { writer.write(request, room).await }.in_current_span());
    let receipt =
        work.await.map_err(|_| Problem::new(Code::Internal, "the write was aborted"))??;
    Ok(Json(receipt).into_response())
}

async fn put_key(
    State(api): State<Api>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let writer = writer(&api)?;
    let key = key_of(uri.path())?;
    demand_content_type(&headers, VALUE_TYPES)?;
    let value = read_body(&api, &headers, body, writer.value_length_max()).await?;
    let idempotency = idempotency(&headers, "PUT", uri.path(), &value.bytes)?;
    commit_one(writer, Change::Put { key, value: value.bytes }, idempotency).await
}

async fn delete_key(
    State(api): State<Api>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let writer = writer(&api)?;
    let key = key_of(uri.path())?;
    let idempotency = idempotency(&headers, "DELETE", uri.path(), b"")?;
    commit_one(writer, Change::Delete { key }, idempotency).await
}

async fn batch(
    State(api): State<Api>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let writer = writer(&api)?;
    demand_content_type(&headers, BATCH_TYPES)?;
    let max = writer.batch_bytes_max() * BODY_FACTOR;
    let held = read_body(&api, &headers, body, max).await?;
    let is_log = api.backend.status().family == Some(Family::Keyless);
    // Before they are made: changes may take much more memory than their text.
    let room = writer.reserve(ndjson::memory_max(&held.bytes))?;
    let changes = ndjson::parse(&held.bytes, writer.value_length_max(), is_log)?;
    let idempotency = idempotency(&headers, "POST", uri.path(), &held.bytes)?;
    drop(held);
    commit(writer, WriteRequest { changes, idempotency }, room).await
}

async fn append(
    State(api): State<Api>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let writer = writer(&api)?;
    demand_content_type(&headers, VALUE_TYPES)?;
    let value = read_body(&api, &headers, body, writer.value_length_max()).await?;
    let idempotency = idempotency(&headers, "POST", uri.path(), &value.bytes)?;
    commit_one(writer, Change::Append { value: value.bytes }, idempotency).await
}

async fn status(State(api): State<Api>) -> Json<Status> {
    Json(api.backend.status())
}

/// The description of this API.
async fn document() -> Response {
    let mut response = openapi::document().into_response();
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn checkpoint(State(api): State<Api>) -> Result<Response, Problem> {
    let checkpoint = api.backend.checkpoint().ok_or(ReadError::NoVerifiedState)?;
    Ok(Json(checkpoint.to_json()).into_response())
}

/// What a read of a log of values may ask for.
#[derive(Deserialize)]
struct EntriesOptions {
    from: Option<u64>,
    limit: Option<usize>,
}

/// Values from a location on, with where to go on.
async fn entries(
    State(api): State<Api>,
    Extension(answers): Extension<Answers>,
    options: Result<Query<EntriesOptions>, QueryRejection>,
) -> Result<Response, Problem> {
    let options = query(options)?;
    let limit = options.limit.unwrap_or(ENTRIES_DEFAULT);
    if !(1..=ENTRIES_MAX).contains(&limit) {
        let detail = format!("'limit={limit}' is not 1 to {ENTRIES_MAX}");
        return Err(Problem::malformed(detail));
    }
    let from = options.from.unwrap_or(0);
    let _turn = turn(&api, &answers).await?;
    let page = api.backend.entries(from, limit, ENTRIES_BYTES_MAX).await?;
    let entries: Vec<_> = page.entries.iter().map(ndjson::to_json).collect();
    let body = serde_json::json!({ "entries": entries, "next": page.next });
    let mut response = Json(body).into_response();
    add_view(response.headers_mut(), &page.view);
    Ok(response)
}

/// One value, as it was appended.
async fn entry(
    State(api): State<Api>,
    Extension(answers): Extension<Answers>,
    location: Result<Path<String>, PathRejection>,
    options: Result<Query<ProofOptions>, QueryRejection>,
) -> Result<Response, Problem> {
    let location = location_of(location)?;
    let options = query(options)?;
    let page = api.backend.entries(location, 1, 1).await?;
    let found = page.entries.into_iter().find(|entry| entry.name == Name::Location(location));
    if found.is_some() && options.proof == Some(true) {
        return proof(&api, &answers, Subject::Operation(location)).await;
    }
    let mut response = match found {
        Some(entry) => {
            let mut response = entry.value.into_response();
            let kind = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        None if location < page.view.size => {
            let detail = format!("at {location} stands a commit, not a value");
            Problem::new(Code::NotAnEntry, detail).into_response()
        }
        None => {
            let detail = format!("the verified state ends at {}", page.view.size);
            Problem::new(Code::NotFound, detail).into_response()
        }
    };
    add_view(response.headers_mut(), &page.view);
    Ok(response)
}

/// Whether a read by location wants a proof.
#[derive(Deserialize)]
struct ProofOptions {
    proof: Option<bool>,
}

fn location_of(path: Result<Path<String>, PathRejection>) -> Result<u64, Problem> {
    let Path(text) = path.map_err(|error| Problem::malformed(error.body_text()))?;
    text.parse().map_err(|_| Problem::malformed(format!("'{text}' is not a location: a number")))
}

/// An operation, which only comes with its proof.
async fn operation_proof(
    State(api): State<Api>,
    Extension(answers): Extension<Answers>,
    location: Result<Path<String>, PathRejection>,
    options: Result<Query<ProofOptions>, QueryRejection>,
) -> Result<Response, Problem> {
    let location = location_of(location)?;
    if query(options)?.proof != Some(true) {
        return Err(Problem::malformed("an operation is given with its proof: add '?proof=true'"));
    }
    proof(&api, &answers, Subject::Operation(location)).await
}

async fn export(State(api): State<Api>) -> Result<Response, Problem> {
    let (view, mut response) = api.exports.start(api.backend.as_ref()).await?;
    add_view(response.headers_mut(), &view);
    Ok(response)
}
