//! What a server's storage says of itself, apart from the data: its identity and how it was made.

use crate::{
    checkpoint::{Identity, Parameters},
    database::types::Mode,
    runtime::Runtime,
};
use commonware_codec::{Buf, Error as CodecError, FixedSize, Read, ReadExt as _, Write};
use commonware_runtime::BufMut;
use commonware_storage::metadata::{Config, Metadata};
use commonware_utils::sequence::U64;

const RECORD: u64 = 0;

/// The record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the identity is made of.
    pub parameters: Parameters,
    /// Whether the database was made with the generator on.
    pub generated: bool,
    /// How much of the database is kept.
    pub storage: Mode,
    /// Whether a new epoch was begun and not finished.
    pub epoch_pending: bool,
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
        self.epoch_pending.write(buf);
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
        Ok(Self {
            parameters,
            generated: flags & 1 != 0,
            storage: if flags & 2 != 0 { Mode::Compact } else { Mode::Full },
            epoch_pending: bool::read(buf)?,
        })
    }
}

/// The record on disk.
pub struct State<E: Runtime>(Metadata<E, U64, Record>);

impl<E: Runtime> State<E> {
    /// Opens the record's storage.
    pub async fn open(context: E) -> Result<Self, commonware_storage::metadata::Error> {
        let config = Config { partition: "server".into(), codec_config: () };
        Ok(Self(Metadata::init(context, config).await?))
    }

    /// The record, if a database was made here.
    pub fn get(&self) -> Option<Record> {
        self.0.get(&U64::new(RECORD)).cloned()
    }

    /// Replaces the record. Durable on return.
    pub async fn put(self, record: Record) -> Result<Self, commonware_storage::metadata::Error> {
        let Self(mut metadata) = self;
        metadata.put(U64::new(RECORD), record);
        Ok(Self(metadata.sync().await?))
    }
}
