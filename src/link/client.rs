//! The client's side of an open connection: many requests and streams in flight.

use super::{
    KEEPALIVE_INTERVAL, REQUEST_TIMEOUT,
    credit::{Balance, CREDIT_BYTES, ITEM_BYTES_MIN, cost},
    frames::{Guard, Outgoing},
};
use crate::watch;
use crate::{
    runtime::Runtime,
    telemetry::context::{TraceContext, TraceContextExt as _},
    wire::{ClientMessage, Refused, Request, Response, ServerMessage},
};
use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_utils::sync::Mutex;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, Span, field::Empty};

/// Items of a stream that may wait here: what credit allows, and one that overdraws it.
const STREAM_ITEMS_MAX: usize = (CREDIT_BYTES / ITEM_BYTES_MIN) as usize + 1;

/// Why a connection could not be made, or a request not be answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// No address for the name.
    #[error("cannot resolve '{host}': {message}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        message: String,
    },
    /// Nobody answers there.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr),
    /// The two clocks differ too much.
    #[error(
        "clock skew: the server's clock is {skew:?} off, more than the {allowed:?} allowed by --handshake-skew"
    )]
    ClockSkew {
        /// The difference.
        skew: Duration,
        /// What is allowed.
        allowed: Duration,
    },
    /// The handshake failed.
    #[error("handshake failed: {0}")]
    Handshake(String),
    /// The server speaks nonsense.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// The server said no.
    #[error("{0}")]
    Refused(Refused),
    /// No address of a name leads to the server.
    #[error("{text}")]
    Addresses {
        /// Each address with its reason.
        text: String,
        /// The reason that says most.
        telling: Box<LinkError>,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection is closed.
    #[error("connection closed")]
    Closed,
}

impl LinkError {
    /// Every word that [`Self::reason`] can give beside the codes of refusals.
    pub const REASONS: [&str; 7] =
        ["resolve", "connect", "clock_skew", "handshake", "protocol", "timeout", "closed"];

    /// What became of the addresses of `host`; one reason is given as it is.
    pub(super) fn of_addresses(host: &str, mut failures: Vec<(SocketAddr, Self)>) -> Self {
        if failures.len() < 2 {
            let none = Self::Resolve { host: host.into(), message: "no address".into() };
            return failures.pop().map_or(none, |(_, error)| error);
        }
        let each: Vec<String> =
            failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
        let text = format!("no address of '{host}' leads to the server: {}", each.join("; "));
        let telling = failures.into_iter().map(|(_, error)| error).max_by_key(Self::weight);
        Self::Addresses { text, telling: Box::new(telling.unwrap_or(Self::Closed)) }
    }

    /// How much an error says of the server: most if it was the server that spoke.
    const fn weight(&self) -> u8 {
        match self {
            Self::Refused(_) => 7,
            Self::ClockSkew { .. } => 6,
            Self::Protocol(_) => 5,
            Self::Handshake(_) => 4,
            Self::Timeout(_) => 3,
            Self::Closed => 2,
            Self::Connect(_) => 1,
            Self::Resolve { .. } | Self::Addresses { .. } => 0,
        }
    }

    /// The error itself, or of several addresses the one that says most.
    pub fn telling(&self) -> &Self {
        match self {
            Self::Addresses { telling, .. } => telling,
            error => error,
        }
    }

    /// Word for the label of metrics.
    pub fn reason(&self) -> &'static str {
        match self.telling() {
            // None is made of others of its kind.
            Self::Addresses { .. } => "connect",
            Self::Resolve { .. } => "resolve",
            Self::Connect(_) => "connect",
            Self::ClockSkew { .. } => "clock_skew",
            Self::Handshake(_) => "handshake",
            Self::Protocol(_) => "protocol",
            Self::Refused(refused) => refused.code.as_str(),
            Self::Timeout(_) => "timeout",
            Self::Closed => "closed",
        }
    }
}

/// Where the answers to a request go.
enum Pending {
    Once(oneshot::Sender<Response>),
    Stream(Items),
}

/// The dispatcher's end of a stream.
struct Items {
    /// Each item with its cost.
    queue: mpsc::Sender<(Response, u32)>,
    /// The account of a stream of commits; a stream of checkpoints has none, and is bounded by
    /// its queue.
    balance: Option<Arc<Balance>>,
}

/// An open connection.
pub struct Link<E: Runtime> {
    context: E,
    outgoing: mpsc::Sender<Outgoing>,
    pending: Arc<Mutex<BTreeMap<u64, Pending>>>,
    next_id: AtomicU64,
    closed: watch::Receiver<Option<LinkError>>,
    close: watch::Sender<Option<LinkError>>,
    _guard: Guard,
}

