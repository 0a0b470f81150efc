//! Writers, and what they may rely on.

use super::{BULK, Cast, KEYS, Story};
use crate::{machine::Point, model::Answered};
use commonware_runtime::{Clock as _, deterministic};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use syncd::{
    api::{WriteError, WriteRequest},
    database::types::{Change, Digest, Family},
    server::publisher::Source,
};

impl Story {
    /// A writer, for as long as the story lasts. What it is told goes to the model.
    pub(super) async fn write(context: deterministic::Context, story: Arc<Self>, writer: u64) {
        let mut number = 0u64;
        while !story.is_over.load(Ordering::Relaxed) {
            number += 1;
            story.write_once(writer, number).await;
            let pause = match story.world.draw(0, 20) {
                0 => Duration::from_millis(story.world.draw(100, 2000)),
                1..=12 => Duration::ZERO,
                _ => Duration::from_millis(story.world.draw(1, 20)),
            };
            context.sleep(pause.max(Duration::from_micros(100))).await;
        }
    }

    async fn write_once(&self, writer: u64, number: u64) {
        let value = writer * 1_000_000 + number;
        let overwrites = matches!(self.case.family, Family::Any | Family::Current);
        let key = if overwrites { writer * 100 + number % KEYS } else { value };
        let idempotency = self
            .world
            .one_in(2)
            .then(|| (format!("request-{value}").into_bytes(), Digest([writer as u8; 32])));
        let mut changes = vec![crate::write(self.case, key, value)];
        if overwrites && self.world.one_in(8) {
            // Of two changes of one key, the later one counts.
            changes.insert(0, crate::write(self.case, key, u64::MAX));
        }
        if self.is_bulky && writer == 0 && self.world.one_in(4) {
            changes.extend(self.bulk(value));
        }
        let request = WriteRequest { changes, idempotency };
        self.model.lock().unwrap().attempted.insert(value);
        // One that may be tried again is, until it is answered.
        let tries = if request.idempotency.is_some() { 50 } else { 1 };
        for _ in 0..tries {
            let running = self.publisher.lock().unwrap().clone();
            let Some((life, publisher)) = running else {
                self.world.sleep(Duration::from_millis(20)).await;
                continue;
            };
            let answer = tokio::select! {
               biased;
                answer = publisher.write(request.clone(), Source::Api) => answer,
                () = life.died() => Err(WriteError::Unavailable("it died".into())),
            };
            match answer {
                Ok(receipt) => {
                    let mut model = self.model.lock().unwrap();
                    model.acknowledge(key, value, &receipt);
                    if request.idempotency.is_some() {
                        model.answered.push(Answered::new(request, receipt));
                    }
                    drop(model);
                    // The power may go out right after somebody was told.
                    life.note(Point::Acknowledged, "");
                    return;
                }
                // Of a key that is set once: by an earlier try.
                Err(WriteError::Conflict(_)) => return,
                Err(_) => self.world.sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Many changes that nobody looks for.
    fn bulk(&self, value: u64) -> impl Iterator<Item = Change> + '_ {
        let fill = u64::MAX.to_be_bytes().to_vec();
        (0..self.world.draw(0, 2 * BULK)).map(move |number| {
            let key = match self.case.family {
                Family::Immutable => format!("bulk/{value}/{number}"),
                _ => format!("bulk/{number}"),
            };
            match self.case.family {
                Family::Keyless => Change::Append { value: fill.clone() },
                _ => Change::Put { key: key.into_bytes(), value: fill.clone() },
            }
        })
    }

    /// Asks for an answered request again: it is answered the same while its record is kept.
    pub(super) async fn ask_again(&self, cast: &Cast) {
        let Some(server) = &cast.server else { return };
        let first = server.parts.0.log().bounds().first;
        let promised = |answered: &&Answered| answered.is_promised(first);
        let promised: Vec<_> =
            self.model.lock().unwrap().answered.iter().filter(promised).cloned().collect();
        if promised.is_empty() {
            return;
        }
        let index = self.world.draw(0, promised.len() as u64) as usize;
        let answered = promised[index].clone();
        let (request, receipt) = (answered.request.clone(), &answered.receipt);
        let asking = server.parts.1.write(request.clone(), Source::Api);
        let answer = tokio::select! {
           biased;
            answer = asking => answer,
            () = server.life.died() => Err(WriteError::Unavailable("it died".into())),
        };
        // The record may have been trimmed while this was on its way.
        let first = server.parts.0.log().bounds().first;
        if !answered.is_promised(first) {
            self.model.lock().unwrap().may_be_twice(&request.changes);
        }
        if let Ok(again) = answer {
            assert!(
                again.sequence == receipt.sequence || !answered.is_promised(first),
                "a request was executed twice: {receipt:?}, {again:?}"
            );
        }
    }

    /// A key that is set once stays as it is.
    pub(super) async fn set_again(&self, cast: &Cast) {
        if self.case.family != Family::Immutable {
            return;
        }
        let Some(server) = &cast.server else { return };
        let acknowledged = self.model.lock().unwrap().acknowledged.clone();
        let skip = self.world.draw(0, acknowledged.len() as u64 + 1) as usize;
        let Some(key) = acknowledged.keys().nth(skip) else { return };
        let changes = vec![crate::write(self.case, *key, u64::MAX)];
        let request = WriteRequest { changes, idempotency: None };
        let answer = tokio::select! {
           biased;
            answer = server.parts.1.write(request, Source::Api) => answer,
            () = server.life.died() => return,
        };
        assert!(answer.is_err(), "key {key} was set twice");
    }
}
