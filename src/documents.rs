//! The JSON documents that the API answers with, and that `syncctl` reads.

pub use crate::directory::Role;

use crate::database::types::{DatabaseId, Family, HashKind, Mode, Root};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a daemon holds. A member that is not known yet is left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Status {
    /// Which daemon answers.
    pub role: Role,
    /// Version of the product.
    pub version: String,
    /// Kind of database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(required = false, value_type = schema::Family))]
    pub family: Option<Family>,
    /// What is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(required = false, value_type = schema::Mode))]
    pub mode: Option<Mode>,
    /// Hash of the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(required = false, value_type = schema::Hash))]
    pub hash: Option<HashKind>,
    /// Identity of the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(required = false, value_type = schema::Digest))]
    pub database: Option<DatabaseId>,
    /// Number of operations.
    pub size: u64,
    /// First operation that a new replica needs.
    pub floor: u64,
    /// Root of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(required = false, value_type = schema::Digest))]
    pub root: Option<Root>,
    /// Sequence of the newest commit held.
    pub sequence: u64,
    /// When it was committed, milliseconds since 1970.
    pub committed_at: u64,
    /// When it was last signed, milliseconds since 1970.
    pub signed_at: u64,
    /// Fields that only a client has.
    #[serde(flatten)]
    #[cfg_attr(feature = "daemon", schema(ignore))]
    pub client: Option<ClientStatus>,
}

/// What a client adds to its status.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct ClientStatus {
    /// `connecting`, `state_sync`, `following`, `polling`, `stalled` or `refusing`.
    pub state: String,
    /// The server as configured.
    pub server: String,
    /// Size of the newest signed checkpoint known.
    pub target_size: u64,
    /// Operations behind it.
    pub lag_operations: u64,
    /// Seconds behind.
    pub lag_seconds: f64,
    /// Iterations since the start.
    pub iterations: u64,
    /// Operations a second of the running state sync or catch-up.
    pub operations_per_second: f64,
    /// Seconds until the running state sync ends, if one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(nullable = false))]
    pub eta_seconds: Option<f64>,
    /// The last thing that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(nullable = false))]
    pub last_error: Option<String>,
}

/// The state after a write. It is on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Receipt {
    /// Operations in the database after the commit.
    pub size: u64,
    /// Its root.
    #[cfg_attr(feature = "daemon", schema(value_type = schema::Digest))]
    pub root: Root,
    /// Sequence of the commit.
    pub sequence: u64,
}

/// An error, as RFC 9457 has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct ProblemDetails {
    /// Always `about:blank`; `code` says which problem it is.
    pub r#type: String,
    /// The reason phrase of the status.
    pub title: String,
    /// The status of the answer.
    pub status: u16,
    /// Which problem it is, in a word that does not change.
    pub code: String,
    /// What happened, in a sentence.
    pub detail: String,
    /// The line of the body that it is about, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "daemon", schema(nullable = false, minimum = 1))]
    pub line: Option<usize>,
}

/// Where a daemon listens: `public/endpoints.json` in its storage directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The port for replicas, of a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SocketAddr>,
    /// The HTTP API.
    pub api: SocketAddr,
    /// Metrics and health.
    pub metrics: SocketAddr,
}

/// How the database's types are written in JSON.
#[cfg(feature = "daemon")]
pub(crate) mod schema {
    use crate::database::types;
    use std::borrow::Cow;
    use utoipa::{
        PartialSchema, ToSchema,
        openapi::{ObjectBuilder, RefOr, Schema, Type},
    };

    /// Declares the schema of a string that stands for a type of another crate.
    macro_rules! string {
        ($name:ident, $says:literal, $schema:expr) => {
            pub(crate) struct $name;

            impl PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    let schema = ObjectBuilder::new().schema_type(Type::String);
                    let restricted: fn(ObjectBuilder) -> ObjectBuilder = $schema;
                    restricted(schema.description(Some($says))).into()
                }
            }

            impl ToSchema for $name {
                fn name() -> Cow<'static, str> {
                    stringify!($name).into()
                }
            }
        };
    }

    string!(Digest, "32 bytes in hexadecimal digits", |schema| {
        schema.pattern(Some("^[0-9a-f]{64}$"))
    });
    string!(Family, "Kind of database", |schema| {
        schema.enum_values(Some(types::Family::ALL.iter().map(|family| family.as_str())))
    });
    string!(Mode, "What a process keeps of a database", |schema| {
        schema.enum_values(Some(types::Mode::ALL.iter().map(|mode| mode.as_str())))
    });
    string!(Hash, "Hash function of a database", |schema| {
        schema.enum_values(Some(types::HashKind::ALL.iter().map(|hash| hash.as_str())))
    });
}
