//! What a subscription delivers: everything that is retained, then everything that is new, each once.

use std::collections::BTreeSet;

use hoist_certs::Role;
use rumqttc::{Packet, PubComp, PubRec, PubRel, QoS, SubscribeReasonCode};

use crate::support::{Broker, World, topic};

const GRANTED: SubscribeReasonCode = SubscribeReasonCode::Success(QoS::AtLeastOnce);

#[tokio::test]
async fn retained_messages_say_so_and_news_do_not() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    agent.retain(&status, "1").await;
    for filter in [status.as_str(), "hoist/v1/prod/+/status"] {
        let mut monitor = world.monitor(&broker).await;
        assert_eq!(monitor.subscribe(&[filter]).await, [GRANTED]);
        assert!(monitor.message().await.retain);
        // Again for every SUBSCRIBE, also for one that was there.
        assert_eq!(monitor.subscribe(&[filter]).await, [GRANTED]);
        let again = monitor.message().await;
        assert_eq!((again.payload.as_str(), again.retain), ("1", true));
        agent.retain(&status, "2").await;
        let news = monitor.message().await;
        assert_eq!((news.payload.as_str(), news.retain), ("2", false));
        agent.retain(&status, "1").await;
        assert_eq!(monitor.message().await.payload, "1");
        monitor.unsubscribe(filter).await;
        agent.retain(&status, "1").await;
        monitor.expect_nothing().await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn delivery_is_as_sure_as_both_sides_want() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.agent(&broker, "web-1").await;
    for (subscribed, granted) in [
        (QoS::AtMostOnce, QoS::AtMostOnce),
        (QoS::AtLeastOnce, QoS::AtLeastOnce),
        (QoS::ExactlyOnce, QoS::ExactlyOnce),
    ] {
        for published in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut monitor = world.monitor(&broker).await;
            let codes = monitor.subscribe_at(&[&status], subscribed).await;
            assert_eq!(codes, [SubscribeReasonCode::Success(granted)]);
            agent.send_publish(&status, published, true, b"news").await;
            match published {
                QoS::AtMostOnce => {}
                QoS::AtLeastOnce => assert!(matches!(agent.next().await, Some(Packet::PubAck(_)))),
                QoS::ExactlyOnce => {
                    let id = agent.last_id();
                    assert_eq!(agent.next().await, Some(Packet::PubRec(PubRec::new(id))));
                    agent.send(Packet::PubRel(PubRel::new(id))).await;
                    assert_eq!(agent.next().await, Some(Packet::PubComp(PubComp::new(id))));
                }
            }
            let mut message = monitor.message().await;
            if message.retain {
                message = monitor.message().await;
            }
            assert_eq!(
                message.qos,
                granted.min_of(published),
                "{subscribed:?} {published:?}"
            );
        }
    }
    broker.stop().await;
}

trait MinOf {
    fn min_of(self, other: Self) -> Self;
}

impl MinOf for QoS {
    fn min_of(self, other: Self) -> Self {
        if (self as u8) < (other as u8) {
            self
        } else {
            other
        }
    }
}

/// Lets `count` machines report, all over one admin-like shortcut: each agent connects once.
async fn fill(world: &World, broker: &Broker, count: usize) {
    for n in 0..count {
        let mut agent = world.agent(broker, &format!("m{n}")).await;
        assert!(
            agent
                .retain(&topic(&format!("m{n}"), "status"), n.to_string())
                .await
        );
        agent.disconnect().await;
    }
}

