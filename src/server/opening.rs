//! Opening a server's storage: what is there, whether it is whole, and what a first start makes.
//!
//! A first start writes its record as [`Stage::Creating`] before anything else and completes it last. So an interrupted
//! one, whose remains may be removed, differs from a storage that lost its record, which is damage: nothing of it is
//! touched.

use super::{
    core::{Error, GENERATION, Setup, place},
    idempotency::{CARRIED_PARTITION, CarriedKeys, Idempotency},
    state::{self, Record, Stage, State},
};
use crate::{
    checkpoint::{Checkpoint, Parameters, Rotations, SignedCheckpoint, unix_ms},
    database::{self, Generations, Kind, OpenAt, record::CommitMetadata, types::Family},
    ledger::Ledger,
    rotations::{self, RotationStore},
    runtime::Runtime,
    storage_record::{self, is_written, partition_exists},
    telemetry::storage::StorageErrors,
};
use commonware_cryptography::{Signer as _, ed25519::PublicKey};

/// A server's storage, ready for work.
pub(super) struct Opened<E: Runtime> {
    /// What it says of itself.
    pub record: Record,
    /// Whether it was made just now.
    pub is_new: bool,
    /// How the publisher's keys followed each other.
    pub rotations: Rotations,
    /// Its database and log.
    pub ledger: Ledger<E>,
    /// Requests that were answered.
    pub idempotency: Idempotency,
}

/// Opens the storage, or makes a new one where there is nothing of ours.
pub(super) async fn open<E: Runtime>(
    context: &E,
    setup: &Setup,
    errors: &StorageErrors,
) -> Result<Opened<E>, Error> {
    let (mut state, record) = open_record(context, setup).await?;
    if state.was_repaired() {
        errors.count("record");
    }
    let is_new = record.stage == Stage::Creating;
    if !is_new {
        require_all(context, &record).await?;
    }
    let mut keys = RotationStore::of_publisher(context.child("publisher_keys")).await?;
    if is_new {
        keys.clear().await?;
    }
    if keys.was_repaired() {
        errors.count("record");
    }
    let rotations = keys.all();
    let (ledger, idempotency) = open_ledger(context, setup, &record).await?;
    check_publisher(&ledger.head(), &rotations, &setup.publisher.public_key())?;
    let record = Record { stage: Stage::Complete, ..record };
    if is_new {
        state.put(record.clone()).await?;
    }
    Ok(Opened { record, is_new, rotations, ledger, idempotency })
}

/// The record of the storage, or that of a new database, which is written.
async fn open_record<E: Runtime>(context: &E, setup: &Setup) -> Result<(State<E>, Record), Error> {
    let mut state = match State::open(context.child("state")).await {
        Ok(state) => state,
        // The very first write was torn, and nothing came after it.
        Err(error) if error.is_damage() && first_existing(context).await?.is_none() => {
            storage_record::remove_partition(context, state::PARTITION).await?;
            State::open(context.child("state")).await?
        }
        Err(error) => return Err(error.into()),
    };
    match state.get() {
        Some(record) if record.stage != Stage::Creating => {
            check_record(&record, setup)?;
            return Ok((state, record));
        }
        Some(interrupted) => {
            tracing::info!("the first start was interrupted: what it made is made again");
            clear(context, interrupted.parameters.family).await?;
        }
        None => {
            if let Some(found) = first_existing(context).await? {
                return Err(Error::Missing(format!(
                    "the record of the database ('data/{}') is (there is 'data/{found}')",
                    state::PARTITION
                )));
            }
        }
    }
    let record = new_record(context, setup);
    state.put(record.clone()).await?;
    Ok((state, record))
}

/// Removes what a first start makes after its record.
async fn clear<E: Runtime>(context: &E, family: Family) -> Result<(), Error> {
    Generations::remove(context, family, GENERATION).await?;
    storage_record::remove_partition(context, rotations::PUBLISHER_PARTITION).await?;
    Ok(())
}

fn new_record<E: Runtime>(context: &E, setup: &Setup) -> Record {
    let mut random = [0; 32];
    rand_core::Rng::fill_bytes(&mut context.child("random"), &mut random);
    let Kind { family, hash } = setup.kind;
    let parameters = Parameters::new(random, setup.publisher.public_key(), family, hash);
    let generated = setup.generator.changes > 0;
    Record { parameters, generated, storage: setup.storage, stage: Stage::Creating }
}

