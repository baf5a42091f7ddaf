//! What a publish needs to be taken, and what its acknowledgement means.

use hoist_certs::Role;
use hoist_protocol::limits;
use rumqttc::{Packet, QoS};

use crate::support::{World, topic};

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_broker_was_dropped_without_a_stop() {
    let world = World::new();
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    for n in 0..50 {
        assert!(agent.retain(&topic("web-1", "status"), n.to_string()).await);
    }
    assert!(agent.retain(&topic("web-1", "history"), "h").await);
    broker.abort().await;
    drop(agent);
    let broker = restarted(&world).await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&["hoist/v1/prod/web-1/+"]).await;
    let messages = monitor.messages(3).await;
    assert_eq!(messages[&topic("web-1", "status")], "49");
    assert_eq!(messages[&topic("web-1", "history")], "h");
    assert_eq!(messages[&topic("web-1", "presence")], "offline");
    broker.stop().await;
}

/// A dropped broker's tasks need a moment to let go of the store.
async fn restarted(world: &World) -> crate::support::Broker {
    for _ in 0..3000 {
        if let Ok(broker) = world.try_start().await {
            return broker;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the store was never let go of");
}

#[tokio::test]
async fn acknowledgements_come_in_the_order_of_the_publishes() {
    let world = World::new();
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    // Stored, passed on, in memory: each has its own way, all in one write.
    for n in 0..60 {
        let (channel, retain, payload) = match n % 3 {
            0 => ("status", true, "x"),
            1 => ("log", false, "line"),
            _ => ("presence", true, "online"),
        };
        let topic = topic("web-1", channel);
        agent
            .send_publish(&topic, QoS::AtLeastOnce, retain, payload.as_bytes())
            .await;
    }
    for n in 1..=60 {
        let Some(Packet::PubAck(ack)) = agent.next().await else {
            panic!("no PUBACK {n}");
        };
        assert_eq!(ack.pkid, n);
    }
    broker.stop().await;
}

#[tokio::test]
async fn what_may_not_be_published_closes_and_leaves_nothing() {
    let world = World::new();
    let broker = world.start().await;
    let large = vec![b'x'; limits::STATUS_LEN + 1];
    type Case<'a> = (&'a str, Role, String, QoS, bool, &'a [u8]);
    let cases: [Case<'_>; 11] = [
        (
            "a status that is not retained",
            Role::Agent,
            topic("web-1", "status"),
            QoS::AtLeastOnce,
            false,
            b"x",
        ),
        (
            "a retained log line",
            Role::Agent,
            topic("web-1", "log"),
            QoS::AtMostOnce,
            true,
            b"x",
        ),
        (
            "a retained echo",
            Role::Agent,
            topic("web-1", "echo"),
            QoS::AtLeastOnce,
            true,
            b"x",
        ),
        (
            "a presence of one's own wording",
            Role::Agent,
            topic("web-1", "presence"),
            QoS::AtLeastOnce,
            true,
            b"away",
        ),
        (
            "an empty status",
            Role::Agent,
            topic("web-1", "status"),
            QoS::AtLeastOnce,
            true,
            b"",
        ),
        (
            "a status that is too large",
            Role::Agent,
            topic("web-1", "status"),
            QoS::AtLeastOnce,
            true,
            &large,
        ),
        (
            "another's status",
            Role::Agent,
            topic("web-2", "status"),
            QoS::AtLeastOnce,
            true,
            b"x",
        ),
        (
            "one's own deploy",
            Role::Agent,
            topic("web-1", "deploy"),
            QoS::AtLeastOnce,
            true,
            b"x",
        ),
        (
            "an empty deploy",
            Role::Publisher,
            topic("web-1", "deploy"),
            QoS::AtLeastOnce,
            true,
            b"",
        ),
        (
            "a status by a publisher",
            Role::Publisher,
            topic("web-1", "status"),
            QoS::AtLeastOnce,
            true,
            b"x",
        ),
        (
            "anything by a monitor",
            Role::Monitor,
            topic("web-1", "status"),
            QoS::AtMostOnce,
            true,
            b"x",
        ),
    ];
    for (what, role, topic, qos, retain, payload) in cases {
        let mut client = world.client(&broker, role, "web-1").await;
        client.send_publish(&topic, qos, retain, payload).await;
        assert_eq!(client.next().await, None, "{what}");
    }
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&["#"]).await;
    monitor.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn only_an_admin_clears_and_subscribers_hear_of_it() {
    let world = World::new();
    let broker = world.start().await;
    let (status, history) = (topic("web-1", "status"), topic("web-1", "history"));
    let mut agent = world.agent(&broker, "web-1").await;
    agent.retain(&status, "x").await;
    agent.retain(&history, "h").await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&status]).await;
    assert_eq!(monitor.message().await.payload, "x");
    let mut everything = world.client(&broker, Role::Monitor, "mon2").await;
    everything.subscribe(&["hoist/v1/prod/+/status"]).await;
    assert_eq!(everything.message().await.payload, "x");
    let mut admin = world.client(&broker, Role::Admin, "root").await;
    assert!(admin.retain(&status, "").await);
    assert!(
        admin.retain(&status, "").await,
        "clearing again changes nothing"
    );
    for client in [&mut monitor, &mut everything] {
        let cleared = client.message().await;
        assert_eq!((cleared.payload.as_str(), cleared.retain), ("", false));
    }
    let mut late = world.client(&broker, Role::Monitor, "mon3").await;
    late.subscribe(&["hoist/v1/prod/#"]).await;
    assert_eq!(late.message().await.payload, "h");
    late.expect_nothing().await;
    assert!(
        !admin.retain(&history, "x").await,
        "an admin writes nothing else"
    );
    broker.stop().await;
    // It stays cleared.
    let broker = world.start().await;
    let mut late = world.monitor(&broker).await;
    late.subscribe(&["hoist/v1/prod/+/status", "hoist/v1/prod/+/history"])
        .await;
    assert_eq!(late.message().await.payload, "h");
    late.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn what_is_sent_before_a_goodbye_in_one_write_is_kept() {
    let world = World::new();
    let broker = world.start().await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    let mut bytes = bytes::BytesMut::new();
    Packet::Connect(rumqttc::Connect::new("web-1"))
        .write(&mut bytes, usize::MAX)
        .unwrap();
    let mut publish =
        rumqttc::Publish::new(topic("web-1", "status"), QoS::AtMostOnce, "last words");
    publish.retain = true;
    Packet::Publish(publish)
        .write(&mut bytes, usize::MAX)
        .unwrap();
    Packet::Disconnect.write(&mut bytes, usize::MAX).unwrap();
    agent.send_bytes(&bytes).await;
    assert!(matches!(agent.next().await, Some(Packet::ConnAck(_))));
    agent.expect_closed().await;
    broker.stop().await;
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&topic("web-1", "status")]).await;
    let message = monitor.message().await;
    assert_eq!(message.payload, "last words");
    assert_eq!(
        message.qos,
        QoS::AtMostOnce,
        "never surer than it was published"
    );
    broker.stop().await;
}

#[tokio::test]
async fn an_echo_comes_back_to_its_agent_and_to_nobody_else() {
    let world = World::new();
    let broker = world.start().await;
    let echo = topic("web-1", "echo");
    let mut agent = world.agent(&broker, "web-1").await;
    agent.subscribe(&[&echo]).await;
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    publisher
        .subscribe(&["hoist/v1/prod/web-1/+", "hoist/v1/prod/#"])
        .await;
    agent
        .send_publish(&echo, QoS::AtMostOnce, false, b"nonce")
        .await;
    assert_eq!(agent.message().await.payload, "nonce");
    agent.retain(&topic("web-1", "status"), "x").await;
    // Twice, for two subscriptions that overlap; the echo would have come before.
    assert_eq!(publisher.message().await.payload, "x");
    assert_eq!(publisher.message().await.payload, "x");
    broker.stop().await;
}
