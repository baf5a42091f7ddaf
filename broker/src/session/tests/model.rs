//! A model of what a client is owed, against the real session, over connections that come and go.
//!
//! The model knows nothing of packets: it says which messages a client has to get, at which QoS, whatever is lost
//! on the way. A client that acknowledges what it gets, over any number of connections, gets every message of
//! QoS 1 and 2, those of QoS 2 once, in the order in which they were published; what it publishes at QoS 2 is
//! published once.

use std::collections::{BTreeSet, VecDeque};

use rumqttc::{PubAck, PubComp, PubRec, PubRel};

use super::*;

/// What happens, in any order.
#[derive(Clone, Debug)]
enum Step {
    /// Somebody publishes, and the session is told.
    Publish(Qos),
    /// The client reads so many packets and answers them.
    Read(usize),
    /// The client reads so many, and the answers are lost with the connection.
    ReadAndLose(usize),
    /// The connection is lost.
    Lose,
    /// The client publishes a message of QoS 2.
    Send,
    /// The store settles what it has.
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let qos = prop::sample::select(vec![Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]);
    prop_oneof![
        6 => qos.prop_map(Step::Publish),
        4 => (1..6_usize).prop_map(Step::Read),
        1 => (1..6_usize).prop_map(Step::ReadAndLose),
        1 => Just(Step::Lose),
        2 => Just(Step::Send),
        2 => Just(Step::Settle),
    ]
}

/// A client as the standard wants it, and the session that it talks to.
struct World {
    session: Session,
    connections: u64,
    /// Publications that the store has.
    waiting: Vec<Ticket>,
    published: u64,
    /// Numbers of the messages that the client got, by QoS.
    got: Vec<(u64, Qos)>,
    /// Ids of messages of QoS 2 that the client has taken and not completed.
    taken: BTreeSet<u16>,
    /// What the client publishes: not yet received by the broker, then not yet completed.
    sending: VecDeque<(u16, String)>,
    releasing: VecDeque<u16>,
    sent: usize,
    /// Payloads that the session has passed on.
    passed_on: Vec<String>,
}

const LOG: &str = "hoist/v1/prod/web-1/log";
const ECHO: &str = "hoist/v1/prod/web-1/echo";

impl World {
    /// An agent of web-1, which listens to its own deployments.
    fn new() -> Self {
        let mut world = Self {
            session: session(Role::Agent),
            connections: 1,
            waiting: Vec::new(),
            published: 0,
            got: Vec::new(),
            taken: BTreeSet::new(),
            sending: VecDeque::new(),
            releasing: VecDeque::new(),
            sent: 0,
            passed_on: Vec::new(),
        };
        world.open();
        world.session.claimed();
        let mut subscribe = SubscribePacket::new("hoist/v1/prod/web-1/deploy", QoS::ExactlyOnce);
        subscribe.pkid = 60_000;
        world.send(&Packet::Subscribe(subscribe));
        world.session.output().clear();
        world
    }

    fn send(&mut self, packet: &Packet) {
        let bytes = bytes(packet);
        // A part at a time, as a network may do.
        for part in bytes.chunks(7) {
            let mut left = part;
            while !left.is_empty() {
                let taken = self.session.receive(left);
                left = &left[taken..];
                self.carry_out();
                if taken == 0 {
                    self.settle();
                }
            }
        }
        assert_eq!(self.session.ended(), None, "{packet:?}");
    }

