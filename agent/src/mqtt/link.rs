//! One connection to the broker, from the name lookup to its end.
//!
//! Every connection has a client of its own: what a broken one had not sent or not got acknowledged is gone
//! with it, and can't be mistaken for something of the next.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hoist_agent_core::Told;
use hoist_certs::{ClientTls, mqtt};
use hoist_protocol::{BrokerUrl, Channel, Machine, Presence};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, Outgoing, Packet, QoS, StateError,
    SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// Most requests that wait to be written. Log lines stop long before, so that reports always fit.
const QUEUE: usize = 256;

/// Log lines are dropped while so many requests wait.
const QUEUE_FOR_LOGS: usize = 64;

/// How long the broker may say nothing while it owes an answer, at the most: well above the 8 s for which brokers
/// in a cluster were seen to stall.
const SILENCE: Duration = Duration::from_secs(20);

/// How long a clean end may take.
const CLOSE: Duration = Duration::from_secs(1);

/// What to do when a publish is acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Receipt {
    /// Nothing.
    None,
    /// These outcomes are told.
    Outcomes(Vec<Told>),
}

/// What is published, and where.
#[derive(Clone, Debug)]
pub struct Payload {
    /// On which of the machine's topics.
    pub channel: Channel,
    /// What.
    pub bytes: Vec<u8>,
    /// What its acknowledgement means.
    pub receipt: Receipt,
}

/// What happens on a connection.
#[derive(Debug)]
pub enum LinkEvent {
    /// The broker has accepted us.
    Connected,
    /// It has answered the subscription of [`Link::subscribe`]: whether it granted `deploy`, and `echo`.
    Subscribed {
        /// Whether deployments will come.
        deploy: bool,
        /// Whether the agent's own nonces will come back.
        echo: bool,
    },
    /// There is a message on the `deploy` topic.
    Deploy(Vec<u8>),
    /// There is a message on the `echo` topic.
    Echo(Vec<u8>),
    /// A publish was acknowledged.
    Acknowledged(Receipt),
    /// The connection is over, or could not be made. The last event.
    Lost(Box<ConnectionError>),
    /// The broker owes an answer and has not said anything for so long: most likely the connection exists on this
    /// side alone. The last event.
    Silent(Duration),
    /// The client itself has failed. The last event.
    Died,
}

impl LinkEvent {
    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Silent(_) | Self::Died)
    }
}

/// Whether the broker has closed a connection of its own accord, with TLS's own goodbye: a process that is killed
/// leaves none, and neither does a network that breaks.
#[must_use]
pub fn was_closed(error: &ConnectionError) -> bool {
    // The end of the stream; without the goodbye rustls makes an error of it.
    matches!(
        error,
        ConnectionError::MqttState(StateError::ConnectionAborted)
    )
}

/// A connection, or one that is being made.
#[derive(Debug)]
pub struct Link {
    machine: Machine,
    client: AsyncClient,
    events: mpsc::Receiver<Result<Event, ConnectionError>>,
    task: JoinHandle<()>,
    /// Published, not yet written; in the order in which they will be.
    queued: VecDeque<Receipt>,
    /// Written, not yet acknowledged, by packet id.
    in_flight: HashMap<u16, Receipt>,
    /// Subscriptions and pings that were not answered yet.
    asked: usize,
    /// Whether a subscription was answered.
    has_subscribed: bool,
    /// Since when the broker has said nothing although it owes an answer.
    silent_since: Option<Instant>,
    /// How long that may last.
    patience: Duration,
}

/// Where a connection leads to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// To which broker.
    pub url: &'a BrokerUrl,
    /// As whom.
    pub machine: &'a Machine,
    /// Proven how.
    pub tls: &'a ClientTls,
    /// How long it may be silent before the broker is asked whether it is there; 1 s at least.
    pub keepalive: Duration,
}

impl Link {
    /// Begins to connect: looks up the name, and so on from there.
    #[must_use]
    pub fn open(target: Target<'_>) -> Self {
        let machine = target.machine.clone();
        let mut options = mqtt::options(target.url, machine.agent.as_str(), target.tls);
        options.set_keep_alive(target.keepalive);
        options.set_last_will(LastWill::new(
            machine.topic(Channel::Presence).to_string(),
            Presence::Offline.as_str(),
            QoS::AtLeastOnce,
            true,
        ));
        let (client, event_loop) = mqtt::client(options, QUEUE);
        let (sender, events) = mpsc::channel(32);
        Self {
            machine,
            client,
            events,
            task: tokio::spawn(drive(event_loop, sender)),
            queued: VecDeque::new(),
            in_flight: HashMap::new(),
            asked: 0,
            has_subscribed: false,
            silent_since: None,
            patience: target.keepalive.min(SILENCE),
        }
    }

