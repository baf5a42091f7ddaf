use mqtt_protocol_core::mqtt::result_code::MqttError;

use super::*;

const CONNECT: &[u8] = &[
    0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 2, b'm', b'e',
];

/// The same of MQTT 5, with an empty list of properties.
const CONNECT_5: &[u8] = &[
    0x10, 15, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 2, b'm', b'e',
];

fn first(bytes: &[u8]) -> Result<Option<Incoming>, FrameError> {
    Frames::new(Role::Agent).receive(&mut &*bytes)
}

fn connected(connect: &[u8]) -> Frames {
    let mut frames = Frames::new(Role::Agent);
    frames.receive(&mut &*connect).unwrap();
    frames
}

fn after_connect(bytes: &[u8]) -> Result<Option<Incoming>, FrameError> {
    connected(CONNECT).receive(&mut &*bytes)
}

fn after_connect_5(bytes: &[u8]) -> Result<Option<Incoming>, FrameError> {
    connected(CONNECT_5).receive(&mut &*bytes)
}

/// A CONNECT of MQTT 5 with these properties.
fn connect_with(properties: &[u8]) -> Result<Connect, FrameError> {
    let len = u8::try_from(properties.len()).unwrap();
    let mut bytes = CONNECT_5.to_vec();
    bytes[1] += len;
    bytes[12] = len;
    bytes.splice(13..13, properties.iter().copied());
    match first(&bytes)? {
        Some(Incoming::Connect(connect)) => Ok(*connect),
        other => panic!("{other:?}"),
    }
}

/// A PUBLISH of MQTT 5 at QoS 0 on `a` with these properties.
fn publish_with(properties: &[u8]) -> Vec<u8> {
    let len = u8::try_from(properties.len()).unwrap();
    [&[0x30, 4 + len, 0, 1, b'a', len], properties].concat()
}

#[test]
fn a_connect_in_pieces_is_one() {
    let mut frames = Frames::new(Role::Agent);
    let (last, head) = CONNECT.split_last().unwrap();
    for byte in head {
        assert!(frames.receive(&mut [*byte].as_slice()).unwrap().is_none());
        assert_eq!(frames.partial(), Some(0));
    }
    let whole = frames.receive(&mut [*last].as_slice()).unwrap();
    assert!(matches!(whole, Some(Incoming::Connect(connect)) if connect.client_id == "me"));
    assert_eq!(frames.partial(), None);
}

#[test]
fn nothing_comes_before_a_connect_and_no_second_one_after() {
    assert_eq!(first(&[0xc0, 0]).unwrap_err(), FrameError::NotConnect);
    assert_eq!(first(&[0x30, 0]).unwrap_err(), FrameError::NotConnect);
    let second = after_connect(CONNECT).unwrap_err();
    assert_eq!(second, FrameError::SecondConnect);
}