    fn carry_out(&mut self) {
        for effect in self.session.take_effects() {
            match effect {
                Effect::Claim(claim) => assert!(claim.outlives && !claim.clean_start),
                Effect::Publish(Admitted::Relay(message), ticket) => {
                    let payload = String::from_utf8(message.payload.to_vec()).unwrap();
                    self.passed_on.push(payload);
                    self.waiting.push(ticket);
                }
                Effect::Subscribe(id, requests) => {
                    let snapshots = requests.iter().map(|_| Snapshot::default()).collect();
                    self.session.subscribed(id, requests, snapshots);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn settle(&mut self) {
        for ticket in std::mem::take(&mut self.waiting) {
            self.session.settled(ticket, Outcome::Retained);
        }
    }

    fn open(&mut self) {
        let mut connect = connect("web-1");
        connect.clean_session = false;
        self.session.receive(&bytes(&Packet::Connect(connect)));
        self.carry_out();
    }

    /// The connection is lost, and the client comes back on another one.
    fn reconnect(&mut self) {
        self.connections += 1;
        let peer = Arc::clone(self.session.peer());
        let policy = Arc::clone(&self.session.kept.policy);
        let next = Session::new(peer, policy, self.connections);
        let mut before = std::mem::replace(&mut self.session, next);
        before.end(Ended::Lost("pulled out".to_owned()));
        let remains = before.into_remains();
        assert!(remains.outlives);
        self.open();
        self.session.resume(remains.kept);
        self.session.claimed();
        let present = packets_of(&mut self.session, 1);
        assert!(matches!(&present[..], [Packet::ConnAck(ack)] if ack.session_present));
        // The client's own side of QoS 2: what the broker may not have, then what it may not have let go of.
        for (id, payload) in self.sending.clone() {
            self.publish(id, &payload, true);
        }
        for id in self.releasing.clone() {
            self.send(&Packet::PubRel(PubRel::new(id)));
        }
    }

    fn publish(&mut self, id: u16, payload: &str, again: bool) {
        let topic = if id.is_multiple_of(2) { LOG } else { ECHO };
        let mut publish = PublishPacket::new(topic, QoS::ExactlyOnce, payload);
        (publish.pkid, publish.dup) = (id, again);
        self.send(&Packet::Publish(publish));
    }

    /// The client reads up to `count` packets; its answers get through or not.
    fn read(&mut self, count: usize, answers: bool) {
        for packet in packets_of(&mut self.session, count) {
            let answer = match packet {
                Packet::Publish(publish) => self.take(&publish),
                Packet::PubRel(PubRel { pkid }) => {
                    self.taken.remove(&pkid);
                    Some(Packet::PubComp(PubComp::new(pkid)))
                }
                Packet::PubRec(PubRec { pkid }) => {
                    self.sending.retain(|(id, _)| *id != pkid);
                    if !self.releasing.contains(&pkid) {
                        self.releasing.push_back(pkid);
                    }
                    Some(Packet::PubRel(PubRel::new(pkid)))
                }
                Packet::PubComp(PubComp { pkid }) => {
                    self.releasing.retain(|id| *id != pkid);
                    None
                }
                other => panic!("{other:?}"),
            };
            if let Some(answer) = answer.filter(|_| answers) {
                self.send(&answer);
            }
        }
    }

    fn take(&mut self, publish: &PublishPacket) -> Option<Packet> {
        let number = std::str::from_utf8(&publish.payload)
            .unwrap()
            .parse()
            .unwrap();
        match publish.qos {
            QoS::AtMostOnce => {
                self.got.push((number, Qos::AtMostOnce));
                None
            }
            QoS::AtLeastOnce => {
                self.got.push((number, Qos::AtLeastOnce));
                Some(Packet::PubAck(PubAck::new(publish.pkid)))
            }
            QoS::ExactlyOnce => {
                if self.taken.insert(publish.pkid) {
                    self.got.push((number, Qos::ExactlyOnce));
                }
                Some(Packet::PubRec(PubRec::new(publish.pkid)))
            }
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Publish(qos) => {
                self.published += 1;
                let topic = Topic::parse("hoist/v1/prod/web-1/deploy").unwrap();
                let message = Message {
                    topic,
                    qos: *qos,
                    ..Message::clone(&message(self.published))
                };
                self.session
                    .on(Event::Message(Arc::new(message), Via::Direct));
            }
            Step::Read(count) => self.read(*count, true),
            Step::ReadAndLose(count) => {
                self.read(*count, false);
                self.reconnect();
            }
            Step::Lose => self.reconnect(),
            Step::Send => {
                self.sent += 1;
                let id = u16::try_from(self.sent).unwrap();
                let payload = format!("mine-{id}");
                self.sending.push_back((id, payload.clone()));
                self.publish(id, &payload, false);
            }
            Step::Settle => self.settle(),
        }
    }
}

/// The next packets that are written, `count` at most; the rest stays.
fn packets_of(session: &mut Session, count: usize) -> Vec<Packet> {
    let output = session.output();
    let mut bytes = BytesMut::from(&output[..]);
    let mut packets = Vec::new();
    while packets.len() < count
        && let Ok(packet) = Packet::read(&mut bytes, usize::MAX)
    {
        packets.push(packet);
    }
    output.drain(..output.len() - bytes.len());
    packets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_client_gets_what_it_is_owed_whatever_gets_lost(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        let mut owed = Vec::new();
        for step in &steps {
            world.apply(step);
            if let Step::Publish(qos @ (Qos::AtLeastOnce | Qos::ExactlyOnce)) = step {
                owed.push((world.published, *qos));
            }
        }
        // In the end nothing is lost any more, and everything comes to rest.
        world.settle();
        for _ in 0..400 {
            world.read(10, true);
            world.settle();
        }
        let order = |got: &[(u64, Qos)]| -> Vec<(u64, Qos)> {
            let mut seen = BTreeSet::new();
            let assured = got.iter().filter(|(_, qos)| *qos != Qos::AtMostOnce);
            assured.filter(|(number, _)| seen.insert(*number)).copied().collect()
        };
        prop_assert_eq!(order(&world.got), owed.clone(), "each, in its order");
        let once = world.got.iter().filter(|(_, qos)| *qos == Qos::ExactlyOnce).count();
        let owed_once = owed.iter().filter(|(_, qos)| *qos == Qos::ExactlyOnce).count();
        prop_assert_eq!(once, owed_once, "those of QoS 2 once");
        let expected: Vec<String> = (1..=world.sent).map(|n| format!("mine-{n}")).collect();
        let mut passed_on = world.passed_on.clone();
        passed_on.sort_by_key(|payload| payload[5..].parse::<usize>().unwrap());
        prop_assert_eq!(passed_on, expected, "what the client sent at QoS 2 was passed on once");
        prop_assert!(world.sending.is_empty() && world.releasing.is_empty());
        prop_assert_eq!(world.session.kept.inflight.len(), 0);
        prop_assert!(world.session.kept.received.is_empty());
    }
}
