//! The control socket of a daemon: whoever may write in its storage directory asks it to reload, and learns what it did.
//!
//! A process number means nothing in another PID namespace, which is where the operator of a container is. A socket in the
//! directory leads to the daemon that holds the directory, from wherever the directory is mounted on its machine.
//!
//! A request is a line, an answer one JSON object. Only the owner of the directory may connect (mode 0600).

use crate::{lifecycle::Shutdown, supervisor::Supervisor};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, Permissions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};

/// Name of the socket in the storage directory.
pub const SOCKET: &str = "control.sock";
/// The request to reload.
const RELOAD: &str = "reload\n";
/// Longest request.
pub const REQUEST_BYTES_MAX: usize = 64;
/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// How long a peer may take to send its request, and to read its answer. One is served at a time.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Names of the directories in which sockets are made.
const PRIVATE_PREFIX: &str = ".control-";

/// What a reload did.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is in force now.
    pub reloaded: Vec<String>,
    /// What could not be read, so that the old one stays in force.
    pub failed: Vec<String>,
}

/// Somebody who waits for the report of a reload.
pub struct Request(oneshot::Sender<Report>);

/// A directory by a path that is short enough for a socket's address, however long its own is.
struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, path: path.to_path_buf() })
    }

    fn join(&self, name: &str) -> PathBuf {
        let short = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        // Without /proc, only short paths can be had.
        if short.exists() { short.join(name) } else { self.path.join(name) }
    }
}

/// The bound socket, removed when dropped.
pub struct Control {
    listener: UnixListener,
    directory: Directory,
}

impl Control {
    /// Makes the socket in a directory that this process has locked. One that is left of a process that was killed is
    /// replaced.
    pub fn bind(storage_dir: &Path) -> io::Result<Self> {
        let directory = Directory::open(storage_dir)?;
        // It gets its name when it has its mode: nobody may connect before.
        remove_left_over(storage_dir)?;
        let private = tempfile::Builder::new()
            .prefix(PRIVATE_PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(storage_dir)?;
        let inside = Directory::open(private.path())?;
        let listener = UnixListener::bind(inside.join(SOCKET))?;
        std::fs::set_permissions(inside.join(SOCKET), Permissions::from_mode(0o600))?;
        std::fs::rename(inside.join(SOCKET), directory.join(SOCKET))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, directory })
    }
}

/// Serves a socket on this thread's runtime; requests come out of the channel. Without a socket none come.
pub fn serve(control: Option<Control>) -> mpsc::Receiver<Request> {
    let (ask, requests) = mpsc::channel(1);
    if let Some(control) = control {
        tokio::spawn(async move {
            if let Err(error) = accept(&control, &ask).await {
                tracing::error!(%error, "the control socket failed");
            }
        });
    }
    requests
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.directory.join(SOCKET));
    }
}

/// Removes what a process left that was killed while it made its socket.
fn remove_left_over(storage_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(storage_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PRIVATE_PREFIX) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

async fn accept(control: &Control, ask: &mpsc::Sender<Request>) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(control.listener.try_clone()?)?;
    while !ask.is_closed() {
        let result = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => answer(stream, ask).await,
                Err(error) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    Err(error)
                }
            },
            () = ask.closed() => return Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a request on the control socket failed");
        }
    }
    Ok(())
}

/// Reads one request and answers it.
async fn answer(mut stream: tokio::net::UnixStream, ask: &mpsc::Sender<Request>) -> io::Result<()> {
    let request = tokio::time::timeout(PEER_TIMEOUT, read_request(&mut stream)).await??;
    let answer = if request == RELOAD.as_bytes() {
        let (tell, told) = oneshot::channel();
        ask.send(Request(tell)).await.map_err(io::Error::other)?;
        serde_json::to_vec(&told.await.map_err(io::Error::other)?)?
    } else {
        br#"{"reloaded":[],"failed":["the request is unknown; known is: reload"]}"#.to_vec()
    };
    tokio::time::timeout(PEER_TIMEOUT, stream.write_all(&answer)).await?
}

/// A line, or what there is of it.
async fn read_request(stream: &mut tokio::net::UnixStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut bytes = [0; REQUEST_BYTES_MAX];
    while !request.ends_with(b"\n") && request.len() < REQUEST_BYTES_MAX {
        let room = REQUEST_BYTES_MAX - request.len();
        match stream.read(&mut bytes[..room]).await? {
            0 => break,
            read => request.extend_from_slice(&bytes[..read]),
        }
    }
    Ok(request)
}

/// Calls `reload` for each SIGHUP and for each request, for ever.
pub async fn on_reload(
    shutdown: &Shutdown,
    mut requests: mpsc::Receiver<Request>,
    supervisor: &Supervisor,
    mut reload: impl FnMut() -> Report,
) {
    let mut reload = || {
        supervisor.reloading();
        let report = reload();
        supervisor.ready();
        report
    };
    loop {
        tokio::select! {
            () = shutdown.reload_signal() => {
                reload();
            }
            Some(Request(answer)) = requests.recv() => {
                // Whoever asked may have gone.
                let _ = answer.send(reload());
            }
        }
    }
}

/// Asks the daemon that holds `storage_dir` to reload. Errors are those of the socket; `InvalidData` is an answer that
/// is none, `UnexpectedEof` one that did not come.
pub fn ask_reload(storage_dir: &Path, timeout: Duration) -> io::Result<Report> {
    let directory = Directory::open(storage_dir)?;
    let mut stream = UnixStream::connect(directory.join(SOCKET))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(RELOAD.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&answer).map_err(io::Error::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A directory whose path is longer than a socket's address may be.
    fn long_directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a".repeat(120)).join("b".repeat(120));
        std::fs::create_dir_all(&path).unwrap();
        (directory, path)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_asks_learns_what_was_done() {
        let (_directory, path) = long_directory();
        let mut requests = serve(Some(Control::bind(&path).unwrap()));
        let asked = path.clone();
        let asking =
            tokio::task::spawn_blocking(move || ask_reload(&asked, Duration::from_secs(30)));
        let Request(answer) = requests.recv().await.unwrap();
        let report = || Report { reloaded: vec!["a".into()], failed: vec!["b".into()] };
        answer.send(report()).unwrap();
        assert_eq!(asking.await.unwrap().unwrap(), report());
        let mode = std::fs::metadata(path.join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1, "nothing but the socket is left");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn peers_that_say_nothing_or_nonsense_stop_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_path_buf();
        let mut requests = serve(Some(Control::bind(&path).unwrap()));
        let silent = UnixStream::connect(path.join(SOCKET)).unwrap();
        let mut nonsense = UnixStream::connect(path.join(SOCKET)).unwrap();
        nonsense.write_all(&[b'x'; 1000]).unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            // What was not read may end the connection before its answer.
            let _ = nonsense.read_to_string(&mut text);
            ask_reload(&path, Duration::from_secs(30))
        });
        let Request(answer) = requests.recv().await.unwrap();
        answer.send(Report::default()).unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), Report::default());
        drop(silent);
    }

    #[test]
    fn a_socket_that_is_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let left = UnixListener::bind(directory.path().join(SOCKET)).unwrap();
        drop(left);
        let refused = ask_reload(directory.path(), Duration::from_secs(1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let control = Control::bind(directory.path()).unwrap();
        UnixStream::connect(directory.path().join(SOCKET)).unwrap();
        drop(control);
        assert!(!directory.path().join(SOCKET).exists());
    }
}
