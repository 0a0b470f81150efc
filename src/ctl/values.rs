//! `put`, `get`, `delete`.

use super::{
    ApiArgs, Failure,
    http::{Answer, Api, key_path},
    output::{print_bytes, print_line},
};
use crate::{database::types::VALUE_LENGTH_MAX, exit};
use clap::Args;
use std::{fs::File, io::Read};

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// The key
    key: String,
    /// The value; - reads it from standard input, @FILE from a file
    value: String,
    #[command(flatten)]
    api: ApiArgs,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// The key
    key: String,
    /// Wait until the state has so many operations
    #[arg(long, env = "SYNCD_MIN_SIZE")]
    min_size: Option<u64>,
    #[command(flatten)]
    api: ApiArgs,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// The key
    key: String,
    #[command(flatten)]
    api: ApiArgs,
}

fn print_receipt(answer: Answer) -> Result<(), Failure> {
    print_line(String::from_utf8_lossy(&answer.success()?.body))
}

/// Reads a value. One that is too large for any server is not read to its end.
fn read_value(name: &str, input: std::io::Result<impl Read>) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    input
        .and_then(|input| input.take(VALUE_LENGTH_MAX as u64 + 1).read_to_end(&mut value))
        .map_err(|error| Failure::new(exit::IO, format!("{name}: {error}")))?;
    if value.len() > VALUE_LENGTH_MAX {
        let text = format!("{name}: a value has {VALUE_LENGTH_MAX} bytes at most");
        return Err(Failure::new(exit::DATA, text));
    }
    Ok(value)
}

/// Sets a key; prints the receipt.
pub(super) fn put(args: &PutArgs) -> Result<(), Failure> {
    let value = match args.value.as_str() {
        "-" => read_value("standard input", Ok(std::io::stdin()))?,
        value => match value.strip_prefix('@') {
            Some(path) => read_value(path, File::open(path))?,
            None => value.as_bytes().to_vec(),
        },
    };
    let headers = [("content-type", "application/octet-stream")];
    print_receipt(Api::new(&args.api)?.send("PUT", &key_path(&args.key), &headers, &value)?)
}

/// Reads a key to standard output, as it is.
pub(super) fn get(args: &GetArgs) -> Result<(), Failure> {
    let wait = args.min_size.map(|size| format!("?min_size={size}")).unwrap_or_default();
    let answer = Api::new(&args.api)?.get(&format!("{}{wait}", key_path(&args.key)))?;
    // Not any 404: the URL may lead to something else.
    if answer.status.as_u16() == 404
        && answer.problem().is_some_and(|problem| problem.code == "not_found")
    {
        return Err(Failure::new(1, format!("'{}' is absent", args.key)));
    }
    print_bytes(&answer.success()?.body)
}

/// Removes a key; prints the receipt.
pub(super) fn delete(args: &DeleteArgs) -> Result<(), Failure> {
    print_receipt(Api::new(&args.api)?.send("DELETE", &key_path(&args.key), &[], b"")?)
}
