//! The replica as a part of another program, beside a real server.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;
#[path = "../examples/embedded.rs"]
mod example;

use common::{DEADLINE, Daemon};
use futures::StreamExt as _;
use std::{
    future::Future,
    path::Path,
    sync::{Arc, Mutex},
};
use syncd::{
    Builder, Ended, OpenError, Replica, Server, Trust,
    database::types::{Family, Mode},
    directory::DirectoryError,
    keys,
    reads::{ReadError, Subject, Unsupported},
    verify::Expect,
};

fn public(server: &Daemon, name: &str) -> String {
    server.storage.join("public").join(name).display().to_string()
}

fn trust(server: &Daemon) -> Trust {
    Trust {
        publishers: vec![keys::parse_public(&public(server, "publisher.pub")).unwrap()],
        database: keys::parse_database(&public(server, "database.id")).unwrap(),
    }
}

fn at(server: &Daemon, address: &str) -> Server {
    let key = keys::parse_public(&public(server, "identity.pub")).unwrap();
    Server { address: address.into(), key }
}

fn replica(server: &Daemon, directory: &Path) -> Builder {
    Replica::builder(directory, at(server, &server.sync), trust(server)).family(Family::Current)
}

fn server(directory: &Path) -> Daemon {
    Daemon::server(&directory.join("server"), &["--db", "current"])
}

/// Writes a key, and gives the size that the receipt names.
fn put(server: &Daemon, key: &str, value: &str) -> u64 {
    let line = serde_json::json!({"key": key, "value": value}).to_string();
    server.batch(line.as_bytes()).json()["size"].as_u64().unwrap()
}

/// Bounded, on a runtime as an application has one.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, work).await.expect("in time") })
}

#[test]
fn an_application_reads_its_own_writes_proves_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let path = directory.path().join("replica");
    block_on(async {
        let opened = replica(&server, &path).open().await.unwrap();
        assert!(matches!(opened.get(b"k").await, Err(ReadError::NoVerifiedState) | Ok(_)));
        let size = put(&server, "k", "1");
        let checkpoint = opened.wait_for(size).await.unwrap();
        let read = opened.get(b"k").await.unwrap();
        assert_eq!(read.value.as_deref(), Some(&b"1"[..]));
        assert!(read.checkpoint.checkpoint.size >= checkpoint.checkpoint.size);
        assert_eq!(opened.get(b"other").await.unwrap().value, None);
        let proof = opened.prove(Subject::Key("k".into())).await.unwrap();
        proof.verify(&trust(&server), &Expect::default()).unwrap();
        assert!(matches!(
            opened.entries(0, 10, 1000).await,
            Err(ReadError::Unsupported { why: Unsupported::Family, .. })
        ));
        let status = opened.status();
        assert_eq!(status.root, Some(read.checkpoint.checkpoint.root));
        assert!(opened.metrics().contains("syncd_client_size"), "{}", opened.metrics());
        opened.close().await.unwrap();
        // Without the server, what was verified is served on.
        let again = replica(&server, &path);
        server.stop();
        let again = again.open().await.unwrap();
        assert_eq!(again.get(b"k").await.unwrap().value.as_deref(), Some(&b"1"[..]));
        again.close().await.unwrap();
    });
}

#[test]
fn states_come_as_they_are_made_and_end_with_the_replica() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    block_on(async {
        let opened = replica(&server, &directory.path().join("replica")).open().await.unwrap();
        let mut states = opened.states();
        for round in 0..5 {
            let size = put(&server, "k", &round.to_string());
            let mut newest = 0;
            while newest < size {
                newest = states.next().await.unwrap().checkpoint.size;
            }
        }
        opened.close().await.unwrap();
        assert!(states.next().await.is_none());
    });
}

