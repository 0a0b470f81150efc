//! The HTTP API of both daemons: one router over a [`Backend`].

mod backend;
mod body;
mod contract;
mod drain;
mod export;
mod guard;
pub mod ndjson;
mod observe;
mod openapi;
mod problem;
mod router;
mod routes;

pub use backend::{Backend, Room, WriteError, WriteRequest, Writer};
pub use guard::Tokens;
pub use observe::Metrics;
pub use problem::{Problem, busy};
pub use router::router;
