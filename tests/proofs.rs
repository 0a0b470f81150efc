//! Proofs that an auditor checks with a file, a key and nothing else.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

mod common;

use common::{BYTES, Daemon, get, numbered, send, syncctl};
use std::{
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};
use syncd::verify::{Error, Expect, ProofFile, Proved, Statement, Trust};

/// A server and a replica with some records, overwritten and deleted ones among them.
fn pair(family: &str, hash: &str) -> (tempfile::TempDir, Daemon, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let options = ["--db", family, "--hash", hash];
    let server = Daemon::server(&directory.path().join("server"), &options);
    match family {
        "keyless" => {
            for n in 0..40 {
                let url = format!("{}/v1/append", server.api);
                let answer = send("POST", &url, &[BYTES], format!("value {n}").as_bytes());
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
        _ => {
            for from in [0, 20, 40] {
                assert_eq!(server.batch(&numbered("k", from, 20)).status, 200);
            }
        }
    }
    if family == "current" || family == "any" {
        server.put("k%2F7", b"newer");
        let url = format!("{}/v1/keys/k%2F8", server.api);
        assert_eq!(send("DELETE", &url, &[], b"").status, 200);
    }
    let client = server.client(&directory.path().join("client"), &["--db", family]);
    client.wait_equal(&server);
    (directory, server, client)
}

fn trust(server: &Daemon) -> Trust {
    let public = |name: &str| server.storage.join("public").join(name).display().to_string();
    Trust {
        publishers: vec![syncd::keys::parse_public(&public("publisher.pub")).unwrap()],
        database: syncd::keys::parse_database(&public("database.id")).unwrap(),
    }
}

fn fetch(daemon: &Daemon, path: &str) -> Vec<u8> {
    let answer = get(&format!("{}{path}", daemon.api));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    answer.body
}

fn verify(text: &[u8], trust: &Trust) -> Result<Proved, Error> {
    ProofFile::from_json(text)?.verify(trust, &Expect::default())
}

/// Flips bits of every byte: what is still proved must be what was proved.
fn flip_all(text: &[u8], trust: &Trust) -> (usize, usize) {
    let meaning = verify(text, trust).unwrap();
    let (mut refused, mut unchanged) = (0, 0);
    for at in 0..text.len() {
        for bit in [0x01, 0x04, 0x20, 0x80] {
            let mut wrong = text.to_vec();
            wrong[at] ^= bit;
            match verify(&wrong, trust) {
                Err(_) => refused += 1,
                Ok(proved) => {
                    assert_eq!(proved, meaning, "byte {at} was changed by {bit:#x}");
                    unchanged += 1;
                }
            }
        }
    }
    for length in 0..text.len() - 1 {
        assert!(verify(&text[..length], trust).is_err() || text[length..].trim_ascii().is_empty());
    }
    (refused, unchanged)
}

#[test]
fn presence_and_absence_are_proved() {
    for hash in ["blake3", "sha256"] {
        let (_directory, server, client) = pair("current", hash);
        let trust = trust(&server);
        for daemon in [&server, &client] {
            for (key, value) in [("k/3", Some("value of 3")), ("k/7", Some("newer")), ("k/8", None)]
            {
                let path = format!("/v1/keys/{}?proof=true", key.replace('/', "%2F"));
                let proved = verify(&fetch(daemon, &path), &trust).unwrap();
                let expected = match value {
                    Some(value) => Statement::Value { key: key.into(), value: value.into() },
                    None => Statement::Absent { key: key.into() },
                };
                assert_eq!(proved.statement, expected);
                assert_eq!(proved.checkpoint.root.to_string(), server.root());
            }
            let absent = verify(&fetch(daemon, "/v1/keys/never?proof=true"), &trust).unwrap();
            assert_eq!(absent.statement, Statement::Absent { key: "never".into() });
        }
        for path in ["/v1/keys/k%2F7?proof=true", "/v1/keys/never?proof=true"] {
            let (refused, unchanged) = flip_all(&fetch(&client, path), &trust);
            eprintln!("{hash} {path}: {refused} flips refused, {unchanged} without a meaning");
        }
    }
}

/// An empty database, and one that became empty again, prove that every key is absent.
#[test]
fn an_empty_database_proves_absence() {
    let directory = tempfile::tempdir().unwrap();
    let server = Daemon::server(&directory.path().join("server"), &["--db", "current"]);
    let trust = trust(&server);
    let absent = || verify(&fetch(&server, "/v1/keys/a?proof=true"), &trust).unwrap();
    assert_eq!(absent().statement, Statement::Absent { key: "a".into() });
    server.put("a", b"1");
    assert!(matches!(absent().statement, Statement::Value { .. }));
    let delete = || send("DELETE", &format!("{}/v1/keys/a", server.api), &[], b"").status;
    assert_eq!(delete(), 200);
    assert_eq!(absent().statement, Statement::Absent { key: "a".into() });
    assert_eq!(delete(), 200, "of nothing");
    assert_eq!(absent().statement, Statement::Absent { key: "a".into() });
}

#[test]
fn operations_are_proved_in_every_family() {
    for family in ["any", "current", "immutable", "keyless"] {
        let (_directory, server, client) = pair(family, "blake3");
        let trust = trust(&server);
        let (size, floor) = (client.size(), client.status()["floor"].as_u64().unwrap());
        let held = [(&server, 0), (&server, 1), (&client, floor), (&client, size - 1)];
        for (daemon, location) in held {
            let text = fetch(daemon, &format!("/v1/operations/{location}?proof=true"));
            let proved = verify(&text, &trust).unwrap();
            assert_eq!(proved.statement, Statement::Operation { location });
            assert!(proved.operation.is_some());
        }
        let text = fetch(&server, &format!("/v1/operations/{}?proof=true", size / 2));
        let (refused, unchanged) = flip_all(&text, &trust);
        eprintln!("{family}: {refused} flips refused, {unchanged} without a meaning");
        let answer = get(&format!("{}/v1/operations/{size}?proof=true", client.api));
        assert_eq!((answer.status, answer.json()["code"].as_str()), (404, Some("not_found")));
        let answer = get(&format!("{}/v1/operations/1", client.api));
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("malformed")));
        if family != "current" {
            let answer = get(&format!("{}/v1/keys/a?proof=true", client.api));
            assert_eq!(
                (answer.status, answer.json()["code"].as_str()),
                (422, Some("not_provable"))
            );
        }
    }
}

