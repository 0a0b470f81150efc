//! A disk that takes its time. What was written is cached until it is synced; a crash keeps of the
//! rest what the seed says, write by write and page by page, in any order.

use super::{Life, Machine, Point, World};
use commonware_runtime::{
    Blob as BlobTrait, BlobVersion, Error, Handle, IoBufs, IoBufsMut, ReadOptions, Spawner as _,
    Storage, Supervisor as _, WriteOptions,
};
use std::{
    collections::BTreeMap,
    io,
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::Duration,
};
use syncd::database::types::Family;

/// Bytes that a torn write keeps or loses together.
const PAGE_BYTES: usize = 512;
/// Longest time of a write, usually.
const WRITE_TIME: Duration = Duration::from_micros(300);
/// Longest time of a sync, usually.
const SYNC_TIME: Duration = Duration::from_millis(6);
/// Longest time of a slow sync.
const SYNC_TIME_SLOW: Duration = Duration::from_millis(400);
/// Longest time of a sync of a database whose disk is busy.
pub const SYNC_TIME_BUSY: Duration = Duration::from_secs(12);
/// How soon such a sync notices that the disk is busy no more.
const BUSY_STEP: Duration = Duration::from_millis(100);

type Key = (String, Vec<u8>);

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
            Self::Resize(length) => content.resize(*length, 0),
        }
    }
}

struct File {
    version: BlobVersion,
    durable: Vec<u8>,
    /// What reads see.
    cached: Vec<u8>,
    /// Changes since, in order, with their numbers.
    pending: Vec<(u64, Change)>,
    next: u64,
    /// Which opening holds it.
    holder: u64,
}

impl File {
    fn new(version: BlobVersion, durable: Vec<u8>) -> Self {
        let cached = durable.clone();
        Self { version, durable, cached, pending: Vec::new(), next: 0, holder: 0 }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.cached);
        self.pending.push((self.next, change));
        self.next += 1;
    }

    /// Makes the changes before number `end` durable.
    fn flush(&mut self, end: u64) {
        let (done, rest) = self.pending.drain(..).partition(|(number, _)| *number < end);
        self.pending = rest;
        let done: Vec<(u64, Change)> = done;
        done.iter().for_each(|(_, change)| change.apply(&mut self.durable));
    }
}

#[derive(Default)]
struct State {
    files: BTreeMap<Key, File>,
    openings: u64,
    is_full: bool,
    fails_syncs: bool,
    is_busy: bool,
    was_busy: bool,
}

impl State {
    fn durable(&self) -> BTreeMap<Key, File> {
        let files = self.files.iter();
        files
            .map(|(key, file)| (key.clone(), File::new(file.version, file.durable.clone())))
            .collect()
    }
}

/// The disk of a machine; outlives its crashes.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// Whether writes fail for lack of space.
    pub fn set_full(&self, is_full: bool) {
        self.0.lock().unwrap().is_full = is_full;
    }

    /// Whether syncs fail.
    pub fn set_fails_syncs(&self, fails: bool) {
        self.0.lock().unwrap().fails_syncs = fails;
    }

    /// Whether syncs of the database take long, which has much more to write than the log.
    pub fn set_busy(&self, is_busy: bool) {
        let mut state = self.0.lock().unwrap();
        state.is_busy = is_busy;
        state.was_busy |= is_busy;
    }

    /// Whether it was busy since this was asked last.
    pub fn was_busy(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        let is_busy = state.is_busy;
        std::mem::replace(&mut state.was_busy, is_busy)
    }

    /// Waits as long as a sync of `partition` takes.
    async fn take_time(&self, world: &World, partition: &str) {
        let longest = if world.one_in(40) { SYNC_TIME_SLOW } else { SYNC_TIME };
        world.sleep(world.draw_time(longest)).await;
        let is_database = Family::ALL.iter().any(|family| partition.starts_with(family.as_str()));
        let is_busy = || is_database && self.0.lock().unwrap().is_busy;
        if is_busy() {
            let mut left = world.draw_time(SYNC_TIME_BUSY);
            while is_busy() && !left.is_zero() {
                world.sleep(left.min(BUSY_STEP)).await;
                left = left.saturating_sub(BUSY_STEP);
            }
        }
    }

    /// A disk with what is durable on this one.
    pub fn copy(&self) -> Self {
        let files = self.0.lock().unwrap().durable();
        Self(Arc::new(Mutex::new(State { files, ..State::default() })))
    }

    /// Holds what is durable on `other`, and nothing else.
    pub fn replace(&self, other: &Self) {
        let files = other.0.lock().unwrap().durable();
        self.0.lock().unwrap().files = files;
    }

    /// The power is cut: what was not synced is kept or lost, each write and each page on its own.
    pub fn cut_power(&self, world: &World) {
        let mut state = self.0.lock().unwrap();
        // How the cache was written back until then.
        let keeps = world.draw(0, 5);
        for file in state.files.values_mut() {
            let pending = std::mem::take(&mut file.pending);
            for (_, change) in pending {
                match (keeps, &change) {
                    (0, _) => {}
                    (1, _) => change.apply(&mut file.durable),
                    (2, _) if world.one_in(2) => change.apply(&mut file.durable),
                    (2, _) | (_, Change::Resize(_)) => {}
                    (_, Change::Write { offset, bytes }) => {
                        tear(world, *offset, bytes, &mut file.durable);
                    }
                }
            }
            *file = File {
                next: file.next,
                ..File::new(file.version, std::mem::take(&mut file.durable))
            };
        }
    }
}

