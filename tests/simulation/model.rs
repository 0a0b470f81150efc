//! What was promised, to whom and when; checked against what is there.
//!
//! The model is told of every answer, every signed state that anybody saw, and what each replica
//! served, knew and said. It knows nothing of how the product works.

use commonware_codec::Encode as _;
use commonware_cryptography::ed25519::PublicKey;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};
use syncd::{
    checkpoint::{Checkpoint, SignedCheckpoint},
    database::types::{Change, DatabaseId},
    documents::Receipt,
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
    /// First record of the log that it was carried over into by a new epoch.
    carried: Option<u64>,
}

impl Answered {
    pub fn new(request: syncd::api::WriteRequest, receipt: Receipt) -> Self {
        Self { request, receipt, carried: None }
    }

    /// Whether it is answered the same while `first` is the first record of the log.
    pub fn is_promised(&self, first: u64) -> bool {
        self.carried.unwrap_or(self.receipt.sequence) >= first
    }
}

/// What one replica did so far.
pub struct Replica {
    /// Which database it is pinned to, and whose signature it was told to trust.
    pinned: (DatabaseId, PublicKey),
    /// Newest state that it served.
    served: u64,
    /// What it knew, and since when.
    known: Vec<(Duration, u64)>,
    /// When its state stopped being the publisher's newest.
    behind_since: Option<Duration>,
}

impl Replica {
    fn new(database: DatabaseId, trusted: PublicKey) -> Self {
        Self { pinned: (database, trusted), served: 0, known: Vec::new(), behind_since: None }
    }
}

/// The one history of a database.
#[derive(Default)]
struct History {
    /// Every signed state that anybody saw.
    signed: BTreeMap<u64, Checkpoint>,
    /// When each was first seen.
    first_seen: BTreeMap<u64, Duration>,
    /// Who signs, each from a commit on.
    keys: Vec<(u64, PublicKey)>,
}

#[derive(Default)]
pub struct Model {
    /// Signed states whose signature was verified.
    verified: HashSet<Vec<u8>>,
    /// Identity of the present database, once there is one.
    database: Option<DatabaseId>,
    histories: BTreeMap<DatabaseId, History>,
    pub acknowledged: BTreeMap<u64, Acknowledged>,
    pub answered: Vec<Answered>,
    /// Values that may be there, whether or not they were acknowledged.
    pub attempted: BTreeSet<u64>,
    /// Values of requests that were asked again when nothing was promised of them any more.
    pub twice: BTreeSet<u64>,
    newest_receipt: u64,
    replicas: Vec<Replica>,
}

impl Model {
    /// A publisher is up.
    pub fn begin(&mut self, database: DatabaseId, publisher: PublicKey) {
        let known = *self.database.get_or_insert(database);
        assert_eq!(known, database, "the publisher has another identity");
        let keys = &mut self.histories.entry(database).or_default().keys;
        if keys.is_empty() {
            keys.push((0, publisher));
        }
    }

    /// The present database has another key from `from` on.
    pub fn rotated(&mut self, from: u64, successor: PublicKey) {
        self.present().keys.push((from, successor));
    }

    /// The present database goes on under another identity; the log that was there began at `first`.
    pub fn new_epoch(&mut self, database: DatabaseId, publisher: PublicKey, first: u64) {
        let base = self.newest();
        assert!(!self.histories.contains_key(&database), "a new epoch has an old identity");
        self.answered.retain(|answered| answered.is_promised(first));
        self.answered.iter_mut().for_each(|answered| answered.carried = Some(base));
        self.database = None;
        self.begin(database, publisher);
    }

    fn present(&mut self) -> &mut History {
        let database = self.database.unwrap();
        self.histories.get_mut(&database).unwrap()
    }

    /// There is another replica, configured for the present database and key.
    pub fn enrol(&mut self) {
        let (_, key) = self.present().keys.last().unwrap().clone();
        let database = self.database.unwrap();
        self.replicas.push(Replica::new(database, key));
    }