/// The first partition of a server's storage, other than its record, that exists.
async fn first_existing<E: Runtime>(context: &E) -> Result<Option<String>, storage_record::Error> {
    let mut names = vec![rotations::PUBLISHER_PARTITION.to_string(), CARRIED_PARTITION.into()];
    for family in Family::ALL {
        names.extend(database::partitions(*family, GENERATION));
    }
    for name in names {
        if partition_exists(context, &name).await? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The partitions of every server's small records.
pub(super) fn record_partitions() -> [String; 2] {
    [state::PARTITION, rotations::PUBLISHER_PARTITION].map(String::from)
}

/// Whether everything is there that a complete storage has. Checked before anything of it is opened: opening makes what
/// it does not find.
pub(super) async fn require_all<E: Runtime>(context: &E, record: &Record) -> Result<(), Error> {
    let family = record.parameters.family;
    let mut missing = Vec::new();
    if !is_written(context, rotations::PUBLISHER_PARTITION).await? {
        missing.push(rotations::PUBLISHER_PARTITION.to_string());
    }
    for name in database::required_partitions(family, GENERATION, record.storage) {
        if !partition_exists(context, &name).await? {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|name| format!("'data/{name}'")).collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    Err(Error::Missing(format!("{} {verb}", names.join(", "))))
}

/// The storage must be laid out as this program does it.
pub(super) fn check_layout(found: &Parameters) -> Result<(), Error> {
    let ours = Parameters::new([0; 32], found.genesis.clone(), found.family, found.hash);
    if (found.merkle, found.codec, found.layout) != (ours.merkle, ours.codec, ours.layout) {
        return Err(Error::Mismatch(format!(
            "the storage has layout {}, codec {}, merkle shape {}; this program has {}, {}, {}",
            found.layout, found.codec, found.merkle, ours.layout, ours.codec, ours.merkle
        )));
    }
    Ok(())
}

/// The storage must hold what was asked for, in a form that this program knows.
fn check_record(record: &Record, setup: &Setup) -> Result<(), Error> {
    let mismatch = |text: String| Err(Error::Mismatch(text));
    let found = &record.parameters;
    check_layout(found)?;
    if record.stage == Stage::EpochPending {
        return mismatch("'syncctl new-epoch' was interrupted: run it again".into());
    }
    if found.family != setup.kind.family {
        return mismatch(format!(
            "the storage holds a database of family '{}', but --db says '{}'",
            found.family, setup.kind.family
        ));
    }
    if record.storage != setup.storage {
        return mismatch(format!(
            "the storage directory is '{}', but --storage says '{}'",
            record.storage, setup.storage
        ));
    }
    if setup.hash_is_chosen && found.hash != setup.kind.hash {
        return mismatch(format!(
            "the storage holds a database with hash '{}', but --hash says '{}'",
            found.hash, setup.kind.hash
        ));
    }
    Ok(())
}

/// Opens the ledger, or makes an empty one.
async fn open_ledger<E: Runtime>(
    context: &E,
    setup: &Setup,
    record: &Record,
) -> Result<(Ledger<E>, Idempotency), Error> {
    let mut idempotency = Idempotency::default();
    if record.stage == Stage::Creating {
        return Ok((create_ledger(context, setup, record).await?, idempotency));
    }
    let id = record.identity().id;
    let carried = CarriedKeys::open(context.child("carried_keys")).await?;
    idempotency.carry(&carried, id);
    if carried.is_stale(id) {
        CarriedKeys::remove(context).await?;
    }
    let opened = Ledger::open(context, place(setup.storage), false, |commit| {
        idempotency.remember(commit);
    })
    .await?;
    let ledger =
        opened.ok_or_else(|| Error::Missing("every record of the commit log is".into()))?;
    let head = ledger.head();
    if head.checkpoint.database != id {
        return Err(Error::Mismatch(format!(
            "the commit log is of database {}, the storage record of {id}",
            head.checkpoint.database
        )));
    }
    Ok((ledger, idempotency))
}

/// The key must be the one that signs now.
fn check_publisher(
    head: &SignedCheckpoint,
    rotations: &Rotations,
    key: &PublicKey,
) -> Result<(), Error> {
    let rotated = rotations.0.last().map(|rotation| &rotation.successor);
    if rotated.is_some_and(|successor| *successor != head.publisher) {
        let text = "'syncctl rotate-key' was interrupted: run it again";
        return Err(Error::Mismatch(text.into()));
    }
    if head.publisher != *key {
        return Err(Error::Mismatch(format!(
            "the newest commit was signed by publisher key {}, but --publisher-key is {key}; a new key takes over by 'syncctl rotate-key'",
            head.publisher
        )));
    }
    Ok(())
}

/// A ledger that begins with the empty database's state, signed as sequence 0.
async fn create_ledger<E: Runtime>(
    context: &E,
    setup: &Setup,
    record: &Record,
) -> Result<Ledger<E>, Error> {
    let kind = record.parameters.kind();
    let database =
        database::open(context.child("database"), kind, place(setup.storage), OpenAt::Latest)
            .await?;
    let state = database.state()?;
    let now_ms = unix_ms(context.current());
    let made = CommitMetadata { sequence: 0, committed_at_ms: now_ms };
    let checkpoint = Checkpoint::of_state(record.identity().id, kind, state, made, now_ms);
    let base = checkpoint.sign(&setup.publisher);
    Ok(Ledger::create(context, place(setup.storage), database, base).await?)
}
