//! What MQTT 5 adds: what both sides agree on, reasons, options of a subscription, properties, expiry, wills.

use hoist_broker::Options;
use hoist_certs::Role;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill,
    LastWillProperties, Packet, PubAckReason, PubRecReason, PublishProperties, RetainForwardRule,
    SubscribeReasonCode, UnsubAckReason, Unsubscribe,
};

use crate::support::{World, topic};
use crate::v5_client::{Client5, connect, filter, returning};

const GRANTED: SubscribeReasonCode = SubscribeReasonCode::Success(QoS::AtLeastOnce);

fn user(key: &str, value: &str) -> PublishProperties {
    PublishProperties {
        user_properties: vec![(key.to_owned(), value.to_owned())],
        ..PublishProperties::default()
    }
}

#[tokio::test]
async fn the_connack_says_what_the_broker_takes_and_who_the_client_is() {
    let world = World::with(Options {
        keep_alive: Some("30s".to_owned()),
        session_expiry: Some("1m".to_owned()),
        ..Options::default()
    });
    let broker = world.start().await;
    let mut client = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    let ack = client.connect(returning(""), None).await;
    assert_eq!(
        (ack.code, ack.session_present),
        (ConnectReturnCode::Success, false)
    );
    let said = ack.properties.unwrap();
    assert_eq!(said.server_keep_alive, Some(30));
    assert_eq!(
        said.session_expiry_interval,
        Some(60),
        "an hour was asked for"
    );
    assert_eq!(said.shared_subscription_available, Some(0));
    assert_eq!((said.max_qos, said.retain_available), (None, None));
    assert_eq!(said.topic_alias_max, Some(16));
    assert_eq!(said.receive_max, Some(1024));
    assert!(said.max_packet_size.unwrap() > 64 * 1024);
    assert!(
        said.assigned_client_identifier
            .unwrap()
            .starts_with("mon._")
    );
    // Who asks for what the broker gives hears nothing of it.
    let mut client = Client5::tls(&world, &broker, Role::Agent, "web-1").await;
    let mut asked = connect("web-1");
    asked.keep_alive = 20;
    let said = client.connect(asked, None).await.properties.unwrap();
    assert_eq!(
        (said.server_keep_alive, said.session_expiry_interval),
        (None, None)
    );
    assert_eq!(said.assigned_client_identifier, None);
    broker.stop().await;
}

#[tokio::test]
async fn a_connect_is_refused_with_a_reason() {
    let world = World::new();
    let broker = world.start().await;
    let mut client = Client5::tls(&world, &broker, Role::Agent, "web-1").await;
    let ack = client.connect(connect("web-2"), None).await;
    assert_eq!(ack.code, ConnectReturnCode::ClientIdentifierNotValid);
    let why = ack.properties.unwrap().reason_string.unwrap();
    assert!(why.contains("web-1"), "{why}");
    assert_eq!(client.next().await, None);

    let mut client = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    let will = LastWill::new(topic("mon", "status"), "x", QoS::AtLeastOnce, true, None);
    let ack = client.connect(connect("mon.1"), Some(will)).await;
    assert_eq!(ack.code, ConnectReturnCode::NotAuthorized);

    let mut client = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    let mut with_method = connect("mon.1");
    with_method.properties = Some(ConnectProperties {
        authentication_method: Some("SCRAM-SHA-256".to_owned()),
        ..ConnectProperties::new()
    });
    let ack = client.connect(with_method, None).await;
    assert_eq!(ack.code, ConnectReturnCode::BadAuthenticationMethod);
    assert_eq!(client.next().await, None);
    broker.stop().await;
}

