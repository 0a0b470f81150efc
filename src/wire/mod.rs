//! Messages between a replica and a server: shapes, bounds, versions. No I/O.
//!
//! Every message is one frame of the encrypted channel. The client speaks first with [`Hello`];
//! the server answers [`Welcome`] or [`Refused`] and, in the second case, closes. After that the
//! client sends [`ClientMessage`]s, many in flight, and the server [`ServerMessage`]s, each with
//! the identifier of the request that it answers.
//!
//! What comes over the wire is hostile: every decoder here is bounded by a constant, and nothing
//! is allocated before its length was checked.

use crate::{
    checkpoint::SignedCheckpoint,
    commit_log::Commit,
    database::{
        ExecutionVersion, Fetch,
        types::{DatabaseId, Family, HashKind, Mode},
    },
};
use bytes::Bytes;
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize as _, RangeCfg, Read, ReadExt as _, Write,
};
use commonware_runtime::BufMut;
use std::time::Duration;

/// Version of these messages. A server refuses others by name.
pub const WIRE_VERSION: u16 = 1;
/// Namespace of the channel's handshake.
pub const NAMESPACE: &[u8] = b"_SYNCD_LINK";
/// Most bytes of one message.
pub const FRAME_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Most bytes of changes in one commit, so that its record fits a frame with room to spare.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of operations and proof that a server puts into one answer.
pub const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
/// Most operations that a server puts into one answer.
pub const RESPONSE_OPERATIONS_MAX: u64 = 10_000;
/// Longest text in an error.
const TEXT_LENGTH_MAX: usize = 1024;
/// Longest W3C `traceparent`.
const TRACE_LENGTH_MAX: usize = 64;

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`WIRE_VERSION`] of the client.
    pub wire: u16,
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
}

/// What a server answers to an acceptable [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
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
    /// Another wire version.
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
    const ALL: [Self; 11] = [
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
    /// Operations or a boundary, for state sync.
    Fetch(Fetch),
    /// Every commit after `sequence`, as they come, and heartbeats between them. The stream goes
    /// on as long as there is credit.
    Follow {
        /// Sequence of the state that the client is at.
        sequence: u64,
        /// Bytes of commits that may be sent before more credit is given.
        credit: u32,
    },
    /// Newer checkpoints as they come, without commits: while a state sync runs. The server keeps
    /// what the state of `target` needs, up to its bound.
    Watch {
        /// Sequence of the state that is being fetched.
        target: u64,
    },
}

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// A request.
    Request {
        /// Chosen by the client; unique among its requests in flight.
        id: u64,
        /// W3C trace context of the work that this is for.
        trace: Option<String>,
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
    /// The newest checkpoint; in a stream also as heartbeat.
    Checkpoint(Box<SignedCheckpoint>),
    /// Operations with their proof, in the library's encoding.
    Operations(Bytes),
    /// The next commit of a stream.
    Commit(Box<Commit>),
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

fn write_text(text: &str, max: usize, buf: &mut impl BufMut) {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (&text.as_bytes()[..end]).write(buf);
}

fn text_size(text: &str, max: usize) -> usize {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (&text.as_bytes()[..end]).encode_size()
}

fn read_text(buf: &mut impl Buf, max: usize) -> Result<String, CodecError> {
    let bytes = Vec::<u8>::read_cfg(buf, &(RangeCfg::new(0..=max), ()))?;
    String::from_utf8(bytes).map_err(|_| CodecError::Invalid("text", "not UTF-8"))
}

fn write_duration(duration: Duration, buf: &mut impl BufMut) {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).write(buf);
}

fn read_duration(buf: &mut impl Buf) -> Result<Duration, CodecError> {
    Ok(Duration::from_millis(u64::read(buf)?))
}

impl Write for Hello {
    fn write(&self, buf: &mut impl BufMut) {
        self.wire.write(buf);
        self.execution.write(buf);
        self.family.write(buf);
        self.mode.write(buf);
        self.database.write(buf);
        self.newest.write(buf);
    }
}

