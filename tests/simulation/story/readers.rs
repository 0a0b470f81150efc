//! Readers: values, proofs, exports.

use super::{Cast, Disorder, KEYS, Story, WRITERS};
use crate::machine::{Life, Machine};
use commonware_runtime::Clock as _;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use syncd::verify::{verify_key, verify_operation};
use syncd::{
    database::types::{Family, Mode},
    ledger::Ledger,
    reads::Name,
};

/// Whether `ledger` is what somebody serves from.
fn is_current(cast: &Cast, ledger: &Arc<Ledger<Machine>>) -> bool {
    let servers = cast.server.iter().map(|server| server.parts.0.clone());
    let replicas =
        cast.clients.iter().flatten().filter_map(|client| client.parts.ledger.load_full());
    servers.chain(replicas).any(|current| Arc::ptr_eq(&current, ledger))
}

/// How long an export pauses between its pages.
const EXPORT_MAX: Duration = Duration::from_secs(60);

impl Story {
    /// Somebody who can be read from.
    fn readable(&self, cast: &Cast) -> Option<(Arc<Ledger<Machine>>, Arc<Life>)> {
        let servers = cast.server.iter().map(|server| (server.parts.0.clone(), &server.life));
        let replicas = cast.clients.iter().flatten();
        let replicas =
            replicas.filter_map(|client| Some((client.parts.ledger.load_full()?, &client.life)));
        let mut all: Vec<_> = servers.chain(replicas).filter(|(_, life)| !life.is_dead()).collect();
        if all.is_empty() {
            return None;
        }
        let (ledger, life) = all.swap_remove(self.world.draw(0, all.len() as u64) as usize);
        Some((ledger, life.clone()))
    }

    /// What was acknowledged is read from whoever has it.
    pub(super) async fn read(&self, cast: &Cast) {
        let Some((ledger, life)) = self.readable(cast) else { return };
        tokio::select! {
            biased;
            () = self.check_values(&ledger, 10) => {}
            () = life.died() => {}
        }
    }

    /// Proofs of an operation and, where there are such, of a key.
    pub(super) async fn prove(&self, cast: &Cast) {
        let Some((ledger, life)) = self.readable(cast) else { return };
        if ledger.mode() == Mode::Compact {
            return;
        }
        tokio::select! {
            biased;
            () = self.prove_operation(&ledger) => {}
            () = life.died() => return,
        }
        if self.case.family == Family::Current {
            tokio::select! {
                biased;
                () = self.prove_keys(&ledger) => {}
                () = life.died() => {}
            }
        }
    }

    async fn prove_operation(&self, ledger: &Ledger<Machine>) {
        let head = ledger.head().checkpoint;
        let location = self.world.draw(head.floor, head.size);
        let Ok((head, proof)) = ledger.prove_operation(location).await else { return };
        self.model.lock().unwrap().saw(&head, self.now());
        let kind = ledger.kind();
        let (root, size) = (head.checkpoint.operations_root, head.checkpoint.size);
        let found = verify_operation(kind, root, size, location, proof.clone()).unwrap();
        let mut other = root;
        other.0[0] ^= 1;
        assert!(verify_operation(kind, other, size, location, proof.clone()).is_err());
        // An operation may stand at two places; a proof stands for one.
        let elsewhere = verify_operation(kind, root, size, location ^ 1, proof.clone());
        assert!(elsewhere.is_err(), "{found:?} is proved at {location} and beside it");
        let mut bytes = proof.to_vec();
        let at = self.world.draw(0, bytes.len() as u64) as usize;
        bytes[at] ^= 1 << self.world.draw(0, 8);
        let changed = verify_operation(kind, root, size, location, bytes.into());
        assert!(changed.is_err() || changed == Ok(found), "a flipped bit proves something else");
    }

    async fn prove_keys(&self, ledger: &Ledger<Machine>) {
        let written = self.world.draw(0, WRITERS) * 100 + self.world.draw(0, KEYS + 2);
        self.prove_key(ledger, format!("key/{written}")).await;
        self.prove_key(ledger, format!("nobody's/{}", self.world.draw(0, 1000))).await;
    }

