//! What a replica's storage directory belongs to, fixed on first use.

use super::core::Error;
use crate::{
    checkpoint::{LAYOUT_VERSION, Policy},
    checkpoints,
    database::{
        GENERATIONS_PARTITION, required_partitions,
        types::{DatabaseId, Family, Mode},
    },
    rotations,
    runtime::Runtime,
    storage_record::{self, Records, is_written, partition_exists},
};
use commonware_codec::{Buf, Error as CodecError, FixedSize, Read, ReadExt as _, Write};
use commonware_runtime::BufMut;
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

/// The records of the partition: the pin, and a mark while the first start is not finished.
pub type Pins<E> = Records<E, U64, Pin>;
/// Key of the mark: there while what belongs beside the pin is not all written.
const UNFINISHED: u64 = 1;
/// Generations that are looked for where no pointer names any.
const GENERATIONS_LOOKED_FOR: u64 = 64;

/// Opens the record. Makes nothing.
pub async fn open<E: Runtime>(context: &E) -> Result<Pins<E>, storage_record::Error> {
    Records::open(context.child("pinned"), PARTITION).await
}

/// What the storage is pinned to.
pub(super) async fn read<E: Runtime>(context: &E) -> Result<Option<Pin>, Error> {
    let pins = open(context).await?;
    if pins.get(&U64::new(UNFINISHED)).is_some() {
        return Ok(None);
    }
    Ok(pins.get(&U64::new(RECORD)).copied())
}

/// Pins the storage to another database. Durable on return.
pub(super) async fn write<E: Runtime>(context: &E, pin: Pin) -> Result<(), Error> {
    let mut pins = open(context).await?;
    pins.update(|pins| {
        pins.insert(U64::new(RECORD), pin);
    })
    .await?;
    Ok(())
}

/// Pins database, family and layout on first use; later, refuses others by name, and a storage that is not whole. Says
/// whether a damaged copy of the pin was repaired.
///
/// A first start writes the pin with a mark before anything else and removes the mark last. So an interrupted one
/// differs from a storage that lost its pin, which is damage: nothing of it is touched.
pub async fn check<E: Runtime>(context: &E, policy: &Policy) -> Result<bool, Error> {
    let mut pins = match open(context).await {
        Ok(pins) => pins,
        // The very first write was torn, and nothing came after it.
        Err(error) if error.is_damage() && first_existing(context).await?.is_none() => {
            storage_record::remove_partition(context, PARTITION).await?;
            open(context).await?
        }
        Err(error) => return Err(error.into()),
    };
    let is_unfinished = pins.get(&U64::new(UNFINISHED)).is_some();
    match pins.get(&U64::new(RECORD)) {
        Some(pinned) if !is_unfinished => {
            compare(pinned, policy)?;
            require_all(context).await?;
            return Ok(pins.was_repaired());
        }
        Some(_) => {}
        None => {
            if let Some(found) = first_existing(context).await? {
                return Err(Error::Missing(format!(
                    "the pin ('data/{PARTITION}') is (there is 'data/{found}')"
                )));
            }
        }
    }
    begin(context, &mut pins, policy).await?;
    Ok(false)
}

fn compare(pinned: &Pin, policy: &Policy) -> Result<(), Error> {
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

/// Writes the pin and everything that a replica's storage has beside it.
async fn begin<E: Runtime>(
    context: &E,
    pins: &mut Pins<E>,
    policy: &Policy,
) -> Result<(), storage_record::Error> {
    let pin = Pin { layout: LAYOUT_VERSION, family: policy.family, database: policy.database };
    pins.update(|pins| {
        pins.insert(U64::new(RECORD), pin);
        pins.insert(U64::new(UNFINISHED), pin);
    })
    .await?;
    for partition in BESIDE {
        // Torn by an interrupted start, it could not be opened.
        storage_record::remove_partition(context, partition).await?;
        storage_record::begin(context.child("begin"), partition).await?;
    }
    pins.update(|pins| {
        pins.remove(&U64::new(UNFINISHED));
    })
    .await
}

/// Records that every replica's storage has beside the pin.
const BESIDE: [&str; 3] =
    [GENERATIONS_PARTITION, checkpoints::PARTITION, rotations::REPLICA_PARTITION];

/// The partitions of every replica's small records.
pub(super) fn partitions() -> Vec<String> {
    BESIDE.iter().copied().chain([PARTITION]).map(String::from).collect()
}

/// Whether everything is there that a replica's storage has. Checked before anything of it is opened for writing.
pub(super) async fn require_all<E: Runtime>(context: &E) -> Result<(), Error> {
    let mut missing = Vec::new();
    for partition in BESIDE {
        if !is_written(context, partition).await? {
            missing.push(format!("'data/{partition}'"));
        }
    }
    let verb = match missing.len() {
        0 => return Ok(()),
        1 => "is",
        _ => "are",
    };
    Err(Error::Missing(format!("{} {verb}", missing.join(", "))))
}

/// The first partition of a replica's storage, other than the pin, that exists.
async fn first_existing<E: Runtime>(context: &E) -> Result<Option<String>, storage_record::Error> {
    let mut names: Vec<String> = BESIDE.map(String::from).to_vec();
    for generation in 1..=GENERATIONS_LOOKED_FOR {
        for family in Family::ALL {
            for mode in [Mode::Full, Mode::Compact] {
                names.extend(required_partitions(*family, generation, mode));
            }
        }
    }
    names.dedup();
    for name in names {
        if partition_exists(context, &name).await? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
