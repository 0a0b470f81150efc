//! Where a database keeps its parts, and with what buffers.

use super::types::{Family, Mode};
use commonware_runtime::buffer::paged::{CacheRef, page_size};
use commonware_storage::{journal::contiguous::variable, merkle::full};
use commonware_utils::{NZU64, NZUsize};
use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};

/// How nodes are hashed in bulk. Two cores are shared with serving: sequential wins nothing less
/// than it costs elsewhere (docs/PERFORMANCE.md).
pub(super) type Strategy = commonware_parallel::Sequential;
/// The only value of [`Strategy`].
pub(super) const STRATEGY: Strategy = commonware_parallel::Sequential;
/// Shape of the Merkle structure; part of the identity (docs/adr/0001).
pub(super) type Merkle = commonware_storage::mmr::Family;
/// A position in the operations log.
pub(super) type Location = commonware_storage::mmr::Location;
/// How the index shortens keys. Keys are hashes, so their first bytes are uniform.
pub(super) type Translator = commonware_storage::translator::EightCap;

/// Bytes of a page on disk.
const PAGE_BYTES: u32 = 4096;
/// Payload of a page.
pub(crate) const PAGE_SIZE: NonZeroU16 = page_size(PAGE_BYTES);
/// Memory for pages of one database, in bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Operations in one file: small enough that an interrupted state sync resumes near its end.
const OPERATIONS_PER_SECTION: NonZeroU64 = NZU64!(32_768);
/// Merkle nodes in one file.
const NODES_PER_BLOB: NonZeroU64 = NZU64!(131_072);
/// States of a compact database in one file: what pruning may leave behind.
const STATES_PER_SECTION: NonZeroU64 = NZU64!(256);
/// Pages of a compact database's log of states: it is read when opened, and by replicas that sync
/// to a state just past.
const STATES_CACHE_PAGES: NonZeroUsize = NZUsize!(64);
/// Bytes gathered before a file is written.
const WRITE_BUFFER: NonZeroUsize = NZUsize!(1024 * 1024);
/// Bytes read ahead when a log is replayed.
pub(super) const REPLAY_BUFFER: NonZeroUsize = NZUsize!(1024 * 1024);
/// Entries of the key cache used while the index is rebuilt.
pub(super) const INDEX_CACHE: NonZeroUsize = NZUsize!(1 << 16);

/// Prefix of every partition of a generation.
fn prefix(family: Family, generation: u64) -> String {
    format!("{family}-{generation}")
}

/// The configurations of the Merkle structure and of the operations log.
pub(super) fn configs<C: Default>(
    family: Family,
    generation: u64,
) -> (full::Config<Strategy>, variable::Config<C>) {
    let prefix = prefix(family, generation);
    let pages = NonZeroUsize::new(CACHE_BYTES / PAGE_BYTES as usize).expect("cache holds pages");
    let page_cache = CacheRef::new(PAGE_SIZE, pages);
    let merkle = full::Config {
        journal_partition: format!("{prefix}-nodes"),
        metadata_partition: format!("{prefix}-pinned"),
        items_per_blob: NODES_PER_BLOB,
        write_buffer: WRITE_BUFFER,
        replay_buffer: REPLAY_BUFFER,
        strategy: STRATEGY,
        page_cache: page_cache.clone(),
    };
    let operations = variable::Config {
        partition: format!("{prefix}-operations"),
        items_per_section: OPERATIONS_PER_SECTION,
        compression: None,
        codec_config: C::default(),
        page_cache,
        write_buffer: WRITE_BUFFER,
        replay_buffer: REPLAY_BUFFER,
    };
    (merkle, operations)
}

/// The configuration of the log of states that a compact database keeps.
pub(super) fn witnesses(family: Family, generation: u64) -> variable::Config<()> {
    variable::Config {
        partition: format!("{}-witnesses", prefix(family, generation)),
        items_per_section: STATES_PER_SECTION,
        compression: None,
        codec_config: (),
        page_cache: CacheRef::new(PAGE_SIZE, STATES_CACHE_PAGES),
        write_buffer: WRITE_BUFFER,
        replay_buffer: REPLAY_BUFFER,
    }
}

/// Where `current` keeps the pruned part of its activity bitmap.
pub(super) fn grafted_partition(generation: u64) -> String {
    format!("{}-grafted", prefix(Family::Current, generation))
}

/// Every partition that a database of `generation` may have, for its removal.
pub(super) fn partition_names(family: Family, generation: u64) -> Vec<String> {
    let prefix = prefix(family, generation);
    [
        "nodes-blobs",
        "nodes-metadata",
        "nodes",
        "pinned",
        "operations_data",
        "operations_offsets-blobs",
        "operations_offsets-metadata",
        "operations_offsets",
        "grafted",
        "witnesses_data",
        "witnesses_offsets-blobs",
        "witnesses_offsets-metadata",
        "witnesses_offsets",
    ]
    .iter()
    .map(|part| format!("{prefix}-{part}"))
    .collect()
}

/// The partitions that every database of a kind has from its making on.
pub(super) fn required_partition_names(family: Family, generation: u64, mode: Mode) -> Vec<String> {
    let prefix = prefix(family, generation);
    let log = |name: &str| {
        ["_data", "_offsets-blobs", "_offsets-metadata"].map(|suffix| format!("{name}{suffix}"))
    };
    let mut parts = match mode {
        Mode::Full => {
            let mut parts = log("operations").to_vec();
            parts.extend(["nodes-blobs", "nodes-metadata", "pinned"].map(String::from));
            parts
        }
        Mode::Compact => log("witnesses").to_vec(),
    };
    if family == Family::Current {
        parts.push("grafted".into());
    }
    parts.into_iter().map(|part| format!("{prefix}-{part}")).collect()
}
