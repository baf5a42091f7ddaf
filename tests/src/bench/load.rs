//! The load: a fleet of agents and one publisher, the same for every broker.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hoist_certs::Role;
use hoist_certs::authority::{Authority, days};
use hoist_certs::files::{Overwrite, write_private, write_public};
use hoist_protocol::{
    AgentName, CacheKey, Channel, Deployment, DeploymentId, DeploymentParts, FleetName, Goal,
    HealthCheck, Held, KeyName, Machine, Order, Probe, Provenance, PublicKey, SigningKey,
    StorePath, SubstituterUrl, System, Target, Text, Timestamp, sign,
};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use rustix::process::Pid;
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::authority::Identity;
use crate::bench::mqtt::Connection;
use crate::bench::report::Sample;
use crate::usage::Usage;
use crate::world::{FLEET, Site};

/// How many agents connect at the same time, after a broker has come back.
pub(super) const CONNECTING: usize = 64;

/// How many publishes a publisher has under way.
pub(super) const IN_FLIGHT: usize = 100;

/// How many deployments are timed alone, without an agent to deliver them to.
pub(super) const PUBLISHED_ALONE: usize = 1000;

/// How often the whole fleet is deployed to in a row.
pub(super) const DEPLOYED: usize = 5;

/// How many deployments are sent one after the other to measure the time of a single one.
const SINGLE: usize = 200;

/// The version of what is retained at last: above all that is sent one after the other until then, whose order is by
/// the time in milliseconds.
const NEWEST: usize = 10 * 3600 * 1000;

/// Where that one is among an agent's versions.
const RETURNED: usize = DEPLOYED + 1;

/// How many deployments are signed before they are published, where there are many.
const FILLED_AT_ONCE: usize = 5000;

/// The size of a status, in bytes.
const STATUS_LEN: usize = 600;

/// Files that a broker has open besides its connections, at most.
const OTHER_FILES: usize = 40;

/// How long one broker's round may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(1800);

/// How many agents connect from one address: it has 28,000 ports, and one that was used rests for a minute.
const FROM_ONE_ADDRESS: usize = 10_000;

/// What one broker did in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// [`PUBLISHED_ALONE`] deployments, from the first publish to the last PUBACK.
    pub(super) publish: Duration,
    /// All agents, from the first connect to the last one's retained message.
    pub(super) connect: Duration,
    /// CPU time of the broker meanwhile.
    pub(super) connect_cpu: Duration,
    /// Resident memory a connection, in bytes.
    pub(super) connection: u64,
    /// A deployment to each agent, from the first publish until all have come and are acknowledged: the median of
    /// [`DEPLOYED`].
    pub(super) deploy: Duration,
    /// CPU time of the broker meanwhile, the mean.
    pub(super) deploy_cpu: Duration,
    /// A single deployment from publish to its agent, the median of [`SINGLE`].
    pub(super) single: Duration,
    /// All agents once more, each with its retained message and then its presence and status acknowledged.
    pub(super) storm: Duration,
    /// CPU time of the broker meanwhile.
    pub(super) storm_cpu: Duration,
    /// A monitor, from its SUBSCRIBE until it has the status of every agent.
    pub(super) snapshot: Duration,
}

/// One agent of the fleet.
struct Agent {
    name: AgentName,
    topic: String,
    tls: Arc<ClientConfig>,
    /// What is retained for it at first, what it is deployed then, and what is retained when it comes back.
    versions: [Bytes; DEPLOYED + 2],
}

/// The fleet, its publisher, and everything that they send.
pub(super) struct Load {
    agents: Arc<Vec<Agent>>,
    publisher: Arc<ClientConfig>,
    monitor: Arc<ClientConfig>,
    broker: Identity,
    key: SigningKey,
    signing: Duration,
    /// How many of the agents take part.
    count: usize,
    /// How many addresses agents have connected from: each time from others.
    addresses: AtomicU32,
}

/// What an agent does when it has connected, and which version is retained for it.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    /// It waits.
    Quiet(usize),
    /// It says that it is online, and where it stands.
    Reporting(usize),
}

impl Arrival {
    const fn version(self) -> usize {
        match self {
            Self::Quiet(version) | Self::Reporting(version) => version,
        }
    }
}

/// Says that the agent has received its message of a version; none: one of those that are sent one after the other.
struct Received(Option<usize>);

