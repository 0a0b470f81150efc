//! What a server's storage says of itself, apart from the data: its identity and how it was made.

use crate::{
    checkpoint::{Identity, Parameters},
    database::types::Mode,
    runtime::Runtime,
    storage_record::{Error, Records},
};
use commonware_codec::{Buf, Error as CodecError, FixedSize, Read, ReadExt as _, Write};
use commonware_runtime::BufMut;
use commonware_utils::sequence::U64;

/// Partition of the record.
pub const PARTITION: &str = "server";
const RECORD: u64 = 0;

/// How far the storage's making has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A database is here.
    Complete,
    /// `syncctl new-epoch` was begun and not finished.
    EpochPending,
    /// The first start was begun and not finished: nothing was served yet, so what lies here may be removed.
    Creating,
}

impl Stage {
    const fn byte(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::EpochPending => 1,
            Self::Creating => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Complete),
            1 => Some(Self::EpochPending),
            2 => Some(Self::Creating),
            _ => None,
        }
    }
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the identity is made of.
    pub parameters: Parameters,
    /// Whether the database was made with the generator on.
    pub generated: bool,
    /// How much of the database is kept.
    pub storage: Mode,
    /// How far its making has come.
    pub stage: Stage,
}

impl Record {
    /// The identity.
    pub fn identity(&self) -> Identity {
        self.parameters.clone().identity()
    }
}

impl Write for Record {
    fn write(&self, buf: &mut impl BufMut) {
        self.parameters.write(buf);
        // One byte of flags.
        (u8::from(self.generated) | u8::from(self.storage == Mode::Compact) << 1).write(buf);
        self.stage.byte().write(buf);
    }
}

impl FixedSize for Record {
    const SIZE: usize = Parameters::SIZE + 2;
}

impl Read for Record {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let parameters = Parameters::read(buf)?;
        let flags = u8::read(buf)?;
        if flags > 3 {
            return Err(CodecError::InvalidEnum(flags));
        }
        let stage = u8::read(buf)?;
        Ok(Self {
            parameters,
            generated: flags & 1 != 0,
            storage: if flags & 2 != 0 { Mode::Compact } else { Mode::Full },
            stage: Stage::from_byte(stage).ok_or(CodecError::InvalidEnum(stage))?,
        })
    }
}

/// The record on disk.
pub struct State<E: Runtime>(Records<E, U64, Record>);

impl<E: Runtime> State<E> {
    /// Opens the record's storage. Makes nothing.
    pub async fn open(context: E) -> Result<Self, Error> {
        Ok(Self(Records::open(context, PARTITION).await?))
    }

    /// The record, if a database was made here, or begun.
    pub fn get(&self) -> Option<Record> {
        self.0.get(&U64::new(RECORD)).cloned()
    }

    /// Whether one copy of it was found damaged.
    pub const fn was_repaired(&self) -> bool {
        self.0.was_repaired()
    }

    /// Replaces the record. Durable on return.
    pub async fn put(&mut self, record: Record) -> Result<(), Error> {
        self.0
            .update(|records| {
                records.insert(U64::new(RECORD), record);
            })
            .await
    }
}
