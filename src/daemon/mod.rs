//! What both daemons do around their work: ports, runtime, files that tell others where they are.

mod edge;

pub use edge::Edge;

use crate::{
    api::Tokens,
    config::{self, CommonArgs, Invalid, TokenFile},
    control::{Control, Report},
    descriptors::{self, Files, Plan, Shares, TooFew},
    directory::{self, DirectoryError, DirectoryLock, LayoutError, Role},
    exit, http, keys,
    lifecycle::Shutdown,
    runtime::StorageGuard,
    stdio,
    supervisor::Supervisor,
    telemetry::{
        Telemetry,
        logs::{self, Level},
    },
};
use arc_swap::ArcSwapOption;
use commonware_runtime::tokio::{Config as RuntimeConfig, Context, Runner};
use std::{
    net::{SocketAddr, TcpListener},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Longest that one read or write of a connection may take.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a daemon ends before it began, or ends badly.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// In words.
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// A failure.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }
}

impl From<Invalid> for Failure {
    fn from(error: Invalid) -> Self {
        Self::new(exit::USAGE, error.to_string())
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        let code = match error {
            DirectoryError::Locked { .. } => exit::TEMPORARY,
            DirectoryError::Io { .. } => exit::IO,
        };
        Self::new(code, error.to_string())
    }
}

impl From<LayoutError> for Failure {
    fn from(error: LayoutError) -> Self {
        Self::new(if error.is_io() { exit::IO } else { exit::DATA }, error.to_string())
    }
}

impl From<TooFew> for Failure {
    fn from(error: TooFew) -> Self {
        Self::new(exit::USAGE, error.to_string())
    }
}

impl From<http::BindError> for Failure {
    fn from(error: http::BindError) -> Self {
        Self::new(exit::IO, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(exit::IO, error.to_string())
    }
}

impl From<keys::Error> for Failure {
    fn from(error: keys::Error) -> Self {
        let code = if matches!(error, keys::Error::Io { .. }) { exit::IO } else { exit::USAGE };
        Self::new(code, error.to_string())
    }
}

/// Runs a daemon's main function and turns its end into an exit code. A failure is one line on stderr, and nothing
/// waits for stderr.
pub fn run_main(
    name: &'static str,
    main: impl FnOnce() -> Result<(), Failure>,
) -> std::process::ExitCode {
    stdio::queue::start();
    stdio::run(name, || match main() {
        Ok(()) => exit::OK.into(),
        Err(failure) => {
            // A panic has been said.
            if !failure.message.is_empty() {
                stdio::note(format_args!("{name}: {failure}"));
            }
            failure.code.into()
        }
    })
}

/// Ports and the directory, taken before storage is opened, so that a busy one fails fast.
pub struct Ground {
    /// Port of the API.
    pub api: TcpListener,
    /// Port of metrics and health.
    pub metrics: TcpListener,
    /// The lock of the storage directory.
    pub lock: DirectoryLock,
    /// Whether the storage directory is where it was.
    pub guard: StorageGuard,
    /// Signals.
    pub shutdown: Shutdown,
    /// Requests of whoever may write in the directory, where the file system has sockets.
    pub control: Option<Control>,
    /// Who may have how many file descriptors.
    pub descriptors: Plan,
    /// Who started this process.
    pub supervisor: Supervisor,
}

/// Takes the directory, the HTTP ports and the descriptors.
pub fn take_ground(
    storage_dir: &Path,
    api: SocketAddr,
    metrics: SocketAddr,
    wanted: Shares,
    role: Role,
) -> Result<Ground, Failure> {
    // A replica reads on without room.
    let lock = take_lock(storage_dir, role == Role::Client)?;
    directory::claim(storage_dir, role)?;
    let guard = directory::guard(storage_dir, &directory::data_dir(storage_dir))?;
    let descriptors = descriptors::plan(
        descriptors::raise_limit(),
        Files::count(&directory::data_dir(storage_dir))?,
        wanted,
    )?;
    announce_descriptors(&descriptors);
    let shutdown = Shutdown::install()
        .map_err(|error| Failure::new(exit::INTERNAL, format!("cannot handle signals: {error}")))?;
    let api = http::bind("--api-port", api)?;
    let metrics = http::bind("--metrics-port", metrics)?;
    let control = Control::bind(storage_dir)
        .inspect_err(|error| {
            tracing::warn!(%error, "no control socket in the storage directory: reload by SIGHUP");
        })
        .ok();
    let supervisor = Supervisor::start();
    Ok(Ground { api, metrics, lock, guard, shutdown, control, descriptors, supervisor })
}

/// Takes the directory. One that was used before may be full, where that is enough.
fn take_lock(storage_dir: &Path, may_be_full: bool) -> Result<DirectoryLock, Failure> {
    close_to_others(storage_dir)?;
    if !may_be_full || !directory::has_data(storage_dir) {
        return Ok(DirectoryLock::take(storage_dir)?);
    }
    let (lock, unwritten) = DirectoryLock::take_unwritten(storage_dir)?;
    if let Some(error) = unwritten {
        tracing::warn!(%error, "the storage directory cannot be written: starting without room");
    }
    Ok(lock)
}

/// Makes the directory if need be; what this process makes from here on is closed to other users.
fn close_to_others(storage_dir: &Path) -> Result<(), DirectoryError> {
    let closed = directory::prepare(storage_dir)
        .map_err(|source| DirectoryError::Io { path: storage_dir.to_path_buf(), source })?;
    rustix::process::umask(closed);
    Ok(())
}

/// Says how many descriptors there are, and for what.
fn announce_descriptors(plan: &Plan) {
    let Plan { limit, storage, log_segments, shares, is_lowered } = *plan;
    let Shares { api, metrics, sessions, handshakes } = shares;
    if is_lowered {
        tracing::warn!(
            limit,
            storage,
            log_segments,
            api,
            metrics,
            sessions,
            handshakes,
            "few file descriptors: fewer connections than configured are accepted at once"
        );
    } else {
        tracing::info!(limit, storage, log_segments, "file descriptors");
    }
}

/// Connections of the HTTP ports, and `sessions` and `handshakes`, as they are wanted.
pub const fn shares(sessions: usize, handshakes: usize) -> Shares {
    Shares { api: http::CONNECTIONS_MAX, metrics: http::CONNECTIONS_MAX, sessions, handshakes }
}

/// A key is gone that the data beside it were made with.
pub fn missing_key(path: &Path, consequence: &str) -> Failure {
    let path = path.display();
    let text = format!(
        "{path}: the key is missing, while the data beside it are there: restore it from a backup, or make a new one ('syncctl keygen --output {path}'; {consequence})"
    );
    Failure::new(exit::DATA, text)
}

/// Where the public halves of keys and the addresses are written.
pub fn public_dir(storage_dir: &Path) -> PathBuf {
    storage_dir.join("public")
}

/// Runs `work` on the production runtime. A panic anywhere becomes [`exit::INTERNAL`].
pub fn run_on_runtime<F, Fut>(storage_dir: &Path, work: F) -> Result<(), Failure>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = Result<(), Failure>>,
{
    let threads = std::thread::available_parallelism().map_or(2, |threads| threads.get().max(2));
    let config = RuntimeConfig::default()
        .with_storage_directory(directory::data_dir(storage_dir))
        .with_worker_threads(threads)
        .with_read_write_timeout(NETWORK_TIMEOUT);
    let run = || commonware_runtime::Runner::start(Runner::new(config), work);
    std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        // The panic itself has been said.
        Err(Failure::new(exit::INTERNAL, ""))
    })
}

