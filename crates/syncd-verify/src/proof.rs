//! Proof files: what a reader is given to show to others (`docs/PROOFS.md`, byte for byte).

use crate::{Invalid, verify_key, verify_operation};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::{Hasher as _, Sha256, ed25519::PublicKey};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    time::{Duration, SystemTime},
};
use syncd_proto::{
    checkpoint::{Checkpoint, Policy, Refusal, Rotations, SignedCheckpoint, check_freshness},
    database::{Kind, Operation},
    types::{DatabaseId, KEY_LENGTH_MAX},
};

/// Version of the proof file.
pub const FORMAT_VERSION: u8 = 1;
/// Domain of the file's checksum.
const CHECKSUM_DOMAIN: &[u8] = b"_SYNCD_PROOF_FILE";
/// Largest proof file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// What the verifier trusts.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Publisher keys; one of them, or a successor that it named, must have signed.
    pub publishers: Vec<PublicKey>,
    /// Identity of the database.
    pub database: DatabaseId,
}

impl Trust {
    /// Trusts keys and a database that are given as 64 hexadecimal digits each.
    pub fn from_hex(publishers: &[&str], database: &str) -> Result<Self, Error> {
        let publisher = |text: &&str| {
            let bytes = hex::decode(text.trim()).ok();
            bytes.and_then(|bytes| PublicKey::decode(bytes).ok()).ok_or_else(|| {
                Error::Trust(format!("'{text}' is not a public key of 64 hexadecimal digits"))
            })
        };
        Ok(Self {
            publishers: publishers.iter().map(publisher).collect::<Result<_, _>>()?,
            database: database.parse().map_err(Error::Trust)?,
        })
    }
}

/// What the verifier asks for beyond the truth of the proof.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// The key that must be spoken of.
    pub key: Option<Vec<u8>>,
    /// The fewest operations that the state must have.
    pub min_size: Option<u64>,
    /// The longest time since the state was signed, and the present time.
    pub max_age: Option<(Duration, SystemTime)>,
}

/// What a proof file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The key holds the value.
    Value {
        /// The user's key.
        key: Bytes,
        /// The user's value.
        value: Bytes,
    },
    /// The key holds nothing.
    Absent {
        /// The user's key.
        key: Bytes,
    },
    /// An operation stands at a location of the log.
    Operation {
        /// The location.
        location: u64,
    },
}

/// A proof file. Decoding does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofFile {
    /// What it says.
    pub statement: Statement,
    /// Of which state.
    pub checkpoint: SignedCheckpoint,
    /// How the publisher's keys followed each other.
    pub rotations: Rotations,
    /// The proof, in the library's encoding.
    pub proof: Bytes,
}

/// What was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proved {
    /// What the file says.
    pub statement: Statement,
    /// The operation, where one was proved.
    pub operation: Option<Operation>,
    /// The state that it is true of.
    pub checkpoint: Checkpoint,
    /// The key that signed it.
    pub publisher: PublicKey,
}

/// Why a file proves nothing, or not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What is to be trusted is no key, or no identity of a database.
    #[error("{0}")]
    Trust(String),
    /// It is no proof file, or damaged.
    #[error("not a proof file: {0}")]
    Malformed(String),
    /// The state is not the trusted publisher's, or too old.
    #[error("the state is not acceptable: {0}")]
    Refused(#[from] Refusal),
    /// The proof does not hold.
    #[error("not proved: {0}")]
    NotProved(#[from] Invalid),
    /// It proves something else than was asked for.
    #[error("{0}")]
    NotWhatWasAsked(String),
}

/// The file, as JSON.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    format: u8,
    statement: Kinds,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    location: Option<u64>,
    checkpoint: String,
    rotations: String,
    proof_b64: String,
    checksum: String,
}

#[derive(Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Kinds {
    Value,
    Absent,
    Operation,
}

impl Json {
    /// A digest of everything else. It finds damage, not lies: a flipped letter in the key of a
    /// proof of absence may well make it the true proof of another key's absence.
    fn sum(&self) -> String {
        let plain = Self { checksum: String::new(), ..self.clone() };
        let text = serde_json::to_vec(&plain).unwrap_or_default();
        hex::encode(Sha256::hash(&[CHECKSUM_DOMAIN, &text]))
    }
}

fn malformed(what: impl fmt::Display) -> Error {
    Error::Malformed(what.to_string())
}