#[tokio::test]
async fn a_wildcard_is_answered_in_full() {
    let world = World::new();
    let broker = world.start().await;
    fill(&world, &broker, 300).await;
    let mut monitor = world.monitor(&broker).await;
    for filter in ["hoist/v1/prod/+/status", "hoist/v1/prod/#", "#"] {
        assert_eq!(monitor.subscribe(&[filter]).await, [GRANTED]);
        let messages = monitor.messages(300).await;
        assert_eq!(messages.len(), 300, "{filter}");
        monitor.expect_nothing().await;
    }
    // After a restart as well, then with the presence that the start has made up.
    broker.stop().await;
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&["hoist/v1/prod/+/+"]).await;
    let messages = monitor.messages(600).await;
    assert_eq!(messages.len(), 600);
    assert_eq!(
        messages
            .values()
            .filter(|payload| *payload == "offline")
            .count(),
        300
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_retained_messages_come_through_one_subscription() {
    let world = World::new();
    let broker = world.start().await;
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    // Without trusted keys the broker takes a publisher's word.
    for batch in 0..200 {
        for n in 0..50 {
            let n = batch * 50 + n;
            let topic = topic(&format!("m{n}"), "deploy");
            let payload = n.to_string();
            publisher
                .send_publish(&topic, QoS::AtLeastOnce, true, payload.as_bytes())
                .await;
        }
        for _ in 0..50 {
            assert!(matches!(publisher.next().await, Some(Packet::PubAck(_))));
        }
    }
    let mut admin = world.client(&broker, Role::Admin, "root").await;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        admin.subscribe_at(&["hoist/v1/prod/+/deploy"], qos).await;
        let messages = admin.messages(10_000).await;
        assert_eq!(messages.len(), 10_000);
        assert_eq!(messages[&topic("m9999", "deploy")], "9999");
    }
    admin.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_subscribes_in_the_middle_of_a_stream_misses_nothing_and_gets_nothing_twice() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    for filter in [status.clone(), "hoist/v1/prod/+/status".to_owned()] {
        let mut agent = world.agent(&broker, "web-1").await;
        agent.retain(&status, "0").await;
        let publishing = tokio::spawn({
            let status = status.clone();
            async move {
                for n in 1..=400 {
                    assert!(agent.retain(&status, n.to_string()).await);
                }
                agent.disconnect().await;
            }
        });
        let mut monitors = Vec::new();
        for n in 0..8 {
            let mut monitor = world
                .client(&broker, Role::Monitor, &format!("mon{n}"))
                .await;
            let filter = filter.clone();
            monitors.push(tokio::spawn(async move {
                monitor.subscribe(&[&filter]).await;
                let mut last = monitor.message().await.payload.parse::<u32>().unwrap();
                while last < 400 {
                    let next = monitor.message().await.payload.parse::<u32>().unwrap();
                    assert_eq!(next, last + 1, "{filter}");
                    last = next;
                }
                monitor.expect_nothing().await;
            }));
        }
        publishing.await.unwrap();
        for monitor in monitors {
            monitor.await.unwrap();
        }
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_the_router_leaves_behind_ends_up_with_the_newest_of_everything() {
    let world = World::new();
    let broker = world.start().await;
    // A watcher that reads nothing for now, of a channel whose log in the router holds about 1 MB.
    let mut monitor = world.monitor(&broker).await;
    monitor
        .subscribe_at(&["hoist/v1/prod/+/status"], QoS::AtMostOnce)
        .await;
    let mut agents = Vec::new();
    for n in 0..4 {
        let mut agent = world.agent(&broker, &format!("m{n}")).await;
        agents.push(tokio::spawn(async move {
            let topic = topic(&format!("m{n}"), "status");
            for round in 0..400 {
                let payload = format!("{round} {}", "x".repeat(15_000));
                assert!(agent.retain(&topic, payload).await);
            }
            agent
        }));
    }
    let mut connected = Vec::new();
    for agent in agents {
        connected.push(agent.await.unwrap());
    }
    let mut finished = BTreeSet::new();
    while finished.len() < 4 {
        let message = monitor.message().await;
        if message.payload.starts_with("399 ") {
            assert!(
                finished.insert(message.topic.clone()),
                "{} came twice",
                message.topic
            );
        } else {
            assert!(
                !finished.contains(&message.topic),
                "{} went back",
                message.topic
            );
        }
    }
    drop(connected);
    broker.stop().await;
}

#[tokio::test]
async fn a_log_line_reaches_who_follows_one_machine_and_who_follows_all() {
    let world = World::new();
    let broker = world.start().await;
    let log = topic("web-1", "log");
    let mut agent = world.agent(&broker, "web-1").await;
    let mut one = world.client(&broker, Role::Publisher, "ci").await;
    one.subscribe(&[&log]).await;
    let mut all = world.client(&broker, Role::Publisher, "ci2").await;
    all.subscribe(&["hoist/v1/prod/+/log"]).await;
    for n in 0..20 {
        let line = n.to_string();
        agent
            .send_publish(&log, QoS::AtMostOnce, false, line.as_bytes())
            .await;
    }
    for client in [&mut one, &mut all] {
        for n in 0..20 {
            let line = client.message().await;
            assert_eq!((line.payload, line.retain), (n.to_string(), false));
        }
    }
    // Nothing of it is kept.
    let mut late = world.client(&broker, Role::Publisher, "ci3").await;
    late.subscribe(&[&log]).await;
    late.expect_nothing().await;
    broker.stop().await;
}
