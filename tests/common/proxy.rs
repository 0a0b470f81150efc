//! A TCP proxy that sees only bytes: it records, flips, cuts, delays and replays them.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

#[derive(Default)]
struct State {
    flip_after: AtomicU64,
    flips: AtomicU64,
    delay_ms: AtomicU64,
    closed: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    to_server: Mutex<Vec<u8>>,
    to_client: Mutex<Vec<u8>>,
    upstream: Mutex<String>,
}

/// How a test steers a proxy.
pub struct Proxy {
    pub address: String,
    state: Arc<State>,
}

impl Proxy {
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        *state.upstream.lock().unwrap() = upstream.to_string();
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let upstream = shared.upstream.lock().unwrap().clone();
                let Ok(server) = TcpStream::connect(upstream) else { continue };
                if shared.closed.load(Ordering::Relaxed) {
                    continue;
                }
                for (from, to, is_request) in [(&client, &server, true), (&server, &client, false)]
                {
                    let _ = from.set_nodelay(true);
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = shared.clone();
                    std::thread::spawn(move || copy(&shared, from, to, is_request));
                }
                shared.streams.lock().unwrap().extend([client, server]);
            }
        });
        Self { address, state }
    }

    /// Changes one bit in each direction of every connection, after so many bytes; 0 for none.
    pub fn flip_after(&self, bytes: u64) {
        self.state.flip_after.store(bytes, Ordering::Relaxed);
    }

    /// Bits that were changed so far.
    pub fn flips(&self) -> u64 {
        self.state.flips.load(Ordering::Relaxed)
    }

    /// Holds everything back for a while.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for stream in self.state.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Accepts nothing, or everything again.
    pub fn close(&self, closed: bool) {
        self.state.closed.store(closed, Ordering::Relaxed);
        self.cut();
    }

    /// Leads to another server from now on.
    pub fn switch(&self, upstream: &str) {
        *self.state.upstream.lock().unwrap() = upstream.to_string();
        self.cut();
    }

    /// What went to the server and what came from it.
    pub fn recorded(&self) -> (Vec<u8>, Vec<u8>) {
        (self.state.to_server.lock().unwrap().clone(), self.state.to_client.lock().unwrap().clone())
    }
}

fn copy(state: &State, mut from: TcpStream, mut to: TcpStream, is_request: bool) {
    let mut buffer = [0; 16 * 1024];
    let mut passed = 0;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let chunk = &mut buffer[..length];
        let record = if is_request { &state.to_server } else { &state.to_client };
        record.lock().unwrap().extend_from_slice(chunk);
        let flip = state.flip_after.load(Ordering::Relaxed);
        if flip > 0 && (passed..passed + length as u64).contains(&flip) {
            chunk[(flip - passed) as usize] ^= 1;
            state.flips.fetch_add(1, Ordering::Relaxed);
        }
        passed += length as u64;
        let delay = state.delay_ms.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(delay));
        if to.write_all(chunk).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