impl ProofFile {
    /// Reads a file. Verifies nothing.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        if text.len() > FILE_BYTES_MAX {
            return Err(malformed(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        let json: Json = serde_json::from_slice(text).map_err(malformed)?;
        if json.format != FORMAT_VERSION {
            let text = format!("'format' is {}, this program reads {FORMAT_VERSION}", json.format);
            return Err(malformed(text));
        }
        if json.sum() != json.checksum {
            return Err(malformed("it is damaged: the checksum is another"));
        }
        let bytes = |name: &str, text: Option<String>| {
            let decoded = text.map(|text| BASE64.decode(text)).transpose();
            decoded
                .map(|bytes| bytes.map(Bytes::from))
                .map_err(|error| malformed(format!("'{name}': {error}")))
        };
        let key = bytes("key_b64", json.key_b64)?;
        let value = bytes("value_b64", json.value_b64)?;
        let statement = match (json.statement, key, value, json.location) {
            (Kinds::Value, Some(key), Some(value), None) => Statement::Value { key, value },
            (Kinds::Absent, Some(key), None, None) => Statement::Absent { key },
            (Kinds::Operation, None, None, Some(location)) => Statement::Operation { location },
            _ => return Err(malformed("the fields do not fit the statement")),
        };
        if let Statement::Value { key, .. } | Statement::Absent { key } = &statement
            && key.len() > KEY_LENGTH_MAX
        {
            return Err(malformed(format!("the key is longer than {KEY_LENGTH_MAX} bytes")));
        }
        let rotations = hex::decode(json.rotations).map_err(malformed)?;
        Ok(Self {
            statement,
            checkpoint: SignedCheckpoint::from_hex(&json.checkpoint)
                .map_err(|error| malformed(format!("'checkpoint': {error}")))?,
            rotations: Rotations::decode(Bytes::from(rotations))
                .map_err(|error| malformed(format!("'rotations': {error}")))?,
            proof: BASE64.decode(json.proof_b64).map_err(malformed)?.into(),
        })
    }

    /// The file.
    pub fn to_json(&self) -> Vec<u8> {
        let encoded = |bytes: &Bytes| Some(BASE64.encode(bytes));
        let (statement, key_b64, value_b64, location) = match &self.statement {
            Statement::Value { key, value } => (Kinds::Value, encoded(key), encoded(value), None),
            Statement::Absent { key } => (Kinds::Absent, encoded(key), None, None),
            Statement::Operation { location } => (Kinds::Operation, None, None, Some(*location)),
        };
        let mut json = Json {
            format: FORMAT_VERSION,
            statement,
            key_b64,
            value_b64,
            location,
            checkpoint: hex::encode(self.checkpoint.encode()),
            rotations: hex::encode(self.rotations.encode()),
            proof_b64: BASE64.encode(&self.proof),
            checksum: String::new(),
        };
        json.checksum = json.sum();
        let mut text = serde_json::to_vec_pretty(&json).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Verifies the file: signature, proof, and what was asked for.
    pub fn verify(&self, trust: &Trust, expect: &Expect) -> Result<Proved, Error> {
        let checkpoint = &self.checkpoint.checkpoint;
        let mut policy = Policy {
            publishers: trust.publishers.clone(),
            database: trust.database,
            family: checkpoint.family,
            rotations: Rotations::default(),
        };
        policy.learn(&self.rotations)?;
        policy.verify(&self.checkpoint)?;
        self.check(expect)?;
        let kind = checkpoint.kind();
        let operation = match &self.statement {
            Statement::Value { key, value } => {
                self.prove_key(kind, key, Some(value))?;
                None
            }
            Statement::Absent { key } => {
                self.prove_key(kind, key, None)?;
                None
            }
            Statement::Operation { location } => {
                let (root, size) = (checkpoint.operations_root, checkpoint.size);
                let proof = self.proof.clone();
                Some(verify_operation(kind, root, size, *location, proof)?)
            }
        };
        Ok(Proved {
            statement: self.statement.clone(),
            operation,
            checkpoint: checkpoint.clone(),
            publisher: self.checkpoint.publisher.clone(),
        })
    }

    fn prove_key(&self, kind: Kind, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        let root = self.checkpoint.checkpoint.root;
        Ok(verify_key(kind, root, key, value, self.proof.clone())?)
    }

    /// Compares with what was asked for.
    fn check(&self, expect: &Expect) -> Result<(), Error> {
        let asked = |text: String| Err(Error::NotWhatWasAsked(text));
        let checkpoint = &self.checkpoint.checkpoint;
        if let Some(wanted) = &expect.key {
            let found = match &self.statement {
                Statement::Value { key, .. } | Statement::Absent { key } => Some(key),
                Statement::Operation { .. } => None,
            };
            match found {
                Some(found) if found == wanted => {}
                Some(found) => {
                    return asked(format!(
                        "it speaks of key {}, not {}",
                        show(found),
                        show(wanted)
                    ));
                }
                None => return asked("it speaks of an operation, not of a key".into()),
            }
        }
        if let Some(least) = expect.min_size
            && checkpoint.size < least
        {
            return asked(format!("its state has {} operations, not {least}", checkpoint.size));
        }
        if let Some((age, now)) = expect.max_age {
            check_freshness(checkpoint, now, age, age)?;
        }
        Ok(())
    }
}

/// Bytes as a person reads them.
fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 200;
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= SHOWN => format!("{text:?}"),
        _ => {
            let shown = &bytes[..bytes.len().min(SHOWN)];
            let more = if bytes.len() > SHOWN { "…" } else { "" };
            format!("0x{}{more} ({} bytes)", hex::encode(shown), bytes.len())
        }
    }
}