/// Keeps some pages of a write.
fn tear(world: &World, offset: usize, bytes: &[u8], durable: &mut Vec<u8>) {
    let mut at = 0;
    while at < bytes.len() {
        let page_end = (offset + at) / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES;
        let end = (page_end - offset).min(bytes.len());
        if world.one_in(2) {
            let change = Change::Write { offset: offset + at, bytes: bytes[at..end].to_vec() };
            change.apply(durable);
        }
        at = end;
    }
}

/// An open file.
pub struct Blob {
    context: Machine,
    key: Key,
    holder: u64,
    /// Where handles in flight keep it open.
    open: Arc<Open>,
}

struct Open {
    disk: Disk,
    key: Key,
    holder: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(file) = self.disk.0.lock().unwrap().files.get_mut(&self.key)
            && file.holder == self.holder
        {
            file.holder = 0;
        }
    }
}

impl Blob {
    fn life(&self) -> &Life {
        &self.context.life
    }

    /// The file, unless it was removed: then nothing of it matters.
    fn with<T>(&self, work: impl FnOnce(&mut File) -> T) -> Option<T> {
        let mut state = self.life().disk.0.lock().unwrap();
        let file = state.files.get_mut(&self.key)?;
        (file.holder == self.holder).then(|| work(file))
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let offset = usize::try_from(offset).map_err(|_| Error::OffsetOverflow)?;
        let read = self.with(|file| file.cached.get(offset..offset + len).map(<[u8]>::to_vec));
        match read {
            Some(Some(bytes)) => Ok(bytes),
            Some(None) => Err(Error::BlobInsufficientLength),
            None => Err(Error::BlobMissing(self.key.0.clone(), hex::encode(&self.key.1))),
        }
    }

    fn check_space(&self) -> Result<(), Error> {
        if self.life().disk.0.lock().unwrap().is_full {
            return Err(Error::from(io::Error::from(io::ErrorKind::StorageFull)));
        }
        Ok(())
    }

    async fn wait_to_write(&self) {
        let life = self.life();
        life.reach(Point::Write, &self.key.0).await;
        if life.world.one_in(8) {
            life.world.sleep(life.world.draw_time(WRITE_TIME)).await;
            life.alive().await;
        }
    }
}

impl BlobTrait for Blob {
    async fn read_at_buf(
        &self,
        offset: u64,
        len: usize,
        _: impl Into<IoBufsMut> + Send,
        _: ReadOptions,
    ) -> Result<IoBufsMut, Error> {
        self.life().alive().await;
        Ok(IoBufsMut::from(self.read(offset, len)?))
    }

    async fn read_at(&self, offset: u64, len: usize, _: ReadOptions) -> Result<IoBufsMut, Error> {
        self.life().alive().await;
        Ok(IoBufsMut::from(self.read(offset, len)?))
    }

    async fn write_at(
        &self,
        offset: u64,
        bufs: impl Into<IoBufs> + Send,
        options: WriteOptions,
    ) -> Result<(), Error> {
        let bytes = bufs.into().coalesce().as_ref().to_vec();
        let offset = usize::try_from(offset).map_err(|_| Error::OffsetOverflow)?;
        self.wait_to_write().await;
        self.check_space()?;
        self.with(|file| file.change(Change::Write { offset, bytes }));
        if options.contains(WriteOptions::SYNC) {
            return self.sync().await;
        }
        Ok(())
    }

