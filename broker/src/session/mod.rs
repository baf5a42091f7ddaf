//! One client's session: a state machine without input or output of its own, for MQTT 3.1.1 and 5.
//!
//! Bytes, events and snapshots come in; bytes, and [`Effect`]s that the connection carries out in order, go out.
//! What outlives the connection, when the client wants that, is in [`Kept`].

mod acks;
mod answers;
mod delivery;
mod ended;
mod inflight;
mod kept;
mod opening;
mod outbox;
mod publishing;
mod subscribing;
mod subscriptions;
mod wanted;

use std::sync::Arc;
use std::time::Duration;

use hoist_protocol::{AgentName, Channel, Topic};

use crate::deploys::Deploys;
use crate::frame::{FrameError, Frames, Incoming, Protocol, ReasonCode};
use crate::guard::{Pattern, Peer, Rules};
use crate::inbox::{Event, Ticket};
use crate::message::{Author, Commit, Message, Qos};
use crate::settings::SessionLimits;
use crate::store::Publication;

use acks::Verdict;
pub(crate) use ended::Ended;
pub(crate) use kept::Kept;
pub(crate) use opening::Will;
pub(crate) use subscribing::NotGranted;
use wanted::Wanted;

/// What the connection has to do for its session, in order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Take over the client id, then call [`Session::claimed`].
    Claim(Claim),
    /// Publish.
    Publish(Admitted, Ticket),
    /// A publish or a subscription was refused, and the client was told so.
    Refused(Ended),
    /// Subscribe where messages come from, read the snapshots, then call [`Session::subscribed`].
    Subscribe(u16, Vec<Request>),
    /// No subscription names this machine any more.
    Unwatch(AgentName),
    /// No subscription has a wildcard for the machine any more.
    UnwatchAll,
    /// Read what has changed on a channel after the commit, then call [`Session::refreshed`].
    Refresh(Channel, Commit),
}

/// A client id that a session wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Claim {
    pub(crate) client_id: String,
    /// What the one before has left is thrown away.
    pub(crate) clean_start: bool,
    /// The session is to outlive its connection.
    pub(crate) outlives: bool,
}

/// A publish, or a will, that the guard has let in.
#[derive(Clone, Debug)]
pub(crate) enum Admitted {
    /// To be retained.
    Store(Publication),
    /// To be passed on.
    Relay(Message),
}

impl Admitted {
    /// Where it was published.
    pub(crate) const fn channel(&self) -> Channel {
        match self {
            Self::Store(publication) => publication.topic.channel,
            Self::Relay(message) => message.topic.channel,
        }
    }
}

/// One filter of a SUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) filter: String,
    /// Why it is refused, when it is.
    pub(crate) granted: Result<Grant, ReasonCode>,
}

/// A subscription that is granted.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) pattern: Pattern,
    qos: Qos,
    no_local: bool,
    retain_as_published: bool,
    identifier: Option<u32>,
    /// Whether it brings what is retained.
    retained: bool,
}

/// What all sessions of a fleet share.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) rules: Rules,
    pub(crate) deploys: Arc<Deploys>,
    pub(crate) limits: SessionLimits,
    /// Milliseconds since 1970, by which messages expire.
    pub(crate) clock: fn() -> u64,
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

/// One client's session, with its connection.
pub(crate) struct Session {
    frames: Frames,
    phase: Phase,
    kept: Box<Kept>,
    /// `kept` has had a connection before.
    resumed: bool,
    /// What the CONNECT said and the CONNACK has to answer.
    opening: Option<Box<opening::Opening>>,
    keep_alive: Option<Duration>,
    will: Option<Box<Will>>,
    /// Most messages of QoS 1 and 2 that the client takes at once.
    receive_maximum: usize,
    progress: bool,
    /// Messages made into bytes since this was last asked.
    sent: u64,
    output: Vec<u8>,
    wanted: Vec<Wanted>,
    ended: Option<Ended>,
}

/// What a session leaves when its connection has ended.
pub(crate) struct Remains {
    pub(crate) will: Option<Box<Will>>,
    pub(crate) kept: Box<Kept>,
    /// Whether the session outlives its connection.
    pub(crate) outlives: bool,
}

impl Session {
    /// A session before its CONNECT. `number` is one that no other connection of this process has.
    pub(crate) fn new(peer: Arc<Peer>, policy: Arc<Policy>, number: u64) -> Self {
        Self {
            frames: Frames::new(peer.role),
            phase: Phase::Opening,
            receive_maximum: policy.limits.inflight,
            kept: Box::new(Kept::new(peer, policy, Author(number))),
            resumed: false,
            opening: None,
            keep_alive: None,
            will: None,
            progress: false,
            sent: 0,
            output: Vec::new(),
            wanted: Vec::new(),
            ended: None,
        }
    }

    pub(crate) const fn peer(&self) -> &Arc<Peer> {
        &self.kept.peer
    }

    /// Whether the CONNACK is sent.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether it takes bytes now.
    pub(crate) fn wants_input(&self) -> bool {
        self.ended.is_none()
            && self.phase != Phase::Claiming
            && self.kept.acks.len() < self.kept.policy.limits.unsettled
    }

