//! What was promised, to whom and when; checked against what is there.
//!
//! The model is told of every answer, every signed state that anybody saw, and what each replica
//! served, knew and said. It knows nothing of how the product works.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use syncd::{
    api::Receipt,
    checkpoint::{Checkpoint, SignedCheckpoint},
    database::types::DatabaseId,
};

/// A replica must have written down what it knows after this time at the latest; until then a
/// crash may make it forget what it had not adopted.
const KNOWN_KEPT_AFTER: Duration = Duration::from_secs(7);

/// What a writer may rely on.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub value: u64,
    pub receipt: Receipt,
}

/// A request with an idempotency key, and what it was answered.
#[derive(Clone, Debug)]
pub struct Answered {
    pub request: syncd::api::WriteRequest,
    pub receipt: Receipt,
}

/// What one replica did so far.
#[derive(Default)]
pub struct Replica {
    /// Newest state that it served.
    served: u64,
    /// What it knew, and since when.
    known: Vec<(Duration, u64)>,
    /// When its state stopped being the publisher's newest.
    behind_since: Option<Duration>,
}

#[derive(Default)]
pub struct Model {
    /// Identity of the database, once there is one.
    pub database: Option<DatabaseId>,
    /// The one history: every signed state that anybody saw.
    signed: BTreeMap<u64, Checkpoint>,
    pub acknowledged: BTreeMap<u64, Acknowledged>,
    pub answered: Vec<Answered>,
    /// Values that may be there, whether or not they were acknowledged.
    pub attempted: BTreeSet<u64>,
    newest_receipt: u64,
    /// When each state was first seen.
    first_seen: BTreeMap<u64, Duration>,
    pub replicas: Vec<Replica>,
}

impl Model {
    /// Somebody saw a signed state.
    pub fn saw(&mut self, signed: &SignedCheckpoint, now: Duration) {
        let state = &signed.checkpoint;
        assert!(signed.signature_is_valid(), "a signature is wrong: {signed:?}");
        let known = self.signed.entry(state.sequence).or_insert_with(|| state.clone());
        assert!(
            known.same_state(state),
            "two states were signed for commit {}:\n{known:?}\n{state:?}",
            state.sequence
        );
        self.first_seen.entry(state.sequence).or_insert(now);
    }

    /// Newest sequence that anybody saw.
    pub fn newest(&self) -> u64 {
        self.signed.keys().next_back().copied().unwrap_or(0)
    }

    /// A write was answered.
    pub fn acknowledge(&mut self, key: u64, value: u64, receipt: &Receipt) {
        self.newest_receipt = self.newest_receipt.max(receipt.sequence);
        let receipt = receipt.clone();
        let known = self.acknowledged.get(&key);
        assert!(
            known.is_none_or(|known| known.receipt.sequence <= receipt.sequence),
            "key {key}: a later write was answered with an earlier commit"
        );
        self.acknowledged.insert(key, Acknowledged { value, receipt });
    }

    /// What a server's log holds at its start: nothing that was answered, or seen, is missing.
    /// `records` are some of its states.
    pub fn check_log(&self, last: u64, records: &BTreeMap<u64, Checkpoint>) {
        assert!(
            last >= self.newest_receipt,
            "commit {} was acknowledged, the log ends at {last}",
            self.newest_receipt
        );
        assert!(
            last >= self.newest(),
            "commit {} was seen outside, the log ends at {last}",
            self.newest()
        );
        for (sequence, found) in records {
            if let Some(state) = self.signed.get(sequence) {
                assert!(found.same_state(state), "commit {sequence} is another one");
            }
        }
        for known in self.acknowledged.values() {
            let Receipt { sequence, size, root } = known.receipt.clone();
            if let Some(found) = records.get(&sequence) {
                assert_eq!((found.size, found.root), (size, root), "receipt of commit {sequence}");
            }
        }
    }

    /// A replica serves a state.
    pub fn served(&mut self, index: usize, head: &SignedCheckpoint, now: Duration) {
        let state = &head.checkpoint;
        let known = self.signed.get(&state.sequence);
        assert!(
            known.is_none_or(|known| known.same_state(state)),
            "replica {index} serves what the publisher did not sign: {state:?}"
        );
        self.saw(head, now);
        let newest = self.newest();
        let next_seen = self.first_seen.range(state.sequence + 1..).next().map(|(_, at)| *at);
        let replica = &mut self.replicas[index];
        assert!(
            state.sequence >= replica.served,
            "replica {index} served commit {}, now {}",
            replica.served,
            state.sequence
        );
        replica.served = state.sequence;
        replica.behind_since = if state.sequence < newest { next_seen } else { None };
    }

    /// A replica knows of a state.
    pub fn knows(&mut self, index: usize, known: Option<&SignedCheckpoint>, now: Duration) {
        if let Some(known) = known {
            self.saw(known, now);
        }
        let sequence = known.map_or(0, |known| known.checkpoint.sequence);
        let history = &mut self.replicas[index].known;
        match history.last() {
            Some((_, last)) if *last == sequence => {}
            Some((_, last)) if *last > sequence => {
                panic!("replica {index} knew of commit {last}, now of {sequence}");
            }
            _ => history.push((now, sequence)),
        }
    }

    /// A replica started again. With `in_order`, nothing may be forgotten.
    pub fn restarted(
        &mut self,
        index: usize,
        known: Option<&SignedCheckpoint>,
        crashed: Duration,
        in_order: bool,
    ) {
        let replica = &mut self.replicas[index];
        let kept = replica
            .known
            .iter()
            .rev()
            .find(|(since, _)| in_order || crashed.saturating_sub(*since) >= KNOWN_KEPT_AFTER);
        let kept = kept.map_or(0, |(_, sequence)| *sequence).max(replica.served);
        let found = known.map_or(0, |known| known.checkpoint.sequence);
        assert!(found >= kept, "replica {index} knew of commit {kept} and forgot it: {found}");
        replica.known.clear();
    }

    /// What a replica says of its lag is never less than the truth allows: 0 counts for as long as
    /// its newest signature is fresh.
    pub fn check_lag(&self, index: usize, lag_seconds: f64, allowed: Duration, now: Duration) {
        let Some(since) = self.replicas[index].behind_since else { return };
        let behind = now.saturating_sub(since);
        assert!(
            behind <= allowed || lag_seconds > 0.0,
            "replica {index} has been behind for {behind:?} and says 0"
        );
    }
}