    async fn resize(&self, len: u64) -> Result<(), Error> {
        let length = usize::try_from(len).map_err(|_| Error::OffsetOverflow)?;
        self.wait_to_write().await;
        self.with(|file| file.change(Change::Resize(length)));
        Ok(())
    }

    async fn sync(&self) -> Result<(), Error> {
        self.start_sync().await.await
    }

    async fn start_sync(&self) -> Handle<()> {
        let (end, open) = (self.with(|file| file.next), self.open.clone());
        self.life().reach(Point::Sync, &self.key.0).await;
        let (context, key, holder) = (self.context.child("sync"), self.key.clone(), self.holder);
        // Goes on although nobody waits for it.
        let syncing = context.spawn(move |context| async move {
            let (life, world) = (&context.life, &context.life.world);
            life.disk.take_time(world, &key.0).await;
            life.alive().await;
            {
                let mut state = life.disk.0.lock().unwrap();
                if state.fails_syncs || (state.is_full && world.one_in(2)) {
                    let error = Arc::new(io::Error::other("the disk failed"));
                    let (partition, name) = (key.0.clone(), hex::encode(&key.1));
                    return Err(Error::BlobSyncFailed(partition, name, error));
                }
                let file = state.files.get_mut(&key).filter(|file| file.holder == holder);
                if let (Some(file), Some(end)) = (file, end) {
                    file.flush(end);
                }
            }
            drop(open);
            life.reach(Point::Synced, &key.0).await;
            Ok(())
        });
        Handle::from_future(async move { syncing.await? })
    }
}

impl Storage for Machine {
    type Blob = Blob;

    async fn open_versioned(
        &self,
        partition: &str,
        name: &[u8],
        versions: RangeInclusive<BlobVersion>,
    ) -> Result<(Blob, u64, BlobVersion), Error> {
        self.life.alive().await;
        if self.life.world.one_in(8) {
            self.life.world.sleep(self.life.world.draw_time(WRITE_TIME)).await;
            self.life.alive().await;
        }
        let key = (partition.to_string(), name.to_vec());
        let mut state = self.life.disk.0.lock().unwrap();
        state.openings += 1;
        let (holder, is_full) = (state.openings, state.is_full);
        if is_full && !state.files.contains_key(&key) {
            return Err(Error::from(io::Error::from(io::ErrorKind::StorageFull)));
        }
        let newest = *versions.end();
        let file = state.files.entry(key.clone()).or_insert_with(|| File::new(newest, Vec::new()));
        if file.holder != 0 {
            return Err(Error::BlobAlreadyOpen(partition.into(), hex::encode(name)));
        }
        if !versions.contains(&file.version) {
            return Err(Error::BlobVersionMismatch { expected: versions, found: file.version });
        }
        // What can be read after an opening is durable.
        file.flush(u64::MAX);
        file.holder = holder;
        let (size, version) = (file.cached.len() as u64, file.version);
        drop(state);
        let disk = self.life.disk.clone();
        let open = Arc::new(Open { disk, key: key.clone(), holder });
        Ok((Blob { context: self.child("blob"), key, holder, open }, size, version))
    }

    async fn remove(&self, partition: &str, name: Option<&[u8]>) -> Result<(), Error> {
        self.life.reach(Point::Remove, partition).await;
        let is_removed = {
            let mut state = self.life.disk.0.lock().unwrap();
            let before = state.files.len();
            state.files.retain(|(in_partition, of_name), _| {
                in_partition != partition || name.is_some_and(|name| name != of_name)
            });
            state.files.len() < before
        };
        if is_removed {
            self.life.reach(Point::Removed, partition).await;
        }
        match (is_removed, name) {
            (true, _) => Ok(()),
            (false, None) => Err(Error::PartitionMissing(partition.into())),
            (false, Some(name)) => Err(Error::BlobMissing(partition.into(), hex::encode(name))),
        }
    }

    async fn scan(&self, partition: &str) -> Result<Vec<Vec<u8>>, Error> {
        self.life.alive().await;
        let state = self.life.disk.0.lock().unwrap();
        let names = state.files.keys().filter(|(in_partition, _)| in_partition == partition);
        let names: Vec<_> = names.map(|(_, name)| name.clone()).collect();
        if names.is_empty() {
            return Err(Error::PartitionMissing(partition.into()));
        }
        Ok(names)
    }
}