#[tokio::test]
async fn a_refused_publish_is_answered_with_its_reason_and_the_connection_goes_on() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
    let ack = monitor.retain(&status, "x", None).await;
    assert_eq!(ack.reason, PubAckReason::NotAuthorized);
    let why = ack.properties.unwrap().reason_string.unwrap();
    assert!(why.contains("may not publish"), "{why}");
    // Again and again with the same id: a refusal ends the exchange.
    for _ in 0..3 {
        monitor.send_bytes(&publish_qos2(&status, 7)).await;
        match monitor.next().await {
            Some(Packet::PubRec(rec)) => assert_eq!(rec.reason, PubRecReason::NotAuthorized),
            other => panic!("{other:?}"),
        }
    }
    let mut agent = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    let ack = agent.retain("somewhere/else", "x", None).await;
    assert_eq!(ack.reason, PubAckReason::TopicNameInvalid);
    let ack = agent
        .retain(&topic("web-1", "presence"), "maybe", None)
        .await;
    assert_eq!(ack.reason, PubAckReason::ImplementationSpecificError);
    assert_eq!(
        agent.retain(&status, "x", None).await.reason,
        PubAckReason::Success
    );
    // At QoS 0 there is no answer but the end.
    monitor
        .send_publish(&status, QoS::AtMostOnce, true, "x", None)
        .await;
    monitor
        .expect_goodbye(DisconnectReasonCode::NotAuthorized)
        .await;
    broker.stop().await;
}

fn publish_qos2(topic: &str, id: u8) -> Vec<u8> {
    let len = u8::try_from(topic.len()).unwrap();
    [
        &[0x35, len + 6, 0, len][..],
        topic.as_bytes(),
        &[0, id, 0, b'x'],
    ]
    .concat()
}

#[tokio::test]
async fn who_wants_no_reasons_in_words_gets_none() {
    let world = World::new();
    let broker = world.start().await;
    let mut monitor = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    let mut quiet = connect("mon.1");
    quiet.properties = Some(ConnectProperties {
        request_problem_info: Some(0),
        ..ConnectProperties::new()
    });
    monitor.open(quiet, None).await;
    let ack = monitor.retain(&topic("web-1", "status"), "x", None).await;
    assert_eq!(ack.reason, PubAckReason::NotAuthorized);
    assert_eq!(ack.properties.and_then(|said| said.reason_string), None);
    broker.stop().await;
}

#[tokio::test]
async fn the_broker_says_why_it_closes() {
    let world = World::new();
    let broker = world.start().await;
    let mut old = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    let mut agent = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    let why = old
        .expect_goodbye(DisconnectReasonCode::SessionTakenOver)
        .await;
    assert!(!why.contains("127.0.0.1"), "{why}");
    let mut silent = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    let mut short = connect("mon.1");
    short.keep_alive = 1;
    silent.open(short, None).await;
    silent
        .expect_goodbye(DisconnectReasonCode::KeepAliveTimeout)
        .await;
    for (bytes, reason) in [
        (&[0xf0, 2, 0x19, 0][..], DisconnectReasonCode::ProtocolError),
        (
            &[0x30, 0xff, 0xff, 0xff, 0x7f],
            DisconnectReasonCode::PacketTooLarge,
        ),
        (
            &[0x30, 6, 0, 0, 3, 0x23, 0, 9],
            DisconnectReasonCode::TopicAliasInvalid,
        ),
        (&[0x40, 2, 0, 9], DisconnectReasonCode::ProtocolError),
        (&[0xc1, 0], DisconnectReasonCode::MalformedPacket),
        (
            &[0xe0, 7, 0, 5, 0x11, 0, 0, 0, 9],
            DisconnectReasonCode::ProtocolError,
        ),
    ] {
        let mut client = Client5::new(&world, &broker, Role::Monitor, "mon").await;
        client.send_bytes(bytes).await;
        client.expect_goodbye(reason).await;
    }
    agent.expect_nothing().await;
    broker.stop().await;
    agent
        .expect_goodbye(DisconnectReasonCode::ServerShuttingDown)
        .await;
}

