//! Machines that are played: they say what they are told to say, so that what is shown of them never changes.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hoist_certs::{ClientTls, mqtt};
use hoist_protocol::{
    BrokerUrl, Channel, Deployment, Goal, Held, History, Machine, Presence, Reason, State, Status,
    Text, TrustedKeys,
};
use rumqttc::{Event, Outgoing, Packet, QoS};
use tokio::runtime::Runtime;

use crate::authority::Identity;
use crate::forge::now;
use crate::wait::PATIENCE;

/// What becomes of the deployments that a machine gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fortune {
    /// It carries them out.
    Succeeds,
    /// It goes back each time.
    RollsBack,
    /// It hears nothing of them.
    Silent,
}

/// One machine: what it has said, and what it will say.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which one.
    pub machine: Machine,
    /// Whether it is connected, as it says.
    pub presence: Presence,
    /// What it has said of itself last.
    pub status: Option<Status>,
    /// What it says of former deployments.
    pub history: Option<History>,
    /// What happens next.
    pub fortune: Fortune,
}

/// The machines; they are silent when this is dropped.
pub struct Cast(Option<Runtime>);

impl Cast {
    /// Connects all of them to the broker at `port` with their certificates. When this returns the broker has
    /// all that they have said, and sends those that answer what is deployed to them.
    ///
    /// # Errors
    /// When one is not let in.
    pub fn enter(parts: Vec<(Part, Identity)>, port: u16, trusted: &TrustedKeys) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (ready, readied) = mpsc::channel();
        let count = parts.len();
        for (part, identity) in parts {
            let (ready, trusted) = (ready.clone(), trusted.clone());
            let tls = identity.tls()?;
            runtime.spawn(async move {
                let name = part.machine.agent.clone();
                let ended = play(part, &tls, port, &trusted, &ready).await;
                // Nobody listens any more once all are there; then only the broker's end ends a machine.
                drop(ready.send(ended.with_context(|| format!("{name} has ended"))));
            });
        }
        for _ in 0..count {
            readied
                .recv_timeout(PATIENCE)
                .context("a machine is not let in")??;
        }
        Ok(Self(Some(runtime)))
    }
}

impl Drop for Cast {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// One machine, until its connection ends. Says once that it is ready.
async fn play(
    mut part: Part,
    tls: &ClientTls,
    port: u16,
    trusted: &TrustedKeys,
    ready: &mpsc::Sender<Result<()>>,
) -> Result<()> {
    let url: BrokerUrl = format!("mqtts://127.0.0.1:{port}").parse()?;
    let options = mqtt::options(&url, part.machine.agent.as_str(), tls);
    let (client, mut events) = mqtt::client(options, 16);
    let topic = |channel| part.machine.topic(channel).to_string();
    let (deploy, status_topic) = (topic(Channel::Deploy), topic(Channel::Status));
    let mut said = vec![(
        topic(Channel::Presence),
        part.presence.as_str().as_bytes().to_vec(),
    )];
    said.extend((part.status.iter()).map(|status| (status_topic.clone(), status.to_json())));
    said.extend((part.history.iter()).map(|history| (topic(Channel::History), history.to_json())));
    let mut open = said.len();
    for (topic, payload) in said {
        client
            .publish(topic, QoS::AtLeastOnce, true, payload)
            .await?;
    }
    if part.fortune != Fortune::Silent {
        open += 1;
        client.subscribe(deploy, QoS::AtLeastOnce).await?;
    }
    loop {
        match events.poll().await? {
            Event::Incoming(Packet::PubAck(_) | Packet::SubAck(_)) if open > 0 => {
                open -= 1;
                if open > 0 {
                    continue;
                }
                if part.fortune == Fortune::Silent {
                    client.disconnect().await?;
                } else if ready.send(Ok(())).is_err() {
                    return Ok(());
                }
            }
            Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
            Event::Incoming(Packet::Publish(publish)) => {
                let verified = trusted.verify(&publish.payload, &part.machine)?;
                if let Some(answer) = part.answer(verified.deployment()) {
                    let answer = answer.to_json();
                    client
                        .publish(&status_topic, QoS::AtLeastOnce, true, answer)
                        .await?;
                }
            }
            _ => {}
        }
    }
}

impl Part {
    /// What it says of `deployment`; nothing of one that it has spoken of.
    fn answer(&mut self, deployment: &Deployment) -> Option<Status> {
        let status = self.status.as_mut()?;
        let (order, parts) = (deployment.order(), deployment.parts());
        if status.id == Some(order.id) {
            return None;
        }
        status.id = Some(order.id);
        (status.epoch, status.sequence) = (Some(order.epoch), Some(order.sequence));
        (status.floor_epoch, status.floor) = (order.epoch, order.sequence);
        status.ts = now().plus(Duration::from_secs(3600));
        status.reason = None;
        status.message = Text::default();
        status.changes = None;
        status.progress = None;
        status.fetch = None;
        status.state = match (&parts.target.goal, self.fortune) {
            _ if parts.held != Held::No => State::Held,
            (Goal::Stay, _) => State::Unchanged,
            (_, Fortune::RollsBack) => {
                status.reason = Some(Reason::HealthCheckFailed);
                status.message = Text::lossy(
                    "the health check `http://localhost:8080/ready` failed three times: 503 Service Unavailable",
                );
                State::RolledBack
            }
            (Goal::Closure(path), _) => {
                status.path = Some(path.clone());
                if status.current_path.as_ref() != Some(path) {
                    status.previous_path = status.current_path.replace(path.clone());
                }
                State::Succeeded
            }
            (Goal::Rollback(_), _) => {
                std::mem::swap(&mut status.previous_path, &mut status.current_path);
                State::Succeeded
            }
        };
        Some(status.clone())
    }
}