/// Runs `work` on the storage of a stopped daemon, which is locked meanwhile.
pub fn with_storage<T, F, Fut>(storage_dir: &Path, role: Role, work: F) -> Result<T, Failure>
where
    T: Send,
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = Result<T, Failure>>,
{
    if !directory::data_dir(storage_dir).is_dir() {
        let text = format!("{} is no storage directory of a daemon", storage_dir.display());
        return Err(Failure::new(exit::DATA, text));
    }
    close_to_others(storage_dir)?;
    let _lock = DirectoryLock::take(storage_dir)?;
    directory::claim(storage_dir, role)?;
    let guard = directory::guard(storage_dir, &directory::data_dir(storage_dir))?;
    descriptors::raise_limit();
    let mut made = None;
    let result = &mut made;
    run_on_runtime(storage_dir, |context| async move {
        let worked = work(context).await;
        // What was done, or failed, elsewhere says nothing of the storage.
        guard.check().map_err(|gone| Failure::new(exit::IO, gone))?;
        *result = Some(worked?);
        Ok(())
    })?;
    made.ok_or_else(|| Failure::new(exit::INTERNAL, "the work gave no result"))
}

/// Starts logs and traces as the command line and the environment say.
pub fn start_telemetry(service: &'static str, common: &CommonArgs) -> Result<Telemetry, Failure> {
    let level = logs::resolve(&common.log_level)
        .map_err(|allowed| config::invalid("--log-level", &common.log_level, allowed))?;
    Telemetry::start(service, common.log_format, &level)
        .map_err(|message| Failure::new(exit::USAGE, message))
}

/// Writes a public file. Without room there is none, and what is no longer true is removed: the work does not need it.
pub fn write_public(storage_dir: &Path, name: &str, line: &str) -> Result<(), Failure> {
    let directory = public_dir(storage_dir);
    match keys::write_public_file(&directory, name, line) {
        Err(error) if error.is_full() => {
            tracing::warn!(%error, name, "a public file cannot be written");
            let _ = std::fs::remove_file(directory.join(name));
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Reads the tokens of the API.
pub fn load_tokens(write: Option<&TokenFile>, read: Option<&TokenFile>) -> Result<Tokens, Invalid> {
    let load = |file: Option<&TokenFile>| -> Result<_, Invalid> {
        let secret = file.map(TokenFile::load).transpose()?;
        Ok(Arc::new(ArcSwapOption::from_pointee(secret)))
    };
    Ok(Tokens { write: load(write)?, read: load(read)? })
}

/// Reads the tokens again; a file that cannot be read leaves its old token in force.
pub fn reload_tokens(
    tokens: &Tokens,
    write: Option<&TokenFile>,
    read: Option<&TokenFile>,
    report: &mut Report,
) {
    for (name, slot, file) in
        [("write token", &tokens.write, write), ("read token", &tokens.read, read)]
    {
        match file.map(TokenFile::load) {
            Some(Ok(secret)) => {
                slot.store(Some(Arc::new(secret)));
                report.reloaded.push(name.into());
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the old token stays in force");
                report.failed.push(error.to_string());
            }
            None => {}
        }
    }
}

/// Reads the level of the log again, where it is in a file.
pub fn reload_level(level: &Level, common: &CommonArgs, report: &mut Report) {
    let flag = &common.log_level;
    match level.set(flag) {
        Ok(()) => {
            tracing::info!(log_level = flag, "log level reloaded");
            report.reloaded.push(format!("log level {flag}"));
        }
        Err(allowed) => {
            tracing::error!(allowed, "the old log level stays in force");
            report.failed.push(config::invalid("--log-level", flag, allowed).to_string());
        }
    }
}
