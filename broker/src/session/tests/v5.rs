//! What a session does on MQTT 5 alone, byte by byte.

use super::*;
use crate::message::Extras;

/// A CONNECT of MQTT 5: clean start, keep-alive 60 s, these properties.
pub(super) fn connect_5(id: &str, properties: &[u8]) -> Vec<u8> {
    let (len, id_len) = (properties.len(), id.len());
    let head = [0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60];
    let lens = [u8::try_from(len).unwrap()];
    let id_len = u16::try_from(id_len).unwrap().to_be_bytes();
    let body = [&head[..], &lens, properties, &id_len, id.as_bytes()].concat();
    [&[0x10, u8::try_from(body.len()).unwrap()][..], &body].concat()
}

/// A PUBLISH of MQTT 3.1.1 at QoS 1 or 2 as MQTT 5 has it, without properties.
pub(super) fn publish_5(packet: &[u8]) -> Vec<u8> {
    let at = 1 + packet[1..]
        .iter()
        .position(|byte| byte & 0x80 == 0)
        .unwrap();
    let body = &packet[at + 1..];
    let head = 2 + usize::from(u16::from_be_bytes([body[0], body[1]])) + 2;
    let body = [&body[..head], &[0], &body[head..]].concat();
    let (low, high) = (body.len() % 128, body.len() / 128);
    assert!(high < 128);
    let len = [
        0x80 | u8::try_from(low).unwrap(),
        u8::try_from(high).unwrap(),
    ];
    [&packet[..1], &len, &body].concat()
}

/// The reason codes of PUBACKs.
pub(super) fn pubacks(mut output: &[u8]) -> Vec<u8> {
    let mut codes = Vec::new();
    while let [0x40, len, rest @ ..] = output {
        let (packet, behind) = rest.split_at(usize::from(*len));
        codes.push(packet.get(2).copied().unwrap_or_default());
        output = behind;
    }
    assert!(output.is_empty());
    codes
}

fn open_5(role: Role, id: &str) -> Session {
    let mut session = session(role);
    session.receive(&connect_5(id, &[]));
    assert!(matches!(&session.take_effects()[..], [Effect::Claim(_)]));
    session.claimed();
    session.output().clear();
    session
}

/// Grants a subscription at QoS 2 on the status of web-1, with these options.
fn subscribe(session: &mut Session, options: u8, snapshot: Snapshot) {
    let len = u8::try_from(STATUS.len()).unwrap();
    let packet = [
        &[0x82, len + 6, 0, 1, 0, 0, len][..],
        STATUS.as_bytes(),
        &[options],
    ]
    .concat();
    session.receive(&packet);
    let Some(Effect::Subscribe(id, requests)) = session.take_effects().into_iter().next() else {
        panic!("no subscription");
    };
    session.subscribed(id, requests, vec![snapshot]);
}

fn with_expiry(n: u64, qos: Qos, expires_at_ms: u64) -> Arc<Message> {
    Arc::new(Message {
        qos,
        extras: Some(Arc::new(Extras {
            properties: Box::default(),
            expires_at_ms: Some(expires_at_ms),
        })),
        ..Message::clone(&message(n))
    })
}

#[test]
fn what_is_left_of_an_expiry_is_told_and_what_has_expired_is_not_begun() {
    let mut session = open_5(Role::Monitor, "web-1.1");
    subscribe(&mut session, 2, Snapshot::default());
    session.output().clear();
    // The clock of these tests stands at 1,000,000 ms.
    for (n, expires) in [(1, 1_000_000), (2, 1_000_001), (3, 1_005_000)] {
        session.on(Event::Message(
            with_expiry(n, Qos::AtLeastOnce, expires),
            Via::Direct,
        ));
    }
    let output = session.output().clone();
    let expiries: Vec<u8> = output
        .windows(6)
        .filter(|bytes| bytes[..5] == [5, 2, 0, 0, 0])
        .map(|bytes| bytes[5])
        .collect();
    assert_eq!(expiries, [1, 5], "rounded up, and one is left out");
    // What was begun is sent again however late it is.
    let mut kept = session.into_remains().kept;
    Arc::make_mut(&mut kept.policy).clock = || 2_000_000;
    let mut next = Session::new(Arc::clone(&kept.peer), Arc::clone(&kept.policy), 2);
    let mut connect = connect_5("web-1.1", &[]);
    // No clean start.
    connect[9] = 0;
    next.receive(&connect);
    next.resume(kept);
    next.claimed();
    let again = next.output().iter().filter(|byte| **byte == 0x3a).count();
    assert_eq!(again, 2);
}

#[test]
fn parts_of_qos_2_for_nothing_are_answered_so() {
    let mut session = open_5(Role::Monitor, "web-1.1");
    session.receive(&[0x62, 2, 0, 9]);
    session.receive(&[0x50, 2, 0, 9]);
    assert_eq!(
        session.output()[..],
        [0x70, 4, 0, 9, 0x92, 0, 0x62, 4, 0, 9, 0x92, 0]
    );
    assert_eq!(session.ended(), None);
    session.receive(&[0x70, 2, 0, 9]);
    assert_eq!(
        session.ended(),
        Some(&Ended::Protocol(FrameError::PacketId))
    );
}

#[test]
fn a_client_that_refuses_a_message_is_done_with_it() {
    let mut session = open_5(Role::Monitor, "web-1.1");
    subscribe(&mut session, 2, Snapshot::default());
    session.output().clear();
    for n in 1..=2 {
        let mut message = Message::clone(&message(n));
        message.qos = if n == 1 {
            Qos::AtLeastOnce
        } else {
            Qos::ExactlyOnce
        };
        session.on(Event::Message(Arc::new(message), Via::Direct));
    }
    session.output().clear();
    session.receive(&[0x40, 3, 0, 1, 0x97]);
    session.receive(&[0x50, 3, 0, 2, 0x97]);
    assert_eq!(session.ended(), None);
    assert!(
        session.output().is_empty(),
        "no PUBREL for what was refused"
    );
    assert_eq!(session.kept.inflight.len(), 0);
}

#[test]
fn a_subscription_that_is_replaced_loses_nothing() {
    let mut session = open_5(Role::Monitor, "web-1.1");
    subscribe(&mut session, 1, Snapshot::default());
    // Replaced without what is retained, while a message is on its way to it.
    let later = Snapshot {
        messages: vec![message(7)],
        as_of: Commit::new(7),
    };
    subscribe(&mut session, 0b0010_0001, later);
    session.output().clear();
    session.on(Event::Message(message(7), Via::Direct));
    assert_eq!(session.kept.outbox.len(), 1);
}

#[test]
fn nobody_says_goodbye_before_hello() {
    for (claimed, first) in [(false, None), (true, Some(0xe0))] {
        let mut session = session(Role::Monitor);
        session.receive(&connect_5("web-1.1", &[]));
        if claimed {
            session.claimed();
            session.output().clear();
        }
        session.end(Ended::Stopping);
        session.say_goodbye();
        assert_eq!(session.output().first().copied(), first);
    }
}

#[test]
fn a_goodbye_is_said_to_who_can_hear_it() {
    let ended = [
        (Ended::Stopping, true),
        (Ended::KeepAlive(Duration::from_secs(1)), true),
        (Ended::Disconnected, false),
        (Ended::Parted, false),
        (Ended::Lost("broken".to_owned()), false),
    ];
    for (reason, said) in ended {
        let mut session = open_5(Role::Monitor, "web-1.1");
        session.end(reason.clone());
        session.say_goodbye();
        assert_eq!(!session.output().is_empty(), said, "{reason}");
    }
}
