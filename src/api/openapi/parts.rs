//! The parts that several routes share: parameters, headers, bodies.

use crate::{
    api::{
        problem::Code,
        router::{BATCH_TYPES, ENTRIES_DEFAULT, ENTRIES_MAX, VALUE_TYPES, WAIT_DEFAULT, WAIT_MAX},
        routes::{Parameter, Takes},
    },
    database::types::{IDEMPOTENCY_KEY_LENGTH_MAX, KEY_LENGTH_MAX},
    documents::schema::Digest,
};
use serde_json::Value;
use utoipa::{
    ToSchema as _,
    openapi::{
        AllOfBuilder, ArrayBuilder, Content, Header, HeaderBuilder, Object, ObjectBuilder,
        OneOfBuilder, Ref, RefOr, Required, Response, Schema, Type,
        path::{Parameter as OpenApiParameter, ParameterBuilder, ParameterIn},
        request_body::{RequestBody, RequestBodyBuilder},
        schema::SchemaType,
    },
};

/// A header of an answer.
pub(super) struct AnswerHeader {
    pub(super) name: &'static str,
    says: &'static str,
    schema: fn() -> RefOr<Schema>,
    /// Whether it names the state that an answer was read from.
    pub(super) names_the_state: bool,
    /// Problems that have it.
    with: &'static [Code],
}

impl AnswerHeader {
    /// Whether each problem with one of `codes` has it.
    pub(super) fn comes_with(&self, codes: &[Code]) -> bool {
        codes.iter().all(|code| self.with.contains(code))
    }
}

/// A state that has no such key or value is named as well.
const ABSENT: &[Code] = &[Code::NotFound, Code::NotAnEntry];
/// Problems that pass.
const PASSES: &[Code] = &[Code::Busy, Code::NoVerifiedState, Code::Unavailable, Code::Draining];

const fn of_state(
    name: &'static str,
    says: &'static str,
    schema: fn() -> RefOr<Schema>,
) -> AnswerHeader {
    AnswerHeader { name, says, schema, names_the_state: true, with: ABSENT }
}

const fn of_problems(
    name: &'static str,
    says: &'static str,
    schema: fn() -> RefOr<Schema>,
    with: &'static [Code],
) -> AnswerHeader {
    AnswerHeader { name, says, schema, names_the_state: false, with }
}

/// The headers of answers.
pub(super) const HEADERS: &[AnswerHeader] = &[
    of_state("Syncd-Database", "Identity of the database", digest),
    of_state("Syncd-Size", "Operations of the state that the answer was read from", count),
    of_state("Syncd-Root", "Root of that state", digest),
    of_state("Syncd-Lag-Seconds", "Seconds that it may be behind the publisher", seconds),
    of_problems("Retry-After", "Seconds after which to ask again", count_from_1, PASSES),
    of_problems("Allow", "Methods that this daemon takes on the path", text, &[Code::ReadOnly]),
    of_problems("WWW-Authenticate", "`Bearer`", text, &[Code::Unauthorized]),
];

fn digest() -> RefOr<Schema> {
    Ref::from_schema_name(Digest::name()).into()
}

fn text() -> RefOr<Schema> {
    Object::with_type(Type::String).into()
}

fn count() -> RefOr<Schema> {
    integer(0).into()
}

fn count_from_1() -> RefOr<Schema> {
    integer(1).into()
}

fn seconds() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).into()
}

/// An integer of at most 64 bits.
fn integer(minimum: usize) -> ObjectBuilder {
    let integer = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(minimum));
    integer.maximum(Some(usize::MAX))
}

pub(super) fn header(of: &AnswerHeader) -> Header {
    HeaderBuilder::new().description(Some(of.says)).schema(Some((of.schema)())).build()
}

/// Says of every header that it is always there: the library's structure has no member for it.
pub(super) fn demand_headers(document: &mut Value) {
    let headers = document.pointer_mut("/components/headers").and_then(Value::as_object_mut);
    for header in headers.into_iter().flat_map(|headers| headers.values_mut()) {
        header["required"] = true.into();
    }
}

