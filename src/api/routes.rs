//! Every route of the API, once. The router, the check of what a request may say, and the OpenAPI
//! document are made from this table.

use super::problem::Code;

/// What a route does; the router names a handler for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    GetKey,
    PutKey,
    DeleteKey,
    WriteBatch,
    AppendValue,
    ListEntries,
    GetEntry,
    ProveOperation,
    Export,
    GetCheckpoint,
    GetStatus,
    GetDocument,
}

/// A query parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parameter {
    MinSize,
    Timeout,
    /// A proof file instead of the value.
    Proof,
    /// The same, where there is nothing else to answer.
    OnlyProof,
    From,
    Limit,
}

impl Parameter {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::MinSize => "min_size",
            Self::Timeout => "timeout",
            Self::Proof | Self::OnlyProof => "proof",
            Self::From => "from",
            Self::Limit => "limit",
        }
    }
}

/// The body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Value,
    Batch,
}

/// The body of a successful answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    ValueOrProof,
    Proof,
    Receipt,
    Entries,
    Export,
    Checkpoint,
    Status,
    Document,
}

impl Answers {
    /// Whether the answer is read from a state, which its headers name.
    pub(super) const fn name_a_state(self) -> bool {
        matches!(self, Self::ValueOrProof | Self::Proof | Self::Entries | Self::Export)
    }
}

/// What one route and method take and answer.
pub(super) struct Route {
    pub(super) call: Call,
    pub(super) method: &'static str,
    /// As the router matches it.
    pub(super) path: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) takes: Takes,
    pub(super) answers: Answers,
    /// Problems beyond those of [`EVERYWHERE`].
    pub(super) problems: &'static [Code],
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
}

impl Route {
    /// The names of its query parameters.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.parameters.iter().map(|parameter| parameter.name())
    }

    pub(super) fn is_read(&self) -> bool {
        self.method == "GET"
    }
}

/// Problems that every route can answer: of what stands before the handlers.
pub(super) const EVERYWHERE: &[Code] = &[
    Code::Malformed,
    Code::MissingHost,
    Code::UnknownParameter,
    Code::DuplicateParameter,
    Code::DuplicateHeader,
    Code::ContentRange,
    Code::UnsupportedHeader,
    Code::Unauthorized,
    Code::ForeignOrigin,
    Code::ContentEncoding,
    Code::Expectation,
    Code::ForeignHost,
    Code::Busy,
    Code::UnsupportedCondition,
    Code::TransferEncoding,
    Code::Timeout,
];

/// Problems of a write with a body.
const WRITE: &[Code] = &[
    Code::ReadOnly,
    Code::BodyTimeout,
    Code::Conflict,
    Code::TooLarge,
    Code::ContentType,
    Code::Unsupported,
    Code::IdempotencyMismatch,
    Code::Internal,
    Code::Unavailable,
    Code::Draining,
];

