//! Generations: complete sets of a database's partitions, adopted or dropped as a whole.
//!
//! Storage has no rename, so which generation is the database's is a [record](crate::storage_record), which is replaced
//! atomically. A state sync builds the next generation while the active one serves; the pointer then moves, and only
//! after that is the old one removed. A crash at any point leaves either the old pointer or the new one. What the pointer
//! does not name is garbage: the record also says from which number on there may be any, and [`Generations::sweep`]
//! removes all of it, at each opening and after each adoption.

use super::{
    Error,
    storage::{partition_names, required_partition_names},
    types::{Family, Mode},
};
use crate::{
    runtime::{Runtime, StorageGuard, unguarded},
    storage_record::{self, Records},
};
use commonware_utils::{sequence::U64, sync::Mutex};
use std::{collections::BTreeSet, sync::Arc};

/// Partition of the pointer.
pub const PARTITION: &str = "generations";
const ACTIVE: u64 = 0;
const BUILDING: u64 = 1;
/// Every generation below this number is removed.
const SWEPT: u64 = 2;

/// Which generations there are.
pub struct Generations<E: Runtime> {
    records: Records<E, U64, u64>,
    guard: StorageGuard,
    kept: Kept,
}

/// Generations that are open although another one serves.
type Kept = Arc<Mutex<BTreeSet<u64>>>;

/// Keeps a generation from being swept while it lives.
pub struct Keep {
    kept: Kept,
    generation: u64,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.kept.lock().remove(&self.generation);
    }
}

/// Every partition of a generation of a database and its commit log.
pub fn partitions(family: Family, generation: u64) -> Vec<String> {
    let mut names = partition_names(family, generation);
    names.extend(crate::commit_log::partition_names(generation));
    names
}

/// The partitions that a generation always has, whatever was written to it.
pub fn required_partitions(family: Family, generation: u64, mode: Mode) -> Vec<String> {
    let mut names = required_partition_names(family, generation, mode);
    names.extend(crate::commit_log::required_partition_names(generation));
    names
}

impl From<storage_record::Error> for Error {
    fn from(error: storage_record::Error) -> Self {
        if error.is_damage() {
            Self::Corrupt(error.to_string())
        } else {
            Self::Storage(error.to_string())
        }
    }
}

impl<E: Runtime> Generations<E> {
    /// Reads the pointer. Makes nothing.
    pub async fn open(context: E) -> Result<Self, Error> {
        let records = Records::open(context, PARTITION).await?;
        Ok(Self { records, guard: unguarded(), kept: Kept::default() })
    }

    /// Asks `guard` from here on before a generation is begun or adopted.
    pub fn guard_with(&mut self, guard: StorageGuard) {
        self.guard = guard;
    }

    /// Says whether the storage is still where it was.
    pub fn guard(&self) -> StorageGuard {
        self.guard.clone()
    }

    /// Writes the pointer of a storage without generations. Durable on return.
    pub async fn begin(&mut self) -> Result<(), Error> {
        Ok(self.records.update(|_| ()).await?)
    }

    /// Whether the pointer was ever written.
    pub const fn is_written(&self) -> bool {
        self.records.is_written()
    }

    /// Whether one copy of the pointer was found damaged.
    pub const fn was_repaired(&self) -> bool {
        self.records.was_repaired()
    }

    fn value(&self, key: u64) -> Option<u64> {
        self.records.get(&U64::new(key)).copied()
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
        self.guard.check().map_err(Error::Gone)?;
        if let Some(building) = self.building() {
            return Ok(building);
        }
        let next = self.active().map_or(1, |active| active + 1);
        self.records
            .update(|records| {
                records.insert(U64::new(BUILDING), next);
            })
            .await?;
        Ok(next)
    }

    /// Makes `generation` the one that serves.
    pub async fn adopt(&mut self, generation: u64) -> Result<(), Error> {
        self.guard.check().map_err(Error::Gone)?;
        self.records
            .update(|records| {
                records.insert(U64::new(ACTIVE), generation);
                records.remove(&U64::new(BUILDING));
            })
            .await?;
        Ok(())
    }

    /// Forgets the generation being built; the next one gets a new number. Its partitions are
    /// the caller's to remove.
    pub async fn abandon(&mut self, generation: u64) -> Result<(), Error> {
        self.records
            .update(|records| {
                records.insert(U64::new(BUILDING), generation + 1);
            })
            .await?;
        Ok(())
    }

    /// Forgets every generation and removes its partitions; numbers are not used again. Safe to run again if it was
    /// interrupted.
    pub async fn forget(&mut self, context: &E, family: Family) -> Result<(), Error> {
        if self.active().is_some() {
            let newest = self.active().into_iter().chain(self.building()).max().unwrap_or(0);
            self.records
                .update(|records| {
                    records.remove(&U64::new(ACTIVE));
                    records.insert(U64::new(BUILDING), newest + 1);
                })
                .await?;
        } else if let Some(building) = self.building() {
            self.abandon(building).await?;
        }
        self.sweep(context, family).await
    }

    /// Keeps `generation`, which is still open, from being swept.
    pub fn keep(&self, generation: u64) -> Keep {
        self.kept.lock().insert(generation);
        Keep { kept: self.kept.clone(), generation }
    }

    /// Removes every generation that the pointer does not name, unless it is [kept](Generations::keep). Must not be
    /// called while another one is open.
    pub async fn sweep(&mut self, context: &E, family: Family) -> Result<(), Error> {
        let named = [self.active(), self.building()];
        let Some(newest) = named.into_iter().flatten().max() else { return Ok(()) };
        let kept = self.kept.lock().clone();
        // What is kept is swept the next time.
        let remaining = named.into_iter().flatten().chain(kept.first().copied());
        let oldest = remaining.min().unwrap_or(newest);
        // Replicas count from 1: 0 is the generation of a server's storage.
        let from = self.value(SWEPT).unwrap_or(1).max(1);
        let is_garbage =
            |generation: &u64| !named.contains(&Some(*generation)) && !kept.contains(generation);
        for garbage in (from..newest).filter(is_garbage) {
            Self::remove(context, family, garbage).await?;
        }
        if oldest > from {
            self.records
                .update(|records| {
                    records.insert(U64::new(SWEPT), oldest);
                })
                .await?;
        }
        Ok(())
    }

    /// Removes the partitions of `generation`; those that do not exist are no error.
    pub async fn remove(context: &E, family: Family, generation: u64) -> Result<(), Error> {
        for partition in partitions(family, generation) {
            storage_record::remove_partition(context, &partition).await?;
        }
        Ok(())
    }
}
