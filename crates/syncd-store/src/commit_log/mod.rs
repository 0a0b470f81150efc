//! The commit log: the truth that the database is the sum of.
//!
//! One [`Commit`] is one durable record: the changes, the state they were executed on, and the
//! signed checkpoint they lead to. A record's position in the log is its sequence. The log begins
//! with a base record: the state that everything after it builds on.
//!
//! **Invariants.** A record is given out only once it is synced. Records are contiguous: each
//! builds on the checkpoint of the one before. The newest record is never trimmed, nor one that
//! the database has not made durable yet.

mod age;
mod mark;

pub use age::CLOCK_TRUSTED_AFTER;
pub use syncd_proto::commit::{
    Base, CHANGES_MAX, Commit, IDEMPOTENCY_ENTRIES_MAX, IdempotencyEntry, RECORD_VERSION,
};

use crate::{
    runtime::{Runtime, StorageGuard},
    watch,
};
use age::{Ages, Made};
use commonware_codec::EncodeSize as _;
use commonware_runtime::{ReadOptions, buffer::paged::CacheRef};
use commonware_storage::journal::{
    self,
    contiguous::{
        Contiguous as _, Many,
        variable::{Config, Journal},
    },
};
use commonware_utils::{
    NZUsize,
    sync::{AsyncRwLock, Mutex},
};
use futures::StreamExt as _;
use mark::Mark;
use std::{collections::VecDeque, num::NonZeroUsize, sync::OnceLock, time::Duration};
use syncd_proto::checkpoint::{SignedCheckpoint, unix_ms};

/// Memory for pages of the log, in bytes: the tail that followers read stays in it.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Bytes gathered before the file is written.
const WRITE_BUFFER: NonZeroUsize = NZUsize!(256 * 1024);
/// Bytes read ahead when the log is scanned.
const REPLAY_BUFFER: NonZeroUsize = NZUsize!(1024 * 1024);

/// What went wrong in the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An earlier append failed: nothing may be appended in this process any more.
    #[error("an earlier failure closed the commit log")]
    Poisoned,
    /// Records are damaged below the acknowledged watermark, or do not follow each other.
    #[error("commit log damaged: {0}")]
    Corrupt(String),
    /// The record was trimmed.
    #[error("the commit log begins at sequence {first}")]
    Trimmed {
        /// The oldest sequence kept.
        first: u64,
    },
    /// There is no such record yet.
    #[error("the commit log ends at sequence {last}")]
    Ahead {
        /// The newest sequence kept.
        last: u64,
    },
    /// The storage failed.
    #[error("commit log: {0}")]
    Storage(String),
    /// The storage is not where it was: what is written now nobody will find.
    #[error("{0}")]
    Gone(String),
}

impl From<journal::Error> for Error {
    fn from(error: journal::Error) -> Self {
        if crate::damage::of_journal(&error) {
            Self::Corrupt(error.to_string())
        } else {
            Self::Storage(error.to_string())
        }
    }
}

/// How much of the log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Records younger than this are kept, while `bytes` allows. A step of the wall clock makes no
    /// record older.
    pub age: Duration,
    /// Most bytes kept.
    pub bytes: u64,
    /// Most segments kept: each takes two file descriptors.
    pub segments: usize,
}

/// What is known of a segment without reading it.
#[derive(Debug)]
struct Segment {
    index: u64,
    bytes: u64,
    newest: Made,
}

/// The range of records that may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Oldest sequence kept.
    pub first: u64,
    /// Newest synced sequence.
    pub last: u64,
}

/// A durable, bounded sequence of commits with one appender and many readers.
pub struct CommitLog<E: Runtime> {
    clock: E,
    journal: AsyncRwLock<Option<Journal<E, Commit>>>,
    bounds: watch::Sender<Bounds>,
    segments: Mutex<VecDeque<Segment>>,
    ages: Mutex<Ages>,
    guard: OnceLock<StorageGuard>,
    mark: Mark<E>,
}

/// How the names of all partitions of logs begin.
pub const PARTITIONS: &str = "commits-";
const MARK_SUFFIX: &str = "_mark";