/// Every route of the API. `HEAD` is as `GET`.
pub(super) const ROUTES: &[Route] = &[
    Route {
        call: Call::GetKey,
        method: "GET",
        path: "/v1/keys/{*key}",
        parameters: &[Parameter::MinSize, Parameter::Timeout, Parameter::Proof],
        takes: Takes::Nothing,
        answers: Answers::ValueOrProof,
        problems: &[
            Code::UnexpectedBody,
            Code::NotFound,
            Code::Behind,
            Code::TooLarge,
            Code::Unsupported,
            Code::NotProvable,
            Code::Compact,
            Code::Internal,
            Code::NoVerifiedState,
            Code::Draining,
        ],
        summary: "Read a key",
        description: "Answers the value as it was written. With `proof=true` (`current`) it answers a proof file of the \
            value, or of the key's absence.",
    },
    Route {
        call: Call::PutKey,
        method: "PUT",
        path: "/v1/keys/{*key}",
        parameters: &[],
        takes: Takes::Value,
        answers: Answers::Receipt,
        problems: WRITE,
        summary: "Write a key",
        description: "Sets the key to the body, byte for byte. Answered once the write is on disk. In `immutable` a key is set \
            once. `keyless` has no keys.",
    },
    Route {
        call: Call::DeleteKey,
        method: "DELETE",
        path: "/v1/keys/{*key}",
        parameters: &[],
        takes: Takes::Nothing,
        answers: Answers::Receipt,
        problems: &[
            Code::UnexpectedBody,
            Code::ReadOnly,
            Code::TooLarge,
            Code::Unsupported,
            Code::IdempotencyMismatch,
            Code::Internal,
            Code::Unavailable,
        ],
        summary: "Delete a key",
        description: "Deletes the key, whether or not it exists (`any`, `current`). Answered once the deletion is on disk.",
    },
    Route {
        call: Call::WriteBatch,
        method: "POST",
        path: "/v1/batch",
        parameters: &[],
        takes: Takes::Batch,
        answers: Answers::Receipt,
        problems: WRITE,
        summary: "Write many records",
        description: "Commits every line of the body, or none. A later line of the same key wins. Answered once the commit is on disk.",
    },
    Route {
        call: Call::AppendValue,
        method: "POST",
        path: "/v1/append",
        parameters: &[],
        takes: Takes::Value,
        answers: Answers::Receipt,
        problems: WRITE,
        summary: "Append a value (`keyless`)",
        description: "Appends the body to the log, byte for byte. Answered once it is on disk.",
    },
    Route {
        call: Call::ListEntries,
        method: "GET",
        path: "/v1/entries",
        parameters: &[Parameter::From, Parameter::Limit],
        takes: Takes::Nothing,
        answers: Answers::Entries,
        problems: &[
            Code::UnexpectedBody,
            Code::Pruned,
            Code::Unsupported,
            Code::Compact,
            Code::Internal,
            Code::NoVerifiedState,
        ],
        summary: "Read a page of the log (`keyless`)",
        description: "A page ends after `limit` values, 1 MiB, or 4,096 operations looked at, so it may be empty. Go on \
            with `from` set to `next` until that equals `Syncd-Size`.",
    },
    Route {
        call: Call::GetEntry,
        method: "GET",
        path: "/v1/entries/{location}",
        parameters: &[Parameter::Proof],
        takes: Takes::Nothing,
        answers: Answers::ValueOrProof,
        problems: &[
            Code::UnexpectedBody,
            Code::NotFound,
            Code::NotAnEntry,
            Code::Pruned,
            Code::Unsupported,
            Code::Compact,
            Code::Internal,
            Code::NoVerifiedState,
        ],
        summary: "Read a value of the log (`keyless`)",
        description: "Answers the value as it was appended; with `proof=true` a proof file of it.",
    },
    Route {
        call: Call::ProveOperation,
        method: "GET",
        path: "/v1/operations/{location}",
        parameters: &[Parameter::OnlyProof],
        takes: Takes::Nothing,
        answers: Answers::Proof,
        problems: &[
            Code::UnexpectedBody,
            Code::NotFound,
            Code::Pruned,
            Code::Compact,
            Code::Internal,
            Code::NoVerifiedState,
        ],
        summary: "Prove an operation",
        description: "Answers a proof file that the operation is at this location of the log.",
    },
    Route {
        call: Call::Export,
        method: "GET",
        path: "/v1/export",
        parameters: &[],
        takes: Takes::Nothing,
        answers: Answers::Export,
        problems: &[
            Code::UnexpectedBody,
            Code::Compact,
            Code::Internal,
            Code::NoVerifiedState,
            Code::Draining,
        ],
        summary: "Export the state",
        description: "Streams one consistent state, the one that the headers name: each key or value once, a record a line, in no \
            particular order. A body that ends without its last chunk is an incomplete export. One export runs at a time.",
    },
    Route {
        call: Call::GetCheckpoint,
        method: "GET",
        path: "/v1/checkpoint",
        parameters: &[],
        takes: Takes::Nothing,
        answers: Answers::Checkpoint,
        problems: &[Code::UnexpectedBody, Code::NoVerifiedState],
        summary: "Read the newest signed state",
        description: "The newest checkpoint held, with its signature.",
    },
    Route {
        call: Call::GetStatus,
        method: "GET",
        path: "/v1/status",
        parameters: &[],
        takes: Takes::Nothing,
        answers: Answers::Status,
        problems: &[Code::UnexpectedBody],
        summary: "Read the status",
        description: "What the daemon holds and, on a replica, how far it is behind.",
    },
    Route {
        call: Call::GetDocument,
        method: "GET",
        path: "/v1/openapi.json",
        parameters: &[],
        takes: Takes::Nothing,
        answers: Answers::Document,
        problems: &[Code::UnexpectedBody],
        summary: "Read this document",
        description: "The OpenAPI document of this version.",
    },
];
