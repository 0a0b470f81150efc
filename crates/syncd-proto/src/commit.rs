//! The commit record: one durable unit of write, root, signature and idempotency keys.

use crate::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    database::{EXECUTION_VERSION, ExecutionVersion, Kind, State},
    record::CommitMetadata,
    types::{Change, Digest, IDEMPOTENCY_KEY_LENGTH_MAX, Root},
};
use bytes::BufMut;
use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, FixedSize, RangeCfg, Read, ReadExt as _, Write,
};
use commonware_cryptography::ed25519::PrivateKey;

/// Version of this encoding.
pub const RECORD_VERSION: u8 = 1;
/// Most changes in one commit.
pub const CHANGES_MAX: usize = 65_536;
/// Most idempotency entries in one commit: one for each request of a group.
pub const IDEMPOTENCY_ENTRIES_MAX: usize = 4_096;

/// The state that a commit was executed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its size.
    pub size: u64,
    /// Its canonical root.
    pub root: Root,
}

/// A request that must not be executed twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyEntry {
    /// The key that the writer chose.
    pub key: Vec<u8>,
    /// Digest of what it asked for.
    pub body: Digest,
}

/// One commit, or the base record of a log (no changes, base equal to its own checkpoint).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The state it was executed on.
    pub base: Base,
    /// What executed it.
    pub execution: ExecutionVersion,
    /// The changes, in the order given.
    pub changes: Vec<Change>,
    /// Requests that it answered.
    pub idempotency: Vec<IdempotencyEntry>,
    /// The signed state that it leads to.
    pub checkpoint: SignedCheckpoint,
}

impl Commit {
    /// The commit that follows `head` and leads to `state`, signed with `key` at `now_ms`. Times are
    /// what the publisher's clock shows and may go back with it: sequences order commits, times
    /// never do.
    pub fn following(
        head: Checkpoint,
        state: State,
        metadata: CommitMetadata,
        changes: Vec<Change>,
        idempotency: Vec<IdempotencyEntry>,
        now_ms: u64,
        key: &PrivateKey,
    ) -> Self {
        let base = Base { size: head.size, root: head.root };
        let checkpoint =
            Checkpoint::of_state(head.database, head.kind(), state, metadata, now_ms).sign(key);
        Self { base, execution: EXECUTION_VERSION, changes, idempotency, checkpoint }
    }

    /// The record that a log begins with.
    pub fn base_record(checkpoint: SignedCheckpoint, execution: ExecutionVersion) -> Self {
        let base = Base { size: checkpoint.checkpoint.size, root: checkpoint.checkpoint.root };
        Self { base, execution, changes: Vec::new(), idempotency: Vec::new(), checkpoint }
    }

    /// Its sequence.
    pub const fn sequence(&self) -> u64 {
        self.checkpoint.checkpoint.sequence
    }

    /// The metadata that goes into the database with it.
    pub const fn metadata(&self) -> CommitMetadata {
        CommitMetadata {
            sequence: self.checkpoint.checkpoint.sequence,
            committed_at_ms: self.checkpoint.checkpoint.committed_at_ms,
        }
    }

    /// The state that it leads to.
    pub const fn state(&self) -> State {
        self.checkpoint.checkpoint.state()
    }

    /// The kind of database that it belongs to.
    pub const fn kind(&self) -> Kind {
        self.checkpoint.checkpoint.kind()
    }

    /// Whether it builds on the state that `previous` describes.
    pub fn follows(&self, previous: &SignedCheckpoint) -> bool {
        let previous = &previous.checkpoint;
        self.sequence() == previous.sequence + 1
            && self.base.size == previous.size
            && self.base.root == previous.root
            && self.checkpoint.checkpoint.database == previous.database
    }
}

impl Write for Commit {
    fn write(&self, buf: &mut impl BufMut) {
        RECORD_VERSION.write(buf);
        self.base.size.write(buf);
        self.base.root.write(buf);
        self.execution.write(buf);
        self.changes.write(buf);
        self.idempotency.write(buf);
        self.checkpoint.write(buf);
    }
}

impl EncodeSize for Commit {
    fn encode_size(&self) -> usize {
        1 + 8
            + Root::SIZE
            + ExecutionVersion::SIZE
            + self.changes.encode_size()
            + self.idempotency.encode_size()
            + SignedCheckpoint::SIZE
    }
}

impl Read for Commit {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let version = u8::read(buf)?;
        if version != RECORD_VERSION {
            return Err(CodecError::InvalidEnum(version));
        }
        Ok(Self {
            base: Base { size: u64::read(buf)?, root: Root::read(buf)? },
            execution: ExecutionVersion::read(buf)?,
            changes: Vec::read_cfg(buf, &(RangeCfg::new(0..=CHANGES_MAX), ()))?,
            idempotency: Vec::read_cfg(buf, &(RangeCfg::new(0..=IDEMPOTENCY_ENTRIES_MAX), ()))?,
            checkpoint: SignedCheckpoint::read(buf)?,
        })
    }
}

impl Write for IdempotencyEntry {
    fn write(&self, buf: &mut impl BufMut) {
        self.key.as_slice().write(buf);
        self.body.write(buf);
    }
}

impl EncodeSize for IdempotencyEntry {
    fn encode_size(&self) -> usize {
        self.key.as_slice().encode_size() + Digest::SIZE
    }
}

impl Read for IdempotencyEntry {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let range = RangeCfg::new(1..=IDEMPOTENCY_KEY_LENGTH_MAX);
        Ok(Self { key: Vec::read_cfg(buf, &(range, ()))?, body: Digest::read(buf)? })
    }
}
