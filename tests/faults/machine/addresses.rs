//! Names with several addresses, behind some of which something else listens.

use super::{may_unshare, wrapped};
use crate::common::{Daemon, wait_for};
use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

/// What listens where the server does not.
#[derive(Clone, Copy, Debug)]
enum Stranger {
    Silent,
    Closing,
    Http,
}

/// Listens on the port of `server` at another address of this machine.
fn listen(server: &Daemon, address: &str, stranger: Stranger) {
    let port: u16 = server.sync.rsplit(':').next().unwrap().parse().unwrap();
    let listener = TcpListener::bind((address, port)).unwrap();
    std::thread::spawn(move || {
        let mut held: Vec<TcpStream> = Vec::new();
        for mut stream in listener.incoming().flatten() {
            match stranger {
                Stranger::Silent => held.push(stream),
                Stranger::Closing => {}
                Stranger::Http => {
                    let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                }
            }
        }
    });
}

/// A client that knows the server by names which only its own `/etc/hosts` has.
fn client(server: &Daemon, hosts: &Path, storage: &Path, name: &str) -> Daemon {
    let line = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", hosts.display());
    let port = server.sync.rsplit(':').next().unwrap();
    let name = format!("{name}:{port}");
    let trust = server.trust();
    let mut options: Vec<&str> = trust.iter().map(String::as_str).collect();
    options.extend(["--server", &name]);
    let wrapper = ["unshare", "-m", "sh", "-c", &line];
    super::start(wrapped(&wrapper, "syncd-client", storage, &options), storage)
}

/// The first address is silent, closes, or speaks HTTP: the client is connected within seconds.
#[test]
fn every_address_of_a_name_is_tried_up_to_the_greeting() {
    if !may_unshare("every_address_of_a_name_is_tried_up_to_the_greeting", "-m") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    let names = ["silent", "closing", "http"].map(|name| format!("{name}.test"));
    let strangers = [Stranger::Silent, Stranger::Closing, Stranger::Http];
    for (n, stranger) in strangers.into_iter().enumerate() {
        let server = Daemon::server(&directory.path().join(format!("server-{n}")), &["-i", "10"]);
        // Not ::1: a machine may have no IPv6. Its resolver gives the addresses in the file's order or in the other.
        let (other, name) = (format!("127.0.0.{}", 20 + n), &names[n]);
        let text = format!("127.0.0.1 localhost\n{other} {name}\n127.0.0.1 {name}\n");
        std::fs::write(&hosts, text).unwrap();
        listen(&server, &other, stranger);
        let began = Instant::now();
        let client = client(&server, &hosts, &directory.path().join(format!("client-{n}")), name);
        client.wait_equal(&server);
        // One handshake alone may take five seconds.
        assert!(began.elapsed() < Duration::from_secs(5), "{stranger:?}: {:?}", began.elapsed());
    }
}

/// Where no address leads to the server, each is named with its reason.
#[test]
fn an_error_names_each_address_with_its_reason() {
    if !may_unshare("an_error_names_each_address_with_its_reason", "-m") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.31 none.test\n127.0.0.32 none.test\n")
        .unwrap();
    let server = Daemon::server(&directory.path().join("server"), &[]);
    listen(&server, "127.0.0.31", Stranger::Closing);
    let client = client(&server, &hosts, &directory.path().join("client"), "none.test");
    let error = wait_for("the error names both", || {
        let error = client.status()["last_error"].as_str()?.to_string();
        error.contains("no address of 'none.test'").then_some(error)
    });
    assert!(error.contains("127.0.0.31:") && error.contains("127.0.0.32:"), "{error}");
    assert!(error.contains("cannot connect"), "{error}");
}
