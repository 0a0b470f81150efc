//! Connections that delay, and that are cut in the middle of a frame.

use super::{Machine, Point, World};
use bytes::{Bytes, BytesMut};
use commonware_runtime::{
    Clock as _, Error, IoBufs, Listener as ListenerTrait, Network, Sink as SinkTrait,
    Stream as StreamTrait,
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::sync::{Notify, mpsc};

/// Bytes on their way before a sender waits.
const PIPE_BYTES_MAX: usize = 128 * 1024;
/// Longest time that bytes take, usually.
const DELAY: Duration = Duration::from_millis(3);
/// Longest time that they sometimes take.
const DELAY_SLOW: Duration = Duration::from_millis(300);

type Incoming = (SocketAddr, Sink, Stream);

#[derive(Default)]
struct State {
    listeners: BTreeMap<SocketAddr, (u64, mpsc::UnboundedSender<Incoming>)>,
    pipes: Vec<std::sync::Weak<Pipe>>,
    next: u64,
    is_down: bool,
}

/// The network between the machines.
#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<State>>);

impl Net {
    /// Cuts every connection, somewhere in what is on its way.
    pub fn cut(&self, world: &World) {
        let pipes: Vec<_> = {
            let mut state = self.0.lock().unwrap();
            state.pipes.retain(|pipe| pipe.strong_count() > 0);
            state.pipes.iter().filter_map(std::sync::Weak::upgrade).collect()
        };
        for pipe in pipes {
            let mut flow = pipe.flow.lock().unwrap();
            if let Some((_, bytes)) = flow.queue.back_mut() {
                let keep = usize::try_from(world.draw(0, bytes.len() as u64 + 1)).unwrap();
                bytes.truncate(keep);
            }
            flow.is_closed = true;
            drop(flow);
            pipe.readable.notify_waiters();
            pipe.writable.notify_waiters();
        }
    }

    /// Whether nobody reaches anybody.
    pub fn set_down(&self, is_down: bool) {
        self.0.lock().unwrap().is_down = is_down;
    }

    fn pipe(&self) -> Arc<Pipe> {
        let pipe = Arc::new(Pipe::default());
        self.0.lock().unwrap().pipes.push(Arc::downgrade(&pipe));
        pipe
    }
}

#[derive(Default)]
struct Flow {
    queue: VecDeque<(SystemTime, Bytes)>,
    bytes: usize,
    /// No more will be sent.
    is_closed: bool,
    /// Nobody reads.
    is_deaf: bool,
}

#[derive(Default)]
struct Pipe {
    flow: Mutex<Flow>,
    /// There is more to read, or there will be nothing.
    readable: Notify,
    /// There is room, or nobody who reads.
    writable: Notify,
}

pub struct Sink {
    pipe: Arc<Pipe>,
    world: Arc<World>,
    life: Option<Arc<super::Life>>,
    last: SystemTime,
}

pub struct Stream {
    pipe: Arc<Pipe>,
    world: Arc<World>,
    buffer: BytesMut,
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.pipe.flow.lock().unwrap().is_closed = true;
        self.pipe.readable.notify_waiters();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.pipe.flow.lock().unwrap().is_deaf = true;
        self.pipe.writable.notify_waiters();
    }
}

impl SinkTrait for Sink {
    async fn send(&mut self, bufs: impl Into<IoBufs> + Send) -> Result<(), Error> {
        let bytes = Bytes::copy_from_slice(bufs.into().coalesce().as_ref());
        if let Some(life) = &self.life {
            life.reach(Point::Send, "").await;
        }
        loop {
            let changed = self.pipe.writable.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut flow = self.pipe.flow.lock().unwrap();
                if flow.is_closed || flow.is_deaf {
                    return Err(Error::SendFailed);
                }
                if flow.bytes < PIPE_BYTES_MAX {
                    let longest = if self.world.one_in(60) { DELAY_SLOW } else { DELAY };
                    let due = self.world.context.current() + self.world.draw_time(longest);
                    self.last = self.last.max(due);
                    flow.bytes += bytes.len();
                    flow.queue.push_back((self.last, bytes));
                    break;
                }
            }
            changed.await;
        }
        self.pipe.readable.notify_waiters();
        Ok(())
    }
}