    /// The number of the packet that has begun and not ended.
    pub(crate) fn partial(&self) -> Option<u32> {
        self.frames.partial()
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

    /// Says why it has ended, to a client that can be told: a DISCONNECT of MQTT 5. To be called once, when
    /// nothing else is to be said.
    pub(crate) fn say_goodbye(&mut self) {
        if let Some(ended) = self.ended.as_ref().filter(|ended| !ended.is_the_clients())
            && self.phase == Phase::Open
        {
            self.frames
                .disconnect(ended.code(), &ended.explain(), &mut self.output);
        }
    }

    /// What is left to do, and to keep, when it has ended.
    pub(crate) fn into_remains(self) -> Remains {
        let ended = self.ended.unwrap_or(Ended::BrokerFailed);
        // A client that never got its CONNACK has left no will.
        let stands = self.phase == Phase::Open && !ended.discards_will();
        let mut kept = self.kept;
        let outlives = self.phase == Phase::Open || self.resumed;
        let outlives = outlives && !kept.expiry.is_zero() && !ended.discards_session();
        kept.lose_connection();
        Remains {
            will: self.will.filter(|_| stands),
            kept,
            outlives,
        }
    }

    /// Whether the client has acknowledged something since this was last asked.
    pub(crate) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// How many messages were made into bytes since this was last asked.
    pub(crate) const fn take_sent(&mut self) -> u64 {
        std::mem::replace(&mut self.sent, 0)
    }

    /// Whether the client owes us something: to read, or to acknowledge.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.output.is_empty() || !self.kept.outbox.is_empty()
    }

    /// How many log lines were dropped because the client was slow.
    pub(crate) const fn dropped(&self) -> u64 {
        self.kept.dropped()
    }

    /// Whether the client may read a topic.
    pub(crate) fn allows(&self, topic: &Topic) -> bool {
        self.kept.allows(topic)
    }

    /// Takes bytes, as many as it wants, and returns how many that were.
    pub(crate) fn receive(&mut self, data: &[u8]) -> usize {
        let mut left = data;
        while !left.is_empty() && self.wants_input() {
            let result = match self.frames.receive(&mut left) {
                Ok(Some(incoming)) => self.handle(incoming),
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(ended) = result {
                self.breach(ended);
            }
        }
        data.len() - left.len()
    }

    /// Ends it for what the client did. Before the CONNACK that is said in one.
    fn breach(&mut self, ended: Ended) {
        // Which version a packet is of that was too large to be read, nobody knows: no answer would be right.
        let unread = matches!(ended, Ended::Protocol(FrameError::TooLarge(_)));
        if self.phase == Phase::Opening && !unread {
            self.frames
                .refuse(ended.code(), &ended.explain(), &mut self.output);
        }
        self.end(ended);
    }

    fn handle(&mut self, incoming: Incoming) -> Result<(), Ended> {
        match incoming {
            Incoming::Connect(connect) => return self.connect(*connect),
            Incoming::Publish(publish) => return self.publish(publish),
            Incoming::Pubrel(packet_id) => self.release(packet_id),
            Incoming::Puback(id) => self.arrived(id, Qos::AtLeastOnce)?,
            Incoming::Pubrec(id, accepted) => self.received(id, accepted)?,
            Incoming::Pubcomp(id) => self.arrived(id, Qos::ExactlyOnce)?,
            Incoming::Subscribe(subscribe) => return self.subscribe(subscribe),
            Incoming::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe),
            Incoming::Ping => self.frames.pingresp(&mut self.output),
            Incoming::Disconnect {
                with_will,
                session_expiry,
            } => return self.disconnect(with_will, session_expiry),
        }
        Ok(())
    }

    fn disconnect(&mut self, with_will: bool, session_expiry: Option<u32>) -> Result<(), Ended> {
        if let Some(seconds) = session_expiry {
            if self.kept.expiry.is_zero() && seconds > 0 {
                // MQTT 5, section 3.14.2.2.2.
                return Err(
                    FrameError::Protocol("a session expiry for a session that ends").into(),
                );
            }
            self.kept.expiry = self.expiry(seconds);
        }
        self.end(if with_will {
            Ended::Parted
        } else {
            Ended::Disconnected
        });
        Ok(())
    }

    /// Takes an event of the inbox.
    pub(crate) fn on(&mut self, event: Event) {
        match event {
            Event::Settled(ticket, outcome) => self.settled(ticket, outcome),
            Event::Message(message, via) => self.kept.deliver(message, via, false),
            Event::Gap(channel, since) => self.want(Effect::Refresh(channel, since)),
        }
    }

    fn speaks_v5(&self) -> bool {
        self.frames.protocol() == Protocol::V5
    }
}

/// A refusal as MQTT 5 says it.
fn verdict(refusal: &Ended) -> Verdict {
    Verdict::Refused(refusal.code(), refusal.explain())
}

#[cfg(test)]
mod tests;
