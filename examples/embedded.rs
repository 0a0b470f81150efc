//! A verified replica in an application's own process: follows a key of a running server.
//!
//! ```text
//! cargo run --example embedded -- 127.0.0.1:8080 ~/.local/state/syncd/server/public /tmp/replica greeting
//! ```
//!
//! It says what the key holds in each state that was proved equal to what the publisher signed, until Ctrl-C.

use futures::StreamExt as _;
use std::{error::Error, path::Path};
use syncd::{Replica, Server, Trust, keys};

/// Opens the replica in `directory` that trusts the keys in `public`, and gives every value of `key` to `show` with the
/// sequence of its commit, until that says to stop.
pub(crate) async fn follow(
    server: &str,
    public: &Path,
    directory: &Path,
    key: &[u8],
    mut show: impl FnMut(u64, Option<&[u8]>) -> bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let file = |name: &str| public.join(name).display().to_string();
    let server = Server { address: server.into(), key: keys::parse_public(&file("identity.pub"))? };
    let trust = Trust {
        publishers: vec![keys::parse_public(&file("publisher.pub"))?],
        database: keys::parse_database(&file("database.id"))?,
    };
    let replica = Replica::builder(directory, server, trust).open().await?;
    let mut states = replica.states();
    let mut last = None;
    while states.next().await.is_some() {
        let read = replica.get(key).await?;
        if last.as_ref() == Some(&read.value) {
            continue;
        }
        if !show(read.checkpoint.checkpoint.sequence, read.value.as_deref()) {
            break;
        }
        last = Some(read.value);
    }
    Ok(replica.close().await?)
}

#[allow(dead_code, reason = "a test includes this file")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, public, directory, key] = arguments.as_slice() else {
        return Err("usage: embedded SERVER PUBLIC-DIRECTORY DIRECTORY KEY".into());
    };
    let show = |sequence: u64, value: Option<&[u8]>| {
        println!("commit {sequence}: {}", value.map_or("nothing".into(), String::from_utf8_lossy));
        true
    };
    tokio::select! {
        done = follow(server, public.as_ref(), directory.as_ref(), key.as_bytes(), show) => done,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}
