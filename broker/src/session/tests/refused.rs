//! What is refused: deployments that do not verify, alone and among others, and what a kept session makes of it.

use hoist_protocol::{
    Deployment, DeploymentId, DeploymentParts, Goal, Held, KeyName, Machine, Order, Provenance,
    SigningKey, StorePath, Target, Timestamp, sign,
};

use super::*;
use crate::settings::{FleetOptions, Fleets};
use crate::store::Unavailable;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyName::new("ci").unwrap(), &[seed; 32].into())
}

/// A publish of a deployment for `agent`, signed by the key that grows out of `seed`.
fn deploy(packet_id: u16, qos: QoS, agent: &str, seed: u8) -> Vec<u8> {
    let fleet = FleetName::new("prod").unwrap();
    let machine = Machine::new(fleet, AgentName::new(agent).unwrap());
    let topic = machine.topic(Channel::Deploy);
    let path = format!("/nix/store/{}-system", "a".repeat(32));
    let now = Timestamp::from_ms(1_700_000_000_000);
    let deployment = Deployment::new(DeploymentParts {
        machine,
        order: Order {
            epoch: 0,
            sequence: u64::from(packet_id),
            id: "0196f3a0-7c3e-7b5a-9d5e-0123456789ab"
                .parse::<DeploymentId>()
                .unwrap(),
        },
        issued: now,
        expires: now.plus(Duration::from_secs(3600)),
        target: Target::new(Goal::Closure(StorePath::new(path).unwrap())),
        held: Held::No,
        cancels: None,
        renews: None,
        provenance: Provenance::default(),
    });
    let signed = sign(&deployment.unwrap(), &[key(seed)]).unwrap();
    let mut publish = PublishPacket::new(topic.to_string(), qos, signed);
    publish.retain = true;
    publish.pkid = packet_id;
    bytes(&Packet::Publish(publish))
}

/// A publisher's session of a broker that trusts the key of seed 1.
fn trusting() -> Session {
    let options = FleetOptions {
        trusted_keys: Some(vec![key(1).public()]),
        ..FleetOptions::default()
    };
    let fleets = Fleets::Any(Box::new(options.try_into().unwrap()));
    let policy = Arc::new(Policy {
        deploys: Arc::new(Deploys::new(Arc::new(fleets))),
        ..Policy::clone(&policy())
    });
    Session::new(Arc::new(peer(Role::Publisher, "prod", "ci")), policy, 1)
}

fn opened(mut session: Session, connect: &[u8]) -> Session {
    session.receive(connect);
    assert!(matches!(&session.take_effects()[..], [Effect::Claim(_)]));
    session.claimed();
    session.output().clear();
    session
}

/// A CONNECT of MQTT 3.1.1 for a session that is kept.
fn keeping(id: &str) -> Vec<u8> {
    let mut connect = connect(id);
    connect.clean_session = false;
    bytes(&Packet::Connect(connect))
}

/// The next connection of the same client.
fn again(session: Session, id: &str) -> Session {
    let Remains { kept, outlives, .. } = session.into_remains();
    assert!(outlives);
    let mut next = Session::new(Arc::clone(&kept.peer), Arc::clone(&kept.policy), 2);
    next.receive(&keeping(id));
    assert!(matches!(&next.take_effects()[..], [Effect::Claim(_)]));
    next.resume(kept);
    next.claimed();
    next.output().clear();
    next
}

/// The tickets of what is to be published.
fn published(effects: Vec<Effect>) -> Vec<(AgentName, Ticket)> {
    let published = effects.into_iter().map(|effect| match effect {
        Effect::Publish(Admitted::Store(publication), ticket) => {
            assert!(publication.proof.is_some());
            (publication.topic.machine.agent, ticket)
        }
        other => panic!("{other:?}"),
    });
    published.collect()
}

fn names(published: &[(AgentName, Ticket)]) -> Vec<&str> {
    published.iter().map(|(agent, _)| agent.as_str()).collect()
}

#[test]
fn what_came_before_a_deployment_that_does_not_verify_is_published_and_nothing_after_it() {
    let mut session = opened(trusting(), &bytes(&Packet::Connect(connect("ci.1"))));
    let read = [
        deploy(1, QoS::AtLeastOnce, "web-1", 1),
        deploy(2, QoS::AtLeastOnce, "web-2", 2),
        deploy(3, QoS::AtLeastOnce, "web-3", 1),
        bytes(&Packet::Disconnect),
    ]
    .concat();
    session.receive(&read);
    assert_eq!(names(&published(session.take_effects())), ["web-1"]);
    let ended = session.ended();
    assert!(matches!(ended, Some(Ended::Deploy(_))), "{ended:?}");
}