/// True proofs of something else.
#[test]
fn proofs_of_something_else_are_refused() {
    let (_directory, server, client) = pair("current", "blake3");
    let (_other_directory, other, _other_client) = pair("current", "blake3");
    let trusted = trust(&server);
    let old = ProofFile::from_json(&fetch(&client, "/v1/keys/k%2F3?proof=true")).unwrap();
    let of = |file: &ProofFile| file.verify(&trusted, &Expect::default());
    of(&old).unwrap();
    server.put("k%2F3", b"later");
    client.wait_equal(&server);
    let new = ProofFile::from_json(&fetch(&client, "/v1/keys/k%2F3?proof=true")).unwrap();
    // The superseded value as the present one.
    let superseded = ProofFile { checkpoint: new.checkpoint.clone(), ..old.clone() };
    assert!(matches!(of(&superseded), Err(Error::NotProved(_))));
    let superseded = ProofFile { statement: old.statement.clone(), ..new.clone() };
    assert!(matches!(of(&superseded), Err(Error::NotProved(_))));
    // A present key as an absent one, and the other way round.
    let absent = Statement::Absent { key: "k/3".into() };
    assert!(matches!(
        of(&ProofFile { statement: absent, ..new.clone() }),
        Err(Error::NotProved(_))
    ));
    let never = ProofFile::from_json(&fetch(&client, "/v1/keys/never?proof=true")).unwrap();
    let absent = Statement::Absent { key: "k/3".into() };
    assert!(matches!(
        of(&ProofFile { statement: absent, ..never.clone() }),
        Err(Error::NotProved(_))
    ));
    let value = Statement::Value { key: "never".into(), value: "x".into() };
    assert!(matches!(of(&ProofFile { statement: value, ..never }), Err(Error::NotProved(_))));
    // Another key, database, publisher, age or size than was asked for.
    let asked = |expect: &Expect| new.verify(&trusted, expect).unwrap_err().to_string();
    let key = Some(b"k/4".to_vec());
    assert!(asked(&Expect { key, ..Expect::default() }).contains("k/3"));
    let min_size = Some(1 << 40);
    assert!(asked(&Expect { min_size, ..Expect::default() }).contains("operations"));
    let later = SystemTime::now() + Duration::from_secs(1000);
    let max_age = Some((Duration::from_secs(60), later));
    assert!(asked(&Expect { max_age, ..Expect::default() }).contains("signed"));
    let theirs = trust(&other);
    let wrong = Trust { publishers: theirs.publishers, ..trusted.clone() };
    assert!(
        new.verify(&wrong, &Expect::default()).unwrap_err().to_string().contains("not trusted")
    );
    let wrong = Trust { database: theirs.database, ..trusted };
    assert!(matches!(new.verify(&wrong, &Expect::default()), Err(Error::Refused(_))));
}

