//! MQTT packets in and out of bytes, for one connection: 3.1.1 and 5.
//!
//! `mqtt-protocol-core` takes the bodies of packets apart. Its connections are not used: what they know has to
//! outlive a connection here, and version 0.7.9 panics at a legal CONNECT (a Topic Alias Maximum of zero). So the
//! state between packets is the session's, and here is what is around a body: its collection, with a size limit
//! from the certificate's role before any of it is kept, the fixed header's flags, what may come first, and what
//! MQTT 5 agrees on for one connection.

mod incoming;
mod outgoing;
mod reason;

use hoist_certs::Role;
use hoist_protocol::limits;
use mqtt_protocol_core::mqtt::result_code::MqttError;

use crate::message::EXTRAS_LEN;

pub(crate) use incoming::{
    Connect, Filter, Incoming, Publish, Retained, Said, Subscribe, Unsubscribe,
};
pub(crate) use outgoing::{Accepted, Ack, Outgoing, Sent};
pub(crate) use reason::ReasonCode;

/// What a packet holds beside a payload and properties, in bytes: headers, packet id, a topic; of a CONNECT also
/// client id, will topic, user name and password, which nobody needs.
const OVERHEAD: usize = 1024;

/// Room for the filters of one SUBSCRIBE of somebody who watches a fleet, in bytes.
const FILTERS_LEN: usize = 64 * 1024;

/// Highest topic alias that a client may use.
pub(crate) const TOPIC_ALIASES: u16 = 16;

/// The largest packet that a client of `role` may send, in bytes.
pub(crate) const fn packet_limit(role: Role) -> usize {
    match role {
        Role::Agent => limits::PAYLOAD_LEN + EXTRAS_LEN + OVERHEAD,
        Role::Publisher | Role::Monitor | Role::Admin => FILTERS_LEN + OVERHEAD,
        Role::Broker => OVERHEAD,
    }
}

/// The version that a connection speaks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Protocol {
    /// MQTT 3.1.1
    #[default]
    V4,
    /// MQTT 5
    V5,
}

/// A breach of MQTT.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum FrameError {
    /// Something else came before the CONNECT.
    #[error("the first packet is no CONNECT")]
    NotConnect,
    /// A second CONNECT.
    #[error("a second CONNECT")]
    SecondConnect,
    /// The reserved flags of a fixed header are wrong (3.1.1, section 2.2.2).
    #[error("a packet of type {0} with wrong flags")]
    Flags(u8),
    /// A packet of a type that no client sends.
    #[error("a packet of type {0}, which no client sends")]
    Type(u8),
    /// A remaining length of more than four bytes.
    #[error("a length of more than four bytes")]
    Length,
    /// A packet above the limit of the role.
    #[error("a packet above the limit of {0} bytes")]
    TooLarge(usize),
    /// Not MQTT at all.
    #[error("a CONNECT for another protocol than MQTT")]
    ProtocolName,
    /// A CONNECT for another version.
    #[error("a CONNECT for protocol level {0}; 4 (MQTT 3.1.1) and 5 are served")]
    ProtocolLevel(u8),
    /// A CONNECT with flags that contradict each other (3.1.1, section 3.1.2.3).
    #[error("a CONNECT with wrong flags")]
    ConnectFlags,
    /// A packet id of zero, one that is in use, or one that is unknown.
    #[error("a packet id that is zero, in use or unknown")]
    PacketId,
    /// A text with a NUL character, or with a wildcard where none may be.
    #[error("a text with a NUL character, or a wildcard where none may be")]
    Text,
    /// A topic alias that is zero, above the maximum, or unknown.
    #[error("a topic alias that is zero, above {TOPIC_ALIASES}, or unknown")]
    TopicAlias,
    /// Properties above the limit.
    #[error("properties of more than {EXTRAS_LEN} bytes")]
    Properties,
    /// More publishes at once than the receive maximum allows.
    #[error("more publishes without an answer than the receive maximum")]
    ReceiveMaximum,
    /// A packet that MQTT 5 does not allow there.
    #[error("a protocol error ({0})")]
    Protocol(&'static str),
    /// Bytes that are no packet.
    #[error("malformed bytes ({0})")]
    Malformed(MqttError),
}

impl From<MqttError> for FrameError {
    fn from(error: MqttError) -> Self {
        Self::Malformed(error)
    }
}

/// The codec of one connection, which starts before its CONNECT.
pub(crate) struct Frames {
    limit: usize,
    protocol: Protocol,
    connected: bool,
    packet: Packet,
    /// How many packets came.
    count: u32,
    aliases: Vec<(u16, String)>,
    /// The largest packet that the client takes, in bytes.
    largest: usize,
    /// Whether the client wants reasons in words.
    explain: bool,
}

/// How much of a packet has come.
#[derive(Debug)]
enum Packet {
    /// Nothing.
    None,
    /// The first byte, and what the bytes of the length said so far.
    Head { first: u8, len: usize, shift: u32 },
    /// All of the head, and some of the body.
    Body {
        first: u8,
        len: usize,
        body: Vec<u8>,
    },
}

impl Frames {
    pub(crate) const fn new(role: Role) -> Self {
        Self {
            limit: packet_limit(role),
            protocol: Protocol::V4,
            connected: false,
            packet: Packet::None,
            count: 0,
            aliases: Vec::new(),
            largest: usize::MAX,
            explain: true,
        }
    }

