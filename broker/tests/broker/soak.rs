//! A day of a fleet in short: clients come and go in every way, and leave nothing behind.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hoist_certs::Role;
use rumqttc::{Connect, QoS};
use rustls::ClientConfig;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::program::{Folder, Running, start};
use crate::seen::get;
use crate::support::{Client, PATIENCE, topic, with_will};

/// How often everybody comes and goes; `HOIST_BROKER_ROUNDS` sets another number. 1,000 are what a fleet of 10,000
/// does in a day on which each machine connects twice.
const ROUNDS: u32 = 20;

/// How many agents there are.
const AGENTS: usize = 20;

/// How much more memory the process may have after the last round than after a fifth of them, in KiB: what the
/// allocator keeps differs.
const MEMORY_SLACK: u64 = 4 * 1024;

/// A broker's process, and where it tells its metrics.
struct Broker {
    running: Running,
    metrics: SocketAddr,
}

/// What it has open while nobody is connected.
#[derive(Clone, Copy, Debug)]
struct Open {
    files: usize,
    tasks: u64,
}

impl Broker {
    async fn start(folder: &Folder) -> Self {
        let running =
            start(folder.command("exec", "--metrics-listen 0 --takeover-rate 1000/s 2> log"));
        let log = std::fs::read_to_string(folder.dir.path().join("log")).unwrap();
        let line = log.lines().find(|line| line.contains("telling metrics"));
        let (_, address) = line.unwrap().split_once("address=").unwrap();
        Self {
            running,
            metrics: address.trim().parse().unwrap(),
        }
    }

    fn of_process(&self, file: &str) -> std::path::PathBuf {
        Path::new("/proc")
            .join(self.running.child.id().to_string())
            .join(file)
    }

    /// Resident memory, in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(self.of_process("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse().unwrap()
    }

    async fn metric(&self, name: &str) -> u64 {
        let (_, text) = get(self.metrics, "/metrics").await;
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let family = series.split('{').next()?;
            (family == format!("hoist_broker_{name}")).then(|| value.parse::<u64>().unwrap())
        });
        values.sum()
    }

    async fn open(&self) -> Open {
        Open {
            tasks: self.metric("tasks").await,
            files: std::fs::read_dir(self.of_process("fd")).unwrap().count(),
        }
    }

    /// Waits until everything of all connections is gone.
    async fn wait_for_quiet(&self, before: Open) {
        let mut now = before;
        let waiting = async {
            loop {
                now = self.open().await;
                let gone = self.metric("connections").await == 0
                    && self.metric("sessions").await == 0
                    && self.metric("handshakes_under_way").await == 0
                    && self.metric("watchers").await == 0;
                let same = now.files <= before.files && now.tasks <= before.tasks;
                if gone && same {
                    return;
                }
            }
        };
        let waited = timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{before:?} has become {now:?}");
    }
}

/// One with a certificate that it keeps, and connects with again and again.
struct Identity {
    name: String,
    config: Arc<ClientConfig>,
}

impl Identity {
    fn new(folder: &Folder, role: Role, name: &str) -> Self {
        let tls = folder.world.credentials("prod", role, name).client();
        Self {
            name: name.to_owned(),
            config: tls.unwrap().config(),
        }
    }

    async fn tls(&self, address: SocketAddr) -> Client {
        let broker = crate::support::Broker::elsewhere(address);
        Client::tls(&broker, Arc::clone(&self.config)).await
    }
}

/// What an agent does in a round; how it goes differs from one to the next.
async fn agent(identity: Arc<Identity>, address: SocketAddr, round: u32, number: usize) {
    let name = &identity.name;
    let presence = topic(name, "presence");
    let will = with_will(name, &presence, "offline");
    let mut client = identity.tls(address).await;
    client.connect(will.clone()).await;
    client.subscribe(&[&topic(name, "echo")]).await;
    assert!(client.retain(&presence, "online").await);
    for n in 0..3 {
        let status = format!("{{\"round\":{round},\"n\":{n}}}");
        assert!(client.retain(&topic(name, "status"), status).await);
        let log = topic(name, "log");
        client
            .send_publish(&log, QoS::AtMostOnce, false, &[b'x'; 200])
            .await;
    }
    match (number + round as usize) % 4 {
        0 => client.disconnect().await,
        // It is gone without a word.
        1 => drop(client),
        // It comes back before the broker knows that it was gone.
        2 => {
            let mut again = identity.tls(address).await;
            again.connect(will).await;
            client.expect_closed().await;
            again.disconnect().await;
        }
        // It does what it may not.
        _ => assert!(!client.retain(&topic("other", "status"), "x").await),
    }
}

