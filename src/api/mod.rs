//! stub
mod backend;
pub use backend::*;
