//! Credit: how far a server may send ahead of what a follower has worked on.
//!
//! Both ends keep the same account of a stream. Every item has one [`cost`], which the server spends
//! when it sends the item, and the client when the item arrives; what the client has worked on, it
//! grants to the server and to its own account. The cost is taken from the decoded message, so that
//! neither framing nor traces, which only one end knows of, can make the accounts differ.

use crate::wire::Response;
use commonware_codec::EncodeSize as _;
use std::sync::atomic::{AtomicI64, Ordering};

/// Bytes of commits that a server may send ahead of what was executed here.
pub const CREDIT_BYTES: u32 = 4 * 1024 * 1024;
/// What the smallest item costs, so that credit bounds the number of items as well.
pub const ITEM_BYTES_MIN: u32 = 1024;

/// What an item takes from its stream's credit. The end of a stream costs nothing: it must arrive.
pub fn cost(item: &Response) -> u32 {
    let size = match item {
        Response::Commit { commit, .. } => commit.encode_size(),
        Response::Operations(body) => body.len(),
        Response::Checkpoint(_) => 0,
        Response::Refused(_) => return 0,
    };
    u32::try_from(size).unwrap_or(u32::MAX).max(ITEM_BYTES_MIN)
}

/// One end's account of a stream's credit.
#[derive(Debug)]
pub struct Balance(AtomicI64);

impl Balance {
    /// An account that begins with `bytes`.
    pub fn new(bytes: u32) -> Self {
        Self(AtomicI64::new(bytes.into()))
    }

    /// Whether another item may be sent. It may cost more than there is, so that an item larger
    /// than all credit can pass.
    pub fn allows(&self) -> bool {
        self.bytes() > 0
    }

    /// What is left; negative by at most one item.
    pub fn bytes(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    /// Spends the cost of an item; false if none was allowed.
    pub fn spend(&self, cost: u32) -> bool {
        let spent = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bytes| {
            (bytes > 0).then(|| bytes - i64::from(cost))
        });
        spent.is_ok()
    }

    /// Adds credit, up to `max` in all.
    pub fn grant(&self, bytes: u32, max: i64) {
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            Some(now.saturating_add(bytes.into()).min(max.max(now)))
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::Checkpoint,
        commit_log::{Base, Commit, IdempotencyEntry},
        database::{
            EXECUTION_VERSION,
            types::{Change, Digest, Family, HashKind},
        },
        telemetry::context::TraceContext,
        wire::ServerMessage,
    };
    use commonware_codec::{DecodeExt as _, Encode as _};
    use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn commit(changes: Vec<(Vec<u8>, Option<Vec<u8>>)>, requests: usize, sequence: u64) -> Commit {
        let changes = changes.into_iter().map(|(key, value)| match value {
            Some(value) => Change::Put { key, value },
            None => Change::Delete { key },
        });
        let root = Digest([1; 32]);
        let checkpoint = Checkpoint {
            database: root,
            family: Family::Any,
            hash: HashKind::Blake3,
            sequence,
            floor: 0,
            size: sequence + 1,
            root,
            operations_root: root,
            committed_at_ms: sequence,
            signed_at_ms: sequence,
        };
        let entry = |n: usize| IdempotencyEntry { key: vec![b'k'; n % 255 + 1], body: root };
        Commit {
            base: Base { size: sequence, root },
            execution: EXECUTION_VERSION,
            changes: changes.collect(),
            idempotency: (0..requests).map(entry).collect(),
            checkpoint: checkpoint.sign(&PrivateKey::from_seed(1)),
        }
    }

    fn items() -> impl Strategy<Value = Vec<(Commit, bool, bool)>> {
        let key = prop::collection::vec(any::<u8>(), 1..300);
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..3000));
        let changes = prop::collection::vec((key, value), 0..6);
        let item = (changes, 0..4usize, any::<u64>(), any::<bool>(), any::<bool>());
        let item = item.prop_map(|(changes, requests, sequence, traced, beat)| {
            (commit(changes, requests, sequence >> 2), traced, beat)
        });
        prop::collection::vec(item, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever is sent, both accounts are the same once everything has arrived, and the
        /// client never finds an honest server overdrawn.
        #[test]
        fn the_accounts_of_both_ends_agree(items in items(), credit in 1u32..20_000, every in 1usize..5) {
            let (server, client) = (Balance::new(credit), Balance::new(credit));
            let mut wire: VecDeque<bytes::Bytes> = VecDeque::new();
            let mut owed = 0;
            let mut receive = |wire: &mut VecDeque<bytes::Bytes>| {
                for (n, frame) in wire.drain(..).enumerate() {
                    let ServerMessage::Response { response, .. } = ServerMessage::decode(frame).unwrap()
                    else { panic!("not a response") };
                    assert!(client.spend(cost(&response)), "an honest server is overdrawn");
                    owed += cost(&response);
                    if n % every == 0 {
                        client.grant(owed, i64::MAX);
                        server.grant(std::mem::take(&mut owed), i64::MAX);
                    }
                }
                client.grant(owed, i64::MAX);
                server.grant(std::mem::take(&mut owed), i64::MAX);
                assert_eq!((client.bytes(), server.bytes()), (i64::from(credit), i64::from(credit)));
            };
            for (id, (commit, traced, beat)) in items.into_iter().enumerate() {
                let trace = traced.then(|| TraceContext::decode(bytes::Bytes::from(vec![1; 25])).unwrap());
                let beat = beat.then(|| Response::Checkpoint(Box::new(commit.checkpoint.clone())));
                let commit = Response::Commit { commit: Box::new(commit), trace };
                for response in std::iter::once(commit).chain(beat) {
                    if !server.allows() {
                        receive(&mut wire);
                    }
                    prop_assert!(server.spend(cost(&response)));
                    let id = id as u64 * 1000;
                    wire.push_back(ServerMessage::Response { id, response }.encode());
                }
            }
            receive(&mut wire);
        }
    }
}
