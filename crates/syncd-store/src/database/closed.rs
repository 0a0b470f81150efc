//! Stands in for a database whose storage was given back.

use super::{
    Database, Entries, Error, Fetch, KeyProof, Operation, Prepared, Served, State,
    record::CommitMetadata, types::Change,
};
use bytes::Bytes;
use commonware_runtime::Handle;
use std::num::{NonZeroU64, NonZeroUsize};

/// A database that answers nothing.
pub struct Closed;

#[async_trait::async_trait]
impl Database for Closed {
    fn state(&self) -> Result<State, Error> {
        Err(Error::Poisoned)
    }

    fn retained_from(&self) -> Result<u64, Error> {
        Err(Error::Poisoned)
    }

    async fn get(&self, _: &[u8]) -> Result<Option<Bytes>, Error> {
        Err(Error::Poisoned)
    }

    async fn metadata(&self) -> Result<Option<CommitMetadata>, Error> {
        Err(Error::Poisoned)
    }

    async fn prepare(
        &self,
        _: Option<&Prepared>,
        _: &[Change],
        _: CommitMetadata,
    ) -> Result<Prepared, Error> {
        Err(Error::Poisoned)
    }

    async fn apply(&mut self, _: Prepared) -> Result<(), Error> {
        Err(Error::Poisoned)
    }

    async fn start_sync(&mut self) -> Result<Handle<()>, Error> {
        Err(Error::Poisoned)
    }

    async fn sync(&mut self) -> Result<(), Error> {
        Err(Error::Poisoned)
    }

    async fn prune(&mut self, _: u64) -> Result<(), Error> {
        Err(Error::Poisoned)
    }

    async fn serve(&self, _: Fetch, _: usize) -> Result<Served, Error> {
        Err(Error::Poisoned)
    }

    async fn operations(&self, _: u64, _: u64, _: NonZeroU64) -> Result<Vec<Operation>, Error> {
        Err(Error::Poisoned)
    }

    async fn entries(&self, _: u64, _: NonZeroUsize, _: usize) -> Result<Entries, Error> {
        Err(Error::Poisoned)
    }

    async fn prove_key(&self, _: &[u8]) -> Result<KeyProof, Error> {
        Err(Error::Poisoned)
    }

    async fn prove_operation(&self, _: u64, _: u64) -> Result<Bytes, Error> {
        Err(Error::Poisoned)
    }
}