impl StreamTrait for Stream {
    async fn recv(&mut self, len: usize) -> Result<IoBufs, Error> {
        loop {
            let changed = self.pipe.readable.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = self.world.context.current();
            let (next, is_closed) = {
                let mut flow = self.pipe.flow.lock().unwrap();
                while flow.queue.front().is_some_and(|(due, _)| *due <= now) {
                    let (_, bytes) = flow.queue.pop_front().unwrap();
                    flow.bytes = flow.bytes.saturating_sub(bytes.len());
                    self.buffer.extend_from_slice(&bytes);
                }
                (flow.queue.front().map(|(due, _)| *due), flow.is_closed)
            };
            self.pipe.writable.notify_waiters();
            if self.buffer.len() >= len {
                return Ok(IoBufs::from(self.buffer.split_to(len).freeze()));
            }
            match next {
                Some(due) => self.world.context.sleep_until(due).await,
                None if is_closed => return Err(Error::RecvFailed),
                None => changed.await,
            }
        }
    }

    fn peek(&self, max_len: usize) -> &[u8] {
        &self.buffer[..self.buffer.len().min(max_len)]
    }
}

pub struct Listener {
    net: Net,
    address: SocketAddr,
    number: u64,
    incoming: mpsc::UnboundedReceiver<Incoming>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.net.0.lock().unwrap();
        if state.listeners.get(&self.address).is_some_and(|(number, _)| *number == self.number) {
            state.listeners.remove(&self.address);
        }
    }
}

impl ListenerTrait for Listener {
    type Sink = Sink;
    type Stream = Stream;

    async fn accept(&mut self) -> Result<(SocketAddr, Sink, Stream), Error> {
        self.incoming.recv().await.ok_or(Error::Closed)
    }

    fn local_addr(&self) -> Result<SocketAddr, std::io::Error> {
        Ok(self.address)
    }
}

impl Network for Machine {
    type Listener = Listener;

    async fn bind(&self, address: SocketAddr) -> Result<Listener, Error> {
        let net = self.life.world.net.clone();
        let (sender, incoming) = mpsc::unbounded_channel();
        let mut state = net.0.lock().unwrap();
        state.next += 1;
        let number = state.next;
        if state.listeners.contains_key(&address) {
            return Err(Error::BindFailed);
        }
        state.listeners.insert(address, (number, sender));
        drop(state);
        Ok(Listener { net, address, number, incoming })
    }

    async fn dial(&self, address: SocketAddr) -> Result<(Sink, Stream), Error> {
        let world = self.life.world.clone();
        world.sleep(world.draw_time(DELAY)).await;
        self.life.alive().await;
        let listener = {
            let state = world.net.0.lock().unwrap();
            let found = state.listeners.get(&address).filter(|_| !state.is_down);
            found.map(|(_, sender)| sender.clone()).ok_or(Error::ConnectionFailed)?
        };
        let (there, back) = (world.net.pipe(), world.net.pipe());
        let end = |pipe: &Arc<Pipe>, other: &Arc<Pipe>, life| {
            let last = world.context.current();
            (
                Sink { pipe: pipe.clone(), world: world.clone(), life, last },
                Stream { pipe: other.clone(), world: world.clone(), buffer: BytesMut::new() },
            )
        };
        let (sink, stream) = end(&back, &there, None);
        let from = SocketAddr::from(([127, 0, 0, 1], 50_000));
        listener.send((from, sink, stream)).map_err(|_| Error::ConnectionFailed)?;
        Ok(end(&there, &back, Some(self.life.clone())))
    }
}