impl EncodeSize for Hello {
    fn encode_size(&self) -> usize {
        2 + ExecutionVersion::SIZE + 2 + self.database.encode_size() + self.newest.encode_size()
    }
}

impl Read for Hello {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self {
            wire: u16::read(buf)?,
            execution: ExecutionVersion::read(buf)?,
            family: Family::read(buf)?,
            mode: Mode::read(buf)?,
            database: Option::read(buf)?,
            newest: Option::read(buf)?,
        })
    }
}

/// Reads only the version of a [`Hello`], so that one of another version can be answered by name.
pub fn peek_wire_version(frame: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(frame.get(..2)?.try_into().ok()?))
}

impl Write for Refused {
    fn write(&self, buf: &mut impl BufMut) {
        let code = Code::ALL.iter().position(|code| *code == self.code).unwrap_or_default();
        u8::try_from(code).unwrap_or_default().write(buf);
        write_text(&self.message, TEXT_LENGTH_MAX, buf);
        write_duration(self.retry_after, buf);
    }
}

impl EncodeSize for Refused {
    fn encode_size(&self) -> usize {
        1 + text_size(&self.message, TEXT_LENGTH_MAX) + 8
    }
}

impl Read for Refused {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let code = u8::read(buf)?;
        Ok(Self {
            code: *Code::ALL.get(usize::from(code)).ok_or(CodecError::InvalidEnum(code))?,
            message: read_text(buf, TEXT_LENGTH_MAX)?,
            retry_after: read_duration(buf)?,
        })
    }
}

impl Write for Reply {
    fn write(&self, buf: &mut impl BufMut) {
        match self {
            Self::Welcome(welcome) => {
                0u8.write(buf);
                welcome.execution.write(buf);
                welcome.hash.write(buf);
                welcome.checkpoint.write(buf);
                welcome.log_first.write(buf);
                welcome.operations_max.write(buf);
                welcome.bytes_max.write(buf);
                welcome.requests_max.write(buf);
                write_duration(welcome.heartbeat_interval, buf);
            }
            Self::Refused(refused) => {
                1u8.write(buf);
                refused.write(buf);
            }
        }
    }
}

impl EncodeSize for Reply {
    fn encode_size(&self) -> usize {
        1 + match self {
            Self::Welcome(_) => {
                ExecutionVersion::SIZE + 1 + SignedCheckpoint::SIZE + 8 + 8 + 4 + 4 + 8
            }
            Self::Refused(refused) => refused.encode_size(),
        }
    }
}

impl Read for Reply {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        match u8::read(buf)? {
            0 => Ok(Self::Welcome(Box::new(Welcome {
                execution: ExecutionVersion::read(buf)?,
                hash: HashKind::read(buf)?,
                checkpoint: SignedCheckpoint::read(buf)?,
                log_first: u64::read(buf)?,
                operations_max: u64::read(buf)?,
                bytes_max: u32::read(buf)?,
                requests_max: u32::read(buf)?,
                heartbeat_interval: read_duration(buf)?,
            }))),
            1 => Ok(Self::Refused(Refused::read(buf)?)),
            other => Err(CodecError::InvalidEnum(other)),
        }
    }
}

impl Write for Request {
    fn write(&self, buf: &mut impl BufMut) {
        match self {
            Self::Checkpoint => 0u8.write(buf),
            Self::Fetch(fetch) => {
                1u8.write(buf);
                fetch.write(buf);
            }
            Self::Follow { sequence, credit } => {
                2u8.write(buf);
                sequence.write(buf);
                credit.write(buf);
            }
            Self::Watch { target } => {
                3u8.write(buf);
                target.write(buf);
            }
        }
    }
}

impl EncodeSize for Request {
    fn encode_size(&self) -> usize {
        1 + match self {
            Self::Checkpoint => 0,
            Self::Fetch(fetch) => fetch.encode_size(),
            Self::Follow { .. } => 12,
            Self::Watch { .. } => 8,
        }
    }
}