/// `syncctl proof` and `syncctl verify`, the latter where there is no network at all.
#[test]
fn an_auditor_needs_a_file_and_a_key() {
    let (directory, server, client) = pair("current", "sha256");
    let path = directory.path().join("proof.json").display().to_string();
    let output = syncctl(&["proof", "k/7", "-o", &path, "--api", &client.api]);
    assert!(output.status.success(), "{output:?}");
    let public = server.storage.join("public");
    let (key, database) = (public.join("publisher.pub"), public.join("database.id"));
    let (key, database) = (key.display().to_string(), database.display().to_string());
    let arguments =
        ["verify", &path, "--trusted-key", &key, "--database", &database, "--key", "k/7"];
    let alone = |arguments: &[&str]| {
        // A namespace of its own has no network, where the machine lets one be made.
        let may = Command::new("unshare").args(["-n", "true"]).status();
        let mut command = if may.is_ok_and(|status| status.success()) {
            let mut command = Command::new("unshare");
            command.arg("-n").arg(env!("CARGO_BIN_EXE_syncctl"));
            command
        } else {
            common::command("syncctl")
        };
        command.args(arguments).output().unwrap()
    };
    drop((server, client));
    let output = alone(&arguments);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("proved: key \"k/7\" holds \"newer\"; in database"), "{said}");
    assert_eq!(said.lines().count(), 1);
    for (more, what) in [
        (["--min-size", "100000"], "operations, not 100000"),
        (["--max-age", "1ms"], "ago, more than"),
    ] {
        let output = alone(&[&arguments[..], &more[..]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(65), "{said}");
        assert!(said.contains(what) && said.contains("proof.json"), "{said}");
    }
    let output = alone(&[&arguments[..6], &["--key", "k/8"][..]].concat());
    assert_eq!(output.status.code(), Some(65), "{output:?}");
}

/// Vectors that are kept: what was proved once stays proved.
#[test]
fn kept_proofs_are_still_proofs() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/syncd-verify/tests/vectors");
    let trust: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.join("trust.json")).unwrap()).unwrap();
    let mut files = 0;
    for entry in trust["proofs"].as_array().unwrap() {
        let publisher = entry["publisher"].as_str().unwrap();
        let trust = Trust {
            publishers: vec![syncd::keys::public_from_text(publisher).unwrap()],
            database: entry["database"].as_str().unwrap().parse().unwrap(),
        };
        let text = std::fs::read(directory.join(entry["file"].as_str().unwrap())).unwrap();
        let proved = verify(&text, &trust).unwrap();
        assert!(proved.to_string().starts_with(entry["says"].as_str().unwrap()), "{proved}");
        files += 1;
    }
    assert_eq!(files, 12);
}

/// Makes the vectors anew, with other keys.
#[test]
#[ignore = "writes files: run it by hand when a format changes"]
fn write_vectors() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/syncd-verify/tests/vectors");
    std::fs::create_dir_all(&directory).unwrap();
    let mut proofs = Vec::new();
    for (family, hash) in [
        ("current", "blake3"),
        ("current", "sha256"),
        ("any", "blake3"),
        ("any", "sha256"),
        ("immutable", "blake3"),
        ("immutable", "sha256"),
        ("keyless", "blake3"),
        ("keyless", "sha256"),
    ] {
        let (_directory, server, _client) = pair(family, hash);
        let mut subjects = vec![("operation", "/v1/operations/20?proof=true")];
        if family == "current" {
            subjects.push(("value", "/v1/keys/k%2F7?proof=true"));
            subjects.push(("absent", "/v1/keys/k%2F8?proof=true"));
        }
        for (name, path) in subjects {
            let text = fetch(&server, path);
            let trust = trust(&server);
            let says = verify(&text, &trust).unwrap().to_string();
            let file = format!("{family}-{hash}-{name}.json");
            std::fs::write(directory.join(&file), &text).unwrap();
            proofs.push(serde_json::json!({
                "file": file,
                "publisher": hex::encode(&trust.publishers[0]),
                "database": trust.database.to_string(),
                "says": says.split(';').next().unwrap(),
            }));
        }
    }
    let text = serde_json::to_vec_pretty(&serde_json::json!({ "proofs": proofs })).unwrap();
    std::fs::write(directory.join("trust.json"), text).unwrap();
    // Fuzzing begins with them, whole and as the proofs alone (a byte chooses family and hash).
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/proof_file");
    std::fs::create_dir_all(&corpus).unwrap();
    for entry in &proofs {
        let name = entry["file"].as_str().unwrap();
        let text = std::fs::read(directory.join(name)).unwrap();
        let file = ProofFile::from_json(&text).unwrap();
        std::fs::write(corpus.join(format!("seed-{name}")), &text).unwrap();
        let alone = [&[5][..], &file.proof].concat();
        std::fs::write(corpus.join(format!("seed-{name}-proof")), alone).unwrap();
    }
}
