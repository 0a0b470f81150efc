//! What a daemon writes to standard error: a bounded queue, and the thread that empties it.
//!
//! Whoever reads the log may stall, and peers can make a daemon write lines. So a full queue drops lines, counts them,
//! and says how many once it drains. **Invariant:** nobody but the queue's own thread waits for standard error, and
//! the end of the process waits for that thread for [`FLUSH_TIMEOUT`] at most.

use prometheus_client::metrics::counter::Counter;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::AsFd as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tracing_subscriber::fmt::MakeWriter;

/// Most lines that wait to be written.
pub const LINES_MAX: usize = 8192;
/// Most bytes of lines that wait to be written, the one that is being written included.
pub const BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the last lines may take at the end of the process.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before standard error is tried again, where somebody made it non-blocking.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The queue of this process.
static STARTED: OnceLock<Option<Queue>> = OnceLock::new();

/// A bounded queue of lines.
#[derive(Clone, Default)]
pub struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
    /// Lines dropped since the last report.
    unreported: u64,
}

/// Starts the queue of this process in front of standard error. Without a thread for it there is none, and standard
/// error is written directly.
pub fn start() -> Option<&'static Queue> {
    let start = || {
        let queue = Queue::default();
        // A descriptor of its own: the lock of `std::io::stderr` would be held while a write waits.
        let copy = io::stderr().as_fd().try_clone_to_owned();
        let sink: Box<dyn Write + Send> = match copy {
            Ok(descriptor) => Box::new(File::from(descriptor)),
            Err(_) => Box::new(io::stderr()),
        };
        let writer = queue.clone();
        let thread = std::thread::Builder::new().name("log".into());
        thread.spawn(move || writer.write_lines(sink)).ok().map(|_| queue)
    };
    STARTED.get_or_init(start).as_ref()
}

/// The queue of this process, if it was started.
pub fn started() -> Option<&'static Queue> {
    STARTED.get()?.as_ref()
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> Counter {
        self.0.dropped.clone()
    }

    /// Adds a line with its end, or drops it if there is no room. Never waits.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.lines.len() >= LINES_MAX || state.bytes + line.len() > BYTES_MAX {
            state.unreported += 1;
            self.0.dropped.inc();
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        self.0.filled.notify_one();
    }

    /// Waits until every line is written, or for `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let is_busy = |state: &mut State| !state.lines.is_empty() || state.is_writing;
        let _ = self.0.emptied.wait_timeout_while(self.lock(), timeout, is_busy);
    }

    /// Writes lines for ever.
    fn write_lines(&self, mut sink: impl Write) {
        loop {
            let line = self.next();
            let written = write_line(&mut sink, &line);
            let dropped = self.done(line.len(), written.is_ok());
            if dropped > 0 {
                tracing::warn!(
                    lines = dropped,
                    "log lines were dropped while standard error was not read, or could not be written"
                );
            }
        }
    }

    /// Waits for the next line.
    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.is_writing = true;
                return line;
            }
            state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Accounts for a line; returns how many dropped ones are to be reported. Only where the last write went well: a
    /// report that fails would ask for the next report.
    fn done(&self, bytes: usize, is_written: bool) -> u64 {
        let mut state = self.lock();
        state.bytes -= bytes;
        state.is_writing = false;
        if !is_written {
            state.unreported += 1;
            self.0.dropped.inc();
        }
        if !state.lines.is_empty() {
            return 0;
        }
        self.0.emptied.notify_all();
        if is_written { std::mem::take(&mut state.unreported) } else { 0 }
    }
}

fn write_line(sink: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A log line comes in one piece.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_full_queue_drops_and_counts() {
        let queue = Queue::default();
        for _ in 0..LINES_MAX + 3 {
            queue.push(b"line\n");
        }
        assert_eq!((queue.lock().lines.len(), queue.dropped().get()), (LINES_MAX, 3));
        let queue = Queue::default();
        let line = vec![b'x'; BYTES_MAX / 4];
        for _ in 0..6 {
            queue.push(&line);
        }
        assert_eq!((queue.lock().bytes, queue.dropped().get()), (BYTES_MAX, 2));
    }

    #[test]
    fn a_reader_that_stalls_holds_up_nobody_and_gets_the_rest_later() {
        let queue = Queue::default();
        let (mut reader, sink) = io::pipe().unwrap();
        let writer = queue.clone();
        std::thread::spawn(move || writer.write_lines(sink));
        let line = [vec![b'x'; 1023], b"\n".to_vec()].concat();
        // More than a pipe and the queue take together.
        for _ in 0..LINES_MAX + 4096 {
            queue.push(&line);
        }
        let started = std::time::Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(30), "the flush is bounded");
        let dropped = queue.dropped().get();
        assert!(dropped > 0);
        let kept = LINES_MAX + 4096 - usize::try_from(dropped).unwrap();
        let mut text = vec![0; kept * line.len()];
        reader.read_exact(&mut text).unwrap();
        queue.flush(Duration::from_secs(30));
        let state = queue.lock();
        assert_eq!((state.bytes, state.unreported), (0, 0), "drained and reported");
    }

    #[test]
    fn a_dead_reader_does_not_make_reports_of_reports() {
        let queue = Queue::default();
        queue.push(b"line\n");
        assert_eq!(queue.next(), b"line\n");
        assert_eq!(queue.done(5, false), 0, "nothing was written");
        queue.push(b"line\n");
        queue.next();
        assert_eq!(queue.done(5, true), 1, "the lost line is reported once it can be");
    }
}
