//! Evidence that a publisher signed two histories: a file that anybody can check, offline.

use crate::history_at;
use bytes::Bytes;
use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_cryptography::ed25519::PublicKey;
use serde_json::{Value, json};
use syncd_proto::{
    checkpoint::{FORMAT_VERSION, Policy, Refusal, Rotations, SignedCheckpoint},
    types::Root,
};

/// Two checkpoints that one publisher must not have signed both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What was verified before.
    pub known: SignedCheckpoint,
    /// What contradicts it.
    pub offered: SignedCheckpoint,
    /// Why.
    pub reason: String,
    /// The response that shows the break, where a proof was needed to see it.
    pub response: Option<Vec<u8>>,
    /// How the publisher's keys followed each other, as far as it was known.
    pub rotations: Rotations,
}

/// Why a file proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproved {
    /// It is no evidence, or damaged.
    #[error("not a file of evidence: {0}")]
    Malformed(String),
    /// A signature is wrong, or its key is not trusted.
    #[error("the {which} checkpoint is not the publisher's: {refusal}")]
    NotThePublishers {
        /// `known` or `offered`.
        which: &'static str,
        /// Why.
        refusal: Refusal,
    },
    /// The two fit together.
    #[error("the two checkpoints do not contradict each other: {0}")]
    NoContradiction(String),
}

impl Evidence {
    /// The file.
    pub fn to_json(&self) -> Value {
        json!({
            "format": FORMAT_VERSION,
            "reason": self.reason,
            "known": self.known.to_json(),
            "offered": self.offered.to_json(),
            "response": self.response.as_ref().map(hex::encode),
            "rotations": hex::encode(self.rotations.encode()),
        })
    }

    /// Reads what [`Self::to_json`] gave. Verifies nothing.
    pub fn from_json(text: &[u8]) -> Result<Self, Unproved> {
        let malformed = |what: &str| Unproved::Malformed(what.to_string());
        let value: Value =
            serde_json::from_slice(text).map_err(|error| Unproved::Malformed(error.to_string()))?;
        if value["format"].as_u64() != Some(u64::from(FORMAT_VERSION)) {
            return Err(Unproved::Malformed(format!(
                "'format' is {}, this program reads {FORMAT_VERSION}",
                value["format"]
            )));
        }
        let checkpoint = |name: &'static str| {
            let encoded = value[name]["encoded"].as_str().ok_or_else(|| malformed(name))?;
            SignedCheckpoint::from_hex(encoded)
                .map_err(|error| Unproved::Malformed(format!("'{name}': {error}")))
        };
        let response = match &value["response"] {
            Value::Null => None,
            Value::String(text) => Some(hex::decode(text).map_err(|_| malformed("'response'"))?),
            _ => return Err(malformed("'response'")),
        };
        let rotations = value["rotations"].as_str().and_then(|text| hex::decode(text).ok());
        let rotations = rotations.and_then(|bytes| Rotations::decode(Bytes::from(bytes)).ok());
        Ok(Self {
            known: checkpoint("known")?,
            offered: checkpoint("offered")?,
            reason: value["reason"].as_str().unwrap_or_default().to_string(),
            response,
            rotations: rotations.ok_or_else(|| malformed("'rotations'"))?,
        })
    }

    /// Verifies that a holder of the trusted keys signed two histories; says which, in words.
    pub fn verify(&self, trusted: Vec<PublicKey>) -> Result<String, Unproved> {
        let (known, offered) = (&self.known.checkpoint, &self.offered.checkpoint);
        let mut policy = Policy {
            publishers: trusted,
            database: known.database,
            family: known.family,
            rotations: Rotations::default(),
        };
        let not = |which| move |refusal| Unproved::NotThePublishers { which, refusal };
        policy.learn(&self.rotations).map_err(not("known"))?;
        policy.verify(&self.known).map_err(not("known"))?;
        match policy.admit(&self.offered, Some(&self.known)) {
            Err(Refusal::Equivocation(reason)) => Ok(format!("{reason} ({})", self.states())),
            Err(refusal) => Err(not("offered")(refusal)),
            Ok(_) if offered.size <= known.size => {
                Err(Unproved::NoContradiction("they describe states of one history".into()))
            }
            Ok(_) => {
                let found = self.history_of_offered()?;
                if found.contains(&known.operations_root) {
                    let text = "the longer history contains the shorter one";
                    return Err(Unproved::NoContradiction(text.into()));
                }
                Ok(format!("a longer history does not contain the shorter one ({})", self.states()))
            }
        }
    }

    /// Roots that the offered history may have had at the known size.
    fn history_of_offered(&self) -> Result<Vec<Root>, Unproved> {
        let (known, offered) = (&self.known.checkpoint, &self.offered.checkpoint);
        let body = self.response.clone().ok_or_else(|| {
            Unproved::NoContradiction("the response that shows the break is missing".into())
        })?;
        let kind = offered.kind();
        history_at(kind, offered.operations_root, offered.size, known.size, Bytes::from(body))
            .map_err(|error| {
                Unproved::NoContradiction(format!("the response proves nothing: {error}"))
            })
    }

    fn states(&self) -> String {
        let of = |signed: &SignedCheckpoint| {
            let checkpoint = &signed.checkpoint;
            format!(
                "commit {}, size {}, root {}, signed by {}",
                checkpoint.sequence, checkpoint.size, checkpoint.root, signed.publisher
            )
        };
        format!("{}; and {}", of(&self.known), of(&self.offered))
    }
}
