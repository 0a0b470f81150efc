//! What a supervisor that speaks systemd's protocol is told: ready, reloading, stopping, alive, and how things stand.
//!
//! Nothing is sent unless `NOTIFY_SOCKET` names a socket. Sending is the work of a thread: a supervisor that does not
//! read its socket must not hold up the daemon. The thread only sends what tasks of the runtime give it, so that
//! `WATCHDOG=1` says that the runtime runs its tasks and its timers.

use crate::{documents::Status, lifecycle::Health};
use sd_notify::NotifyState;
use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::Duration,
};

/// Messages that may wait; more are dropped.
const MESSAGES_MAX: usize = 16;
/// How often the status is sent, unless the watchdog is fed more often.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How long the end of the process waits until it is announced.
const STOPPING_TIMEOUT: Duration = Duration::from_millis(100);

/// One message.
struct Message {
    words: Vec<Word>,
    /// Dropped when the message is sent.
    _sent: Option<SyncSender<()>>,
}

/// What is told.
enum Word {
    Ready,
    Reloading,
    Stopping,
    Alive,
    Status(String),
}

/// The way to the supervisor.
#[derive(Clone)]
pub struct Supervisor(Option<SyncSender<Message>>);

impl Supervisor {
    /// Starts the thread if there is a supervisor to tell.
    pub fn start() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
            return Self(None);
        }
        let (sender, messages) = sync_channel(MESSAGES_MAX);
        let thread = std::thread::Builder::new().name("supervisor".into());
        Self(thread.spawn(move || send_all(&messages)).ok().map(|_| sender))
    }

    fn tell(&self, words: Vec<Word>) {
        self.send(Message { words, _sent: None });
    }

    fn send(&self, message: Message) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(message);
        }
    }

    /// The daemon serves.
    pub fn ready(&self) {
        self.tell(vec![Word::Ready]);
    }

    /// The daemon reads its files again; followed by [`Self::ready`].
    pub fn reloading(&self) {
        self.tell(vec![Word::Reloading]);
    }

    /// The daemon drains. Waits until this is sent, for a bounded time.
    pub fn stopping(&self) {
        if self.0.is_some() {
            let (sent, done) = sync_channel(0);
            self.send(Message { words: vec![Word::Stopping], _sent: Some(sent) });
            let _ = done.recv_timeout(STOPPING_TIMEOUT);
        }
    }

    /// Sends the status from time to time, and feeds the watchdog at half its time while every task lives. On this
    /// thread's runtime, for ever.
    pub fn watch(&self, health: Health, status: impl Fn() -> Status + Send + 'static) {
        if self.0.is_none() {
            return;
        }
        let supervisor = self.clone();
        let watchdog = sd_notify::watchdog_enabled();
        let interval = watchdog.map_or(STATUS_INTERVAL, |time| (time / 2).min(STATUS_INTERVAL));
        tokio::spawn(async move {
            loop {
                let mut words = vec![Word::Status(describe(&status()))];
                if watchdog.is_some() && health.liveness().is_ok() {
                    words.push(Word::Alive);
                }
                supervisor.tell(words);
                tokio::time::sleep(interval).await;
            }
        });
    }
}

/// How things stand, on one line.
fn describe(status: &Status) -> String {
    let (size, sequence) = (status.size, status.sequence);
    match &status.client {
        None => format!("serving {size} operations, sequence {sequence}"),
        Some(client) => format!(
            "{}, {size} operations, sequence {sequence}, lag {} operations, {:.1} s",
            client.state, client.lag_operations, client.lag_seconds
        ),
    }
}

fn send_all(messages: &Receiver<Message>) {
    for message in messages {
        let mut states = Vec::new();
        for word in &message.words {
            if let Word::Reloading = word {
                // With it, systemd tells this reload from an earlier one.
                states.extend(NotifyState::monotonic_usec_now());
            }
            states.push(match word {
                Word::Ready => NotifyState::Ready,
                Word::Stopping => NotifyState::Stopping,
                Word::Alive => NotifyState::Watchdog,
                Word::Status(text) => NotifyState::Status(text),
                Word::Reloading => NotifyState::Reloading,
            });
        }
        if let Err(error) = sd_notify::notify(&states) {
            tracing::debug!(%error, "the supervisor was not told");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::documents::ClientStatus;

    #[test]
    fn the_status_says_how_far_and_how_late() {
        let text = r#"{"role":"client","version":"1","size":7,"floor":0,"sequence":3,"committed_at":0,"signed_at":0}"#;
        let mut status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(describe(&status), "serving 7 operations, sequence 3");
        status.client = Some(ClientStatus {
            state: "following".into(),
            lag_operations: 2,
            lag_seconds: 0.25,
            ..ClientStatus::default()
        });
        let expected = "following, 7 operations, sequence 3, lag 2 operations, 0.2 s";
        assert_eq!(describe(&status), expected);
    }
}
