//! Serving an axum router with bounds: connections, time for heads and answers, draining.
//!
//! A peer that is waited for never holds a place that another connection needs: on a full port the
//! connection on which nothing has moved for longest is closed, be it idle, in the middle of a head
//! or a body, or with an answer that it does not take; and while others wait, a connection is closed
//! after its answer. So a flood cannot keep a probe out.

mod activity;
mod answers;
mod metrics;
mod patience;
mod places;
mod socket;

pub use activity::{IDLE_GRACE, SLOW_GRACE, STALL_GRACE};
pub use answers::{ANSWER_FREE_BYTES, ANSWERS_BYTES_MAX, Answers};
pub use metrics::{Metrics, PortLabel, RejectLabel};
pub use patience::Patience;
pub use socket::{UNSENT_BYTES_MAX, WRITE_RATE_MIN, WRITE_STALL_MAX};

use activity::{Activity, InService, Reason, Received, Sent};
use axum::{
    Router,
    body::{Body, HttpBody as _},
    http::{HeaderValue, Request, Response, header},
    response::IntoResponse as _,
};
use hyper::{body::Incoming, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use places::{Crowd, Places};
use socket::Socket;
use std::{
    convert::Infallible,
    error::Error as _,
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

/// Most connections at once on one port, where there are descriptors for them.
pub const CONNECTIONS_MAX: usize = 512;
/// How long a client may take to send a request's head.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Pause after a failed accept (out of file descriptors, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection of the metrics port has its place when that is full: no answer there takes
/// long, and probes have to get through.
pub const METRICS_PLACE_MAX: Duration = Duration::from_secs(2);
/// How often a draining port looks for connections that only wait for their peers.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);

/// A port to serve.
pub struct Port {
    /// Its name in metrics: `api` or `metrics`.
    pub name: &'static str,
    /// Most connections at once.
    pub connections_max: usize,
    /// How long a connection has its place when the port is full, whatever it does with it; `None`
    /// where requests may take long.
    pub place_max: Option<Duration>,
    /// Metrics of all ports.
    pub metrics: Arc<Metrics>,
}

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({flag}): {source}")]
pub struct BindError {
    /// The flag that names it.
    pub flag: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// Connections that wait in the kernel for a place of a port. Beyond them it drops what comes, and who comes tries again
/// after seconds; so there is room for all whose place may be needed at once (at most `net.core.somaxconn`).
pub const WAITING_MAX: i32 = 4096;

/// Takes a port.
pub fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    let failed = |source| BindError { flag, address, source };
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)
            .map_err(failed)?;
    socket.set_reuse_address(true).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    socket.listen(WAITING_MAX).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket.into())
}

/// Serves `router` until `stop`, then lets what is in flight end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    port: Port,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let graceful = GracefulShutdown::new();
    let (places, answers) = (Places::new(&port), Answers::default());
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places, &answers) => accepted,
            () = &mut stop => break,
        };
        let (socket, place, activity) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = Service {
            router: TowerToHyperService::new(router.clone()),
            activity: activity.clone(),
            crowd: places.crowd(),
            answers: answers.clone(),
            port: port.name,
            metrics: port.metrics.clone(),
        };
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        let connection = graceful.watch(connection);
        let (name, metrics) = (port.name, port.metrics.clone());
        places.run(place, activity, async move {
            if let Err(error) = connection.await {
                if is_stalled(&error) {
                    Places::count(&metrics, name, Reason::SlowReader);
                }
                tracing::debug!(%error, "HTTP connection ended");
            }
        });
    }
    drop(listener);
    let drained = graceful.shutdown();
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => return Ok(()),
            () = tokio::time::sleep(DRAIN_INTERVAL) => places.end_quiet(),
        }
    }
}

/// Accepts a connection and finds it a place. Connections beyond that one wait in the kernel's
/// queue.
async fn accept(
    listener: &tokio::net::TcpListener,
    places: &Places,
    answers: &Answers,
) -> io::Result<(Socket, places::Place, Arc<Activity>)> {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Its peer went away before it was looked at: nothing is wrong here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let place = places.take().await;
        let activity = Activity::new();
        match Socket::new(stream, activity.clone(), answers.clone()) {
            Ok(socket) => return Ok((socket, place, activity)),
            Err(error) => tracing::debug!(%error, "an HTTP connection ended at once"),
        }
    }
}

/// The router for one connection; notes what that is doing.
#[derive(Clone)]
struct Service {
    router: TowerToHyperService<Router>,
    activity: Arc<Activity>,
    crowd: Arc<Crowd>,
    answers: Answers,
    port: &'static str,
    metrics: Arc<Metrics>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Sent>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Sent>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let service = self.clone();
        let in_service = self.activity.serve();
        Box::pin(async move { Ok(service.answer(request, in_service).await) })
    }
}

impl Service {
    async fn answer(&self, request: Request<Incoming>, in_service: InService) -> Response<Sent> {
        let activity = self.activity.clone();
        let mut request = request.map(|body| Body::new(Received { body, activity }));
        request.extensions_mut().insert(self.answers.clone());
        let mut answer = match self.router.call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        let bytes = answer.body().size_hint().exact().unwrap_or(0);
        let room = self.answers.take(bytes).unwrap_or_else(|()| {
            Places::count(&self.metrics, self.port, Reason::Answers);
            answer = too_many_answers().into_response();
            None
        });
        if self.crowd.is_there() {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer.map(|body| Sent::new(body, in_service, room))
    }
}

/// The caller's connection ends, so that what it asked ahead does not keep others out.
pub fn too_many_answers() -> crate::api::Problem {
    crate::api::busy("too many answers wait for their readers")
        .header(header::CONNECTION, HeaderValue::from_static("close"))
}

/// Whether a connection ended because its peer did not take its answer.
fn is_stalled(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}
