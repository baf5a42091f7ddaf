//! What one client can cost the others.

use std::time::Duration;

use hoist_broker::Options;
use hoist_certs::Role;
use rumqttc::{Connect, QoS};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Client, PATIENCE, World, topic, with_will};

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_places_come_free() {
    let world = World::with(Options {
        max_connections: Some(2),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut first = world.agent(&broker, "web-1").await;
    let second = world.agent(&broker, "web-2").await;
    let mut third = TcpStream::connect(broker.address).await.unwrap();
    let read = timeout(PATIENCE, third.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    second.disconnect().await;
    first.expect_nothing().await;
    eventually_open(&world, &broker, Role::Agent, "web-3").await;
    broker.stop().await;
}

/// A place is free a moment after its connection is closed.
async fn eventually_open(
    world: &World,
    broker: &crate::support::Broker,
    role: Role,
    who: &str,
) -> Client {
    let tls = world.credentials("prod", role, who).client().unwrap();
    for _ in 0..3000 {
        if let Ok(mut client) = Client::try_tls(broker, tls.config()).await {
            client
                .send(rumqttc::Packet::Connect(Connect::new(who)))
                .await;
            if client.next().await.is_some() {
                return client;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no place came free");
}

#[tokio::test]
async fn one_identity_has_its_share_and_an_agent_a_smaller_one() {
    let world = World::with(Options {
        max_connections_per_identity: Some(6),
        ..Options::default()
    });
    let broker = world.start().await;
    for (role, limit) in [(Role::Agent, 4), (Role::Publisher, 6)] {
        let mut held = Vec::new();
        for _ in 0..limit {
            // Held before the CONNECT: a handshake alone already counts.
            held.push(world.tls(&broker, role, "me").await);
        }
        let mut last = world.tls(&broker, role, "me").await;
        last.expect_closed().await;
        // Others have theirs.
        world
            .client(&broker, role, "other")
            .await
            .expect_nothing()
            .await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn handshakes_that_hang_are_bounded_for_each_address() {
    let world = World::with(Options {
        max_handshakes_per_address: Some(3),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut hanging = Vec::new();
    for _ in 0..3 {
        hanging.push(TcpStream::connect(broker.address).await.unwrap());
    }
    let mut fourth = TcpStream::connect(broker.address).await.unwrap();
    let read = timeout(PATIENCE, fourth.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    drop(hanging);
    eventually_open(&world, &broker, Role::Agent, "web-1").await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_is_dropped_and_holds_up_nobody() {
    let world = World::with(Options {
        stalled_timeout: Some("500ms".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let (deploy, presence) = (topic("web-1", "deploy"), topic("web-1", "presence"));
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&presence]).await;
    let dropped = tokio::spawn(async move { monitor.message().await });
    let mut deaf = world.tls(&broker, Role::Agent, "web-1").await;
    deaf.connect(with_will("web-1", &presence, "offline")).await;
    deaf.subscribe_at(&[&deploy], QoS::AtMostOnce).await;
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    let mut hears = world.client(&broker, Role::Publisher, "ci2").await;
    hears.subscribe(&[&deploy]).await;
    // More than sockets hold, until the deaf one is given up; nobody waits for it meanwhile.
    for n in 0.. {
        let payload = format!("{n} {}", "x".repeat(16_000));
        assert!(publisher.retain(&deploy, &payload).await);
        assert_eq!(hears.message().await.payload, payload);
        if dropped.is_finished() {
            break;
        }
    }
    assert_eq!(dropped.await.unwrap().payload, "offline");
    broker.stop().await;
}

#[tokio::test]
async fn who_acknowledges_nothing_is_dropped() {
    let world = World::with(Options {
        stalled_timeout: Some("300ms".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    for channel in ["status", "history"] {
        agent.retain(&topic("web-1", channel), "x").await;
    }
    let mut lazy = world.monitor(&broker).await;
    lazy.subscribe(&[&topic("web-1", "status")]).await;
    for n in 0..400 {
        agent.retain(&topic("web-1", "status"), n.to_string()).await;
    }
    let mut delivered = 0;
    while lazy.next().await.is_some() {
        delivered += 1;
    }
    assert!(delivered < 400, "an unacknowledged client got everything");
    agent.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn subscriptions_beyond_the_limit_are_refused_one_by_one() {
    let world = World::new();
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    let filters: Vec<String> = (0..500)
        .map(|n| topic(&format!("machine-{n}"), "status"))
        .collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    assert!(monitor.subscribe(&filters).await.iter().all(is_granted));
    // Wildcards for the machine have a limit of their own: 32.
    let mut granted = 0;
    for n in 0..40 {
        // Spellings of the same: every filter is another one to MQTT.
        let level = |bit: usize, name| if n >> bit & 1 == 1 { "+" } else { name };
        let end = ["status", "presence", "history"][n / 8 % 3];
        let filter = format!(
            "{}/{}/{}/+/{end}{}",
            level(0, "hoist"),
            level(1, "v1"),
            level(2, "prod"),
            if n >= 24 { "/#" } else { "" }
        );
        granted += usize::from(is_granted(&monitor.subscribe(&[&filter]).await[0]));
    }
    assert_eq!(granted, 32);
    broker.stop().await;
}

fn is_granted(code: &rumqttc::SubscribeReasonCode) -> bool {
    matches!(code, rumqttc::SubscribeReasonCode::Success(_))
}
