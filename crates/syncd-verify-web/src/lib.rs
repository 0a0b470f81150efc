//! [`syncd_verify`] for JavaScript: text in, text out.
//!
//! [`verify`] takes a request and gives an answer, both JSON. The exported functions carry the text over: the
//! page asks for room with `input`, writes UTF-8 there, calls `run`, and reads `output_length` bytes at
//! `output`. Nothing else is imported or exported, so the module needs no generated glue.

// The names of exports count as unsafe code; there is no unsafe block.
#![allow(unsafe_code)]

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    time::{Duration, SystemTime},
};
use syncd_verify::{Expect, ProofFile, Proved, Statement, Trust};

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// The proof file, as it is.
    file: String,
    /// Trusted publisher keys, 64 hexadecimal digits each.
    publishers: Vec<String>,
    /// Identity of the database, 64 hexadecimal digits.
    database: String,
    /// The key that must be spoken of.
    #[serde(default)]
    key: Option<String>,
    /// The fewest operations that the state must have.
    #[serde(default)]
    min_size: Option<u64>,
    /// The longest time since the state was signed, in seconds; needs `now_ms`.
    #[serde(default)]
    max_age_seconds: Option<u64>,
    /// The present time, milliseconds since 1970: a module has no clock.
    #[serde(default)]
    now_ms: Option<u64>,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Answer {
    /// It is proved.
    Proved(Box<Shown>),
    /// It is not, or not what was asked for.
    Failed { proved: bool, error: String },
}

/// What was proved.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Shown {
    proved: bool,
    /// `value`, `absent` or `operation`.
    statement: &'static str,
    /// All of it in a sentence.
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<u64>,
    database: String,
    size: u64,
    root: String,
    committed_at: u64,
    signed_at: u64,
    publisher: String,
}

impl Shown {
    fn new(proved: &Proved) -> Self {
        let encoded = |bytes: &[u8]| Some(BASE64.encode(bytes));
        let (statement, key_b64, value_b64, location) = match &proved.statement {
            Statement::Value { key, value } => ("value", encoded(key), encoded(value), None),
            Statement::Absent { key } => ("absent", encoded(key), None, None),
            Statement::Operation { location } => ("operation", None, None, Some(*location)),
        };
        let checkpoint = &proved.checkpoint;
        Self {
            proved: true,
            statement,
            text: proved.to_string(),
            key_b64,
            value_b64,
            location,
            database: checkpoint.database.to_string(),
            size: checkpoint.size,
            root: checkpoint.root.to_string(),
            committed_at: checkpoint.committed_at_ms,
            signed_at: checkpoint.signed_at_ms,
            publisher: proved.publisher.to_string(),
        }
    }
}

fn try_verify(request: &str) -> Result<Shown, String> {
    let request: Request = serde_json::from_str(request).map_err(|error| error.to_string())?;
    let publishers: Vec<&str> = request.publishers.iter().map(String::as_str).collect();
    let trust =
        Trust::from_hex(&publishers, &request.database).map_err(|error| error.to_string())?;
    let max_age = match (request.max_age_seconds, request.now_ms) {
        (Some(seconds), Some(now_ms)) => {
            let now = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(now_ms));
            Some((Duration::from_secs(seconds), now.ok_or("'now_ms' is no time")?))
        }
        (Some(_), None) => return Err("'max_age_seconds' needs 'now_ms'".into()),
        (None, _) => None,
    };
    let key = request.key.map(String::into_bytes);
    let expect = Expect { key, min_size: request.min_size, max_age };
    let file = ProofFile::from_json(request.file.as_bytes()).map_err(|error| error.to_string())?;
    let proved = file.verify(&trust, &expect).map_err(|error| error.to_string())?;
    Ok(Shown::new(&proved))
}

/// Answers a request, both as JSON. The fields are those of `syncd-verify.d.ts`.
pub fn verify(request: &str) -> String {
    let answer = match try_verify(request) {
        Ok(shown) => Answer::Proved(Box::new(shown)),
        Err(error) => Answer::Failed { proved: false, error },
    };
    serde_json::to_string(&answer).unwrap_or_default()
}

thread_local! {
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static OUTPUT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes room for a request of `length` bytes, and says where.
#[unsafe(no_mangle)]
pub extern "C" fn input(length: usize) -> *mut u8 {
    INPUT.with_borrow_mut(|input| {
        input.clear();
        input.resize(length, 0);
        input.as_mut_ptr()
    })
}

/// Answers the request that was written there.
#[unsafe(no_mangle)]
pub extern "C" fn run() {
    let answer = INPUT.with_borrow(|input| verify(&String::from_utf8_lossy(input)));
    OUTPUT.set(answer);
}

/// Where the answer is.
#[unsafe(no_mangle)]
pub extern "C" fn output() -> *const u8 {
    OUTPUT.with_borrow(|output| output.as_ptr())
}

/// Bytes of the answer.
#[unsafe(no_mangle)]
pub extern "C" fn output_length() -> usize {
    OUTPUT.with_borrow(String::len)
}
