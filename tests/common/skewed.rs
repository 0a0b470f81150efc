//! A context whose wall clock a test can set, for tests in the seeded runtime: everything else, the time that really
//! passes too, is the runtime's.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use commonware_runtime::{
    BlobVersion, Clock, Error, Handle, Metrics, Name, Network, Resolver, SinkOf, Spawner, Storage,
    StreamOf, Supervisor, signal,
    telemetry::metrics::{Metric, Registered},
};
use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};
use syncd::runtime::{Monotonic, Runtime};

/// How far a wall clock is ahead of the truth, in milliseconds; shared by all that read it.
#[derive(Clone, Default)]
pub struct Shift(Arc<AtomicI64>);

impl Shift {
    pub fn set(&self, seconds: i64) {
        self.0.store(seconds * 1000, Ordering::Relaxed);
    }
}

pub struct Skewed<E> {
    pub inner: E,
    pub shift: Shift,
}

impl<E> Skewed<E> {
    fn around(&self, inner: E) -> Self {
        Self { inner, shift: self.shift.clone() }
    }
}

impl<E: Runtime> governor::clock::Clock for Skewed<E> {
    type Instant = SystemTime;

    fn now(&self) -> SystemTime {
        self.current()
    }
}

impl<E: Runtime> governor::clock::ReasonablyRealtime for Skewed<E> {}

impl<E: Runtime> Clock for Skewed<E> {
    fn current(&self) -> SystemTime {
        let shift = self.shift.0.load(Ordering::Relaxed);
        let by = Duration::from_millis(shift.unsigned_abs());
        if shift < 0 { self.inner.current() - by } else { self.inner.current() + by }
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static + use<E> {
        self.inner.sleep(duration)
    }

    fn sleep_until(
        &self,
        deadline: SystemTime,
    ) -> impl Future<Output = ()> + Send + 'static + use<E> {
        self.inner.sleep(deadline.duration_since(self.current()).unwrap_or_default())
    }
}

impl<E: Runtime> Monotonic for Skewed<E> {
    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }
}

impl<E: Runtime> Runtime for Skewed<E> {}

impl<E: Runtime> Supervisor for Skewed<E> {
    fn name(&self) -> Name {
        self.inner.name()
    }

    fn child(&self, label: &'static str) -> Self {
        self.around(self.inner.child(label))
    }

    fn with_attribute(self, key: &'static str, value: impl std::fmt::Display) -> Self {
        Self { inner: self.inner.with_attribute(key, value), shift: self.shift }
    }
}

impl<E: Runtime> Spawner for Skewed<E> {
    fn shared(self, blocking: bool) -> Self {
        Self { inner: self.inner.shared(blocking), shift: self.shift }
    }

    fn dedicated(self) -> Self {
        Self { inner: self.inner.dedicated(), shift: self.shift }
    }

    fn spawn<F, Fut, T>(self, f: F) -> Handle<T>
    where
        F: FnOnce(Self) -> Fut + Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let shift = self.shift;
        self.inner.spawn(move |inner| f(Self { inner, shift }))
    }

    async fn stop(self, value: i32, timeout: Option<Duration>) -> Result<(), Error> {
        self.inner.stop(value, timeout).await
    }

    fn stopped(&self) -> signal::Signal {
        self.inner.stopped()
    }
}

impl<E: Runtime> Metrics for Skewed<E> {
    fn register<N: Into<String>, H: Into<String>, M: Metric>(
        &self,
        name: N,
        help: H,
        metric: M,
    ) -> Registered<M> {
        self.inner.register(name, help, metric)
    }

    fn encode(&self) -> String {
        self.inner.encode()
    }
}

impl<E: Runtime> Network for Skewed<E> {
    type Listener = E::Listener;

    async fn bind(&self, socket: SocketAddr) -> Result<E::Listener, Error> {
        self.inner.bind(socket).await
    }

    async fn dial(&self, socket: SocketAddr) -> Result<(SinkOf<Self>, StreamOf<Self>), Error> {
        self.inner.dial(socket).await
    }
}

impl<E: Runtime> Resolver for Skewed<E> {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, Error> {
        self.inner.resolve(host).await
    }
}

impl<E: Runtime> Storage for Skewed<E> {
    type Blob = E::Blob;

    async fn open_versioned(
        &self,
        partition: &str,
        name: &[u8],
        versions: RangeInclusive<BlobVersion>,
    ) -> Result<(E::Blob, u64, BlobVersion), Error> {
        self.inner.open_versioned(partition, name, versions).await
    }

    async fn remove(&self, partition: &str, name: Option<&[u8]>) -> Result<(), Error> {
        self.inner.remove(partition, name).await
    }

    async fn scan(&self, partition: &str) -> Result<Vec<Vec<u8>>, Error> {
        self.inner.scan(partition).await
    }
}

impl<E: Runtime> rand_core::TryRng for Skewed<E> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.inner.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.inner.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.inner.try_fill_bytes(bytes)
    }
}

impl<E: Runtime> rand_core::TryCryptoRng for Skewed<E> {}