/// The last millisecond of the year 9999: what comes later has no form in RFC 3339.
const RFC3339_MS_MAX: u64 = 253_402_300_799_999;

fn time(ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    match time.filter(|_| ms <= RFC3339_MS_MAX) {
        Some(time) => humantime::format_rfc3339_millis(time).to_string(),
        None => format!("{ms} ms after 1970"),
    }
}

impl fmt::Display for Proved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.statement, &self.operation) {
            (Statement::Value { key, value }, _) => {
                write!(f, "key {} holds {}", show(key), show(value))?;
            }
            (Statement::Absent { key }, _) => write!(f, "key {} holds nothing", show(key))?,
            (Statement::Operation { location }, operation) => {
                write!(f, "operation {location} ")?;
                match operation {
                    Some(Operation::Put { key, value, .. }) => {
                        write!(f, "sets key {} to {}", show(key), show(value))?;
                    }
                    Some(Operation::Delete { hash }) => {
                        write!(f, "deletes the key with hash {hash}")?;
                    }
                    Some(Operation::Append { value }) => write!(f, "appends {}", show(value))?,
                    Some(Operation::Commit(_)) | None => write!(f, "ends a commit")?,
                }
            }
        }
        let checkpoint = &self.checkpoint;
        write!(
            f,
            "; in database {}, family {}, size {}, root {}, committed {}, signed {} by {}",
            checkpoint.database,
            checkpoint.family,
            checkpoint.size,
            checkpoint.root,
            time(checkpoint.committed_at_ms),
            time(checkpoint.signed_at_ms),
            self.publisher,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
    use proptest::prelude::*;
    use syncd_proto::types::{Digest, Family, HashKind};

    #[test]
    fn times_beyond_every_calendar_are_shown() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(RFC3339_MS_MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(time(RFC3339_MS_MAX + 1), "253402300800000 ms after 1970");
        assert_eq!(time(u64::MAX), format!("{} ms after 1970", u64::MAX));
    }

    /// Numbers at the ends of their range, and others.
    fn number() -> impl Strategy<Value = u64> {
        let ends =
            [0, 1, 2, 1 << 62, (1 << 62) - 1, (1 << 62) + 1, 1 << 63, u64::MAX - 1, u64::MAX];
        prop_oneof![proptest::sample::select(ends.to_vec()), any::<u64>()]
    }

    fn checkpoint() -> impl Strategy<Value = Checkpoint> {
        let kinds = (
            proptest::sample::select(Family::ALL.to_vec()),
            proptest::sample::select(vec![HashKind::Sha256, HashKind::Blake3]),
        );
        (kinds, (number(), number(), number()), (number(), number())).prop_map(
            |((family, hash), (sequence, floor, size), (committed_at_ms, signed_at_ms))| {
                Checkpoint {
                    database: Digest([1; 32]),
                    family,
                    hash,
                    sequence,
                    floor,
                    size,
                    root: Digest([2; 32]),
                    operations_root: Digest([3; 32]),
                    committed_at_ms,
                    signed_at_ms,
                }
            },
        )
    }

    fn statement() -> impl Strategy<Value = Statement> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..2000).prop_map(Bytes::from);
        prop_oneof![
            number().prop_map(|location| Statement::Operation { location }),
            bytes().prop_map(|key| Statement::Absent { key }),
            (bytes(), bytes()).prop_map(|(key, value)| Statement::Value { key, value }),
        ]
    }

    proptest! {
        /// Also what a trusted key signed may be nonsense.
        #[test]
        fn no_file_makes_the_verifier_panic(
            checkpoint in checkpoint(),
            statement in statement(),
            proof in proptest::collection::vec(any::<u8>(), 0..300),
            now_ms in number(),
            age_s in number(),
        ) {
            let key = PrivateKey::from_seed(1);
            let trust =
                Trust { publishers: vec![key.public_key()], database: checkpoint.database };
            let file = ProofFile {
                statement: statement.clone(),
                checkpoint: checkpoint.clone().sign(&key),
                rotations: Rotations::default(),
                proof: proof.into(),
            };
            let now = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(now_ms));
            let max_age = now.map(|now| (Duration::from_secs(age_s), now));
            let expect = Expect { key: None, min_size: Some(1), max_age };
            // As it was made, and as it comes out of a file.
            let read = ProofFile::from_json(&file.to_json());
            for file in std::iter::once(file).chain(read) {
                match file.verify(&trust, &expect) {
                    Ok(proved) => prop_assert!(!proved.to_string().is_empty()),
                    Err(error) => prop_assert!(!error.to_string().is_empty()),
                }
            }
            let publisher = key.public_key();
            let operation = Some(Operation::Commit(None));
            let proved = Proved { statement, operation, checkpoint, publisher };
            prop_assert!(proved.to_string().contains("signed"));
        }

        #[test]
        fn no_time_is_too_late_to_be_shown(ms in any::<u64>(), near in 0u64..10_000_000) {
            for ms in [ms, RFC3339_MS_MAX - near, RFC3339_MS_MAX + near, u64::MAX - near] {
                prop_assert!(!time(ms).is_empty());
            }
        }
    }
}
