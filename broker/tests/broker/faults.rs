//! What the system does to a broker when it fails it: a disk that loses what was written, a thread that dies. The real
//! program, with `faults.c` between it and the system.

use std::path::Path;
use std::process::Command;

use hoist_certs::Role;
use rumqttc::{Connect, Packet, QoS, Subscribe};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::program::{Folder, Running, start};
use crate::support::{Client, PATIENCE, topic};

/// From errno(3).
const ENOSPC: &str = "28";
const EIO: &str = "5";
const EMFILE: &str = "24";

/// The layer, and what it makes fail.
struct Faults {
    dir: TempDir,
}

impl Faults {
    fn new() -> Self {
        let faults = Self {
            dir: TempDir::new().unwrap(),
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broker/faults.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(faults.library())
            .arg(source)
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{compiled:?}");
        faults
    }

    fn library(&self) -> std::path::PathBuf {
        self.dir.path().join("faults.so")
    }

    /// Starts a broker above it.
    fn start(&self, folder: &Folder, flags: &str) -> Running {
        let mut command = folder.command("exec", flags);
        command
            .env("LD_PRELOAD", self.library())
            .env("HOIST_FAULTS", self.dir.path());
        start(command)
    }

    /// From now on a call fails. In one step: nobody reads half of it.
    fn begin(&self, call: &str, how: &str) {
        let half = self.dir.path().join("half");
        std::fs::write(&half, how).unwrap();
        std::fs::rename(half, self.dir.path().join(call)).unwrap();
    }

    /// How often a fault has struck.
    fn struck(&self, call: &str) -> usize {
        let file = self.dir.path().join(format!("{call}.struck"));
        std::fs::read(file).map_or(0, |bytes| bytes.len())
    }

    fn end(&self, call: &str) {
        std::fs::remove_file(self.dir.path().join(call)).unwrap();
    }
}

/// What a monitor finds retained.
async fn retained(folder: &Folder, running: &Running, topic: &str) -> String {
    let mut monitor = folder.world.monitor(&running.broker).await;
    monitor.subscribe(&[topic]).await;
    monitor.message().await.payload
}

/// Publishes until it is acknowledged.
async fn insist(folder: &Folder, running: &Running, topic: &str, payload: &str) {
    let trying = async {
        loop {
            let mut agent = folder.world.agent(&running.broker, "web-1").await;
            if agent.retain(topic, payload).await {
                return;
            }
        }
    };
    timeout(PATIENCE, trying).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fails_a_write_or_a_sync_loses_nothing_that_was_acknowledged() {
    let status = topic("web-1", "status");
    for (call, error) in [
        ("write", ENOSPC),
        ("write", EIO),
        ("fdatasync", EIO),
        ("fdatasync", ENOSPC),
    ] {
        let (folder, faults) = (Folder::new(), Faults::new());
        let mut running = faults.start(&folder, "");
        let mut agent = folder.world.agent(&running.broker, "web-1").await;
        assert!(agent.retain(&status, "1").await);
        faults.begin(call, error);
        // What heals a file that the disk has failed does not work either.
        faults.begin("fsync", EIO);
        assert!(!agent.retain(&status, "2").await, "{call} {error}");
        let mut agent = folder.world.agent(&running.broker, "web-1").await;
        assert!(!agent.retain(&status, "3").await, "{call} {error}");
        assert_eq!(retained(&folder, &running, &status).await, "1");
        running.child.kill().unwrap();
        running.child.wait().unwrap();

        // As after a crash: nothing is there but what was acknowledged, and the disk works again.
        faults.end(call);
        faults.end("fsync");
        let running = faults.start(&folder, "");
        assert_eq!(
            retained(&folder, &running, &status).await,
            "1",
            "{call} {error}"
        );
        insist(&folder, &running, &status, "4").await;
    }
}

#[tokio::test]
async fn a_disk_without_space_for_later_batches_takes_the_one_that_fits() {
    let (folder, faults) = (Folder::new(), Faults::new());
    let status = topic("web-1", "status");
    let mut running = faults.start(&folder, "");
    // Half of the zeros are there, and cannot be taken back.
    faults.begin("write-zeros", ENOSPC);
    faults.begin("ftruncate", EIO);
    let mut agent = folder.world.agent(&running.broker, "web-1").await;
    let large = "x".repeat(8000);
    for n in 0..20 {
        assert!(agent.retain(&status, &format!("{n}{large}")).await, "{n}");
    }
    // It is not looked for at every batch.
    assert_eq!(faults.struck("write-zeros"), 1);
    running.child.kill().unwrap();
    running.child.wait().unwrap();

    faults.end("write-zeros");
    faults.end("ftruncate");
    let running = faults.start(&folder, "");
    let found = retained(&folder, &running, &status).await;
    assert_eq!(found, format!("19{large}"));
    running.terminate();
    let (_, said) = running.end();
    assert!(!said.contains("cut off"), "nothing was torn: {said}");
}

#[tokio::test]
async fn publishes_are_taken_again_when_the_file_could_be_written_anew() {
    let (folder, faults) = (Folder::new(), Faults::new());
    let (status, history) = (topic("web-1", "status"), topic("web-1", "history"));
    let running = faults.start(&folder, "");
    let mut agent = folder.world.agent(&running.broker, "web-1").await;
    assert!(agent.retain(&status, "1").await);
    assert!(agent.retain(&history, "old").await);
    // One obstacle after the other on the way to a new file. Only a failed sync makes a new one necessary, so that writes
    // have to work until then.
    let steps = ["fdatasync", "fsync", "write", "rename"];
    for step in ["rename", "fsync", "fdatasync"] {
        faults.begin(step, EIO);
    }
    assert!(!agent.retain(&status, "2").await);
    faults.begin("write", EIO);
    for step in steps {
        let mut agent = folder.world.agent(&running.broker, "web-1").await;
        assert!(!agent.retain(&status, "3").await, "before {step} works");
        faults.end(step);
    }
    insist(&folder, &running, &status, "4").await;
    running.terminate();
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("publishes are refused until"), "{said}");
    assert!(said.contains("can be written again"), "{said}");

    let running = start(folder.command("exec", ""));
    assert_eq!(retained(&folder, &running, &status).await, "4");
    assert_eq!(retained(&folder, &running, &history).await, "old");
}

/// Asks for what is retained, of a broker that may be about to end.
async fn watch(folder: &Folder, running: &Running) {
    let monitor = folder.world.credentials("prod", Role::Monitor, "mon");
    let tls = monitor.client().unwrap();
    if let Ok(mut monitor) = Client::try_tls(&running.broker, tls.config()).await {
        monitor.send(Packet::Connect(Connect::new("mon.1"))).await;
        let mut subscribe = Subscribe::new("hoist/v1/prod/+/status", QoS::AtLeastOnce);
        subscribe.pkid = 1;
        monitor.send(Packet::Subscribe(subscribe)).await;
        while monitor.next().await.is_some() {}
    }
}

/// Waits until the program has ended by itself: its exit code, and what it said.
async fn ended(mut running: Running) -> (Option<i32>, String) {
    let ending = async {
        while running.child.try_wait().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, ending).await.expect("it goes on");
    running.end()
}

#[tokio::test]
async fn a_thread_that_dies_ends_the_program_with_an_error() {
    let status = topic("web-1", "status");
    for (thread, says) in [
        ("store", "store"),
        ("router-0", "router"),
        ("certificates", "certificates"),
        ("audit", "audit"),
    ] {
        let (folder, faults) = (Folder::new(), Faults::new());
        let running = faults.start(&folder, "--audit-log audit.jsonl");
        let mut agent = folder.world.agent(&running.broker, "web-1").await;
        assert!(agent.retain(&status, "1").await);
        faults.begin("clock", thread);
        // Each of them gets something to do: to store, to write down, to link a new watcher, to look at files.
        for topic in [&status, &topic("web-2", "status")] {
            agent
                .send_publish(topic, QoS::AtLeastOnce, true, b"2")
                .await;
        }
        watch(&folder, &running).await;
        let (code, said) = ended(running).await;
        assert_eq!(code, Some(1), "{thread}: {said}");
        let error = said.lines().find(|line| line.starts_with("error: "));
        let error = error.unwrap_or_else(|| panic!("{thread}: no error in {said}"));
        assert!(error.contains(says), "{thread}: {error}");

        // Whoever starts it again finds what it had acknowledged.
        faults.end("clock");
        let again = faults.start(&folder, "");
        let found = retained(&folder, &again, &status).await;
        assert!(["1", "2"].contains(&&*found), "{thread}: {found}");
    }
}

#[tokio::test]
async fn a_denylist_that_could_not_be_opened_is_taken_when_it_can() {
    let (folder, faults) = (Folder::new(), Faults::new());
    let deny = folder.dir.path().join("deny");
    std::fs::write(&deny, "").unwrap();
    let running = faults.start(&folder, "--denylist deny");
    let mut agent = folder.world.agent(&running.broker, "web-1").await;
    faults.begin("open", EMFILE);
    std::fs::write(&deny, "web-1\n").unwrap();
    let failing = async {
        while faults.struck("open") == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, failing).await.unwrap();
    assert!(agent.retain(&topic("web-1", "status"), "1").await);
    // The file itself does not change again.
    faults.end("open");
    agent.expect_closed().await;
}
