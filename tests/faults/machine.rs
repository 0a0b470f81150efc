//! Descriptors, pipes, signals, namespaces, addresses.
