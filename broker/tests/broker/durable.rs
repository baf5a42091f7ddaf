//! What was acknowledged is there, whatever happens to the process and the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_broker::maintenance;
use hoist_certs::Role;
use rumqttc::{Packet, QoS};

use crate::program::{Folder, PROGRAM, Running, start};
use crate::support::{Client, PATIENCE, World, topic};

/// How often the broker is killed; `HOIST_BROKER_KILLS` sets another number.
const ROUNDS: u32 = 10;

/// How many agents report, and for how many machines a publisher deploys, while it is.
const AGENTS: usize = 3;
const MACHINES: usize = 20;

/// The newest value of each topic that was acknowledged, and that was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    acknowledged: u32,
    sent: u32,
}

type Books = BTreeMap<String, Newest>;

/// Reports until the broker is gone.
async fn report(mut agent: Client, topic: String, mut newest: Newest) -> Books {
    loop {
        newest.sent += 1;
        if !agent.retain(&topic, newest.sent.to_string()).await {
            return Books::from([(topic, newest)]);
        }
        newest.acknowledged = newest.sent;
    }
}

/// Deploys to all machines at once, again and again, until the broker is gone. Says when `after` of them are
/// acknowledged.
async fn deploy(
    mut publisher: Client,
    mut books: Books,
    after: u32,
    enough: tokio::sync::oneshot::Sender<()>,
) -> Books {
    let (mut enough, mut acknowledged) = (Some(enough), 0);
    let topics: Vec<String> = books.keys().cloned().collect();
    loop {
        let mut waiting = BTreeMap::new();
        for topic in &topics {
            let newest = books.get_mut(topic).unwrap();
            newest.sent += 1;
            let payload = newest.sent.to_string();
            publisher
                .send_publish(topic, QoS::AtLeastOnce, true, payload.as_bytes())
                .await;
            waiting.insert(publisher.last_id(), topic);
        }
        while !waiting.is_empty() {
            match publisher.next().await {
                Some(Packet::PubAck(ack)) => {
                    let newest = books.get_mut(waiting.remove(&ack.pkid).unwrap()).unwrap();
                    newest.acknowledged = newest.sent;
                    acknowledged += 1;
                    if acknowledged >= after
                        && let Some(enough) = enough.take()
                    {
                        enough.send(()).ok();
                    }
                }
                None => return books,
                other => panic!("no PUBACK but {other:?}"),
            }
        }
    }
}

/// What is retained is what was acknowledged, or what was sent after it.
async fn compare(world: &World, running: &Running, books: &Books) {
    let mut watcher = world
        .client(&running.broker, Role::Publisher, "watch")
        .await;
    let filters = ["hoist/v1/prod/+/deploy", "hoist/v1/prod/+/status"];
    watcher.subscribe(&filters).await;
    let known = books
        .values()
        .filter(|newest| newest.acknowledged > 0)
        .count();
    let mut found = BTreeMap::new();
    while found.len() < known {
        let message = watcher.message().await;
        assert!(message.retain, "{message:?}");
        let newest = &books[&message.topic];
        let value: u32 = message.payload.parse().unwrap();
        assert!(
            (newest.acknowledged..=newest.sent).contains(&value),
            "{} is {value} after {newest:?}",
            message.topic
        );
        if newest.acknowledged > 0 {
            found.insert(message.topic, value);
        }
    }
}

#[tokio::test]
async fn killed_again_and_again_under_load_it_loses_nothing_that_it_acknowledged() {
    let folder = Folder::new();
    let deploys = (0..MACHINES).map(|n| topic(&format!("m-{n}"), "deploy"));
    let mut deploys: Books = deploys.map(|topic| (topic, Newest::default())).collect();
    let statuses = (0..AGENTS).map(|n| topic(&format!("web-{n}"), "status"));
    let mut statuses: Books = statuses.map(|topic| (topic, Newest::default())).collect();
    let rounds = std::env::var("HOIST_BROKER_KILLS").map_or(ROUNDS, |n| n.parse().unwrap());
    for round in 0..rounds {
        let mut running = start(folder.command("exec", ""));
        let mut all = deploys.clone();
        all.extend(statuses.clone());
        compare(&folder.world, &running, &all).await;
        let mut agents = Vec::new();
        for (n, (topic, newest)) in statuses.clone().into_iter().enumerate() {
            let agent = folder
                .world
                .agent(&running.broker, &format!("web-{n}"))
                .await;
            agents.push(tokio::spawn(report(agent, topic, newest)));
        }
        let publisher = folder
            .world
            .client(&running.broker, Role::Publisher, "ci")
            .await;
        let (enough, reached) = tokio::sync::oneshot::channel();
        // Another moment of a batch's life each time.
        let after = 1 + round * 37 % 200;
        let deploying = tokio::spawn(deploy(publisher, deploys.clone(), after, enough));
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap()
            .unwrap();
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        deploys = deploying.await.unwrap();
        for agent in agents {
            statuses.extend(agent.await.unwrap());
        }
    }
    let running = start(folder.command("exec", ""));
    deploys.extend(statuses);
    compare(&folder.world, &running, &deploys).await;
}

