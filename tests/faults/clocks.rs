//! Clocks that jump, and what must not follow from it.
