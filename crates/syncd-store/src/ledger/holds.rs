//! What running state syncs and exports still need of the log and of the operations.

use commonware_utils::sync::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use syncd_proto::checkpoint::Checkpoint;

/// Most operations that holds keep beyond what the retention keeps. A hold that would keep more
/// lapses, and whoever had it is answered `pruned`.
pub const HOLD_OPERATIONS_MAX: u64 = 1 << 20;

/// What one of them needs.
#[derive(Clone, Copy, Debug)]
struct Needs {
    /// The log from this sequence on.
    sequence: u64,
    /// The operations from this location on.
    floor: u64,
}

/// Everything that is held of a ledger.
#[derive(Debug, Default)]
pub struct Holds {
    needs: Mutex<BTreeMap<u64, Needs>>,
    next: AtomicU64,
    /// Operations kept for holds, by the last look.
    held: AtomicU64,
    /// Holds that lapsed.
    lapsed: AtomicU64,
}

/// Keeps what it names while it lives, or until it lapses.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<Holds>,
    id: u64,
}

impl Hold {
    /// Whether it kept too much, and keeps nothing any more.
    pub fn is_lapsed(&self) -> bool {
        !self.holds.needs.lock().contains_key(&self.id)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.needs.lock().remove(&self.id);
    }
}

impl Holds {
    /// Keeps what the state of `checkpoint` needs.
    pub fn begin(self: &Arc<Self>, checkpoint: &Checkpoint) -> Hold {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let needs = Needs { sequence: checkpoint.sequence, floor: checkpoint.floor };
        self.needs.lock().insert(id, needs);
        Hold { holds: self.clone(), id }
    }

    /// The oldest sequence that is held.
    pub fn sequence(&self) -> Option<u64> {
        self.needs.lock().values().map(|needs| needs.sequence).min()
    }

    /// Where to prune, if the retention alone would prune at `location`: holds keep at most
    /// [`HOLD_OPERATIONS_MAX`] operations below it, and those that need more lapse.
    pub fn prune_at(&self, location: u64) -> u64 {
        let lowest = location.saturating_sub(HOLD_OPERATIONS_MAX);
        let mut needs = self.needs.lock();
        let before = needs.len();
        needs.retain(|_, needs| needs.floor >= lowest);
        let lapsed = before - needs.len();
        if lapsed > 0 {
            tracing::warn!(
                holds = lapsed,
                operations = HOLD_OPERATIONS_MAX,
                "state syncs or exports kept too many operations from being pruned, and are given up"
            );
            self.lapsed.fetch_add(lapsed as u64, Ordering::Relaxed);
        }
        let floor = needs.values().map(|needs| needs.floor).min().unwrap_or(location);
        self.held.store(location.saturating_sub(floor), Ordering::Relaxed);
        floor.min(location)
    }

    /// Operations kept for holds beyond the retention.
    pub fn operations(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Holds that lapsed so far.
    pub fn lapsed(&self) -> u64 {
        self.lapsed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_proto::types::{Digest, Family, HashKind};

    fn checkpoint(sequence: u64, floor: u64) -> Checkpoint {
        let root = Digest([0; 32]);
        Checkpoint {
            database: root,
            family: Family::Any,
            hash: HashKind::Blake3,
            sequence,
            floor,
            size: floor + 1,
            root,
            operations_root: root,
            committed_at_ms: 0,
            signed_at_ms: 0,
        }
    }

    #[test]
    fn holds_stop_pruning_within_their_bound() {
        let holds = Arc::new(Holds::default());
        assert_eq!((holds.sequence(), holds.prune_at(500)), (None, 500));
        let old = holds.begin(&checkpoint(3, 100));
        let new = holds.begin(&checkpoint(9, 400));
        assert_eq!((holds.sequence(), holds.prune_at(50), holds.operations()), (Some(3), 50, 0));
        assert_eq!((holds.prune_at(500), holds.operations()), (100, 400));
        // The old one keeps all that it may, then one more.
        let most = HOLD_OPERATIONS_MAX;
        assert_eq!((holds.prune_at(100 + most), holds.operations()), (100, most));
        assert!(!old.is_lapsed());
        assert_eq!((holds.prune_at(101 + most), holds.lapsed()), (400, 1));
        assert!(old.is_lapsed() && !new.is_lapsed());
        assert_eq!(holds.sequence(), Some(9));
        drop((old, new));
        assert_eq!((holds.prune_at(101 + most), holds.operations()), (101 + most, 0));
        assert_eq!((holds.sequence(), holds.lapsed()), (None, 1));
    }
}
