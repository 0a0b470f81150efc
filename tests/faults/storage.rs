//! Damaged, missing, moved and full storage.
