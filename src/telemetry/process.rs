//! What the process uses of the machine: `process_*`, under the names that every exporter has.

use super::traces::SpanCounts;
use crate::stdio::queue;
use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use commonware_utils::sync::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::sync::atomic::AtomicU64;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

type Seconds = Counter<f64, AtomicU64>;

/// Label of `syncd_connections_max`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PortLabel {
    /// `api`, `metrics` or `sync`.
    port: &'static str,
}

/// Metrics of the process, read when they are asked for.
pub struct Process {
    system: Mutex<System>,
    cpu: Registered<Seconds>,
    resident_memory: Registered<Gauge>,
    virtual_memory: Registered<Gauge>,
    open_files: Registered<Gauge>,
    open_files_max: Registered<Gauge>,
    threads: Registered<Gauge>,
    start_time: Registered<Gauge>,
    _spans: Registered<SpanCounts>,
    _log_lines_dropped: Registered<Counter>,
    _connections_max: Registered<Family<PortLabel, Gauge>>,
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Process {
    /// Registers the metrics: `process` names those of the process, `product` is the registry of
    /// what `spans` counts.
    pub fn new(
        process: &impl Registry,
        product: &impl Registry,
        spans: SpanCounts,
        connections_max: &[(&'static str, usize)],
    ) -> Self {
        let log_lines_dropped = queue::started().map(queue::Queue::dropped).unwrap_or_default();
        let connections = Family::<PortLabel, Gauge>::default();
        for (port, max) in connections_max {
            connections.get_or_create(&PortLabel { port }).set(gauge(*max as u64));
        }
        let gauge = |name: &str, help: &str| process.register(name, help, Gauge::default());
        Self {
            system: Mutex::new(System::new()),
            cpu: process.register(
                "cpu_seconds",
                "Seconds of processor time that the process used",
                Seconds::default(),
            ),
            resident_memory: gauge("resident_memory_bytes", "Bytes of memory that are resident"),
            virtual_memory: gauge("virtual_memory_bytes", "Bytes of virtual memory"),
            open_files: gauge("open_fds", "Open file descriptors"),
            open_files_max: gauge("max_fds", "Most file descriptors that may be open"),
            threads: gauge("threads", "Threads of the process"),
            start_time: gauge("start_time_seconds", "Unix time at which the process started"),
            _spans: product.register("trace_spans", "Spans by what became of them", spans),
            _log_lines_dropped: product.register(
                "log_lines_dropped",
                "Lines of the log that were dropped: standard error was not read, or could not be written",
                log_lines_dropped,
            ),
            _connections_max: product.register(
                "connections_max",
                "Most connections at once by port, as far as file descriptors allow",
                connections,
            ),
        }
    }

    /// Reads everything again.
    pub fn measure(&self) {
        let pid = Pid::from_u32(std::process::id());
        let mut system = self.system.lock();
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory().with_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
        let Some(process) = system.process(pid) else { return };
        let seconds = process.accumulated_cpu_time() as f64 / 1000.0;
        self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        self.resident_memory.set(gauge(process.memory()));
        self.virtual_memory.set(gauge(process.virtual_memory()));
        self.start_time.set(gauge(process.start_time()));
        let count = |n: Option<usize>| n.map(|n| gauge(n as u64));
        if let Some(files) = count(process.open_files()) {
            self.open_files.set(files);
        }
        if let Some(files) = count(process.open_files_limit()) {
            self.open_files_max.set(files);
        }
        if let Some(threads) = process.tasks() {
            self.threads.set(gauge(threads.len() as u64));
        }
    }
}
