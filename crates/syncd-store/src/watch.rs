//! A value that one side changes and others wait for, with the interface of `tokio::sync::watch`.
//!
//! That one wakes its waiters in an order drawn from the thread's own randomness; this one wakes
//! them in the order in which they began to wait, so that a simulation repeats itself from its seed.

use commonware_utils::sync::{RwLock, RwLockReadGuard};
use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::Notify;

/// Every sender is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value does not change any more")]
pub struct Closed;

#[derive(Debug)]
struct State<T> {
    value: T,
    version: u64,
}

#[derive(Debug)]
struct Shared<T> {
    state: RwLock<State<T>>,
    changed: Notify,
    senders: AtomicUsize,
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Waits for changes of the value.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value, which does not change while this is held. Not to be held across an await.
pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// A sender and a receiver that has seen `value`.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A sender without receivers.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            state: RwLock::new(State { value, version: 0 }),
            changed: Notify::new(),
            senders: AtomicUsize::new(1),
        }))
    }

    /// A receiver that has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.state.read().version;
        Receiver { shared: self.0.clone(), seen }
    }

    /// The present value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.state.read())
    }

    /// Changes the value and wakes the receivers if `change` says that it did.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = {
            let mut state = self.0.state.write();
            let modified = change(&mut state.value);
            state.version += u64::from(modified);
            modified
        };
        if modified {
            self.0.changed.notify_waiters();
        }
        modified
    }

    /// Changes the value and wakes the receivers.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Replaces the value, wakes the receivers, and gives the value before.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|present| std::mem::swap(present, &mut value));
        value
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::AcqRel);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    /// The present value; does not count as seen.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.state.read())
    }

    /// The present value, which counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.state.read();
        self.seen = state.version;
        Ref(state)
    }

    /// Waits for a value that was not seen; it counts as seen then.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        self.shared.changed(&mut self.seen).await
    }

    /// Waits for a value that `condition` holds for, the present one included; it counts as seen
    /// then.
    pub async fn wait_for(
        &mut self,
        mut condition: impl FnMut(&T) -> bool,
    ) -> Result<Ref<'_, T>, Closed> {
        let Self { shared, seen } = self;
        let shared: &Shared<T> = shared;
        loop {
            {
                let state = shared.state.read();
                *seen = state.version;
                if condition(&state.value) {
                    return Ok(Ref(state));
                }
            }
            shared.changed(seen).await?;
        }
    }
}

impl<T> Shared<T> {
    /// Waits for another version than `seen`.
    async fn changed(&self, seen: &mut u64) -> Result<(), Closed> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            // Before the version, so that the last change of a sender that then went is seen.
            let is_closed = self.senders.load(Ordering::Acquire) == 0;
            let version = self.state.read().version;
            if version != *seen {
                *seen = version;
                return Ok(());
            }
            if is_closed {
                return Err(Closed);
            }
            changed.await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn changes_are_seen_once() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(receiver.changed().now_or_never(), None);
        sender.send_replace(2);
        sender.send_replace(3);
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(*receiver.borrow(), 3);
        assert_eq!(receiver.changed().now_or_never(), None);
        assert!(!sender.send_if_modified(|_| false));
        assert_eq!(receiver.changed().now_or_never(), None);
        let mut late = sender.subscribe();
        assert_eq!(late.changed().now_or_never(), None);
        sender.send_modify(|value| *value += 1);
        assert_eq!(*receiver.borrow_and_update(), 4);
        assert_eq!(receiver.changed().now_or_never(), None);
        assert_eq!(late.changed().now_or_never(), Some(Ok(())));
    }

    #[test]
    fn the_last_value_of_a_sender_that_went_is_seen() {
        let (sender, mut receiver) = channel(1);
        let other = sender.clone();
        sender.send_replace(2);
        drop(sender);
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert_eq!(receiver.changed().now_or_never(), None, "there is another sender");
        drop(other);
        assert_eq!(receiver.changed().now_or_never(), Some(Err(Closed)));
        assert_eq!(
            receiver.wait_for(|value| *value == 2).now_or_never().map(|v| *v.unwrap()),
            Some(2)
        );
        assert!(receiver.wait_for(|value| *value == 3).now_or_never().unwrap().is_err());
    }

    #[tokio::test]
    async fn waiters_are_woken_in_their_order() {
        let (sender, receiver) = channel(0);
        let order = Arc::new(RwLock::new(Vec::new()));
        let mut tasks = Vec::new();
        for n in 0..20 {
            let (mut receiver, order) = (receiver.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                receiver.wait_for(|value| *value == 1).await.map(|_| ()).unwrap();
                order.write().push(n);
            }));
            tokio::task::yield_now().await;
        }
        sender.send_replace(1);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.read(), (0..20).collect::<Vec<_>>());
    }
}
