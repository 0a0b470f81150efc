//! A replica's disk is full. Needs root, to mount file systems that are small.

use crate::common::{Daemon, free_port, get, wait_for};
use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A small file system; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    /// `None`, and a line that says so, where this process may not mount.
    fn mount(path: &Path, options: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a small file system");
            return None;
        }
        std::fs::create_dir_all(path).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path);
        let output = command.output().unwrap();
        assert!(output.status.success(), "root cannot mount: {output:?}");
        Some(Self(path.to_path_buf()))
    }

    /// Takes every byte that is left.
    fn fill(&self) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        for size in [1 << 20, 4096, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Takes every file that may still be made.
    fn fill_inodes(&self) {
        std::fs::create_dir_all(self.0.join("inodes")).unwrap();
        for number in 0.. {
            if File::create(self.0.join(format!("inodes/{number}"))).is_err() {
                return;
            }
        }
    }

    fn free(&self) {
        let _ = std::fs::remove_file(self.0.join("ballast"));
        let _ = std::fs::remove_dir_all(self.0.join("inodes"));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a test that failed may have daemons in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn wait_stalled(client: &Daemon) {
    wait_for("the replica says that it cannot write", || {
        let stalled = client.metric("syncd_client_stalled{reason=\"storage\"}");
        (client.status()["state"] == "stalled" && stalled == 1.0).then_some(())
    });
}

/// Reads answer from the last verified state.
fn check_reads(client: &Daemon, root: &str) {
    let answer = get(&format!("{}/v1/keys/k/0", client.api));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.headers["syncd-root"], root);
    assert_eq!(get(&format!("{}/livez", client.metrics)).status, 200);
}

/// Full while it runs, full when it starts: it serves what it verified, and goes on by itself.
#[test]
fn a_replica_on_a_full_disk_serves_on_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&directory.path().join("small"), "size=96m") else { return };
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 3, 3);
    let storage = small.0.join("client");
    let mut client = server.client(&storage, &[]);
    client.wait_equal(&server);
    let root = client.root();
    small.fill();
    server.write_many("more", 20, 10);
    wait_stalled(&client);
    check_reads(&client, &root);
    assert!(client.status()["last_error"].as_str().unwrap().contains("bytes free"));
    small.free();
    client.wait_equal(&server);
    assert_eq!(client.status()["state"], "following");

    // Killed, and started without room.
    client.kill();
    let root = server.root();
    small.fill();
    server.write_many("again", 20, 10);
    let (api, metrics) = (free_port(), free_port());
    // Where it listens cannot be written down.
    let mut client =
        server.spawn_client(&storage, &["--api-port", &api, "--metrics-port", &metrics]);
    client.api = format!("http://127.0.0.1:{api}");
    client.metrics = format!("http://127.0.0.1:{metrics}");
    wait_for("the replica answers", || {
        if let Some(status) = client.ended() {
            panic!("the replica ended with {status}: {}", client.log_tail());
        }
        crate::common::try_get(&format!("{}/v1/status", client.api))
    });
    wait_stalled(&client);
    check_reads(&client, &root);
    small.free();
    client.wait_equal(&server);
    client.stop();
}

/// A first state sync without room waits for it.
#[test]
fn a_new_replica_without_room_waits() {
    let directory = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&directory.path().join("small"), "size=20m") else { return };
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 3, 3);
    let client = server.client(&small.0.join("client"), &[]);
    wait_stalled(&client);
    assert_eq!(client.size(), 0);
    let mut command = Command::new("mount");
    let output = command.args(["-o", "remount,size=96m"]).arg(&small.0).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    client.wait_equal(&server);
}

/// A failure that the file system does not tell of before: no file can be made for the next segment of the log. What is
/// there stays readable, and is gone on from.
#[test]
fn a_replica_whose_writes_fail_opens_its_storage_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = "size=96m,nr_inodes=120";
    let Some(small) = Small::mount(&directory.path().join("small"), options) else { return };
    let server = Daemon::server(&directory.path().join("server"), &[]);
    server.write_many("k", 3, 3);
    let client = server.client(&small.0.join("client"), &[]);
    client.wait_equal(&server);
    small.fill_inodes();
    // More commits than a segment of the log has.
    server.write_many("more", 150, 1);
    wait_stalled(&client);
    let failed = client.metric("syncd_storage_errors_total{operation=\"commit\"}");
    assert!(failed > 0.0, "{failed}");
    for _ in 0..20 {
        assert_eq!(get(&format!("{}/v1/keys/k/0", client.api)).status, 200);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    small.free();
    client.wait_equal(&server);
    client.stop();
}

/// A server that cannot append ends, and has lost nothing.
#[test]
fn a_server_on_a_full_disk_ends_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&directory.path().join("small"), "size=16m") else { return };
    let storage = small.0.join("server");
    let mut server = Daemon::server(&storage, &[]);
    server.write_many("k", 5, 2);
    small.fill();
    let mut written = 0;
    let status = wait_for("the server ends", || {
        let url = format!("{}/v1/keys/full/{written}", server.api);
        let value = vec![7; 60_000];
        match crate::common::try_send("PUT", &url, &[crate::common::BYTES], &value) {
            Some(answer) if answer.status == 200 => written += 1,
            _ => {}
        }
        server.ended()
    });
    assert_eq!(status.code(), Some(74), "{}", server.log_tail());
    small.free();
    let server = Daemon::server(&storage, &[]);
    for key in (0..10).map(|n| format!("k/{n}")).chain((0..written).map(|n| format!("full/{n}"))) {
        assert_eq!(get(&format!("{}/v1/keys/{key}", server.api)).status, 200, "{key} is lost");
    }
    server.stop();
}
