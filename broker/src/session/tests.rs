use bytes::BytesMut;
use hoist_certs::Role;
use hoist_protocol::{FleetName, Topic};
use proptest::prelude::*;
use rumqttc::{
    Connect as ConnectPacket, LastWill, Packet, Publish as PublishPacket, QoS,
    Subscribe as SubscribePacket,
};

use crate::guard::Access;
use crate::guard::tests::peer;
use crate::inbox::Via;
use crate::store::{Outcome, Snapshot};

use super::delivery::OUTPUT_LEN;
use super::*;

mod model;
mod refused;
mod v5;

fn policy() -> Arc<Policy> {
    Arc::new(Policy {
        rules: Rules::default(),
        deploys: Arc::new(Deploys::unsigned()),
        limits: SessionLimits::default(),
        clock: || 1_000_000,
    })
}

fn session(role: Role) -> Session {
    Session::new(Arc::new(peer(role, "prod", "web-1")), policy(), 1)
}

fn bytes(packet: &Packet) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, usize::MAX).unwrap();
    bytes.to_vec()
}

fn connect(id: &str) -> ConnectPacket {
    let mut connect = ConnectPacket::new(id);
    connect.keep_alive = 60;
    connect
}

/// A session after its CONNACK.
fn open(role: Role, id: &str) -> Session {
    let mut session = session(role);
    session.receive(&bytes(&Packet::Connect(connect(id))));
    assert!(
        matches!(&session.take_effects()[..], [Effect::Claim(claim)] if !claim.outlives),
        "{:?}",
        session.ended()
    );
    session.claimed();
    session.output().clear();
    session
}

fn publish(topic: &str, qos: QoS, retain: bool, payload: &str) -> Vec<u8> {
    let mut publish = PublishPacket::new(topic, qos, payload);
    publish.retain = retain;
    publish.pkid = u16::from(qos != QoS::AtMostOnce);
    bytes(&Packet::Publish(publish))
}

fn packets(session: &mut Session) -> Vec<Packet> {
    let mut output = BytesMut::from(&session.output()[..]);
    session.output().clear();
    std::iter::from_fn(|| Packet::read(&mut output, usize::MAX).ok()).collect()
}

const STATUS: &str = "hoist/v1/prod/web-1/status";

#[test]
fn nothing_is_taken_between_connect_and_connack() {
    let mut session = session(Role::Agent);
    let connect = bytes(&Packet::Connect(connect("web-1")));
    let both = [
        connect.clone(),
        publish(STATUS, QoS::AtLeastOnce, true, "{}"),
    ]
    .concat();
    assert_eq!(session.receive(&both), connect.len());
    assert_eq!(session.receive(&both[connect.len()..]), 0);
    session.claimed();
    assert_eq!(
        session.receive(&both[connect.len()..]),
        both.len() - connect.len()
    );
}