/// A broker whose state is a file system of 4 MB of its own, and the folder of it as seen from here.
fn on_a_small_disk(folder: &Folder) -> (Running, PathBuf) {
    let wrapper = "mkdir state && exec unshare --map-root-user --mount sh -c \
                  'mount -t tmpfs -o size=4m none state && exec \"$@\"' sh";
    let running = start(folder.command(wrapper, "--metrics-listen 0"));
    let pid = running.child.id();
    let inside = folder.dir.path().canonicalize().unwrap();
    let inside = inside.strip_prefix("/").unwrap();
    let state = Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(inside);
    (running, state.join("state"))
}

#[tokio::test]
async fn a_full_disk_refuses_publishes_and_recovers_by_itself() {
    let folder = Folder::new();
    let (running, state) = on_a_small_disk(&folder);
    let filler = state.join("filler");
    std::fs::write(&filler, vec![0; 3 * 1024 * 1024]).unwrap();
    let status = topic("web-1", "status");
    let payload = "x".repeat(10_000);
    let mut agent = folder.world.agent(&running.broker, "web-1").await;
    let mut acknowledged = 0;
    while agent
        .retain(&status, format!("{acknowledged} {payload}"))
        .await
    {
        acknowledged += 1;
        assert!(acknowledged < 10_000, "the disk was never full");
    }
    assert!(acknowledged > 10, "there was room for more");
    let newest = format!("{} {payload}", acknowledged - 1);

    // What needs no disk goes on, and what was acknowledged is there.
    let mut agent = folder.world.agent(&running.broker, "web-1").await;
    assert!(agent.retain(&topic("web-1", "presence"), "online").await);
    let mut monitor = folder.world.monitor(&running.broker).await;
    monitor.subscribe(&[&status]).await;
    assert_eq!(monitor.message().await.payload, newest);

    std::fs::remove_file(&filler).unwrap();
    let trying = async {
        loop {
            let mut agent = folder.world.agent(&running.broker, "web-1").await;
            if agent.retain(&status, format!("again {payload}")).await {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.unwrap();
    assert_eq!(monitor.message().await.payload, format!("again {payload}"));

    // And it is on the disk: a store that was copied from there holds it.
    let copy = folder.dir.path().join("copy");
    std::fs::copy(state.join("store/retained.log"), &copy).unwrap();
    let summary = maintenance::check(Utf8Path::from_path(&copy).unwrap()).unwrap();
    assert_eq!(
        (summary.messages(), summary.torn_bytes),
        (1, 0),
        "{summary:?}"
    );
    running.terminate();
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("publishes are refused until"), "{said}");
    assert!(said.contains("can be written again"), "{said}");
}

#[tokio::test]
async fn a_broker_starts_on_a_full_disk_and_hands_out_what_is_retained() {
    let folder = Folder::new();
    let mut first = start(folder.command("exec", ""));
    let status = topic("web-1", "status");
    let mut agent = folder.world.agent(&first.broker, "web-1").await;
    assert!(agent.retain(&status, "x".repeat(10_000)).await);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    // What it has left, on a disk without a free byte.
    let wrapper = "mkdir disk && exec unshare --map-root-user --mount sh -c \
                  'mount -t tmpfs -o size=2m none disk && cp -r state disk/ && \
                  (cat /dev/zero > disk/filler || true) 2>/dev/null && exec \"$@\"' sh";
    let second = start(folder.command(wrapper, "--state disk/state"));
    let mut monitor = folder.world.monitor(&second.broker).await;
    monitor.subscribe(&[&status]).await;
    assert_eq!(monitor.message().await.payload.len(), 10_000);
    let mut agent = folder.world.agent(&second.broker, "web-1").await;
    let mut taken = 0;
    while agent.retain(&status, "y".repeat(10_000)).await {
        taken += 1;
        assert!(
            taken < 100,
            "the store has room for some, and the disk for no more"
        );
    }
}

/// A store with some messages, of a broker that has ended in order.
async fn filled(world: &World) -> Utf8PathBuf {
    let broker = world.start().await;
    for n in 0..5 {
        let mut agent = world.agent(&broker, &format!("web-{n}")).await;
        assert!(
            agent
                .retain(&topic(&format!("web-{n}"), "status"), "x".repeat(100))
                .await
        );
    }
    broker.stop().await;
    maintenance::store_file(world.state())
}

#[tokio::test]
async fn a_damaged_store_refuses_to_start_and_says_what_to_do() {
    let world = World::new();
    let file = filled(&world).await;
    let good = std::fs::read(&file).unwrap();
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    let error = world.try_start().await.map(|_| ()).unwrap_err();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        text.contains("hoist-broker restore") && text.contains(file.as_str()),
        "{text}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), damaged, "it was changed");
    assert!(maintenance::check(&file).is_err());
    assert!(maintenance::count_before_damage(&file).unwrap() > 0);
    std::fs::write(&file, good).unwrap();
    world.start().await.stop().await;
}

#[tokio::test]
async fn a_backup_of_a_running_broker_can_be_restored() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    assert!(agent.retain(&status, "before").await);
    let backup = world.state().join("backup");
    let (state, to) = (world.state().to_owned(), backup.clone());
    let summary = tokio::task::spawn_blocking(move || maintenance::backup(&state, &to, false))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((summary.messages(), summary.closed), (1, true));
    assert!(agent.retain(&status, "after").await);

    // Not while it runs, and not over what is there.
    let error = maintenance::restore(world.state(), &backup, true).unwrap_err();
    assert!(
        error.to_string().contains("another broker is running"),
        "{error}"
    );
    broker.stop().await;
    let error = maintenance::restore(world.state(), &backup, false).unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    maintenance::restore(world.state(), &backup, true).unwrap();

    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&status]).await;
    assert_eq!(monitor.message().await.payload, "before");
    broker.stop().await;
    let kept = world.state().join("store/retained.before-restore");
    assert_eq!(maintenance::check(&kept).unwrap().messages(), 1);
}