impl Load {
    /// Issues all certificates and signs all deployments.
    pub(super) fn prepare(count: usize, site: &Site) -> Result<Self> {
        let fleet = FleetName::new(FLEET)?;
        let authority = Authority::create(&fleet, days(2))?;
        let ca = authority.certificate_pem();
        let client = |role, name: &AgentName| -> Result<Arc<ClientConfig>> {
            let issued = authority.issue(role, name, &[], days(1))?;
            Ok(issued.credentials(ca).client()?.config())
        };
        let key = [new_key()?];
        let mut agents = Vec::with_capacity(count);
        let mut signing = Duration::ZERO;
        for n in 0..count {
            let name = AgentName::new(format!("web-{n}"))?;
            let machine = Machine::new(fleet.clone(), name.clone());
            let mut versions = [const { Bytes::new() }; DEPLOYED + 2];
            for (at, version) in versions.iter_mut().enumerate() {
                let start = Instant::now();
                let number = if at == RETURNED { NEWEST } else { at + 1 };
                *version = deployment(&machine, n, number, &key)?;
                if at == 0 && n < PUBLISHED_ALONE {
                    signing += start.elapsed();
                }
            }
            agents.push(Agent {
                topic: machine.topic(Channel::Deploy).to_string(),
                tls: client(Role::Agent, &name)?,
                versions,
                name,
            });
        }
        let [key] = key;
        Ok(Self {
            agents: Arc::new(agents),
            publisher: client(Role::Publisher, &AgentName::new("ci")?)?,
            monitor: client(Role::Monitor, &AgentName::new("mon")?)?,
            broker: write_broker(&authority, site)?,
            key,
            signing,
            count,
            addresses: AtomicU32::new(0),
        })
    }

    /// How many agents take part.
    pub(super) const fn agents(&self) -> usize {
        self.count
    }

    /// Lets only the first `count` agents take part, or all that there are.
    pub(super) fn take_part(&mut self, count: usize) {
        self.count = count.min(self.agents.len());
    }

    /// How many deployments are published alone.
    pub(super) fn published_alone(&self) -> usize {
        self.agents().min(PUBLISHED_ALONE)
    }

    /// How long it took to sign those.
    pub(super) const fn signing(&self) -> Duration {
        self.signing
    }

    /// The size of a signed deployment, in bytes.
    pub(super) fn deployment_size(&self) -> usize {
        self.agents[0].versions[0].len()
    }

    /// The broker's certificate and key.
    pub(super) const fn broker_files(&self) -> &Identity {
        &self.broker
    }

    /// The key whose deployments the broker shall let through.
    pub(super) fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// Measures the broker that listens on `port` and is the process `pid`.
    pub(super) async fn measure(&self, port: u16, pid: Pid) -> Result<Measured> {
        match tokio::time::timeout(PATIENCE, self.measure_all(port, pid)).await {
            Ok(measured) => measured,
            Err(_) => bail!("not done after {} s", PATIENCE.as_secs()),
        }
    }

    async fn measure_all(&self, port: u16, pid: Pid) -> Result<Measured> {
        let mut publisher = Publisher::connect(port, &self.publisher).await?;
        let (alone, rest) = self.agents[..self.count].split_at(self.published_alone());
        let start = Instant::now();
        publisher.publish(alone, 0).await?;
        let publish = start.elapsed();
        publisher.publish(rest, 0).await?;

        let before = Usage::of(pid)?;
        let (connect, mut fleet) = self.connect(port, Arrival::Quiet(0)).await?;
        let connected = Usage::of(pid)?;

        let mut deploys = Vec::with_capacity(DEPLOYED);
        for version in 1..=DEPLOYED {
            let start = Instant::now();
            let (published, delivered) = tokio::join!(
                publisher.publish(&self.agents[..self.count], version),
                fleet.wait_for(Some(version), self.agents())
            );
            published?;
            delivered?;
            deploys.push(start.elapsed());
        }
        let deployed = Usage::of(pid)?;

        let single = self.single(&mut publisher, &mut fleet).await?;

        drop(fleet);
        publisher
            .publish(&self.agents[..self.count], RETURNED)
            .await?;
        settle(pid).await?;
        let rested = Usage::of(pid)?;
        let (storm, fleet) = self.connect(port, Arrival::Reporting(RETURNED)).await?;
        let storm_cpu = Usage::of(pid)?.cpu.saturating_sub(rested.cpu);
        let snapshot = self.snapshot(port).await?;
        drop(fleet);
        Ok(Measured {
            storm,
            storm_cpu,
            snapshot,
            publish,
            connect,
            connect_cpu: connected.cpu.saturating_sub(before.cpu),
            connection: connected.resident.saturating_sub(before.resident)
                / u64::try_from(self.agents())?,
            deploy: median(deploys),
            deploy_cpu: deployed.cpu.saturating_sub(connected.cpu) / u32::try_from(DEPLOYED)?,
            single,
        })
    }

