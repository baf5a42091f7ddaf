//! Sessions that outlive their connections (MQTT 3.1.1, clean session 0; MQTT 5, session expiry).

use hoist_broker::Options;
use hoist_certs::Role;
use rumqttc::v5::mqttbytes::v5::ConnectReturnCode as Code5;
use rumqttc::{Connect, ConnectReturnCode, Packet, PubAck, QoS};

use crate::support::{Broker, Client, World, topic, with_will};
use crate::v5_client::{self, Client5};

/// A CONNECT for a session that is there already, or is to stay.
pub(crate) fn returning(id: &str) -> Connect {
    let mut connect = Connect::new(id);
    connect.clean_session = false;
    connect
}

async fn back(world: &World, broker: &Broker) -> (Client, bool) {
    back_as("mon.1", world, broker).await
}

async fn back_as(id: &str, world: &World, broker: &Broker) -> (Client, bool) {
    let mut monitor = world.tls(broker, Role::Monitor, "mon").await;
    let present = monitor.open(returning(id)).await;
    (monitor, present)
}

/// Waits until everybody who subscribed before was told of a message with this payload.
async fn told(witness: &mut Client, payload: &str) {
    while witness.message().await.payload != payload {}
}

#[tokio::test]
async fn what_was_missed_comes_when_the_client_is_back() {
    let (status, log) = (topic("web-1", "status"), topic("web-1", "log"));
    for filters in [
        ["hoist/v1/prod/web-1/status", "hoist/v1/prod/web-1/log"],
        ["hoist/v1/prod/+/status", "hoist/v1/prod/+/log"],
    ] {
        let world = World::new();
        let broker = world.start().await;
        let mut agent = world.agent(&broker, "web-1").await;
        let mut away = world.tls(&broker, Role::Publisher, "ci").await;
        assert!(!away.open(returning("ci.1")).await);
        away.subscribe(&filters).await;
        away.disconnect().await;
        let mut witness = world.client(&broker, Role::Publisher, "ci2").await;
        witness.subscribe(&filters).await;
        for n in 0..20 {
            agent.retain(&status, n.to_string()).await;
            // Nothing of QoS 0 is kept for who is away.
            agent
                .send_publish(&log, QoS::AtMostOnce, false, b"lost")
                .await;
            agent
                .send_publish(&log, QoS::AtLeastOnce, false, n.to_string().as_bytes())
                .await;
            assert!(matches!(agent.next().await, Some(Packet::PubAck(_))));
        }
        agent.retain(&status, "last").await;
        told(&mut witness, "last").await;
        let mut away = world.tls(&broker, Role::Publisher, "ci").await;
        assert!(away.open(returning("ci.1")).await);
        let (mut statuses, mut lines) = (Vec::new(), Vec::new());
        while statuses.len() + lines.len() < 41 {
            let message = away.message().await;
            assert!(!message.retain, "news");
            if message.topic == status {
                statuses.push(message.payload);
            } else if message.payload != "lost" {
                lines.push(message.payload);
            }
        }
        let all: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        assert_eq!(lines, all);
        assert_eq!(statuses[..20], all);
        // The subscriptions are still there, and end with the session.
        agent.retain(&status, "again").await;
        assert_eq!(away.message().await.payload, "again");
        drop(away);
        let mut clean = world.tls(&broker, Role::Publisher, "ci").await;
        assert!(!clean.open(Connect::new("ci.1")).await);
        agent.retain(&status, "0").await;
        clean.expect_nothing().await;
        clean.disconnect().await;
        broker.stop().await;
    }
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_in_its_order_with_its_id() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    let (mut monitor, _) = back(&world, &broker).await;
    monitor.subscribe(&[&status]).await;
    for n in 0..3 {
        agent.retain(&status, n.to_string()).await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        let Some(Packet::Publish(publish)) = monitor.next().await else {
            panic!("no message");
        };
        assert!(!publish.dup);
        ids.push(publish.pkid);
    }
    monitor.send(Packet::PubAck(PubAck::new(ids[1]))).await;
    monitor.expect_nothing().await;
    // Taken over while it is connected.
    let (mut monitor, present) = back(&world, &broker).await;
    assert!(present);
    for (id, payload) in [(ids[0], "0"), (ids[2], "2")] {
        let Some(Packet::Publish(publish)) = monitor.next().await else {
            panic!("no message");
        };
        assert_eq!(
            (publish.dup, publish.pkid, &publish.payload[..]),
            (true, id, payload.as_bytes())
        );
        monitor.send(Packet::PubAck(PubAck::new(id))).await;
    }
    monitor.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_session_goes_on_in_the_other_version_and_ends_when_its_client_says_so() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    let (mut monitor, _) = back(&world, &broker).await;
    monitor.subscribe(&[&status]).await;
    monitor.disconnect().await;
    agent.retain(&status, "x").await;
    let mut newer = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    assert!(newer.open(v5_client::returning("mon.1"), None).await);
    assert_eq!(&newer.message().await.payload[..], b"x");
    // A goodbye with a session expiry of zero.
    newer.send_bytes(&[0xe0, 7, 0, 5, 0x11, 0, 0, 0, 0]).await;
    assert_eq!(newer.next().await, None);
    let (_, present) = back(&world, &broker).await;
    assert!(!present);
    broker.stop().await;
}

