//! Messages between a replica and a server: shapes, bounds, versions. No I/O.
//!
//! Every message is one frame of the encrypted channel. The client speaks first with [`Hello`];
//! the server answers [`Welcome`] or [`Refused`] and, in the second case, closes. After that the
//! client sends [`ClientMessage`]s, many in flight, and the server [`ServerMessage`]s, each with
//! the identifier of the request that it answers.
//!
//! What comes over the wire is hostile: every decoder here is bounded by a constant, and nothing
//! is allocated before its length was checked.

mod codec;
mod greeting;

pub use greeting::{EXTENSION_BYTES_MAX, EXTENSIONS_MAX, Extensions, Features, Versions};

use crate::{
    checkpoint::{Rotations, SignedCheckpoint},
    commit::Commit,
    database::{EXECUTION_VERSION, ExecutionVersion, Fetch},
    trace::TraceContext,
    types::{DatabaseId, Family, HashKind, Mode},
};
use bytes::Bytes;
use std::time::Duration;

/// Namespace of the channel's handshake.
pub const NAMESPACE: &[u8] = b"_SYNCD_LINK";
/// Most bytes of one message.
pub const FRAME_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Most bytes of changes in one commit, so that its record fits a frame with room to spare.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of a commit's record: changes, idempotency keys, checkpoint.
pub const COMMIT_RECORD_BYTES_MAX: usize = COMMIT_BYTES_MAX + 2 * 1024 * 1024;
/// Most bytes of a message from a client.
pub const CLIENT_MESSAGE_BYTES_MAX: usize = 20 * 1024;
/// Most bytes of operations and proof that a server puts into one answer.
pub const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of operations and proof that a client takes in one answer: a bound of the server's
/// own, the largest operation that may go beyond it, and the proof.
pub const RESPONSE_BYTES_ACCEPTED: usize = 2 * RESPONSE_BYTES_MAX;
/// Most operations that a server puts into one answer.
pub const RESPONSE_OPERATIONS_MAX: u64 = 10_000;

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which versions of these messages the client speaks.
    pub versions: Versions,
    /// What it can do beyond that.
    pub features: Features,
    /// What executes commits at the client.
    pub execution: ExecutionVersion,
    /// Family it is configured for.
    pub family: Family,
    /// Mode it is configured for.
    pub mode: Mode,
    /// Database it has pinned, if it has.
    pub database: Option<DatabaseId>,
    /// Newest checkpoint that it has verified, so that a server can notice its own amnesia.
    pub newest: Option<SignedCheckpoint>,
    /// How the publisher's keys followed each other, as far as the client learned it.
    pub rotations: Rotations,
    /// What later versions add.
    pub extensions: Extensions,
}

impl Hello {
    /// The greeting of this version, by a client that has verified nothing yet.
    pub fn new(family: Family, mode: Mode, database: Option<DatabaseId>) -> Self {
        Self {
            versions: Versions::OURS,
            features: Features::OURS,
            execution: EXECUTION_VERSION,
            family,
            mode,
            database,
            newest: None,
            rotations: Rotations::default(),
            extensions: Extensions::default(),
        }
    }
}

/// What a server answers to an acceptable [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that is spoken from here on.
    pub version: u16,
    /// What both ends can do.
    pub features: Features,
    /// What executes commits at the server.
    pub execution: ExecutionVersion,
    /// Hash of the database.
    pub hash: HashKind,
    /// The state that the server is at.
    pub checkpoint: SignedCheckpoint,
    /// Oldest sequence in its log.
    pub log_first: u64,
    /// Most operations that it puts into one answer.
    pub operations_max: u64,
    /// Most bytes that it puts into one answer.
    pub bytes_max: u32,
    /// Most requests that it works on at once for one connection.
    pub requests_max: u32,
    /// How often it signs an unchanged state again.
    pub heartbeat_interval: Duration,
    /// How the publisher's keys followed each other.
    pub rotations: Rotations,
    /// What later versions add.
    pub extensions: Extensions,
}

