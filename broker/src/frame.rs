//! MQTT packets in and out of bytes, for one connection.
//!
//! `mqtt-protocol-core` does the work; here is what it leaves to its user on MQTT 3.1.1: a size limit from the
//! certificate's role before anything is collected, the fixed header's reserved flags, and what may come first.

use hoist_certs::Role;
use hoist_protocol::limits;
use mqtt_protocol_core::mqtt::common::Cursor;
use mqtt_protocol_core::mqtt::connection::{ConnectionOptions, GenericEvent};
use mqtt_protocol_core::mqtt::packet::v3_1_1::{
    Connack, GenericPuback, GenericPublish, GenericSuback, GenericUnsuback, Pingresp,
};
use mqtt_protocol_core::mqtt::packet::{GenericPacket, GenericPacketTrait, Qos as WireQos};
use mqtt_protocol_core::mqtt::result_code::{ConnectReturnCode, MqttError, SubackReturnCode};
use mqtt_protocol_core::mqtt::{Connection, Version, role};

use crate::message::{Message, Qos};

pub(crate) use mqtt_protocol_core::mqtt::packet::v3_1_1::{
    Connect, Publish, Subscribe, Unsubscribe,
};

/// What a packet holds beside a payload, in bytes: headers, packet id, a topic; of a CONNECT also client id, will
/// topic, user name and password, which nobody needs.
const OVERHEAD: usize = 1024;

/// Room for the filters of one SUBSCRIBE of somebody who watches a fleet, in bytes.
const FILTERS_LEN: usize = 64 * 1024;

/// The largest packet that a client of `role` may send, in bytes.
pub(crate) const fn packet_limit(role: Role) -> usize {
    match role {
        Role::Agent => limits::PAYLOAD_LEN + OVERHEAD,
        Role::Publisher | Role::Monitor | Role::Admin => FILTERS_LEN + OVERHEAD,
        Role::Broker => OVERHEAD,
    }
}

/// A breach of MQTT 3.1.1.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum FrameError {
    /// Something else came before the CONNECT.
    #[error("the first packet is no CONNECT")]
    NotConnect,
    /// A second CONNECT.
    #[error("a second CONNECT")]
    SecondConnect,
    /// The reserved flags of a fixed header are wrong (section 2.2.2).
    #[error("a packet of type {0} with wrong flags")]
    Flags(u8),
    /// A packet of a type that no client sends.
    #[error("a packet of type {0}, which no client sends")]
    Type(u8),
    /// A packet above the limit of the role.
    #[error("a packet above the limit of {0} bytes")]
    TooLarge(usize),
    /// A CONNECT for another protocol level than 4.
    #[error("a CONNECT for another protocol level than 4 (MQTT 3.1.1)")]
    ProtocolLevel,
    /// A CONNECT with flags that contradict each other (section 3.1.2.3).
    #[error("a CONNECT with wrong flags")]
    ConnectFlags,
    /// A packet id of zero, or one that is unknown.
    #[error("a packet id that is zero or unknown")]
    PacketId,
    /// A part of a QoS 2 exchange.
    #[error("a part of a QoS 2 exchange, which is not served")]
    ExactlyOnce,
    /// Bytes that are no packet.
    #[error("malformed bytes ({0:?})")]
    Malformed(MqttError),
}

/// What came from the client.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The first packet.
    Connect(Connect),
    Publish(Publish),
    /// A message of ours has arrived.
    Acknowledged,
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Ping,
    Disconnect,
}

/// The codec of one connection, which starts before its CONNECT.
pub(crate) struct Frames {
    core: Connection<role::Server>,
    limit: usize,
    /// The next byte is the first of a packet.
    at_start: bool,
    connected: bool,
}

impl Frames {
    pub(crate) fn new(role: Role) -> Self {
        let limit = packet_limit(role);
        let size = u32::try_from(limit).expect("the limits are far below 4 GB");
        let options = ConnectionOptions::new().maximum_packet_size_recv(size);
        Self {
            core: Connection::with_options(Version::V3_1_1, options),
            limit,
            at_start: true,
            connected: false,
        }
    }

