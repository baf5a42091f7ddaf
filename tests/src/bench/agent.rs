//! One agent: what it takes of the machine while nothing happens, and how soon it starts to activate.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use hoist_certs::Credentials;
use hoist_protocol::{Channel, DeploymentId, FleetName, Machine as Address, State, StorePath};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use tokio::runtime::Runtime;

use crate::bench::mqtt::Connection;
use crate::bench::report::{Sample, table};
use crate::bench::usage::Usage;
use crate::closure::System;
use crate::forge::Forge;
use crate::machine::Machine;
use crate::world::{FLEET, Options, Site, World};

/// How long the agent is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// How often a deployment is timed.
const DEPLOYMENTS: usize = 20;

/// The two systems that the machine goes back and forth between.
const VERSIONS: [&str; 2] = ["a", "b"];

/// Measures and prints.
pub(super) fn measure() -> Result<()> {
    eprintln!(
        "the agent: {} s idle, then {DEPLOYMENTS} deployments",
        IDLE.as_secs()
    );
    let world = World::create(Site::create("bench-agent")?, Options::default())?;
    let mut machine = world.running("web-1")?;
    let mut publisher = Publisher::connect(&world)?;

    // From here on the machine has both closures, so that nothing is fetched while the clock runs.
    let mut systems = Vec::new();
    for version in VERSIONS {
        let path = world.system(&System::new(machine.name().as_str(), version))?;
        publisher.deploy(&world, &machine, &path, version)?;
        systems.push((version, path));
    }

    let pid = machine.agent()?.pid();
    let before = Usage::of(pid)?;
    sleep(IDLE);
    let after = Usage::of(pid)?;

    let mut from_publish = Vec::new();
    let mut from_puback = Vec::new();
    for (version, path) in systems.iter().cycle().take(DEPLOYMENTS) {
        let times = publisher.deploy(&world, &machine, path, version)?;
        from_publish.push(times.activation.duration_since(times.publish)?);
        // An activation can start before the PUBACK has found its way back.
        from_puback.push(
            times
                .activation
                .duration_since(times.puback)
                .unwrap_or_default(),
        );
    }

    let idle_cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    let kib = Duration::from_millis(after.resident).as_secs_f64() * 1000.0 / 1024.0;
    let row = |name: String, value: String| vec![name, value];
    println!("## Agent\n");
    println!(
        "{}",
        table(&[
            row(String::new(), "median (least to most)".to_owned()),
            row(
                "PUBACK to the activation's start, closure in the store, ms".to_owned(),
                Sample::of_times(from_puback).shown(1)
            ),
            row(
                "publish to the activation's start, closure in the store, ms".to_owned(),
                Sample::of_times(from_publish).shown(1)
            ),
            row(
                "resident memory, idle after two deployments, MiB".to_owned(),
                format!("{:.1}", kib / 1024.0)
            ),
            row(
                format!("CPU time in {} s idle, ms", IDLE.as_secs()),
                format!("{:.0}", idle_cpu * 1000.0)
            ),
        ])
    );
    Ok(())
}

/// When what happened, by the one clock of this computer.
struct Times {
    publish: SystemTime,
    puback: SystemTime,
    activation: SystemTime,
}

/// The publisher `ci`, connected all the time, as `hoist deploy` is when it publishes.
struct Publisher {
    runtime: Runtime,
    connection: Connection,
}

impl Publisher {
    fn connect(world: &World) -> Result<Self> {
        let identity = &world.publisher;
        let credentials = Credentials {
            ca: identity.ca.clone().into(),
            certificate: identity.certificate.clone().into(),
            key: identity.key.clone().into(),
        };
        let tls = credentials.client()?.config();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let connection =
            runtime.block_on(Connection::open(world.broker.port(), tls, "ci.bench"))?;
        Ok(Self {
            runtime,
            connection,
        })
    }

    /// Deploys, and waits until the machine has succeeded.
    fn deploy(
        &mut self,
        world: &World,
        machine: &Machine,
        path: &StorePath,
        version: &str,
    ) -> Result<Times> {
        let forge = Forge::new(FLEET, machine.name(), path)?;
        let message = forge.sign(world.signing_key.read()?)?;
        let publish = SystemTime::now();
        let puback = self
            .runtime
            .block_on(self.connection.publish(machine, message))?;
        wait_succeeded(world, machine, forge.order.id)?;
        // The activation touches this file as the first thing that it does.
        let file = machine
            .dir()
            .join(format!("nix/var/hoist-test/reached/{version}.test"));
        let activation = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .with_context(|| format!("the activation did not write {file}"))?;
        ensure!(activation > publish, "{version} was not activated");
        Ok(Times {
            publish,
            puback,
            activation,
        })
    }
}

impl Connection {
    /// Publishes a deployment, and says when it was acknowledged.
    async fn publish(&mut self, machine: &Machine, message: Vec<u8>) -> Result<SystemTime> {
        let address = Address::new(FleetName::new(FLEET)?, machine.name().clone());
        let topic = address.topic(Channel::Deploy).to_string();
        let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, Bytes::from(message));
        publish.retain = true;
        publish.pkid = 1;
        self.queue(&Packet::Publish(publish))?;
        self.flush().await?;
        match self.receive().await? {
            Packet::PubAck(_) => Ok(SystemTime::now()),
            other => anyhow::bail!("the publisher got {other:?}"),
        }
    }
}

fn wait_succeeded(world: &World, machine: &Machine, id: DeploymentId) -> Result<()> {
    let what = "it has succeeded";
    let done =
        |status: &hoist_protocol::Status| status.id == Some(id) && status.state == State::Succeeded;
    world
        .watch()
        .wait_status(machine.name(), what, done)
        .map(drop)
}