/// Why a request or a connection is refused. None of these is a wrongdoing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Too much at once; try again after the time given.
    Busy,
    /// More than one answer may hold.
    TooLarge,
    /// No longer held.
    Pruned,
    /// Not reached yet.
    Ahead,
    /// No wire version that both speak.
    UnsupportedVersion,
    /// Another execution version: commits cannot be followed.
    ExecutionVersion,
    /// The client's key is not authorised.
    Unauthorized,
    /// The database, family or mode is not what the server has.
    Mismatch,
    /// A message that makes no sense here.
    Malformed,
    /// The server is stopping.
    Draining,
    /// The server failed.
    Internal,
}

impl Code {
    /// Every code, in the order of their numbers on the wire.
    pub const ALL: [Self; 11] = [
        Self::Busy,
        Self::TooLarge,
        Self::Pruned,
        Self::Ahead,
        Self::UnsupportedVersion,
        Self::ExecutionVersion,
        Self::Unauthorized,
        Self::Mismatch,
        Self::Malformed,
        Self::Draining,
        Self::Internal,
    ];

    /// The word used in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::TooLarge => "too_large",
            Self::Pruned => "pruned",
            Self::Ahead => "ahead",
            Self::UnsupportedVersion => "unsupported_version",
            Self::ExecutionVersion => "execution_version",
            Self::Unauthorized => "unauthorized",
            Self::Mismatch => "mismatch",
            Self::Malformed => "malformed",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }
}

/// A refusal with what a person or a retry loop needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which kind.
    pub code: Code,
    /// In words.
    pub message: String,
    /// When to come back, where that helps.
    pub retry_after: Duration,
}

impl Refused {
    /// A refusal that only a change on one side can lift.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: Duration::ZERO }
    }

    /// A refusal that time lifts.
    pub fn later(code: Code, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { code, message: message.into(), retry_after }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

/// The server's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Go on.
    Welcome(Box<Welcome>),
    /// The server closes after this.
    Refused(Refused),
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The newest checkpoint.
    Checkpoint,
    /// The checkpoint of the commit `sequence`, as it was first signed: two servers with one key
    /// that went apart are told apart by it, also where operations are no longer held.
    CheckpointAt {
        /// The commit.
        sequence: u64,
    },
    /// Operations or a boundary, for state sync.
    Fetch(Fetch),
    /// Every commit after `sequence`, as they come, and heartbeats between them. The stream goes
    /// on as long as there is credit.
    Follow {
        /// Sequence of the state that the client is at.
        sequence: u64,
        /// What may be sent before more credit is given; what it counts is defined by both ends alike.
        credit: u32,
    },
    /// Newer checkpoints as they come, without commits: while a state sync runs. The server keeps
    /// what the state of `target` needs, up to its bound.
    Watch {
        /// Sequence of the state that is being fetched.
        target: u64,
    },
}

impl Request {
    /// The word used in spans and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::CheckpointAt { .. } => "checkpoint_at",
            Self::Fetch(Fetch::Operations { .. }) => "operations",
            Self::Fetch(Fetch::Boundary { .. }) => "boundary",
            Self::Follow { .. } => "follow",
            Self::Watch { .. } => "watch",
        }
    }
}

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// A request.
    Request {
        /// Chosen by the client; unique among its requests in flight.
        id: u64,
        /// W3C trace context of the work that this is for.
        trace: Option<TraceContext>,
        /// What is asked for.
        request: Request,
    },
    /// More bytes may be sent to the stream `id`.
    Credit {
        /// The stream.
        id: u64,
        /// How many more.
        bytes: u32,
    },
    /// The answer to `id` is no longer wanted.
    Cancel {
        /// The request or stream.
        id: u64,
    },
    /// Keeps the connection alive.
    Ping,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// The newest checkpoint, or the one asked for; in a stream also as heartbeat.
    Checkpoint(Box<SignedCheckpoint>),
    /// Operations with their proof, in the library's encoding.
    Operations(Bytes),
    /// The next commit of a stream.
    Commit {
        /// The commit.
        commit: Box<Commit>,
        /// W3C trace context of the work that made it, where that is known and recent.
        trace: Option<TraceContext>,
    },
    /// The request failed, or the stream ends.
    Refused(Refused),
}

/// A message of a server.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerMessage {
    /// An answer, or the next item of a stream.
    Response {
        /// The request that it answers.
        id: u64,
        /// The answer.
        response: Response,
    },
    /// Answer to a ping.
    Pong,
}