    /// Retains `count` deployments, of machines that are not there.
    pub(super) async fn fill(&self, port: u16, count: usize) -> Result<()> {
        let mut publisher = Publisher::connect(port, &self.publisher).await?;
        let fleet = FleetName::new(FLEET)?;
        let mut first = 0;
        while first < count {
            let last = count.min(first + FILLED_AT_ONCE);
            let mut messages = Vec::with_capacity(last - first);
            for n in first..last {
                let machine = Machine::new(fleet.clone(), AgentName::new(format!("gone-{n}"))?);
                let payload = deployment(&machine, n, 1, std::slice::from_ref(&self.key))?;
                messages.push((machine.topic(Channel::Deploy).to_string(), payload));
            }
            let messages = messages
                .iter()
                .map(|(topic, payload)| (topic.as_str(), payload));
            publisher.publish_all(messages).await?;
            first = last;
        }
        Ok(())
    }

    /// Checks that `count` deployments are retained.
    pub(super) async fn count_retained(&self, port: u16, count: usize) -> Result<()> {
        let id = hoist_protocol::client_id("ci", 2);
        let mut watcher = Connection::open(port, Arc::clone(&self.publisher), &id).await?;
        let early = watcher
            .subscribe(&format!("hoist/v1/{FLEET}/+/deploy"))
            .await?;
        let mut found = usize::from(early.is_some());
        if let Some(publish) = early {
            watcher.acknowledge(&publish).await?;
        }
        while found < count {
            let publish = next_publish(&mut watcher).await?;
            watcher.acknowledge(&publish).await?;
            found += 1;
        }
        Ok(())
    }

    /// A monitor that asks for every agent's status.
    async fn snapshot(&self, port: u16) -> Result<Duration> {
        let id = hoist_protocol::client_id("mon", 1);
        let mut monitor = Connection::open(port, Arc::clone(&self.monitor), &id).await?;
        let start = Instant::now();
        let early = monitor
            .subscribe(&format!("hoist/v1/{FLEET}/+/status"))
            .await?;
        let mut topics = HashSet::with_capacity(self.agents());
        let mut next = early;
        while topics.len() < self.agents() {
            let publish = match next.take() {
                Some(publish) => publish,
                None => next_publish(&mut monitor).await?,
            };
            ensure!(
                publish.retain && publish.payload.len() == STATUS_LEN,
                "{publish:?}"
            );
            monitor.acknowledge(&publish).await?;
            topics.insert(publish.topic);
        }
        Ok(start.elapsed())
    }

    /// Connects all agents, and waits until each has the message that was retained for it and has reported what
    /// it has to report.
    async fn connect(&self, port: u16, arrival: Arrival) -> Result<(Duration, Fleet)> {
        let (sender, received) = mpsc::unbounded_channel();
        let turns = Arc::new(Semaphore::new(CONNECTING));
        let mut fleet = Fleet {
            received,
            tasks: JoinSet::new(),
        };
        let addresses = u32::try_from(self.agents().div_ceil(FROM_ONE_ADDRESS))?;
        let first = self.addresses.fetch_add(addresses, Ordering::Relaxed);
        let start = Instant::now();
        for n in 0..self.agents() {
            let (agents, turns, sender) =
                (Arc::clone(&self.agents), Arc::clone(&turns), sender.clone());
            let address = first + u32::try_from(n / FROM_ONE_ADDRESS)?;
            // 127.1.0.0 and what follows.
            let from = Ipv4Addr::from_bits(0x7f01_0000 + address);
            fleet.tasks.spawn(async move {
                let agent = &agents[n];
                // Only ever an error: an agent goes on until it is stopped.
                let ended = agent.run((from, port), arrival, &turns, &sender).await;
                if let Err(error) = ended {
                    let error = error.context(format!("the agent {}", agent.name));
                    // Nobody listens any more when the round is over.
                    drop(sender.send(Err(error)));
                }
            });
        }
        fleet
            .wait_for(Some(arrival.version()), self.agents())
            .await?;
        Ok((start.elapsed(), fleet))
    }