#[tokio::test]
async fn a_backup_is_complete_or_none() {
    let world = World::new();
    filled(&world).await;
    let backup = world.state().join("backup");
    maintenance::backup(world.state(), &backup, false).unwrap();
    let error = maintenance::backup(world.state(), &backup, false).unwrap_err();
    assert!(error.to_string().contains("exists already"), "{error}");
    let whole = std::fs::read(&backup).unwrap();
    let other = World::new();
    for len in (0..whole.len()).step_by(7) {
        std::fs::write(&backup, &whole[..len]).unwrap();
        assert!(
            maintenance::restore(other.state(), &backup, false).is_err(),
            "{len}"
        );
    }
    std::fs::write(&backup, &whole).unwrap();
    maintenance::restore(other.state(), &backup, false).unwrap();
    assert_eq!(
        maintenance::check(&maintenance::store_file(other.state()))
            .unwrap()
            .messages(),
        5
    );
}

#[tokio::test]
async fn maintenance_makes_and_replaces_nothing_that_nobody_asked_for() {
    let world = World::new();
    filled(&world).await;
    let backup = world.state().join("backup");
    let mistyped = world.state().join("mistyped");
    let error = maintenance::backup(&mistyped, &backup, false).unwrap_err();
    assert!(error.to_string().contains("no store"), "{error}");
    assert!(!mistyped.exists() && !backup.exists());
    // As `/dev/stdout` may be: a pipe.
    let pipe = world.state().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for place in [pipe.as_path(), world.state()] {
        let error = maintenance::backup(world.state(), place, true).unwrap_err();
        assert!(error.to_string().contains("no file"), "{error}");
    }
    maintenance::backup(world.state(), &backup, false).unwrap();
    let file = maintenance::store_file(world.state());
    std::fs::write(&file, "damaged").unwrap();
    let error = maintenance::restore(world.state(), &backup, false).unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"damaged");
    maintenance::restore(world.state(), &backup, true).unwrap();
    assert_eq!(maintenance::check(&file).unwrap().messages(), 5);
}

/// Runs the program and returns its exit code and what it printed.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(PROGRAM).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn the_commands_say_what_they_found() {
    let world = World::new();
    let file = filled(&world).await;
    let state = world.state().as_str();
    let backup = world.state().join("backup");
    let (code, said, _) = run(&["check", "--state", state]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("sound, 5 messages (5 status) of 5 machines in 1 fleets"),
        "{said}"
    );
    let (code, said, _) = run(&["backup", "--state", state, backup.as_str()]);
    assert_eq!(
        (code, said.contains("5 messages")),
        (Some(0), true),
        "{said}"
    );
    let (code, said, _) = run(&["check", backup.as_str()]);
    assert_eq!((code, said.contains("sound")), (Some(0), true), "{said}");
    let (code, _, said) = run(&["restore", "--state", state, backup.as_str()]);
    assert_eq!((code, said.contains("--force")), (Some(1), true), "{said}");
    let (code, said, _) = run(&["restore", "--force", "--state", state, backup.as_str()]);
    assert_eq!(
        (code, said.contains("restored 5 messages")),
        (Some(0), true),
        "{said}"
    );
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, said, error) = run(&["check", "--state", state]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("can be read before"), "{said}");
    assert!(error.contains("is damaged at byte"), "{error}");
    assert_eq!(
        run(&["check"]).0,
        Some(2),
        "neither a state folder nor a backup"
    );
}