#[tokio::test]
async fn who_misses_too_much_begins_anew() {
    let world = World::with(Options {
        max_queued: Some(5),
        ..Options::default()
    });
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    for (id, count, kept) in [("mon.5", 5, true), ("mon.6", 6, false)] {
        let (mut monitor, _) = back_as(id, &world, &broker).await;
        monitor.subscribe(&[&status]).await;
        // What was retained before may come first.
        agent.retain(&status, "ready").await;
        told(&mut monitor, "ready").await;
        monitor.disconnect().await;
        let mut witness = world.client(&broker, Role::Monitor, "mon2").await;
        witness.subscribe(&[&status]).await;
        for n in 1..=count {
            agent.retain(&status, n.to_string()).await;
        }
        told(&mut witness, &count.to_string()).await;
        let (mut monitor, present) = back_as(id, &world, &broker).await;
        assert_eq!(present, kept, "{count}");
        if !kept {
            monitor.expect_nothing().await;
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn the_sessions_that_are_kept_are_bounded_and_a_client_is_told() {
    let world = World::with(Options {
        max_kept_sessions_per_identity: Some(1),
        ..Options::default()
    });
    let broker = world.start().await;
    let (monitor, _) = back(&world, &broker).await;
    let mut second = world.tls(&broker, Role::Monitor, "mon").await;
    let code = second.connect(returning("mon.2")).await;
    assert_eq!(code, ConnectReturnCode::ServiceUnavailable);
    let mut second = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    let ack = second.connect(v5_client::returning("mon.2"), None).await;
    assert_eq!(ack.code, Code5::QuotaExceeded);
    // Its own place is no hindrance to who comes back, nor to who needs none.
    drop(monitor);
    let (monitor, present) = back(&world, &broker).await;
    assert!(present);
    monitor.disconnect().await;
    let mut clean = world.tls(&broker, Role::Monitor, "mon").await;
    assert!(!clean.open(Connect::new("mon.1")).await);
    let mut other = world.tls(&broker, Role::Monitor, "mon").await;
    assert!(!other.open(returning("mon.2")).await);
    broker.stop().await;
}

#[tokio::test]
async fn a_restart_of_the_broker_ends_all_sessions_and_they_hear_of_it() {
    let world = World::new();
    let broker = world.start().await;
    let (monitor, _) = back(&world, &broker).await;
    monitor.disconnect().await;
    let (monitor, present) = back(&world, &broker).await;
    assert!(present);
    drop(monitor);
    broker.stop().await;
    let broker = world.start().await;
    let (_, present) = back(&world, &broker).await;
    assert!(!present);
    broker.stop().await;
}

#[tokio::test]
async fn a_session_that_stays_leaves_its_will_at_once_on_mqtt_3() {
    let world = World::new();
    let broker = world.start().await;
    let presence = topic("web-1", "presence");
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&presence]).await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    let mut connect = with_will("web-1", &presence, "offline");
    connect.clean_session = false;
    agent.open(connect).await;
    agent.retain(&presence, "online").await;
    assert_eq!(monitor.message().await.payload, "online");
    drop(agent);
    assert_eq!(monitor.message().await.payload, "offline");
    broker.stop().await;
}
