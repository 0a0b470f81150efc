//! A machine in the middle that holds a server's transport key: it sees
//! and changes every message between a client and an honest server. Runs on any runtime.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use super::Daemon;
use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::ed25519::PrivateKey;
use commonware_runtime::{Clock, Listener as _, Network as _, Sink as _, Supervisor as _};
use commonware_stream::Upgrader as _;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use syncd::watch;
use syncd::{
    link::{Frames, spawn_frames, upgrader},
    runtime::Runtime,
    wire::{ClientMessage, Hello, NAMESPACE, Reply, Request, ServerMessage},
};

/// Longer frames than an honest peer sends, so that the relay can send them.
const FRAME_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// What came from the honest server.
pub enum FromServer {
    Reply(Reply),
    Message(ServerMessage),
}

/// What came from the client, after its greeting.
pub type FromClient = ClientMessage;

/// Makes frames for the client of what the server said.
pub type Tamper = Arc<dyn Fn(FromServer) -> Vec<Bytes> + Send + Sync>;
/// Answers a request in the server's place; `None` hands it on.
pub type Answer = Arc<dyn Fn(u64, &Request) -> Option<Vec<Bytes>> + Send + Sync>;

/// What the relay does with connections.
#[derive(Clone)]
pub enum Act {
    /// Hands everything on.
    Honest,
    /// Changes what the server says.
    Tamper(Tamper),
    /// Answers in the server's place.
    Answer(Answer),
    /// Holds requests to follow back while told to; everything else is handed on.
    HoldFollow(Hold),
    /// Accepts and says nothing.
    Mute,
    /// Proves its key and says nothing.
    MuteAfterHandshake,
    /// Hands everything on, with a clock that goes ahead.
    Ahead(Duration),
    /// Answers with bytes that mean nothing, before any handshake.
    Noise,
}

/// Requests that a relay holds back.
#[derive(Clone, Default)]
pub struct Hold {
    /// Requests that were held back so far.
    pub held: Arc<AtomicU64>,
    /// Set to hand them on.
    pub released: Arc<watch::Sender<bool>>,
}

/// How a test steers a relay.
#[derive(Clone)]
pub struct Relay {
    act: Arc<watch::Sender<(Act, SocketAddr)>>,
    connections: Arc<AtomicU64>,
}

/// The message as it was.
pub fn honest(message: FromServer) -> Vec<Bytes> {
    vec![match message {
        FromServer::Reply(reply) => reply.encode(),
        FromServer::Message(message) => message.encode(),
    }]
}

impl Relay {
    /// A relay before `server` that runs in a thread of its own until the process ends; its
    /// address.
    pub fn before(server: &Daemon, directory: &std::path::Path) -> (Self, String) {
        let identity = syncd::keys::load_private(&server.storage.join("identity.key")).unwrap();
        let upstream = server.sync.parse().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let storage = directory.join("relay");
        std::thread::spawn(move || {
            super::peer::on_runtime(&storage, |context| async move {
                let listener = context.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
                let address = listener.local_addr().unwrap().to_string();
                let relay = Self::spawn(context.child("relay"), listener, upstream, identity);
                tell.send((relay, address)).unwrap();
                std::future::pending::<()>().await;
            });
        });
        told.recv().unwrap()
    }

    /// Relays what comes to `listener` to `server`, as the holder of `identity`.
    pub fn spawn<E: Runtime>(
        context: E,
        listener: <E as commonware_runtime::Network>::Listener,
        server: SocketAddr,
        identity: PrivateKey,
    ) -> Self {
        let act = Arc::new(watch::Sender::new((Act::Honest, server)));
        let relay = Self { act, connections: Arc::default() };
        let worker = relay.clone();
        context.child("relay").spawn(move |context| worker.accept(context, listener, identity));
        relay
    }

    /// Cuts every connection and treats later ones as `act` says.
    pub fn act(&self, act: Act) {
        self.act.send_modify(|(now, _)| *now = act);
    }

    pub fn tamper(&self, tamper: impl Fn(FromServer) -> Vec<Bytes> + Send + Sync + 'static) {
        self.act(Act::Tamper(Arc::new(tamper)));
    }