    async fn prove_key(&self, ledger: &Ledger<Machine>, key: String) {
        let Ok((head, proof)) = ledger.prove_key(key.as_bytes()).await else { return };
        self.model.lock().unwrap().saw(&head, self.now());
        let root = head.checkpoint.root;
        let kind = ledger.kind();
        verify_key(kind, root, key.as_bytes(), proof.value.as_deref(), proof.proof.clone())
            .unwrap();
        let wrong = proof.value.as_deref().map_or(Some(&b"wrong"[..]), |_| None);
        assert!(verify_key(kind, root, key.as_bytes(), wrong, proof.proof.clone()).is_err());
        let (key, value) = (key.as_bytes(), proof.value.as_deref());
        let mut other = root;
        other.0[0] ^= 1;
        assert!(verify_key(kind, other, key, value, proof.proof.clone()).is_err());
        let mut bytes = proof.proof.to_vec();
        let at = self.world.draw(0, bytes.len() as u64) as usize;
        bytes[at] ^= 1 << self.world.draw(0, 8);
        let changed = verify_key(kind, root, key, value, bytes.into());
        assert!(changed.is_err(), "a proof with a flipped bit proves {key:?} as well");
    }

    /// An export while the world goes on: it holds one state, whole, whatever is written meanwhile.
    pub(super) async fn export(&self, cast: &mut Cast, disorder: &Disorder) {
        let Some((ledger, life)) = self.readable(cast) else { return };
        if ledger.mode() == Mode::Compact {
            return;
        }
        let started = tokio::select! {
            biased;
            started = ledger.export() => started,
            () = life.died() => return,
        };
        let (head, mut exporter, hold) = started;
        self.world.step(format!("an export of commit {} begins", head.checkpoint.sequence));
        let (acknowledged, attempted) = {
            let mut model = self.model.lock().unwrap();
            model.saw(&head, self.now());
            (model.acknowledged.clone(), model.attempted.clone())
        };
        let (mut found, end) = (BTreeMap::new(), self.now() + EXPORT_MAX);
        loop {
            let page = tokio::select! {
                biased;
                page = exporter.next() => page,
                () = life.died() => return,
            };
            let page = match page {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(error) => {
                    // A replica's storage may have failed, or been opened again.
                    let may_end = !ledger.is_readable().await || !is_current(cast, &ledger);
                    assert!(may_end, "an export ended: {error}");
                    return;
                }
            };
            for entry in page {
                let name = match entry.name {
                    Name::Key(key) => String::from_utf8(key.to_vec()).unwrap(),
                    Name::Location(location) => format!("{location:020}"),
                };
                let value = u64::from_be_bytes(entry.value.as_ref().try_into().unwrap());
                assert!(found.insert(name, value).is_none(), "an entry is exported twice");
                assert!(
                    value == u64::MAX || attempted.contains(&value),
                    "{value} was written after the export began"
                );
            }
            // A slow reader of much is overtaken by the upkeep.
            if self.world.one_in(2) && self.now() < end {
                let longest = if self.is_bulky { 2000 } else { 300 };
                let time = Duration::from_millis(self.world.draw(1, longest));
                self.pass(cast, disorder, time).await;
            } else {
                self.world.context.sleep(Duration::from_micros(100)).await;
            }
        }
        drop(hold);
        let values: std::collections::BTreeSet<u64> = found.values().copied().collect();
        for (key, known) in acknowledged {
            if known.receipt.sequence > head.checkpoint.sequence {
                continue;
            }
            match self.case.family {
                Family::Keyless if self.history.operations.is_some() => {}
                Family::Keyless => {
                    assert!(values.contains(&known.value), "{known:?} is not exported")
                }
                _ => {
                    let value = found.get(&format!("key/{key}"));
                    let value = value.unwrap_or_else(|| panic!("{known:?} is not exported"));
                    let may_hold = self.model.lock().unwrap().may_hold(known.value, *value);
                    assert!(may_hold, "{known:?}, exported {value}");
                }
            }
        }
    }
}