/// Items that a server pushes for one request. Dropping it cancels the request.
pub struct Stream<E: Runtime> {
    id: u64,
    link: Arc<Link<E>>,
    items: mpsc::Receiver<(Response, u32)>,
    balance: Option<Arc<Balance>>,
    /// Cost of what was worked on and not yet granted again.
    owed: u32,
    /// How the server ended the stream, until somebody asks.
    ended: Option<Refused>,
}

impl<E: Runtime> Link<E> {
    pub(super) fn start(
        context: E,
        outgoing: mpsc::Sender<Outgoing>,
        incoming: mpsc::Receiver<Bytes>,
        guard: Guard,
        received: Arc<AtomicU64>,
    ) -> Arc<Self> {
        let pending = Arc::new(Mutex::new(BTreeMap::new()));
        let (close, closed) = watch::channel(None);
        let dispatch = Dispatcher { pending: pending.clone(), close: close.clone(), received };
        context.child("dispatcher").spawn(move |_| dispatch.run(incoming));
        let keepalive = (outgoing.clone(), closed.clone());
        context
            .child("keepalive")
            .spawn(move |context| keep_alive(context, keepalive.0, keepalive.1));
        Arc::new(Self {
            context,
            outgoing,
            pending,
            next_id: AtomicU64::new(0),
            closed,
            close,
            _guard: guard,
        })
    }

    /// Asks and waits for the answer.
    pub async fn request(&self, request: Request) -> Result<Response, LinkError> {
        let span = tracing::info_span!(
            "link.request",
            otel.kind = "client",
            request = request.as_str(),
            result = Empty
        );
        let asking = async {
            let result = self.ask(request).await;
            let word = result.as_ref().err().map_or("ok", LinkError::reason);
            Span::current().record("result", word);
            result
        };
        asking.instrument(span).await
    }

    async fn ask(&self, request: Request) -> Result<Response, LinkError> {
        let (answer, answered) = oneshot::channel();
        let id = self.send(request, TraceContext::current(), Pending::Once(answer)).await?;
        tokio::select! {
            biased;
            response = answered => match response {
                Ok(Response::Refused(refused)) => Err(LinkError::Refused(refused)),
                Ok(response) => Ok(response),
                Err(_) => Err(self.why_closed()),
            },
            () = self.context.sleep(REQUEST_TIMEOUT) => {
                self.pending.lock().remove(&id);
                self.tell(ClientMessage::Cancel { id });
                Err(LinkError::Timeout(REQUEST_TIMEOUT))
            }
        }
    }

    /// Asks for a stream of commits after `sequence`.
    pub async fn follow(self: &Arc<Self>, sequence: u64) -> Result<Stream<E>, LinkError> {
        let balance = Arc::new(Balance::new(CREDIT_BYTES));
        self.stream(Request::Follow { sequence, credit: CREDIT_BYTES }, Some(balance)).await
    }

    /// Asks for a stream of checkpoints while the state of `target` is fetched.
    pub async fn watch(self: &Arc<Self>, target: u64) -> Result<Stream<E>, LinkError> {
        self.stream(Request::Watch { target }, None).await
    }

    async fn stream(
        self: &Arc<Self>,
        request: Request,
        balance: Option<Arc<Balance>>,
    ) -> Result<Stream<E>, LinkError> {
        let (queue, items) = mpsc::channel(STREAM_ITEMS_MAX);
        let pending = Pending::Stream(Items { queue, balance: balance.clone() });
        // A stream outlives the work that asked for it, and belongs to no trace.
        let id = self.send(request, None, pending).await?;
        Ok(Stream { id, link: self.clone(), items, balance, owed: 0, ended: None })
    }

    async fn send(
        &self,
        request: Request,
        trace: Option<TraceContext>,
        pending: Pending,
    ) -> Result<u64, LinkError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.pending.lock().insert(id, pending);
        let message = ClientMessage::Request { id, trace, request };
        // The dispatcher closes what is pending when the connection ends, so check after insert.
        if self.closed.borrow().is_some()
            || self.outgoing.send(message.encode().into()).await.is_err()
        {
            self.pending.lock().remove(&id);
            return Err(self.why_closed());
        }
        Ok(id)
    }

    /// Sends what needs no answer; lost if the queue is full or closed.
    fn tell(&self, message: ClientMessage) {
        let _ = self.outgoing.try_send(message.encode().into());
    }

    /// Closes the connection for `error`.
    pub fn close(&self, error: LinkError) {
        self.close.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(error);
            first
        });
        self.pending.lock().clear();
    }

    /// Why the connection is closed; [`LinkError::Closed`] if nobody said more.
    pub fn why_closed(&self) -> LinkError {
        self.closed.borrow().clone().unwrap_or(LinkError::Closed)
    }

    /// Whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Waits until the connection is closed.
    pub async fn closed(&self) -> LinkError {
        let mut closed = self.closed.clone();

        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(LinkError::Closed),
            Err(_) => LinkError::Closed,
        }
    }
}