    /// Takes bytes up to the end of the first packet out of `data`; none when there is no whole packet yet.
    pub(crate) fn receive(&mut self, data: &mut &[u8]) -> Result<Option<Incoming>, FrameError> {
        if self.at_start {
            match data.first() {
                Some(first) => self.check_first(*first)?,
                None => return Ok(None),
            }
        }
        let mut cursor = Cursor::new(*data);
        let events = self.core.recv(&mut cursor);
        let taken = usize::try_from(cursor.position()).expect("a position in a slice");
        *data = data.get(taken..).unwrap_or_default();
        // Every whole packet makes an event, and nothing else does.
        self.at_start = !events.is_empty();
        let mut incoming = None;
        for event in events {
            match event {
                GenericEvent::NotifyError(error) => return Err(self.explain(error)),
                GenericEvent::NotifyPacketReceived(packet) => incoming = Some(read(packet)?),
                // The keep-alive timer is the session's, a close comes with an error, and what the library
                // would send by itself are refusals, which are the session's too.
                GenericEvent::RequestTimerReset { .. }
                | GenericEvent::RequestTimerCancel(_)
                | GenericEvent::NotifyPacketIdReleased(_)
                | GenericEvent::RequestSendPacket { .. }
                | GenericEvent::RequestClose => {}
            }
        }
        if let Some(Incoming::Connect(connect)) = &incoming {
            check_connect(connect)?;
            self.connected = true;
        }
        Ok(incoming)
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
            5..=7 => Err(FrameError::ExactlyOnce),
            // SUBSCRIBE and UNSUBSCRIBE
            8 | 10 if flags == 0b0010 => Ok(()),
            1 | 4 | 12 | 14 if flags == 0 => Ok(()),
            1 | 4 | 8 | 10 | 12 | 14 => Err(FrameError::Flags(kind)),
            _ => Err(FrameError::Type(kind)),
        }
    }

    fn explain(&self, error: MqttError) -> FrameError {
        match error {
            MqttError::PacketTooLarge => FrameError::TooLarge(self.limit),
            MqttError::UnsupportedProtocolVersion => FrameError::ProtocolLevel,
            error => FrameError::Malformed(error),
        }
    }

    /// The answer to a CONNECT.
    pub(crate) fn connack(&mut self, code: ConnectReturnCode, out: &mut Vec<u8>) {
        let connack = Connack::builder()
            .session_present(false)
            .return_code(code)
            .build()
            .expect("a CONNACK with both fields");
        if code == ConnectReturnCode::Accepted {
            self.send(connack.into(), out);
        } else {
            // The library may have given up on this connection already; the answer is owed all the same.
            out.extend_from_slice(&connack.to_continuous_buffer());
        }
    }

    pub(crate) fn puback(&mut self, packet_id: u16, out: &mut Vec<u8>) {
        let puback = GenericPuback::builder().packet_id(packet_id).build();
        self.send(
            puback.expect("packet ids are checked on receipt").into(),
            out,
        );
    }

    pub(crate) fn suback(&mut self, packet_id: u16, codes: Vec<Option<Qos>>, out: &mut Vec<u8>) {
        let codes = codes.into_iter().map(|granted| match granted {
            Some(Qos::AtMostOnce) => SubackReturnCode::SuccessMaximumQos0,
            Some(_) => SubackReturnCode::SuccessMaximumQos1,
            None => SubackReturnCode::Failure,
        });
        let suback = GenericSuback::builder()
            .packet_id(packet_id)
            .return_codes(codes.collect())
            .build();
        self.send(
            suback.expect("packet ids are checked on receipt").into(),
            out,
        );
    }

    pub(crate) fn unsuback(&mut self, packet_id: u16, out: &mut Vec<u8>) {
        let unsuback = GenericUnsuback::builder().packet_id(packet_id).build();
        self.send(
            unsuback.expect("packet ids are checked on receipt").into(),
            out,
        );
    }

    pub(crate) fn pingresp(&mut self, out: &mut Vec<u8>) {
        self.send(Pingresp::new().into(), out);
    }

    /// Delivers a message. False when all 65,535 packet ids are in use.
    pub(crate) fn publish(
        &mut self,
        message: &Message,
        qos: Qos,
        retain: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut publish = GenericPublish::builder()
            .topic_name(message.topic.to_string())
            .expect("a topic is a valid MQTT string")
            .retain(retain)
            .payload(std::sync::Arc::clone(&message.payload));
        match qos {
            Qos::AtMostOnce => publish = publish.qos(WireQos::AtMostOnce),
            Qos::AtLeastOnce | Qos::ExactlyOnce => {
                let Ok(id) = self.core.acquire_packet_id() else {
                    return false;
                };
                publish = publish.qos(WireQos::AtLeastOnce).packet_id(id);
            }
        }
        let publish = publish.build();
        self.send(publish.expect("topic, QoS and packet id fit").into(), out);
        true
    }

    fn send(&mut self, packet: GenericPacket<u16>, out: &mut Vec<u8>) {
        for event in self.core.send(packet) {
            if let GenericEvent::RequestSendPacket { packet, .. } = event {
                out.extend_from_slice(&packet.to_continuous_buffer());
            }
        }
    }
}

fn read(packet: GenericPacket<u16>) -> Result<Incoming, FrameError> {
    let id = |id: u16| {
        if id == 0 {
            Err(FrameError::PacketId)
        } else {
            Ok(())
        }
    };
    match packet {
        GenericPacket::V3_1_1Connect(packet) => Ok(Incoming::Connect(packet)),
        GenericPacket::V3_1_1Publish(packet) => {
            packet.packet_id().map_or(Ok(()), id)?;
            Ok(Incoming::Publish(packet))
        }
        // The library has checked that the packet id was ours.
        GenericPacket::V3_1_1Puback(_) => Ok(Incoming::Acknowledged),
        GenericPacket::V3_1_1Subscribe(packet) => {
            id(packet.packet_id())?;
            Ok(Incoming::Subscribe(packet))
        }
        GenericPacket::V3_1_1Unsubscribe(packet) => {
            id(packet.packet_id())?;
            Ok(Incoming::Unsubscribe(packet))
        }
        GenericPacket::V3_1_1Pingreq(_) => Ok(Incoming::Ping),
        GenericPacket::V3_1_1Disconnect(_) => Ok(Incoming::Disconnect),
        other => Err(FrameError::Type(other.packet_type() as u8)),
    }
}

