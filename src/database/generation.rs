//! Generations: complete sets of a database's partitions, adopted or dropped as a whole.
//!
//! Storage has no rename, so which generation is the database's is a record in the library's
//! `Metadata`, which replaces its content atomically. A state sync builds the next generation
//! while the active one serves; the pointer then moves, and only after that is the old one
//! removed. A crash at any point leaves either the old pointer or the new one, and what the
//! pointer does not name is garbage that the next opening removes.

use super::{Error, storage::partition_names, types::Family};
use crate::runtime::Runtime;
use commonware_storage::metadata::{Config, Metadata};
use commonware_utils::sequence::U64;

const ACTIVE: u64 = 0;
const BUILDING: u64 = 1;

/// Which generations there are.
pub struct Generations<E: Runtime> {
    metadata: Option<Metadata<E, U64, u64>>,
}

/// Every partition of a generation of a database and its commit log.
pub fn partitions(family: Family, generation: u64) -> Vec<String> {
    let mut names = partition_names(family, generation);
    names.extend(crate::commit_log::partition_names(generation));
    names
}

impl<E: Runtime> Generations<E> {
    /// Reads the pointer.
    pub async fn open(context: E) -> Result<Self, Error> {
        let config = Config { partition: "generations".into(), codec_config: () };
        let metadata = Metadata::init(context.child("generations"), config)
            .await
            .map_err(|error| Error::Storage(error.to_string()))?;
        Ok(Self { metadata: Some(metadata) })
    }

    fn value(&self, key: u64) -> Option<u64> {
        self.metadata.as_ref().and_then(|metadata| metadata.get(&U64::new(key)).copied())
    }

    /// The generation that serves, if any was adopted.
    pub fn active(&self) -> Option<u64> {
        self.value(ACTIVE)
    }

    /// The generation that a state sync is building, if one was begun.
    pub fn building(&self) -> Option<u64> {
        self.value(BUILDING)
    }

    /// The generation that a state sync should build in: the one begun, else the next.
    pub async fn build(&mut self) -> Result<u64, Error> {
        if let Some(building) = self.building() {
            return Ok(building);
        }
        let next = self.active().map_or(1, |active| active + 1);
        self.update(|metadata| {
            metadata.put(U64::new(BUILDING), next);
        })
        .await?;
        Ok(next)
    }

    /// Makes `generation` the one that serves.
    pub async fn adopt(&mut self, generation: u64) -> Result<(), Error> {
        self.update(|metadata| {
            metadata.put(U64::new(ACTIVE), generation);
            metadata.remove(&U64::new(BUILDING));
        })
        .await
    }

    /// Forgets the generation being built; the next one gets a new number. Its partitions are
    /// the caller's to remove.
    pub async fn abandon(&mut self, generation: u64) -> Result<(), Error> {
        self.update(|metadata| {
            metadata.put(U64::new(BUILDING), generation + 1);
        })
        .await
    }

    /// Forgets every generation and removes its partitions; numbers are not used again.
    pub async fn forget(&mut self, context: &E, family: Family) -> Result<(), Error> {
        let active = self.active();
        let building = self.building();
        let next = active.into_iter().chain(building).max().map_or(1, |newest| newest + 1);
        self.update(|metadata| {
            metadata.remove(&U64::new(ACTIVE));
            metadata.put(U64::new(BUILDING), next);
        })
        .await?;
        for generation in active.into_iter().chain(building) {
            Self::remove(context, family, generation).await?;
        }
        Ok(())
    }

    /// Removes the partitions of `generation`; those that do not exist are no error.
    pub async fn remove(context: &E, family: Family, generation: u64) -> Result<(), Error> {
        for partition in partitions(family, generation) {
            match context.remove(&partition, None).await {
                Ok(()) | Err(commonware_runtime::Error::PartitionMissing(_)) => {}
                Err(error) => return Err(Error::Storage(error.to_string())),
            }
        }
        Ok(())
    }

    async fn update(
        &mut self,
        change: impl FnOnce(&mut Metadata<E, U64, u64>),
    ) -> Result<(), Error> {
        let mut metadata = self.metadata.take().ok_or(Error::Poisoned)?;
        change(&mut metadata);
        let metadata = metadata.sync().await.map_err(|error| Error::Storage(error.to_string()))?;
        self.metadata = Some(metadata);
        Ok(())
    }
}
