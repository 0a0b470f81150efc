//! Failures of the storage.

use commonware_runtime::{Metrics as Registry, telemetry::metrics::Registered};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::sync::Arc;

/// Which use of the storage failed.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OperationLabel {
    /// `commit`, `maintain`, `read`, or `record` for a small record with a damaged copy.
    pub operation: &'static str,
}

/// `syncd_storage_errors_total`, which servers and clients share.
#[derive(Clone)]
pub struct StorageErrors(Arc<Registered<Family<OperationLabel, Counter>>>);

impl StorageErrors {
    /// Registers the metric; `registry` is the one of the product.
    pub fn new(registry: &impl Registry) -> Self {
        let errors = Self(Arc::new(registry.register(
            "storage_errors",
            "Failures of the storage by what was done with it",
            Family::default(),
        )));
        // A series that begins with its first failure would hide that failure from rates.
        for operation in ["commit", "maintain", "read", "record"] {
            let _ = errors.0.get_or_create(&OperationLabel { operation });
        }
        errors
    }

    /// Counts a failure.
    pub fn count(&self, operation: &'static str) {
        self.0.get_or_create(&OperationLabel { operation }).inc();
    }
}
