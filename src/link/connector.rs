//! Reaching a server: resolve, dial, prove, greet; and saying in words why that failed.

use super::{HANDSHAKE_TIMEOUT, HandshakeError, Link, LinkError, frames, upgrader};
use crate::{
    runtime::Runtime,
    wire::{FRAME_BYTES_MAX, Hello, NAMESPACE, Reply, Versions, Welcome},
};
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::{
    ed25519::{PrivateKey, PublicKey},
    handshake::sake::Error as SakeError,
};
use commonware_stream::{Upgrader as _, sake, utils::TimeoutError};
use futures::{StreamExt as _, stream::FuturesUnordered};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

/// Most addresses of a name that are tried.
pub const ADDRESSES_MAX: usize = 8;
/// How long an address is tried alone before the next one is tried beside it.
pub const HEAD_START: Duration = Duration::from_millis(250);

/// How to reach a server and what to prove to it.
#[derive(Clone)]
pub struct Connector {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The server's transport key.
    pub server: PublicKey,
    /// Our transport key.
    pub identity: PrivateKey,
    /// Clock difference tolerated.
    pub skew: Duration,
}

/// Splits `HOST:PORT`, `[V6]:PORT`; `None` if it is neither.
pub fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    if host.is_empty() || host.contains(char::is_whitespace) || port == 0 {
        return None;
    }
    Some((host.to_string(), port))
}

/// A connection whose handshake is done.
pub struct Connected<E: Runtime> {
    /// The connection.
    pub link: Arc<Link<E>>,
    /// What the server said of itself.
    pub welcome: Welcome,
    /// Address that was reached.
    pub address: SocketAddr,
}

impl Connector {
    /// Resolves, dials, proves and greets. `received` counts every byte that comes.
    ///
    /// Behind a name there may be several addresses, and behind one of them something that is not the server: silent,
    /// closing, or of another protocol. So each is tried up to the greeting, the next one when the one before has
    /// failed or had its [`HEAD_START`] (RFC 8305). The first server that greets wins; the other attempts are dropped.
    pub async fn connect<E: Runtime>(
        &self,
        context: E,
        hello: &Hello,
        received: Arc<AtomicU64>,
    ) -> Result<Connected<E>, LinkError> {
        let mut waiting = self.resolve(&context).await?.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            if let Some(address) = waiting.next() {
                let attempt =
                    self.connect_to(context.child("link"), address, hello, received.clone());
                attempts.push(async move { (address, attempt.await) });
            }
            tokio::select! {
                biased;
                Some((address, result)) = attempts.next() => match result {
                    Ok((link, welcome)) => return Ok(Connected { link, welcome, address }),
                    Err(error) => failures.push((address, error)),
                },
                () = context.sleep(HEAD_START), if waiting.len() > 0 => {}
                else => return Err(LinkError::of_addresses(&self.host, failures)),
            }
        }
    }

    async fn resolve<E: Runtime>(&self, context: &E) -> Result<Vec<SocketAddr>, LinkError> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let addresses = context.resolve(&self.host).await.map_err(|error| LinkError::Resolve {
            host: self.host.clone(),
            message: error.to_string(),
        })?;
        let addresses = in_turn(addresses);
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, self.port)).collect())
    }

    async fn connect_to<E: Runtime>(
        &self,
        context: E,
        address: SocketAddr,
        hello: &Hello,
        received: Arc<AtomicU64>,
    ) -> Result<(Arc<Link<E>>, Welcome), LinkError> {
        let (sink, stream) =
            context.dial(address).await.map_err(|_| LinkError::Connect(address))?;
        let (sender, receiver) = upgrader(self.identity.clone(), self.skew)
            .dial(
                context.child("handshake"),
                NAMESPACE,
                FRAME_BYTES_MAX,
                self.server.clone(),
                stream,
                sink,
            )
            .await
            .map_err(|error| self.name_handshake_error(error))?;
        let (outgoing, mut incoming, guard) = frames::spawn(&context, sender, receiver).split();
        outgoing.send(hello.encode().into()).await.map_err(|_| LinkError::Closed)?;
        let reply = tokio::select! {
            biased;
            frame = incoming.recv() => frame.ok_or_else(|| LinkError::Handshake(
                "the server closed the connection without a word: it may not authorise this \
                 client's key, or have another key than --server-key says".into()))?,
            () = context.sleep(HANDSHAKE_TIMEOUT) => return Err(LinkError::Timeout(HANDSHAKE_TIMEOUT)),
        };
        match Reply::decode(reply).map_err(|_| LinkError::Protocol("undecodable reply"))? {
            Reply::Welcome(welcome) => {
                let chosen = Versions { oldest: welcome.version, newest: welcome.version };
                if hello.versions.common(chosen).is_none() {
                    return Err(LinkError::Protocol(
                        "the server chose a version that was not offered",
                    ));
                }
                let link = Link::start(context, outgoing, incoming, guard, received);
                Ok((link, *welcome))
            }
            Reply::Refused(refused) => Err(LinkError::Refused(refused)),
        }
    }

    /// Says in words what a failed handshake most likely means.
    fn name_handshake_error(&self, error: HandshakeError) -> LinkError {
        match error {
            TimeoutError::Timeout => LinkError::Timeout(HANDSHAKE_TIMEOUT),
            TimeoutError::Upgrade(sake::Error::HandshakeError(SakeError::InvalidTimestamp(
                theirs,
                window,
            ))) => {
                let ours = window.start + (window.end - window.start) / 2;
                let skew = Duration::from_millis(theirs.abs_diff(ours));
                LinkError::ClockSkew { skew, allowed: self.skew }
            }
            error => LinkError::Handshake(format!(
                "{error}; the server may have another key than --server-key says, or not authorise this client's key"
            )),
        }
    }
}

