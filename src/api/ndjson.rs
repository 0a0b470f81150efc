//! Batches: one JSON object a line.

use super::{WriteRequest, problem::Problem};
use crate::{
    commit_log::CHANGES_MAX,
    database::types::{Change, KEY_LENGTH_MAX},
    reads::{Entry, Name},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;

/// A line of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    value_b64: Option<String>,
    #[serde(default)]
    delete: bool,
    location: Option<u64>,
}

/// The most memory that [`parse`] makes of `body`.
pub fn memory_max(body: &[u8]) -> usize {
    WriteRequest::memory_max(lines_max(body), body.len())
}

/// At most so many changes are in `body`.
fn lines_max(body: &[u8]) -> usize {
    let ends = body.iter().filter(|byte| **byte == b'\n').count();
    (ends + 1).min(CHANGES_MAX)
}

/// Reads a batch: of keys, or of values to append to a log. The problem names the line, counted
/// from 1.
pub fn parse(body: &[u8], value_length_max: usize, is_log: bool) -> Result<Vec<Change>, Problem> {
    let mut changes = Vec::with_capacity(lines_max(body));
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let number = index + 1;
        let at = |problem: Problem| problem.at_line(number);
        if changes.len() >= CHANGES_MAX {
            let detail = format!("a batch may have {CHANGES_MAX} changes");
            return Err(at(Problem::too_large(detail)));
        }
        let parse = if is_log { parse_log_line } else { parse_line };
        let change = parse(line).map_err(|detail| at(Problem::malformed(detail)))?;
        check_lengths(&change, value_length_max)
            .map_err(|detail| at(Problem::too_large(detail)))?;
        changes.push(change);
    }
    Ok(changes)
}

fn parse_line(line: &[u8]) -> Result<Change, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if line.location.is_some() {
        return Err("'location' is of logs of values ('keyless')".into());
    }
    let key = bytes("key", line.key, line.key_b64)?.ok_or("'key' or 'key_b64' is missing")?;
    if key.is_empty() {
        return Err("the key is empty".into());
    }
    match (bytes("value", line.value, line.value_b64)?, line.delete) {
        (Some(value), false) => Ok(Change::Put { key, value }),
        (None, true) => Ok(Change::Delete { key }),
        (Some(_), true) => Err("both a value and 'delete'".into()),
        (None, false) => Err("one of 'value', 'value_b64' and 'delete: true' is needed".into()),
    }
}

/// A line of a log of values. The location that an export gave it means nothing here.
fn parse_log_line(line: &[u8]) -> Result<Change, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if line.key.is_some() || line.key_b64.is_some() || line.delete {
        return Err("family 'keyless' has no keys: only 'value' or 'value_b64'".into());
    }
    let value = bytes("value", line.value, line.value_b64)?;
    value.map(|value| Change::Append { value }).ok_or("'value' or 'value_b64' is missing".into())
}

fn bytes(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Vec<u8>>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(format!("both '{name}' and '{name}_b64'")),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(base64)) => BASE64
            .decode(&base64)
            .map(Some)
            .map_err(|error| format!("'{name}_b64' is not base64: {error}")),
        (None, None) => Ok(None),
    }
}

/// Checks a change against the limits of keys and values.
pub fn check_lengths(change: &Change, value_length_max: usize) -> Result<(), String> {
    if let Some(key) = change.key().filter(|key| key.len() > KEY_LENGTH_MAX) {
        return Err(format!("the key has {} bytes; {KEY_LENGTH_MAX} are allowed", key.len()));
    }
    let (Change::Put { value, .. } | Change::Append { value }) = change else { return Ok(()) };
    if value.len() > value_length_max {
        return Err(format!("the value has {} bytes; {value_length_max} are allowed", value.len()));
    }
    Ok(())
}

/// Bytes that escapes may add to a text beyond twice its length; what is longer is written as base64.
const ESCAPES_FREE: usize = 64;

/// Bytes of a text within JSON.
fn escaped_length(text: &[u8]) -> usize {
    let length = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.iter().map(length).sum()
}

/// An entry as a JSON object that [`parse`] reads.
pub fn to_json(entry: &Entry) -> serde_json::Map<String, serde_json::Value> {
    let mut object = serde_json::Map::new();
    let mut insert = |name: &str, bytes: &[u8]| {
        match std::str::from_utf8(bytes) {
            Ok(text) if escaped_length(bytes) <= 2 * bytes.len() + ESCAPES_FREE => {
                object.insert(name.into(), text.into())
            }
            // Also what escapes would make much longer.
            _ => object.insert(format!("{name}_b64"), BASE64.encode(bytes).into()),
        };
    };
    if let Name::Key(key) = &entry.name {
        insert("key", key);
    }
    insert("value", &entry.value);
    if let Name::Location(location) = entry.name {
        object.insert("location".into(), location.into());
    }
    object
}