    /// Relays to another server from now on.
    pub fn switch(&self, server: SocketAddr) {
        self.act.send_modify(|(_, now)| *now = server);
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    async fn accept<E: Runtime>(
        self,
        context: E,
        mut listener: <E as commonware_runtime::Network>::Listener,
        identity: PrivateKey,
    ) {
        while let Ok((_, sink, stream)) = listener.accept().await {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let mut act = self.act.subscribe();
            let (now, server) = act.borrow_and_update().clone();
            let identity = identity.clone();
            context.child("connection").spawn(move |context| async move {
                tokio::select! {
                    biased;
                    () = treat::<E>(context, now, server, identity, sink, stream) => {}
                    _ = act.changed() => {}
                }
            });
        }
    }
}

async fn treat<E: Runtime>(
    context: E,
    act: Act,
    server: SocketAddr,
    identity: PrivateKey,
    mut sink: commonware_runtime::SinkOf<E>,
    stream: commonware_runtime::StreamOf<E>,
) {
    match act {
        Act::Mute => {
            let _open = (sink, stream);
            std::future::pending::<()>().await;
            return;
        }
        Act::Noise => {
            let noise: Vec<u8> = (0..4096u32).map(|n| (n * 31 % 251) as u8).collect();
            let _ = sink.send(Bytes::from(noise)).await;
            context.sleep(Duration::from_millis(100)).await;
            return;
        }
        _ => {}
    }
    let day = Duration::from_secs(24 * 60 * 60);
    let ahead = match act {
        Act::Ahead(by) => by,
        _ => Duration::ZERO,
    };
    let listening = upgrader(identity.clone(), day).listen(
        Skewed { context: context.child("listen"), ahead },
        NAMESPACE,
        FRAME_BYTES_MAX,
        |_| async { true },
        stream,
        sink,
    );
    let Ok((_, sender, receiver)) = listening.await else { return };
    let client = spawn_frames(&context, sender, receiver);
    if matches!(act, Act::MuteAfterHandshake) {
        let _open = client;
        std::future::pending::<()>().await;
        return;
    }
    let Ok((sink, stream)) = context.dial(server).await else { return };
    // Any key will do: it is the client's greeting that is handed on.
    let own = <PrivateKey as commonware_cryptography::Signer>::from_seed(99);
    let public = <PrivateKey as commonware_cryptography::Signer>::public_key(&identity);
    let dialling = upgrader(own, day).dial(
        context.child("dial"),
        NAMESPACE,
        FRAME_BYTES_MAX,
        public,
        stream,
        sink,
    );
    let Ok((sender, receiver)) = dialling.await else { return };
    let upstream = spawn_frames(&context, sender, receiver);
    pump(act, client, upstream).await;
}

/// A clock that goes ahead.
struct Skewed<E> {
    context: E,
    ahead: Duration,
}

impl<E: Runtime> governor::clock::Clock for Skewed<E> {
    type Instant = SystemTime;

    fn now(&self) -> SystemTime {
        self.context.current() + self.ahead
    }
}

impl<E: Runtime> governor::clock::ReasonablyRealtime for Skewed<E> {}

impl<E: Runtime> Clock for Skewed<E> {
    fn current(&self) -> SystemTime {
        self.context.current() + self.ahead
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static + use<E> {
        self.context.sleep(duration)
    }

    fn sleep_until(
        &self,
        deadline: SystemTime,
    ) -> impl Future<Output = ()> + Send + 'static + use<E> {
        self.context.sleep_until(deadline - self.ahead)
    }
}

impl<E: Runtime> rand_core::TryRng for Skewed<E> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.context.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.context.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.context.try_fill_bytes(bytes)
    }
}

impl<E: Runtime> rand_core::TryCryptoRng for Skewed<E> {}

async fn told(released: &mut watch::Receiver<bool>) {
    let _ = released.wait_for(|released| *released).await;
}

async fn pump(act: Act, client: Frames, upstream: Frames) {
    let (to_client, mut from_client, _client) = client.split();
    let (to_server, mut from_server, _server) = upstream.split();
    let Some(hello) = from_client.recv().await else { return };
    let hidden = match (&act, Hello::decode(hello.clone())) {
        // A liar does not show an honest server what would make it stop.
        (Act::Tamper(_) | Act::Answer(_), Ok(hello)) => Hello { newest: None, ..hello }.encode(),
        _ => hello,
    };
    let _ = to_server.send(hidden.into()).await;
    let mut is_first = true;
    let hold = if let Act::HoldFollow(hold) = &act { hold.clone() } else { Hold::default() };
    let (mut released, mut held) = (hold.released.subscribe(), Vec::new());
    loop {
        tokio::select! {
            biased;
            () = told(&mut released), if !held.is_empty() => {
                for frame in std::mem::take(&mut held) {
                    let _ = to_server.send(frame).await;
                }
            }
            frame = from_client.recv() => {
                let Some(frame) = frame else { return };
                if let (Act::HoldFollow(_), Ok(ClientMessage::Request { request, .. })) =
                    (&act, ClientMessage::decode(frame.clone()))
                    && matches!(request, Request::Follow { .. })
                {
                    held.push(frame.into());
                    hold.held.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                if let (Act::Answer(answer), Ok(ClientMessage::Request { id, request, .. })) =
                    (&act, ClientMessage::decode(frame.clone()))
                    && let Some(frames) = answer(id, &request)
                {
                    for frame in frames {
                        let _ = to_client.send(frame.into()).await;
                    }
                    continue;
                }
                if to_server.send(frame.into()).await.is_err() {
                    return;
                }
            }
            frame = from_server.recv() => {
                let Some(frame) = frame else { return };
                let message = if std::mem::take(&mut is_first) {
                    FromServer::Reply(Reply::decode(frame.clone()).unwrap())
                } else {
                    FromServer::Message(ServerMessage::decode(frame.clone()).unwrap())
                };
                let frames = match &act {
                    Act::Tamper(tamper) => tamper(message),
                    _ => vec![frame],
                };
                for frame in frames {
                    if to_client.send(frame.into()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