/// The parameters within a path.
pub(super) fn path_parameters(path: &str) -> Vec<OpenApiParameter> {
    let parameter = |name: &str, says: &str, schema: RefOr<Schema>| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(says))
            .schema(Some(schema))
            .build()
    };
    if path.ends_with("{*key}") {
        let says = format!(
            "The key, percent-encoded: 1 to {KEY_LENGTH_MAX} bytes. Slashes belong to it, encoded or not."
        );
        let schema = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
        return vec![parameter("key", &says, schema.max_length(Some(KEY_LENGTH_MAX)).into())];
    }
    if path.ends_with("{location}") {
        return vec![parameter("location", "The location of an operation in the log", count())];
    }
    Vec::new()
}

pub(super) fn query_parameter(parameter: Parameter) -> OpenApiParameter {
    let flag = || ObjectBuilder::new().schema_type(Type::Boolean);
    let (says, schema) = match parameter {
        Parameter::MinSize => {
            let says = "Waits until the state has so many operations: the `size` of a receipt, to read \
                your own write from a replica";
            (says.into(), integer(0))
        }
        Parameter::Timeout => {
            let says = format!(
                "How long to wait for `min_size`, with a unit; at most {}s. Allowed with `min_size` only",
                WAIT_MAX.as_secs()
            );
            let default = format!("{}s", WAIT_DEFAULT.as_secs()).into();
            let schema = ObjectBuilder::new().schema_type(Type::String).default(Some(default));
            (says, schema.examples(["250ms", "2s"]))
        }
        Parameter::Proof => {
            ("Answers a proof file instead of the value".into(), flag().default(Some(false.into())))
        }
        Parameter::OnlyProof => (
            "Must be `true`: an operation is given with its proof".into(),
            flag().enum_values(Some([true])),
        ),
        Parameter::From => ("The location to begin at".into(), integer(0).default(Some(0.into()))),
        Parameter::Limit => {
            let schema =
                integer(1).maximum(Some(ENTRIES_MAX)).default(Some(ENTRIES_DEFAULT.into()));
            ("The most values of the page".into(), schema)
        }
    };
    let required = if parameter == Parameter::OnlyProof { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(parameter.name())
        .parameter_in(ParameterIn::Query)
        .required(required)
        .description(Some::<String>(says))
        .schema(Some(schema))
        .build()
}

/// The header that makes a write repeatable.
pub(super) fn idempotency_key() -> OpenApiParameter {
    let says = "Makes the write safe to repeat: the same key with the same request is answered with the first receipt, as \
        long as its commit is in the log";
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^[!-~]{{1,{IDEMPOTENCY_KEY_LENGTH_MAX}}}$")));
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(says))
        .schema(Some(schema))
        .build()
}

pub(super) fn request_body(takes: Takes) -> RequestBody {
    let (says, types, content) = match takes {
        Takes::Batch => ("One record a line", BATCH_TYPES, lines()),
        Takes::Value | Takes::Nothing => {
            let says = "The value. It is kept as it is, whatever its type";
            (says, VALUE_TYPES, Content::new(Some(anything())))
        }
    };
    let body = RequestBodyBuilder::new().description(Some(says)).required(Some(Required::True));
    types.iter().fold(body, |body, name| body.content(*name, content.clone())).build()
}

/// Records, of which each is a line.
pub(super) fn lines() -> Content {
    Content::new(Some(ArrayBuilder::new().items(Ref::from_schema_name("Record"))))
}

/// Any bytes.
pub(super) fn anything() -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).into()
}

pub(super) fn any_object() -> Content {
    Content::new(Some(Object::new()))
}

/// An answer to a head that is larger than the daemon reads.
pub(super) fn head_too_large() -> Response {
    Response::new("The head of the request is too large; without a body")
}

/// A problem with one of `codes`.
pub(super) fn problem_with(codes: &[Code]) -> Schema {
    let words = codes.iter().map(|code| code.as_str());
    let code = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words));
    AllOfBuilder::new()
        .item(Ref::from_schema_name("ProblemDetails"))
        .item(ObjectBuilder::new().property("code", code))
        .into()
}

/// A client's status has more than a server's.
pub(super) fn any_status() -> Schema {
    let role = |role: &str| {
        let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([role]));
        ObjectBuilder::new().property("role", word)
    };
    let status = Ref::from_schema_name("Status");
    let server = AllOfBuilder::new().item(status.clone()).item(role("server"));
    let client = AllOfBuilder::new()
        .item(status)
        .item(Ref::from_schema_name("ClientStatus"))
        .item(role("client"));
    OneOfBuilder::new().item(server).item(client).into()
}