/// Name of a generation's log, before the library's suffixes.
fn partition(generation: u64) -> String {
    format!("{PARTITIONS}{generation}")
}

/// Every partition that a generation's log may have, for its removal.
pub fn partition_names(generation: u64) -> Vec<String> {
    let partition = partition(generation);
    ["_data", "_offsets-blobs", "_offsets-metadata", "_offsets", MARK_SUFFIX]
        .iter()
        .map(|suffix| format!("{partition}{suffix}"))
        .collect()
}

/// What a generation's mark is kept in.
fn mark_partition(generation: u64) -> String {
    format!("{}{MARK_SUFFIX}", partition(generation))
}

/// The partitions that a generation's log has from its making on.
pub fn required_partition_names(generation: u64) -> Vec<String> {
    let partition = partition(generation);
    ["_data", "_offsets-blobs", "_offsets-metadata", MARK_SUFFIX]
        .iter()
        .map(|suffix| format!("{partition}{suffix}"))
        .collect()
}

fn config<E: Runtime>(generation: u64) -> Config<()> {
    let pages = NonZeroUsize::new(CACHE_BYTES / 4096).expect("the cache holds pages");
    Config {
        partition: partition(generation),
        items_per_section: E::LOG_SEGMENT_RECORDS,
        compression: None,
        codec_config: (),
        page_cache: CacheRef::new(crate::database::LOG_PAGE_SIZE, pages),
        write_buffer: WRITE_BUFFER,
        replay_buffer: REPLAY_BUFFER,
    }
}

impl<E: Runtime> CommitLog<E> {
    /// Begins a log with `base`, dropping whatever the generation's log held. Durable on return.
    pub async fn create(context: E, generation: u64, base: &Commit) -> Result<Self, Error> {
        let clock = context.child("clock");
        // Whatever state it is in: what is damaged could not be opened.
        for partition in partition_names(generation) {
            crate::storage_record::remove_partition(&clock, &partition)
                .await
                .map_err(|error| Error::Storage(error.to_string()))?;
        }
        let journal =
            Journal::init_at_size(context, config::<E>(generation), base.sequence()).await?;
        let (journal, _) = journal.append(base).await?;
        let journal = journal.sync().await?;
        let bounds = Bounds { first: base.sequence(), last: base.sequence() };
        let mark = Mark::create(&clock, &mark_partition(generation), bounds.last).await?;
        let log = Self::with(clock, journal, bounds, mark);
        log.account(std::slice::from_ref(base));
        Ok(log)
    }

    /// The newest sequence that is known to have been given out of a generation's log, whatever state that is in.
    pub async fn given_out(context: &E, generation: u64) -> Option<u64> {
        let partition = mark_partition(generation);
        if !crate::storage_record::partition_exists(context, &partition).await.ok()? {
            return None;
        }
        let mark = Mark::open(context, &partition).await.ok()?;
        mark.close().await;
        mark.found()
    }

    /// Opens a log and shows every record kept to `visit`, oldest first. `None` if there is no
    /// log. What a crash tore off at the end is dropped; whether it had been given out,
    /// [`Self::given_out_before`] tells.
    pub async fn open(
        context: E,
        generation: u64,
        mut visit: impl FnMut(&Commit),
    ) -> Result<Option<Self>, Error> {
        let clock = context.child("clock");
        let journal = Journal::<E, Commit>::init(context, config::<E>(generation)).await?;
        // The recovered tail is made durable before anything of it is served.
        let journal = journal.sync().await?;
        let range = journal.bounds();
        if range.is_empty() {
            // Left as it is: whether its records were lost is for the caller to say.
            return Ok(None);
        }
        let bounds = Bounds { first: range.start, last: range.end - 1 };
        let mark = Mark::open(&clock, &mark_partition(generation)).await?;
        let log = Self::with(clock, journal, bounds, mark);
        log.scan(&mut visit).await?;
        Ok(Some(log))
    }

    fn with(clock: E, journal: Journal<E, Commit>, bounds: Bounds, mark: Mark<E>) -> Self {
        let ages = Ages::new(clock.monotonic(), unix_ms(clock.current()));
        Self {
            clock,
            journal: AsyncRwLock::new(Some(journal)),
            bounds: watch::Sender::new(bounds),
            segments: Mutex::new(VecDeque::new()),
            ages: Mutex::new(ages),
            guard: OnceLock::new(),
            mark,
        }
    }

