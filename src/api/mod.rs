//! stub
mod backend;
mod export;
pub use backend::*;
pub use export::stream_export;