/// Sections 3.1.2.3 to 3.1.2.6: a reserved bit of zero, and no will QoS or will retain without a will.
fn check_connect(connect: &Connect) -> Result<(), FrameError> {
    // The library gives the flags one by one, without the reserved bit and a will QoS of 3.
    let bytes = connect.to_continuous_buffer();
    let header = bytes[1..]
        .iter()
        .take_while(|byte| **byte & 0x80 != 0)
        .count()
        + 2;
    let flags = *bytes.get(header + 7).ok_or(FrameError::ConnectFlags)?;
    let (will, will_qos, will_retain) = (flags & 0x04 != 0, (flags >> 3) & 0x03, flags & 0x20 != 0);
    if flags & 0x01 != 0 || will_qos == 3 || (!will && (will_qos != 0 || will_retain)) {
        return Err(FrameError::ConnectFlags);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const CONNECT: &[u8] = &[
        0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 2, b'm', b'e',
    ];

    fn first(bytes: &[u8]) -> Result<Option<Incoming>, FrameError> {
        Frames::new(Role::Agent).receive(&mut &*bytes)
    }

    fn after_connect(bytes: &[u8]) -> Result<Option<Incoming>, FrameError> {
        let mut frames = Frames::new(Role::Agent);
        frames.receive(&mut &*CONNECT).unwrap();
        frames.connack(ConnectReturnCode::Accepted, &mut Vec::new());
        frames.receive(&mut &*bytes)
    }

    #[test]
    fn a_connect_in_pieces_is_one() {
        let mut frames = Frames::new(Role::Agent);
        let (last, head) = CONNECT.split_last().unwrap();
        for byte in head {
            assert!(frames.receive(&mut [*byte].as_slice()).unwrap().is_none());
        }
        let whole = frames.receive(&mut [*last].as_slice()).unwrap();
        assert!(matches!(whole, Some(Incoming::Connect(connect)) if connect.client_id() == "me"));
    }

    #[test]
    fn nothing_comes_before_a_connect_and_no_second_one_after() {
        assert_eq!(first(&[0xc0, 0]).unwrap_err(), FrameError::NotConnect);
        assert_eq!(first(&[0x30, 0]).unwrap_err(), FrameError::NotConnect);
        assert_eq!(
            after_connect(CONNECT).unwrap_err(),
            FrameError::SecondConnect
        );
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_a_body_is_there() {
        let announced = [0x30, 0xff, 0xff, 0xff, 0x7f];
        let limit = packet_limit(Role::Agent);
        assert_eq!(
            after_connect(&announced).unwrap_err(),
            FrameError::TooLarge(limit)
        );
        let endless = [0x30, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(
            after_connect(&endless),
            Err(FrameError::Malformed(_))
        ));
    }

    #[test]
    fn wrong_flags_and_types_are_refused() {
        assert_eq!(after_connect(&[0x80, 0]).unwrap_err(), FrameError::Flags(8));
        assert_eq!(
            after_connect(&[0xc1, 0]).unwrap_err(),
            FrameError::Flags(12)
        );
        assert_eq!(after_connect(&[0x20, 0]).unwrap_err(), FrameError::Type(2));
        assert_eq!(after_connect(&[0xf0, 0]).unwrap_err(), FrameError::Type(15));
        assert_eq!(
            after_connect(&[0x62, 2, 0, 1]).unwrap_err(),
            FrameError::ExactlyOnce
        );
        // A PUBACK for nothing, a publish with QoS 1 and packet id 0, one with QoS 3.
        assert!(after_connect(&[0x40, 2, 0, 9]).is_err());
        assert_eq!(
            after_connect(&[0x32, 5, 0, 1, b'a', 0, 0]).unwrap_err(),
            FrameError::PacketId
        );
        assert!(after_connect(&[0x36, 5, 0, 1, b'a', 0, 1]).is_err());
        // A topic that is no UTF-8.
        assert!(after_connect(&[0x30, 4, 0, 2, 0xff, 0xfe]).is_err());
    }

    #[test]
    fn a_connect_is_checked_to_the_bit() {
        let with = |at: usize, byte: u8| {
            let mut bytes = CONNECT.to_vec();
            bytes[at] = byte;
            first(&bytes).unwrap_err()
        };
        assert_eq!(with(8, 5), FrameError::ProtocolLevel);
        assert_eq!(with(8, 3), FrameError::ProtocolLevel);
        assert_eq!(with(9, 0b0000_0011), FrameError::ConnectFlags);
        assert_eq!(with(9, 0b0010_0010), FrameError::ConnectFlags);
        assert_eq!(with(9, 0b0000_1010), FrameError::ConnectFlags);
        assert!(matches!(with(4, b'X'), FrameError::Malformed(_)));
    }
}
