//! The encoding of the messages: a byte for each variant, big-endian integers, bounded lengths.

use super::{
    ClientMessage, Code, Extensions, Features, Hello, RESPONSE_BYTES_ACCEPTED, Refused, Reply,
    Request, Response, ServerMessage, Versions, Welcome,
};
use crate::{
    checkpoint::{Rotations, SignedCheckpoint},
    commit::Commit,
    database::{ExecutionVersion, Fetch},
    types::{Family, HashKind, Mode},
};
use bytes::BufMut;
use bytes::Bytes;
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize as _, RangeCfg, Read, ReadExt as _, Write,
};
use std::time::Duration;

/// Longest text in an error.
const TEXT_LENGTH_MAX: usize = 1024;

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
        self.versions.write(buf);
        self.features.write(buf);
        self.execution.write(buf);
        self.family.write(buf);
        self.mode.write(buf);
        self.database.write(buf);
        self.newest.write(buf);
        self.rotations.write(buf);
        self.extensions.write(buf);
    }
}

impl EncodeSize for Hello {
    fn encode_size(&self) -> usize {
        Versions::SIZE
            + Features::SIZE
            + ExecutionVersion::SIZE
            + 2
            + self.database.encode_size()
            + self.newest.encode_size()
            + self.rotations.encode_size()
            + self.extensions.encode_size()
    }
}

impl Read for Hello {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self {
            versions: Versions::read(buf)?,
            features: Features::read(buf)?,
            execution: ExecutionVersion::read(buf)?,
            family: Family::read(buf)?,
            mode: Mode::read(buf)?,
            database: Option::read(buf)?,
            newest: Option::read(buf)?,
            rotations: Rotations::read(buf)?,
            extensions: Extensions::read(buf)?,
        })
    }
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
                welcome.version.write(buf);
                welcome.features.write(buf);
                welcome.execution.write(buf);
                welcome.hash.write(buf);
                welcome.checkpoint.write(buf);
                welcome.log_first.write(buf);
                welcome.operations_max.write(buf);
                welcome.bytes_max.write(buf);
                welcome.requests_max.write(buf);
                write_duration(welcome.heartbeat_interval, buf);
                welcome.rotations.write(buf);
                welcome.extensions.write(buf);
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
            Self::Welcome(welcome) => {
                let chosen = 2 + Features::SIZE;
                let fixed = ExecutionVersion::SIZE + 1 + SignedCheckpoint::SIZE + 8 + 8 + 4 + 4 + 8;
                chosen + fixed + welcome.rotations.encode_size() + welcome.extensions.encode_size()
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
                version: u16::read(buf)?,
                features: Features::read(buf)?,
                execution: ExecutionVersion::read(buf)?,
                hash: HashKind::read(buf)?,
                checkpoint: SignedCheckpoint::read(buf)?,
                log_first: u64::read(buf)?,
                operations_max: u64::read(buf)?,
                bytes_max: u32::read(buf)?,
                requests_max: u32::read(buf)?,
                heartbeat_interval: read_duration(buf)?,
                rotations: Rotations::read(buf)?,
                extensions: Extensions::read(buf)?,
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
            Self::CheckpointAt { sequence } => {
                4u8.write(buf);
                sequence.write(buf);
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
            Self::Watch { .. } | Self::CheckpointAt { .. } => 8,
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
            4 => Ok(Self::CheckpointAt { sequence: u64::read(buf)? }),
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
                trace.write(buf);
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
            Self::Request { trace, request, .. } => 8 + trace.encode_size() + request.encode_size(),
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
                let trace = Option::read(buf)?;
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
            Response::Commit { commit, trace } => {
                2u8.write(buf);
                trace.write(buf);
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
                Response::Commit { commit, trace } => trace.encode_size() + commit.encode_size(),
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
                        let range = RangeCfg::new(0..=RESPONSE_BYTES_ACCEPTED);
                        Response::Operations(Bytes::read_cfg(buf, &range)?)
                    }
                    2 => {
                        let trace = Option::read(buf)?;
                        Response::Commit { commit: Box::new(Commit::read(buf)?), trace }
                    }
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