#[test]
fn on_mqtt_5_a_deployment_that_does_not_verify_is_refused_alone() {
    let mut session = opened(trusting(), &v5::connect_5("ci.1", &[]));
    // With their properties, of which there are none.
    let read: Vec<u8> = [("web-1", 1), ("web-2", 2), ("web-3", 1)]
        .into_iter()
        .zip(1..)
        .flat_map(|((agent, seed), id)| v5::publish_5(&deploy(id, QoS::AtLeastOnce, agent, seed)))
        .collect();
    session.receive(&read);
    let (refused, effects): (Vec<_>, Vec<_>) = session
        .take_effects()
        .into_iter()
        .partition(|effect| matches!(effect, Effect::Refused(_)));
    assert_eq!(refused.len(), 1);
    let published = published(effects);
    assert_eq!(names(&published), ["web-1", "web-3"]);
    assert!(session.output().is_empty(), "the first is not settled yet");
    for (_, ticket) in published {
        session.settled(ticket, Outcome::Retained);
    }
    let codes: Vec<u8> = v5::pubacks(session.output());
    assert!(
        matches!(codes[..], [0, refused, 0] if refused >= 0x80),
        "{codes:?}"
    );
    assert_eq!(session.ended(), None);
}

#[test]
fn what_was_refused_has_not_arrived_also_when_the_session_is_kept() {
    let bad = deploy(7, QoS::ExactlyOnce, "web-1", 2);
    let stranger = publish(STATUS, QoS::ExactlyOnce, true, "{}");
    for refused in [bad, stranger] {
        let mut session = opened(trusting(), &keeping("ci.1"));
        // Both that it is refused for, and what came behind it.
        session.receive(&[&refused[..], &deploy(8, QoS::ExactlyOnce, "web-3", 1)].concat());
        assert!(session.take_effects().is_empty());
        assert!(session.ended().is_some());
        let mut next = again(session, "ci.1");
        next.receive(&deploy(8, QoS::ExactlyOnce, "web-3", 1));
        assert_eq!(names(&published(next.take_effects())), ["web-3"]);
        next.receive(&refused);
        next.take_effects();
        assert!(
            next.ended().is_some(),
            "refused again, and not acknowledged"
        );
        assert_eq!(packets(&mut next), []);
    }
}

#[test]
fn a_publish_that_was_not_stored_holds_up_no_later_answer() {
    let mut session = opened(trusting(), &keeping("ci.1"));
    session.receive(&deploy(1, QoS::AtLeastOnce, "web-1", 1));
    let [(_, ticket)] = published(session.take_effects())[..] else {
        panic!("no publish");
    };
    session.settled(ticket, Outcome::Unavailable(Unavailable::Disk));
    assert!(session.ended().is_some());
    let mut next = again(session, "ci.1");
    next.receive(&deploy(1, QoS::AtLeastOnce, "web-1", 1));
    let [(_, ticket)] = published(next.take_effects())[..] else {
        panic!("no publish");
    };
    next.settled(ticket, Outcome::Retained);
    assert!(matches!(&packets(&mut next)[..], [Packet::PubAck(ack)] if ack.pkid == 1));
}

#[test]
fn on_mqtt_3_nothing_is_acknowledged_from_what_was_refused_on() {
    let mut session = opened(trusting(), &bytes(&Packet::Connect(connect("ci.1"))));
    let read: Vec<u8> = (1..=3)
        .flat_map(|id| deploy(id, QoS::AtLeastOnce, "web-1", 1))
        .collect();
    session.receive(&read);
    let outcomes = [
        Outcome::Retained,
        Outcome::Unavailable(Unavailable::Disk),
        Outcome::Retained,
    ];
    let tickets = published(session.take_effects());
    for ((_, ticket), outcome) in tickets.into_iter().zip(outcomes) {
        session.on(Event::Settled(ticket, outcome));
    }
    assert!(matches!(session.ended(), Some(Ended::Unavailable(_))));
    assert!(matches!(&packets(&mut session)[..], [Packet::PubAck(ack)] if ack.pkid == 1));
}