    /// What a replica is configured with.
    pub fn pinned(&self, index: usize) -> (DatabaseId, PublicKey) {
        self.replicas[index].pinned.clone()
    }

    /// A replica is configured with another key.
    pub fn trust(&mut self, index: usize, key: PublicKey) {
        self.replicas[index].pinned.1 = key;
    }

    /// A replica was given to another database, by hand.
    pub fn adopted(&mut self, index: usize, database: DatabaseId, trusted: PublicKey) {
        self.replicas[index] = Replica::new(database, trusted);
    }

    /// Somebody saw a signed state.
    pub fn saw(&mut self, signed: &SignedCheckpoint, now: Duration) {
        let state = &signed.checkpoint;
        // Each is shown many times, and this is half of what a story costs.
        if self.verified.insert(signed.encode().into()) {
            assert!(signed.signature_is_valid(), "a signature is wrong: {signed:?}");
        }
        let history = self.histories.get_mut(&state.database);
        let history = history.unwrap_or_else(|| panic!("nobody made this database: {state:?}"));
        let key = history.keys.iter().rev().find(|(from, _)| *from <= state.sequence);
        assert!(
            key.is_some_and(|(_, key)| *key == signed.publisher),
            "commit {} was signed by a key that may not: {signed:?}",
            state.sequence
        );
        let known = history.signed.entry(state.sequence).or_insert_with(|| state.clone());
        assert!(
            known.same_state(state),
            "two states were signed for commit {}:\n{known:?}\n{state:?}",
            state.sequence
        );
        history.first_seen.entry(state.sequence).or_insert(now);
    }

    /// Newest sequence of the present database that anybody saw.
    pub fn newest(&self) -> u64 {
        let history = self.database.and_then(|database| self.histories.get(&database));
        history.and_then(|history| history.signed.keys().next_back().copied()).unwrap_or(0)
    }

    /// A request was asked again after its record was trimmed.
    pub fn may_be_twice(&mut self, changes: &[Change]) {
        let values = changes.iter().filter_map(|change| match change {
            Change::Put { value, .. } | Change::Append { value } => {
                value.as_slice().try_into().ok()
            }
            Change::Delete { .. } => None,
        });
        self.twice.extend(values.map(u64::from_be_bytes));
    }

    /// Whether a key that was acknowledged with `value` may hold `found`: that, a later one, or an earlier one whose request
    /// was asked again when nobody had to remember it any more.
    pub fn may_hold(&self, value: u64, found: u64) -> bool {
        found >= value || self.twice.contains(&found)
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
            let history = &self.histories[&found.database];
            if let Some(state) = history.signed.get(sequence) {
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
        self.saw(head, now);
        let database = self.replicas[index].pinned.0;
        assert_eq!(state.database, database, "replica {index} serves another database");
        let history = &self.histories[&database];
        let newest = history.signed.keys().next_back().copied().unwrap_or(0);
        let next_seen = history.first_seen.range(state.sequence + 1..).next().map(|(_, at)| *at);
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

    /// A replica started again. With `in_order`, nothing may be forgotten. Whatever happened, it serves at once what it
    /// served before.
    pub fn restarted(
        &mut self,
        index: usize,
        serves: Option<&SignedCheckpoint>,
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
        let serves = serves.map_or(0, |head| head.checkpoint.sequence);
        let served = replica.served;
        assert!(
            serves >= served,
            "replica {index} served commit {served}, after a restart {serves}"
        );
        replica.known.clear();
    }

    /// What a replica says of its lag is never less than the truth allows: 0 counts for as long as
    /// its newest signature is fresh.
    pub fn check_lag(
        &self,
        index: usize,
        lag_seconds: f64,
        allowed: Duration,
        now: Duration,
        describe: impl Fn() -> String,
    ) {
        let Some(since) = self.replicas[index].behind_since else { return };
        let behind = now.saturating_sub(since);
        assert!(
            behind <= allowed || lag_seconds > 0.0,
            "replica {index} has been behind for {behind:?} and says 0: {}",
            describe()
        );
    }
}
