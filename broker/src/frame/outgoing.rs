//! What the broker sends, as bytes of either version.
//!
//! No packet is larger than the client takes: reasons in words are left out before that, and a message that is too
//! large is not sent at all (MQTT 5, section 3.1.2.11.4).

use hoist_protocol::Text;

use super::{Frames, Protocol, ReasonCode, TOPIC_ALIASES};
use crate::message::{Message, Qos};

/// A CONNACK that says yes. Everything but the first is for MQTT 5 alone.
#[derive(Debug)]
pub(crate) struct Accepted<'a> {
    pub(crate) session_present: bool,
    /// How long the session lives without a connection, when that is not what was asked for, in seconds.
    pub(crate) session_expiry: Option<u32>,
    /// The keep-alive, when it is not what was asked for, in seconds.
    pub(crate) keep_alive: Option<u16>,
    /// The client id, when the client did not say one.
    pub(crate) client_id: Option<&'a str>,
    /// Most messages of QoS 1 and 2 that are taken at once.
    pub(crate) receive_maximum: u16,
}

/// An answer in an exchange of QoS 1 or 2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ack {
    /// PUBACK
    Publish,
    /// PUBREC
    Received,
    /// PUBREL
    Release,
    /// PUBCOMP
    Complete,
}

impl Ack {
    const fn first_byte(self) -> u8 {
        match self {
            Self::Publish => 0x40,
            Self::Received => 0x50,
            Self::Release => 0x62,
            Self::Complete => 0x70,
        }
    }
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) message: &'a Message,
    pub(crate) qos: Qos,
    /// None at QoS 0.
    pub(crate) packet_id: Option<u16>,
    pub(crate) retain: bool,
    /// It was sent before.
    pub(crate) again: bool,
    /// How long it is still of use, in seconds.
    pub(crate) expiry: Option<u32>,
    /// Of the subscriptions that it matches.
    pub(crate) identifiers: &'a [u32],
}

/// Whether a message was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sent {
    Yes,
    /// It is larger than the client takes.
    TooLarge,
}

/// Longest reason in words, in bytes.
const REASON_LEN: usize = 256;

impl Frames {
    /// The answer to a CONNECT that is accepted.
    pub(crate) fn accept(&self, accepted: &Accepted<'_>, out: &mut Vec<u8>) {
        let present = u8::from(accepted.session_present);
        let Protocol::V5 = self.protocol() else {
            return packet(0x20, &[present, 0], out);
        };
        let mut properties = Vec::new();
        if let Some(seconds) = accepted.session_expiry {
            properties.push(0x11);
            properties.extend_from_slice(&seconds.to_be_bytes());
        }
        properties.push(0x21);
        properties.extend_from_slice(&accepted.receive_maximum.to_be_bytes());
        properties.push(0x27);
        let limit = u32::try_from(self.limit()).expect("the limits are far below 4 GB");
        properties.extend_from_slice(&limit.to_be_bytes());
        if let Some(client_id) = accepted.client_id {
            text(0x12, client_id, &mut properties);
        }
        properties.push(0x22);
        properties.extend_from_slice(&TOPIC_ALIASES.to_be_bytes());
        // No shared subscriptions; everything else that may be missing is there.
        properties.extend_from_slice(&[0x2a, 0]);
        if let Some(seconds) = accepted.keep_alive {
            properties.push(0x13);
            properties.extend_from_slice(&seconds.to_be_bytes());
        }
        let mut body = vec![present, ReasonCode::Success.byte()];
        length(properties.len(), &mut body);
        body.extend_from_slice(&properties);
        self.bounded(0x20, &body, out);
    }

    /// The answer to a CONNECT that is refused; on MQTT 3.1.1 some reasons have none.
    pub(crate) fn refuse(&self, code: ReasonCode, why: &str, out: &mut Vec<u8>) {
        match self.protocol() {
            Protocol::V4 => {
                if let Some(code) = code.return_code() {
                    packet(0x20, &[0, code], out);
                }
            }
            Protocol::V5 => self.explained(0x20, &[0, code.byte()], Some(why), out),
        }
    }

    /// An answer in an exchange of QoS 1 or 2.
    pub(crate) fn acknowledge(
        &self,
        ack: Ack,
        packet_id: u16,
        code: ReasonCode,
        why: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        let [high, low] = packet_id.to_be_bytes();
        if self.protocol() == Protocol::V4 || code == ReasonCode::Success {
            // On MQTT 5 as well: without a code it is a success.
            return self.bounded(ack.first_byte(), &[high, low], out);
        }
        let why = why.filter(|_| self.explain);
        self.explained(ack.first_byte(), &[high, low, code.byte()], why, out);
    }

    /// The answer to a SUBSCRIBE: a QoS or a reason for each filter.
    pub(crate) fn suback(
        &self,
        packet_id: u16,
        granted: impl Iterator<Item = Result<Qos, ReasonCode>>,
        out: &mut Vec<u8>,
    ) {
        let protocol = self.protocol();
        let codes = granted.map(|granted| match (granted, protocol) {
            (Ok(qos), _) => qos.number(),
            (Err(_), Protocol::V4) => 0x80,
            (Err(code), Protocol::V5) => code.byte(),
        });
        self.answer(0x90, packet_id, codes, out);
    }