impl Read for Request {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        match u8::read(buf)? {
            0 => Ok(Self::Checkpoint),
            1 => Ok(Self::Fetch(Fetch::read(buf)?)),
            2 => Ok(Self::Follow { sequence: u64::read(buf)?, credit: u32::read(buf)? }),
            3 => Ok(Self::Watch { target: u64::read(buf)? }),
            other => Err(CodecError::InvalidEnum(other)),
        }
    }
}

impl Write for ClientMessage {
    fn write(&self, buf: &mut impl BufMut) {
        match self {
            Self::Request { id, trace, request } => {
                0u8.write(buf);
                id.write(buf);
                trace.is_some().write(buf);
                if let Some(trace) = trace {
                    write_text(trace, TRACE_LENGTH_MAX, buf);
                }
                request.write(buf);
            }
            Self::Credit { id, bytes } => {
                1u8.write(buf);
                id.write(buf);
                bytes.write(buf);
            }
            Self::Cancel { id } => {
                2u8.write(buf);
                id.write(buf);
            }
            Self::Ping => 3u8.write(buf),
        }
    }
}

impl EncodeSize for ClientMessage {
    fn encode_size(&self) -> usize {
        1 + match self {
            Self::Request { trace, request, .. } => {
                let trace = trace.as_ref().map_or(0, |trace| text_size(trace, TRACE_LENGTH_MAX));
                8 + 1 + trace + request.encode_size()
            }
            Self::Credit { .. } => 12,
            Self::Cancel { .. } => 8,
            Self::Ping => 0,
        }
    }
}

impl Read for ClientMessage {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        match u8::read(buf)? {
            0 => {
                let id = u64::read(buf)?;
                let trace =
                    if bool::read(buf)? { Some(read_text(buf, TRACE_LENGTH_MAX)?) } else { None };
                Ok(Self::Request { id, trace, request: Request::read(buf)? })
            }
            1 => Ok(Self::Credit { id: u64::read(buf)?, bytes: u32::read(buf)? }),
            2 => Ok(Self::Cancel { id: u64::read(buf)? }),
            3 => Ok(Self::Ping),
            other => Err(CodecError::InvalidEnum(other)),
        }
    }
}

impl Write for ServerMessage {
    fn write(&self, buf: &mut impl BufMut) {
        let Self::Response { id, response } = self else {
            return 1u8.write(buf);
        };
        0u8.write(buf);
        id.write(buf);
        match response {
            Response::Checkpoint(checkpoint) => {
                0u8.write(buf);
                checkpoint.write(buf);
            }
            Response::Operations(body) => {
                1u8.write(buf);
                body.write(buf);
            }
            Response::Commit(commit) => {
                2u8.write(buf);
                commit.write(buf);
            }
            Response::Refused(refused) => {
                3u8.write(buf);
                refused.write(buf);
            }
        }
    }
}

impl EncodeSize for ServerMessage {
    fn encode_size(&self) -> usize {
        let Self::Response { response, .. } = self else { return 1 };
        1 + 8
            + 1
            + match response {
                Response::Checkpoint(_) => SignedCheckpoint::SIZE,
                Response::Operations(body) => body.encode_size(),
                Response::Commit(commit) => commit.encode_size(),
                Response::Refused(refused) => refused.encode_size(),
            }
    }
}

impl Read for ServerMessage {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        match u8::read(buf)? {
            0 => {
                let id = u64::read(buf)?;
                let response = match u8::read(buf)? {
                    0 => Response::Checkpoint(Box::new(SignedCheckpoint::read(buf)?)),
                    1 => {
                        let range = RangeCfg::new(0..=FRAME_BYTES_MAX as usize);
                        Response::Operations(Bytes::read_cfg(buf, &range)?)
                    }
                    2 => Response::Commit(Box::new(Commit::read(buf)?)),
                    3 => Response::Refused(Refused::read(buf)?),
                    other => return Err(CodecError::InvalidEnum(other)),
                };
                Ok(Self::Response { id, response })
            }
            1 => Ok(Self::Pong),
            other => Err(CodecError::InvalidEnum(other)),
        }
    }
}
