//! A client that keeps to no rules, and a thousand that do.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use super::Daemon;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::{
    Signer as _,
    ed25519::{PrivateKey, PublicKey},
};
use commonware_runtime::{Runner as _, tokio::Context};
use commonware_stream::Upgrader as _;
use std::{net::SocketAddr, path::Path, time::Duration};
use syncd::{
    database::types::Mode,
    link::{Frames, spawn_frames, upgrader},
    wire::{FRAME_BYTES_MAX, Hello, NAMESPACE, Reply},
};

/// Runs `work` on the production runtime, with storage in `directory` that nobody else uses.
pub fn on_runtime<T: Send + 'static, F>(
    directory: &Path,
    work: impl FnOnce(Context) -> F + Send,
) -> T
where
    F: Future<Output = T>,
{
    let config = commonware_runtime::tokio::Config::default().with_storage_directory(directory);
    commonware_runtime::tokio::Runner::new(config).start(work)
}

/// What a peer needs to know of a server.
#[derive(Clone)]
pub struct Door {
    pub address: SocketAddr,
    pub server: PublicKey,
    pub hello: Hello,
}

impl Door {
    pub fn of(server: &Daemon) -> Self {
        let public = |name: &str| server.storage.join("public").join(name).display().to_string();
        let database = syncd::keys::parse_database(&public("database.id")).unwrap();
        Self {
            address: server.sync.parse().unwrap(),
            server: syncd::keys::parse_public(&public("identity.pub")).unwrap(),
            hello: Hello::new(syncd::database::types::Family::Any, Mode::Full, Some(database)),
        }
    }

    /// The handshake with the key of `seed`, without a greeting.
    pub async fn enter<E: syncd::runtime::Runtime>(
        &self,
        context: &E,
        seed: u64,
    ) -> Option<Frames> {
        let (sink, stream) = context.dial(self.address).await.ok()?;
        let (key, skew) = (PrivateKey::from_seed(seed), Duration::from_secs(60));
        let dialling = upgrader(key, skew).dial(
            context.child("handshake"),
            NAMESPACE,
            FRAME_BYTES_MAX,
            self.server.clone(),
            stream,
            sink,
        );
        let (sender, receiver) = dialling.await.ok()?;
        Some(spawn_frames(context, sender, receiver))
    }

    /// The handshake and the greeting; what the server answers.
    pub async fn greet<E: syncd::runtime::Runtime>(
        &self,
        context: &E,
        seed: u64,
    ) -> Option<(Frames, Reply)> {
        let mut frames = self.enter(context, seed).await?;
        frames.outgoing.send(self.hello.encode().into()).await.ok()?;
        let reply = Reply::decode(frames.incoming.recv().await?).ok()?;
        Some((frames, reply))
    }
}