    /// The answer to an UNSUBSCRIBE.
    pub(crate) fn unsuback(
        &self,
        packet_id: u16,
        codes: impl Iterator<Item = ReasonCode>,
        out: &mut Vec<u8>,
    ) {
        let wanted = if self.protocol() == Protocol::V5 {
            usize::MAX
        } else {
            0
        };
        self.answer(
            0xb0,
            packet_id,
            codes.take(wanted).map(ReasonCode::byte),
            out,
        );
    }

    fn answer(
        &self,
        first: u8,
        packet_id: u16,
        codes: impl Iterator<Item = u8>,
        out: &mut Vec<u8>,
    ) {
        let mut body = packet_id.to_be_bytes().to_vec();
        if self.protocol() == Protocol::V5 {
            body.push(0);
        }
        body.extend(codes);
        self.bounded(first, &body, out);
    }

    /// The answer to a PINGREQ.
    pub(crate) fn pingresp(&self, out: &mut Vec<u8>) {
        self.bounded(0xd0, &[], out);
    }

    /// The end of the connection, which only MQTT 5 lets the broker say.
    pub(crate) fn disconnect(&self, code: ReasonCode, why: &str, out: &mut Vec<u8>) {
        if self.protocol() == Protocol::V5 {
            self.explained(0xe0, &[code.byte()], Some(why), out);
        }
    }

    /// A message.
    pub(crate) fn publish(&self, outgoing: &Outgoing<'_>, out: &mut Vec<u8>) -> Sent {
        let topic = outgoing.message.topic.to_string();
        let mut head = Vec::with_capacity(2 + topic.len() + 2 + 8);
        head.extend_from_slice(&len_u16(topic.len()).to_be_bytes());
        head.extend_from_slice(topic.as_bytes());
        if let Some(packet_id) = outgoing.packet_id {
            head.extend_from_slice(&packet_id.to_be_bytes());
        }
        if self.protocol() == Protocol::V5 {
            write_properties(outgoing, &mut head);
        }
        let payload = &outgoing.message.payload;
        let len = head.len() + payload.len();
        if 1 + super::len_of_len(len) + len > self.largest {
            return Sent::TooLarge;
        }
        let flags =
            u8::from(outgoing.again) << 3 | outgoing.qos.number() << 1 | u8::from(outgoing.retain);
        out.reserve(5 + len);
        out.push(0x30 | flags);
        length(len, out);
        out.extend_from_slice(&head);
        out.extend_from_slice(payload);
        Sent::Yes
    }

    /// A packet that ends in properties, with the reason in words as far as there is room for it.
    fn explained(&self, first: u8, head: &[u8], why: Option<&str>, out: &mut Vec<u8>) {
        let mut properties = Vec::new();
        if let Some(why) = why {
            // It may repeat what the client has sent.
            let why: Text<REASON_LEN> = Text::lossy(why);
            text(0x1f, why.as_str(), &mut properties);
        }
        let mut body = head.to_vec();
        length(properties.len(), &mut body);
        body.extend_from_slice(&properties);
        if 1 + super::len_of_len(body.len()) + body.len() > self.largest {
            body.truncate(head.len());
            body.push(0);
        }
        self.bounded(first, &body, out);
    }

    /// A packet that is left out when the client would not take it.
    fn bounded(&self, first: u8, body: &[u8], out: &mut Vec<u8>) {
        if 1 + super::len_of_len(body.len()) + body.len() <= self.largest {
            packet(first, body, out);
        }
    }
}

fn write_properties(outgoing: &Outgoing<'_>, head: &mut Vec<u8>) {
    let passed_on = outgoing.message.extras.as_ref();
    let passed_on = passed_on.map_or(&[][..], |extras| &extras.properties);
    if passed_on.is_empty() && outgoing.expiry.is_none() && outgoing.identifiers.is_empty() {
        return head.push(0);
    }
    let mut own = Vec::new();
    if let Some(seconds) = outgoing.expiry {
        own.push(0x02);
        own.extend_from_slice(&seconds.to_be_bytes());
    }
    for identifier in outgoing.identifiers {
        own.push(0x0b);
        length(usize::try_from(*identifier).unwrap_or(usize::MAX), &mut own);
    }
    length(own.len() + passed_on.len(), head);
    head.extend_from_slice(&own);
    head.extend_from_slice(passed_on);
}

fn packet(first: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    length(body.len(), out);
    out.extend_from_slice(body);
}

/// A variable byte integer (section 2.2.3 of MQTT 3.1.1, 1.5.5 of MQTT 5).
fn length(mut len: usize, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(len & 0x7f).expect("seven bits");
        len >>= 7;
        if len == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn text(id: u8, text: &str, out: &mut Vec<u8>) {
    out.push(id);
    out.extend_from_slice(&len_u16(text.len()).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn len_u16(len: usize) -> u16 {
    u16::try_from(len).expect("topics, client ids and reasons are far below 64 KB")
}
