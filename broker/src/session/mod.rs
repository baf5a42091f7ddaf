//! One client's session: a state machine without input or output of its own.
//!
//! Bytes, events and snapshots come in; bytes, and [`Effect`]s that the connection carries out in order, go out.
//! Every session is a clean one, whatever the client asks for: the retained message is the queue.

mod acks;
mod ended;
mod outbox;
mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use hoist_certs::Role;
use hoist_protocol::{AgentName, Channel, Machine, Topic};
use mqtt_protocol_core::mqtt::packet::Qos as WireQos;
use mqtt_protocol_core::mqtt::result_code::ConnectReturnCode;

use crate::deploys::Deploys;
use crate::frame::{Connect, FrameError, Frames, Incoming, Publish, Subscribe, Unsubscribe};
use crate::guard::{
    Access, Agents, Pattern, Peer, PublishRefusal, Rules, admit_client_id, admit_publication,
};
use crate::inbox::{Event, Ticket, Via};
use crate::message::{Author, Commit, Message, Qos};
use crate::store::{Outcome, Publication, Snapshot};

use acks::Acks;
pub(crate) use ended::Ended;
use outbox::{Delivery, Outbox};
use subscriptions::{Subscription, Subscriptions};

/// Most publications of one client that wait for the store; more are read when these are settled.
const UNSETTLED_LEN: usize = 64;

/// Most messages that one client has not acknowledged; more are sent when these are.
const INFLIGHT_LEN: usize = 256;

/// Most subscriptions of one client; more are answered with 0x80.
const SUBSCRIPTIONS_LEN: usize = 4096;

/// Most subscriptions with a wildcard for the machine, of one client.
const WILD_LEN: usize = 32;

/// From how many bytes that wait to be written on no further message is made into bytes.
const OUTPUT_LEN: usize = 32 * 1024;

/// What the connection has to do for its session, in order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Take over the client id, then call [`Session::claimed`].
    Claim(String),
    /// Publish.
    Publish(Admitted, Ticket),
    /// Subscribe where messages come from, read the snapshots, then call [`Session::subscribed`].
    Subscribe(u16, Vec<Request>),
    /// No subscription names this machine any more.
    Unwatch(AgentName),
    /// No subscription has a wildcard for the machine any more.
    UnwatchAll,
    /// Read what has changed on a channel after the commit, then call [`Session::refreshed`].
    Refresh(Channel, Commit),
}

/// A publish, or a will, that the guard has let in.
#[derive(Clone, Debug)]
pub(crate) enum Admitted {
    /// To be retained.
    Store(Publication),
    /// To be passed on.
    Relay(Message),
}

/// One filter of a SUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) filter: String,
    /// None when it is refused.
    pub(crate) granted: Option<(Pattern, Qos)>,
}

/// What all sessions share.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) rules: Rules,
    pub(crate) deploys: Arc<Deploys>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Before the CONNECT.
    Opening,
    /// The client id is being taken over.
    Claiming,
    /// After the CONNACK.
    Open,
}

/// One client's session.
pub(crate) struct Session {
    peer: Arc<Peer>,
    policy: Arc<Policy>,
    /// A number that no other connection of this process has.
    number: u64,
    frames: Frames,
    phase: Phase,
    keep_alive: Option<Duration>,
    will: Option<Box<Admitted>>,
    acks: Acks,
    subscriptions: Subscriptions,
    outbox: Outbox,
    inflight: usize,
    progress: bool,
    output: Vec<u8>,
    effects: Vec<Effect>,
    ended: Option<Ended>,
}

impl Session {
    pub(crate) fn new(peer: Arc<Peer>, policy: Arc<Policy>, number: u64) -> Self {
        Self {
            frames: Frames::new(peer.role),
            peer,
            policy,
            number,
            phase: Phase::Opening,
            keep_alive: None,
            will: None,
            acks: Acks::default(),
            subscriptions: Subscriptions::default(),
            outbox: Outbox::default(),
            inflight: 0,
            progress: false,
            output: Vec::new(),
            effects: Vec::new(),
            ended: None,
        }
    }