    /// Reads the whole log once: checks that records follow each other, and accounts for them.
    async fn scan(&self, visit: &mut impl FnMut(&Commit)) -> Result<(), Error> {
        let journal = self.journal.read().await;
        let journal = journal.as_ref().ok_or(Error::Poisoned)?;
        let stream =
            journal.replay(journal.bounds(), REPLAY_BUFFER, ReadOptions::DONT_CACHE).await?;
        futures::pin_mut!(stream);
        let mut previous: Option<SignedCheckpoint> = None;
        while let Some(batch) = stream.next().await {
            for (position, commit) in batch? {
                let follows = previous.as_ref().is_none_or(|previous| commit.follows(previous));
                if commit.sequence() != position || !follows {
                    return Err(Error::Corrupt(format!(
                        "the record at {position} does not follow the one before it"
                    )));
                }
                visit(&commit);
                self.enter(&commit, Made::Before(commit.checkpoint.checkpoint.committed_at_ms));
                previous = Some(commit.checkpoint);
            }
        }
        Ok(())
    }

    fn account(&self, commits: &[Commit]) {
        let now = self.clock.monotonic();
        commits.iter().for_each(|commit| self.enter(commit, Made::Here(now)));
    }

    fn enter(&self, commit: &Commit, made: Made) {
        let mut segments = self.segments.lock();
        let index = commit.sequence() / E::LOG_SEGMENT_RECORDS.get();
        let bytes = commit.encode_size() as u64;
        match segments.back_mut() {
            Some(segment) if segment.index == index => {
                segment.bytes += bytes;
                segment.newest = made;
            }
            _ => segments.push_back(Segment { index, bytes, newest: made }),
        }
    }

    /// Appends `commits` with one sync. On return they are durable and may be read.
    ///
    /// # Errors
    ///
    /// Any error is final: nobody knows how much reached the disk, so nothing more may be
    /// appended (or signed) in this process.
    pub async fn append(&self, commits: &[Commit]) -> Result<(), Error> {
        let Some(newest) = commits.last() else { return Ok(()) };
        // The library makes directories that it does not find.
        self.check_guard()?;
        let handle = {
            let mut slot = self.journal.write().await;
            let journal = slot.take().ok_or(Error::Poisoned)?;
            let (journal, position) = journal.append_many(Many::Flat(commits)).await?;
            assert_eq!(position, newest.sequence(), "a record's position is its sequence");
            let (journal, handle) = journal.start_sync().await?;
            *slot = Some(journal);
            handle
        };
        // Readers go on while the disk works.
        if let Err(error) = handle.await {
            self.journal.write().await.take();
            return Err(Error::Storage(error.to_string()));
        }
        let written = match self.check_guard() {
            Ok(()) => self.mark.set(newest.sequence()).await,
            gone => gone,
        };
        if let Err(error) = written {
            self.journal.write().await.take();
            return Err(error);
        }
        self.account(commits);
        self.bounds.send_modify(|bounds| bounds.last = newest.sequence());
        Ok(())
    }

    /// The newest sequence that is known to have been given out before this log was opened. Beyond
    /// the end of the log, it was lost. `None` if what says so is missing or damaged.
    pub const fn given_out_before(&self) -> Option<u64> {
        self.mark.found()
    }

    /// Asks `guard` from here on before records are given out. The first one counts.
    pub fn guard_with(&self, guard: StorageGuard) {
        let _ = self.guard.set(guard);
    }

    /// Whether the storage is still where it was.
    pub fn check_guard(&self) -> Result<(), Error> {
        self.guard.get().map_or(Ok(()), |guard| guard.check()).map_err(Error::Gone)
    }

    /// The records that may be read now.
    pub fn bounds(&self) -> Bounds {
        *self.bounds.borrow()
    }

    /// Tells of new bounds.
    pub fn subscribe(&self) -> watch::Receiver<Bounds> {
        self.bounds.subscribe()
    }

