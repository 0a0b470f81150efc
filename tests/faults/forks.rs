//! Two histories under one key: whatever order and sizes they have, they are recognised.