    /// The version, once the CONNECT has come.
    pub(crate) const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The largest packet that is taken, in bytes.
    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// The number of the packet that has begun and not ended.
    pub(crate) fn partial(&self) -> Option<u32> {
        (!matches!(self.packet, Packet::None)).then_some(self.count)
    }

    /// Takes bytes up to the end of the first packet out of `data`; none when there is no whole packet yet.
    pub(crate) fn receive(&mut self, data: &mut &[u8]) -> Result<Option<Incoming>, FrameError> {
        loop {
            match &mut self.packet {
                Packet::None => {
                    let Some((first, rest)) = data.split_first() else {
                        return Ok(None);
                    };
                    let first = *first;
                    self.check_first(first)?;
                    *data = rest;
                    let (len, shift) = (0, 0);
                    self.packet = Packet::Head { first, len, shift };
                }
                Packet::Head { first, len, shift } => {
                    let Some((byte, rest)) = data.split_first() else {
                        return Ok(None);
                    };
                    *data = rest;
                    *len |= usize::from(byte & 0x7f) << *shift;
                    if byte & 0x80 != 0 {
                        *shift += 7;
                        if *shift > 21 {
                            return Err(FrameError::Length);
                        }
                        continue;
                    }
                    let (first, len) = (*first, *len);
                    if len + 1 + len_of_len(len) > self.limit {
                        return Err(FrameError::TooLarge(self.limit));
                    }
                    self.packet = Packet::Body {
                        first,
                        len,
                        body: Vec::new(),
                    };
                }
                Packet::Body { first, len, body } => {
                    let (first, missing) = (*first, *len - body.len());
                    if body.is_empty() && data.len() >= missing {
                        // All of it is here, which is the rule: nothing is copied.
                        let (body, rest) = data.split_at(missing);
                        *data = rest;
                        self.packet = Packet::None;
                        return self.whole(first, body).map(Some);
                    }
                    let (part, rest) = data.split_at(missing.min(data.len()));
                    *data = rest;
                    body.extend_from_slice(part);
                    if part.len() < missing {
                        return Ok(None);
                    }
                    let body = std::mem::take(body);
                    self.packet = Packet::None;
                    return self.whole(first, &body).map(Some);
                }
            }
        }
    }

    fn check_first(&self, first: u8) -> Result<(), FrameError> {
        let (kind, flags) = (first >> 4, first & 0x0f);
        if !self.connected && kind != 1 {
            return Err(FrameError::NotConnect);
        }
        match kind {
            1 if self.connected => Err(FrameError::SecondConnect),
            // PUBLISH carries QoS, DUP and RETAIN there.
            3 => Ok(()),
            // PUBREL, SUBSCRIBE and UNSUBSCRIBE
            6 | 8 | 10 if flags == 0b0010 => Ok(()),
            1 | 4 | 5 | 7 | 12 | 14 if flags == 0 => Ok(()),
            1 | 4 | 5 | 6 | 7 | 8 | 10 | 12 | 14 => Err(FrameError::Flags(kind)),
            15 if self.protocol == Protocol::V5 => Err(FrameError::Protocol(
                "an AUTH without an authentication method",
            )),
            _ => Err(FrameError::Type(kind)),
        }
    }

    fn whole(&mut self, first: u8, body: &[u8]) -> Result<Incoming, FrameError> {
        self.count = self.count.wrapping_add(1);
        let protocol = self.protocol;
        match first >> 4 {
            1 => {
                let (protocol, connect) = incoming::connect(body)?;
                self.protocol = protocol;
                self.connected = true;
                self.largest = connect.maximum_packet_size;
                self.explain = connect.problem_information;
                Ok(Incoming::Connect(Box::new(connect)))
            }
            3 => {
                let mut publish = incoming::publish(protocol, first & 0x0f, body)?;
                self.resolve_alias(&mut publish)?;
                Ok(Incoming::Publish(publish))
            }
            4..=7 => incoming::acknowledgement(protocol, first >> 4, body),
            8 => incoming::subscribe(protocol, body).map(Incoming::Subscribe),
            10 => incoming::unsubscribe(protocol, body).map(Incoming::Unsubscribe),
            12 if body.is_empty() => Ok(Incoming::Ping),
            14 => incoming::disconnect(protocol, body),
            _ => Err(FrameError::Malformed(MqttError::MalformedPacket)),
        }
    }

    /// Puts the topic in that an alias stands for, or learns the alias (MQTT 5, section 3.3.2.3.4).
    fn resolve_alias(&mut self, publish: &mut Publish) -> Result<(), FrameError> {
        let Some(alias) = publish.topic_alias else {
            // Only an alias may stand for a topic; on 3.1.1 the guard refuses an empty one.
            return match self.protocol {
                Protocol::V5 if publish.topic.is_empty() => {
                    Err(FrameError::Protocol("neither a topic nor an alias"))
                }
                Protocol::V4 | Protocol::V5 => Ok(()),
            };
        };
        if alias == 0 || alias > TOPIC_ALIASES {
            return Err(FrameError::TopicAlias);
        }
        let known = self.aliases.iter().position(|(known, _)| *known == alias);
        match (known, publish.topic.is_empty()) {
            (Some(at), true) => publish.topic.clone_from(&self.aliases[at].1),
            (None, true) => return Err(FrameError::TopicAlias),
            (Some(at), false) => self.aliases[at].1.clone_from(&publish.topic),
            (None, false) => self.aliases.push((alias, publish.topic.clone())),
        }
        Ok(())
    }
}

/// How many bytes a remaining length takes.
const fn len_of_len(len: usize) -> usize {
    match len {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests;
