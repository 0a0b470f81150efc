//! The HTTP API of both daemons: one router over a [`Backend`].

mod backend;
mod body;
mod contract;
mod drain;
mod entries;
mod export;
mod guard;
pub mod ndjson;
mod observe;
mod problem;
mod proofs;
mod router;

pub use backend::{
    Backend, ClientStatus, Export, Page, ReadError, Receipt, Room, Status, View, WriteError,
    WriteRequest, Writer,
};
pub use entries::read_entries;
pub use export::stream_export;
pub use guard::Tokens;
pub use observe::Metrics;
pub use problem::{Problem, busy};
pub use proofs::{Subject, prove};
pub use router::router;
pub use syncd_proto::database::{Entry, Name};
