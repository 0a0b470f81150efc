//! One connected replica: its greeting, its requests, its streams.

use super::{
    Shared,
    budget::{Reader, Reservation},
    greeting, limits,
    metrics::{RequestLabel, ResultLabel},
};
use crate::watch;
use crate::{
    database::{Error as DatabaseError, Fetch},
    link::{Frames, HANDSHAKE_TIMEOUT, Outgoing, credit::Balance, flush},
    runtime::Runtime,
    telemetry::context::{TraceContext, TraceContextExt as _},
    wire::{
        ClientMessage, Code, FRAME_BYTES_MAX, RESPONSE_BYTES_MAX, RESPONSE_OPERATIONS_MAX, Refused,
        Reply, Request, Response, ServerMessage,
    },
};
use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::ed25519::PublicKey;
use commonware_utils::sync::Mutex;
use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU64, sync::Arc, time::Duration};
use tokio::sync::{Notify, Semaphore, mpsc};
use tracing::{Instrument as _, Span, field::Empty};

/// A stream's allowance.
pub(super) struct Credit {
    pub(super) balance: Balance,
    more: Notify,
}

impl Credit {
    fn new(bytes: u32) -> Self {
        Self { balance: Balance::new(bytes), more: Notify::new() }
    }

    /// Waits until another item may be sent.
    pub(super) async fn allows(&self) {
        while !self.balance.allows() {
            self.more.notified().await;
        }
    }
}

/// What the tasks of one session share.
pub(super) struct Session<E: Runtime> {
    pub(super) shared: Arc<Shared<E>>,
    key: PublicKey,
    outgoing: mpsc::Sender<Outgoing>,
    pub(super) reader: Arc<Reader>,
    in_flight: Arc<Semaphore>,
    tasks: Mutex<BTreeMap<u64, Work>>,
}

/// What a request needs room for.
enum Need {
    /// One answer of at most so many bytes.
    Answer(usize),
    /// Answers for as long as there is credit; each finds its own room.
    Stream(u32),
}

/// Room for one answer: in the memory, and in the quota of the client's key. Dropping it gives
/// both back.
pub(super) struct Room {
    reservation: Reservation,
    deposit: Deposit,
}

/// Bytes taken from a key's quota before the answer was made.
struct Deposit {
    give_back: Box<dyn Fn(usize) + Send>,
    bytes: usize,
}

impl Deposit {
    /// Keeps what was sent, and gives the rest back.
    fn spend(mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        (self.give_back)(self.bytes);
    }
}

/// A request that is being worked on.
struct Work {
    task: Option<commonware_runtime::Handle<()>>,
    credit: Option<Arc<Credit>>,
}

/// Serves one connection until it ends, misbehaves, or the server drains.
pub(super) async fn run<E: Runtime>(
    context: E,
    shared: &Arc<Shared<E>>,
    key: PublicKey,
    address: SocketAddr,
    frames: Frames,
) {
    let (outgoing, mut incoming, _guard) = frames.split();
    match greeting::greet(&context, shared, &outgoing, &mut incoming).await {
        Ok(hello) => {
            let size = hello.newest.as_ref().map_or(0, |newest| newest.checkpoint.size);
            tracing::info!(%address, client = %key, size, "replica connected");
        }
        Err(refused) => {
            shared.metrics.reject(refused.code.as_str());
            tracing::info!(%address, client = %key, reason = %refused, "replica refused");
            let _ = outgoing.send(Reply::Refused(refused).encode().into()).await;
            flush(&context, &outgoing).await;
            return;
        }
    }
    let session = Arc::new(Session {
        shared: shared.clone(),
        key: key.clone(),
        outgoing,
        reader: shared.budget.reader(),
        in_flight: Arc::new(Semaphore::new(limits::REQUESTS_IN_FLIGHT_MAX)),
        tasks: Mutex::new(BTreeMap::new()),
    });
    let reason = tokio::select! {
        biased;
        () = session.reader.cut() => {
            shared.metrics.reject("slow_reader");
            "it did not read its answers"
        }
        () = unauthorized(shared, &key) => {
            shared.metrics.reject("unauthorized");
            session.dismiss(&context).await;
            "its key is no longer authorised"
        }
        reason = listen(&context, &session, &mut incoming) => reason,
    };
    session.tasks.lock().clear();
    session.reader.leave();
    tracing::info!(%address, client = %key, reason, "replica disconnected");
}