#[tokio::test]
async fn a_subscription_that_is_refused_says_why() {
    let world = World::new();
    let broker = world.start().await;
    let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
    let codes = monitor
        .subscribe(
            vec![
                filter("hoist/v1/prod/+/status"),
                filter("hoist/v1/prod/+/deploy"),
                filter("$share/group/hoist/v1/prod/+/status"),
                filter("hoist/#/status"),
                filter("hoist/v1/test/+/status"),
            ],
            None,
        )
        .await;
    assert_eq!(
        codes,
        [
            GRANTED,
            SubscribeReasonCode::NotAuthorized,
            SubscribeReasonCode::SharedSubscriptionsNotSupported,
            SubscribeReasonCode::TopicFilterInvalid,
            SubscribeReasonCode::NotAuthorized,
        ]
    );
    let mut unsubscribe = Unsubscribe::new("hoist/v1/prod/+/status", None);
    unsubscribe.filters.push("never/subscribed".to_owned());
    unsubscribe.pkid = 9;
    monitor.send(Packet::Unsubscribe(unsubscribe)).await;
    match monitor.next().await {
        Some(Packet::UnsubAck(ack)) => assert_eq!(
            ack.reasons,
            [
                UnsubAckReason::Success,
                UnsubAckReason::NoSubscriptionExisted
            ]
        ),
        other => panic!("{other:?}"),
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_subscription_brings_what_is_retained_as_it_asks() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    agent.retain(&status, "1", None).await;
    let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
    for path in [status.as_str(), "hoist/v1/prod/+/status"] {
        let with = |rule| {
            let mut filter = filter(path);
            filter.retain_forward_rule = rule;
            vec![filter]
        };
        monitor
            .subscribe(with(RetainForwardRule::Never), None)
            .await;
        monitor.expect_nothing().await;
        monitor
            .subscribe(with(RetainForwardRule::OnNewSubscribe), None)
            .await;
        monitor.expect_nothing().await;
        monitor
            .subscribe(with(RetainForwardRule::OnEverySubscribe), None)
            .await;
        assert!(monitor.message().await.retain);
        monitor.send(Packet::Unsubscribe(unsubscribe(path))).await;
        assert!(matches!(monitor.next().await, Some(Packet::UnsubAck(_))));
        monitor
            .subscribe(with(RetainForwardRule::OnNewSubscribe), None)
            .await;
        assert!(monitor.message().await.retain);
        // News go on whatever was asked for.
        agent.retain(&status, "2", None).await;
        let news = monitor.message().await;
        assert_eq!((&news.payload[..], news.retain), (&b"2"[..], false));
        monitor.send(Packet::Unsubscribe(unsubscribe(path))).await;
        assert!(matches!(monitor.next().await, Some(Packet::UnsubAck(_))));
    }
    broker.stop().await;
}

fn unsubscribe(path: &str) -> Unsubscribe {
    let mut unsubscribe = Unsubscribe::new(path, None);
    unsubscribe.pkid = 99;
    unsubscribe
}

#[tokio::test]
async fn options_of_a_subscription_hold_for_its_messages() {
    let world = World::new();
    let broker = world.start().await;
    let (deploy, echo) = (topic("web-1", "deploy"), topic("web-1", "echo"));
    let mut agent = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    agent.subscribe(vec![filter(&echo)], Some(7)).await;
    agent
        .send_publish(&echo, QoS::AtMostOnce, false, "me", None)
        .await;
    let own = agent.message().await;
    assert_eq!(own.properties.unwrap().subscription_identifiers, [7]);
    let mut deaf = filter(&echo);
    deaf.nolocal = true;
    agent.subscribe(vec![deaf], None).await;
    agent
        .send_publish(&echo, QoS::AtMostOnce, false, "me", None)
        .await;
    agent.expect_nothing().await;

    let mut publisher = Client5::new(&world, &broker, Role::Publisher, "ci").await;
    let mut other = Client5::new(&world, &broker, Role::Publisher, "other").await;
    // Over the router and straight, each with its own number and its own flags.
    let options = |path: &str| Filter {
        preserve_retain: true,
        nolocal: true,
        ..filter(path)
    };
    other
        .subscribe(vec![options("hoist/v1/prod/+/deploy")], Some(300))
        .await;
    other
        .subscribe(vec![options("hoist/v1/prod/web-1/+")], Some(2))
        .await;
    other.subscribe(vec![filter(&deploy)], Some(3)).await;
    publisher.retain(&deploy, "x", None).await;
    let mut identifiers = Vec::new();
    for _ in 0..2 {
        let message = other.message().await;
        assert!(message.retain, "as it was published");
        identifiers.push(message.properties.unwrap().subscription_identifiers);
    }
    identifiers.sort();
    assert_eq!(identifiers, [vec![2, 3], vec![300]]);
    other
        .send_publish(&deploy, QoS::AtMostOnce, true, "y", None)
        .await;
    let message = other.message().await;
    assert_eq!(message.properties.unwrap().subscription_identifiers, [3]);
    other.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn properties_are_passed_on_to_who_subscribes_now_and_to_who_subscribes_later() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
    let mut older = world.client(&broker, Role::Monitor, "old").await;
    for path in [status.as_str(), "hoist/v1/prod/+/status"] {
        monitor.subscribe(vec![filter(path)], None).await;
    }
    older.subscribe(&[&status]).await;
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        content_type: Some("application/json".to_owned()),
        response_topic: Some("somewhere".to_owned()),
        correlation_data: Some(bytes::Bytes::from_static(&[0, 1, 2])),
        ..user("revision", "abc")
    };
    let with_alias = PublishProperties {
        topic_alias: Some(1),
        ..properties.clone()
    };
    agent.retain(&status, "{}", Some(with_alias)).await;
    for _ in 0..2 {
        let message = monitor.message().await;
        assert_eq!(message.properties, Some(properties.clone()));
    }
    assert_eq!(older.message().await.payload, "{}");
    // The alias stands for the topic from now on.
    let alias = PublishProperties {
        topic_alias: Some(1),
        ..PublishProperties::default()
    };
    agent.retain("", "{2}", Some(alias)).await;
    for _ in 0..2 {
        let message = monitor.message().await;
        assert_eq!(
            (&message.topic[..], message.properties),
            (status.as_bytes(), None)
        );
    }
    agent.retain(&status, "{}", Some(properties.clone())).await;
    broker.stop().await;
    let broker = world.start().await;
    let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
    monitor.subscribe(vec![filter(&status)], None).await;
    assert_eq!(monitor.message().await.properties, Some(properties));
    broker.stop().await;
}

