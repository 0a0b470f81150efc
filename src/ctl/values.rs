//! `put`, `get`, `delete`.

use super::{
    ApiArgs, Failure,
    http::{Answer, Api, key_path},
};
use crate::exit;
use clap::Args;
use std::io::{Read as _, Write as _};

/// Arguments of `put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// The key
    key: String,
    /// The value; - reads it from standard input, @FILE from a file
    value: String,
    #[command(flatten)]
    api: ApiArgs,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
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
pub struct DeleteArgs {
    /// The key
    key: String,
    #[command(flatten)]
    api: ApiArgs,
}

fn print_receipt(answer: Answer) -> Result<(), Failure> {
    println!("{}", String::from_utf8_lossy(&answer.success()?.body));
    Ok(())
}

/// Sets a key; prints the receipt.
pub fn put(args: &PutArgs) -> Result<(), Failure> {
    let value = match args.value.as_str() {
        "-" => {
            let mut value = Vec::new();
            std::io::stdin().read_to_end(&mut value)?;
            value
        }
        value => match value.strip_prefix('@') {
            Some(path) => std::fs::read(path)
                .map_err(|error| Failure::new(exit::IO, format!("{path}: {error}")))?,
            None => value.as_bytes().to_vec(),
        },
    };
    let headers = [("content-type", "application/octet-stream")];
    print_receipt(Api::new(&args.api)?.send("PUT", &key_path(&args.key), &headers, &value)?)
}

/// Reads a key to standard output, as it is.
pub fn get(args: &GetArgs) -> Result<(), Failure> {
    let wait = args.min_size.map(|size| format!("?min_size={size}")).unwrap_or_default();
    let answer = Api::new(&args.api)?.get(&format!("{}{wait}", key_path(&args.key)))?;
    if answer.status.as_u16() == 404 {
        return Err(Failure::new(1, format!("'{}' is absent", args.key)));
    }
    std::io::stdout().write_all(&answer.success()?.body)?;
    Ok(())
}

/// Removes a key; prints the receipt.
pub fn delete(args: &DeleteArgs) -> Result<(), Failure> {
    print_receipt(Api::new(&args.api)?.send("DELETE", &key_path(&args.key), &[], b"")?)
}