/// Answers a connection's greeting with a refusal, and closes it.
pub(super) async fn refuse<E: Runtime>(context: &E, frames: Frames, refused: Refused) {
    let (outgoing, mut incoming, _guard) = frames.split();
    tokio::select! {
        biased;
        _ = incoming.recv() => {}
        () = context.sleep(HANDSHAKE_TIMEOUT) => return,
    }
    let _ = outgoing.send(Reply::Refused(refused).encode().into()).await;
    flush(context, &outgoing).await;
}

/// Waits until `key` is no longer among the authorised ones.
async fn unauthorized<E: Runtime>(shared: &Shared<E>, key: &PublicKey) {
    let mut authorized = shared.config.authorized.subscribe();
    while shared.authorizes(key) {
        if authorized.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads messages until there is a reason to stop.
async fn listen<E: Runtime>(
    context: &E,
    session: &Arc<Session<E>>,
    incoming: &mut mpsc::Receiver<Bytes>,
) -> &'static str {
    let mut draining = session.shared.draining.clone();
    loop {
        let frame = tokio::select! {
            biased;
            () = drained(&mut draining) => {
                finish(context, session).await;
                return "draining";
            }
            frame = incoming.recv() => frame,
        };
        let Some(frame) = frame else { return "closed" };
        let Ok(message) = ClientMessage::decode(frame) else {
            session.shared.metrics.reject("malformed");
            return "malformed message";
        };
        match message {
            ClientMessage::Ping => {
                let pong = ServerMessage::Pong.encode();
                let reservation = session.reader.reserve(pong.len()).await;
                if session.outgoing.send(reservation.queue(pong)).await.is_err() {
                    return "closed";
                }
            }
            ClientMessage::Cancel { id } => {
                session.tasks.lock().remove(&id);
            }
            ClientMessage::Credit { id, bytes } => session.add_credit(id, bytes),
            ClientMessage::Request { id, trace, request } => {
                if !session.start(context, id, trace, request).await {
                    session.shared.metrics.reject("streams");
                    return "too many streams";
                }
            }
        }
    }
}

/// Waits until the server drains.
async fn drained(draining: &mut watch::Receiver<bool>) {
    let _ = draining.wait_for(|draining| *draining).await;
}

/// Lets what is in flight end, streams aside.
async fn finish<E: Runtime>(context: &E, session: &Session<E>) {
    session.tasks.lock().retain(|_, work| work.credit.is_none());
    let all = u32::try_from(limits::REQUESTS_IN_FLIGHT_MAX).unwrap_or(u32::MAX);
    let _ = session.in_flight.acquire_many(all).await;
    flush(context, &session.outgoing).await;
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The span of the work for a request, in the trace that the client named. A stream has none: it
/// lasts as long as its connection.
fn span(request: &Request, trace: Option<TraceContext>) -> Span {
    if matches!(request, Request::Follow { .. } | Request::Watch { .. }) {
        return Span::none();
    }
    let span = tracing::info_span!(
        "serve.request",
        otel.kind = "server",
        request = request.as_str(),
        result = Empty
    );
    if let Some(trace) = trace {
        trace.adopt(&span);
    }
    span
}

impl<E: Runtime> Session<E> {
    fn add_credit(&self, id: u64, bytes: u32) {
        let tasks = self.tasks.lock();
        if let Some(credit) = tasks.get(&id).and_then(|work| work.credit.as_ref()) {
            credit.balance.grant(bytes, limits::STREAM_CREDIT_MAX);
            credit.more.notify_one();
        }
    }

    /// Begins to work on a request; false if the client has too many streams.
    async fn start(
        self: &Arc<Self>,
        context: &E,
        id: u64,
        trace: Option<TraceContext>,
        request: Request,
    ) -> bool {
        let span = span(&request, trace);
        self.throttle(context).await;
        let need = match request {
            Request::Follow { credit, .. } => {
                Need::Stream(credit.min(limits::STREAM_CREDIT_MAX as u32))
            }
            Request::Watch { .. } => Need::Stream(0),
            Request::Checkpoint | Request::CheckpointAt { .. } => Need::Answer(SMALL_BYTES),
            Request::Fetch(_) => Need::Answer(RESPONSE_BYTES_MAX + SMALL_BYTES),
        };
        // What needs one answer waits here for its turn: of a client that floods, or does not
        // read, no more is read.
        let (credit, turn) = match need {
            Need::Stream(bytes) => (Some(Arc::new(Credit::new(bytes))), None),
            Need::Answer(bytes) => {
                (None, self.in_flight.clone().acquire_owned().await.ok().zip(Some(bytes)))
            }
        };
        if !self.register(id, credit.clone()) {
            return false;
        }
        let session = self.clone();
        let work = move |context: E| async move {
            match (credit, turn) {
                (Some(credit), _) => session.stream(&context, id, request, credit).await,
                (None, Some((_permit, bytes))) => {
                    let room = session.room(&context, bytes).await;
                    session.answer(&context, id, request, room).await;
                }
                (None, None) => {}
            }
            // Removing the work aborts its task, which is this one and has nothing left to do.
            session.tasks.lock().remove(&id);
        };
        let task = context.child("request").spawn(move |context| work(context).instrument(span));
        if let Some(work) = self.tasks.lock().get_mut(&id) {
            work.task = Some(task);
        }
        true
    }

    /// Notes a request as being worked on; false if it is one stream too many.
    fn register(&self, id: u64, credit: Option<Arc<Credit>>) -> bool {
        let mut tasks = self.tasks.lock();
        let streams = tasks.values().filter(|work| work.credit.is_some()).count();
        if credit.is_some() && streams >= limits::STREAMS_MAX {
            return false;
        }
        tasks.insert(id, Work { task: None, credit });
        true
    }

    /// Waits for the quota of the client's key.
    async fn throttle(&self, context: &E) {
        let mut waited = false;
        loop {
            let delay = self.shared.quotas.request_delay(&self.key);
            if delay.is_zero() {
                break;
            }
            waited = true;
            context.sleep(delay).await;
        }
        if waited {
            self.shared.metrics.throttled.inc();
        }
    }

    /// Answers a request for one thing.
    async fn answer(&self, context: &E, id: u64, request: Request, room: Room) {
        let (name, started) = (request.as_str(), context.monotonic());
        let result = match request {
            Request::Fetch(fetch) => self.fetch(fetch).await,
            Request::CheckpointAt { sequence } => {
                let commit = self.shared.ledger.log().read(sequence).await;
                commit
                    .map(|commit| Response::Checkpoint(Box::new(commit.checkpoint)))
                    .map_err(|error| self.refuse_read(error))
            }
            _ => Ok(Response::Checkpoint(Box::new(self.shared.ledger.head()))),
        };
        self.count(context, name, started, result.as_ref().err());
        let response = result.unwrap_or_else(Response::Refused);
        self.send(id, response, room).await;
    }

    pub(super) fn count(
        &self,
        context: &E,
        request: &'static str,
        started: Duration,
        refused: Option<&Refused>,
    ) {
        let metrics = &self.shared.metrics;
        let result = refused.map_or("ok", |refused| refused.code.as_str());
        Span::current().record("result", result);
        metrics.requests.get_or_create(&ResultLabel { request, result }).inc();
        let elapsed = context.monotonic().saturating_sub(started);
        let durations = metrics.request_duration.get_or_create(&RequestLabel { request });
        durations.observe(elapsed.as_secs_f64());
    }

    /// Waits for room for an answer of at most `bytes`: first for the quota of the client's key,
    /// which may take long, then for memory. Whoever waits for the quota holds no memory that
    /// others need.
    pub(super) async fn room(&self, context: &E, bytes: usize) -> Room {
        let mut is_waiting = false;
        while let Err(delay) = self.shared.quotas.take_bytes(&self.key, bytes, context.monotonic())
        {
            if !std::mem::replace(&mut is_waiting, true) {
                self.shared.metrics.throttled.inc();
            }
            context.sleep(delay).await;
        }
        let (shared, key) = (self.shared.clone(), self.key.clone());
        let give_back = Box::new(move |bytes| shared.quotas.refund(&key, bytes));
        let deposit = Deposit { give_back, bytes };
        Room { reservation: self.reader.reserve(bytes).await, deposit }
    }

    /// Queues a message in the room that was made for it; false if the client is gone.
    pub(super) async fn send(&self, id: u64, response: Response, room: Room) -> bool {
        let frame = ServerMessage::Response { id, response }.encode();
        room.deposit.spend(frame.len());
        self.shared.metrics.sent_bytes.inc_by(frame.len() as u64);
        self.outgoing.send(room.reservation.queue(frame)).await.is_ok()
    }

    /// Sends what has a small bounded size.
    pub(super) async fn send_small(&self, context: &E, id: u64, response: Response) -> bool {
        let room = self.room(context, SMALL_BYTES).await;
        self.send(id, response, room).await
    }

    /// Tells every stream that the client is not wanted any more.
    async fn dismiss(&self, context: &E) {
        let streams: Vec<u64> = {
            let mut tasks = self.tasks.lock();
            let streams = tasks.iter().filter(|(_, work)| work.credit.is_some());
            let ids = streams.map(|(id, _)| *id).collect();
            tasks.clear();
            ids
        };
        let telling = async {
            for id in streams {
                let refused = Refused::new(Code::Unauthorized, "the key is no longer authorised");
                self.send_small(context, id, Response::Refused(refused)).await;
            }
            flush(context, &self.outgoing).await;
        };
        tokio::select! {
            biased;
            () = telling => {}
            () = context.sleep(limits::RETRY_AFTER) => {}
        }
    }

    async fn fetch(&self, fetch: Fetch) -> Result<Response, Refused> {
        let fetch = match fetch {
            Fetch::Operations { size, start, max } => {
                let max = max.min(NonZeroU64::new(RESPONSE_OPERATIONS_MAX).unwrap_or(max));
                Fetch::Operations { size, start, max }
            }
            Fetch::Boundary { .. } => fetch,
        };
        let _turn = self.shared.serving.acquire().await;
        match self.shared.ledger.serve(fetch, RESPONSE_BYTES_MAX).await {
            Ok(served) if served.body.len() > FRAME_BYTES_MAX as usize - 64 => {
                Err(Refused::new(Code::TooLarge, "one operation is larger than a frame"))
            }
            Ok(served) => Ok(Response::Operations(served.body)),
            Err(DatabaseError::Pruned) => {
                Err(Refused::new(Code::Pruned, "these operations are no longer held"))
            }
            Err(DatabaseError::OutOfRange(text)) => Err(Refused::new(Code::Ahead, text)),
            Err(error) => {
                self.shared.metrics.storage_errors.count("read");
                tracing::error!(%error, "cannot serve operations");
                Err(Refused::later(Code::Internal, "the store failed", limits::RETRY_AFTER))
            }
        }
    }
}

/// Most bytes of an answer without operations or commits, and what comes on top of operations.
pub(super) const SMALL_BYTES: usize = 2048;
