//! One client id, one session; and the will of the one before.

use hoist_certs::Role;
use rumqttc::ConnectReturnCode;

use crate::support::{World, topic, with_will};

#[tokio::test]
async fn the_old_will_is_applied_before_the_new_connack() {
    let world = World::new();
    let broker = world.start().await;
    let presence = topic("web-1", "presence");
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&presence]).await;
    let mut old = world.tls(&broker, Role::Agent, "web-1").await;
    old.connect(with_will("web-1", &presence, "offline")).await;
    for _ in 0..20 {
        assert!(old.retain(&presence, "online").await);
        let mut new = world.tls(&broker, Role::Agent, "web-1").await;
        let code = new.connect(with_will("web-1", &presence, "offline")).await;
        assert_eq!(code, ConnectReturnCode::Success);
        // The new one's first words come after the old one's last.
        let mut reader = world.client(&broker, Role::Monitor, "mon2").await;
        reader.subscribe(&[&presence]).await;
        assert_eq!(reader.message().await.payload, "offline");
        old.expect_closed().await;
        old = new;
    }
    for _ in 0..20 {
        assert_eq!(monitor.message().await.payload, "online");
        assert_eq!(monitor.message().await.payload, "offline");
    }
    broker.stop().await;
}

#[tokio::test]
async fn many_takeovers_at_once_leave_one_session() {
    let world = World::new();
    let broker = world.start().await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(world.tls(&broker, Role::Agent, "web-1").await);
    }
    let connects = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            client
                .send_bytes(&[
                    0x10, 17, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 5, b'w', b'e', b'b',
                    b'-', b'1',
                ])
                .await;
            // The one that stays hears nothing more; the others are closed, with or without a CONNACK.
            client.next().await;
            client
        })
    });
    let connects: Vec<_> = connects.collect();
    let mut answered = Vec::new();
    for connect in connects {
        answered.push(connect.await.unwrap());
    }
    let mut alive = 0;
    for mut client in answered {
        client.send_bytes(&[0xc0, 0]).await;
        loop {
            match client.next().await {
                Some(rumqttc::Packet::PingResp) => {
                    alive += 1;
                    break;
                }
                Some(_) => {}
                None => break,
            }
        }
    }
    assert_eq!(alive, 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_namesake_of_another_fleet_or_role_takes_nothing_over() {
    let world = World::new();
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    let mut namesake = world.tls_in("test", &broker, Role::Agent, "web-1").await;
    let code = namesake.connect(rumqttc::Connect::new("web-1")).await;
    assert_eq!(code, ConnectReturnCode::Success);
    let mut monitor = world.client(&broker, Role::Monitor, "ci").await;
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    agent.expect_nothing().await;
    namesake.expect_nothing().await;
    monitor.expect_nothing().await;
    publisher.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn two_jobs_with_one_certificate_live_side_by_side() {
    let world = World::new();
    let broker = world.start().await;
    let mut first = world.tls(&broker, Role::Publisher, "ci").await;
    first.connect(rumqttc::Connect::new("ci.1")).await;
    let mut second = world.tls(&broker, Role::Publisher, "ci").await;
    second.connect(rumqttc::Connect::new("ci.2")).await;
    first.expect_nothing().await;
    second.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_will_speaks_when_the_connection_breaks_and_not_after_a_goodbye() {
    let world = World::new();
    let broker = world.start().await;
    let (presence, status) = (topic("web-1", "presence"), topic("web-1", "status"));
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&presence, &status]).await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    agent
        .connect(with_will("web-1", &presence, "offline"))
        .await;
    agent.retain(&presence, "online").await;
    assert_eq!(monitor.message().await.payload, "online");
    agent.disconnect().await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    agent
        .connect(with_will("web-1", &presence, "offline"))
        .await;
    agent.retain(&status, "still online").await;
    // Had the first one's will been left, it would have come before.
    assert_eq!(monitor.message().await.payload, "still online");
    drop(agent);
    assert_eq!(monitor.message().await.payload, "offline");
    broker.stop().await;
}