#[test]
fn a_length_above_the_limit_is_refused_before_a_body_is_there() {
    let limit = packet_limit(Role::Agent);
    for head in [
        &[0x30, 0xff, 0xff, 0xff, 0x7f][..],
        &[0x30, 0xff, 0xff, 0x03],
    ] {
        let refused = after_connect(head).unwrap_err();
        assert_eq!(refused, FrameError::TooLarge(limit));
    }
    let endless = after_connect(&[0x30, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
    assert_eq!(endless, FrameError::Length);
}

#[test]
fn wrong_flags_and_types_are_refused() {
    for (bytes, expected) in [
        (&[0x80, 0][..], FrameError::Flags(8)),
        (&[0xc1, 0], FrameError::Flags(12)),
        (&[0x60, 2, 0, 1], FrameError::Flags(6)),
        (&[0x20, 0], FrameError::Type(2)),
        (&[0x90, 0], FrameError::Type(9)),
        (&[0xf0, 0], FrameError::Type(15)),
        (&[0x00, 0], FrameError::Type(0)),
        // A publish with QoS 1 and packet id 0, and one of QoS 0 that was sent before.
        (&[0x32, 5, 0, 1, b'a', 0, 0], FrameError::PacketId),
        (&[0x38, 3, 0, 1, b'a'], FrameError::Flags(3)),
        (&[0x40, 2, 0, 0], FrameError::PacketId),
        (&[0x82, 6, 0, 0, 0, 1, b'a', 0], FrameError::PacketId),
        (&[0xa2, 5, 0, 0, 0, 1, b'a'], FrameError::PacketId),
        // QoS 3, a topic that is no UTF-8, bytes behind the end.
        (
            &[0x36, 5, 0, 1, b'a', 0, 1],
            FrameError::Malformed(MqttError::MalformedPacket),
        ),
        (
            &[0x30, 4, 0, 2, 0xff, 0xfe],
            FrameError::Malformed(MqttError::MalformedPacket),
        ),
        (
            &[0x40, 3, 0, 1, 0],
            FrameError::Malformed(MqttError::MalformedPacket),
        ),
        (
            &[0xc0, 1, 0],
            FrameError::Malformed(MqttError::MalformedPacket),
        ),
        (
            &[0xe0, 1, 0],
            FrameError::Malformed(MqttError::MalformedPacket),
        ),
        // A filter with QoS 3, with a reserved bit, and no filter at all.
        (
            &[0x82, 6, 0, 1, 0, 1, b'a', 3],
            FrameError::Malformed(MqttError::MalformedPacket),
        ),
        (
            &[0x82, 6, 0, 1, 0, 1, b'a', 4],
            FrameError::Protocol("a reserved bit beside a QoS"),
        ),
        (
            &[0x82, 2, 0, 1],
            FrameError::Malformed(MqttError::ProtocolError),
        ),
        (
            &[0xa2, 2, 0, 1],
            FrameError::Malformed(MqttError::ProtocolError),
        ),
    ] {
        assert_eq!(after_connect(bytes).unwrap_err(), expected, "{bytes:?}");
    }
}

#[test]
fn a_connect_is_checked_to_the_bit() {
    let with = |at: usize, byte: u8| {
        let mut bytes = CONNECT.to_vec();
        bytes[at] = byte;
        first(&bytes).unwrap_err()
    };
    assert_eq!(with(8, 6), FrameError::ProtocolLevel(6));
    assert_eq!(with(8, 3), FrameError::ProtocolLevel(3));
    assert_eq!(with(9, 0b0000_0011), FrameError::ConnectFlags);
    assert_eq!(with(9, 0b0010_0010), FrameError::ConnectFlags);
    assert_eq!(with(9, 0b0000_1010), FrameError::ConnectFlags);
    assert_eq!(with(9, 0b0001_1110), FrameError::ConnectFlags);
    assert_eq!(with(4, b'X'), FrameError::ProtocolName);
    assert_eq!(with(14, 0), FrameError::Text, "a NUL in the client id");
    // A password without a user name, which is not there either.
    assert!(matches!(with(9, 0b0100_0010), FrameError::Malformed(_)));
}

#[test]
fn a_connect_of_mqtt_5_says_what_the_client_takes() {
    let connect = connect_with(&[
        0x11, 0, 0, 0, 9, 0x21, 0, 7, 0x27, 0, 0, 1, 0, 0x22, 0, 0, 0x17, 0, 0x26, 0, 1, b'k', 0,
        1, b'v',
    ])
    .unwrap();
    assert_eq!((connect.session_expiry, connect.receive_maximum), (9, 7));
    assert_eq!(
        (connect.maximum_packet_size, connect.problem_information),
        (256, false)
    );
    let plain = connect_with(&[]).unwrap();
    assert_eq!((plain.session_expiry, plain.receive_maximum), (0, u16::MAX));
    assert_eq!(
        (plain.maximum_packet_size, plain.problem_information),
        (usize::MAX, true)
    );
    for (what, properties) in [
        ("a receive maximum of zero", &[0x21, 0, 0][..]),
        ("a packet size of zero", &[0x27, 0, 0, 0, 0]),
        ("one that comes twice", &[0x21, 0, 1, 0x21, 0, 1]),
        ("one of a PUBLISH", &[0x01, 1]),
        ("one that there is not", &[0x7f, 1]),
        ("one that is cut off", &[0x11, 0, 0]),
        ("a flag above one", &[0x17, 2]),
        ("a NUL", &[0x26, 0, 1, 0, 0, 1, b'v']),
    ] {
        assert!(connect_with(properties).is_err(), "{what}");
    }
}

#[test]
fn mqtt_5_takes_a_password_without_a_user_name() {
    let mut bytes = CONNECT_5.to_vec();
    bytes[1] += 3;
    bytes[9] |= 0x40;
    bytes.extend_from_slice(&[0, 1, b'p']);
    assert!(matches!(first(&bytes), Ok(Some(Incoming::Connect(_)))));
    *bytes.last_mut().unwrap() = 0;
    bytes[18] = 2;
    assert!(first(&bytes).is_err(), "a password that is cut off");
}

#[test]
fn a_topic_alias_stands_for_its_last_topic() {
    let mut frames = connected(CONNECT_5);
    let mut topic = |topic: &str, alias: u8| {
        let len = u8::try_from(topic.len()).unwrap();
        let head = [0x30, len + 6, 0, len];
        let bytes = [&head[..], topic.as_bytes(), &[3, 0x23, 0, alias]].concat();
        match frames.receive(&mut &bytes[..])? {
            Some(Incoming::Publish(publish)) => Ok(publish.topic),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(topic("", 1), Err(FrameError::TopicAlias));
    assert_eq!(topic("a", 1).as_deref(), Ok("a"));
    assert_eq!(topic("b", 16).as_deref(), Ok("b"));
    assert_eq!(topic("", 1).as_deref(), Ok("a"));
    assert_eq!(topic("c", 1).as_deref(), Ok("c"));
    assert_eq!(topic("", 1).as_deref(), Ok("c"));
    assert_eq!(topic("", 16).as_deref(), Ok("b"));
    assert!(topic("a", 0).is_err());
    assert_eq!(topic("a", 17), Err(FrameError::TopicAlias));
}

#[test]
fn what_is_passed_on_of_a_publish_is_what_is_meant_for_others() {
    // Payload format, expiry, content type, response topic, correlation data, two user properties.
    let passed_on = [
        &[0x01, 1][..],
        &[0x03, 0, 1, b't'],
        &[0x08, 0, 1, b'r'],
        &[0x09, 0, 1, 0xff],
        &[0x26, 0, 1, b'k', 0, 1, b'v'],
        &[0x26, 0, 1, b'k', 0, 1, b'w'],
    ]
    .concat();
    let all = [&[0x02, 0, 0, 0, 5, 0x23, 0, 1][..], &passed_on].concat();
    let received = after_connect_5(&publish_with(&all)).unwrap();
    let Some(Incoming::Publish(publish)) = received else {
        panic!("{received:?}");
    };
    assert_eq!(publish.said.properties, passed_on);
    assert_eq!(
        (publish.said.expiry, publish.topic_alias),
        (Some(5), Some(1))
    );
    for (what, properties) in [
        ("a subscription identifier", &[0x0b, 1][..]),
        ("one of a CONNECT", &[0x21, 0, 1]),
        ("one that comes twice", &[0x01, 1, 0x01, 1]),
        ("a payload format that there is not", &[0x01, 2]),
        ("a wildcard to respond to", &[0x08, 0, 1, b'#']),
        ("a NUL", &[0x03, 0, 1, 0]),
    ] {
        assert!(
            after_connect_5(&publish_with(properties)).is_err(),
            "{what}"
        );
    }
    assert!(
        after_connect_5(&[0x30, 3, 0, 1, b'a']).is_err(),
        "no properties at all"
    );
}

#[test]
fn properties_that_are_passed_on_are_bounded() {
    let property = [&[0x26, 0, 1, b'k', 0x0f, 0xff][..], &[b'v'; 0x0fff]].concat();
    let body = [&[0, 1, b'a', 0x85, 0x20][..], &property].concat();
    assert_eq!(body.len() - 5, 0x85 - 0x80 + 0x20 * 128);
    let bytes = [&[0x30, 0x8a, 0x20][..], &body].concat();
    let refused = after_connect_5(&bytes).unwrap_err();
    assert_eq!(refused, FrameError::Properties);
}

#[test]
fn a_goodbye_of_mqtt_5_says_what_becomes_of_will_and_session() {
    for (bytes, will, expiry) in [
        (&[0xe0, 0][..], false, None),
        (&[0xe0, 1, 0], false, None),
        (&[0xe0, 1, 4], true, None),
        (&[0xe0, 7, 0, 5, 0x11, 0, 0, 0, 9], false, Some(9)),
    ] {
        let received = after_connect_5(bytes).unwrap();
        let Some(Incoming::Disconnect {
            with_will,
            session_expiry,
        }) = received
        else {
            panic!("{received:?}");
        };
        assert_eq!((with_will, session_expiry), (will, expiry), "{bytes:?}");
    }
    assert!(
        after_connect_5(&[0xe0, 1, 1]).is_err(),
        "a reason that there is not"
    );
    let auth = after_connect_5(&[0xf0, 0]).unwrap_err();
    assert!(matches!(auth, FrameError::Protocol(_)));
}

/// A CONNECT of MQTT 3.1.1 with these flags and this payload.
fn connect_of(flags: u8, payload: &[u8]) -> Result<Connect, FrameError> {
    let len = u8::try_from(10 + payload.len()).unwrap();
    let head = [0x10, len, 0, 4, b'M', b'Q', b'T', b'T', 4, flags, 0, 60];
    match first(&[&head, payload].concat())? {
        Some(Incoming::Connect(connect)) => Ok(*connect),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_will_is_all_there_or_not_at_all() {
    let whole = [0, 2, b'm', b'e', 0, 1, b't', 0, 2, b'h', b'i'];
    let connect = connect_of(0b0010_1110, &whole).unwrap();
    let will = connect.will.unwrap();
    assert_eq!((will.topic.as_str(), &will.payload[..]), ("t", &b"hi"[..]));
    assert_eq!(
        (will.qos, will.retain),
        (crate::message::Qos::AtLeastOnce, true)
    );
    assert_eq!(connect.client_id, "me");
    assert!(connect_of(0b0010_1110, &whole[..7]).is_err(), "no message");
    assert!(connect_of(0b0010_1110, &whole[..4]).is_err(), "no topic");
    assert!(
        connect_of(0b0000_0010, &whole).is_err(),
        "a will that no flag tells of"
    );
    assert!(connect_of(0b0000_0010, &[]).is_err(), "no client id");
    let no_utf8 = [0, 2, b'm', b'e', 0, 1, 0xff, 0, 0];
    assert!(connect_of(0b0010_1110, &no_utf8).is_err());
}

#[test]
fn a_user_name_and_a_password_are_where_the_flags_say() {
    let both = [0, 2, b'm', b'e', 0, 1, b'u', 0, 1, b'p'];
    assert!(connect_of(0b1100_0010, &both).is_ok());
    assert!(connect_of(0b1000_0010, &both[..7]).is_ok());
    assert!(connect_of(0b1100_0010, &both[..7]).is_err(), "no password");
    assert!(connect_of(0b1100_0010, &both[..4]).is_err(), "no user name");
    assert!(
        connect_of(0b1000_0010, &both).is_err(),
        "a password that no flag tells of"
    );
    assert!(
        connect_of(0b0000_0010, &both).is_err(),
        "both that no flag tells of"
    );
    assert!(
        connect_of(0b0100_0010, &both[..7]).is_err(),
        "a password alone"
    );
    let no_utf8 = [0, 2, b'm', b'e', 0, 1, 0xff];
    assert!(connect_of(0b1000_0010, &no_utf8).is_err());
}

mod against_another_codec {
    use bytes::BytesMut;
    use hoist_protocol::Topic;
    use proptest::prelude::*;
    use rumqttc::v5::mqttbytes::v5;
    use std::sync::Arc;

    use super::*;
    use crate::message::{Author, Extras, Message, Qos};

    fn qos() -> impl Strategy<Value = Qos> {
        prop::sample::select(vec![Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce])
    }

    fn code() -> impl Strategy<Value = ReasonCode> {
        prop::sample::select(vec![
            ReasonCode::Success,
            ReasonCode::NotAuthorized,
            ReasonCode::QuotaExceeded,
            ReasonCode::ImplementationSpecific,
        ])
    }

    /// Frames of a client that takes packets of `largest` bytes.
    fn frames(protocol: Protocol, largest: usize) -> Frames {
        let mut frames = connected(match protocol {
            Protocol::V4 => CONNECT,
            Protocol::V5 => CONNECT_5,
        });
        frames.largest = largest;
        frames
    }

    fn read_4(bytes: &[u8]) -> rumqttc::Packet {
        let mut bytes = BytesMut::from(bytes);
        let packet = rumqttc::Packet::read(&mut bytes, usize::MAX).unwrap();
        assert!(bytes.is_empty(), "one packet");
        packet
    }

    fn read_5(bytes: &[u8]) -> v5::Packet {
        let mut bytes = BytesMut::from(bytes);
        let packet = v5::Packet::read(&mut bytes, None).unwrap();
        assert!(bytes.is_empty(), "one packet");
        packet
    }

    proptest! {
        #[test]
        fn a_message(
            qos in qos(),
            (retain, again) in any::<(bool, bool)>(),
            id in 1..u16::MAX,
            payload in prop::collection::vec(any::<u8>(), 0..300),
            expiry in prop::option::of(any::<u32>()),
            identifiers in prop::collection::vec(1..268_435_456_u32, 0..3),
            user in prop::option::of("[a-z]{1,5}"),
        ) {
            let properties = user.iter().flat_map(|value| {
                let len = u8::try_from(value.len()).unwrap();
                [&[0x26, 0, 1, b'k', 0, len][..], value.as_bytes()].concat()
            });
            let message = Message {
                topic: Topic::parse("hoist/v1/prod/web-1/status").unwrap(),
                payload: Arc::from(payload.clone()),
                qos,
                commit: None,
                author: Author::default(),
                extras: Some(Arc::new(Extras {
                    properties: properties.collect(),
                    expires_at_ms: None,
                })),
            };
            let packet_id = (qos != Qos::AtMostOnce).then_some(id);
            let outgoing = Outgoing {
                message: &message, qos, packet_id, retain, again, expiry, identifiers: &identifiers,
            };
            let mut out = Vec::new();
            prop_assert_eq!(frames(Protocol::V4, usize::MAX).publish(&outgoing, &mut out), Sent::Yes);
            let rumqttc::Packet::Publish(read) = read_4(&out) else { panic!("no PUBLISH") };
            prop_assert_eq!(read.topic, message.topic.to_string());
            prop_assert_eq!((read.retain, read.dup, read.qos as u8), (retain, again, qos.number()));
            prop_assert_eq!((&read.payload[..], read.pkid), (&payload[..], packet_id.unwrap_or(0)));

            let mut out = Vec::new();
            prop_assert_eq!(frames(Protocol::V5, usize::MAX).publish(&outgoing, &mut out), Sent::Yes);
            let v5::Packet::Publish(read) = read_5(&out) else { panic!("no PUBLISH") };
            prop_assert_eq!((&read.payload[..], read.pkid), (&payload[..], packet_id.unwrap_or(0)));
            let said = read.properties.unwrap_or_default();
            prop_assert_eq!(said.message_expiry_interval, expiry);
            let expected: Vec<usize> = identifiers.iter().map(|id| *id as usize).collect();
            prop_assert_eq!(said.subscription_identifiers, expected);
            let users: Vec<String> = said.user_properties.into_iter().map(|(_, value)| value).collect();
            prop_assert_eq!(users, Vec::from_iter(user));

            // It is sent to who takes exactly its size, and to nobody who takes less.
            let len = out.len();
            prop_assert_eq!(frames(Protocol::V5, len).publish(&outgoing, &mut Vec::new()), Sent::Yes);
            let mut nothing = Vec::new();
            prop_assert_eq!(frames(Protocol::V5, len - 1).publish(&outgoing, &mut nothing), Sent::TooLarge);
            prop_assert_eq!(nothing, Vec::<u8>::new());
        }

        #[test]
        fn an_answer_within_what_the_client_takes(
            code in code(),
            id in 1..u16::MAX,
            why in "\\PC{0,400}",
            largest in 1..600_usize,
        ) {
            let mut out = Vec::new();
            frames(Protocol::V5, largest)
                .acknowledge(Ack::Publish, id, code, Some(&why), &mut out);
            prop_assert!(out.len() <= largest);
            if largest >= 6 {
                let v5::Packet::PubAck(read) = read_5(&out) else { panic!("no PUBACK") };
                prop_assert_eq!((read.pkid, read.reason as u8 == 0), (id, code == ReasonCode::Success));
            }
            let mut out = Vec::new();
            frames(Protocol::V5, largest).disconnect(ReasonCode::ServerShuttingDown, &why, &mut out);
            prop_assert!(out.len() <= largest);
            if largest >= 4 {
                prop_assert!(matches!(read_5(&out), v5::Packet::Disconnect(_)));
            }
        }
    }

    #[test]
    fn what_is_sent_is_read_by_another_codec() {
        let (four, five) = (
            frames(Protocol::V4, usize::MAX),
            frames(Protocol::V5, usize::MAX),
        );
        let mut out = Vec::new();
        four.acknowledge(Ack::Release, 7, ReasonCode::Success, None, &mut out);
        assert_eq!(out, [0x62, 2, 0, 7]);
        let granted = || [Ok(Qos::ExactlyOnce), Err(ReasonCode::QuotaExceeded)].into_iter();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        four.suback(9, granted(), &mut old);
        five.suback(9, granted(), &mut new);
        assert_eq!(old, [0x90, 4, 0, 9, 2, 0x80]);
        assert_eq!(new, [0x90, 5, 0, 9, 0, 2, 0x97]);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let codes = || [ReasonCode::Success, ReasonCode::NoSubscriptionExisted].into_iter();
        four.unsuback(9, codes(), &mut old);
        five.unsuback(9, codes(), &mut new);
        assert_eq!(old, [0xb0, 2, 0, 9]);
        assert_eq!(new, [0xb0, 5, 0, 9, 0, 0, 0x11]);
        let mut old = Vec::new();
        four.disconnect(ReasonCode::ServerShuttingDown, "it stops", &mut old);
        assert_eq!(old, [0_u8; 0], "MQTT 3.1.1 lets no server say it");
        four.refuse(ReasonCode::NotAuthorized, "no", &mut old);
        assert_eq!(old, [0x20, 2, 0, 5]);
    }
}

#[test]
fn a_subscribe_of_mqtt_5_is_checked_to_the_bit() {
    let with = |properties: &[u8], filter: &str, options: u8| {
        let (len, properties_len) = (u8::try_from(filter.len()).unwrap(), properties.len());
        let head = [0x82, 0, 0, 1, u8::try_from(properties_len).unwrap()];
        let mut bytes = [
            &head[..],
            properties,
            &[0, len],
            filter.as_bytes(),
            &[options],
        ]
        .concat();
        bytes[1] = u8::try_from(bytes.len() - 2).unwrap();
        after_connect_5(&bytes)
    };
    assert!(with(&[], "a", 0b0010_1110).is_ok());
    assert!(with(&[0x0b, 0xff, 0xff, 0xff, 0x7f], "a", 0).is_ok());
    for (what, properties, filter, options) in [
        ("a reserved bit", &[][..], "a", 0b0100_0000),
        ("QoS 3", &[], "a", 3),
        ("retain handling 3", &[], "a", 0b0011_0000),
        (
            "no local on a shared subscription",
            &[],
            "$share/a/b",
            0b0000_0100,
        ),
        ("an identifier of zero", &[0x0b, 0], "a", 0),
        ("two identifiers", &[0x0b, 1, 0x0b, 2], "a", 0),
        ("a property of a PUBLISH", &[0x01, 1], "a", 0),
    ] {
        assert!(with(properties, filter, options).is_err(), "{what}");
    }
}
