//! The broker as the agent sees it: connected or about to be, and proven to be in reach when a job asks.

use std::time::Duration;

use hoist_certs::mqtt::diagnose;
use hoist_protocol::{Channel, DeploymentId, LogLine, Presence};
use rumqttc::ConnectionError;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Changes;
use crate::config::Settings;
use crate::mqtt::{Backoff, Link, LinkEvent, Payload, Receipt, Verdict};

/// How long an answer to a nonce, or to a subscription, may take before the connection is made anew.
const ANSWER: Duration = Duration::from_secs(5);

/// The waits between tries to reach the broker for a confirmation: from this,
const FIRST_TRY: Duration = Duration::from_millis(100);

/// doubling so often.
const DOUBLINGS: u32 = 4;

/// How long `offline` may take to arrive when the agent stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// What the broker has to say to the core.
#[derive(Debug)]
pub(super) enum BrokerEvent {
    /// There is a new connection.
    Connected,
    /// A message on the `deploy` topic.
    Deploy(Vec<u8>),
    /// The outcomes of these deployments were acknowledged.
    Delivered(Vec<DeploymentId>),
    /// The way there and back was proven for this deployment.
    Reached(DeploymentId),
}

/// The way to the broker is being proven.
struct Reach {
    id: DeploymentId,
    nonce: String,
    tries: u32,
    /// By when something has to come, once it was asked for.
    deadline: Option<Instant>,
}

/// Whether the broker lets the agent hear its own nonces, tried before an activation begins.
#[derive(PartialEq)]
enum Echo {
    Unknown,
    Asked(String),
    Works,
}

pub(super) struct Broker {
    settings: Settings,
    link: Option<Link>,
    /// Since when the broker has accepted the connection.
    connected: Option<Instant>,
    /// When to connect, while there is no link.
    connect_at: Instant,
    backoff: Backoff,
    failures: Changes,
    denials: Changes,
    echo: Echo,
    reach: Option<Reach>,
    /// [`ANSWER`], but for tests.
    answer: Duration,
}

