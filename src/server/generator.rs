//! Writes generated data: something to see in a new database, and load for tests.

use super::publisher::{Handle, Source};
use crate::{
    api::{WriteError, WriteRequest},
    database::{WriteRule, types::Change},
    runtime::Runtime,
};
use std::time::Duration;
use tracing::Instrument as _;

/// Changes of one commit while the first operations are generated.
const INITIAL_BATCH: usize = 1000;
/// Of so many generated changes, one overwrites the key written last, where the family allows it.
const OVERWRITE_ONE_IN: u64 = 5;
/// Length of generated values, in bytes: those of the peer that we measure against.
const VALUE_LENGTH: usize = 32;

/// Makes changes from random bytes.
struct Source32<E> {
    context: E,
    rule: WriteRule,
    last: Option<Vec<u8>>,
}

impl<E: Runtime> Source32<E> {
    fn change(&mut self) -> Change {
        let mut random = [0; 16 + VALUE_LENGTH];
        rand_core::Rng::fill_bytes(&mut self.context, &mut random);
        let value = random[16..].to_vec();
        if self.rule == WriteRule::Append {
            return Change::Append { value };
        }
        let overwrite =
            self.rule == WriteRule::Upsert && u64::from(random[15]) % OVERWRITE_ONE_IN == 0;
        let key = match self.last.take().filter(|_| overwrite) {
            Some(key) => key,
            None => format!("generated/{}", hex::encode(&random[..8])).into_bytes(),
        };
        self.last = Some(key.clone());
        Change::Put { key, value }
    }

    fn changes(&mut self, count: usize) -> WriteRequest {
        WriteRequest { changes: (0..count).map(|_| self.change()).collect(), idempotency: None }
    }
}

/// Writes `count` changes into a new database.
pub async fn fill<E: Runtime>(
    context: E,
    publisher: &Handle,
    rule: WriteRule,
    count: u64,
) -> Result<(), WriteError> {
    let mut source = Source32 { context, rule, last: None };
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    while left > 0 {
        let batch = left.min(INITIAL_BATCH);
        publisher.write(source.changes(batch), Source::Generator).await?;
        left -= batch;
    }
    Ok(())
}

/// Writes and says so.
async fn write(publisher: &Handle, request: WriteRequest) -> Result<(), WriteError> {
    let receipt = publisher.write(request, Source::Generator).await?;
    tracing::info!(
        database_ops = receipt.size,
        root = %receipt.root,
        sequence = receipt.sequence,
        "generated operations"
    );
    Ok(())
}

/// Writes `count` changes every `interval`, until the publisher is gone.
pub async fn run<E: Runtime>(
    context: E,
    publisher: Handle,
    rule: WriteRule,
    interval: Duration,
    count: usize,
) {
    let mut source = Source32 { context: context.child("random"), rule, last: None };
    let mut due = context.monotonic();
    loop {
        due += interval;
        context.sleep(due.saturating_sub(context.monotonic())).await;
        let span = tracing::info_span!("generator.write", changes = count);
        match write(&publisher, source.changes(count)).instrument(span).await {
            Ok(()) => {}
            Err(WriteError::Busy { retry_after }) => context.sleep(retry_after).await,
            Err(error) => {
                tracing::debug!(%error, "generator stops");
                return;
            }
        }
    }
}