/// Writes an entry as a line that [`parse`] reads.
pub fn write(entry: &Entry, out: &mut Vec<u8>) {
    let object = serde_json::Value::Object(to_json(entry));
    out.extend_from_slice(object.to_string().as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_read() {
        let body = b"{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key_b64\":\"/w==\",\"delete\":true}\n";
        let changes = parse(body, 10, false).expect("a valid batch");
        let expected = [
            Change::Put { key: b"a".to_vec(), value: b"1".to_vec() },
            Change::Delete { key: vec![255] },
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_batch_takes_no_more_memory_than_is_set_aside_for_it() {
        let long = format!(
            "{{\"key_b64\":\"{}\",\"value\":\"{}\"}}\n",
            "QUJD".repeat(300),
            "v".repeat(60_000)
        );
        for line in [
            "{\"value\":\"\"}\n",
            "{\"value_b64\":\"QQ==\"}\n",
            "{\"key\":\"a\",\"value\":\"\"}\n",
            "{\"key\":\"a\",\"value\":\"b\"}\n",
            "{\"key\":\"a\",\"delete\":true}\n",
            "{\"key\":\"\\u0061\",\"value\":\"\\n\\n\\n\"}\n",
            long.as_str(),
        ] {
            for count in [1, 3, 1000] {
                let body = line.repeat(count);
                let is_log = !line.contains("key");
                let changes = parse(body.as_bytes(), 65_536, is_log).expect(line);
                let request = WriteRequest { changes, idempotency: None };
                let (takes, max) = (request.memory(), memory_max(body.as_bytes()));
                assert!(takes <= max, "{count} of {line} take {takes}, {max} were set aside");
                assert!(takes >= count * size_of::<Change>());
            }
        }
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (line, what) in [
            ("nonsense", "expected"),
            ("{\"value\":\"1\"}", "'key'"),
            ("{\"key\":\"a\"}", "needed"),
            ("{\"key\":\"\",\"value\":\"1\"}", "empty"),
            ("{\"key\":\"a\",\"value\":1}", "string"),
            ("{\"key\":\"a\",\"value\":\"1\",\"delete\":true}", "both"),
            ("{\"key\":\"a\",\"key_b64\":\"YQ==\",\"value\":\"1\"}", "both"),
            ("{\"key\":\"a\",\"valeu\":\"1\"}", "unknown field"),
            ("{\"key\":\"a\",\"value\":\"12345678901\"}", "11 bytes"),
        ] {
            let body = format!("{{\"key\":\"x\",\"value\":\"y\"}}\n{line}\n");
            let problem = format!("{:?}", parse(body.as_bytes(), 10, false).expect_err(line));
            assert!(
                problem.contains("line: Some(2)") && problem.contains(what),
                "{line}: {problem}"
            );
        }
    }

    #[test]
    fn logs_of_values_are_read_and_written() {
        let entry = Entry { name: Name::Location(7), value: vec![0xff].into() };
        let mut text = b"{\"value\":\"a\"}\n".to_vec();
        write(&entry, &mut text);
        let changes = parse(&text, 10, true).expect("values");
        let expected = [b"a".to_vec(), vec![0xff]].map(|value| Change::Append { value });
        assert_eq!(changes, expected);
        for wrong in ["{\"key\":\"a\",\"value\":\"1\"}", "{}", "{\"delete\":true}"] {
            assert!(parse(wrong.as_bytes(), 10, true).is_err(), "{wrong}");
        }
        assert!(parse(&text, 10, false).is_err());
    }

    #[test]
    fn entries_round_trip() {
        let entries = [
            Entry { name: Name::Key("ä\"".into()), value: vec![0xff, 0].into() },
            Entry { name: Name::Key(vec![0x80].into()), value: "line\nbreak".into() },
            Entry { name: Name::Key("\"\"\\".into()), value: vec![1; 50].into() },
        ];
        let mut text = Vec::new();
        entries.iter().for_each(|entry| write(entry, &mut text));
        assert!(text.len() < 300, "no value takes much more room than it has");
        let changes = parse(&text, 100, false).expect("what was written can be read");
        for (change, entry) in changes.iter().zip(&entries) {
            let Name::Key(key) = &entry.name else { panic!("{entry:?}") };
            let expected = Change::Put { key: key.to_vec(), value: entry.value.to_vec() };
            assert_eq!(*change, expected);
        }
    }
}
