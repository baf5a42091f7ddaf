//! The connection to the broker: comes back by itself, and says what was acknowledged.
//!
//! Every connection has a new rumqttc client and event loop, so that nothing of one lives on in the next: what
//! was not acknowledged is known here and published again by whoever asked for it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hoist_certs::mqtt::{self, ConnectFailure, FailureKind};
use hoist_protocol::{
    AgentName, BrokerUrl, Channel, FleetName, Machine, Topic, client_id, fleet_filter,
};
use rumqttc::{
    AsyncClient, ConnectionError, EventLoop, Outgoing, Packet, QoS, SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::settings::Caller;

/// How often the first connection is tried before the program gives up.
pub const FIRST_ATTEMPTS: u32 = 5;

/// How long it is tried when a broker is there and ends each connection without a word: a cluster that has just lost a node was seen to need
/// up to half a minute.
const ELECTION: Duration = Duration::from_secs(45);

/// How often in a row a broker may refuse us after it had accepted us: then the certificate was revoked, say.
const DENIALS: u32 = 5;

/// The shortest and the longest time between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Requests that may wait for the event loop: more than [`crate::follow::WINDOW`] and all subscriptions.
const REQUESTS: usize = 1024;

/// Events that may wait for us; then the connection is read no further.
const EVENTS: usize = 256;

/// Most filters in one SUBSCRIBE packet.
const FILTERS: usize = 32;

/// How many machines are subscribed to one by one; for more it is the whole fleet's topics, since brokers
/// such as NATS take long over each single subscription.
const SINGLE_MACHINES: usize = 16;

/// Which subscription was meant, chosen by who asked for it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Ticket {
    /// All topics that the command needs.
    Everything,
    /// The topics that are read back.
    ReadBack,
}

/// What happened on the connection.
#[derive(Debug)]
pub enum Event {
    /// It is up; nothing is subscribed to on it yet.
    Connected,
    /// The subscription is granted, apart from these filters.
    Granted(Ticket, Vec<String>),
    /// The broker acknowledged the message with this number.
    Acknowledged(usize),
    /// A message came; `retained` when it was there before the subscription.
    Message {
        /// Its topic, one of Hoist's.
        topic: Topic,
        /// What it says.
        payload: Vec<u8>,
        /// Whether it was there before the subscription.
        retained: bool,
    },
    /// It is gone, or did not come about; it is tried again.
    Disconnected(ConnectFailure),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It did not come about.
    #[error("cannot connect to the broker{}", tried(*.attempts))]
    Connect {
        /// How often it was tried.
        attempts: u32,
        /// Why the last one failed.
        #[source]
        source: ConnectFailure,
    },
    /// The broker refuses what it had accepted before.
    #[error("the broker does not let us in any more")]
    Denied(#[source] ConnectFailure),
}

/// That more than one attempt was made.
fn tried(attempts: u32) -> String {
    match attempts {
        0 | 1 => String::new(),
        more => format!(" ({more} attempts)"),
    }
}

enum Pumped {
    Event(rumqttc::Event),
    Lost(Box<ConnectionError>),
}

/// A connection to the broker.
pub struct Link {
    url: BrokerUrl,
    options: rumqttc::MqttOptions,
    client: Option<AsyncClient>,
    pump: Option<(mpsc::Receiver<Pumped>, JoinHandle<()>)>,
    retry_at: Instant,
    failures: u32,
    denials: u32,
    /// Numbers of messages that the event loop has not taken yet, in order.
    to_send: VecDeque<usize>,
    sent: HashMap<u16, usize>,
    to_subscribe: VecDeque<(Ticket, Vec<String>)>,
    subscribing: HashMap<u16, (Ticket, Vec<String>)>,
    denied_filters: HashMap<Ticket, Vec<String>>,
}

impl Link {
    /// Connects, trying again a few times unless the broker's answer is a clear no.
    ///
    /// # Errors
    /// [`LinkError::Connect`]
    pub async fn open(caller: &Caller) -> Result<Self, LinkError> {
        let name = caller.tls.identity().name().as_str();
        let id = client_id(name, rand::random());
        let mut link = Self {
            url: caller.broker.clone(),
            options: mqtt::options(&caller.broker, &id, &caller.tls),
            client: None,
            pump: None,
            retry_at: Instant::now(),
            failures: 0,
            denials: 0,
            to_send: VecDeque::new(),
            sent: HashMap::new(),
            to_subscribe: VecDeque::new(),
            subscribing: HashMap::new(),
            denied_filters: HashMap::new(),
        };
        let start = Instant::now();
        for attempts in 1.. {
            match link.next().await? {
                Event::Disconnected(failure) => {
                    let is_electing =
                        failure.kind == FailureKind::Lost && start.elapsed() < ELECTION;
                    let is_hopeless = attempts >= FIRST_ATTEMPTS && !is_electing;
                    if is_denial(&failure) || is_hopeless {
                        let source = failure;
                        return Err(LinkError::Connect { attempts, source });
                    }
                    tracing::warn!("{failure}; trying again");
                }
                _ => break,
            }
        }
        Ok(link)
    }