#[test]
fn a_publish_is_acknowledged_when_the_store_says_so_and_not_before() {
    let mut session = open(Role::Agent, "web-1");
    session.receive(&publish(STATUS, QoS::AtLeastOnce, true, "{}"));
    let effects = session.take_effects();
    let [Effect::Publish(Admitted::Store(_), ticket)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(packets(&mut session), []);
    session.settled(*ticket, Outcome::Retained);
    assert!(matches!(&packets(&mut session)[..], [Packet::PubAck(ack)] if ack.pkid == 1));
}

#[test]
fn a_client_that_sends_too_much_at_once_is_read_no_further() {
    let mut session = open(Role::Agent, "web-1");
    let many = publish(STATUS, QoS::AtLeastOnce, true, "{}")
        .repeat(SessionLimits::default().unsettled + 1);
    let taken = session.receive(&many);
    assert_eq!(
        taken,
        many.len() / (SessionLimits::default().unsettled + 1) * SessionLimits::default().unsettled
    );
    assert!(!session.wants_input());
    assert_eq!(session.ended(), None);
    for effect in session.take_effects() {
        let Effect::Publish(_, ticket) = effect else {
            panic!("{effect:?}");
        };
        session.settled(ticket, Outcome::Retained);
    }
    assert!(session.wants_input());
}

fn message(n: u64) -> Arc<Message> {
    Arc::new(Message {
        topic: Topic::parse(STATUS).unwrap(),
        payload: Arc::from(n.to_string().as_bytes()),
        qos: Qos::AtLeastOnce,
        commit: Some(Commit::new(n)),
        author: Default::default(),
        extras: None,
    })
}

/// A monitor that has subscribed to the status of web-1.
fn watching(qos: QoS) -> Session {
    let mut session = open(Role::Monitor, "web-1.1");
    let mut subscribe = SubscribePacket::new(STATUS, qos);
    subscribe.pkid = 7;
    session.receive(&bytes(&Packet::Subscribe(subscribe)));
    let effects = session.take_effects();
    let Some(Effect::Subscribe(7, requests)) = effects.into_iter().next() else {
        panic!("no subscription");
    };
    session.subscribed(7, requests, vec![Snapshot::default()]);
    session.output().clear();
    session
}

#[test]
fn a_client_that_acknowledges_nothing_has_a_bounded_number_in_flight() {
    let mut session = watching(QoS::AtLeastOnce);
    for n in 1..=1000 {
        session.on(Event::Message(message(n), Via::Direct));
    }
    let first = packets(&mut session);
    assert_eq!(first.len(), SessionLimits::default().inflight);
    assert!(session.has_backlog());
    let Packet::Publish(publish) = &first[0] else {
        panic!("{:?}", first[0]);
    };
    let ack = Packet::PubAck(rumqttc::PubAck::new(publish.pkid));
    session.receive(&bytes(&ack));
    assert!(session.take_progress());
    assert_eq!(
        packets(&mut session).len(),
        1,
        "an acknowledgement makes room for one"
    );
    session.receive(&bytes(&Packet::PubAck(rumqttc::PubAck::new(9999))));
    assert!(
        session.ended().is_some(),
        "an acknowledgement for nothing is a breach"
    );
}

#[test]
fn what_is_written_at_once_is_bounded() {
    let mut session = watching(QoS::AtMostOnce);
    for n in 1..=1000 {
        let mut message = Message::clone(&message(n));
        message.payload = Arc::from(vec![b'x'; 16 * 1024]);
        session.on(Event::Message(Arc::new(message), Via::Direct));
    }
    assert!(session.output().len() < OUTPUT_LEN + 17 * 1024);
}

#[test]
fn what_was_missed_is_read_from_the_store_and_comes_once() {
    let mut session = open(Role::Monitor, "web-1.1");
    let mut subscribe = SubscribePacket::new("hoist/v1/prod/+/status", QoS::AtMostOnce);
    subscribe.pkid = 7;
    session.receive(&bytes(&Packet::Subscribe(subscribe)));
    let Some(Effect::Subscribe(7, requests)) = session.take_effects().into_iter().next() else {
        panic!("no subscription");
    };
    session.subscribed(7, requests, vec![Snapshot::default()]);
    session.output().clear();
    session.on(Event::Gap(Channel::Status, Commit::new(3)));
    let effects = session.take_effects();
    let [Effect::Refresh(Channel::Status, since)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(*since, Commit::new(3));
    let changes = Snapshot {
        messages: vec![message(5)],
        as_of: Commit::new(5),
    };
    session.refreshed(Channel::Status, changes);
    assert_eq!(packets(&mut session).len(), 1);
    session.on(Event::Message(message(5), Via::Router));
    assert_eq!(packets(&mut session), [], "it came with what was read");
    session.on(Event::Message(message(6), Via::Router));
    assert_eq!(packets(&mut session).len(), 1);
}

fn will(session: Session) -> Option<Admitted> {
    session.into_remains().will.map(|will| will.publication(0))
}

#[test]
fn a_will_is_left_unless_the_client_said_goodbye() {
    let with_will = || {
        let mut session = session(Role::Agent);
        let mut connect = connect("web-1");
        let topic = "hoist/v1/prod/web-1/presence";
        connect.last_will = Some(LastWill::new(topic, "offline", QoS::AtLeastOnce, true));
        session.receive(&bytes(&Packet::Connect(connect)));
        session
    };
    let mut lost = with_will();
    lost.claimed();
    lost.end(Ended::Lost("broken pipe".to_owned()));
    assert!(matches!(will(lost), Some(Admitted::Store(will)) if &*will.payload == b"offline"));
    let mut goodbye = with_will();
    goodbye.claimed();
    goodbye.receive(&bytes(&Packet::Disconnect));
    assert!(will(goodbye).is_none());
    let mut never_open = with_will();
    never_open.end(Ended::Stopping);
    assert!(will(never_open).is_none());
}

#[test]
fn keep_alive_is_one_and_a_half_times() {
    let session = open(Role::Agent, "web-1");
    assert_eq!(session.keep_alive(), Some(Duration::from_secs(90)));
}

fn a_packet() -> impl Strategy<Value = Vec<u8>> {
    let topic =
        "hoist/v1/(prod|test)/(web-1|db-1)/(deploy|status|presence|log|echo)|[a-z/+#$]{0,9}";
    let qos = prop_oneof![
        Just(QoS::AtMostOnce),
        Just(QoS::AtLeastOnce),
        Just(QoS::ExactlyOnce)
    ];
    prop_oneof![
        "web-1|web-1.a|[a-z.]{0,5}".prop_map(|id| bytes(&Packet::Connect(connect(&id)))),
        (topic, qos, any::<bool>(), ".{0,20}")
            .prop_map(|(topic, qos, retain, payload)| publish(&topic, qos, retain, &payload)),
        "hoist/v1/prod/(web-1|\\+)/(status|\\+|#)|[a-z/+#$]{1,9}".prop_map(|filter| {
            let mut subscribe = SubscribePacket::new(filter, QoS::AtLeastOnce);
            subscribe.pkid = 3;
            bytes(&Packet::Subscribe(subscribe))
        }),
        Just(bytes(&Packet::PingReq)),
        any::<u16>().prop_map(|id| bytes(&Packet::PubAck(rumqttc::PubAck::new(id)))),
        Just(bytes(&Packet::Disconnect)),
        prop::collection::vec(any::<u8>(), 0..30),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_it_panic_or_say_more_than_they_may(
        packets in prop::collection::vec(a_packet(), 0..12),
        flip in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        cut in 1..40_usize,
        role in prop::sample::select(vec![Role::Agent, Role::Publisher, Role::Monitor, Role::Admin]),
    ) {
        let mut stream = packets.concat();
        if let (Some((at, byte)), false) = (flip, stream.is_empty()) {
            let at = at.index(stream.len());
            stream[at] ^= byte;
        }
        let mut session = session(role);
        let me = session.peer().clone();
        let mut waiting = Vec::new();
        for chunk in stream.chunks(cut) {
            waiting.extend_from_slice(chunk);
            loop {
                let taken = session.receive(&waiting);
                waiting.drain(..taken);
                let effects = session.take_effects();
                if effects.is_empty() && (taken == 0 || waiting.is_empty()) {
                    break;
                }
                for effect in effects {
                    match effect {
                        Effect::Claim(claim) => {
                            let id = claim.client_id;
                            prop_assert!(id == "web-1" || id.starts_with("web-1."), "{}", id);
                            session.claimed();
                        }
                        Effect::Publish(admitted, ticket) => {
                            let (topic, empty) = match &admitted {
                                Admitted::Store(it) => (&it.topic, it.payload.is_empty()),
                                Admitted::Relay(it) => (&it.topic, false),
                            };
                            let access = if empty { Access::Clear } else { Access::Write };
                            prop_assert!(Rules::default().allow(&me, access, topic));
                            session.settled(ticket, Outcome::Retained);
                        }
                        Effect::Subscribe(id, requests) => {
                            let granted = requests.iter().filter(|r| r.granted.is_ok()).count();
                            let snapshots = (0..granted).map(|_| Snapshot::default()).collect();
                            session.subscribed(id, requests, snapshots);
                        }
                        Effect::Refused(_) | Effect::Unwatch(_) | Effect::UnwatchAll | Effect::Refresh(..) => {}
                    }
                }
            }
        }
        if session.ended().is_some() {
            prop_assert!(!session.wants_input());
            prop_assert_eq!(session.receive(&bytes(&Packet::PingReq)), 0);
        }
        prop_assert_eq!(&session.peer().fleet, &FleetName::new("prod").unwrap());
    }
}

#[test]
fn nothing_after_a_goodbye_counts() {
    let mut session = open(Role::Agent, "web-1");
    let publish = publish(STATUS, QoS::AtLeastOnce, true, "{}");
    let both = [bytes(&Packet::Disconnect), publish].concat();
    assert_eq!(session.receive(&both), 2);
    assert!(session.take_effects().is_empty());
    assert_eq!(session.ended(), Some(&Ended::Disconnected));
}

#[test]
fn on_mqtt_3_what_cannot_be_stored_ends_the_connection() {
    let mut session = open(Role::Agent, "web-1");
    session.receive(&publish(STATUS, QoS::AtLeastOnce, true, "{}"));
    let Some(Effect::Publish(_, ticket)) = session.take_effects().into_iter().next() else {
        panic!("no publish");
    };
    session.settled(
        ticket,
        Outcome::Unavailable(crate::store::Unavailable::Disk),
    );
    assert!(matches!(session.ended(), Some(Ended::Unavailable(_))));
    session.say_goodbye();
    assert_eq!(packets(&mut session), [], "there is no word for it");
}

#[test]
fn qos_2_is_released_in_the_order_of_what_was_received() {
    let mut session = watching(QoS::ExactlyOnce);
    for n in 1..=3 {
        let mut message = Message::clone(&message(n));
        message.qos = Qos::ExactlyOnce;
        session.on(Event::Message(Arc::new(message), Via::Direct));
    }
    let ids: Vec<u16> = packets(&mut session)
        .iter()
        .map(|packet| match packet {
            Packet::Publish(publish) => publish.pkid,
            other => panic!("{other:?}"),
        })
        .collect();
    for id in [ids[1], ids[0], ids[1], ids[2]] {
        session.receive(&bytes(&Packet::PubRec(rumqttc::PubRec::new(id))));
    }
    let released: Vec<Packet> = [ids[1], ids[0], ids[1], ids[2]]
        .map(|id| Packet::PubRel(rumqttc::PubRel::new(id)))
        .into();
    assert_eq!(packets(&mut session), released, "again for who asks again");
    session.receive(&bytes(&Packet::PubComp(rumqttc::PubComp::new(ids[0]))));
    assert_eq!(session.ended(), None);
    session.receive(&bytes(&Packet::PubComp(rumqttc::PubComp::new(ids[0]))));
    assert!(session.ended().is_some(), "it was settled already");
}