#[tokio::test]
async fn a_message_that_has_expired_is_delivered_to_nobody() {
    let world = World::new();
    let broker = world.start().await;
    let (status, history) = (topic("web-1", "status"), topic("web-1", "history"));
    let mut agent = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    let expiry = |seconds| {
        Some(PublishProperties {
            message_expiry_interval: Some(seconds),
            ..PublishProperties::default()
        })
    };
    agent.retain(&status, "old", expiry(0)).await;
    agent.retain(&history, "fresh", expiry(3600)).await;
    for path in ["hoist/v1/prod/web-1/+", "hoist/v1/prod/#"] {
        let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
        monitor.subscribe(vec![filter(path)], None).await;
        let message = monitor.message().await;
        assert_eq!(&message.payload[..], b"fresh");
        let left = message.properties.unwrap().message_expiry_interval.unwrap();
        assert!((1..=3600).contains(&left), "{left}");
        monitor.expect_nothing().await;
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_client_gets_no_more_and_nothing_larger_than_it_takes() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = Client5::new(&world, &broker, Role::Agent, "web-1").await;
    let mut small = Client5::tls(&world, &broker, Role::Monitor, "mon").await;
    let mut limits = connect("mon.1");
    limits.properties = Some(ConnectProperties {
        receive_maximum: Some(2),
        max_packet_size: Some(200),
        ..ConnectProperties::new()
    });
    small.open(limits, None).await;
    small.subscribe(vec![filter(&status)], None).await;
    for n in 0..4 {
        agent.retain(&status, &"x".repeat(1000), None).await;
        agent.retain(&status, &n.to_string(), None).await;
    }
    let first = small.unacknowledged().await;
    let second = small.unacknowledged().await;
    assert_eq!(
        (&first.payload[..], &second.payload[..]),
        (&b"0"[..], &b"1"[..])
    );
    small.expect_nothing().await;
    small.acknowledge(&second).await;
    let third = small.unacknowledged().await;
    assert_eq!(&third.payload[..], b"2");
    small.expect_nothing().await;
    small.acknowledge(&first).await;
    assert_eq!(&small.message().await.payload[..], b"3");
    broker.stop().await;
}

pub(crate) fn will_after(delay: u32, topic: &str, payload: &str) -> LastWill {
    let properties = LastWillProperties {
        delay_interval: Some(delay),
        message_expiry_interval: Some(3600),
        user_properties: vec![("why".to_owned(), "lost".to_owned())],
        payload_format_indicator: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
    };
    let properties = Some(properties);
    LastWill::new(topic, payload, QoS::AtLeastOnce, true, properties)
}

fn offline_after(delay: u32) -> Option<LastWill> {
    Some(will_after(delay, &topic("web-1", "presence"), "offline"))
}

#[tokio::test]
async fn a_will_waits_for_its_delay_and_is_dropped_when_the_client_is_back() {
    let world = World::new();
    let broker = world.start().await;
    let presence = topic("web-1", "presence");
    let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
    monitor.subscribe(vec![filter(&presence)], None).await;
    let mut agent = Client5::tls(&world, &broker, Role::Agent, "web-1").await;
    agent.open(returning("web-1"), offline_after(3600)).await;
    agent.retain(&presence, "online", None).await;
    assert_eq!(&monitor.message().await.payload[..], b"online");
    drop(agent);
    // It is back, whether the broker has noticed the end of the old connection or not.
    let mut agent = Client5::tls(&world, &broker, Role::Agent, "web-1").await;
    assert!(agent.open(returning("web-1"), offline_after(3600)).await);
    agent.retain(&presence, "online", None).await;
    assert_eq!(&monitor.message().await.payload[..], b"online");
    drop(agent);
    // The end of the session is the end of the delay.
    let mut agent = Client5::tls(&world, &broker, Role::Agent, "web-1").await;
    assert!(!agent.open(connect("web-1"), None).await);
    let offline = monitor.message().await;
    assert_eq!(&offline.payload[..], b"offline");
    let said = offline.properties.unwrap();
    assert!(said.message_expiry_interval.unwrap() <= 3600);
    assert_eq!(
        said.user_properties,
        [("why".to_owned(), "lost".to_owned())]
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_will_comes_at_the_end_of_its_delay_or_of_the_session_and_with_a_goodbye_that_asks_for_it()
 {
    let world = World::new();
    let broker = world.start().await;
    let presence = topic("web-1", "presence");
    let mut monitor = Client5::new(&world, &broker, Role::Monitor, "mon").await;
    monitor.subscribe(vec![filter(&presence)], None).await;
    let brief = |seconds| {
        let mut connect = returning("web-1");
        connect.properties.as_mut().unwrap().session_expiry_interval = Some(seconds);
        connect
    };
    for (delay, expiry, goodbye) in [(1, 3600, false), (3600, 1, false), (0, 3600, true)] {
        let mut agent = Client5::tls(&world, &broker, Role::Agent, "web-1").await;
        agent.open(brief(expiry), offline_after(delay)).await;
        agent.retain(&presence, "online", None).await;
        assert_eq!(&monitor.message().await.payload[..], b"online");
        if goodbye {
            agent.send_bytes(&[0xe0, 1, 4]).await;
            assert_eq!(agent.next().await, None);
        }
        drop(agent);
        assert_eq!(&monitor.message().await.payload[..], b"offline");
    }
    broker.stop().await;
}
