//! QoS 2: once, whatever gets lost on the way (MQTT 3.1.1, section 4.3.3).

use hoist_certs::Role;
use rumqttc::{Packet, PubComp, PubRec, PubRel, Publish, QoS};

use crate::sessions::returning;
use crate::support::{Client, World, topic};

fn publish(topic: &str, id: u16, payload: &str) -> Publish {
    let mut publish = Publish::new(topic, QoS::ExactlyOnce, payload);
    publish.pkid = id;
    publish.retain = topic.ends_with("status");
    publish
}

async fn expect_received(client: &mut Client, id: u16) {
    assert_eq!(client.next().await, Some(Packet::PubRec(PubRec::new(id))));
}

async fn release(client: &mut Client, id: u16) {
    client.send(Packet::PubRel(PubRel::new(id))).await;
    assert_eq!(client.next().await, Some(Packet::PubComp(PubComp::new(id))));
}

#[tokio::test]
async fn what_comes_twice_is_taken_once_and_answered_twice() {
    let world = World::new();
    let broker = world.start().await;
    let log = topic("web-1", "log");
    let mut follower = world.client(&broker, Role::Publisher, "ci").await;
    follower.subscribe_at(&[&log], QoS::ExactlyOnce).await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    agent.connect(returning("web-1")).await;
    agent.send(Packet::Publish(publish(&log, 1, "once"))).await;
    expect_received(&mut agent, 1).await;
    let mut again = publish(&log, 1, "once");
    again.dup = true;
    agent.send(Packet::Publish(again.clone())).await;
    expect_received(&mut agent, 1).await;
    // Also after the connection was lost, and until it is released.
    drop(agent);
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    assert!(agent.open(returning("web-1")).await);
    agent.send(Packet::Publish(again)).await;
    expect_received(&mut agent, 1).await;
    release(&mut agent, 1).await;
    release(&mut agent, 1).await;
    // The id is free for the next message.
    agent.send(Packet::Publish(publish(&log, 1, "twice"))).await;
    expect_received(&mut agent, 1).await;
    release(&mut agent, 1).await;
    for payload in ["once", "twice"] {
        let message = follower.message().await;
        assert_eq!(
            (message.payload.as_str(), message.qos),
            (payload, QoS::ExactlyOnce)
        );
    }
    follower.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn what_was_received_is_durable_and_an_id_that_is_in_use_is_no_other_messages() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    agent.send(Packet::Publish(publish(&status, 9, "x"))).await;
    expect_received(&mut agent, 9).await;
    let mut other = Publish::new(&status, QoS::AtLeastOnce, "y");
    (other.pkid, other.retain) = (9, true);
    agent.send(Packet::Publish(other)).await;
    agent.expect_closed().await;
    broker.stop().await;
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe_at(&[&status], QoS::ExactlyOnce).await;
    let message = monitor.message().await;
    assert_eq!(
        (message.payload.as_str(), message.qos),
        ("x", QoS::ExactlyOnce)
    );
    broker.stop().await;
}

#[tokio::test]
async fn ids_that_are_never_released_are_bounded() {
    let world = World::new();
    let broker = world.start().await;
    let log = topic("web-1", "log");
    let mut agent = world.agent(&broker, "web-1").await;
    for id in 1..=1024 {
        agent.send(Packet::Publish(publish(&log, id, "x"))).await;
        expect_received(&mut agent, id).await;
    }
    agent.send(Packet::Publish(publish(&log, 1025, "x"))).await;
    agent.expect_closed().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_delivery_goes_on_where_the_connection_was_lost() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    let mut monitor = world.tls(&broker, Role::Monitor, "mon").await;
    monitor.connect(returning("mon.1")).await;
    monitor.subscribe_at(&[&status], QoS::ExactlyOnce).await;
    agent.send(Packet::Publish(publish(&status, 1, "x"))).await;
    expect_received(&mut agent, 1).await;
    release(&mut agent, 1).await;
    let Some(Packet::Publish(first)) = monitor.next().await else {
        panic!("no message");
    };
    assert!(!first.dup);
    // Lost before the PUBREC: the message comes again, marked, with its id.
    drop(monitor);
    let mut monitor = world.tls(&broker, Role::Monitor, "mon").await;
    assert!(monitor.open(returning("mon.1")).await);
    let Some(Packet::Publish(again)) = monitor.next().await else {
        panic!("no message");
    };
    assert_eq!(
        (again.dup, again.pkid, &again.payload),
        (true, first.pkid, &first.payload)
    );
    monitor.send(Packet::PubRec(PubRec::new(first.pkid))).await;
    let released = Some(Packet::PubRel(PubRel::new(first.pkid)));
    assert_eq!(monitor.next().await, released);
    // Lost before the PUBCOMP: only the PUBREL comes again.
    drop(monitor);
    let mut monitor = world.tls(&broker, Role::Monitor, "mon").await;
    assert!(monitor.open(returning("mon.1")).await);
    assert_eq!(monitor.next().await, released);
    monitor
        .send(Packet::PubComp(PubComp::new(first.pkid)))
        .await;
    monitor.expect_nothing().await;
    drop(monitor);
    let mut monitor = world.tls(&broker, Role::Monitor, "mon").await;
    assert!(monitor.open(returning("mon.1")).await);
    monitor.expect_nothing().await;
    broker.stop().await;
}
