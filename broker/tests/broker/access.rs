//! Who reads what.

use hoist_broker::Options;
use hoist_certs::Role;
use rumqttc::{QoS, SubscribeReasonCode};

use crate::support::{World, topic};

#[tokio::test]
async fn a_filter_that_a_role_may_not_read_is_refused_and_the_others_granted() {
    let world = World::new();
    let broker = world.start().await;
    let granted = |filter: &str, code: SubscribeReasonCode| match code {
        SubscribeReasonCode::Success(_) => Some(filter.to_owned()),
        SubscribeReasonCode::Failure => None,
    };
    let filters = [
        "hoist/v1/prod/me/deploy",
        "hoist/v1/prod/me/echo",
        "hoist/v1/prod/me/status",
        "hoist/v1/prod/me/#",
        "hoist/v1/prod/web-2/deploy",
        "hoist/v1/prod/+/deploy",
        "hoist/v1/prod/+/status",
        "hoist/v1/prod/+/log",
        "hoist/v1/prod/#",
        "#",
        "hoist/v1/test/+/status",
        "hoist/v1/test/#",
        "$SYS/#",
        "$share/g/hoist/v1/prod/+/status",
        "other/topic",
    ];
    for (role, expected) in [
        (Role::Agent, &[0, 1, 3][..]),
        (Role::Monitor, &[2, 3, 6, 8, 9]),
        (Role::Publisher, &[0, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Role::Admin, &[0, 2, 3, 4, 5, 6, 7, 8, 9]),
    ] {
        let mut client = world.client(&broker, role, "me").await;
        let codes = client.subscribe(&filters).await;
        let found: Vec<_> = filters
            .iter()
            .zip(codes)
            .filter_map(|(filter, code)| granted(filter, code))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|n: &usize| filters[*n].to_owned())
            .collect();
        assert_eq!(found, expected, "{role}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_wide_filter_delivers_only_what_may_be_read() {
    let world = World::with(Options {
        monitors_read_log: Some(true),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    let mut publisher = world.client(&broker, Role::Publisher, "ci").await;
    let mut foreign = world.tls_in("test", &broker, Role::Agent, "web-1").await;
    foreign.connect(rumqttc::Connect::new("web-1")).await;
    publisher.retain(&topic("web-1", "deploy"), "before").await;
    foreign
        .retain("hoist/v1/test/web-1/status", "foreign before")
        .await;
    let mut watchers = Vec::new();
    for filter in [
        "#",
        "hoist/v1/prod/#",
        "hoist/v1/+/+/+",
        "hoist/v1/prod/web-1/#",
    ] {
        let who = format!("mon{}", watchers.len());
        let mut monitor = world.client(&broker, Role::Monitor, &who).await;
        monitor.subscribe(&[filter]).await;
        watchers.push((filter, monitor));
    }
    let mut own = world.client(&broker, Role::Agent, "web-2").await;
    own.subscribe(&["hoist/v1/prod/web-2/#"]).await;
    publisher.retain(&topic("web-1", "deploy"), "live").await;
    publisher
        .retain(&topic("web-2", "deploy"), "for web-2")
        .await;
    foreign
        .retain("hoist/v1/test/web-1/status", "foreign live")
        .await;
    agent
        .send_publish(&topic("web-1", "echo"), QoS::AtMostOnce, false, b"nonce")
        .await;
    agent.retain(&topic("web-1", "status"), "status").await;
    agent
        .send_publish(&topic("web-1", "log"), QoS::AtMostOnce, false, b"line")
        .await;
    for (filter, monitor) in &mut watchers {
        let messages = monitor.messages(2).await;
        assert_eq!(messages[&topic("web-1", "status")], "status", "{filter}");
        assert_eq!(messages[&topic("web-1", "log")], "line", "{filter}");
        monitor.expect_nothing().await;
    }
    assert_eq!(own.message().await.payload, "for web-2");
    own.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_refused_to_every_kind_of_wildcard_of_an_agent() {
    let world = World::new();
    let broker = world.start().await;
    let mut agent = world.agent(&broker, "web-1").await;
    let codes = agent
        .subscribe(&[
            "+/v1/prod/web-1/status",
            "hoist/v1/+/+/deploy",
            "hoist/v1/prod/+/#",
            "+/#",
        ])
        .await;
    assert!(
        codes
            .iter()
            .all(|code| *code == SubscribeReasonCode::Failure),
        "{codes:?}"
    );
    broker.stop().await;
}