fn nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Broker {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            backoff: Backoff::new(settings.max_backoff),
            settings,
            link: None,
            connected: None,
            connect_at: Instant::now(),
            failures: Changes::default(),
            denials: Changes::default(),
            echo: Echo::Unknown,
            reach: None,
            answer: ANSWER,
        }
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.connected.is_some()
    }

    /// Keeps the connection and waits for what it brings. Can be dropped and called again at any time.
    pub(super) async fn next(&mut self) -> BrokerEvent {
        loop {
            let Some(link) = &mut self.link else {
                sleep_until(self.connect_at).await;
                self.link = Some(Link::open(&self.settings));
                continue;
            };
            let event = match self.reach.as_ref().and_then(|reach| reach.deadline) {
                None => Some(link.next().await),
                Some(deadline) => timeout_at(deadline, link.next()).await.ok(),
            };
            let event = match event {
                Some(event) => self.on(event),
                None => self.no_answer(),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn on(&mut self, event: LinkEvent) -> Option<BrokerEvent> {
        match event {
            LinkEvent::Connected => {
                tracing::info!(broker = %self.settings.broker, "connected");
                self.connected = Some(Instant::now());
                self.failures.clear();
                if let Some(reach) = &mut self.reach {
                    reach.deadline = Some(Instant::now() + self.answer);
                }
                self.refresh();
                Some(BrokerEvent::Connected)
            }
            LinkEvent::Subscribed { deploy, echo } => {
                self.subscribed(deploy, echo);
                None
            }
            LinkEvent::Deploy(bytes) => Some(BrokerEvent::Deploy(bytes)),
            LinkEvent::Echo(bytes) => self.heard(&bytes),
            LinkEvent::Acknowledged(Receipt::Outcomes(ids)) => Some(BrokerEvent::Delivered(ids)),
            LinkEvent::Acknowledged(Receipt::None) => None,
            LinkEvent::Lost(error) => {
                self.lost(Some(&error));
                None
            }
            LinkEvent::Died => {
                self.lost(None);
                None
            }
        }
    }

    /// Subscribes and says `online`: at every connection, and from time to time, so that a broker that lost
    /// something has it again.
    pub(super) fn refresh(&mut self) {
        if !self.is_connected() {
            return;
        }
        if self.link.as_ref().is_some_and(|link| !link.subscribe()) {
            self.overflow();
        }
        self.presence(Presence::Online);
    }

    fn presence(&mut self, presence: Presence) {
        self.publish(Payload {
            channel: Channel::Presence,
            bytes: presence.as_str().into(),
            receipt: Receipt::None,
        });
    }

    /// Publishes, when there is a connection: at the next one everything is said anew.
    pub(super) fn publish(&mut self, payload: Payload) {
        if self.is_connected()
            && self
                .link
                .as_mut()
                .is_some_and(|link| !link.publish(payload))
        {
            self.overflow();
        }
    }

    /// Publishes a line of a job's log, or drops it.
    pub(super) fn log(&mut self, line: &LogLine) {
        self.publish(Payload {
            channel: Channel::Log,
            bytes: line.to_json(),
            receipt: Receipt::None,
        });
    }

    /// Asks whether nonces come back, before a deployment depends on it.
    pub(super) fn probe_echo(&mut self) {
        if self.is_connected() && self.echo != Echo::Works {
            let nonce = nonce();
            self.echo = Echo::Asked(nonce.clone());
            self.say(nonce);
        }
    }

    fn say(&mut self, nonce: String) {
        self.publish(Payload {
            channel: Channel::Echo,
            bytes: nonce.into_bytes(),
            receipt: Receipt::None,
        });
    }

    /// Proves the way to the broker and back: ends the connection cleanly, since it may be older than what is
    /// to be proven, and makes another from the name lookup on.
    pub(super) async fn reach(&mut self, id: DeploymentId) {
        tracing::info!(%id, "tries a fresh connection to the broker");
        self.reach = Some(Reach {
            id,
            nonce: nonce(),
            tries: 0,
            deadline: None,
        });
        self.connected = None;
        self.connect_at = Instant::now();
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// The proof is not needed any more.
    pub(super) fn stop_reaching(&mut self, id: DeploymentId) {
        self.reach.take_if(|reach| reach.id == id);
    }

    fn subscribed(&mut self, deploy: bool, echo: bool) {
        let machine = &self.settings.machine;
        let denied: Vec<_> = [(deploy, Channel::Deploy), (echo, Channel::Echo)]
            .into_iter()
            .filter(|(granted, _)| !granted)
            .map(|(_, channel)| machine.topic(channel).to_string())
            .collect();
        if denied.is_empty() {
            self.denials.clear();
        } else if self.denials.is_news(&denied.join(", ")) {
            tracing::error!(
                topics = denied.join(", "),
                "the broker refuses to let this agent read its topics, so no deployment can come; allow it: the \
                 client with this certificate reads its own `deploy` and `echo`"
            );
        }
        if echo && let Some(reach) = &mut self.reach {
            reach.deadline = Some(Instant::now() + self.answer);
            let nonce = reach.nonce.clone();
            self.say(nonce);
        }
    }

    /// A nonce came back.
    fn heard(&mut self, bytes: &[u8]) -> Option<BrokerEvent> {
        if matches!(&self.echo, Echo::Asked(nonce) if nonce.as_bytes() == bytes) {
            self.echo = Echo::Works;
        }
        let reach = self
            .reach
            .take_if(|reach| reach.nonce.as_bytes() == bytes)?;
        self.echo = Echo::Works;
        Some(BrokerEvent::Reached(reach.id))
    }

    /// Something that was asked for did not come.
    fn no_answer(&mut self) -> Option<BrokerEvent> {
        let is_idle = self.link.as_ref().is_some_and(|link| !link.is_busy());
        // Asked before the activation, and not answered then either: it is not the activation's fault.
        if matches!(self.echo, Echo::Asked(_)) && self.is_connected() && is_idle {
            let reach = self.reach.take()?;
            tracing::warn!(
                id = %reach.id,
                "the broker does not let this agent hear its own `echo` topic, and did not before: taking TLS, \
                 login and acknowledged publishes over a fresh connection as the proof"
            );
            return Some(BrokerEvent::Reached(reach.id));
        }
        tracing::warn!(broker = %self.settings.broker, "no answer in time over the fresh connection; trying another");
        self.ended();
        None
    }

    /// The link takes nothing any more.
    fn overflow(&mut self) {
        tracing::warn!(broker = %self.settings.broker, "the broker takes no more messages; connecting anew");
        self.ended();
    }

    fn lost(&mut self, error: Option<&ConnectionError>) {
        let message = match error {
            Some(error) => diagnose(error, &self.settings.broker).to_string(),
            None => "the MQTT client has failed, perhaps at a malformed packet".to_owned(),
        };
        if self.failures.is_news(&message) {
            let was_connected = self.is_connected();
            tracing::warn!(was_connected, "not connected to the broker: {message}");
        }
        self.ended();
    }

    /// The link is gone, or of no use: when the next one is made.
    fn ended(&mut self) {
        self.link = None;
        let lasted = self.connected.take().map(|since| since.elapsed());
        if let Some(reach) = &mut self.reach {
            reach.deadline = None;
            let ceiling = FIRST_TRY * 2_u32.pow(reach.tries.min(DOUBLINGS));
            reach.tries += 1;
            self.connect_at = Instant::now() + crate::mqtt::jittered(ceiling);
            return;
        }
        let verdict = match lasted {
            Some(lasted) => self.backoff.lost(lasted),
            None => {
                self.backoff.failed();
                Verdict::Ordinary
            }
        };
        let wait = self.backoff.wait();
        if verdict == Verdict::TakenOver {
            tracing::error!(
                machine = %self.settings.machine,
                wait_s = wait.as_secs(),
                "every connection ends right after it was made: most likely another machine uses this machine's \
                 certificate (a clone?), and each takes the connection away from the other; issue a certificate \
                 of its own for one of them: `hoist-certs issue agent NAME`"
            );
        }
        self.connect_at = Instant::now() + wait;
    }

    /// Says `offline` and ends the connection cleanly.
    pub(super) async fn stop(&mut self) {
        self.presence(Presence::Offline);
        let Some(mut link) = self.link.take() else {
            return;
        };
        let told = async {
            while link.is_busy() {
                if let LinkEvent::Lost(_) | LinkEvent::Died = link.next().await {
                    return;
                }
            }
        };
        if tokio::time::timeout(GOODBYE, told).await.is_err() {
            tracing::warn!("the broker did not acknowledge everything in time");
        }
        link.close().await;
    }
}

#[cfg(test)]
mod tests;
