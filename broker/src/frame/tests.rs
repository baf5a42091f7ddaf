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
