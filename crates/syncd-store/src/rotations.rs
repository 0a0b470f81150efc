//! The rotations of the publisher key, kept across restarts.

use crate::{
    runtime::Runtime,
    storage_record::{Error, Records},
};
use commonware_codec::Encode as _;
use commonware_cryptography::{Hasher as _, Sha256};
use commonware_utils::sequence::FixedBytes;
use syncd_proto::checkpoint::{Rotation, Rotations};

/// Partition of a publisher's own rotations.
pub const PUBLISHER_PARTITION: &str = "publisher-keys";
/// Partition of the rotations that a replica learned.
pub const REPLICA_PARTITION: &str = "learned-publisher-keys";

/// The rotations on disk, each under the digest of what it says: a rotation is kept whatever
/// others are known, and in whatever order they were learned.
pub struct RotationStore<E: Runtime> {
    records: Records<E, Name, Rotation>,
}

/// Digest of a rotation's encoding.
type Name = FixedBytes<32>;

fn name(rotation: &Rotation) -> Name {
    let mut digest = [0; 32];
    digest.copy_from_slice(Sha256::hash(&[&rotation.encode()]).as_ref());
    Name::new(digest)
}

impl<E: Runtime> RotationStore<E> {
    /// Opens a publisher's own chain. Makes nothing.
    pub async fn of_publisher(context: E) -> Result<Self, Error> {
        Ok(Self { records: Records::open(context, PUBLISHER_PARTITION).await? })
    }

    /// Opens what a replica learned. Makes nothing.
    pub async fn of_replica(context: E) -> Result<Self, Error> {
        Ok(Self { records: Records::open(context, REPLICA_PARTITION).await? })
    }

    /// Whether one copy was found damaged.
    pub const fn was_repaired(&self) -> bool {
        self.records.was_repaired()
    }

    /// Every rotation kept, in the order in which the keys took over.
    pub fn all(&self) -> Rotations {
        let mut rotations: Vec<_> = self.records.values().values().cloned().collect();
        rotations.sort_by_key(|rotation| rotation.from);
        Rotations(rotations)
    }

    /// Keeps `rotations` beside those kept before. Durable on return.
    ///
    /// # Errors
    ///
    /// Nobody knows which of them were written; the next call writes all that are missing.
    pub async fn keep(&mut self, rotations: &Rotations) -> Result<(), Error> {
        let new = rotations.0.iter().map(|rotation| (name(rotation), rotation.clone()));
        self.records.update(|records| records.extend(new)).await
    }

    /// Forgets all of them: they were another database's, or there are none yet. Durable on return.
    pub async fn clear(&mut self) -> Result<(), Error> {
        self.records.update(std::collections::BTreeMap::clear).await
    }
}