#[test]
fn several_live_in_one_process_and_a_directory_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let size = put(&server, "k", "v");
    block_on(async {
        let paths = ["a", "b", "c"].map(|name| directory.path().join(name));
        let opened = paths.each_ref().map(|path| replica(&server, path).open());
        let opened = futures::future::try_join_all(opened).await.unwrap();
        for one in &opened {
            one.wait_for(size).await.unwrap();
            assert_eq!(one.get(b"k").await.unwrap().value.as_deref(), Some(&b"v"[..]));
        }
        let taken = replica(&server, &paths[0]).open().await;
        assert!(matches!(taken, Err(OpenError::Directory(DirectoryError::Locked { .. }))));
        for one in opened {
            one.close().await.unwrap();
        }
    });
}

#[test]
fn futures_may_be_dropped_at_any_time() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let path = directory.path().join("replica");
    block_on(async {
        for _ in 0..3 {
            // Dropped while it is opened: the directory is given back.
            let opening = replica(&server, &path).open();
            let _ = tokio::time::timeout(std::time::Duration::from_millis(1), opening).await;
        }
        let opened = loop {
            match replica(&server, &path).open().await {
                Ok(opened) => break opened,
                Err(OpenError::Directory(DirectoryError::Locked { .. })) => {
                    tokio::task::yield_now().await
                }
                Err(error) => panic!("{error}"),
            }
        };
        let size = put(&server, "k", "v");
        for _ in 0..100 {
            let waited = std::time::Duration::from_micros(50);
            let _ = tokio::time::timeout(waited, opened.wait_for(size)).await;
            let _ = tokio::time::timeout(waited, opened.get(b"k")).await;
            let _ = tokio::time::timeout(waited, opened.prove(Subject::Key("k".into()))).await;
        }
        opened.wait_for(size).await.unwrap();
        assert_eq!(opened.get(b"k").await.unwrap().value.as_deref(), Some(&b"v"[..]));
        opened.close().await.unwrap();
    });
}

#[test]
fn another_database_ends_it_and_bad_values_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    block_on(async {
        let mut wrong = trust(&server);
        wrong.database = "11".repeat(32).parse().unwrap();
        let path = directory.path().join("wrong");
        let builder =
            Replica::builder(path, at(&server, &server.sync), wrong).family(Family::Current);
        let opened = builder.open().await.unwrap();
        assert!(matches!(opened.ended().await, Ended::Refused(_)));
        assert!(matches!(opened.wait_for(1).await, Err(Ended::Refused(_))));
        assert!(matches!(opened.close().await, Err(Ended::Refused(_))));

        let path = directory.path().join("never");
        let nobody = Trust { publishers: Vec::new(), ..trust(&server) };
        for (builder, says) in [
            (Replica::builder(&path, at(&server, "no-port"), trust(&server)), "HOST:PORT"),
            (Replica::builder(&path, at(&server, "host:0"), trust(&server)), "HOST:PORT"),
            (Replica::builder(&path, at(&server, "host:1"), nobody), "publisher"),
            (replica(&server, &path).threads(0), "threads"),
            (replica(&server, &path).mode(Mode::Compact), "compact"),
        ] {
            let error = builder.open().await.err().unwrap();
            assert!(matches!(&error, OpenError::Invalid(text) if text.contains(says)), "{error}");
        }
        assert!(!path.exists());
    });
}

#[test]
fn the_example_works() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    put(&server, "greeting", "hello");
    let seen = Arc::new(Mutex::new(Vec::new()));
    block_on(async {
        let show = |_: u64, value: Option<&[u8]>| {
            let value = value.map(|value| String::from_utf8_lossy(value).into_owned());
            seen.lock().unwrap().push(value.clone());
            if value.as_deref() == Some("hello") {
                put(&server, "greeting", "good bye");
            }
            value.as_deref() != Some("good bye")
        };
        let (public, path) = (server.storage.join("public"), directory.path().join("replica"));
        example::follow(&server.sync, &public, &path, b"greeting", show).await.unwrap();
    });
    assert_eq!(seen.lock().unwrap().last(), Some(&Some("good bye".to_string())));
}