    /// The next event. Can be dropped and called again without losing any.
    pub async fn next(&mut self) -> LinkEvent {
        loop {
            let received = match self.silent_since {
                None => self.events.recv().await,
                Some(since) => match timeout_at(since + self.patience, self.events.recv()).await {
                    Ok(received) => received,
                    Err(_) => return LinkEvent::Silent(self.patience),
                },
            };
            let event = match received {
                Some(Ok(Event::Incoming(packet))) => self.incoming(packet),
                Some(Ok(Event::Outgoing(outgoing))) => {
                    self.written(&outgoing);
                    None
                }
                // The client's own watch over its pings may be a moment faster than ours.
                Some(Err(ConnectionError::MqttState(StateError::AwaitPingResp))) => {
                    Some(LinkEvent::Silent(self.patience))
                }
                Some(Err(error)) => Some(LinkEvent::Lost(Box::new(error))),
                None => Some(LinkEvent::Died),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn incoming(&mut self, packet: Packet) -> Option<LinkEvent> {
        let event = self.on_packet(packet);
        let owes = self.asked > 0 || !self.in_flight.is_empty();
        self.silent_since = owes.then(Instant::now);
        event
    }

    fn on_packet(&mut self, packet: Packet) -> Option<LinkEvent> {
        match packet {
            Packet::ConnAck(_) => Some(LinkEvent::Connected),
            Packet::PingResp => {
                self.asked = self.asked.saturating_sub(1);
                None
            }
            Packet::SubAck(answer) => {
                self.asked = self.asked.saturating_sub(1);
                self.has_subscribed = true;
                let granted = |n: usize| {
                    let code = answer.return_codes.get(n);
                    matches!(code, Some(SubscribeReasonCode::Success(_)))
                };
                Some(LinkEvent::Subscribed {
                    deploy: granted(0),
                    echo: granted(1),
                })
            }
            Packet::Publish(publish) => {
                let is = |channel| publish.topic == self.machine.topic(channel).to_string();
                let payload = publish.payload.to_vec();
                if is(Channel::Deploy) {
                    Some(LinkEvent::Deploy(payload))
                } else if is(Channel::Echo) {
                    Some(LinkEvent::Echo(payload))
                } else {
                    // Nobody asked for it.
                    None
                }
            }
            Packet::PubAck(ack) => self
                .in_flight
                .remove(&ack.pkid)
                .map(LinkEvent::Acknowledged),
            _ => None,
        }
    }

    /// rumqttc has written a packet; to a publish it has given its packet id, 0 when it is not acknowledged.
    fn written(&mut self, outgoing: &Outgoing) {
        let owes = match outgoing {
            Outgoing::Publish(packet_id) => match self.queued.pop_front() {
                Some(receipt) if *packet_id != 0 => {
                    self.in_flight.insert(*packet_id, receipt);
                    true
                }
                _ => false,
            },
            Outgoing::Subscribe(_) | Outgoing::PingReq => {
                self.asked += 1;
                true
            }
            _ => false,
        };
        if owes {
            self.silent_since.get_or_insert_with(Instant::now);
        }
    }

    /// Subscribes to the machine's `deploy` and `echo`; answered by [`LinkEvent::Subscribed`].
    ///
    /// At QoS 0: a clean session has nothing redelivered, and what a broker may drop is retained and comes again with
    /// the next subscription. QoS 1 would cost NATS a consumer for each topic of each machine, half a second to make.
    ///
    /// Returns whether there was room for the request.
    pub fn subscribe(&self) -> bool {
        let filters = [Channel::Deploy, Channel::Echo].map(|channel| {
            let topic = self.machine.topic(channel).to_string();
            SubscribeFilter::new(topic, QoS::AtMostOnce)
        });
        self.client.try_subscribe_many(filters).is_ok()
    }

    /// Publishes. Log lines go at QoS 0 and are dropped when much waits already; all else at QoS 1.
    ///
    /// Returns whether there was room: when there was none for something that matters, the connection is of
    /// no more use.
    pub fn publish(&mut self, payload: Payload) -> bool {
        let channel = payload.channel;
        let qos = match channel {
            Channel::Log if self.queued.len() >= QUEUE_FOR_LOGS => return true,
            Channel::Log => QoS::AtMostOnce,
            _ => QoS::AtLeastOnce,
        };
        let topic = self.machine.topic(channel).to_string();
        let retain = channel.is_retained();
        match self.client.try_publish(topic, qos, retain, payload.bytes) {
            Ok(()) => {
                self.queued.push_back(payload.receipt);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether the broker has answered all that it was asked over this connection, a subscription for one.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.has_subscribed && self.asked == 0 && !self.is_busy()
    }

    /// Whether something that was published may not have arrived.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !(self.queued.is_empty() && self.in_flight.is_empty())
    }

    /// Ends the connection cleanly: the broker does not publish the last will.
    pub async fn close(mut self) {
        let closed = async {
            if self.client.try_disconnect().is_ok() {
                while !self.next().await.is_last() {}
            }
        };
        if tokio::time::timeout(CLOSE, closed).await.is_err() {
            tracing::debug!("the broker did not end the connection in time");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs rumqttc until its first error; after it, it would connect again on its own.
async fn drive(mut event_loop: EventLoop, events: mpsc::Sender<Result<Event, ConnectionError>>) {
    loop {
        let polled = event_loop.poll().await;
        let is_last = polled.is_err();
        if events.send(polled).await.is_err() || is_last {
            return;
        }
    }
}