    /// Bytes of all records kept.
    pub fn bytes(&self) -> u64 {
        self.segments.lock().iter().map(|segment| segment.bytes).sum()
    }

    /// Segments kept.
    pub fn segments(&self) -> usize {
        self.segments.lock().len()
    }

    /// The record of `sequence`.
    pub async fn read(&self, sequence: u64) -> Result<Commit, Error> {
        let Bounds { first, last } = self.bounds();
        if sequence > last {
            return Err(Error::Ahead { last });
        }
        if sequence < first {
            return Err(Error::Trimmed { first });
        }
        let journal = self.journal.read().await;
        let journal = journal.as_ref().ok_or(Error::Poisoned)?;
        match journal.read(sequence).await {
            Err(journal::Error::ItemPruned(_)) => {
                Err(Error::Trimmed { first: self.bounds().first })
            }
            result => Ok(result?),
        }
    }

    /// The record that leads to a state of `size` operations, if it is kept.
    pub async fn find_size(&self, size: u64) -> Result<Option<Commit>, Error> {
        let Bounds { first: mut low, last: mut high } = self.bounds();
        while low <= high {
            let middle = low + (high - low) / 2;
            let commit = self.read(middle).await?;
            match commit.checkpoint.checkpoint.size.cmp(&size) {
                std::cmp::Ordering::Equal => return Ok(Some(commit)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater if middle == 0 => return Ok(None),
                std::cmp::Ordering::Greater => high = middle - 1,
            }
        }
        Ok(None)
    }

    /// Drops the oldest segments that `retention` does not keep and whose records all lie below
    /// `keep_from` (what the database has not made durable, and what sessions still need).
    pub async fn trim(&self, retention: Retention, keep_from: u64) -> Result<(), Error> {
        let Some(first) = self.first_after_trim(retention, keep_from) else { return Ok(()) };
        // Readers are told before the records go.
        self.bounds.send_modify(|bounds| bounds.first = bounds.first.max(first));
        let mut slot = self.journal.write().await;
        let journal = slot.take().ok_or(Error::Poisoned)?;
        let (journal, _) = journal.prune(first).await?;
        *slot = Some(journal);
        self.segments
            .lock()
            .retain(|segment| segment.index >= first / E::LOG_SEGMENT_RECORDS.get());
        Ok(())
    }

    /// First sequence to keep, if there is anything to drop.
    fn first_after_trim(&self, retention: Retention, keep_from: u64) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut ages = self.ages.lock();
        ages.look(now, unix_ms(self.clock.current()));
        let segments = self.segments.lock();
        let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        // A record is no younger than a later one, whatever its own time says: one that was made
        // while the clock was ahead does not keep what came before it.
        let age = |segment: &Segment| ages.of(segment.newest, now);
        let mut oldest = segments.iter().map(age).collect::<Vec<_>>();
        for n in (1..oldest.len()).rev() {
            oldest[n - 1] = oldest[n - 1].max(oldest[n]);
        }
        let keep_from = keep_from.min(self.bounds().last);
        let mut first = None;
        for (older, (segment, age)) in segments.iter().zip(oldest).enumerate() {
            let end = (segment.index + 1) * E::LOG_SEGMENT_RECORDS.get();
            let expendable = bytes > retention.bytes
                || segments.len() - older > retention.segments
                || age > retention.age;
            if !expendable || end > keep_from {
                break;
            }
            bytes -= segment.bytes;
            first = Some(end);
        }
        first
    }

    /// Advances the recovery point to the end, so that the next opening has nothing to repair, and makes durable what says
    /// how far that is.
    pub async fn sync(&self) -> Result<(), Error> {
        self.mark.sync().await?;
        let mut slot = self.journal.write().await;
        let journal = slot.take().ok_or(Error::Poisoned)?;
        *slot = Some(journal.sync().await?);
        Ok(())
    }

    /// Whether records can be read and appended: no earlier failure closed the log.
    pub async fn is_open(&self) -> bool {
        self.journal.read().await.is_some()
    }

    /// Closes the files, so that they can be opened or removed.
    pub async fn close(&self) {
        self.journal.write().await.take();
        self.mark.close().await;
    }
}