const WATCHED: [&str; 2] = ["hoist/v1/prod/+/status", "hoist/v1/prod/+/presence"];

/// Watches the whole fleet until it has seen something of it.
async fn watch(identity: Arc<Identity>, address: SocketAddr) {
    watcher(&identity, address).await.message().await;
}

async fn watcher(identity: &Identity, address: SocketAddr) -> Client {
    let mut client = identity.tls(address).await;
    client.connect(Connect::new("mon.1")).await;
    client.subscribe(&WATCHED).await;
    client
}

/// How often each agent says both where it stands and that it is online, until all that the bus remembers is of them.
const FILLING: usize = 1000;

/// Fills what the bus remembers for those who watch. It has a limit, but a round adds so little that it would look like a
/// leak for a thousand of them.
async fn fill_the_bus(monitor: &Identity, agents: &[Arc<Identity>], address: SocketAddr) {
    let mut watcher = watcher(monitor, address).await;
    let watching = tokio::spawn(async move {
        loop {
            watcher.message().await;
        }
    });
    let mut busy = JoinSet::new();
    for identity in agents.iter().cloned() {
        busy.spawn(async move {
            let name = &identity.name;
            let (presence, status) = (topic(name, "presence"), topic(name, "status"));
            let mut client = identity.tls(address).await;
            client.connect(Connect::new(name)).await;
            for n in 0..FILLING {
                let said = format!("{{\"n\":{n}}}");
                let (unanswered, retain) = (QoS::AtMostOnce, true);
                client
                    .send_publish(&presence, unanswered, retain, b"online")
                    .await;
                client
                    .send_publish(&status, unanswered, retain, said.as_bytes())
                    .await;
            }
            assert!(client.retain(&presence, "online").await);
            client.disconnect().await;
        });
    }
    while let Some(done) = busy.join_next().await {
        done.unwrap();
    }
    assert!(!watching.is_finished(), "the watcher was dropped");
    watching.abort();
}

async fn deploy(identity: Arc<Identity>, address: SocketAddr, round: u32) {
    let mut client = identity.tls(address).await;
    client.connect(Connect::new("ci.1")).await;
    for n in 0..AGENTS {
        let deploy = topic(&format!("web-{n}"), "deploy");
        assert!(client.retain(&deploy, round.to_string()).await);
    }
}

#[tokio::test]
async fn a_day_of_connects_and_publishes_leaves_nothing_behind() {
    let folder = Folder::new();
    let broker = Broker::start(&folder).await;
    let address = broker.running.broker.address;
    let agents = (0..AGENTS).map(|n| Identity::new(&folder, Role::Agent, &format!("web-{n}")));
    let agents: Vec<Arc<Identity>> = agents.map(Arc::new).collect();
    let monitor = Arc::new(Identity::new(&folder, Role::Monitor, "mon"));
    let publisher = Arc::new(Identity::new(&folder, Role::Publisher, "ci"));
    let rounds = std::env::var("HOIST_BROKER_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let before = broker.open().await;
    fill_the_bus(&monitor, &agents, address).await;
    broker.wait_for_quiet(before).await;
    let mut memory = Vec::new();
    for round in 0..rounds {
        let mut busy = JoinSet::new();
        for (number, identity) in agents.iter().enumerate() {
            busy.spawn(agent(Arc::clone(identity), address, round, number));
        }
        busy.spawn(watch(Arc::clone(&monitor), address));
        busy.spawn(deploy(Arc::clone(&publisher), address, round));
        while let Some(done) = busy.join_next().await {
            done.unwrap();
        }
        if (round + 1) % (rounds / 5).max(1) == 0 {
            broker.wait_for_quiet(before).await;
            memory.push(broker.memory());
        }
    }
    broker.wait_for_quiet(before).await;
    let (early, late) = (memory[0], broker.memory());
    println!(
        "{rounds} rounds: {memory:?} KiB after each fifth of them, {late} KiB at the end, {before:?} open"
    );
    assert!(
        late <= early + MEMORY_SLACK,
        "{early} KiB became {late} KiB"
    );
    assert_eq!(broker.metric("retained_messages").await, 3 * AGENTS as u64);
}
