//! What a replica's storage directory belongs to, fixed on first use.

use super::core::Error;
use crate::{
    checkpoint::{LAYOUT_VERSION, Policy},
    database::types::{DatabaseId, Family},
    runtime::Runtime,
};
use commonware_codec::{Buf, Error as CodecError, FixedSize, Read, ReadExt as _, Write};
use commonware_runtime::BufMut;
use commonware_storage::metadata::{Config, Metadata};
use commonware_utils::sequence::U64;

/// Partition of the record.
pub const PARTITION: &str = "pinned";
/// Key of the record.
pub const RECORD: u64 = 0;

/// The record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Version of how the storage is laid out.
    pub layout: u8,
    /// Family of the replica.
    pub family: Family,
    /// Identity of the database.
    pub database: DatabaseId,
}

impl Write for Pin {
    fn write(&self, buf: &mut impl BufMut) {
        self.layout.write(buf);
        self.family.write(buf);
        self.database.write(buf);
    }
}

impl FixedSize for Pin {
    const SIZE: usize = 1 + 1 + 32;
}

impl Read for Pin {
    type Cfg = ();
    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        Ok(Self {
            layout: u8::read(buf)?,
            family: Family::read(buf)?,
            database: DatabaseId::read(buf)?,
        })
    }
}

async fn open<E: Runtime>(context: &E) -> Result<Metadata<E, U64, Pin>, Error> {
    let config = Config { partition: PARTITION.into(), codec_config: () };
    Ok(Metadata::init(context.child("pinned"), config).await?)
}

/// What the storage is pinned to.
pub(super) async fn read<E: Runtime>(context: &E) -> Result<Option<Pin>, Error> {
    Ok(open(context).await?.get(&U64::new(RECORD)).copied())
}

/// Pins the storage. Durable on return.
pub(super) async fn write<E: Runtime>(context: &E, pin: Pin) -> Result<(), Error> {
    let mut metadata = open(context).await?;
    metadata.put(U64::new(RECORD), pin);
    metadata.sync().await?;
    Ok(())
}

/// Pins database, family and layout on first use; later, refuses others by name.
pub async fn check<E: Runtime>(context: &E, policy: &Policy) -> Result<(), Error> {
    let Some(pinned) = read(context).await? else {
        let (family, database) = (policy.family, policy.database);
        return write(context, Pin { layout: LAYOUT_VERSION, family, database }).await;
    };
    if pinned.layout != LAYOUT_VERSION {
        return Err(Error::Layout { found: pinned.layout, ours: LAYOUT_VERSION });
    }
    if pinned.family != policy.family {
        return Err(Error::Family { found: pinned.family, configured: policy.family });
    }
    if pinned.database != policy.database {
        return Err(Error::Pinned { pinned: pinned.database, configured: policy.database });
    }
    Ok(())
}