impl<E: Runtime> Stream<E> {
    /// The next item; credit for those before is given back.
    pub async fn next(&mut self) -> Result<Response, LinkError> {
        self.repay().await?;
        if let Some(refused) = self.ended.take() {
            return Err(LinkError::Refused(refused));
        }
        match self.items.recv().await {
            Some((Response::Refused(refused), _)) => Err(LinkError::Refused(refused)),
            Some((item, cost)) => {
                self.owed = self.owed.saturating_add(cost);
                Ok(item)
            }
            None => Err(self.link.why_closed()),
        }
    }

    /// An item that is already here. The end of the stream is left to [`Self::next`].
    pub fn try_next(&mut self) -> Option<Response> {
        match self.items.try_recv().ok()? {
            (Response::Refused(refused), _) => {
                self.ended = Some(refused);
                None
            }
            (item, cost) => {
                self.owed = self.owed.saturating_add(cost);
                Some(item)
            }
        }
    }

    /// Gives credit back in large steps, so that it costs few messages.
    async fn repay(&mut self) -> Result<(), LinkError> {
        let Some(balance) = self.balance.as_ref().filter(|_| self.owed >= CREDIT_BYTES / 4) else {
            return Ok(());
        };
        let outgoing = &self.link.outgoing;
        let place = outgoing.reserve().await.map_err(|_| self.link.why_closed())?;
        // Here first: the server may spend it before this task goes on.
        balance.grant(self.owed, i64::MAX);
        let message = ClientMessage::Credit { id: self.id, bytes: self.owed };
        place.send(message.encode().into());
        self.owed = 0;
        Ok(())
    }
}

impl<E: Runtime> Drop for Stream<E> {
    fn drop(&mut self) {
        self.link.pending.lock().remove(&self.id);
        self.link.tell(ClientMessage::Cancel { id: self.id });
    }
}

/// Sends pings until the connection is closed.
async fn keep_alive<E: Runtime>(
    context: E,
    outgoing: mpsc::Sender<Outgoing>,
    mut closed: watch::Receiver<Option<LinkError>>,
) {
    loop {
        tokio::select! {
            biased;
            _ = closed.wait_for(Option::is_some) => return,
            () = context.sleep(KEEPALIVE_INTERVAL) => {}
        }
        if outgoing.send(ClientMessage::Ping.encode().into()).await.is_err() {
            return;
        }
    }
}

/// Gives every frame to whom it belongs.
struct Dispatcher {
    pending: Arc<Mutex<BTreeMap<u64, Pending>>>,
    close: watch::Sender<Option<LinkError>>,
    received: Arc<AtomicU64>,
}

impl Dispatcher {
    async fn run(self, mut incoming: mpsc::Receiver<Bytes>) {
        let mut closed = self.close.subscribe();
        let reason = loop {
            let frame = tokio::select! {
                biased;
                _ = closed.wait_for(Option::is_some) => break LinkError::Closed,
                frame = incoming.recv() => frame,
            };
            let Some(frame) = frame else { break LinkError::Closed };
            self.received.fetch_add(frame.len() as u64, Ordering::Relaxed);
            if let Err(error) = self.dispatch(frame) {
                break error;
            }
        };
        self.close.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        });
        // Everybody who waits is told.
        self.pending.lock().clear();
    }

    fn dispatch(&self, frame: Bytes) -> Result<(), LinkError> {
        let message =
            ServerMessage::decode(frame).map_err(|_| LinkError::Protocol("undecodable message"))?;
        let ServerMessage::Response { id, response } = message else { return Ok(()) };
        let mut pending = self.pending.lock();
        match pending.remove(&id) {
            // Cancelled meanwhile.
            None => Ok(()),
            Some(Pending::Once(answer)) => {
                let _ = answer.send(response);
                Ok(())
            }
            Some(Pending::Stream(items)) => {
                if items.take(response)? {
                    pending.insert(id, Pending::Stream(items));
                }
                Ok(())
            }
        }
    }
}

impl Items {
    /// Hands an item on, within the credit and of the kind that the stream is about; whether the
    /// stream goes on.
    fn take(&self, item: Response) -> Result<bool, LinkError> {
        let is_end = matches!(item, Response::Refused(_));
        match (&item, &self.balance) {
            (Response::Checkpoint(_) | Response::Refused(_), _)
            | (Response::Commit { .. }, Some(_)) => {}
            _ => return Err(LinkError::Protocol("unexpected item in a stream")),
        }
        let cost = cost(&item);
        if let Some(balance) = self.balance.as_ref().filter(|_| !is_end)
            && !balance.spend(cost)
        {
            return Err(LinkError::Protocol("more was sent than credit allows"));
        }
        match self.queue.try_send((item, cost)) {
            Ok(()) => Ok(!is_end),
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(false),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(LinkError::Protocol("more was sent than asked for"))
            }
        }
    }
}