/// At most [`ADDRESSES_MAX`] different addresses, those of IPv4 and IPv6 in turn, beginning with the family that the
/// resolver prefers.
fn in_turn(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let Some(first) = addresses.first().copied() else { return addresses };
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair = [preferred.next(), other.next()];
        if pair == [None, None] {
            ordered.truncate(ADDRESSES_MAX);
            return ordered;
        }
        for address in pair.into_iter().flatten() {
            if !ordered.contains(&address) {
                ordered.push(address);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        database::types::{Family, Mode},
        wire::{Code, Refused},
    };
    use commonware_cryptography::Signer as _;
    use commonware_runtime::{
        Clock as _, Listener as _, Network as _, Runner as _, Spawner as _, Supervisor as _,
        deterministic,
    };

    const PORT: u16 = 4000;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn connector() -> Connector {
        Connector {
            host: "db.test".into(),
            port: PORT,
            server: PrivateKey::from_seed(1).public_key(),
            identity: PrivateKey::from_seed(2),
            skew: Duration::from_secs(10),
        }
    }

    fn hello() -> Hello {
        Hello::new(Family::Any, Mode::Full, None)
    }

    /// Accepts for ever, and keeps what it accepts.
    async fn spawn_silent(context: &deterministic::Context, address: SocketAddr) {
        let mut listener = context.bind(address).await.unwrap();
        context.child("silent").spawn(move |_| async move {
            let mut held = Vec::new();
            while let Ok(connection) = listener.accept().await {
                held.push(connection);
            }
        });
    }

    /// The server: proves its key and refuses.
    async fn spawn_refusing(context: &deterministic::Context, address: SocketAddr) {
        let mut listener = context.bind(address).await.unwrap();
        context.child("server").spawn(move |context| async move {
            let (_, sink, stream) = listener.accept().await.unwrap();
            let (_, sender, receiver) = upgrader(PrivateKey::from_seed(1), Duration::from_secs(10))
                .listen(
                    context.child("handshake"),
                    NAMESPACE,
                    FRAME_BYTES_MAX,
                    |_| async { true },
                    stream,
                    sink,
                )
                .await
                .unwrap();
            let (outgoing, mut incoming, _guard) =
                frames::spawn(&context, sender, receiver).split();
            incoming.recv().await.unwrap();
            let refused = Refused::later(Code::Busy, "full", Duration::from_secs(1));
            outgoing.send(Reply::Refused(refused).encode().into()).await.unwrap();
            incoming.recv().await;
        });
    }

    #[test]
    fn addresses_alternate_between_families_and_are_bounded() {
        let given = ips(&["::1", "::2", "::1", "10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let expected = ips(&["::1", "10.0.0.1", "::2", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(in_turn(given), expected);
        let many = (1..=20).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        assert_eq!(in_turn(many).len(), ADDRESSES_MAX);
        assert_eq!(in_turn(Vec::new()), Vec::<IpAddr>::new());
    }

    /// Silence, a closed port and a server that refuses: the refusal comes first in what is done about it, and each
    /// address is named. All within the time of one handshake, not of three.
    #[test]
    fn each_address_is_tried_and_named_and_the_server_counts_most() {
        deterministic::Runner::seeded(1).start(|context| async move {
            let addresses = ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
            context.resolver_register("db.test", Some(addresses.clone()));
            spawn_silent(&context, SocketAddr::new(addresses[0], PORT)).await;
            spawn_refusing(&context, SocketAddr::new(addresses[2], PORT)).await;
            let began = context.current();
            let result =
                connector().connect(context.child("connect"), &hello(), Arc::default()).await;
            let took = context.current().duration_since(began).unwrap();
            let Err(error) = result else { panic!("nobody welcomed it") };
            assert!(
                matches!(error.telling(), LinkError::Refused(refused) if refused.code == Code::Busy)
            );
            assert_eq!(error.reason(), "busy");
            let text = error.to_string();
            for address in &addresses {
                assert!(text.contains(&format!("{address}:{PORT}: ")), "{text}");
            }
            assert!(took < HANDSHAKE_TIMEOUT + Duration::from_secs(1), "{took:?}");
        });
    }

    #[test]
    fn one_address_gives_its_own_error() {
        deterministic::Runner::seeded(1).start(|context| async move {
            context.resolver_register("db.test", Some(ips(&["10.0.0.1"])));
            let result =
                connector().connect(context.child("connect"), &hello(), Arc::default()).await;
            let Err(error) = result else { panic!("nobody is there") };
            assert!(matches!(error, LinkError::Connect(_)), "{error}");
        });
    }

    #[test]
    fn servers_are_split() {
        for (text, expected) in [
            ("127.0.0.1:8080", Some(("127.0.0.1", 8080))),
            ("name.example:1", Some(("name.example", 1))),
            ("[::1]:8080", Some(("::1", 8080))),
            ("::1:8080", None),
            ("name", None),
            ("name:0", None),
            (":80", None),
            ("name:99999", None),
        ] {
            let found = host_and_port(text);
            let found = found.as_ref().map(|(host, port)| (host.as_str(), *port));
            assert_eq!(found, expected, "{text}");
        }
    }
}
