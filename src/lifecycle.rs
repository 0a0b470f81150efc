//! A daemon's life outside of its work: the signals it gets, its health.

use crate::{tasks::Task, watch};
use commonware_utils::sync::Mutex;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{io, sync::Arc};

/// Signals of the process.
#[derive(Clone)]
pub struct Shutdown {
    requested: watch::Receiver<bool>,
    reloads: watch::Receiver<u64>,
    reloads_seen: Arc<Mutex<u64>>,
}

impl Shutdown {
    /// Listens for signals: the first SIGTERM or SIGINT requests the end, the second ends the
    /// process at once; SIGHUP asks for a reload.
    pub fn install() -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let (request, requested) = watch::channel(false);
        let (reload, reloads) = watch::channel(0);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    reload.send_modify(|count| *count += 1);
                } else if request.send_replace(true) {
                    crate::stdio::flush();
                    // By convention 128 and the signal's number.
                    std::process::exit(128 + signal);
                }
            }
        })?;
        Ok(Self { requested, reloads, reloads_seen: Arc::default() })
    }

    /// Waits until the end is requested.
    pub async fn wait(&self) {
        let mut requested = self.requested.clone();
        if requested.wait_for(|requested| *requested).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the next SIGHUP. One that came while nobody waited counts.
    pub async fn reload_signal(&self) {
        let mut reloads = self.reloads.clone();
        let seen = *self.reloads_seen.lock();
        match reloads.wait_for(|count| *count > seen).await {
            Ok(count) => *self.reloads_seen.lock() = *count,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Says whether the process is ready, and why not.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What `/livez` and `/readyz` answer.
#[derive(Clone)]
pub struct Health {
    ready: Arc<Mutex<Option<Ready>>>,
    draining: Arc<watch::Sender<bool>>,
    dead: Arc<Mutex<Option<Task>>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            ready: Arc::default(),
            draining: Arc::new(watch::Sender::new(false)),
            dead: Arc::default(),
        }
    }
}

impl Health {
    /// Sets how readiness is found out; before, the process is starting.
    pub fn set_ready(&self, ready: Ready) {
        *self.ready.lock() = Some(ready);
    }

    /// From here on the process is not ready any more.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// A supervised task died.
    pub fn died(&self, task: Task) {
        self.dead.lock().get_or_insert(task);
    }

    /// Whether requests should be sent here.
    pub fn readiness(&self) -> Result<(), String> {
        if *self.draining.borrow() {
            return Err("draining".into());
        }
        let ready = self.ready.lock().clone();
        ready.map_or_else(|| Err("starting".into()), |ready| ready())
    }

    /// Whether the process should be left alone.
    pub fn liveness(&self) -> Result<(), String> {
        self.dead.lock().map_or(Ok(()), |task| Err(format!("task '{task}' has died")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn draining_is_not_ready() {
        let health = Health::default();
        assert_eq!(health.readiness().unwrap_err(), "starting");
        health.set_ready(Arc::new(|| Ok(())));
        health.readiness().unwrap();
        health.drain();
        assert_eq!(health.readiness().unwrap_err(), "draining");
        health.liveness().unwrap();
        health.died(Task::Publisher);
        assert!(health.liveness().unwrap_err().contains("publisher"));
    }
}