    /// New deployments to one agent after the other, each waiting for the one before.
    async fn single(&self, publisher: &mut Publisher, fleet: &mut Fleet) -> Result<Duration> {
        let mut times = Vec::with_capacity(SINGLE);
        for n in 0..SINGLE {
            let agent = &self.agents[n % self.agents()];
            let machine = Machine::new(FleetName::new(FLEET)?, agent.name.clone());
            let version = RETURNED + 2 + n;
            let message = deployment(&machine, n, version, std::slice::from_ref(&self.key))?;
            let start = Instant::now();
            let (published, delivered) = tokio::join!(
                publisher.publish_one(&agent.topic, message),
                fleet.wait_for(None, 1)
            );
            published?;
            delivered?;
            times.push(start.elapsed());
        }
        Ok(median(times))
    }
}

impl Agent {
    async fn run(
        &self,
        (from, port): (Ipv4Addr, u16),
        arrival: Arrival,
        turns: &Semaphore,
        received: &mpsc::UnboundedSender<Result<Received>>,
    ) -> Result<()> {
        let turn = turns.acquire().await?;
        let tls = Arc::clone(&self.tls);
        let mut connection = Connection::open_from(from, port, tls, self.name.as_str()).await?;
        let early = connection.subscribe(&self.topic).await?;
        let first = match early {
            Some(publish) => publish,
            None => next_publish(&mut connection).await?,
        };
        ensure!(
            first.payload == self.versions[arrival.version()] && first.retain,
            "what was retained for it is not what it got"
        );
        connection.acknowledge(&first).await?;
        if matches!(arrival, Arrival::Reporting(_)) {
            self.report(&mut connection).await?;
        }
        received.send(Ok(Received(Some(arrival.version()))))?;
        drop(turn);
        loop {
            let publish = next_publish(&mut connection).await?;
            ensure!(
                publish.topic == self.topic,
                "it got another one's deployment"
            );
            connection.acknowledge(&publish).await?;
            let mut versions = self.versions.iter();
            let version = versions.position(|version| *version == publish.payload);
            received.send(Ok(Received(version)))?;
        }
    }
}

impl Agent {
    /// Publishes presence and status and waits for both PUBACKs.
    async fn report(&self, connection: &mut Connection) -> Result<()> {
        let channel = |channel: &str| self.topic.replace("/deploy", &format!("/{channel}"));
        let reports = [
            (channel("presence"), Bytes::from_static(b"online")),
            (channel("status"), Bytes::from_static(&[b's'; STATUS_LEN])),
        ];
        for (id, (topic, payload)) in (1..).zip(reports) {
            let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, payload);
            publish.retain = true;
            publish.pkid = id;
            connection.queue(&Packet::Publish(publish))?;
        }
        connection.flush().await?;
        for _ in 0..2 {
            match connection.receive().await? {
                Packet::PubAck(_) => {}
                other => bail!("an agent that reports got {other:?}"),
            }
        }
        Ok(())
    }
}

fn median(times: Vec<Duration>) -> Duration {
    Duration::from_secs_f64(Sample::of_seconds(times).median())
}

/// Waits until the broker has closed the connections that were dropped.
async fn settle(pid: Pid) -> Result<()> {
    while Usage::of(pid)?.files > OTHER_FILES {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn next_publish(connection: &mut Connection) -> Result<Publish> {
    match connection.receive().await? {
        Packet::Publish(publish) => Ok(publish),
        other => bail!("an agent got {other:?}"),
    }
}

/// Agents that are connected; disconnected when dropped.
struct Fleet {
    received: mpsc::UnboundedReceiver<Result<Received>>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Waits until `count` agents have received the version.
    async fn wait_for(&mut self, version: Option<usize>, count: usize) -> Result<()> {
        for _ in 0..count {
            let Received(got) = self.received.recv().await.context("all agents ended")??;
            ensure!(
                got == version,
                "an agent got version {got:?} instead of {version:?}"
            );
        }
        Ok(())
    }
}

/// A publisher that has [`IN_FLIGHT`] publishes under way.
struct Publisher {
    connection: Connection,
    next_id: u16,
}

impl Publisher {
    async fn connect(port: u16, tls: &Arc<ClientConfig>) -> Result<Self> {
        let id = hoist_protocol::client_id("ci", 1);
        Ok(Self {
            connection: Connection::open(port, Arc::clone(tls), &id)
                .await
                .context("the publisher")?,
            next_id: 1,
        })
    }

    /// Publishes a version to each agent, and waits for every PUBACK.
    async fn publish(&mut self, agents: &[Agent], version: usize) -> Result<()> {
        let messages = agents.iter();
        let messages = messages.map(|agent| (agent.topic.as_str(), &agent.versions[version]));
        self.publish_all(messages).await
    }

    /// Publishes to topics and waits for every PUBACK.
    async fn publish_all<'a>(
        &mut self,
        mut rest: impl Iterator<Item = (&'a str, &'a Bytes)>,
    ) -> Result<()> {
        let mut waiting = BTreeSet::new();
        loop {
            while waiting.len() < IN_FLIGHT
                && let Some((topic, payload)) = rest.next()
            {
                let id = self.queue(topic, payload.clone())?;
                waiting.insert(id);
            }
            if waiting.is_empty() {
                return Ok(());
            }
            self.connection.flush().await?;
            loop {
                let acknowledged = self.acknowledged().await?;
                ensure!(waiting.remove(&acknowledged), "a PUBACK for nothing");
                if !self.connection.has_packet() {
                    break;
                }
            }
        }
    }

    async fn publish_one(&mut self, topic: &str, payload: Bytes) -> Result<()> {
        let id = self.queue(topic, payload)?;
        self.connection.flush().await?;
        ensure!(self.acknowledged().await? == id, "a PUBACK for nothing");
        Ok(())
    }

    fn queue(&mut self, topic: &str, payload: Bytes) -> Result<u16> {
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, payload);
        publish.retain = true;
        publish.pkid = id;
        self.connection.queue(&Packet::Publish(publish))?;
        Ok(id)
    }

    async fn acknowledged(&mut self) -> Result<u16> {
        match self.connection.receive().await? {
            Packet::PubAck(ack) => Ok(ack.pkid),
            other => bail!("the publisher got {other:?}"),
        }
    }
}

