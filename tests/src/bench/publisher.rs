//! The publisher of one machine, connected all the time: it knows when each state was reached.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hoist_protocol::{AgentName, Channel, FleetName, Machine as Address, State, Status, StorePath};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::bench::mqtt::Connection;
use crate::forge::Forge;
use crate::wait::PATIENCE;
use crate::world::{FLEET, World};

/// When what happened to one deployment, as time since it was published.
pub(super) struct Times {
    puback: Duration,
    states: Vec<(State, Duration)>,
}

impl Times {
    /// When the first state that `fits` was reported.
    pub(super) fn until(&self, fits: impl Fn(State) -> bool) -> Option<Duration> {
        let state = self.states.iter().find(|(state, _)| fits(*state));
        state.map(|(_, at)| *at)
    }

    /// From the broker's acknowledgement, which it sends when it hands the message on, to the result.
    pub(super) fn acknowledged_to_end(&self) -> Option<Duration> {
        let end = self.until(State::is_final)?;
        Some(end.saturating_sub(self.puback))
    }
}

/// The publisher `ci`.
pub(super) struct Publisher {
    runtime: Runtime,
    connection: Connection,
    machine: Address,
}

impl Publisher {
    /// Connects and subscribes to the machine's status.
    pub(super) fn connect(world: &World, name: &AgentName) -> Result<Self> {
        let tls = world.publisher.tls()?.config();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let machine = Address::new(FleetName::new(FLEET)?, name.clone());
        let topic = machine.topic(Channel::Status).to_string();
        let connection = runtime.block_on(async {
            let mut connection = Connection::open(world.broker.port(), tls, "ci.bench").await?;
            if let Some(early) = connection.subscribe(&topic).await? {
                connection.acknowledge(&early).await?;
            }
            anyhow::Ok(connection)
        })?;
        Ok(Self {
            runtime,
            connection,
            machine,
        })
    }

    /// Deploys, and waits until the machine has ended in `state`.
    pub(super) fn deploy(
        &mut self,
        world: &World,
        path: &StorePath,
        state: State,
    ) -> Result<Times> {
        let forge = Forge::new(FLEET, &self.machine.agent, path)?;
        let message = forge.sign(world.signing_key.read()?)?;
        let Self {
            runtime,
            connection,
            machine,
        } = self;
        runtime.block_on(async {
            let topic = machine.topic(Channel::Deploy).to_string();
            let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, Bytes::from(message));
            publish.retain = true;
            publish.pkid = 1;
            connection.queue(&Packet::Publish(publish))?;
            let start = Instant::now();
            connection.flush().await?;
            let mut puback = None;
            let mut states = Vec::new();
            loop {
                let packet = timeout(PATIENCE, connection.receive())
                    .await
                    .with_context(|| format!("{path} does not end"))??;
                let at = start.elapsed();
                let publish = match packet {
                    Packet::PubAck(_) => {
                        puback = Some(at);
                        continue;
                    }
                    Packet::Publish(publish) => publish,
                    other => bail!("the publisher got {other:?}"),
                };
                connection.acknowledge(&publish).await?;
                let status = Status::from_json(&publish.payload, machine)?;
                if status.id != Some(forge.order.id) {
                    continue;
                }
                states.push((status.state, at));
                if status.state.is_final() {
                    ensure!(
                        status.state == state,
                        "{path} {}: {}",
                        status.state,
                        status.message
                    );
                    let puback = puback.context("the broker acknowledged nothing")?;
                    return Ok(Times { puback, states });
                }
            }
        })
    }
}