    /// The next event. Nothing is lost when the future is dropped before it is ready.
    ///
    /// # Errors
    /// [`LinkError::Denied`]
    pub async fn next(&mut self) -> Result<Event, LinkError> {
        loop {
            let Some((events, _)) = &mut self.pump else {
                sleep_until(self.retry_at).await;
                self.dial();
                continue;
            };
            let pumped = events.recv().await;
            if let Some(event) = self.take(pumped)? {
                return Ok(event);
            }
        }
    }

    /// The next event if it is there already.
    ///
    /// # Errors
    /// [`LinkError::Denied`]
    pub fn try_next(&mut self) -> Result<Option<Event>, LinkError> {
        while let Some((events, _)) = &mut self.pump {
            let Ok(pumped) = events.try_recv() else {
                break;
            };
            if let Some(event) = self.take(Some(pumped))? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Publishes a retained message at QoS 1. [`Event::Acknowledged`] returns its number, or
    /// [`Event::Disconnected`] comes first and it has to be published again.
    pub fn publish(&mut self, number: usize, topic: &Topic, payload: Vec<u8>) {
        let Some(client) = &self.client else {
            return;
        };
        match client.try_publish(topic.to_string(), QoS::AtLeastOnce, true, payload) {
            Ok(()) => self.to_send.push_back(number),
            Err(error) => self.overrun(&error),
        }
    }

    /// Subscribes; [`Event::Granted`] comes when all filters are answered.
    pub fn subscribe(&mut self, ticket: Ticket, filters: &[Filter]) {
        let Some(client) = &self.client else {
            return;
        };
        for chunk in filters.chunks(FILTERS) {
            let names = chunk.iter().map(|filter| filter.0.clone()).collect();
            let packet = chunk
                .iter()
                .map(|filter| rumqttc::SubscribeFilter::new(filter.0.clone(), QoS::AtMostOnce));
            if let Err(error) = client.try_subscribe_many(packet) {
                return self.overrun(&error);
            }
            self.to_subscribe.push_back((ticket, names));
        }
    }

    /// Disconnects cleanly, within a second.
    pub async fn close(mut self) {
        let (Some(client), Some((mut events, _))) = (self.client.take(), self.pump.take()) else {
            return;
        };
        if client.try_disconnect().is_err() {
            return;
        }
        // The event loop ends with an error once the broker has closed the connection; either way we are done.
        let ended = async { while events.recv().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(1), ended)
            .await
            .is_err()
        {
            tracing::debug!("the broker did not close the connection");
        }
    }

    fn dial(&mut self) {
        let (client, event_loop) = mqtt::client(self.options.clone(), REQUESTS);
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.client = Some(client);
        self.pump = Some((receiver, tokio::spawn(pump(event_loop, sender))));
    }

    /// Only a broker that reads nothing for long fills the queue: the connection is as good as lost.
    fn overrun(&mut self, error: &rumqttc::ClientError) {
        tracing::warn!(%error, "the broker does not read what we send; connecting again");
        if let Some((_, task)) = &self.pump {
            task.abort();
        }
    }

    fn take(&mut self, pumped: Option<Pumped>) -> Result<Option<Event>, LinkError> {
        match pumped {
            Some(Pumped::Event(rumqttc::Event::Incoming(packet))) => Ok(self.received(packet)),
            Some(Pumped::Event(rumqttc::Event::Outgoing(outgoing))) => {
                self.wrote(&outgoing);
                Ok(None)
            }
            Some(Pumped::Lost(error)) => self.lost(mqtt::diagnose(&error, &self.url)).map(Some),
            // The task was ended by `overrun`.
            None => {
                let error = ConnectionError::FlushTimeout;
                self.lost(mqtt::diagnose(&error, &self.url)).map(Some)
            }
        }
    }

    fn received(&mut self, packet: Packet) -> Option<Event> {
        match packet {
            Packet::ConnAck(_) => {
                self.failures = 0;
                self.denials = 0;
                Some(Event::Connected)
            }
            Packet::PubAck(ack) => self.sent.remove(&ack.pkid).map(Event::Acknowledged),
            Packet::SubAck(ack) => {
                let (ticket, names) = self.subscribing.remove(&ack.pkid)?;
                let denied = self.denied_filters.entry(ticket).or_default();
                for (name, code) in names.into_iter().zip(ack.return_codes) {
                    if code == SubscribeReasonCode::Failure {
                        denied.push(name);
                    }
                }
                let rest = self.subscribing.values().chain(&self.to_subscribe);
                if rest.into_iter().any(|(of, _)| *of == ticket) {
                    return None;
                }
                let denied = self.denied_filters.remove(&ticket).unwrap_or_default();
                Some(Event::Granted(ticket, denied))
            }
            Packet::Publish(publish) => {
                // What is on other topics was not asked for.
                let topic = Topic::parse(&publish.topic).ok()?;
                Some(Event::Message {
                    topic,
                    payload: publish.payload.to_vec(),
                    retained: publish.retain,
                })
            }
            _ => None,
        }
    }

    /// The event loop takes requests in the order in which they were made.
    fn wrote(&mut self, outgoing: &Outgoing) {
        match outgoing {
            Outgoing::Publish(pkid) => {
                if let Some(number) = self.to_send.pop_front() {
                    self.sent.insert(*pkid, number);
                }
            }
            Outgoing::Subscribe(pkid) => {
                if let Some(asked) = self.to_subscribe.pop_front() {
                    self.subscribing.insert(*pkid, asked);
                }
            }
            _ => {}
        }
    }

    fn lost(&mut self, failure: ConnectFailure) -> Result<Event, LinkError> {
        self.client = None;
        self.pump = None;
        self.to_send.clear();
        self.sent.clear();
        self.to_subscribe.clear();
        self.subscribing.clear();
        self.denied_filters.clear();
        let (shortest, longest) = BACKOFF;
        let backoff = shortest
            .saturating_mul(1 << self.failures.min(8))
            .min(longest);
        // Full jitter: a thousand CI jobs do not come back in the same moment.
        self.retry_at = Instant::now() + backoff.mul_f64(rand::random_range(0.5..1.0));
        self.failures += 1;
        if is_denial(&failure) {
            self.denials += 1;
            if self.denials >= DENIALS {
                return Err(LinkError::Denied(failure));
            }
        }
        Ok(Event::Disconnected(failure))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.pump {
            task.abort();
        }
    }
}

/// Runs the event loop by itself: a poll that is dropped in the middle could lose what it was writing.
async fn pump(mut event_loop: EventLoop, events: mpsc::Sender<Pumped>) {
    loop {
        let (pumped, is_last) = match event_loop.poll().await {
            Ok(event) => (Pumped::Event(event), false),
            Err(error) => (Pumped::Lost(Box::new(error)), true),
        };
        // Nobody listens any more: the program is ending.
        if events.send(pumped).await.is_err() || is_last {
            return;
        }
    }
}

fn is_denial(failure: &ConnectFailure) -> bool {
    matches!(failure.kind, FailureKind::Tls | FailureKind::Refused)
}

/// One topic filter of a subscription.
///
/// All are subscribed to at QoS 0: what comes is retained or may be lost, a session is clean, and TCP neither loses
/// nor reorders. QoS 1 would add an acknowledgement that nobody needs, and on NATS a consumer in every replica, which
/// takes half a second to make.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter(String);

/// The filters for `channels` of the machines `agents`, or of the whole fleet when none are named or when they
/// are many.
#[must_use]
pub fn filters(fleet: &FleetName, agents: &[AgentName], channels: &[Channel]) -> Vec<Filter> {
    if agents.is_empty() || agents.len() > SINGLE_MACHINES {
        let all = channels.iter();
        return all
            .map(|channel| Filter(fleet_filter(fleet, *channel)))
            .collect();
    }
    agents
        .iter()
        .flat_map(|agent| {
            let machine = Machine::new(fleet.clone(), agent.clone());
            channels
                .iter()
                .map(move |channel| Filter(machine.topic(*channel).to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_machines_are_subscribed_to_by_name_and_many_by_wildcard() {
        let fleet = FleetName::new("prod").unwrap();
        let agents: Vec<AgentName> = (0..17)
            .map(|n| AgentName::new(format!("web-{n}")).unwrap())
            .collect();
        let texts = |agents: &[AgentName]| -> Vec<String> {
            filters(&fleet, agents, &[Channel::Status, Channel::Log])
                .into_iter()
                .map(|filter| filter.0)
                .collect()
        };
        let wildcards = ["hoist/v1/prod/+/status", "hoist/v1/prod/+/log"];
        assert_eq!(texts(&agents), wildcards);
        assert_eq!(texts(&[]), wildcards);
        assert_eq!(
            texts(&agents[..1]),
            ["hoist/v1/prod/web-0/status", "hoist/v1/prod/web-0/log"]
        );
    }
}