fn new_key() -> Result<SigningKey> {
    let seed = rand::random::<[u8; 32]>().into();
    Ok(SigningKey::from_seed(KeyName::new("ci")?, &seed))
}

/// A deployment as CI makes them: a closure, a health check, and where it comes from.
fn deployment(
    machine: &Machine,
    agent: usize,
    version: usize,
    key: &[SigningKey],
) -> Result<Bytes> {
    let hash = format!("{:032}", agent * 1000 + version);
    let path = |name: &str| StorePath::new(format!("/nix/store/{hash}-{name}"));
    let mut target = Target::new(Goal::Closure(path("nixos-system-web-26.11pre-git")?));
    let checks = ["x86_64-linux", "aarch64-linux"]
        .into_iter()
        .map(|system| Ok((System::new(system)?, path("health-check")?)))
        .collect::<Result<_>>()?;
    target.health_checks = vec![HealthCheck::new(Probe::Program(checks))];
    target.substituters = vec![SubstituterUrl::new("https://cache.example.org")?];
    target.substituter_keys = vec![CacheKey::new(
        "cache.example.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
    )?];
    let issued = hoist_certs::program::now();
    let sequence = issued.as_ms() + u64::try_from(version)?;
    let deployment = Deployment::new(DeploymentParts {
        machine: machine.clone(),
        order: Order {
            epoch: 0,
            sequence,
            id: DeploymentId::new(uuid::Uuid::now_v7()),
        },
        issued,
        expires: Timestamp::from_ms(sequence).plus(Duration::from_secs(3600)),
        target,
        held: Held::No,
        cancels: None,
        renews: None,
        provenance: Provenance {
            revision: Some(Text::new("8f0e6d1c5b7a4f3e2d1c0b9a8f7e6d5c4b3a2f1e")?),
            run_url: Some(Text::new(
                "https://ci.example.org/acme/infrastructure/actions/runs/15263748596",
            )?),
            actor: Some(Text::new("deploy-bot")?),
            message: Some(Text::new(
                "web: raise the limit of open files, and restart workers one after the other",
            )?),
            rollout: None,
        },
    })?;
    Ok(sign(&deployment, key)?.into())
}

/// The broker's certificate as files, since that is how brokers read it.
pub(crate) fn write_broker(authority: &Authority, site: &Site) -> Result<Identity> {
    let dir = site.dir().join("certs");
    fs::create_dir_all(&dir)?;
    let hosts = ["127.0.0.1".parse()?];
    let issued = authority.issue(Role::Broker, &AgentName::new("main")?, &hosts, days(1))?;
    let identity = Identity {
        ca: dir.join("ca.pem"),
        certificate: dir.join("broker.pem"),
        key: dir.join("broker.key"),
    };
    let no = Overwrite::No;
    write_public(&identity.ca, authority.certificate_pem().as_bytes(), no)?;
    write_public(&identity.certificate, issued.certificate_pem.as_bytes(), no)?;
    write_private(&identity.key, issued.key_pem.as_bytes(), no)?;
    Ok(identity)
}