    pub(crate) const fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Whether the CONNACK is sent.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether it takes bytes now.
    pub(crate) fn wants_input(&self) -> bool {
        self.ended.is_none() && self.phase != Phase::Claiming && self.acks.len() < UNSETTLED_LEN
    }

    /// How long a silence may last, once the client has connected.
    pub(crate) const fn keep_alive(&self) -> Option<Duration> {
        self.keep_alive
    }

    /// Why it has ended, if it has.
    pub(crate) const fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Ends it; the first reason counts.
    pub(crate) fn end(&mut self, reason: Ended) {
        self.ended.get_or_insert(reason);
    }

    /// What is left to do when it has ended.
    pub(crate) fn into_will(self) -> Option<Admitted> {
        let discarded = self.ended.is_some_and(|ended| ended.discards_will());
        // A client that never got its CONNACK has left no will.
        let stands = self.phase == Phase::Open && !discarded;
        self.will.filter(|_| stands).map(|will| *will)
    }

    /// Takes the effects out.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether the client has acknowledged something since this was last asked.
    pub(crate) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Whether the client owes us something: to read, or to acknowledge.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.output.is_empty() || !self.outbox.is_empty()
    }

    /// How many log lines were dropped because the client was slow.
    pub(crate) const fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    /// The bytes to write. The writer removes from the front what is written.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        while self.ended.is_none() && self.output.len() < OUTPUT_LEN {
            let Some(delivery) = self.outbox.front() else {
                break;
            };
            if delivery.qos == Qos::AtLeastOnce {
                if self.inflight == INFLIGHT_LEN {
                    break;
                }
                self.inflight += 1;
            }
            let Delivery {
                message,
                qos,
                retained,
            } = delivery;
            let sent = self
                .frames
                .publish(message, *qos, *retained, &mut self.output);
            debug_assert!(sent, "there are more packet ids than messages in flight");
            self.outbox.pop();
        }
        &mut self.output
    }

    /// Takes bytes, as many as it wants, and returns how many that were.
    pub(crate) fn receive(&mut self, data: &[u8]) -> usize {
        let mut left = data;
        while !left.is_empty() && self.wants_input() {
            match self.frames.receive(&mut left) {
                Ok(Some(incoming)) => self.handle(incoming),
                Ok(None) => {}
                Err(error) => {
                    if error == FrameError::ProtocolLevel {
                        let code = ConnectReturnCode::UnacceptableProtocolVersion;
                        self.frames.connack(code, &mut self.output);
                    }
                    self.end(error.into());
                }
            }
        }
        data.len() - left.len()
    }

    fn handle(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Connect(connect) => self.connect(&connect),
            Incoming::Publish(publish) => self.publish(&publish),
            Incoming::Acknowledged => {
                self.inflight -= 1;
                self.progress = true;
            }
            Incoming::Subscribe(subscribe) => self.subscribe(&subscribe),
            Incoming::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe),
            Incoming::Ping => self.frames.pingresp(&mut self.output),
            Incoming::Disconnect => self.end(Ended::Disconnected),
        }
    }

    fn connect(&mut self, connect: &Connect) {
        if connect.client_id().is_empty() && !connect.clean_session() {
            return self.refuse(ConnectReturnCode::IdentifierRejected, Ended::NoClientId);
        }
        let client_id = match admit_client_id(&self.peer, connect.client_id(), self.number) {
            Ok(client_id) => client_id,
            Err(error) => {
                return self.refuse(ConnectReturnCode::IdentifierRejected, error.into());
            }
        };
        if let (Some(topic), Some(payload)) = (connect.will_topic(), connect.will_payload()) {
            let admitted = self.admit(topic, payload, connect.will_qos(), connect.will_retain());
            match admitted {
                Ok(will) => self.will = Some(Box::new(will)),
                Err(Ended::Publish(refusal)) => {
                    return self.refuse(ConnectReturnCode::NotAuthorized, Ended::Will(refusal));
                }
                Err(ended) => return self.refuse(ConnectReturnCode::NotAuthorized, ended),
            }
        }
        if connect.keep_alive() > 0 {
            // One and a half times, section 3.1.2.10.
            self.keep_alive = Some(Duration::from_secs(connect.keep_alive().into()) * 3 / 2);
        }
        self.phase = Phase::Claiming;
        self.effects.push(Effect::Claim(client_id));
    }

    fn refuse(&mut self, code: ConnectReturnCode, reason: Ended) {
        self.frames.connack(code, &mut self.output);
        self.end(reason);
    }

    /// The client id is ours and the will of whoever had it is applied.
    pub(crate) fn claimed(&mut self) {
        self.phase = Phase::Open;
        self.frames
            .connack(ConnectReturnCode::Accepted, &mut self.output);
    }

    /// The broker takes no session now.
    pub(crate) fn unavailable(&mut self, reason: Ended) {
        self.refuse(ConnectReturnCode::ServerUnavailable, reason);
    }

    fn publish(&mut self, publish: &Publish) {
        let payload = publish.payload().as_slice();
        let admitted = self.admit(
            publish.topic_name(),
            payload,
            publish.qos(),
            publish.retain(),
        );
        match admitted {
            Ok(admitted) => {
                let ticket = self.acks.open(publish.packet_id());
                self.effects.push(Effect::Publish(admitted, ticket));
            }
            Err(ended) => self.end(ended),
        }
    }

    fn admit(
        &self,
        topic: &str,
        payload: &[u8],
        qos: WireQos,
        retain: bool,
    ) -> Result<Admitted, Ended> {
        let qos = match qos {
            WireQos::AtMostOnce => Qos::AtMostOnce,
            WireQos::AtLeastOnce => Qos::AtLeastOnce,
            WireQos::ExactlyOnce => return Err(PublishRefusal::ExactlyOnce.into()),
        };
        let topic = admit_publication(self.policy.rules, &self.peer, topic, payload, retain)?;
        if !topic.channel.is_retained() {
            return Ok(Admitted::Relay(Message {
                topic,
                payload: Arc::from(payload),
                qos,
                commit: None,
                author: Author(self.number),
                extras: None,
            }));
        }
        let proof = if topic.channel == Channel::Deploy && !payload.is_empty() {
            self.policy.deploys.verify(&topic.machine, payload)?
        } else {
            None
        };
        Ok(Admitted::Store(Publication {
            topic,
            qos,
            payload: Arc::from(payload),
            author: Author(self.number),
            extras: None,
            proof,
        }))
    }

    fn subscribe(&mut self, subscribe: &Subscribe) {
        let mut requests = Vec::with_capacity(subscribe.entries().len());
        let (mut new, mut new_wild) = (0, 0);
        for entry in subscribe.entries() {
            let filter = entry.topic_filter();
            let pattern = match Pattern::parse(filter, &self.peer.fleet) {
                Ok(pattern) => pattern.filter(|pattern| self.may_read(pattern)),
                Err(error) => return self.end(error.into()),
            };
            let qos = match entry.sub_opts().qos() {
                WireQos::AtMostOnce => Qos::AtMostOnce,
                WireQos::AtLeastOnce | WireQos::ExactlyOnce => Qos::AtLeastOnce,
            };
            let known = self.subscriptions.contains(filter);
            let granted = pattern
                .map(|pattern| (pattern, qos))
                .filter(|(pattern, _)| {
                    new += usize::from(!known);
                    new_wild += usize::from(!known && pattern.agents == Agents::All);
                    self.subscriptions.len() + new <= SUBSCRIPTIONS_LEN
                        && self.subscriptions.wild_len() + new_wild <= WILD_LEN
                });
            requests.push(Request {
                filter: filter.to_owned(),
                granted,
            });
        }
        self.effects
            .push(Effect::Subscribe(subscribe.packet_id(), requests));
    }

    /// Whether there can be anything for this client in what `pattern` matches. What is delivered is asked
    /// again, topic by topic.
    fn may_read(&self, pattern: &Pattern) -> bool {
        let mut machine = self.peer.machine();
        match &pattern.agents {
            // A machine asks for its own and nothing else: a wildcard is a mistake or a probe.
            Agents::All if self.peer.role == Role::Agent => return false,
            Agents::All => {}
            Agents::One(agent) => machine.agent = agent.clone(),
        }
        Channel::ALL
            .into_iter()
            .any(|channel| pattern.channels.hold(channel) && self.allows(&machine.topic(channel)))
    }

    /// Whether the client may read a topic.
    pub(crate) fn allows(&self, topic: &Topic) -> bool {
        self.policy.rules.allow(&self.peer, Access::Read, topic)
    }

    /// The subscriptions of a SUBSCRIBE are in place and their snapshots read, one for each that was granted.
    pub(crate) fn subscribed(
        &mut self,
        packet_id: u16,
        requests: Vec<Request>,
        snapshots: Vec<Snapshot>,
    ) {
        let codes = requests
            .iter()
            .map(|request| request.granted.as_ref().map(|(_, qos)| *qos));
        self.frames
            .suback(packet_id, codes.collect(), &mut self.output);
        let granted = requests.into_iter().filter_map(|request| {
            let (pattern, qos) = request.granted?;
            Some((request.filter, pattern, qos))
        });
        for ((filter, pattern, qos), snapshot) in granted.zip(snapshots) {
            self.subscriptions.insert(Subscription {
                filter,
                pattern,
                qos,
                as_of: snapshot.as_of,
            });
            for message in snapshot.messages {
                self.outbox.push(Delivery {
                    qos: qos.min(message.qos),
                    message,
                    retained: true,
                });
            }
        }
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        for filter in unsubscribe.entries() {
            if let Some(agent) = self.subscriptions.remove(filter.as_str()) {
                self.effects.push(Effect::Unwatch(agent));
            }
        }
        if self.subscriptions.wild_len() == 0 {
            self.effects.push(Effect::UnwatchAll);
        }
        self.frames
            .unsuback(unsubscribe.packet_id(), &mut self.output);
    }

    /// The machines that its subscriptions name.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        let agents = self.subscriptions.agents();
        agents
            .map(|agent| Machine::new(self.peer.fleet.clone(), agent.clone()))
            .collect()
    }

    /// Takes an event of the inbox.
    pub(crate) fn on(&mut self, event: Event) {
        match event {
            Event::Settled(ticket, outcome) => self.settled(ticket, outcome),
            Event::Message(message, via) => self.deliver(message, via),
            Event::Gap(channel, since) => self.effects.push(Effect::Refresh(channel, since)),
        }
    }

    /// What became of a publication.
    pub(crate) fn settled(&mut self, ticket: Ticket, outcome: Outcome) {
        match outcome {
            Outcome::Retained | Outcome::Repeat => {
                self.acks.settle(ticket);
                while let Some(packet_id) = self.acks.next() {
                    self.frames.puback(packet_id, &mut self.output);
                }
            }
            // Not acknowledged: MQTT 3.1.1 has no other way to say no.
            Outcome::Refused(refusal) => self.end(refusal.into()),
        }
    }

    fn deliver(&mut self, message: Arc<Message>, via: Via) {
        if !self.allows(&message.topic) {
            return;
        }
        if let Some(qos) = self.subscriptions.wants(&message, via) {
            self.outbox.push(Delivery {
                message,
                qos,
                retained: false,
            });
        }
    }

    /// What the router had skipped on `channel` was read from the store.
    pub(crate) fn refreshed(&mut self, channel: Channel, changes: Snapshot) {
        for message in changes.messages {
            self.deliver(message, Via::Router);
        }
        self.subscriptions.refresh(channel, changes.as_of);
    }
}

#[cfg(test)]
mod tests;
