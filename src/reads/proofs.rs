//! Proof files, made from a ledger.

use super::{ReadError, Unsupported};
use crate::{
    checkpoint::Rotations,
    database::{self, types::Family},
    ledger::Ledger,
    runtime::Runtime,
    verify::{ProofFile, Statement},
};
use bytes::Bytes;

/// What a proof is asked for.
#[derive(Clone, Debug)]
pub enum Subject {
    /// What a key holds.
    Key(Bytes),
    /// The operation at a location.
    Operation(u64),
}

/// Proves `subject` of the state that reads see.
pub async fn prove<E: Runtime>(
    ledger: &Ledger<E>,
    rotations: Rotations,
    subject: Subject,
) -> Result<ProofFile, ReadError> {
    match subject {
        Subject::Key(key) => {
            if let Some(reason) = not_provable(ledger.kind().family) {
                let message = reason.to_string();
                return Err(ReadError::Unsupported { why: Unsupported::Proof, message });
            }
            let (checkpoint, found) = ledger.prove_key(&key).await.map_err(read_error)?;
            let statement = match found.value {
                Some(value) => Statement::Value { key, value },
                None => Statement::Absent { key },
            };
            Ok(ProofFile { statement, checkpoint, rotations, proof: found.proof })
        }
        Subject::Operation(location) => {
            let (checkpoint, proof) = ledger.prove_operation(location).await.map_err(read_error)?;
            let statement = Statement::Operation { location };
            Ok(ProofFile { statement, checkpoint, rotations, proof })
        }
    }
}

fn read_error(error: database::Error) -> ReadError {
    match error {
        database::Error::Pruned => ReadError::Pruned("the operation is no longer held".into()),
        database::Error::OutOfRange(text) => ReadError::NotFound(text),
        error => ReadError::Internal(error.to_string()),
    }
}

/// Why a family cannot prove what a key holds.
const fn not_provable(family: Family) -> Option<&'static str> {
    match family {
        Family::Current => None,
        Family::Any => Some(
            "family 'any' cannot prove that a value is the present one: an overwritten value would verify as well; family 'current' can",
        ),
        Family::Immutable => Some(
            "family 'immutable' has no bounded way from a key to its location; family 'current' proves by key, and any family by location",
        ),
        Family::Keyless => Some("family 'keyless' has entries, not keys; see /v1/entries"),
    }
}
